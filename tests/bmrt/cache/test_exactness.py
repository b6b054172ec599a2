"""The cache against full attention, and against a full forward pass in which what was dropped is masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from bmrt import STRATEGIES, BoundedCache, Hybrid, build_strategy
from tests.bmrt.models import KINDS, Log, always_there, fed, tiny, tokens

if TYPE_CHECKING:
    from bmrt.strategies import Strategy

N = 75
NEAR: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
# Activations rounded to 8 bits turn the last digit of a float64 into a step now and then.
ROUNDED: dict[str, Any] = {"rtol": 0.05, "atol": 0.05}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


def strategies() -> dict[str, Strategy]:
    built = {name: build_strategy(name) for name in STRATEGIES}
    built["exact flash"] = build_strategy("exact", backend="flash")
    return built | {"hybrid": Hybrid(built["exact"], built["frequency_rank"], ratio=0.6)}


@pytest.mark.parametrize("positions", ["absolute", "compact"])
@pytest.mark.parametrize("chunk", [1, 7, 32, N])
def test_a_budget_of_the_whole_length_is_full_attention(model: Any, chunk: int, positions: Any) -> None:
    ids = tokens(N, batch=2)
    near = ROUNDED if "BitLinear" in str(model) else NEAR
    cache = BoundedCache(model, N, positions=positions)
    torch.testing.assert_close(fed(model, cache, ids, chunk), model(ids).logits, **near)


@pytest.mark.parametrize("chunk", [1, 7, 32, None])
def test_greedy_tokens_are_those_of_full_attention(model: Any, chunk: int | None) -> None:
    if "BitLinear" in str(model):
        pytest.skip("8-bit activations may turn an arg max")
    ids = tokens(40, batch=2)
    options: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    cache = BoundedCache(model, 60)
    found = model.generate(ids, past_key_values=cache, prefill_chunk_size=chunk, **options)
    assert found.tolist() == model.generate(ids, **options).tolist()


@pytest.mark.parametrize("positions", ["absolute", "compact"])
@pytest.mark.parametrize("chunk", [1, 16])
def test_every_architecture_keeps_its_budget_and_the_original_rows(model: Any, chunk: int, positions: Any) -> None:
    """Rows of the first layer, whose inputs do not depend on what is dropped."""
    ids = tokens(50, batch=2)
    small, whole = (BoundedCache(model, budget, positions=positions) for budget in (20, 50))
    for part in ids.split(chunk, 1):
        model(part, past_key_values=small)
        assert all(layer.held <= 20 and always_there(layer) for layer in small.bounded)
        assert all(x.shape[2] == layer.held for layer in small.bounded for x in (layer.keys, layer.values))
    fed(model, whole, ids, chunk)
    index = small.layers[0].positions.unsqueeze(-1).expand_as(small.layers[0].keys)
    for name in ("keys", "values"):
        kept, original = (getattr(cache.layers[0], name) for cache in (small, whole))
        torch.testing.assert_close(kept, original.gather(2, index), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunks", [[N], [24, N - 24], [1] * 20 + [N - 20]])
def test_the_first_choice_is_the_best_of_all_there_is(chunks: list[int]) -> None:
    """While nothing has been dropped, however the prompt is cut: the largest weights of the model's own attention."""
    model, ids = tiny(), tokens(N, batch=2)
    model.set_attn_implementation("eager")
    cache = BoundedCache(model, 24, strategy=build_strategy("exact", trail=0))
    for part in ids.split(chunks, 1):
        model(part, past_key_values=cache)
    for layer, weights in zip(cache.layers, model(ids, output_attentions=True).attentions, strict=True):
        mass = weights.unflatten(1, (2, 2))[:, :, :, -6:].sum((2, 3))  # from the local window's six queries
        best = mass[..., 6 : N - 6].topk(12).indices.sort(-1).values + 6
        assert torch.equal(layer.positions[..., 6:-6], best)


@pytest.mark.parametrize("name", [*strategies()])
@pytest.mark.parametrize("chunks", [[16] * 4 + [11], [50, 1, 1, 1, 22], [7] * 10 + [5], [3, 71, 1]])
def test_what_is_dropped_is_as_if_masked(name: str, chunks: list[int]) -> None:
    model, ids = tiny(), tokens(N, batch=2)
    log, cache = Log(model), BoundedCache(model, 24, strategy=strategies()[name])
    found = log.feed(cache, ids, chunks)
    torch.testing.assert_close(found, log.oracle(ids), **NEAR)
    assert (found - model(ids).logits).abs().max() > 0.1  # or nothing was dropped that matters


@pytest.mark.parametrize("mode", ["recursive", "accumulate"])
def test_what_is_dropped_is_as_if_masked_in_every_architecture(model: Any, mode: Any) -> None:
    ids = tokens(N, batch=3)
    log, cache = Log(model), BoundedCache(model, 20, mode=mode, context_tokens=N)
    found = log.feed(cache, ids, [16] * 4 + [10, 1])
    near = ROUNDED if "BitLinear" in str(model) else NEAR
    torch.testing.assert_close(found, log.oracle(ids), **near)


def test_strategies_choose_differently() -> None:
    """Or the tests above would be blind to which of them ran."""
    model, ids = tiny(), tokens(N)
    kept = {}
    for name, strategy in strategies().items():
        cache = BoundedCache(model, 24, strategy=strategy)
        fed(model, cache, ids, 16)
        kept[name] = str([layer.positions.tolist() for layer in cache.layers])
    assert kept.pop("exact flash") == kept["exact"]
    assert len(set(kept.values())) == len(kept)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree(attention: str) -> None:
    model, ids = tiny(dtype=torch.float32), tokens(N)
    model.set_attn_implementation(attention)
    cache = BoundedCache(model, 24, strategy="exact")
    found = fed(model, cache, ids, 16)
    model.set_attn_implementation("sdpa")
    other = BoundedCache(model, 24, strategy="exact")
    torch.testing.assert_close(found, fed(model, other, ids, 16), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rows_of_a_batch_do_not_meet(groups: int) -> None:
    model, ids = tiny(num_key_value_heads=4 // groups), tokens(N, batch=3)
    together, alone = BoundedCache(model, 24), BoundedCache(model, 24)
    found = fed(model, together, ids, 16)[1:2]
    torch.testing.assert_close(found, fed(model, alone, ids[1:2], 16), **NEAR)
    assert torch.equal(together.layers[1].positions[1], alone.layers[1].positions[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*strategies()])
def test_low_precision_stays_finite_and_deterministic(dtype: torch.dtype, name: str) -> None:
    model, ids = tiny(dtype=dtype, initializer_range=0.2), tokens(N)
    one, two = (fed(model, BoundedCache(model, 24, strategy=strategies()[name]), ids, 16) for _ in range(2))
    assert torch.isfinite(one).all()
    assert torch.equal(one, two)
