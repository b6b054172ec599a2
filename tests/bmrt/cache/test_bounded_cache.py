"""What the cache holds, when, and how it gets along with generate."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bmrt import STRATEGIES, BoundedCache, Budget
from bmrt.cache.layer import BoundedLayer
from bmrt.cache.plan import CompressionPlan
from bmrt.strategies import Strategy, View
from tests.bmrt.models import always_there, fed, tiny, tokens

NEAR: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.mark.parametrize("name", [*STRATEGIES])
@pytest.mark.parametrize("budget", [12, 31])
def test_never_more_than_the_budget_at_rest(model: Any, name: str, budget: int) -> None:
    # Token by token every length comes by; larger chunks may end in a short one, or be larger than the budget.
    for length, chunk in [(53, 1), (53, 5), (budget + 1, 5), *((n, 40) for n in (budget - 1, budget, budget + 1, 53))]:
        cache = BoundedCache(model, budget, strategy=name)
        for part in tokens(length).split(chunk, 1):
            model(part, past_key_values=cache)
            assert all(layer.held <= budget and always_there(layer) for layer in cache.bounded)
            assert all(x.shape[2] == layer.held for layer in cache.bounded for x in (layer.keys, layer.values))
        assert cache.get_seq_length() == length
        # What was made room for beyond need is at most the slack.
        assert cache.bounded[0].held >= min(length, budget - cache.plan.room)


@pytest.mark.parametrize("mode", ["recursive", "accumulate"])
def test_the_bound_of_each_mode_holds_after_every_decoding_step(model: Any, mode: Any) -> None:
    cache = BoundedCache(model, 32, mode=mode, context_tokens=96)
    for part in (*tokens(96).split(16, 1), *tokens(70, seed=1).split(1, 1)):
        model(part, past_key_values=cache)
        assert all(layer.held <= cache.plan.bound(layer.seen) for layer in cache.bounded)
        assert all(always_there(layer) for layer in cache.bounded)
    assert cache.plan.bound(96 + 70) == 32


def test_the_bound_of_accumulate_is_its_formula(model: Any) -> None:
    """Eight anchors, a window of eight, sixteen between them over a context of 96; no slack."""
    plan = BoundedCache(model, 32, mode="accumulate", context_tokens=96, slack=0).plan
    earned = {10: 0, 16: 0, 17: 1, 21: 1, 22: 2, 56: 8, 96: 16, 500: 16}
    assert {seen: plan.bound(seen) - min(seen, 16) for seen in earned} == earned
    for chunk in (1, 7, 16):
        cache = BoundedCache(model, 32, mode="accumulate", context_tokens=96, slack=0)
        for part in tokens(120).split(chunk, 1):
            model(part, past_key_values=cache)
            assert {layer.held for layer in cache.bounded} == {plan.bound(cache.get_seq_length())}


def test_every_stretch_of_the_context_has_its_share() -> None:
    """With slack too, and up to the end: the memory must not be full before the context is over."""
    plan = CompressionPlan(Budget(64, 4), "accumulate", 320, 8)
    for start in range(68, 320, 36):
        assert plan.bound(start + 36) - plan.bound(start) == 3  # of 24 in eight stretches
    assert plan.bound(320) == plan.bound(1000) == 64
    assert plan.bound(308) == 63


@pytest.mark.parametrize(("slack", "selections"), [(0, 30), (4, 6)])
def test_slack_makes_room_for_several_decoded_tokens_at_once(model: Any, slack: int, selections: int) -> None:
    times: list[int] = []

    class Counting(Strategy):
        def score(self, view: View) -> Tensor:
            times.append(view.layer)
            return view.positions.double()

    cache = BoundedCache(model, 24, strategy=Counting(), slack=slack)
    fed(model, cache, tokens(24), 24)
    fed(model, cache, tokens(30, seed=1), 1)
    assert times.count(1) == selections


def test_attention_sees_at_most_budget_and_chunk(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    update = BoundedLayer.update

    def spy(self: BoundedLayer, *states: Tensor) -> Any:
        shown = update(self, *states)
        seen.append(shown[0].shape[2])
        return shown

    monkeypatch.setattr(BoundedLayer, "update", spy)
    fed(model, BoundedCache(model, 20), tokens(200), 16)
    assert max(seen) == 20 + 16


def test_kept_keys_and_values_are_the_original_rows(model: Any) -> None:
    """Of a cache that drops nothing, in the first layer, whose inputs do not depend on what is dropped."""
    ids = tokens(70, batch=2)
    small, whole = BoundedCache(model, 24), BoundedCache(model, 70)
    fed(model, small, ids, 16)
    fed(model, whole, ids, 16)
    index = small.layers[0].positions.unsqueeze(-1).expand_as(small.layers[0].keys)
    assert torch.equal(small.layers[0].keys, whole.layers[0].keys.gather(2, index))
    assert torch.equal(small.layers[0].values, whole.layers[0].values.gather(2, index))


@pytest.mark.parametrize("mode", ["recursive", "accumulate"])
@pytest.mark.parametrize("tail", [1, 5, 15])
def test_a_short_last_block_keeps_the_global_memory(model: Any, tail: int, mode: Any) -> None:
    budget = Budget(32, 4)
    cache = BoundedCache(model, budget, mode=mode, context_tokens=96 + tail)
    ids = tokens(96 + tail)
    fed(model, cache, ids[:, :96], 32)
    before = cache.layers[0].positions
    model(ids[:, 96:], past_key_values=cache)
    after = cache.layers[0].positions
    middle = (after >= budget.anchors) & (after < 96 + tail - budget.window)
    assert (middle.sum(-1) >= budget.memory - cache.plan.room - 2).all()
    old = (before[..., None] == after[..., None, :]).any(-1).sum(-1)
    assert (old > budget.anchors).all()


def test_accumulate_never_reconsiders_what_it_chose(model: Any) -> None:
    cache = BoundedCache(model, 40, mode="accumulate", context_tokens=200)
    chosen: set[int] = set()
    for part in tokens(200).split(20, 1):
        model(part, past_key_values=cache)
        layer = cache.layers[1]
        now = {p for p in layer.positions[0, 1].tolist() if 10 <= p < layer.seen - 10}
        assert chosen <= now
        bound = cache.plan.bound(layer.seen)
        assert bound - cache.plan.room <= layer.held <= bound
        chosen = now
    assert len(chosen) >= 20 - cache.plan.room  # the whole global memory, now that the context has ended


def test_generate_goes_on_beyond_the_budget(model: Any) -> None:
    cache = BoundedCache(model, 24)
    found = model.generate(
        tokens(90, batch=2), past_key_values=cache, prefill_chunk_size=16, max_new_tokens=30, eos_token_id=[2, 60]
    )
    assert found.shape[1] > 91
    assert all(layer.held <= 24 and always_there(layer) for layer in cache.bounded)


def test_a_second_turn_continues_the_first(model: Any) -> None:
    ids = tokens(80)
    together, turns = BoundedCache(model, 24), BoundedCache(model, 24)
    options: dict[str, Any] = {"prefill_chunk_size": 16, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    first = model.generate(ids[:, :48], past_key_values=turns, **options)
    prompt = torch.cat((first, ids[:, 48:]), 1)
    second = model.generate(prompt, past_key_values=turns, **options)
    chunks = [*ids[:, :48].split(16, 1), *first[:, 48:-1].split(1, 1), *prompt[:, 55:].split(16, 1)]
    logits = [model(part, past_key_values=together).logits for part in chunks]
    last = logits[-1][0, -1].index_fill(0, torch.tensor(2), -torch.inf)  # generate does not end so early
    assert second[0, prompt.shape[1]] == last.argmax()


def test_beams_carry_their_own_tokens(model: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "num_beams": 3, "do_sample": False, "prefill_chunk_size": 16}
    ids = tokens(40, batch=2)
    found = model.generate(ids, past_key_values=BoundedCache(model, 60), **options)
    assert found.tolist() == model.generate(ids, **(options | {"prefill_chunk_size": None})).tolist()
    small = BoundedCache(model, 24, strategy="h2o")
    model.generate(ids, past_key_values=small, **options)
    assert small.layers[0].keys.shape[0] == small.layers[0].positions.shape[0] == 6


def test_rows_are_reordered_with_all_that_belongs_to_them(model: Any) -> None:
    ids = tokens(60, batch=3)
    cache, other = BoundedCache(model, 24, strategy="h2o"), BoundedCache(model, 24, strategy="h2o")
    order: Any = torch.tensor([2, 0, 0])
    fed(model, cache, ids[:, :50], 16)
    cache.reorder_cache(order)
    fed(model, other, ids[order, :50], 16)
    last = [fed(model, c, ids[order, 50:], 3) for c in (cache, other)]
    torch.testing.assert_close(*last, **NEAR)


def test_reset_forgets_everything(model: Any) -> None:
    cache = BoundedCache(model, 24, strategy="h2o")
    fed(model, cache, tokens(70, seed=1), 16)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.state_bytes == 0
    fresh = BoundedCache(model, 24, strategy="h2o")
    assert torch.equal(*(fed(model, c, tokens(70), 16) for c in (cache, fresh)))


def test_a_copy_goes_its_own_way(model: Any) -> None:
    ids = tokens(80)
    cache = BoundedCache(model, 24)
    fed(model, cache, ids[:, :48], 16)
    other = copy.deepcopy(cache)
    before = cache.layers[0].positions.clone()
    found = fed(model, other, ids[:, 48:], 16)
    assert torch.equal(cache.layers[0].positions, before)
    torch.testing.assert_close(found, fed(model, cache, ids[:, 48:], 16), **NEAR)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_the_left_changes_nothing(attention: str) -> None:
    """One row padded by 30 beside one without; the whole prompt is one chunk, so that both are cut alike."""
    model = tiny(dtype=torch.float32 if attention == "eager" else torch.float64, num_key_value_heads=1)
    model.set_attn_implementation(attention)
    ids, pads = tokens(80, batch=2), 30
    mask = torch.ones_like(ids)
    mask[1, :pads] = 0
    near: dict[str, Any] = NEAR if attention == "sdpa" else {"rtol": 1e-3, "atol": 1e-3}
    options: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "output_logits": True, "do_sample": False}
    options["return_dict_in_generate"] = True
    padded, alone = BoundedCache(model, 32), BoundedCache(model, 32)
    found = model.generate(ids, attention_mask=mask, past_key_values=padded, **options)
    wanted = model.generate(ids[1:, pads:], past_key_values=alone, **options)
    torch.testing.assert_close(torch.stack([x[1:] for x in found.logits]), torch.stack(list(wanted.logits)), **near)
    for layer, other in zip(padded.bounded, alone.bounded, strict=True):
        assert torch.equal(layer.positions[1] - pads, other.positions[0])


def test_padding_is_kept_only_where_there_is_nothing_else(model: Any) -> None:
    ids, mask = tokens(60, batch=2), torch.ones(2, 60, dtype=torch.int64)
    mask[1, :40] = 0
    cache = BoundedCache(model, 24)
    for stop in (20, 40, 60):
        model(ids[:, stop - 20 : stop], attention_mask=mask[:, :stop], past_key_values=cache)
        real = (cache.layers[0].positions[1] >= 40).sum(-1)
        assert (real == min(24, max(0, stop - 40))).all()


def test_sliding_windows_keep_their_own_layers() -> None:
    model = tiny("mistral")
    with pytest.raises(ValueError, match="full attention"):
        BoundedCache(model, 24)


def test_a_question_chooses_and_is_forgotten(model: Any) -> None:
    ids, question = tokens(64), tokens(9, seed=5)
    asked, plain = BoundedCache(model, 24), BoundedCache(model, 24)
    for part in ids.split(16, 1):
        with asked.probing(9):
            logits = model(torch.cat((part, question), 1), past_key_values=asked).logits
        assert logits.shape[1] == 16 + 9
        model(part, past_key_values=plain)
    assert asked.get_seq_length() == 64
    assert all(layer.held == 24 and always_there(layer) for layer in asked.bounded)
    assert not torch.equal(asked.layers[0].positions, plain.layers[0].positions)


def test_a_question_that_was_shown_takes_no_memory_afterwards(model: Any) -> None:
    cache = BoundedCache(model, 64, strategy="recent")
    with cache.probing(9):
        model(tokens(20), past_key_values=cache)
    layer = cache.layers[0]
    assert layer.held == 11
    assert layer.state_bytes == sum(x.numel() * x.itemsize for x in (layer.keys, layer.values, layer.positions))


def test_nothing_stays_behind(model: Any) -> None:
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    cache = BoundedCache(model, 24)
    fed(model, cache, tokens(50), 16)
    assert before == ALL_ATTENTION_FUNCTIONS._local_mapping
    del cache
    gc.collect()
    assert not model.model._forward_hooks
    assert not model.model._forward_pre_hooks
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


def test_a_call_without_the_cache_is_not_watched(model: Any) -> None:
    cache = BoundedCache(model, 24)
    wanted = model(tokens(50)).logits
    fed(model, cache, tokens(50), 16)
    assert torch.equal(model(tokens(50)).logits, wanted)
    assert cache.get_seq_length() == 50
