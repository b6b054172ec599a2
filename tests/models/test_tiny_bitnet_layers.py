"""What the tiny BitNet is trained with: linears between float and ternary, and attention for rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.bitnet import AutoBitLinear

from lsh_bitnet.quantised import quantise
from models.tiny_bitnet_layers import CHUNK, WarmingBitLinear, attend_rows, warm


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def pair() -> tuple[nn.Linear, AutoBitLinear]:
    """A linear, and the same with online quantisation."""
    torch.manual_seed(0)
    plain = nn.Linear(24, 16, bias=False)
    wrapped = nn.Sequential(nn.Linear(24, 16, bias=False))
    wrapped[0].load_state_dict(plain.state_dict())
    quantised = quantise(wrapped).get_submodule("0")
    assert isinstance(quantised, AutoBitLinear)
    return plain, quantised


def test_a_share_of_none_is_the_linear_and_of_all_is_transformers_own(pair: tuple[nn.Linear, AutoBitLinear]) -> None:
    plain, quantised = pair
    x = torch.randn(5, 24)
    want = quantised(x)
    holder = nn.Sequential(quantised).train()
    share = warm(holder)
    assert isinstance(holder[0], WarmingBitLinear)
    assert torch.equal(holder(x), want)
    share.fill_(0.0)
    assert torch.equal(holder(x), plain(x))
    assert not torch.allclose(plain(x), want, atol=1e-2)
    assert torch.equal(holder.eval()(x), want)  # what is stored is wholly quantised


def test_halfway_weights_and_activations_are_halfway(pair: tuple[nn.Linear, AutoBitLinear]) -> None:
    plain, quantised = pair
    holder = nn.Sequential(quantised).train()
    warm(holder).fill_(0.5)
    eye = torch.eye(24)  # 8 bits hold it exactly, so only weights are between
    all_quantised = holder.eval()(eye)
    torch.testing.assert_close(holder.train()(eye), (plain(eye) + all_quantised) / 2)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradients_pass_straight_through(pair: tuple[nn.Linear, AutoBitLinear], share: float) -> None:
    _, quantised = pair
    holder = nn.Sequential(quantised).train()
    warm(holder).fill_(share)
    x = torch.randn(5, 24, requires_grad=True)
    holder(x).sum().backward()
    weights = holder(torch.eye(24)).detach().T  # 8 bits hold the unit vectors exactly
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weights.sum(0).expand(5, 24))
    grad = quantised.weight.grad
    assert grad is not None
    torch.testing.assert_close(grad, grad[:1].expand(16, 24))  # the sum over rows of what was multiplied, for each
    assert grad.abs().max() > 0.1


@pytest.mark.parametrize("n", [1, 40, CHUNK, CHUNK + 1, 2 * CHUNK + 44])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rows_are_attended_as_causal_attention_is(n: int, groups: int) -> None:
    torch.manual_seed(n)
    query = torch.randn(2, 4, n, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, groups, n, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    want = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)
    got, _ = attend_rows(nn.Identity(), query, key, value, None)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    inputs = (query, key, value)
    for mine, theirs in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((want * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_under_autocast_rows_are_attended_in_the_values_precision_scores_and_all() -> None:
    query, key = torch.randn(1, 2, 5, 4, requires_grad=True), torch.randn(1, 2, 5, 4, requires_grad=True)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.dtype) or x, lambda x: x)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        got, _ = attend_rows(nn.Identity(), query, key, torch.randn(1, 2, 5, 4).bfloat16(), None)
    assert got.dtype == torch.bfloat16
    assert set(kept) == {torch.bfloat16}
