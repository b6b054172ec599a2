"""Answers of a model that can retrieve, with a part of what it has read: what compression is for."""

from __future__ import annotations

from typing import Any

import pytest

from bmrt import RecursiveCompressionEngine
from bmrt.evaluation.generated import Generated

WRITTEN = "models/written-induction"
HYBRID = {"selector_type": "hybrid"}


@pytest.fixture(scope="module")
def engine() -> RecursiveCompressionEngine:
    return RecursiveCompressionEngine(WRITTEN, tokenizer="bytes", max_new_tokens=9, block_size=256)


def right(engine: RecursiveCompressionEngine, length: int, count: int, **settings: Any) -> float:
    """Share of needles that are found."""
    made = Generated("niah_single_2", length, count=count, wording="short", seed=1, prompts=engine.prompts)
    answers = [engine(sample.context, sample.question, **settings)["text"][0] for sample in made.samples]
    return sum(map(made.judge, made.samples, answers)) / count


@pytest.mark.parametrize("settings", [{"selector_type": "full"}, {"selector_type": "exact"}, HYBRID])
def test_a_needle_is_found_with_a_quarter_of_the_text(
    engine: RecursiveCompressionEngine, settings: dict[str, Any]
) -> None:
    assert right(engine, 700, 2, compression_ratio=0.25, **settings) == 1


def test_a_random_quarter_does_not_hold_the_needle(engine: RecursiveCompressionEngine) -> None:
    assert right(engine, 700, 2, compression_ratio=0.25, selector_type="random") == 0


@pytest.mark.slow
def test_a_quarter_answers_as_well_as_everything_at_2048_tokens(engine: RecursiveCompressionEngine) -> None:
    found = {
        name: right(engine, 2048, 20, compression_ratio=0.25, selector_type=name)
        for name in ("full", "exact", "hybrid", "random")
    }
    assert found["full"] == 1
    assert min(found["exact"], found["hybrid"]) >= 0.95
    assert found["random"] < 0.5


@pytest.mark.slow
def test_accumulating_finds_needles_anywhere_in_the_context(engine: RecursiveCompressionEngine) -> None:
    """Its last stretch too: when the memory was full before the context had ended, those needles were lost.

    Blocks of 512, since a block's share of places must hold what the question is like and what follows it.
    """
    settings: dict[str, Any] = {"compression_mode": "accumulate", "selector_type": "exact", "block_size": 512}
    assert right(engine, 2048, 20, compression_ratio=0.25, **settings) >= 0.9
