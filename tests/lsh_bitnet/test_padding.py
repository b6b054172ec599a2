"""What transformers says of the mask becomes where each row is real, or is refused; padding changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache

from attentions import BACKENDS
from lsh_bitnet import attend_with, register
from lsh_bitnet.models import random_model
from lsh_bitnet.padding import real_spans
from tests.lsh_bitnet.models import SMALL, can, close, logits, padded, positions, shared, tokens


def spans(rows: list[list[int]]) -> list[list[int]] | None:
    mask = torch.tensor(rows).bool()
    found = real_spans(len(mask), mask.shape[1], mask.shape[1], attention_mask=mask)
    return None if found is None else found.tolist()


def test_a_row_is_real_from_its_first_token_to_its_last() -> None:
    assert spans([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]) == [[2, 4], [0, 4], [3, 4]]
    assert spans([[1, 1, 0, 0], [0, 1, 1, 0]]) == [[0, 2], [1, 3]]


def test_a_row_of_padding_ends_where_it_begins() -> None:
    assert spans([[0, 0, 0], [1, 1, 1]]) == [[3, 3], [0, 3]]


def test_nothing_is_made_of_a_mask_without_padding() -> None:
    assert spans([[1, 1, 1], [1, 1, 1]]) is None
    assert real_spans(2, 3, 3) is None


def test_one_row_of_mask_holds_for_all() -> None:
    found = real_spans(3, 2, 2, attention_mask=torch.tensor([[False, True]]))
    assert found is not None
    assert found.tolist() == [[1, 2]] * 3


@pytest.mark.parametrize("shape", [(2, 5), (2, 7), (3, 6), (2, 6, 6)], ids=str)
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"attention_mask of shape .* is not allowed for 2 rows and 6 tokens"):
        real_spans(2, 2, 6, q_offset=4, attention_mask=torch.ones(shape, dtype=torch.bool))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the left, on the right, on both sides, and not at all."""
    ids, mask = tokens(4, 61), torch.ones(4, 61, dtype=torch.long)
    mask[0, :20], mask[1, 40:], mask[2, :10], mask[2, 50:] = 0, 0, 0, 0
    return ids, mask


