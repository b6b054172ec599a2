"""What is wrong is said, loudly and by name, and never turned into an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from bmrt import BoundedCache, Budget, Hybrid, build_strategy
from bmrt.strategies import Strategy, View
from tests.bmrt.models import fed, tiny, tokens


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 24, "protection_divisor": 2}, "protection_divisor=2"),
        ({"budget": 3}, "budget=3"),
        ({"budget": 0}, "budget=0"),
        ({"budget": 24, "strategy": "exakt"}, "strategy='exakt'"),
        ({"budget": 24, "mode": "both"}, "compression_mode='both'"),
        ({"budget": 24, "mode": "accumulate"}, "context_tokens=None"),
        ({"budget": 24, "mode": "accumulate", "context_tokens": 9, "strategy": "h2o"}, "H2O"),
        ({"budget": 24, "slack": 12}, "slack=12"),
        ({"budget": 24, "slack": -1}, "slack=-1"),
        ({"budget": 24, "mode": "accumulate", "context_tokens": 0}, "context_tokens=0"),
        ({"budget": 24, "positions": "relative"}, "positions='relative'"),
    ],
)
def test_impossible_settings_are_named(model: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoundedCache(model, **settings)


@pytest.mark.parametrize("ratio", [-0.1, 0.0, 1.5])
def test_a_share_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="compression_ratio"):
        Budget.of_ratio(ratio, 1000)
    exact = build_strategy("exact")
    if ratio:
        with pytest.raises(ValueError, match="hybrid_ratio"):
            Hybrid(exact, exact, ratio=ratio)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("exact", {"backend": "triton"}, "backend='triton'"),
        ("exact", {"observes": 0}, "observes=0"),
        ("frequency_rank", {"tie": "l3"}, "selector_mode='l3'"),
        ("frequency_rank", {"bits": 99}, "bits=99"),
        ("magicpig_baseline", {"tables": 1}, "num_tables=1"),
        ("snapkv", {"kernel": 4}, "kernel=4"),
        ("random", {"observes": 3}, "observes"),
    ],
)
def test_impossible_strategies_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_strategy(name, **settings)


def test_the_budget_is_shared_out() -> None:
    budget = Budget(4099, 4)
    assert (budget.anchors, budget.window, budget.memory) == (1024, 1024, 2051)
    assert Budget(3, 3).memory == 1
    assert Budget.of_ratio(0.25, 8000).total == 2000
    assert Budget.of_ratio(0.25, 1).total == 4


class Failing(Strategy):
    def score(self, view: View) -> Tensor:
        raise ZeroDivisionError("scoring failed")


class NotANumber(Strategy):
    def score(self, view: View) -> Tensor:
        return torch.full(view.positions.shape, torch.nan)


class Short(Strategy):
    def score(self, view: View) -> Tensor:
        return torch.zeros(view.positions.shape)[..., 1:]


@pytest.mark.parametrize(
    ("strategy", "error", "message"),
    [
        (Failing(), ZeroDivisionError, "scoring failed"),
        (NotANumber(), ValueError, "NaN"),
        (Short(), ValueError, "Short"),
    ],
)
def test_a_failure_in_scoring_is_not_a_choice(model: Any, strategy: Strategy, error: Any, message: str) -> None:
    cache = BoundedCache(model, 24, strategy=strategy)
    with pytest.raises(error, match=message):
        fed(model, cache, tokens(50), 16)
    with pytest.raises(RuntimeError, match="was interrupted"):
        model(tokens(3), past_key_values=cache)
    cache.reset()
    assert torch.equal(model(tokens(20), past_key_values=cache).logits, model(tokens(20)).logits)
    assert torch.equal(model(tokens(20)).logits, model(tokens(20), past_key_values=DynamicCache()).logits)


def test_another_model_cannot_use_the_cache(model: Any) -> None:
    cache = BoundedCache(model, 24)
    with pytest.raises(RuntimeError, match="created for"):
        tiny()(tokens(5), past_key_values=cache)
    cache.close()
    with pytest.raises(RuntimeError, match="created for"):
        model(tokens(5), past_key_values=cache)


def test_what_was_dropped_cannot_come_back(model: Any) -> None:
    cache = BoundedCache(model, 24)
    fed(model, cache, tokens(50), 16)
    with pytest.raises(ValueError, match="crop"):
        cache.crop(-1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.tensor([[1, 1, 0]]), "left"), (torch.ones(1, 1, 3, 3), "4 dimensions")],
)
def test_masks_that_cannot_be_honoured_are_refused(model: Any, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(tokens(3), attention_mask=mask, past_key_values=BoundedCache(model, 24))


def test_padding_with_compact_positions_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="padded"):
        model(
            tokens(3),
            attention_mask=torch.tensor([[0, 1, 1]]),
            past_key_values=BoundedCache(model, 24, positions="compact"),
        )


def test_a_question_without_anything_before_it_is_refused(model: Any) -> None:
    cache = BoundedCache(model, 24)
    with pytest.raises(ValueError, match="question of 3 tokens"), cache.probing(3):
        model(tokens(3), past_key_values=cache)
