"""Half precision, autocast, inference mode, and models that change their type: the same choices, and no crash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from bmrt import STRATEGIES, BoundedCache, Budget, Hybrid, build_strategy
from bmrt.cache.layer import BoundedLayer
from bmrt.cache.plan import CompressionPlan
from tests.bmrt.models import always_there, fed, tiny, tokens

if TYPE_CHECKING:
    from bmrt.strategies import Strategy

HALVES = (torch.bfloat16, torch.float16)
NAMES = (*STRATEGIES, "hybrid", "exact flash")


def strategy(name: str) -> Strategy:
    if name == "hybrid":
        return Hybrid(build_strategy("exact"), build_strategy("magicpig_baseline"))
    return build_strategy("exact", backend="flash") if name == "exact flash" else build_strategy(name)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_chosen_does_not_depend_on_autocast(name: str, dtype: torch.dtype) -> None:
    """Of the same keys and queries in float32: a score must not be rounded to half precision on its way."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.randn(2, heads, 120, 16, generator=draw) for heads in (4, 2, 2))
    kept = []
    for enabled in (False, True):
        layer = BoundedLayer(0, CompressionPlan(Budget(40)), strategy(name))
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            for part in zip(*(x.split(30, 2) for x in (q, k, v)), strict=True):
                layer.update(*part[1:])
                layer.settle(part[0], 0.25)
        kept.append(layer.positions)
    assert torch.equal(*kept)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_under_autocast_keeps_its_budget(name: str, dtype: torch.dtype) -> None:
    model = tiny(dtype=torch.float32, initializer_range=0.2)
    mask = torch.ones(2, 60, dtype=torch.int64)
    mask[1, :25] = 0
    for padding in (None, mask):
        cache = BoundedCache(model, 24, strategy=strategy(name))
        with torch.autocast("cpu", dtype=dtype):
            for stop in (20, 40, *range(41, 61)):
                start = cache.get_seq_length()
                seen = None if padding is None else padding[:, :stop]
                ids = tokens(60, batch=2)[:, start:stop]
                found = model(ids, attention_mask=seen, past_key_values=cache).logits
                assert found.isfinite().all()
        assert all(layer.held <= 24 for layer in cache.bounded)
        model(
            tokens(3, batch=2),
            attention_mask=None if padding is None else torch.cat((mask, mask[:, -3:]), 1),
            past_key_values=cache,
        )  # and goes on without


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("positions", ["absolute", "compact"])
@pytest.mark.parametrize("name", NAMES)
def test_half_models_keep_their_budget(name: str, positions: Any, dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype, initializer_range=0.2)
    cache = BoundedCache(model, 24, strategy=strategy(name), positions=positions)
    with torch.inference_mode():
        found = fed(model, cache, tokens(60, batch=2), 16)
    assert found.isfinite().all()
    assert found.dtype == dtype
    assert all(layer.held <= 24 and always_there(layer) and layer.keys.dtype == dtype for layer in cache.bounded)


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_filled_in_inference_mode_goes_on_outside_of_it(name: str) -> None:
    model = tiny().requires_grad_(True)
    ids, built = tokens(60), strategy(name)
    cache, other = BoundedCache(model, 24, strategy=built), BoundedCache(model, 24, strategy=strategy(name))
    with torch.inference_mode():
        fed(model, cache, ids[:, :40], 20)
    with torch.no_grad():
        fed(model, other, ids[:, :40], 20)
        found = model(ids[:, 40:50], past_key_values=cache).logits
        assert torch.equal(found, model(ids[:, 40:50], past_key_values=other).logits)
    model(ids[:, 50:], past_key_values=cache).logits.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())


@pytest.mark.parametrize("positions", ["absolute", "compact"])
def test_a_cache_follows_its_model_to_another_type(positions: Any) -> None:
    model = tiny(dtype=torch.float32, initializer_range=0.2)
    cache = BoundedCache(model, 24, strategy="h2o", positions=positions)
    fed(model, cache, tokens(40), 20)
    for dtype in (torch.bfloat16, torch.float64, torch.float16):
        model.to(dtype)
        assert fed(model, cache, tokens(10), 5).dtype == dtype
        assert cache.bounded[0].keys.dtype == cache.bounded[0].values.dtype == dtype
        assert cache.bounded[0].held <= 24
