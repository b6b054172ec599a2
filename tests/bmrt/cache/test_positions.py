"""Kept tokens where they were, and kept tokens moved together."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from bmrt import BoundedCache
from bmrt.cache.positions import Rotary
from bmrt.strategies import Strategy, View
from tests.bmrt.models import SHAPE, fed, tiny, tokens

NEAR: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 1e4,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}


@pytest.mark.parametrize("rope", [None, YARN, LLAMA3, {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}])
def test_a_key_rotated_to_its_place_is_the_model_s_own(rope: Any) -> None:
    model = tiny(**({} if rope is None else {"rope_parameters": rope}))
    cache = BoundedCache(model, 64)
    model(tokens(50), past_key_values=cache)
    own = cache.layers[0].keys
    rotary, places = Rotary(model.model), torch.arange(50)[None]
    base = rotary.unrotate(own, places)
    torch.testing.assert_close(rotary.rotate(base, places), own, **NEAR)
    first = model.model.layers[0]
    normed = first.input_layernorm(model.model.embed_tokens(tokens(50)))
    plain = first.self_attn.k_proj(normed).unflatten(-1, (2, 8)).transpose(1, 2)
    torch.testing.assert_close(base, plain, **NEAR)


@pytest.mark.parametrize("rope", [YARN, LLAMA3])
def test_compact_positions_of_everything_are_absolute_ones(rope: Any) -> None:
    model, ids = tiny(rope_parameters=rope), tokens(60)
    cache = BoundedCache(model, 60, positions="compact")
    torch.testing.assert_close(fed(model, cache, ids, 7), model(ids).logits, **NEAR)


def test_compact_is_a_prompt_of_the_kept_tokens() -> None:
    """With one layer, keys depend on their own token alone: what is kept is a shorter text."""
    model, ids = tiny(num_hidden_layers=1, num_key_value_heads=1), tokens(60)
    cache = BoundedCache(model, 24, positions="compact", strategy="recent")
    fed(model, cache, ids[:, :40], 20)
    kept = cache.layers[0].positions[0, 0]
    found = model(ids[:, 40:], past_key_values=cache).logits
    shorter = torch.cat((ids[:, kept], ids[:, 40:]), 1)
    torch.testing.assert_close(found, model(shorter).logits[:, len(kept) :], **NEAR)


def test_compact_runs_far_past_the_trained_length_without_leaving_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(max_position_embeddings=48)
    highest: list[int] = []
    forward = model.model.rotary_emb.forward

    def spy(x: Any, position_ids: Any) -> Any:
        if position_ids.numel():
            highest.append(int(position_ids.max()))
        return forward(x, position_ids)

    monkeypatch.setattr(model.model.rotary_emb, "forward", spy)
    cache = BoundedCache(model, 32, positions="compact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.generate(tokens(4 * 48), past_key_values=cache, prefill_chunk_size=16, max_new_tokens=20)
    assert found.shape[1] > 4 * 48
    assert max(highest) < 48
    assert cache.layers[0].held <= 32


def test_absolute_positions_past_the_trained_length_are_warned_of_once() -> None:
    model = tiny(max_position_embeddings=48)
    cache = BoundedCache(model, 32)
    with pytest.warns(UserWarning, match="beyond the 48") as caught:
        fed(model, cache, tokens(100), 16)
    assert len(caught) == 1


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE])
def test_angles_that_change_with_length_are_refused(rope: dict[str, Any]) -> None:
    model = tiny(rope_parameters=rope)
    BoundedCache(model, 32)
    with pytest.raises(ValueError, match=rope["rope_type"]):
        BoundedCache(model, 32, positions="compact")


def test_dimensions_that_are_not_rotated_stay_as_they_are() -> None:
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    model = PhiForCausalLM(PhiConfig(**SHAPE)).double().eval().requires_grad_(False)  # rotates half of each head
    ids = tokens(60)
    cache = BoundedCache(model, 60, positions="compact")
    torch.testing.assert_close(fed(model, cache, ids, 7), model(ids).logits, **NEAR)
    rotary: Any = cache.layers[0].rotary
    assert rotary._angles.inv_freq.numel() == 2  # pairs: of eight dimensions, four turn
    few = BoundedCache(model, 24, positions="compact", strategy="recent")
    fed(model, few, ids, 60)
    kept = few.layers[0].positions
    index = kept.unsqueeze(-1).expand(-1, -1, -1, 8)
    torch.testing.assert_close(few.layers[0].keys, cache.layers[0].keys.gather(2, index), **NEAR)


def test_rotations_of_pairs_of_neighbours_are_refused() -> None:
    from transformers import CohereConfig, CohereForCausalLM

    model = CohereForCausalLM(CohereConfig(**SHAPE))
    BoundedCache(model, 32)
    with pytest.raises(ValueError, match="pairs of halves"):
        BoundedCache(model, 32, positions="compact")


@pytest.mark.parametrize(("positions", "observing"), [("absolute", 4), ("compact", 1)])
def test_queries_do_not_look_from_where_the_keys_no_longer_stand(positions: Any, observing: int) -> None:
    """After compact keys have moved, earlier queries are at the wrong distance from them."""
    seen: list[int] = []

    class Observing(Strategy):
        observes = 4

        def score(self, view: View) -> Tensor:
            seen.append(view.queries.shape[2])
            return view.positions.double()

    model = tiny()
    cache = BoundedCache(model, 24, strategy=Observing(), positions=positions, slack=0)
    fed(model, cache, tokens(24), 8)
    fed(model, cache, tokens(6, seed=1), 1)
    assert seen[-1] == observing


def test_repeated_compression_does_not_drift() -> None:
    """In bfloat16: the anchors' stored keys are the same bits after a hundred compressions."""
    model = tiny(dtype=torch.bfloat16, initializer_range=0.1)
    cache = BoundedCache(model, 24, positions="compact", strategy="recent")
    fed(model, cache, tokens(24), 8)
    before = cache.layers[0].keys[:, :, :6].clone()
    fed(model, cache, tokens(800, seed=2), 8)
    assert torch.equal(cache.layers[0].keys[:, :, :6], before)
