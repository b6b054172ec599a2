"""Comparisons that are logged are those that are made: a brute count over the support agrees, by layer and head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attentions import build
from attentions.buckets.support import SupportAttention
from lsh_bitnet import ComparisonLog, attend_with
from lsh_bitnet.dispatch import Dispatch
from tests.lsh_bitnet.models import ARCHITECTURES, SMALL, logits, padded, positions, shared, tokens

COUNTED = ("bit_sampling", "simhash", "lsh_forest")


class Brute(Dispatch):
    """Counts supports one by one, on the q and k of every call."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.made: dict[int, Tensor] = {}

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        attention = self._attention(module, query, key, value, options["scaling"])
        assert isinstance(attention, SupportAttention)
        inside = attention.multiplicity(query, key, first=None if mask is None else mask[:, 0]) > 0
        self.made[module.layer_idx] = self.made.get(module.layer_idx, 0) + inside.sum((0, 2, 3))
        return super().__call__(module, query, key, value, mask, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", COUNTED)
def test_logged_comparisons_are_a_brute_count(architecture: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, mask) = shared(architecture), padded()
    made: list[Brute] = []
    monkeypatch.setattr("lsh_bitnet.swap.Dispatch", lambda *a, **o: made.append(Brute(*a, **o)) or made[-1])
    with attend_with(model, backend, count=True, **SMALL[backend]) as swap:
        logits(model, ids, attention_mask=mask, position_ids=positions(mask))
        model.generate(ids[:1], max_new_tokens=3, do_sample=False)
    assert swap.log is not None
    for layer, want in made[0].made.items():
        assert torch.equal(swap.log.layers[layer].made, want)
    assert swap.log.made == sum(int(want.sum()) for want in made[0].made.values())


def test_full_attentions_comparisons_are_all_pairs_up_to_each_query() -> None:
    model, (ids, mask) = shared("llama"), padded((61, 37))
    with attend_with(model, "flash", count=True) as swap:
        logits(model, ids, attention_mask=mask)
    assert swap.log is not None
    pairs = 61 * 62 // 2 + 37 * 38 // 2
    assert [row["comparisons"] for row in swap.log.rows()] == [pairs] * (2 * 4)
    assert swap.log.made == swap.log.full == pairs * 2 * 4
    assert swap.log.ratio == 1


@pytest.mark.parametrize("backend", ["vanilla", "simhash", "hyper", "reformer"])
def test_padding_counts_on_neither_side(backend: str) -> None:
    model, ids = shared("llama"), tokens(1, 60)
    counts = {}
    with attend_with(model, backend, count=True, **SMALL.get(backend, {})) as swap:
        assert swap.log is not None
        for side, real in {"none": (0, 40), "left": (20, 60), "right": (0, 40), "both": (7, 47)}.items():
            given = ids.roll(real[0], 1)  # the same 40 tokens, wherever they stand
            mask = torch.zeros_like(ids)
            mask[:, slice(*real)] = 1
            swap.log.reset()
            logits(model, given[:, :40] if side == "none" else given, attention_mask=None if side == "none" else mask)
            counts[side] = [(row["comparisons"], row["full"]) for row in swap.log.rows()]
    assert len({tuple(count) for count in counts.values()}) == 1
    assert counts["none"][0][1] == 40 * 41 // 2


def test_a_call_on_padding_alone_counts_nothing() -> None:
    model, ids = shared("llama"), tokens(1, 8)
    with attend_with(model, "vanilla", count=True) as swap:
        logits(model, ids, attention_mask=torch.zeros_like(ids))
        assert swap.log is not None
        assert (swap.log.made, swap.log.full, swap.log.rows()) == (0, 0, [])


def test_a_batch_without_padding_counts_each_of_its_sequences() -> None:
    with attend_with(shared("llama"), "flash", count=True) as swap:
        logits(shared("llama"), tokens(3, 20))
    assert swap.log is not None
    pairs = 3 * (20 * 21 // 2)
    assert swap.log.layers[0].made.tolist() == swap.log.layers[0].full.tolist() == [pairs] * 4


def test_decoding_counts_each_new_query_once() -> None:
    model = shared("llama")
    with attend_with(model, "vanilla", count=True) as swap:
        model.generate(tokens(1, 10), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert swap.log is not None
    assert swap.log.layers[0].full.tolist() == [sum(range(1, 14))] * 4
    assert swap.log.layers[0].calls == 4


def test_reset_forgets() -> None:
    log = ComparisonLog()
    q, k = torch.randn(1, 4, 5, 16), torch.randn(1, 2, 5, 16)
    log.count(0, build("vanilla", heads=4, head_dim=16, kv_heads=2), q, k, None)
    assert log.made == 60
    log.reset()
    assert log.made == 0
    with pytest.raises(ValueError, match="run the model on at least one token"):
        _ = log.ratio
