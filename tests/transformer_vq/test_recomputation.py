"""Layers that learn as they run, under gradient checkpointing: the gradients and codebooks of a run without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transformer_vq.nn import recomputation
from transformer_vq.nn.attn_vq import VQAttention, VQAttentionQK
from transformer_vq.nn.config_spec import TransformerConfig

WIDTH = 16
KINDS: list[type[VQAttention] | type[VQAttentionQK]] = [VQAttention, VQAttentionQK]
Call = Callable[[Callable[..., Any], Tensor], Any]
reentrant = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


def layer(kind: type[VQAttention] | type[VQAttentionQK], **settings: Any) -> VQAttention | VQAttentionQK:
    torch.manual_seed(0)
    given = {"n_head": 2, "n_code": 6, "block_len": 8, "p_dropres": 0.2, "p_droplyr": 0.3, "c_dead": 0.5} | settings
    return kind(TransformerConfig(d_model=WIDTH, **given)).double().train()


def drawn(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 21, WIDTH, dtype=torch.float64, generator=generator).requires_grad_()


def plainly(function: Callable[..., Any], x: Tensor) -> Any:
    return function(x)


def again(reentrant: bool) -> Call:
    return lambda function, x: checkpoint(function, x, use_reentrant=reentrant)


def trained(module: nn.Module, call: Call, *, together: int = 1, first_in: bool = True) -> list[Tensor]:
    """Gradients and state of six passes, so many of which wait for their backward passes together."""
    module, found = copy.deepcopy(module), []
    torch.manual_seed(5)
    for step in range(0, 6, together):
        xs = [drawn(step + i) for i in range(together)]
        losses = [call(module, x).square().sum() for x in xs]
        for loss in losses if first_in else reversed(losses):
            loss.backward()
        found += [x.grad for x in xs if x.grad is not None]
    assert len(found) == 6
    state = [x for x in module.state_dict().values() if isinstance(x, Tensor)]
    return [*found, *(p.grad for p in module.parameters() if p.grad is not None), *state]


def check(module: nn.Module, call: Call, **settings: Any) -> None:
    for got, want in zip(trained(module, call, **settings), trained(module, plainly, **settings), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@reentrant
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_training_is_that_without(
    kind: type[VQAttention] | type[VQAttentionQK], causal: bool, reentrant: bool
) -> None:
    check(layer(kind, causal=causal), again(reentrant))


@reentrant
@pytest.mark.parametrize("first_in", [True, False], ids=["first in first out", "last in first out"])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_that_wait_together_see_each_its_own_codebook(
    kind: type[VQAttention] | type[VQAttentionQK], first_in: bool, reentrant: bool
) -> None:
    check(layer(kind), again(reentrant), together=3, first_in=first_in)


@reentrant
def test_layers_in_one_checkpoint_draw_what_they_drew(reentrant: bool) -> None:
    check(nn.Sequential(layer(VQAttention), nn.Dropout(0.3), layer(VQAttentionQK)).double(), again(reentrant))


@reentrant
def test_layer_within_a_checkpoint_within_a_checkpoint(reentrant: bool) -> None:
    inner = layer(VQAttention)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + checkpoint(self.inner, x, use_reentrant=reentrant)  # type: ignore[operator]

    check(Outer(), again(reentrant))


def test_commitment_is_recomputed_with_the_same_codebook() -> None:
    module = layer(VQAttentionQK)
    found = []
    for call in (again(False), plainly):
        one = copy.deepcopy(module)
        torch.manual_seed(5)
        for step in range(3):
            result = call(one.run, drawn(step))
            (result.out.sum() + result.loss).backward()
        found.append([p.grad for p in one.parameters()])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@reentrant
def test_recomputation_that_cannot_be_recognised_is_refused(reentrant: bool) -> None:
    module, x = layer(VQAttention), drawn(0)
    out = checkpoint(module, x, use_reentrant=reentrant, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="must be a recomputation"):
        out.sum().backward()  # type: ignore[union-attr]


def test_more_passes_than_are_remembered_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputation, "REMEMBERED", 2)
    module = layer(VQAttention)
    outs = [checkpoint(module, drawn(i), use_reentrant=False) for i in range(3)]
    for out in outs[1:]:
        out.sum().backward()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="one of the last 2 passes"):
        outs[0].sum().backward()  # type: ignore[union-attr]


def test_what_is_drawn_in_training_follows_the_global_seed_and_takes_one_number_of_it() -> None:
    states, books = [], []
    for seed in (1, 1, 2):
        quantiser = layer(VQAttention).key_quantiser
        torch.manual_seed(seed)
        x = torch.randn(1, 2, 30, WIDTH // 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert quantiser.update(x, quantiser(x).codes).sum() > 0, "no code was seeded anew"
        states.append(torch.get_rng_state())
        books.append(quantiser.codebook.clone())
    assert torch.equal(books[0], books[1])
    assert not torch.equal(books[0], books[2])
    assert torch.equal(states[0], states[1])
    torch.manual_seed(1)
    torch.randint(2**62, ())
    assert torch.equal(torch.get_rng_state(), states[0])
