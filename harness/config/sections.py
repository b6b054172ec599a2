"""Sections of conf.yml that belong to other packages: validated like the rest, and measured on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.common.import_path import import_path, nearest
from harness.config.yaml_source import show


@dataclass(frozen=True)
class ExtraSection:
    """The import paths that define a section.

    `settings` is a class with two class methods: `allowed()` describes what each key must be, and `refusals(given)`
    maps each rejected key to the reason. `grid` is a function that turns the section into the keys of conf.yml that
    measure it; it raises ValueError if the section cannot be measured.
    """

    settings: str
    grid: str


SECTIONS: Mapping[str, ExtraSection] = {
    "vq": ExtraSection("transformer_vq.nn.config_spec:TransformerConfig", "vq_training.language_model:grid")
}


def section_mistakes(name: str, given: object) -> list[str]:
    """Return what is wrong with a section, one line per key."""
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
            mistakes.append(f"{name}.{key}: this key is unknown; {nearest(str(key), allowed)}known keys are {known}")
    return mistakes


def grid_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of conf.yml that measure a section. Raises ValueError if it cannot be measured."""
    make = import_path(SECTIONS[name].grid)
    assert isinstance(make, Callable), "a grid is made by a function"
    return make(given)
