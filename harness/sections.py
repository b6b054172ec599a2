"""Sections of conf.yml that belong to other systems: checked like the rest, and measured where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.config_source import show
from harness.names import import_path, nearest


@dataclass(frozen=True)
class Section:
    """What a section means, by import path.

    `settings` is a class with two class methods. `allowed()` says in words what each key must be, `refusals(given)` why
    which of some keys are not allowed. `grid` is a function that makes of the section the keys of conf.yml that measure
    it; it raises ValueError for what cannot be measured.
    """

    settings: str
    grid: str


SECTIONS: Mapping[str, Section] = {
    "vq": Section("transformer_vq.nn.config_spec:TransformerConfig", "vq_training.language_model:grid")
}


def section_mistakes(name: str, given: object) -> list[str]:
    """What is wrong with a section, a line for each key."""
    if given is None:
        return []
    if not isinstance(given, dict):
        return [f"{name}: {show(given)} is not allowed; it must be a mapping"]
    owner: Any = import_path(SECTIONS[name].settings)
    allowed: dict[str, str] = owner.allowed()
    mistakes = []
    for key, why in owner.refusals(given).items():
        if key in allowed and key not in given:
            mistakes.append(f"{name}.{key}: this key is missing; {why}")
        elif key in allowed:
            mistakes.append(f"{name}.{key}: {show(given[key])} is not allowed; {why}")
        else:
            known = ", ".join(allowed)
            mistakes.append(f"{name}.{key}: this key is unknown; {nearest(str(key), allowed)}there are {known}")
    return mistakes


def grid_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The keys of conf.yml that measure a section. Raises ValueError where it cannot be measured."""
    make = import_path(SECTIONS[name].grid)
    assert isinstance(make, Callable), "a grid is made by a function"
    return make(given)