@pytest.mark.parametrize("fill", [None, torch.nan, torch.inf, 1e30], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_tokens_are_what_they_are_alone_whatever_padding_holds(backend: str, fill: float | None) -> None:
    model: Any = random_model("llama").double()
    ids, mask = batch()
    given = model.model.embed_tokens(ids).detach()
    if fill is not None:
        given[mask == 0] = fill
    with attend_with(model, backend, **SMALL.get(backend, {})), torch.no_grad():
        together = model(inputs_embeds=given, attention_mask=mask).logits
        for row, real in enumerate(mask.bool()):
            assert close(together[row, real], logits(model, ids[row : row + 1, real])[0], 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_padding_alone_disturbs_no_other(backend: str) -> None:
    model, (ids, mask) = shared("llama"), batch()
    mask[1] = 0
    with attend_with(model, backend, count=True, **SMALL.get(backend, {})) as swap:
        together = logits(model, ids, attention_mask=mask)
        assert swap.log is not None
        made = swap.log.made
        swap.log.reset()
        for row in (0, 2, 3):
            real = mask[row].bool()
            assert close(together[row, real], logits(model, ids[row : row + 1, real])[0], 1e-4)
    assert torch.isfinite(together).all()
    assert swap.log.made == made


@pytest.mark.parametrize("backend", ["flash", "simhash", "hyper"])
def test_pieces_of_padded_rows_go_on_from_a_cache(backend: str) -> None:
    if not can(backend, 3, 61):
        pytest.skip(f"{backend} does not decode")
    model: Any = random_model("llama").double()
    ids, mask = batch()
    ids, mask = ids[[0, 3]], mask[[0, 3]]
    with attend_with(model, backend, **SMALL.get(backend, {})):
        whole = logits(model, ids, attention_mask=mask)
        cache, done, pieces = DynamicCache(config=model.config), 0, []
        for piece in ids.split([10, 30, 20, 1], 1):
            done += piece.shape[1]
            pieces.append(logits(model, piece, attention_mask=mask[:, :done], past_key_values=cache, use_cache=True))
    if BACKENDS[backend].causality == "strict":
        assert close(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], 1e-10)


def test_padding_on_the_right_leaves_real_rows_as_they_are() -> None:
    model, ids = shared("llama"), tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    want = logits(model, ids, attention_mask=mask)
    with attend_with(model, "flash"):
        assert close(logits(model, ids, attention_mask=mask)[mask.bool()], want[mask.bool()])


def test_padding_between_real_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_mask of row 1 is not allowed: there is padding between"):
        spans([[1, 1, 1, 1], [1, 0, 1, 1]])


def test_the_wrong_padding_shows() -> None:
    """The model is one whose answers padding would change: without the mask they do."""
    model, (ids, mask) = shared("llama"), batch()
    with attend_with(model, "simhash", **SMALL["simhash"]):
        alone = logits(model, ids[:1, 20:])
        assert not close(logits(model, ids)[:1, 20:], alone, 1e-2)
        with pytest.warns(UserWarning, match="position_ids"):
            counted = logits(model, ids, attention_mask=mask, position_ids=torch.arange(61)[None])
    assert not close(counted[:1, 20:], alone, 1e-2)


def test_position_ids_are_those_that_generate_gives() -> None:
    model, (ids, mask) = shared("llama"), padded()
    with attend_with(model, "simhash", **SMALL["simhash"]):
        derived = logits(model, ids, attention_mask=mask)
        assert torch.equal(derived, logits(model, ids, attention_mask=mask, position_ids=positions(mask)))
        inner = model.model(ids, mask).last_hidden_state  # without the head, and by position
        assert torch.equal(derived, model.lm_head(inner))


def test_exact_attention_with_derived_positions_is_the_models_own() -> None:
    model, (ids, mask) = shared("llama"), padded()
    want = logits(model, ids, attention_mask=mask)
    with attend_with(model, "flash"):
        assert close(logits(model, ids, attention_mask=mask)[mask.bool()], want[mask.bool()])
    assert torch.equal(logits(model, ids, attention_mask=mask), want)


def test_positions_that_count_padding_are_warned_of_once() -> None:
    model, (ids, mask) = shared("llama"), padded()
    counted = torch.arange(61).expand(2, -1)
    with attend_with(model, "simhash", **SMALL["simhash"]):
        with pytest.warns(UserWarning, match="position_ids count the padding on the left"):
            logits(model, ids, attention_mask=mask, position_ids=counted)
        logits(model, ids, attention_mask=mask, position_ids=counted)  # a second warning would be an error here
    with attend_with(model, "flash"):
        logits(model, ids, attention_mask=mask, position_ids=counted)


def test_a_registered_name_cannot_derive_positions_and_warns() -> None:
    model, (ids, mask) = random_model("llama"), padded()
    names = register({"simhash": SMALL["simhash"]})
    try:
        model.set_attn_implementation("attentions_simhash")
        with pytest.warns(UserWarning, match="position_ids count the padding on the left"):
            logits(model, ids, attention_mask=mask)
        together = logits(model, ids, attention_mask=mask, position_ids=positions(mask))
        assert close(together[1:, -37:], logits(model, ids[1:, -37:]), 1e-4)
    finally:
        model.set_attn_implementation("sdpa")
        for name in names:
            for interface in (AttentionInterface, AttentionMaskInterface):
                interface._global_mapping.pop(name)


@pytest.mark.parametrize("values", [[1, 1, 2, 2], [0.0, 0.0, -1e9, -1e9]], ids=str)
def test_a_mask_of_other_values_than_0_and_1_is_refused(values: list[float]) -> None:
    model = shared("llama")
    with attend_with(model, "flash"), pytest.raises(ValueError, match="must hold 1 for a real token and 0 for padding"):
        logits(model, tokens(1, 4), attention_mask=torch.tensor([values]))


def test_beam_search_reorders_what_is_attended() -> None:
    model, (ids, mask) = shared("llama"), padded()
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3, "eos_token_id": None}
    want = model.generate(ids, attention_mask=mask, **settings)
    with attend_with(model, "flash"):
        assert torch.equal(model.generate(ids, attention_mask=mask, **settings), want)
    with attend_with(model, "simhash", **SMALL["simhash"]):
        kept = model.generate(ids, attention_mask=mask, **settings)
        assert torch.equal(model.generate(ids, attention_mask=mask, use_cache=False, **settings), kept)
        alone = model.generate(ids[1:, -37:], **settings)
    assert torch.equal(kept[1:, -43:], alone)


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


def test_packed_sequences_are_refused_in_layers_with_a_window() -> None:
    model = random_model("mistral", sliding_window=64)
    packed = torch.cat((torch.arange(30), torch.arange(31)))[None]
    with attend_with(model, "flash"), pytest.raises(ValueError, match="neither causal nor padding"):
        logits(model, tokens(1), position_ids=packed, use_cache=False)


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
