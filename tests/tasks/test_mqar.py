from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tasks.mqar import MQAR, MQARText, power_gaps


@pytest.mark.parametrize("fillers", ["blank", "random"])
def test_every_key_returns_once_and_its_label_is_the_value_beside_it(fillers: str) -> None:
    task = MQAR(64, pairs=11, vocab=128, fillers=fillers)
    inputs, labels = task.batch(200)
    for row, wanted in zip(inputs.tolist(), labels.tolist(), strict=True):
        pairs = dict(zip(row[0:22:2], row[1:22:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == 11
        assert all(1 <= key < 64 <= value < 128 for key, value in pairs.items())
        asked = {place: label for place, label in enumerate(wanted) if label != -100}
        assert sorted(row[place] for place in asked) == sorted(pairs)
        assert all(place >= 22 and place % 2 == 0 and pairs[row[place]] == label for place, label in asked.items())
        others = [token for place, token in enumerate(row[22:], 22) if place not in asked]
        assert not set(others) & set(pairs) if fillers == "random" else set(others) == {0}


def test_sequences_depend_on_seed_and_number_only() -> None:
    whole = MQAR(32, pairs=4, seed=3).batch(6)
    part = MQAR(32, pairs=4, seed=3).batch(2, start=4)
    other = MQAR(32, pairs=4, seed=4).batch(2, start=4)
    assert torch.equal(part.inputs, whole.inputs[4:])
    assert torch.equal(part.labels, whole.labels[4:])
    assert not torch.equal(other.inputs, part.inputs)


def test_random_fillers_change_nothing_else() -> None:
    blank, noisy = (MQAR(64, pairs=4, fillers=fillers).batch(5) for fillers in ("blank", "random"))
    assert torch.equal(blank.labels, noisy.labels)
    kept = blank.inputs != 0
    assert torch.equal(blank.inputs[kept], noisy.inputs[kept])
    assert (noisy.inputs != 0).float().mean() > 0.99


def test_the_first_gap_has_the_published_distribution() -> None:
    draw, space, power = np.random.default_rng(0), 8, 0.01
    first = np.bincount([power_gaps(draw, space, 3, power)[0] for _ in range(20_000)], minlength=space) / 20_000
    weights = power * np.arange(1, space + 1) ** (power - 1)
    np.testing.assert_allclose(first, weights / weights.sum(), atol=0.012)


def test_a_power_of_one_makes_gaps_uniform() -> None:
    draw = np.random.default_rng(0)
    first = np.bincount([power_gaps(draw, 5, 1, 1.0)[0] for _ in range(10_000)], minlength=5) / 10_000
    np.testing.assert_allclose(first, 0.2, atol=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"length": 64, "pairs": 17},
        {"length": 63, "pairs": 4},
        {"length": 64, "pairs": 0},
        {"length": 640, "pairs": 64, "vocab": 128},
    ],
    ids=str,
)
def test_pairs_that_do_not_fit_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        MQAR(**settings)  # type: ignore[arg-type]


def test_the_text_form_asks_every_key_once_and_the_last_at_its_end() -> None:
    task = MQARText(300, pairs=9)
    for example in itertools.islice(task, 50):
        assert len(example.text) <= 298
        tokens = [slot for slot in example.text.split(" ") if set(slot) != {"."}]
        pairs = dict(token.split("=") for token in tokens[:9])
        assert len(pairs) == len(set(pairs.values())) == 9
        assert sorted(tokens[9:]) == sorted(tokens[:9])
        assert example.prompt.endswith("=")
        assert example.answer == pairs[example.prompt[-3:-1]]
        asked = [(example.prompt[start - 3 : start - 1], example.prompt[start:end]) for start, end in example.spans]
        assert len(asked) == 8
        assert all(pairs[key] == value for key, value in asked)


def test_text_lengths_are_used_up_to_a_slot() -> None:
    assert all(298 - 6 < len(example.text) <= 298 for example in itertools.islice(MQARText(300, pairs=9), 10))


def test_more_pairs_than_two_letters_can_name_get_three() -> None:
    example = MQARText(8_192, pairs=400).example(0)
    assert len(example.answer) == 3
    assert len(set(example.text.split(" ")[:400])) == 400


def test_text_pairs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs=30 is not allowed: with length=300 it must be 1 to 24"):
        MQARText(300, pairs=30)
