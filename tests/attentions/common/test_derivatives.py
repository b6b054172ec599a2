"""Derivatives beyond a plain backward pass: second ones, checkpointed ones, torch.func; each right or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap
from torch.utils.checkpoint import checkpoint

from attentions import BACKENDS, build

if TYPE_CHECKING:
    from attentions.base import Attention

SETTINGS: dict[str, dict[str, Any]] = {"hyper": {"min_seq_len": 16, "block_size": 8, "sample_size": 4}}
CASES = [
    pytest.param(name, causal, id=f"{name} {'causal' if causal else 'both ways'}")
    for name in BACKENDS
    for causal in (True, False)
]


def attention(name: str, **shape: Any) -> Attention:
    sizes = {"heads": 2, "head_dim": 8, "max_len": 64} | SETTINGS.get(name, {}) | shape
    return build(name, **sizes).double().eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(queries: int = 40, keys: int = 40) -> tuple[Tensor, ...]:
    return drawn(1, 2, queries, 8), drawn(1, 2, keys, 8, seed=1), drawn(1, 2, keys, 8, seed=2)


def attempt(call: Callable[[], Tensor]) -> tuple[Tensor | None, str]:
    """What a call gives, or None and the words that it is refused with."""
    try:
        return call(), ""
    except RuntimeError as refused:
        return None, str(refused)


def second_derivative_errors(loss: Callable[..., Tensor], at: list[Tensor]) -> list[float | None]:
    """For each input the relative error of the gradient of <all first gradients, fixed directions>; None if refused.

    The right value is a difference quotient of the first gradients along the directions. Cubes added to the loss give
    every gradient a graph of its own, so that a term that is silently missing shows as a wrong number.
    """
    along = [drawn(*x.shape, seed=10 + i) for i, x in enumerate(at)]

    def slopes(step: float, graph: bool = False) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        here = [(x + step * d).detach().requires_grad_() for x, d in zip(at, along, strict=True)]
        total = loss(*here) + torch.stack([x.pow(3).sum() for x in here]).sum()
        return here, torch.autograd.grad(total, here, create_graph=graph)

    (_, more), (_, less), errors = slopes(1e-5), slopes(-1e-5), []
    for i, (high, low) in enumerate(zip(more, less, strict=True)):
        here, first = slopes(0.0, graph=True)
        want = (high - low) / 2e-5
        weighted = torch.stack([(g * d).sum() for g, d in zip(first, along, strict=True)]).sum()
        found, refusal = attempt(lambda y=weighted, x=here[i]: torch.autograd.grad(y, x)[0])
        if found is None:
            assert any(reason in refusal for reason in ("no second derivative", "is not implemented")), refusal
        errors.append(None if found is None else ((found - want).norm() / want.norm()).item())
    return errors


@pytest.mark.parametrize(("name", "causal"), CASES)
@pytest.mark.parametrize("queries", [40, 13])
def test_second_derivative_is_right_or_refused(name: str, causal: bool, queries: int) -> None:
    if name == "reformer" and queries < 40:
        pytest.skip("it needs as many queries as keys")
    a = attention(name, causal=causal)
    for loss in (lambda *x: a(*x).square().sum(), lambda *x: a(*x).sum()):
        errors = second_derivative_errors(loss, list(inputs(queries)))
        assert all(error is None or error < 1e-6 for error in errors), errors
        if name == "vanilla":
            assert None not in errors


@pytest.mark.parametrize("name", list(BACKENDS))
def test_second_derivative_of_a_layer_is_right_or_refused_for_every_parameter(name: str) -> None:
    layer = attention(name).block(16).double().eval()
    names, values = zip(*((n, p.detach()) for n, p in layer.named_parameters()), strict=True)

    def loss(x: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x,)).square().sum()

    errors = second_derivative_errors(loss, [drawn(1, 40, 16), *values])
    assert all(error is None or error < 1e-6 for error in errors), dict(zip(("x", *names), errors, strict=True))


def test_gradient_with_a_graph_is_that_without() -> None:
    for name in BACKENDS:
        a, here = attention(name), [x.requires_grad_() for x in inputs()]
        found = [
            torch.autograd.grad(a(*here).square().sum(), here, create_graph=graph, materialize_grads=True)
            for graph in (False, True)
        ]
        assert all(torch.equal(one, two) for one, two in zip(*found, strict=True)), name


class Within(nn.Module):
    """A module whose forward pass is run again for its gradient."""

    def __init__(self, module: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.module, self.reentrant = module, reentrant

    def forward(self, *x: Tensor) -> Tensor:
        return checkpoint(self.module, *x, use_reentrant=self.reentrant)  # type: ignore[return-value]


def gradients(module: nn.Module, x: tuple[Tensor, ...]) -> list[Tensor | None]:
    x = tuple(y.detach().requires_grad_() for y in x)
    module.zero_grad()
    module(*x).square().sum().backward()
    return [y.grad for y in (*x, *module.parameters())]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize(("name", "causal"), CASES)
def test_checkpointed_gradients_are_those_without(name: str, causal: bool, reentrant: bool) -> None:
    a = attention(name, causal=causal)
    layer = a.block(16).double()
    for module, x in ((a, inputs()), (layer, (drawn(1, 40, 16),))):
        for got, want in zip(gradients(Within(module, reentrant), x), gradients(module, x), strict=True):
            assert (got is None) == (want is None)
            if got is not None and want is not None:
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list(BACKENDS))
def test_input_that_changes_before_the_backward_pass_is_noticed_or_does_no_harm(name: str) -> None:
    a, (q, k, v) = attention(name), (x.requires_grad_() for x in inputs())
    want = torch.autograd.grad(a(q, k, v).square().sum(), v)[0]
    changed = [x * 1.0 for x in (q, k, v)]
    loss = a(*changed).square().sum()
    with torch.no_grad():
        for x in changed:
            x += 1
    found, refusal = attempt(lambda: torch.autograd.grad(loss, v)[0])
    if found is None:
        assert "modified by an inplace operation" in refusal
    else:  # it works on copies
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("grads", [True, False], ids=["", "no_grad"])
@pytest.mark.parametrize(("name", "causal"), CASES)
def test_forward_mode_is_right_or_refused(name: str, causal: bool, grads: bool) -> None:
    a, at = attention(name, causal=causal), inputs()
    along = [drawn(*x.shape, seed=20 + i) for i, x in enumerate(at)]
    with torch.no_grad():
        more, less = (a(*(x + e * d for x, d in zip(at, along, strict=True))) for e in (1e-6, -1e-6))
    want = (more - less) / 2e-6

    def tangent() -> Tensor:
        with torch.set_grad_enabled(grads), forward_ad.dual_level():
            found = forward_ad.unpack_dual(a(*map(forward_ad.make_dual, at, along))).tangent
        assert found is not None, "the tangent is silently missing"
        return found

    found, refusal = attempt(tangent)
    if found is None:
        assert name != "vanilla", refusal
    else:
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of vmap over its flash kernel
@pytest.mark.parametrize("name", list(BACKENDS))
def test_transforms_of_torch_func_are_right_or_refused(name: str) -> None:
    a, (q, k, v) = attention(name), inputs()
    pairs = [torch.stack((x, 2 * x)) for x in (q, k, v)]
    want = torch.stack([a(*(x[i] for x in pairs)) for i in (0, 1)])
    leaf = q.clone().requires_grad_()
    slope = torch.autograd.grad(a(leaf, k, v).square().sum(), leaf)[0]
    calls: list[tuple[Callable[[], Tensor], Tensor]] = [
        (lambda: vmap(a, randomness="same")(*pairs), want),
        (lambda: torch.func.grad(lambda q: a(q, k, v).square().sum())(q), slope),
    ]
    for call, expected in calls:
        found, refusal = attempt(call)
        if found is None:
            assert name != "vanilla", refusal
            assert any(word in refusal for word in ("torch.func", "functorch", "vmap")), refusal
        else:
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    if name != "vanilla":
        with pytest.raises(RuntimeError):
            jvp(a, (q, k, v), (q, k, v))
