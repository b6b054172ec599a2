"""The bucket-window kernels against a masked softmax on the explicit support, and against each other."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from attentions import build
from attentions.buckets import window_tiles
from attentions.buckets.attention import BucketAttention
from attentions.buckets.window_attention import sorted_windows
from attentions.common.windows import Windows, bucket_windows, count_pairs
from attentions.native import bucket_window

X, HEADS, DIM, VALUE_DIM = 3, 2, 11, 7


Problem = tuple[Tensor, Tensor, Tensor, list[Windows]]


def problem(each: int, keys: int, *, codes: int = 5, real: Tensor | None = None, causal: bool = True) -> Problem:
    """q, k, v and the windows of three tables, from random codes."""
    torch.manual_seed(each + keys)
    q, k, v = (
        torch.randn(X, n, d, dtype=torch.float64) for n, d in ((HEADS * each, DIM), (keys, DIM), (keys, VALUE_DIM))
    )
    tables = []
    for window, n in ((3, 1), (9, codes), (5, codes)):
        of_q, of_k = (torch.randint(n, (X, length)) for length in (HEADS * each, keys))
        at = torch.arange(keys - each, keys).repeat(HEADS).expand(X, -1)
        tables.append(bucket_windows(of_q, of_k, at, window, causal=causal, real=real))
    return q, k, v, tables


def explicit(q: Tensor, k: Tensor, v: Tensor, tables: list[Windows], *, once: bool) -> tuple[Tensor, Tensor]:
    """Softmax over the pairs that the windows name, each as often as it is found, or once."""
    count = torch.zeros(X, q.shape[1], k.shape[1], dtype=torch.float64)
    for table in tables:
        rank = torch.argsort(table.key_order, dim=1)[:, None]
        count += (table.start[..., None] <= rank) & (rank < table.end[..., None])
    count = count.clamp(max=1) if once else count
    scores = q @ k.mT * 0.3 + count.clamp(min=0.5).log()
    empty = (count == 0).all(-1)
    scores = scores.masked_fill((count == 0) & ~empty[..., None], -torch.inf)
    weights = scores.softmax(-1).masked_fill(empty[..., None], 0.0)
    return weights @ v, scores.logsumexp(-1).masked_fill(empty, -torch.inf)


@pytest.fixture(params=["tiles", "native"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "native" and not bucket_window.available(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    return window_tiles if request.param == "tiles" else bucket_window


@pytest.mark.parametrize("once", [True, False], ids=["once", "allow"])
@pytest.mark.parametrize(("each", "keys"), [(1, 1), (31, 31), (67, 67), (5, 400), (300, 300), (33, 97)])
def test_kernel_equals_masked_softmax(kernel: ModuleType, each: int, keys: int, once: bool) -> None:
    q, k, v, tables = problem(each, keys, real=torch.tensor([0, keys // 3, keys - 1]))
    out, lse = kernel.forward(q, k, v, tables, 0.3, once=once)
    want, want_lse = explicit(q, k, v, tables, once=once)
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("once", [True, False], ids=["once", "allow"])
@pytest.mark.parametrize(("each", "keys"), [(1, 1), (67, 67), (5, 400), (300, 300)])
def test_gradients_equal_those_of_masked_softmax(kernel: ModuleType, each: int, keys: int, once: bool) -> None:
    q, k, v, tables = problem(each, keys, real=torch.tensor([0, keys // 3, keys - 1]))
    leaves = q.clone().requires_grad_(), k.clone().requires_grad_(), v.clone().requires_grad_()
    want, _ = explicit(*leaves, tables, once=once)
    upstream = torch.randn_like(want)
    want_grads = torch.autograd.grad(want, leaves, upstream)
    out, lse = kernel.forward(q, k, v, tables, 0.3, once=once)
    grads = kernel.backward(upstream, q, k, v, out, lse, tables, 0.3, once=once)
    for got, expected in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("block", [1, 16, 100])
def test_block_size_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, tables = problem(150, 150)
    want = window_tiles.forward(q, k, v, tables, 0.3, once=True)[0]
    monkeypatch.setattr(window_tiles, "BLOCK", block)
    monkeypatch.setattr(window_tiles, "SLAB_BYTES", 1 << 12)
    got = window_tiles.forward(q, k, v, tables, 0.3, once=True)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_threads_change_nothing() -> None:
    if not bucket_window.available(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    q, k, v, tables = problem(3000, 3000)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out, lse = bucket_window.forward(q, k, v, tables, 0.3, once=True)
            results.append((out, *bucket_window.backward(out, q, k, v, out, lse, tables, 0.3, once=True)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, many) for one, many in zip(*results, strict=True))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize(("each", "keys"), [(1, 1), (67, 67), (13, 201)])
def test_counting_sort_gives_the_defined_windows(each: int, keys: int, causal: bool) -> None:
    if not bucket_window.available(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    of_q, of_k = torch.randint(6, (X, HEADS * each)), torch.randint(6, (X, keys))
    at = torch.arange(keys - each, keys).repeat(HEADS).expand(X, -1)
    for real in (None, torch.tensor([0, keys // 2, keys - 1])):
        got = sorted_windows(of_q, of_k, HEADS, 6, 4, causal=causal, real=real)
        want = bucket_windows(of_q, of_k, at, 4, causal=causal, real=real)
        assert torch.equal(got.key_order, want.key_order)
        assert torch.equal(got.end - got.start, want.end - want.start)
        assert torch.equal(got.start[got.end > got.start], want.start[got.end > got.start])
        assert torch.equal(got.query_order.sort(dim=1).values, want.query_order.sort(dim=1).values)


@pytest.mark.parametrize("once", [True, False], ids=["once", "allow"])
def test_pairs_are_counted_alike(once: bool) -> None:
    if not bucket_window.available(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    *_, tables = problem(300, 300)
    assert torch.equal(bucket_window.count(tables, once=once), count_pairs(tables, once=once, chunk=1000))


def test_window_as_long_as_the_sequence_without_bits_is_exact_attention() -> None:
    inputs = [torch.randn(2, 4, 300, 16, dtype=torch.float64) for _ in range(3)]
    sliding = build("bit_sampling", heads=4, head_dim=16, bits=0, window=300)
    vanilla = build("vanilla", heads=4, head_dim=16)
    torch.testing.assert_close(sliding(*inputs), vanilla(*inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["identical", "two buckets"])
def test_uneven_buckets_cost_no_more_than_their_windows(kind: str) -> None:
    n = 4096
    attention = build("bit_sampling", heads=2, head_dim=16, tables=2, window=32, local=8)
    assert isinstance(attention, BucketAttention)
    k = torch.ones(1, 2, n, 16)
    q = k.clone() if kind == "identical" else k * torch.where(torch.arange(n) % 100 == 0, 1.0, -1.0)[:, None]
    out = attention(q, k, torch.randn(1, 2, n, 16))
    assert torch.isfinite(out).all()
    assert (attention.comparisons(q, k) <= n * (2 * 32 + 8)).all()
