"""What the LSH family promises beyond the contract: strictness at length, bounded state and work, attention recall."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from attentions import build, reformer
from attentions.buckets.attention import BucketAttention
from attentions.buckets.support import SupportAttention
from attentions.common.problem import problem_of

STRICT: list[tuple[str, dict[str, Any]]] = [
    ("bit_sampling", {"tables": 2}),
    ("bit_sampling", {"bits": None, "max_len": 4096, "duplicates": "allow", "balanced": True}),
    ("simhash", {"tables": 3, "window": 32, "local": 1}),
    ("lsh_forest", {}),
    ("lsh_forest", {"trees": 2, "bits": 8, "min_candidates": 9, "max_candidates": 40, "local": 3}),
]
IDS = [f"{name} {' '.join(f'{k}={v}' for k, v in settings.items())}" for name, settings in STRICT]


def inputs(n: int, *, heads: int = 2, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, n, dim, dtype=torch.float64, generator=generator) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("n", [257, 1024, 4096])
@pytest.mark.parametrize(("name", "settings"), STRICT, ids=IDS)
def test_nothing_after_t_changes_a_row_before_it(name: str, settings: dict[str, Any], n: int) -> None:
    attention = build(name, heads=2, head_dim=16, **settings)
    attention.prepare(*inputs(512, seed=9))
    one, two = inputs(n, seed=1), inputs(n, seed=2)
    for t in (1, n // 3, n - 1):
        mixed = [torch.cat((x[:, :, :t], 100 * y[:, :, t:]), dim=2) for x, y in zip(one, two, strict=True)]
        change = (attention(*mixed) - attention(*one))[:, :, :t].norm() / attention(*one)[:, :, :t].norm()
        assert change <= 1e-12


@pytest.mark.parametrize("settings", [{"tables": 2}, {"tables": 1, "bits": 4, "window": 16, "local": 3}], ids=str)
@pytest.mark.parametrize("name", ["bit_sampling", "simhash"])
def test_any_split_of_512_tokens_decodes_like_forward(name: str, settings: dict[str, Any]) -> None:
    attention = build(name, heads=2, head_dim=16, **settings)
    q, k, v = inputs(512)
    want = attention(q, k, v)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        cuts = sorted(torch.randint(1, 512, (7,), generator=generator).unique().tolist())
        stream = attention.stream(1)
        assert stream is not None
        edges = zip([0, *cuts], [*cuts, 512], strict=True)
        pieces = [stream.extend(*(x[:, :, a:b] for x in (q, k, v))) for a, b in edges]
        torch.testing.assert_close(torch.cat(pieces, dim=2), want, rtol=1e-10, atol=1e-12)
        assert stream.state_bytes == attention.cost(problem_of(attention, q, k)).state_bytes


def test_state_does_not_grow_with_the_sequence() -> None:
    attention = build("bit_sampling", heads=2, head_dim=16, bits=3, window=8, local=4)
    stream = attention.stream(1)
    assert stream is not None
    sizes = set()
    for piece in zip(*(x.split(500, dim=2) for x in inputs(3000)), strict=True):
        stream.extend(*piece)
        sizes.add(stream.state_bytes)
    assert len(sizes) == 1


@pytest.mark.parametrize("name", ["bit_sampling", "simhash", "lsh_forest", "reformer"])
def test_identical_tokens_at_64k_stay_finite_and_within_their_windows(name: str) -> None:
    n = 65_536
    attention = build(name, heads=1, head_dim=16, max_len=n)
    q = torch.ones(1, 1, n, 16)
    v = torch.arange(n, dtype=torch.float32).expand(1, 1, 16, n).mT
    out = attention(q, q, v)
    assert torch.isfinite(out).all()
    assert attention.comparisons(q, q).sum() <= attention.cost(problem_of(attention, q, q)).comparisons
    assert (out[0, 0, :, 0] <= torch.arange(n)).all(), "an average of the past is above the present"


@pytest.mark.parametrize("name", ["bit_sampling", "simhash"])
def test_more_tables_keep_more_mass_and_err_less(name: str) -> None:
    q, k, v = inputs(2048)
    k = k + 0.7 * q.roll(5, dims=2)  # some keys are close to some queries
    q = 2 * q
    exact = build("vanilla", heads=2, head_dim=16).naive(q, k, v)
    masses, errors = [], []
    for tables in (1, 2, 4, 8):
        attention = build(name, heads=2, head_dim=16, bits=6, window=32, local=8, tables=tables)
        assert isinstance(attention, SupportAttention)
        masses.append(attention.kept_mass(q, k).mean().item())
        errors.append((attention(q, k, v) - exact).norm().item())
    assert masses == sorted(masses)
    assert errors == sorted(errors, reverse=True)
    assert masses[-1] > masses[0] + 0.05


def test_kept_mass_of_everything_is_one() -> None:
    q, k, _ = inputs(100)
    attention = build("bit_sampling", heads=2, head_dim=16, bits=0, window=100)
    assert isinstance(attention, BucketAttention)
    torch.testing.assert_close(attention.kept_mass(q, k), torch.ones(1, 2, 100, dtype=torch.float64))


def test_forest_goes_deeper_where_more_keys_agree() -> None:
    attention = build(
        "lsh_forest", heads=1, head_dim=16, trees=1, bits=8, min_candidates=20, max_candidates=60, local=1
    )
    q, k, _ = inputs(4000, heads=1)
    table = attention.windows(q, k)[1]  # type: ignore[operator]
    assert table.members is not None
    depth = 8 - table.members.shift[0]
    assert depth[:19].max() == 0, "too few keys for any bucket but the root"
    assert depth[-500:].float().mean() > depth[200:700].float().mean() + 1


@pytest.mark.parametrize("buckets", [6, 200])
def test_reformers_codes_are_the_farthest_rotation_or_its_opposite(
    monkeypatch: pytest.MonkeyPatch, buckets: int
) -> None:
    attention, q = reformer.Reformer(2, 16, hashes=3, buckets=buckets), inputs(100)[0]
    turned = (q @ attention.rotations.double()).unflatten(-1, (3, -1))
    halves = turned.split([size // 2 for size in attention.factors], dim=-1)
    codes = [torch.cat((half, -half), dim=-1).argmax(-1) for half in halves]
    want = codes[0] if len(codes) == 1 else codes[0] * attention.factors[1] + codes[1]
    monkeypatch.setattr(reformer, "PIECE", 33)
    assert torch.equal(attention.codes(q), want.movedim(-1, 0))


def test_reformer_is_judged_against_shared_attention_and_attends_to_itself_only_alone() -> None:
    attention = build("reformer", heads=2, head_dim=16, hashes=2, chunk=100, buckets=4)
    q, k, v = inputs(100)
    torch.testing.assert_close(attention(q, k, v), attention.target(q, k, v), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(attention(q, k, v)[:, :, 0], v[:, :, 0])
    assert attention.multiplicity(q, k)[0, 0].diagonal()[1:].sum() == 0  # type: ignore[operator]


def test_chunk_as_long_as_the_sequence_keeps_all_of_reformers_mass() -> None:
    q, k, _ = inputs(100)
    attention = build("reformer", heads=2, head_dim=16, hashes=1, chunk=100, buckets=4)
    assert isinstance(attention, SupportAttention)
    torch.testing.assert_close(attention.kept_mass(q, k), torch.ones(1, 2, 100, dtype=torch.float64))
    attention = build("reformer", heads=2, head_dim=16, hashes=1, chunk=10, buckets=10)
    assert isinstance(attention, SupportAttention)
    assert 0 < attention.kept_mass(q, k).mean() < 0.9


@pytest.mark.parametrize("duplicates", ["once", "allow"])
@pytest.mark.parametrize("name", ["bit_sampling", "simhash"])
def test_components_are_the_stages_of_forward(name: str, duplicates: str) -> None:
    attention, (q, k, v) = build(name, heads=2, head_dim=16, tables=2, duplicates=duplicates), inputs(300)
    stages = attention.components(q, k, v)
    assert list(stages) == ["hashing", "bucket assignment", "bucket attention"]
    of_q, of_k = cast("tuple[list[Tensor], list[Tensor]]", stages["hashing"]())
    assert [len(of_q), len(of_k)] == [3, 3], "one code is that of the local window"
    assert len(cast("list[object]", stages["bucket assignment"]())) == 3
    torch.testing.assert_close(stages["bucket attention"](), attention(q, k, v), rtol=0, atol=0)
