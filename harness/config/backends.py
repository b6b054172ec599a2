"""Expand the entries of `backends` into series: one class with fixed settings and a unique label."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from attentions import Attention, resolve
from harness.common.import_path import import_path, is_path, nearest
from harness.config.yaml_source import show

if TYPE_CHECKING:
    from harness.config.grid import Backend


@dataclass(frozen=True)
class LabelledBackend:
    """One backend with fixed settings. `path` is its location in the configuration."""

    backend: str
    label: str
    settings: dict[str, Any]
    control: bool
    path: str


def series_of(entries: Sequence[Backend], path: str) -> list[LabelledBackend]:
    """Expand a list of entries into series; a list among the settings is an axis. `path` is the path of the list."""
    return [
        LabelledBackend(entry.name, label_of(entry, settings), settings, entry.control, f"{path}.{index}")
        for index, entry in enumerate(entries)
        for settings in _combinations(entry.settings)
    ]


def label_of(entry: Backend, settings: dict[str, Any]) -> str:
    """Return the entry's label plus the settings that vary; without a label, the class name plus all given settings."""
    varying = [name for name, value in entry.settings.items() if isinstance(value, list) and len(value) > 1]
    shown = settings if entry.label is None else varying
    base = entry.label or entry.name.rpartition(":")[2]
    return " ".join([base, *(f"{name}={show(settings[name]).strip(chr(39))}" for name in shown)])


def entry_mistakes(entry: Backend, path: str) -> list[str]:
    """Return what is wrong with an entry's class and its settings, each with the path to its key."""
    try:
        backend = class_of(entry.name)
    except ValueError as error:
        return [f"{path}: {error}"]
    known, mistakes = settings_of(backend), []
    for name, value in entry.settings.items():
        if name in inspect.signature(Attention).parameters and name not in known:
            mistakes.append(f"{path}.{name}: this is not a backend setting; a key of the grid decides it")
        elif name not in known:
            hint = nearest(name, known)
            mistakes.append(f"{path}.{name}: this setting is unknown; {hint}{entry.name} has {', '.join(known)}")
        elif not _plain(value) or value == []:
            mistakes.append(
                f"{path}.{name}: {show(value)} is not allowed; it must be plain finite data without an empty axis"
            )
        elif wanted := _other_type(backend, name, value):
            mistakes.append(f"{path}.{name}: {show(value)} is not allowed; it must be {wanted}, or a list of these")
    return mistakes


def class_of(name: str) -> type[Attention]:
    """Return the class of a backend. Raises ValueError if there is none or its module cannot be imported."""
    if is_path(name):
        try:
            import_path(name)
        except ValueError as error:
            raise ValueError(f"backend {error}") from error
    return resolve(name)


def settings_of(backend: type[Attention]) -> list[str]:
    """Return the names of a class's own settings, including inherited ones and `scale`."""
    names: list[str] = []
    for base in backend.__mro__:
        if base is Attention:
            break
        names += [name for name, parameter in _parameters(base).items() if parameter.kind is parameter.KEYWORD_ONLY]
    shape = set(inspect.signature(Attention).parameters) - {"scale"}
    return [name for name in dict.fromkeys([*names, "scale"]) if name not in shape]


def _other_type(backend: type[Attention], name: str, value: object) -> str:
    """Return the declared type of a setting if any given value has another type, otherwise ""."""
    init = next(vars(base)["__init__"] for base in backend.__mro__ if name in _parameters(base))
    try:
        wanted = get_type_hints(init)[name]
        given = [json.dumps(one) for one in (value if isinstance(value, list) else [value])]
        adapter = TypeAdapter(wanted)
    except (NameError, KeyError, PydanticSchemaGenerationError):  # a class outside the project may declare anything
        return ""
    try:
        for one in given:
            adapter.validate_json(one, strict=True)
    except ValidationError:
        return inspect.formatannotation(wanted).replace(" | ", " or ").replace("None", "null")
    return ""


def _parameters(base: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}


def label_clashes(series: Sequence[LabelledBackend]) -> list[str]:
    """Report labels that are used for two different series."""
    owners: dict[str, LabelledBackend] = {}
    mistakes = []
    for one in series:
        owner = owners.setdefault(one.label, one)
        if (owner.backend, owner.settings, owner.control) != (one.backend, one.settings, one.control):
            mistakes.append(
                f"{one.path}.label: {show(one.label)} is not allowed; {owner.path} already uses it, "
                "and a label must name a single series"
            )
    return mistakes


def _combinations(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each combination of one value from every list; a list inside a list counts as one value."""
    axes = [value if isinstance(value, list) else [value] for value in settings.values()]
    for values in itertools.product(*axes):
        yield dict(zip(settings, values, strict=True))


def _plain(value: object) -> bool:
    """Return whether a value can be represented in JSON."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))
