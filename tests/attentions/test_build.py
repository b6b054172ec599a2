"""Names, paths and settings of backends, and what is said about wrong ones."""

from __future__ import annotations

import re
from typing import Any

import pytest

from attentions import BACKENDS, build, resolve, settings_of
from attentions.controls import RandomSupport


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_states_its_facts(name: str) -> None:
    backend = resolve(name)
    assert backend.paper.startswith("https://")
    assert re.fullmatch(r"n|n log n|n\^\d(\.\d+)?", backend.claimed_time)
    assert backend.causality in ("strict", "selection")


def test_path_names_a_class_outside_the_table() -> None:
    assert resolve("attentions.controls:RandomSupport") is RandomSupport


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flsh", "did you mean flash"),
        ("nothing like it", "available are vanilla"),
        ("..flash:Flash", "unknown backend '..flash:Flash'; available are vanilla"),
        ("attentions.nowhere:X", "cannot be imported: No module named 'attentions.nowhere'"),
        ("attentions.controls:Nothing", "has no attribute 'Nothing'"),
        ("collections:Counter", "not a subclass"),
    ],
)
def test_unknown_backend_is_a_clear_error(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windw": 3}, "did you mean window"),
        ({"window": 0}, "window=0 is not allowed: it must be an integer of at least 1"),
        ({"kv_heads": 3}, "kv_heads=3 is not allowed: it must be a divisor of heads=4"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"duplicates": "maybe"}, "duplicates='maybe'.*once or allow"),
        ({"bits": None}, "without max_len"),
    ],
)
def test_wrong_setting_is_a_clear_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("bit_sampling", **({"heads": 4, "head_dim": 16} | settings))


def test_settings_include_those_of_the_bases() -> None:
    assert {"heads", "head_dim", "causal", "tables", "window", "bits", "seed"} <= set(
        settings_of(resolve("bit_sampling"))
    )


def test_bits_may_come_from_max_len() -> None:
    attention = build("bit_sampling", heads=4, head_dim=16, bits=None, max_len=4096, bucket=256)
    assert attention.codes_count == 16
