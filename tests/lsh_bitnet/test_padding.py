"""What transformers says of the mask becomes a first position a row, or is refused; never silently ignored."""

from __future__ import annotations

import pytest
import torch
from transformers import StaticCache

from lsh_bitnet import attend_with
from lsh_bitnet.models import random_model
from lsh_bitnet.padding import first_positions
from tests.lsh_bitnet.models import close, logits, padded, shared, tokens


def first(rows: list[list[int]]) -> list[int] | None:
    mask = torch.tensor(rows).bool()
    found = first_positions(len(mask), mask.shape[1], mask.shape[1], attention_mask=mask)
    return None if found is None else found.tolist()


def test_left_padding_gives_the_first_real_position() -> None:
    assert first([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]) == [2, 0, 3]


def test_nothing_is_made_of_a_mask_without_padding() -> None:
    assert first([[1, 1, 1], [1, 1, 1]]) is None
    assert first_positions(2, 3, 3) is None


def test_padding_on_the_right_needs_no_mask() -> None:
    assert first([[1, 1, 0, 0], [0, 1, 1, 0]]) == [0, 1]


def test_padding_on_the_right_leaves_real_rows_as_they_are() -> None:
    model, ids = shared("llama"), tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    want = logits(model, ids, attention_mask=mask)
    with attend_with(model, "flash"):
        assert close(logits(model, ids, attention_mask=mask)[mask.bool()], want[mask.bool()])


def test_padding_between_real_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_mask of row 1 is not allowed: padding stands between"):
        first([[1, 1, 1, 1], [1, 0, 1, 1]])


def test_decoding_after_padding_on_the_right_is_refused() -> None:
    model, (ids, mask) = shared("llama"), padded()
    with attend_with(model, "flash"), pytest.raises(ValueError, match="pad on the left"):
        model.generate(ids.flip(1), attention_mask=mask.flip(1), max_new_tokens=3, do_sample=False)


def test_a_mask_that_the_caller_built_is_refused() -> None:
    mask = torch.zeros(2, 1, 61, 61)
    with attend_with(shared("llama"), "flash"), pytest.raises(ValueError, match=r"shape \(2, 1, 61, 61\)"):
        logits(shared("llama"), tokens(), attention_mask=mask)


def test_packed_sequences_are_refused() -> None:
    positions = torch.cat((torch.arange(30), torch.arange(31)))[None]
    with attend_with(shared("llama"), "flash"), pytest.raises(ValueError, match="neither causal nor padding"):
        logits(shared("llama"), tokens(1), position_ids=positions, use_cache=False)


def test_a_cache_with_room_to_spare_is_refused() -> None:
    model = shared("llama")
    cache = StaticCache(config=model.config, max_cache_len=128)
    with attend_with(model, "flash"), pytest.raises(ValueError, match="use DynamicCache"):
        logits(model, tokens(), past_key_values=cache)


def test_a_sliding_window_is_refused_where_it_binds_and_only_there() -> None:
    model = random_model("mistral", sliding_window=32)
    want = logits(model, tokens(2, 32))
    with attend_with(model, "flash"):
        assert close(logits(model, tokens(2, 32)), want)
        with pytest.raises(ValueError, match="sliding_window=32 is not allowed at 33 tokens"):
            logits(model, tokens(2, 33))


def test_dropout_is_refused() -> None:
    model = random_model("llama", attention_dropout=0.1).train()
    with attend_with(model, "flash"), pytest.raises(ValueError, match=r"attention_dropout=0\.1 is not allowed"):
        model(tokens())
