"""The attentions by vector quantisation: native kernel, fallback and definition agree; codebooks are learnt.

That both equal softmax of codewords at all lengths, with padding and grouped heads, is in the contract suite.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attentions import build
from attentions.codebooks.quantised import QuantisedAttention
from attentions.common.problem import problem_of
from attentions.native import vq as native
from transformer_vq.codes import codewords
from transformer_vq.kmeans import nearest

NAMES = ("vq", "vq_qk")
needs_kernel = pytest.mark.skipif(not native.available(torch.device("cpu")), reason="no C++ compiler")


def made(name: str, **settings: Any) -> QuantisedAttention:
    attention = build(name, **{"heads": 6, "head_dim": 11, "kv_heads": 3, "value_dim": 7, "codes": 19, **settings})
    assert isinstance(attention, QuantisedAttention)
    return attention.double().eval()


def sample(queries: int, keys: int, *, batch: int = 2, dim: int = 11, value: int = 7, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = (batch, 6, queries, dim), (batch, 3, keys, dim), (batch, 3, keys, value)
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


def clustered(length: int, seed: int = 0, centres: int = 12) -> list[Tensor]:
    """Queries and keys around a few directions of their own, and values."""
    fixed = torch.Generator().manual_seed(7)
    means = 4 * torch.randn(2, 1, 6, centres, 16, generator=fixed, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randint(centres, (2, length), generator=draw)
    noise = 0.05 * torch.randn(2, 1, 6, length, 16, generator=draw, dtype=torch.float64)
    q, k = (means[i][:, :, chosen[i]] + noise[i] for i in range(2))
    return [q, k, torch.randn(1, 6, length, 16, generator=draw, dtype=torch.float64)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("block", [1, 13, 4096])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (23, 24), (97, 97), (31, 150)])
def test_fallback_in_any_blocks_equals_kernel_and_definition(
    name: str, causal: bool, block: int, queries: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = sample(queries, keys)
    attention = made(name, causal=causal, block=block)
    fast = attention(*inputs)
    monkeypatch.setattr(native, "available", lambda device: False)
    slow = attention(*inputs)
    assert attention.kernel == "torch fallback"
    torch.testing.assert_close(slow, fast, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(attention.naive(*inputs), fast, rtol=1e-9, atol=1e-11)


@needs_kernel
@pytest.mark.parametrize("codes", [1, 7, 8, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 16, 37])
def test_kernel_finds_the_nearest_code(codes: int, dtype: torch.dtype, dim: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x, book = torch.randn(2, 3, 301, dim, generator=draw).to(dtype), torch.randn(3, codes, dim, generator=draw)
    distance = (x.double().unsqueeze(3) - book.double()[None, :, None]).square().sum(-1)
    found = distance.gather(3, native.nearest(x, book.to(dtype)).unsqueeze(-1))[..., 0]
    torch.testing.assert_close(found, distance.amin(-1), rtol=1e-5, atol=1e-5)


@needs_kernel
def test_kernel_takes_the_first_of_equal_codewords() -> None:
    book = torch.randn(1, 5, 4).repeat(1, 40, 1)
    x = book[:, :5].unsqueeze(0)
    assert native.nearest(x, book).tolist() == nearest(x, book).tolist() == [[[0, 1, 2, 3, 4]]]


@needs_kernel
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_threads_of_the_kernel_change_nothing(name: str, threads: int) -> None:
    """Longer than two chunks of 4096, so that states are handed on between them."""
    attention = made(name, heads=6, codes=40)
    inputs = sample(9001, 9001, batch=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = attention(*inputs)
    finally:
        torch.set_num_threads(before)
    rows = torch.tensor([0, 23, 24, 4095, 4096, 4097, 8191, 8192, 9000])
    torch.testing.assert_close(out[:, :, rows], attention.naive(*inputs, rows=rows), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_causal_attention_survives_scores_far_apart(name: str) -> None:
    """In float32 a first key whose weight is e^-1000 of a later one's is still all that the first query sees."""
    attention = made(name, heads=1, kv_heads=1, head_dim=1, value_dim=1, codes=2).float()
    book = torch.tensor([[[-50.0], [50.0]]])
    for buffer in attention.buffers():
        buffer.copy_(book)
    q = torch.full((1, 1, 4, 1), 50.0)
    k, v = torch.tensor([-50.0, -50, 50, -50]).view(1, 1, 4, 1), torch.tensor([1.0, 3, 5, 7]).view(1, 1, 4, 1)
    want = torch.tensor([1.0, 2, 5, 5])
    torch.testing.assert_close(attention(q, k, v).flatten(), want)
    torch.testing.assert_close(attention(q.requires_grad_(), k, v).flatten(), want)


def test_nan_in_a_query_shows_in_its_own_row_alone() -> None:
    attention = made("vq")
    q, k, v = sample(50, 50)
    q[:, :, 20, 3] = torch.nan
    bad = attention(q, k, v).isnan().any(-1)
    assert bad[:, :, 20].all()
    assert not bad[:, :, torch.arange(50) != 20].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [True, False])
