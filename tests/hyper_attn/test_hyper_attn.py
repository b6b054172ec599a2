"""HyperAttention against exact attention, against its own definition, and through its gradients.

That it equals the definition at all lengths, with padding and grouped heads, is in the contract suite.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor

from attentions import build
from attentions.hyper import Hyper
from hyper_attn.hyper_attn import HyperAttention
from hyper_attn.utils import slots, squares
from tests import preloaded

SMALL: dict[str, Any] = {"lsh_num_projs": 4, "block_size": 16, "sample_size": 8, "min_seq_len": 32}


def sample(
    queries: int, keys: int, *, dim: int = 8, heads: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, heads, queries, dim), (1, heads, keys, dim), (1, heads, keys, dim))
    q, k, v = (torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def exact(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1 + k.shape[2] - q.shape[2]).bool(), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (64, 64), (67, 67), (101, 101), (13, 101), (1, 67)])
@pytest.mark.parametrize("settings", [{"block_size": 128, "min_seq_len": 8}, {"block_size": 4, "min_seq_len": 128}])
def test_blocks_or_leaves_of_the_whole_length_are_exact(
    settings: dict[str, Any], queries: int, keys: int, causal: bool
) -> None:
    q, k, v = sample(queries, keys)
    out, lse = HyperAttention(8, sample_size=4, **settings)(q, k, v, causal=causal, return_lse=True)
    want, want_lse = exact(q, k, v, causal)
    torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(lse, want_lse.unsqueeze(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_estimated_normaliser_is_unbiased_over_2000_draws(causal: bool) -> None:
    """Draws of 100 seeds, each with 20 heads that differ in their draws alone."""
    heads = 20
    q, k, v = (x.expand(-1, heads, -1, -1) for x in sample(30, 30, heads=1))
    attention = HyperAttention(8, lsh_num_projs=3, block_size=4, sample_size=6, min_seq_len=8)
    found = []
    for seed in range(2000 // heads):
        attention.seed = seed
        found.append(attention(q, k, v, causal=causal, return_lse=True)[1][0, ..., 0].exp())
    estimates, want = torch.cat(found), exact(q, k, v, causal)[1][0, 0].exp()
    assert estimates.shape == (2000, 30)
    # 30 rows share their draws; some row would pass three standard errors by chance, their sum should not.
    total = estimates.sum(-1)
    assert total.std() > 0
    assert (total.mean() - want.sum()).abs() <= 3 * total.std() / math.sqrt(2000)
    assert ((estimates.mean(0) - want).abs() <= 5 * estimates.std(0) / math.sqrt(2000) + 1e-9).all()


@pytest.mark.no_type_checks
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(19, 19), (7, 23)])
def test_gradients_with_selection_frozen(queries: int, keys: int, causal: bool) -> None:
    q, k, v = (x.requires_grad_() for x in sample(queries, keys, dim=2, heads=1))
    attention = HyperAttention(2, lsh_num_projs=3, block_size=3, sample_size=4, min_seq_len=6)
    codes = {queries: attention.lsh(q), keys: attention.lsh(k)}
    attention.lsh.forward = lambda x: codes[x.shape[2]]
    assert torch.autograd.gradcheck(lambda *x: attention(*x, causal=causal, return_lse=True), (q, k, v))
    assert torch.autograd.gradcheck(lambda *x: attention(*x, causal=causal), (q, k, v))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(97, 97), (99, 99), (128, 128), (23, 97), (1, 97), (150, 97)])
def test_any_lengths_give_averages_of_values(queries: int, keys: int, causal: bool) -> None:
    if causal and queries > keys:
        pytest.skip("causal queries are the last of the keys")
    q, k, _ = sample(queries, keys)
    out = HyperAttention(8, **SMALL)(q, k, torch.ones(1, 2, keys, 3, dtype=torch.float64), causal=causal)
    torch.testing.assert_close(out, torch.ones(1, 2, queries, 3, dtype=torch.float64))


@pytest.mark.no_type_checks
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [97, 131])
def test_weights_of_all_keys_and_draws_add_up_to_the_length(length: int, causal: bool) -> None:
    """With equal scores the normaliser counts keys: an own key twice, or a padded one, would show."""
    q, k, v = sample(length, length)
    attention = HyperAttention(8, **SMALL)
    estimates = []
    for seed in range(300):
        attention.seed = seed
        estimates.append(attention(q * 0, k, v, causal=causal, return_lse=True)[1][..., 0].exp())
    want = torch.arange(1, length + 1) if causal else torch.full((length,), length)
    found = torch.stack(estimates).mean((0, 1, 2))
    torch.testing.assert_close(found, want.double(), rtol=0.05, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_half_precision_has_the_gradient_of_the_merge_weights(dtype: torch.dtype, causal: bool) -> None:
    half = [x.requires_grad_() for x in sample(131, 131, dtype=dtype)]
    whole = [x.detach().float().requires_grad_() for x in half]
    attention = HyperAttention(8, **SMALL)
    upstream = sample(131, 131, seed=1)[0]
    got, want = (torch.autograd.grad(attention(*x, causal=causal), x, upstream.to(x[0].dtype)) for x in (half, whole))
    for x, y in zip(got, want, strict=True):
        assert ((x.float() - y).norm() / y.norm()).item() < (2e-2 if dtype == torch.bfloat16 else 3e-3)


def test_normaliser_has_a_gradient_in_half_precision() -> None:
    q, k, v = (x.requires_grad_() for x in sample(131, 131, dtype=torch.bfloat16))
    lse = HyperAttention(8, **SMALL)(q, k, v, causal=True, return_lse=True)[1]
    grads = torch.autograd.grad(lse.sum(), (q, k))
    assert lse.dtype == torch.float32
    assert all(x.any() and x.isfinite().all() for x in grads)


def test_draws_are_a_function_of_the_seed_and_shared_by_a_head() -> None:
    one, same, other = (HyperAttention(8, **SMALL, seed=seed) for seed in (1, 1, 2))
    levels, _ = one.divide(131, 131, True)
    before = torch.random.get_rng_state()
    draws = one.draws(levels, 3)
    assert [x.shape for x in draws] == [(3, len(level.squares), 8) for level in levels]
    assert all(torch.equal(x, y) for x, y in zip(draws, same.draws(levels, 3), strict=True))
    assert not torch.equal(draws[-1], other.draws(levels, 3)[-1])
    assert not torch.equal(draws[-1][0], draws[-1][1])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (97, 97), (13, 97), (1, 97)])
def test_leaves_and_squares_cover_every_causal_pair_once(queries: int, keys: int) -> None:
    levels, leaves = squares(queries, keys, block_size=16, min_seq_len=10, causal=True)
    assert leaves is not None
    at, key = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
    same_leaf = (at - leaves.start).div(leaves.size, rounding_mode="floor") == (key - leaves.start).div(
        leaves.size, rounding_mode="floor"
    )
    seen = (same_leaf & (key <= at)).int()
    for level in levels:
        for first, query, count in level.squares:
            seen[query : query + count, first : first + level.keys] += 1
    assert torch.equal(seen, (key <= at).int())


@pytest.mark.parametrize(("count", "blocks"), [(1, 1), (7, 3), (12, 4), (2, 5)])
def test_slots_hold_every_rank_once_in_equal_parts(count: int, blocks: int) -> None:
    rank, real = slots(torch.tensor([count]), blocks)
    assert rank[real].tolist() == list(range(count))
    assert [(rank[0, b][real[0, b]] * blocks // count == b).all().item() for b in range(blocks)] == [True] * blocks
    assert real.sum(-1).max() - real.sum(-1).min() <= 1


@pytest.mark.parametrize("causal", [True, False])
def test_materialised_scores_give_what_the_flash_kernel_gives(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.requires_grad_() for x in sample(131, 131))
    attention = HyperAttention(8, **SMALL)
    want = attention(q, k, v, causal=causal)
    grads = torch.autograd.grad(want.square().sum(), (q, k, v))
    monkeypatch.setattr("hyper_attn.utils.FLASH_DEVICES", ())
    monkeypatch.setattr("hyper_attn.utils.SCORES_AT_ONCE", 1000)
    out = attention(q, k, v, causal=causal)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), (q, k, v)), grads)


def test_tables_in_small_slabs_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = sample(131, 131)
    attention = HyperAttention(8, **SMALL)
    want = attention(q, k, v, causal=True)
    monkeypatch.setattr("hyper_attn.selection.SLAB", 1)
    torch.testing.assert_close(attention(q, k, v, causal=True), want)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *((name, value, "an integer of at least 1") for name in ("block_size", "min_seq_len") for value in (0, True)),
        ("input_dim", 0, "an integer of at least 1"),
        ("sample_size", -1, "an integer of at least 0"),
    ],
)
def test_impossible_setting_is_refused_by_name(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r} is not allowed: it must be {allowed}"):
        HyperAttention(**{name: value})  # type: ignore[arg-type]


def test_signature_is_the_published_one() -> None:
    """That of insuhan/hyper-attn at 68b91e9; ours has a seed besides."""
    made, called = (inspect.signature(f).parameters.values() for f in (HyperAttention, HyperAttention.forward))
    own = [(one.name, one.default) for one in made if one.kind is not one.KEYWORD_ONLY]
    sizes = [("input_dim", 64), ("lsh_num_projs", 7), ("block_size", 256), ("sample_size", 256), ("min_seq_len", 4096)]
    assert own == [*sizes, ("cuda", False)]
    names = ["self", "query", "key", "value", "scale", "causal", "return_lse"]
    assert [one.name for one in called] == names


@pytest.mark.parametrize("cuda", [False, True])
def test_published_call_works(cuda: bool) -> None:
    """Keyword by keyword; `cuda` names no device and hides no method of the module."""
    query, key, value = (torch.randn(2, 3, 300, 64) for _ in range(3))
    attention = HyperAttention(input_dim=64, lsh_num_projs=7, block_size=32, sample_size=16, min_seq_len=64, cuda=cuda)
    out, lse = attention(query=query, key=key, value=value, scale=None, causal=True, return_lse=True)
    assert (out.shape, lse.shape) == ((2, 3, 300, 64), (2, 3, 300, 1))
    torch.testing.assert_close(attention(query, key, value, causal=True), out)
    assert callable(attention.cuda)


@pytest.mark.parametrize("causal", [True, False])
def test_without_samples_the_own_block_is_all(causal: bool) -> None:
    q, k, v = sample(131, 131)
    backend = build(
        "hyper", heads=2, head_dim=8, causal=causal, block_size=16, sample_size=0, min_seq_len=20, lsh_num_projs=5
    )
    torch.testing.assert_close(backend(q, k, v), backend.naive(q, k, v), rtol=1e-10, atol=1e-12)
    assert isinstance(backend, Hyper)
    weights = backend.weights(q, k)
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    assert backend.comparisons(q, k).tolist() == weights.sum((2, 3)).tolist()


def test_impossible_shapes_are_refused() -> None:
    q, k, v = sample(9, 7, heads=3)
    with pytest.raises(ValueError, match="queries=9 is not allowed: causal attention allows at most 7"):
        HyperAttention(8)(q, k, v, causal=True)
    with pytest.raises(ValueError, match="heads=3 is not allowed: it must be a multiple of 2 key heads"):
        HyperAttention(8)(q, k[:, :2], v[:, :2])


def test_what_does_not_fit_is_refused() -> None:
    """In a process of its own: annotations that are checked, as in these tests, would refuse much of it before."""
    script = textwrap.dedent("""
        import torch
        from hyper_attn.hyper_attn import HyperAttention

        attention = HyperAttention(8, block_size=8, sample_size=8, min_seq_len=16)
        q, k, v = torch.randn(2, 4, 60, 8), torch.randn(2, 2, 60, 8), torch.randn(2, 2, 60, 5)
        wrong = {
            "value of shape (2, 2, 40, 5)": (q, k, v[:, :, :40]),
            "key of shape (1, 2, 60, 8)": (q, k[:1], v[:1]),
            "value of shape (1, 2, 60, 5)": (q, k, v[:1]),
            "value of shape (2, 1, 60, 5)": (q, k, v[:, :1]),
            "key of shape (2, 2, 60, 4)": (q, k[..., :4], v),
            "query of shape (2, 4, 60, 4)": (q[..., :4], k[..., :4], v),
            "query of shape (4, 60, 8)": (q[0], k[0], v[0]),
            "torch.float64 on cpu": (q, k.double(), v),
            "torch.int64 on cpu": (q.long(), k.long(), v.long()),
            "torch.float32 on meta": (q, k.to("meta"), v),
            "multiple of 0 key heads": (q, k[:, :0], v[:, :0]),
            "multiple of 3 key heads": (q, k[:, :1].repeat(1, 3, 1, 1), v[:, :1].repeat(1, 3, 1, 1)),
        }
        for says, given in wrong.items():
            for causal in (True, False):
                try:
                    attention(*given, causal=causal)
                except ValueError as error:
                    assert says in str(error), f"{error}, not {says}"
                else:
                    raise AssertionError(f"taken, though it should be refused: {says}")
        try:
            attention(q, k[:, :, :0], v[:, :, :0])
        except ValueError as error:
            assert "keys=0" in str(error)
        else:
            raise AssertionError("queries without a key are taken")
        for given in ((q[:0], k[:0], v[:0]), (q[:, :, :0], k, v), (q[:, :, :0], k[:, :, :0], v[:, :, :0])):
            for causal in (True, False):
                q0 = given[0].clone().requires_grad_()
                out, lse = attention(q0, *given[1:], causal=causal, return_lse=True)
                assert out.shape == (*q0.shape[:3], 5) and lse.shape == (*q0.shape[:3], 1), (out.shape, lse.shape)
                out.sum().backward()
    """)
    done = preloaded.run("-W", "ignore", "-c", script)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_a_call_cannot_take_is_refused_by_name() -> None:
    """In a process of its own, since types are checked before the code under pytest."""
    program = """
        import numpy as np
        import torch
        from hyper_attn.hyper_attn import HyperAttention

        q = torch.randn(1, 2, 9, 64)
        attention = HyperAttention()
        learnt = torch.tensor(0.1, requires_grad=True)
        wrong = [("scale", "x"), ("scale", float("nan")), ("scale", True), ("scale", learnt), ("causal", "no"),
                 ("return_lse", 1)]
        for name, value in wrong:
            try:
                attention(q, q, q, **{name: value})
            except ValueError as error:
                assert str(error).startswith(f"{name}={value!r} is not allowed"), error
            else:
                raise AssertionError(f"{name}={value!r} is taken")
        for given in (q.to_sparse(), None, [1]):
            try:
                attention(q, given, q)
            except ValueError as error:
                assert str(error).startswith("key of kind"), error
        for scale in (np.float64(0.1), torch.tensor(0.1, dtype=torch.float64)):
            assert torch.equal(attention(q, q, q, scale=scale), attention(q, q, q, scale=0.1))
        try:
            HyperAttention(seed=1.5)
        except ValueError as error:
            print(error)
    """
    done = preloaded.run("-c", textwrap.dedent(program))
    assert (done.stdout, done.stderr) == ("seed=1.5 is not allowed: it must be an integer\n", "")
