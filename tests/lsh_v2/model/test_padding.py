"""Left padding changes nothing, whatever it holds: logits, loss, gradients, steps, and what is generated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsh_v2.model.generation import generate
from lsh_v2.model.loss import IGNORED
from tests.lsh_v2.small import VOCABULARY, small_model, token_ids

FIRST = torch.tensor([5, 0, 9])
KINDS: list[dict[str, Any]] = [
    {"attention": "flash"},
    {"attention": "flash", "use_ponder": False, "reversible": False, "latent": False},
    {"attention": "vanilla", "causal": False, "use_ponder": False},
    {"attention": "hyper", "attention_settings": {"min_seq_len": 8, "block_size": 4, "sample_size": 4}},
    {"attention": "lsh_v2"},
    {"attention": "mamba"},
]


def padded(seed: int, length: int = 21) -> torch.Tensor:
    """The same real tokens after padding of other tokens for each seed."""
    other = token_ids(length, seed=100 + seed)
    return torch.where(torch.arange(length) < FIRST[:, None], other, token_ids(length))


@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_are_as_they_are_alone(kind: dict[str, Any]) -> None:
    model = small_model(**kind)
    found = model(padded(0), first=FIRST)
    for row, begin in enumerate(FIRST.tolist()):
        alone = model(padded(0)[row : row + 1, begin:])
        torch.testing.assert_close(found["logits"][row : row + 1, begin:], alone["logits"], rtol=1e-9, atol=1e-9)
        if "steps" in found:
            assert torch.equal(found["steps"][row : row + 1, begin:], alone["steps"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_padding_holds_changes_no_loss_and_no_gradient(kind: dict[str, Any]) -> None:
    """Labels there are not counted, nor that of the first real token, which nothing real predicts."""
    found = []
    for seed in (0, 1):
        model = small_model(**kind, auxiliary_weight=1.0).train()
        out = model(padded(seed), padded(seed), first=FIRST)
        out["loss"].backward()
        found.append((out["loss"].detach(), [p.grad for p in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_loss_is_that_of_the_rows_alone(kind: dict[str, Any]) -> None:
    model = small_model(**kind)
    whole = model(padded(0), padded(0), first=FIRST)["cross_entropy"]
    total, count = 0.0, 0
    for row, begin in enumerate(FIRST.tolist()):
        ids = padded(0)[row : row + 1, begin:]
        here = ids.shape[1] - int(model.config.causal)
        total, count = total + float(model(ids, ids)["cross_entropy"]) * here, count + here
    assert float(whole.detach()) == pytest.approx(total / count, rel=1e-9)


def test_an_embedding_that_is_nan_matters_only_where_it_is_read() -> None:
    model = small_model()
    ids = token_ids(21) % (VOCABULARY - 1)
    pad = torch.arange(21) < FIRST[:, None]
    want = model(ids, ids, first=FIRST)
    with torch.no_grad():
        model.embedding.weight[VOCABULARY - 1] = torch.nan
    state = model.embed(ids.masked_fill(pad, VOCABULARY - 1))
    assert state.isnan().any()
    # Logits of the token itself are NaN, whatever is read; those of all others are as they were.
    found = model(ids.masked_fill(pad, VOCABULARY - 1), first=FIRST)["logits"][..., : VOCABULARY - 1]
    assert torch.equal(found[~pad], want["logits"][..., : VOCABULARY - 1][~pad])
    assert found.isfinite().all()


@pytest.mark.parametrize("attention", ["flash", "hyper"])
def test_generation_after_padding_is_that_of_the_rows_alone(attention: str) -> None:
    model = small_model(attention=attention)
    alone = [generate(model, padded(0)[row : row + 1, begin:], max_new_tokens=6) for row, begin in enumerate(FIRST)]
    for seed in (0, 1):
        assert torch.equal(generate(model, padded(seed), max_new_tokens=6, first=FIRST), torch.cat(alone))


def test_rows_that_stop_early_repeat_the_stop() -> None:
    model = small_model()
    free = generate(model, padded(0), max_new_tokens=6, first=FIRST)
    stop = int(free[1, 1])
    found = generate(model, padded(0), max_new_tokens=6, first=FIRST, stop=stop)
    for row in found.tolist():
        if stop in row:
            assert set(row[row.index(stop) :]) == {stop}


@pytest.mark.parametrize("first", [[0, 5], [0, 5, 22], [-1, 0, 0]])
def test_positions_out_of_range_are_refused(first: list[int]) -> None:
    with pytest.raises(ValueError, match="3 integers from 0 to 21"):
        small_model()(padded(0), first=torch.tensor(first))
    with pytest.raises(ValueError, match="3 integers from 0 to 20"):
        generate(small_model(), padded(0), max_new_tokens=1, first=torch.tensor(first))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": torch.inf}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0"),
    ],
)
def test_settings_of_generation_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(small_model(), token_ids(3), max_new_tokens=1, **settings)
    with pytest.raises(ValueError, match="prompt length=0 is not allowed"):
        generate(small_model(), token_ids(0), max_new_tokens=1)


def test_ignored_labels_stay_ignored() -> None:
    model = small_model()
    labels = padded(0).masked_fill(torch.arange(21) < 15, IGNORED)
    one, two = (model(padded(0), labels, first=first)["cross_entropy"] for first in (FIRST, torch.zeros(3).long()))
    assert torch.isfinite(one)
    assert not torch.equal(one, two)


def test_the_auxiliary_loss_is_that_of_the_real_part() -> None:
    model = small_model(attention="lsh_v2", auxiliary_weight=1.0).train()
    begin = int(FIRST[0])
    with_padding = model(padded(0)[:1], padded(0)[:1], first=FIRST[:1])["auxiliary_loss"]
    alone = model(padded(0)[:1, begin:], padded(0)[:1, begin:])["auxiliary_loss"]
    torch.testing.assert_close(with_padding, alone, rtol=1e-6, atol=1e-6)
    assert alone.abs() > 0


@pytest.mark.parametrize("settings", KINDS)
def test_an_empty_batch_has_an_empty_answer_in_training_too(settings: dict[str, Any]) -> None:
    nothing = padded(0)[:0]
    for model in (small_model(**settings).train(), small_model(**settings)):
        out = model(nothing, labels=nothing, first=FIRST[:0])
        assert out["logits"].shape == (0, 21, VOCABULARY)
        assert torch.isfinite(out["loss"])
        out["loss"].backward()


def test_truth_values_are_no_positions() -> None:
    with pytest.raises(ValueError, match="3 integers from 0 to 21"):
        small_model()._padding(torch.tensor([True, False, False]), padded(0))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 4), r"torch.float32 of shape \(1, 4\)"),
        (torch.zeros(4, dtype=torch.int64), r"torch.int64 of shape \(4,\)"),
        (torch.full((1, 4), -1), "input_ids=-1 is not allowed"),
        (torch.full((1, 4), 10**6), "input_ids=1000000 is not allowed"),
    ],
)
def test_ids_that_are_no_tokens_are_refused(ids: Any, message: str) -> None:
    model = small_model()
    with pytest.raises(ValueError, match=message):
        model(ids)