def test_float16_whose_sums_leave_its_range_is_right(name: str, causal: bool) -> None:
    attention = made(name, causal=causal, codes=3).half()
    q, k, v = (x.half() for x in sample(64, 64))
    v = (v.abs() + 1) * 1e4
    assert v.sum(2).isinf().any()
    out, want = attention(q, k, v), attention.naive(q, k, v)
    assert ((out - want).norm() / want.norm()).item() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_calibration_brings_the_output_near_softmax(name: str) -> None:
    attention = build(name, heads=6, head_dim=16, codes=32).double().eval()
    inputs = clustered(300, seed=1)
    exact = attention.target(*inputs)
    before = ((attention(*inputs) - exact).norm() / exact.norm()).item()
    attention.prepare(*clustered(500, seed=2))
    after = ((attention(*inputs) - exact).norm() / exact.norm()).item()
    assert before > 0.5
    assert after < 0.2


def test_codebook_of_every_key_is_softmax_itself() -> None:
    attention = made("vq_qk", heads=2, kv_heads=2, codes=40)
    inputs = [x[:1, :2] for x in sample(40, 40)]
    for book, x in zip(
        (attention.key_book, *[b for b in attention.buffers() if b is not attention.key_book]),
        (inputs[1], inputs[0]),
        strict=True,
    ):
        book.copy_(x[0])
    torch.testing.assert_close(attention(*inputs), attention.target(*inputs), rtol=1e-9, atol=1e-11)


def test_full_outputs_of_quantised_queries_are_at_most_as_many_as_codes() -> None:
    attention = made("vq_qk", causal=False, codes=5)
    out = attention(*sample(200, 200))
    assert all(len(head.unique(dim=0)) <= 5 for head in out.flatten(0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_decoding_state_does_not_grow_and_ends_with_every_key(name: str) -> None:
    attention = made(name)
    stream = attention.stream(2)
    assert stream is not None
    q, k, v = sample(600, 600)
    sizes = []
    for begin, end in ((0, 500), (500, 501), (501, 600)):
        stream.extend(*(x[:, :, begin:end] for x in (q, k, v)))
        sizes.append(stream.state_bytes)
    assert sizes == [8 * 2 * 3 * 19 * (1 + 7)] * 3
    assert sizes[0] == attention.cost(problem_of(attention, q, k)).state_bytes


def test_gradients_of_quantised_queries_are_straight_through() -> None:
    attention = made("vq_qk", heads=3)
    q, k, v = (x[:, :3] for x in sample(40, 40))
    q.requires_grad_()
    (got,) = torch.autograd.grad(attention(q, k, v).square().sum(), q)
    hat = attention.queries(q, attention.find_codes(q, k)).detach().requires_grad_()
    keys = codewords(attention.key_book, nearest(k, attention.key_book))
    scores = (hat @ keys.mT * attention.scale).masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    (want,) = torch.autograd.grad((scores.softmax(-1) @ v).square().sum(), hat)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_cost_counts_both_products(name: str) -> None:
    """FLOPs grow by the formula's terms when one size doubles; scores between codes do not grow with the length."""
    attention = made(name, heads=1, kv_heads=1, codes=512, head_dim=64, value_dim=64)
    sizes = [problem_of(attention, *(torch.empty(1, 1, n, 64, device="meta") for _ in range(2))) for n in (1000, 2000)]
    small, large = (attention.cost(p) for p in sizes)
    a_token = {"vq": 2 * 512 * 64 * 3, "vq_qk": 2 * 512 * 64 * 3}[name] + 64 + 25 * 64
    assert large.flops - small.flops == 1000 * a_token
    assert large.comparisons == {"vq": 2000 * 512, "vq_qk": 512 * 512}[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", ["codes", "block"])
def test_impossible_setting_is_refused_by_name(name: str, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}=0 is not allowed: it must be an integer of at least 1"):
        build(name, heads=2, head_dim=8, **{setting: 0})


@pytest.mark.parametrize("name", NAMES)
def test_default_codebooks_are_a_function_of_the_seed(name: str) -> None:
    one, same, other = (build(name, heads=2, head_dim=8, seed=seed) for seed in (1, 1, 2))
    for x, y, z in zip(one.buffers(), same.buffers(), other.buffers(), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", [True, False])
def test_components_are_the_search_for_codes_and_the_rest(
    name: str, causal: bool, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr(native, "available", lambda device: False)
    attention, inputs = made(name, causal=causal), sample(31, 50)
    searches: list[Tensor] = []
    search = attention.codes_of
    monkeypatch.setattr(attention, "codes_of", lambda x, book: searches.append(x) or search(x, book))
    stages = attention.components(*inputs)
    assert list(stages) == ["code search", "attention with known codes"]
    searches.clear()
    torch.testing.assert_close(stages["attention with known codes"](), attention(*inputs), rtol=0, atol=0)
    whole = len(searches)
    assert whole == (2 if name == "vq_qk" else 1), "only the whole call searches"
    searches.clear()
    stages["code search"]()
    assert len(searches) == whole
