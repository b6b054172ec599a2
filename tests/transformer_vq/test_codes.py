"""Attention over codes equals dense softmax with keys replaced by their codewords, whatever the blocks and splits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transformer_vq import codes as module
from transformer_vq.codes import State, attend_all, attend_past, codewords, straight_through
from transformer_vq.kmeans import nearest

B, H, G, N, D, E, S = 2, 6, 3, 101, 5, 7, 9
SCALE = 0.7


def sample(dtype: torch.dtype = torch.float64, grad: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = (B, H, N, D), (B, G, N, D), (B, G, N, E), (G, S, D)
    q, k, v, book = (torch.randn(s, generator=draw, dtype=torch.float64).to(dtype) for s in shapes)
    return q.requires_grad_(grad), k.requires_grad_(grad), v.requires_grad_(grad), book


def dense(q: Tensor, keys: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Softmax attention, by its definition."""
    keys, v = (x.repeat_interleave(H // G, dim=1) for x in (keys, v))
    scores = q @ keys.mT * SCALE
    if causal:
        scores = scores.masked_fill(torch.ones(q.shape[2], keys.shape[2]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ v


def past(q: Tensor, k: Tensor, codes: Tensor, v: Tensor, book: Tensor, block: int) -> Tensor:
    state = State.empty(B, G, S, E, v.device)
    return attend_past(q, k, codes, v, book, state, scale=SCALE, block=block)[0]


@pytest.mark.parametrize("at_once", [1, 2**22])
@pytest.mark.parametrize("block", [1, 2, 16, 100, 101, 1000])
def test_causal_attention_is_dense_softmax_of_codewords(
    block: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEANS_AT_ONCE", at_once)
    q, k, v, book = sample()
    codes = nearest(k, book)
    want = dense(q, codewords(book, codes), v, causal=True)
    torch.testing.assert_close(past(q, k, codes, v, book, block), want, rtol=1e-9, atol=1e-11)


def test_full_attention_is_dense_softmax_of_codewords() -> None:
    q, k, v, book = sample()
    codes = nearest(k, book)
    state = State.empty(B, G, S, E, v.device).extended(codes, v, k)
    want = dense(q, codewords(book, codes), v, causal=False)
    torch.testing.assert_close(attend_all(q, book, state, scale=SCALE), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pieces", [[101], [1, 100], [40, 1, 1, 59], [1] * 101])
@pytest.mark.parametrize("block", [1, 16, 64])
def test_any_split_through_the_state_is_the_whole(pieces: list[int], block: int) -> None:
    q, k, v, book = sample()
    codes = nearest(k, book)
    want = dense(q, codewords(book, codes), v, causal=True)
    state, found = State.empty(B, G, S, E, v.device), []
    for q1, k1, c1, v1 in zip(*(x.split(pieces, dim=2) for x in (q, k, codes, v)), strict=True):
        out, state = attend_past(q1, k1, c1, v1, book, state, scale=SCALE, block=block)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, dim=2), want, rtol=1e-9, atol=1e-11)
    assert state.counts.sum() == B * G * N
    torch.testing.assert_close(state.sums.sum(2), v.sum(2))


@pytest.mark.parametrize("block", [7, 32])
def test_gradients_of_queries_and_values_are_dense_softmax_s(block: int) -> None:
    q, k, v, book = sample(grad=True)
    codes = nearest(k, book)
    want = torch.autograd.grad(dense(q, codewords(book, codes), v, causal=True).square().sum(), (q, v))
    got = torch.autograd.grad(past(q, k, codes, v, book, block).square().sum(), (q, v))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_one_block_s_gradient_of_keys_is_straight_through() -> None:
    q, k, v, book = sample(grad=True)
    codes = nearest(k, book)
    hat = straight_through(k, codewords(book, codes))
    (want,) = torch.autograd.grad(dense(q, hat, v, causal=True).square().sum(), k)
    (got,) = torch.autograd.grad(past(q, k, codes, v, book, N).square().sum(), k)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("block", [1, 16, None])
def test_a_code_s_keys_together_get_the_straight_through_gradient(block: int | None) -> None:
    """Past the own block the keys of a code share equally what each would get."""
    q, k, v, book = sample(grad=True)
    codes = nearest(k, book)
    hat = straight_through(k, codewords(book, codes))
    (want,) = torch.autograd.grad(dense(q, hat, v, causal=block is not None).square().sum(), k)
    if block is None:
        state = State.empty(B, G, S, E, v.device).extended(codes, v, k)
        out = attend_all(q, book, state, scale=SCALE)
    else:
        out = past(q, k, codes, v, book, block)
    (got,) = torch.autograd.grad(out.square().sum(), k)
    one_hot = torch.nn.functional.one_hot(codes, S).double()
    torch.testing.assert_close(one_hot.mT @ got, one_hot.mT @ want, rtol=1e-9, atol=1e-11)


def test_straight_through_has_the_codeword_s_value_and_the_vector_s_gradient() -> None:
    x, words = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    out = straight_through(x, words)
    torch.testing.assert_close(out, words)
    (grad,) = torch.autograd.grad((out * words).sum(), x)
    torch.testing.assert_close(grad, words)


def test_single_precision_stays_near_double() -> None:
    q, k, v, book = sample()
    codes = nearest(k, book)
    want = past(q, k, codes, v, book, 16)
    got = past(q.float(), k.float(), codes, v.float(), book.float(), 16)
    assert ((got - want).norm() / want.norm()).item() < 1e-6


def test_selected_sequences_go_on_from_their_own_state() -> None:
    q, k, v, book = sample()
    codes = nearest(k, book)
    state = State.empty(B, G, S, E, v.device).extended(codes[:, :, :50], v[:, :, :50])
    index = torch.tensor([1, 1])
    q1, k1, c1, v1 = (x[index, :, 50:] for x in (q, k, codes, v))
    got, _ = attend_past(q1, k1, c1, v1, book, state.select(index), scale=SCALE, block=16)
    torch.testing.assert_close(got, past(q, k, codes, v, book, 16)[index, :, 50:], rtol=1e-9, atol=1e-11)
