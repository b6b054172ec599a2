"""What LSH v2 promises beyond the contract: its parts, its estimate of the rest, its training, its bounded state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attentions import build
from attentions.common.problem import Problem
from attentions.contract.candidate import Candidate, NotApplicable
from attentions.contract.checks import CHECKS
from attentions.lsh_v2 import LSHv2
from attentions.lsh_v2.levels import band, levels_of, pooled
from attentions.lsh_v2.samples import Sampler
from attentions.native import bucket_window

SMALL: dict[str, Any] = {"n_hashes": 3, "hash_dim": 2, "bucket_size": 5, "local": 8, "samples": 2, "hash_steps": 0}

PROBLEM = Problem(
    batch=1, heads=2, kv_heads=2, queries=1, keys=12_000, head_dim=16, value_dim=16, dtype=torch.float64,
    device=torch.device("cpu"), causal=True, backward=False,
)  # fmt: skip


class Open(LSHv2):
    """With the gates of the global context open, so that the contract sees it."""

    def __init__(self, *sizes: Any, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        assert self.context is not None
        self.context.gate.data = torch.linspace(-1.0, 2.0, self.heads)


def made(heads: int = 2, head_dim: int = 16, **settings: Any) -> LSHv2:
    attention = build("lsh_v2", heads=heads, head_dim=head_dim, **settings).double().eval()
    assert isinstance(attention, LSHv2)
    return attention


def inputs(n: int, *, heads: int = 2, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, n, dim, dtype=torch.float64, generator=generator) for _ in range(3))
    return q, k, v


@pytest.mark.no_type_checks
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_holds_with_open_gates(check: Callable[[Candidate], None], causal: bool) -> None:
    try:
        check(Candidate(Open, {**SMALL, "causal": causal}))
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_closed_gates_leave_the_softmax_estimate_and_have_a_gradient() -> None:
    q, k, v = inputs(80)
    attention = made(**SMALL)
    assert attention.context is not None
    out = attention(q, k, v)
    assert torch.equal(out, made(**SMALL, global_context=False)(q, k, v))
    out.square().sum().backward()
    assert attention.context.gate.grad is not None
    assert attention.context.gate.grad.all()


def test_open_gates_add_the_hyperbolic_tangent_of_their_number_of_the_scan() -> None:
    q, k, v = inputs(80)
    attention = made(**SMALL)
    assert attention.context is not None
    attention.context.gate.data = torch.tensor([-1.5, 0.7], dtype=torch.float64)
    scan = build("mamba", heads=2, head_dim=16).double()(q, k, v)
    want = attention.estimate(q, k, v)[0] + torch.tensor([math.tanh(-1.5), math.tanh(0.7)])[:, None, None] * scan
    torch.testing.assert_close(attention(q, k, v), want, rtol=1e-7, atol=1e-7)


def test_defaults_are_those_of_the_original_readme() -> None:
    attention = LSHv2(6, 64)
    assert (attention.n_hashes, attention.hashing.hash_dim, attention.bucket_size) == (4, 8, 128)
    assert [level.factor for level in attention.levels] == [1, 2, 4]
    assert attention.reach == 128 * 256


@pytest.mark.parametrize(("local", "block"), [(8, 8), (90, 88), (1000, 128)])
def test_at_most_128_queries_share_samples_and_whole_pools_fill_their_block(local: int, block: int) -> None:
    assert made(**SMALL | {"local": local}).settings.block == block


def test_judged_as_softmax_only_without_global_context() -> None:
    assert LSHv2.approximates is None
    assert made(**SMALL).approximates is None
    assert made(**SMALL, global_context=False).approximates == "softmax"


@pytest.mark.parametrize(
    ("heads", "kv_heads", "factors"),
    [(4, 4, [1, 2, 4]), (6, 3, [1, 2, 4]), (6, 1, [1, 2, 4]), (12, 4, [1, 2, 4]), (6, 2, [1, 3, 2, 5]), (2, 1, [4])],
)
def test_levels_give_each_head_its_factor_and_key_head(heads: int, kv_heads: int, factors: list[int]) -> None:
    seen = []
    for level in levels_of(heads, kv_heads, factors):
        of_level = range(level.heads.start, level.heads.stop)
        assert level.group * level.rows == len(of_level)
        for i, h in enumerate(of_level):
            assert level.factor == factors[h * len(factors) // heads]
            assert level.kv_heads.start + i // level.group == h * kv_heads // heads
        seen += of_level
    assert seen == list(range(heads))


@pytest.mark.parametrize("factor", [1, 2, 4, 3])
def test_band_and_pools_before_it_hold_every_past_key_once(factor: int) -> None:
    n, local = 90, 12
    found = band(torch.arange(n), n, factor, local, causal=True)
    for t in range(n):
        start, stop, before = (int(x[t]) for x in (found.start, found.stop, found.before))
        pools = [p for p in range(before) if factor * p + factor - 1 < start]
        assert start == factor * len(pools) == factor * before
        assert stop == t + 1
        assert min(t + 1, local) <= stop - start < local + factor


@pytest.mark.parametrize("t", range(1, 60, 7))
def test_pools_are_of_the_past_alone(t: int) -> None:
    """For each length modulo the factor, an incomplete pool tells nothing of what will complete it."""
    attention = made(heads=2, **SMALL | {"compression_factors": [4, 3], "local": 12})
    one, two = inputs(60, seed=1), inputs(60, seed=2)
    mixed = [torch.cat((x[:, :, :t], 100 * y[:, :, t:]), dim=2) for x, y in zip(one, two, strict=True)]
    torch.testing.assert_close(attention(*mixed)[:, :, :t], attention(*one)[:, :, :t], rtol=1e-12, atol=1e-12)


def test_pool_is_the_mean_of_its_keys() -> None:
    x = torch.arange(14.0).view(7, 2)
    torch.testing.assert_close(pooled(x, 3), torch.stack((x[:3].mean(0), x[3:6].mean(0))))


def test_comparisons_are_the_keys_pools_and_samples_of_the_definition() -> None:
    attention = made(heads=3, **SMALL)
    q, k, v = inputs(200, heads=3)
    want = [
        sum(x.sum().item() for x in (s.near, s.own, s.size > 0))
        for s in attention._supports(q, k, v, torch.arange(200))
    ]
    assert attention.comparisons(q, k)[0].tolist() == want


def test_kept_mass_is_the_softmax_weight_on_keys_of_band_and_pools() -> None:
    changed: dict[str, Any] = {"compression_factors": [1, 4]}
    attention = made(heads=2, **SMALL | changed)
    q, k, v = inputs(150)
    rows = torch.tensor([3, 77, 149])
    found = attention.kept_mass(q, k, rows=rows)
    for support in attention._supports(q, k, v, rows):
        for i, row in enumerate(rows.tolist()):
            weights = (k[0, support.head, : row + 1] @ q[0, support.head, row] / 4).softmax(0)
            pools = support.own[0, i].nonzero()[:, 0].tolist()
            met = {support.factor * p + j for p in pools for j in range(support.factor)}
            met |= set(support.near[0, i].nonzero()[:, 0].tolist())
            torch.testing.assert_close(found[0, support.head, i], weights[sorted(met)].sum())
            assert row < 12 or 0.05 < weights[sorted(met)].sum() < 0.95


def test_normaliser_is_unbiased_over_2000_draws() -> None:
    """40 seeds for each of 50 heads that hash alike; the mean estimate lies within its error of the exact sum."""
    heads, n = 50, 72
    attention = made(heads=heads, n_hashes=2, hash_dim=2, bucket_size=3, local=4, samples=1, hash_steps=0,
                     compression_factors=[1], global_context=False)  # fmt: skip
    for p in attention.hashing.parameters():
        p.data = p.data[:1].expand_as(p).clone()
    q, k, v = (x.expand(-1, heads, -1, -1) for x in inputs(n, heads=1))
    exact = ((q @ k.mT)[0, 0] / 4).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).logsumexp(-1)
    found = []
    assert attention.sampler is not None
    for seed in range(40):
        attention.sampler.seed = seed
        found.append(attention.estimate(q, k, v)[1][0] - exact)
    ratio = torch.cat(found).exp()  # 2000, n
    error = ratio.std(0) / len(ratio) ** 0.5
    assert (ratio.std(0)[20:] > 0.05).all(), "nothing was left to estimate"
    assert ((ratio.mean(0) - 1).abs() <= 4.5 * error + 1e-9).all()
    assert abs(ratio.mean() - 1) < 0.01


def test_draws_depend_on_seed_head_and_position_alone() -> None:
    index, heads = torch.arange(30).expand(2, -1), torch.tensor([0, 3])
    draws = Sampler(4, 2, seed=5).draw(index, heads)
    assert torch.equal(draws[:, 10:20], Sampler(4, 2, seed=5).draw(index[:, 10:20], heads))
    assert draws[0].ne(draws[1]).all()
    assert draws.ne(Sampler(4, 2, seed=6).draw(index, heads)).all()


def test_neighbours_of_a_coarse_bucket_lie_in_different_strata_and_no_stratum_spans_buckets() -> None:
    coarse, index = torch.arange(4).repeat_interleave(6), torch.arange(6).repeat(4)
    strata = Sampler(4, 3, seed=0).stratum(coarse, index).view(4, 6).tolist()
    assert strata == [[3 * bucket + i for i in (0, 1, 2, 0, 1, 2)] for bucket in range(4)]


@pytest.mark.parametrize("seed", range(3))
def test_samples_lower_the_error_on_gaussian_inputs_at_equal_comparisons(seed: int) -> None:
    q, k, v = inputs(2048, seed=seed)
    base: dict[str, Any] = {"hash_steps": 0, "compression_factors": [1], "global_context": False, "seed": seed}
    with_them, without = made(samples=2, bucket_size=8, **base), made(samples=0, bucket_size=128, **base)
    assert with_them.comparisons(q, k).sum() <= without.comparisons(q, k).sum()
    exact = without.target(q, k, v)
    errors = [(attention(q, k, v) - exact).norm() for attention in (with_them, without)]
    assert errors[0] < 0.7 * errors[1]


def test_a_stream_spends_on_a_token_what_no_longer_grows_once_windows_are_full() -> None:
    """And what keys of the past have cost is counted apart: their codes and the scan's steps."""
    attention = made(heads=3, **SMALL)
    one, two = (attention.cost(replace(PROBLEM, heads=3, kv_heads=3, keys=n)) for n in (1200, 12_000))
    assert one.flops - one.past_flops == two.flops - two.past_flops
    codes = sum(2 * 16 * 3 * 2 * 2 * ((12_000 - 1) // f) for f in (1, 2, 4))
    assert attention.context is not None
    assert two.past_flops == codes + attention.context.scan.cost(replace(PROBLEM, heads=3, kv_heads=3)).past_flops
    whole = attention.cost(replace(PROBLEM, heads=3, kv_heads=3, queries=12_000))
    assert whole.past_flops == 0


@pytest.mark.parametrize("causal", [True, False])
def test_torch_fallback_gives_the_native_kernels_result(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = made(heads=3, causal=causal, **SMALL)
    leaves = [x.requires_grad_() for x in inputs(150, heads=3)]
    found = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr(bucket_window, "available", lambda device: False)
        out = attention(*leaves)
        assert attention.kernel == ("native" if native else "torch fallback")
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves), attention.comparisons(*leaves[:2])])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_components_are_the_stages_of_forward() -> None:
    q, k, v = inputs(150)
    attention = made(**SMALL)
    assert attention.context is not None
    attention.context.gate.data = torch.tensor([0.5, -1.0], dtype=torch.float64)
    stages = attention.components(q, k, v)
    assert list(stages) == ["pooling", "hashing", "bucket assignment", "dissimilarity samples", "bucket attention",
                            "global context", "output"]  # fmt: skip
    for stage in stages.values():
        stage()
    attended, context = stages["bucket attention"](), stages["global context"]()
    assert isinstance(attended, list)
    torch.testing.assert_close(torch.cat(attended, 1), attention.estimate(q, k, v)[0])
    torch.testing.assert_close(context, attention.context.scan(q, k, v))
    torch.testing.assert_close(stages["output"](), attention(q, k, v))
    assert set(attention.claimed_components) <= set(stages)
    bare = made(n_hashes=0, samples=0, compression_factors=[1], global_context=False, hash_steps=0)
    assert list(bare.components(q, k, v)) == ["hashing", "bucket attention", "output"]


@pytest.mark.parametrize(
    "settings",
    [
        {"n_hashes": -1},
        {"hash_dim": 17},
        {"bucket_size": 0},
        {"compression_factors": []},
        {"local": 3},
        {"samples": -1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        made(**settings)


@pytest.mark.slow
def test_planted_keys_at_uniform_distance_in_64k_are_found() -> None:
    """Most of the keys within reach; the window of one round reaches half of 64K at even buckets."""
    from benchmarks.lsh_v2_quality import planted_rate

    found = planted_rate(65_536, rows=256)
    assert found.within_reach > 2 * found.by_chance
    assert found.everywhere > found.by_chance
