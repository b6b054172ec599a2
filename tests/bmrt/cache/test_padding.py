"""Rows of a padded batch: each keeps and answers what it would alone, whatever its padding and its neighbours hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bmrt import STRATEGIES, BoundedCache, Hybrid, build_strategy
from bmrt.strategies import Strategy, View
from bmrt.strategies.trail import trailed
from tests.bmrt.models import tiny, tokens
from tests.bmrt.views import view

NEAR: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
PADS = (0, 3, 22, 57)  # beside more than a budget, and with less than a window
CHUNKS = (20, 40, *[1] * 9, 6)
N = sum(CHUNKS)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


def strategies() -> dict[str, Strategy]:
    hybrid = Hybrid(build_strategy("exact"), build_strategy("frequency_rank"), ratio=0.4)
    flash = build_strategy("exact", backend="flash")
    return {name: build_strategy(name) for name in STRATEGIES} | {"hybrid": hybrid, "exact flash": flash}


def mask_of(pads: tuple[int, ...], length: int = N) -> Tensor:
    return torch.stack([torch.arange(length) >= pad for pad in pads]).long()


def steps(model: Any, cache: BoundedCache, ids: Tensor, mask: Tensor, **given: Tensor) -> Iterator[Tensor]:
    """Logits of each chunk."""
    start = 0
    for size in CHUNKS:
        stop = start + size
        inputs = {name: x[:, start:stop] for name, x in (given or {"input_ids": ids}).items()}
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, start:stop]  # as generate has them
        options: dict[str, Any] = {"attention_mask": mask[:, :stop], "position_ids": places, "past_key_values": cache}
        yield model(**inputs, **options).logits
        start = stop


def alone(model: Any, cache: BoundedCache, ids: Tensor, pad: int) -> Iterator[tuple[int, Tensor]]:
    """The row without its padding, cut at the same places; how many of each chunk's tokens it has."""
    start = 0
    for size in CHUNKS:
        part = ids[None, max(pad, start) : start + size]
        start += size
        yield part.shape[1], model(part, past_key_values=cache).logits if part.shape[1] else torch.empty(1, 0, 1)


@pytest.mark.parametrize(("mode", "slack"), [("recursive", 0), ("recursive", 3), ("accumulate", 3)])
@pytest.mark.parametrize("name", [*strategies()])
def test_each_row_keeps_what_it_would_alone(model: Any, name: str, slack: int, mode: Any) -> None:
    if name == "h2o":
        mode = "recursive"  # the other is refused
    options: dict[str, Any] = {"mode": mode, "slack": slack, "context_tokens": 45}
    ids = tokens(N, batch=len(PADS))
    together = BoundedCache(model, 24, strategy=strategies()[name], **options)
    single = [BoundedCache(model, 24, strategy=strategies()[name], **options) for _ in PADS]
    rows = [alone(model, cache, row, pad) for cache, row, pad in zip(single, ids, PADS, strict=True)]
    for logits, *wanted in zip(steps(model, together, ids, mask_of(PADS)), *rows, strict=True):
        for row, (real, own) in enumerate(wanted):
            if real:
                torch.testing.assert_close(logits[row, -real:], own[0], **NEAR)
            for layer, other in zip(together.bounded, single[row].bounded, strict=True):
                assert layer.held <= 24
                held = other.held
                assert layer.rows[row].held == held
                places = layer.positions[row]
                assert (places[:, : layer.held - held] == -1).all()
                if held:
                    assert torch.equal(places[:, layer.held - held :] - PADS[row], other.positions[0])


@pytest.mark.parametrize(
    ("name", "junk", "attention"),
    [
        *((name, torch.nan, "sdpa") for name in strategies()),
        *(("exact", junk, attention) for junk in (torch.inf, 1e300, "tokens") for attention in ("sdpa", "eager")),
    ],
)
def test_what_padding_holds_changes_nothing(name: str, junk: Any, attention: str) -> None:
    model = tiny()
    model.set_attn_implementation(attention)
    ids, mask = tokens(N, batch=len(PADS)), mask_of(PADS)
    embedded = model.get_input_embeddings()(ids)
    others = (
        model.get_input_embeddings()(tokens(N, batch=len(PADS), seed=7)) if junk == "tokens" else embedded * 0 + junk
    )
    filled = torch.where(mask[..., None].bool(), embedded, others)
    found = []
    for given in (embedded, filled):
        cache = BoundedCache(model, 24, strategy=strategies()[name])
        logits = torch.cat([*steps(model, cache, ids, mask, inputs_embeds=given)], 1)[mask.bool()]
        found.append((logits, *(x for layer in cache.bounded for x in (layer.keys, layer.values, layer.positions))))
    assert found[0][0].isfinite().all()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_strategy_need_not_look_out_for_padding() -> None:
    class Careless(Strategy):
        observes = 8

        def score(self, view: View) -> Tensor:
            return (view.grouped.mean(2, keepdim=True) * view.choices).sum(-1)

    model, ids, mask = tiny(), tokens(N, batch=len(PADS)), mask_of(PADS)
    embedded = model.get_input_embeddings()(ids).masked_fill(mask[..., None] == 0, torch.nan)
    cache = BoundedCache(model, 24, strategy=Careless())
    found = torch.cat([*steps(model, cache, ids, mask, inputs_embeds=embedded)], 1)
    assert found[mask.bool()].isfinite().all()


