"""`cost().comparisons` bounds `comparisons()` for any settings, and is the number where no data decides."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from attentions import BACKENDS, build
from attentions.buckets.support import SupportAttention, window_total
from attentions.common.problem import problem_of
from attentions.lsh_forest import LSHForest
from attentions.reformer import Reformer

if TYPE_CHECKING:
    from attentions.base import Attention

SIZES = [1, 2, 7, 16, 64, 300]  # of windows, chunks, blocks and samples; sequences have at most 90 keys


def of_buckets(draw: random.Random) -> dict[str, Any]:
    return {
        "bits": draw.choice([0, 1, 2, 5, 8]),
        "tables": draw.choice([1, 2, 3, 5]),
        "window": draw.choice(SIZES),
        "local": draw.choice(SIZES),
        "duplicates": draw.choice(["once", "allow"]),
    }


def of_forests(draw: random.Random) -> dict[str, Any]:
    trees, local, window = draw.choice([1, 2, 4]), draw.choice(SIZES), draw.choice(SIZES)
    most = trees * window + local + draw.randrange(trees)
    fewest = draw.choice([None, 1, draw.randint(1, window)])
    shape = {"trees": trees, "local": local, "min_candidates": fewest, "max_candidates": most}
    return shape | {"bits": draw.choice([1, 3, 8, 16])}


def of_lsh_v2(draw: random.Random) -> dict[str, Any]:
    return {
        "n_hashes": draw.choice([0, 1, 2, 4]),
        "hash_dim": draw.choice([1, 2, 8]),
        "bucket_size": draw.choice(SIZES),
        "compression_factors": draw.choice([[1], [1, 2, 4], [2], [3, 1], [4]]),
        "local": draw.choice([12, 16, 64, 300]),
        "samples": draw.choice([0, 1, 4]),
        "global_context": draw.choice([True, False]),
    }


SETTINGS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "bit_sampling": of_buckets,
    "simhash": of_buckets,
    "attentions.controls:RandomSupport": of_buckets,
    "lsh_forest": of_forests,
    "reformer": lambda draw: {
        "hashes": draw.choice([1, 2, 4]),
        "chunk": draw.choice(SIZES),
        "buckets": draw.choice([None, 2, 6, 200]),
    },
    "lsh_v2": of_lsh_v2,
    "vq": lambda draw: {"codes": draw.choice(SIZES), "block": draw.choice(SIZES)},
    "vq_qk": lambda draw: {"codes": draw.choice(SIZES), "block": draw.choice(SIZES)},
    "hyper": lambda draw: {
        "block_size": draw.choice(SIZES),
        "sample_size": draw.choice(SIZES),
        "min_seq_len": draw.choice(SIZES),
        "lsh_num_projs": draw.choice([1, 3, 7]),
    },
    "mamba": lambda draw: {"states": draw.choice(SIZES)},
    "mamba2": lambda draw: {"chunk": draw.choice(SIZES)},
}
INDEPENDENT_OF_DATA = ("vanilla", "flash", "vq", "vq_qk", "mamba", "mamba2")


def drawn(name: str, seed: int) -> tuple[Attention, Tensor, Tensor]:
    """An attention of random settings and shape, with queries and keys that spread, agree, or are one for a while."""
    draw = random.Random(f"{name} {seed}")
    settings = SETTINGS.get(name, lambda _: {})(draw)
    kv_heads, keys = draw.choice([1, 2, 3]), draw.choice([1, 2, 5, 16, 31, 63, 90])
    sizes = {"heads": kv_heads * draw.choice([1, 2]), "kv_heads": kv_heads, "head_dim": 8, "max_len": 128}
    a = build(name, **sizes, causal=draw.random() < 0.6, seed=seed, **settings).eval()
    queries = keys if name == "reformer" else draw.randint(1, keys)
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, heads, n, 8, generator=generator) for heads, n in ((a.heads, queries), (a.kv_heads, keys)))
    shape = draw.choice(["spread", "spread", "equal", "half equal"])
    if shape == "equal":
        q, k = torch.ones_like(q), torch.ones_like(k)
    elif shape == "half equal":
        k[:, :, : keys // 2] = k[:, :, :1]
    return a, q, k


@pytest.mark.parametrize("name", [*BACKENDS, "attentions.controls:RandomSupport"])
def test_comparisons_stay_within_the_bound_for_any_settings(name: str) -> None:
    met = 0
    for seed in range(60):
        a, q, k = drawn(name, seed)
        counted, bound = a.comparisons(q, k), a.cost(problem_of(a, q, k)).comparisons
        what = f"seed {seed}: {dict(vars(a))}, {q.shape[2]} queries of {k.shape[2]} keys"
        assert counted.sum() <= bound, what
        met += int(counted.sum() == bound)
        one_code = getattr(a, "codes_count", None) == 1
        whole_chunks = isinstance(a, Reformer) and (a.chunk >= q.shape[2] or (not a.causal and a.chunk > 1))
        if name in INDEPENDENT_OF_DATA or one_code or whole_chunks:
            assert counted.sum() == bound, what
        if isinstance(a, SupportAttention):
            assert torch.equal(counted, a.multiplicity(q, k).sum((2, 3))), what
    assert met > 0, "a bound that is never met says little"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (5, 9), (9, 9)])
@pytest.mark.parametrize("window", [1, 3, 4, 8, 9, 10])
def test_window_total_is_the_number_of_pairs(queries: int, keys: int, window: int, causal: bool) -> None:
    pairs = 0
    for at in range(keys - queries, keys):
        pairs += min(at + 1, window) + (0 if causal else min(keys - 1 - at, window))
    assert window_total(queries, keys, window, causal=causal) == pairs


def clustered(n: int, dim: int, *, heads: int = 1) -> Tensor:
    """Keys of which every other one lies in one narrow cluster and the rest is spread."""
    generator = torch.Generator().manual_seed(0)
    spread, centre, noise = (torch.randn(1, heads, m, dim, generator=generator) for m in (n, 1, n // 2))
    spread[:, :, ::2] = 3 * centre + 0.3 * noise
    return spread


@pytest.mark.parametrize(
    "settings",
    [{}, {"trees": 8, "max_candidates": 320}, {"max_candidates": 128}, {"trees": 2, "min_candidates": 20}],
    ids=str,
)
def test_forest_s_candidates_follow_the_query(settings: dict[str, Any]) -> None:
    n, k = 2000, clustered(2000, 32)
    forest = build("lsh_forest", heads=1, head_dim=32, **settings)
    assert isinstance(forest, LSHForest)
    sizes = torch.stack([(x.end - x.start)[0] for x in forest.windows(k, k)[1:]]).float()[:, n // 2 :]
    assert (sizes >= forest.min_candidates).all()
    assert (sizes <= forest.window).all()
    crowded, alone = sizes[:, ::2], sizes[:, 1::2]
    assert (sizes == forest.window).float().mean() < 0.75
    assert (crowded == forest.window).float().mean() > (alone == forest.window).float().mean() + 0.2
    assert crowded.mean() > alone.mean()
    assert forest.comparisons(k, k).sum() <= n * forest.max_candidates


@pytest.mark.parametrize(
    ("settings", "window", "fewest"),
    [({}, 56, 28), ({"trees": 16}, 14, 7), ({"trees": 1, "local": 1, "max_candidates": 2}, 1, 1)],
)
def test_forest_s_threshold_is_half_a_window_unless_given(settings: dict[str, Any], window: int, fewest: int) -> None:
    forest = build("lsh_forest", heads=1, head_dim=8, **settings)
    assert isinstance(forest, LSHForest)
    assert (forest.window, forest.min_candidates) == (window, fewest)
    assert build("lsh_forest", heads=1, head_dim=8, **settings, min_candidates=window)


@pytest.mark.parametrize("fewest", [0, -3, 57, 64])
def test_forest_s_threshold_above_what_a_window_holds_is_refused(fewest: int) -> None:
    with pytest.raises(ValueError, match=rf"min_candidates={fewest} is not allowed: it must be from 1 to 56, a tree's"):
        build("lsh_forest", heads=1, head_dim=8, min_candidates=fewest)
