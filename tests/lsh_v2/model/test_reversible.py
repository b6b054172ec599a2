"""Reversible layers: the gradients of ordinary ones, and memory that does not grow with depth."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from harness.measure.memory import allocator_peak
from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.model.reversible import ordinary
from tests.lsh_v2.small import small_config, small_model, token_ids


def gradients(model: LSHv2Model, length: int = 21) -> dict[str, torch.Tensor]:
    ids = token_ids(length)
    model.train().zero_grad()
    model(ids, ids)["loss"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [{}, {"use_ponder": False, "n_layers": 12}, {"latent": False}])
@pytest.mark.parametrize("name", ["flash", "simhash", "mamba", "lsh_v2"])
def test_gradients_are_those_of_stored_activations(name: str, settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(attention=name, **settings)
    found = gradients(model)
    monkeypatch.setattr("lsh_v2.model.language_model.reversible", ordinary)
    want = gradients(model)
    assert found.keys() == want.keys()
    for key, gradient in want.items():
        torch.testing.assert_close(
            found[key], gradient, rtol=1e-8, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_checkpointed_layers_have_the_same_gradients() -> None:
    found, want = (
        gradients(small_model(gradient_checkpoint=True, reversible=False)),
        gradients(small_model(reversible=False)),
    )
    for key, gradient in want.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-10, atol=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    model = small_model(n_layers=2, weight_tied_layers=1)
    model.train()
    ids, weight = token_ids(6), model.block(0).mixer.output.weight
    loss = model(ids, ids)["loss"]
    (gradient,) = torch.autograd.grad(loss, weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight += sign * 1e-6 * direction
            values.append(float(model(ids, ids)["loss"]))
            weight -= sign * 1e-6 * direction
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_weights_that_are_not_trained_get_no_gradient() -> None:
    model = small_model()
    frozen = model.block(0).feed_forward.down.weight.requires_grad_(False)
    assert "blocks.0.feed_forward.down.weight" not in gradients(model)
    assert frozen.grad is None


def test_backward_runs_in_the_precision_of_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> dict[str, torch.Tensor]:
        model, ids = LSHv2Model(small_config()).train(), token_ids(21)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(ids, ids)["loss"]
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    found = run()
    monkeypatch.setattr("lsh_v2.model.language_model.reversible", ordinary)
    for key, gradient in run().items():
        assert (found[key] - gradient).norm() <= 0.05 * gradient.norm() + 1e-6, key


@pytest.mark.parametrize("settings", [{}, {"use_ponder": False}])
def test_second_derivative_is_refused(settings: dict) -> None:
    model, ids = small_model(**settings).train(), token_ids(7)
    weight = model.block(0).feed_forward.down.weight
    (first,) = torch.autograd.grad(model(ids, ids)["loss"] + weight.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="Reversible has no second derivative"):
        torch.autograd.grad(first.sum(), weight)


def test_weight_that_changes_before_the_backward_pass_is_noticed() -> None:
    model, ids = small_model().train(), token_ids(7)
    loss = model(ids, ids)["loss"]
    with torch.no_grad():
        model.block(0).feed_forward.down.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("name", ["hyper", "lsh_v2"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_whole_model_can_be_checkpointed(name: str, reversible: bool, reentrant: bool) -> None:
    model, ids = small_model(attention=name, reversible=reversible).train(), token_ids(21)
    model.zero_grad()
    start = torch.zeros((), dtype=torch.float64, requires_grad=True)  # reentrant checkpoints need such an input
    loss = checkpoint(lambda zero: model(ids, ids)["loss"] + zero, start, use_reentrant=reentrant)
    loss.backward()  # type: ignore[union-attr]
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    want = gradients(model)
    assert found.keys() == want.keys()
    for key, gradient in want.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-10, atol=1e-12)


def step_bytes(layers: int, **changes: bool) -> int:
    """Peak of a training step beyond the weights: activations, and the gradients that it makes."""
    settings = {"n_layers": layers, "weight_tied_layers": 6, "use_ponder": False} | changes
    model, ids = LSHv2Model(small_config(**settings)).train(), token_ids(256)

    def step() -> None:
        model(ids, ids)["loss"].backward()

    step()
    return allocator_peak(step)[1]


def test_memory_of_a_step_does_not_grow_with_depth() -> None:
    """Halting after each of four passes included. `pytest -s` prints the figures."""
    six = step_bytes(6)
    plain, halting = (step_bytes(24, use_ponder=ponder) / six for ponder in (False, True))
    stored = step_bytes(24, reversible=False) / step_bytes(6, reversible=False)
    print(
        f"\n24 layers over 6, peak of a step: {plain:.2f}, with halting {halting:.2f}; activations stored {stored:.2f}"
    )
    assert plain <= 1.1
    assert halting <= 1.3
    assert stored > 2.5


def test_recomputed_layers_take_less_memory_than_stored_ones() -> None:
    stored, again = (step_bytes(12, reversible=False, gradient_checkpoint=on) for on in (False, True))
    assert again < 0.5 * stored