def test_padding_passes_no_score_on_to_what_follows() -> None:
    hidden = torch.arange(12).expand(2, -1) < 4
    scores = torch.zeros(2, 2, 12, dtype=torch.float64).masked_fill(hidden[:, None], 5.0)
    positions = (torch.arange(12) - 4).expand(2, 2, -1)
    found = trailed(scores, view(tokens=12, hidden=hidden, positions=positions, anchors=positions == 0), 16)
    assert (found[:, :, 5:] == 0).all()


def test_neighbours_change_nothing(model: Any) -> None:
    """The same row beside rows of other lengths."""
    row, kept = tokens(N, seed=3), []
    for others in ((0, 20), (50, 5), (20, 20)):
        ids = torch.cat((row, tokens(N, batch=2, seed=sum(others))))
        cache = BoundedCache(model, 24, strategy="exact")
        [*_] = steps(model, cache, ids, mask_of((20, *others)))
        kept.append([layer.positions[0][:, -layer.rows[0].held :] for layer in cache.bounded])
    for one in kept[1:]:
        assert all(torch.equal(x, y) for x, y in zip(one, kept[0], strict=True))


@pytest.mark.parametrize("name", ["exact", "h2o"])
def test_padded_rows_are_reordered_and_repeated_with_all_that_belongs_to_them(model: Any, name: str) -> None:
    ids, order = tokens(N, batch=len(PADS)), torch.tensor([2, 0, 0, 3])
    pads = tuple(PADS[i] for i in order)
    first, other, many = (BoundedCache(model, 24, strategy=name) for _ in range(3))
    one, two = steps(model, first, ids, mask_of(PADS)), steps(model, other, ids[order], mask_of(pads))
    [*_] = zip(range(6), one, two, strict=False)
    first.reorder_cache(order)  # type: ignore[arg-type]
    part, mask = ids[order, 64:69], mask_of(pads, 69)
    twice = [x.repeat_interleave(2, 0) for x in (part, mask)]
    logits = [model(part, attention_mask=mask, past_key_values=cache).logits for cache in (first, other)]
    torch.testing.assert_close(*logits, **NEAR)
    [*_] = zip(range(6), steps(model, many, ids[order], mask_of(pads)), strict=False)
    many.batch_repeat_interleave(2)
    found = model(twice[0], attention_mask=twice[1], past_key_values=many).logits
    torch.testing.assert_close(found, logits[0].repeat_interleave(2, 0), **NEAR)


def test_rows_of_padding_alone_are_no_trouble(model: Any) -> None:
    cache = BoundedCache(model, 24)
    ids, mask = tokens(60, batch=2), torch.ones(2, 60, dtype=torch.int64)
    mask[:, :40] = 0
    for stop in (20, 40, 60):
        places = (torch.arange(stop - 20, stop)[None] - 40).clamp(min=0)
        options: dict[str, Any] = {"attention_mask": mask[:, :stop], "position_ids": places, "past_key_values": cache}
        found = model(ids[:, stop - 20 : stop], **options).logits
        assert found.isfinite().all()
    fresh = BoundedCache(model, 24)
    torch.testing.assert_close(found, model(ids[:, 40:], past_key_values=fresh).logits, **NEAR)
    assert cache.bounded[0].held == 20


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ((0, 5), (0, 0), "row 1 is padded up to 0 .* was up to 5"),
        ((0, 5), None, "row 1 is padded up to 0"),
        ((0, 5), (0, 6), "row 1 is padded up to 6"),
        ((0, 0), (0, 3), "row 1 is padded up to 3"),
        (None, (4, 3), "row 0 is padded up to 4"),
        ((0, 20), (0, 10), "row 1 is padded up to 10"),
    ],
)
def test_padding_that_is_no_longer_where_it_was_is_refused(model: Any, before: Any, after: Any, message: str) -> None:
    cache, ids = BoundedCache(model, 24), tokens(30, batch=2)
    masks = [None if pads is None else mask_of(pads, length) for pads, length in ((before, 20), (after, 30))]
    model(ids[:, :20], attention_mask=masks[0], past_key_values=cache)
    with pytest.raises(ValueError, match=message):
        model(ids[:, 20:], attention_mask=masks[1], past_key_values=cache)


@pytest.mark.parametrize("shape", [(2, 10), (2, 31), (1, 30), (3, 30)])
def test_a_mask_of_another_size_is_refused(model: Any, shape: tuple[int, int]) -> None:
    cache, ids = BoundedCache(model, 24), tokens(30, batch=2)
    model(ids[:, :20], past_key_values=cache)
    with pytest.raises(ValueError, match=r"\(batch, tokens so far\), \(2, 30\)"):
        model(ids[:, 20:], attention_mask=torch.ones(shape), past_key_values=cache)


def test_another_number_of_rows_is_refused(model: Any) -> None:
    cache = BoundedCache(model, 24)
    model(tokens(20), past_key_values=cache)
    with pytest.raises(ValueError, match="a cache of 1 sequences cannot be used for 2"):
        model(tokens(20, batch=2), past_key_values=cache)
