"""What a backend's settings are checked for before its own code sees them: the kind that the constructor declares."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError that names a setting, its value and what is allowed, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether this is an integer, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def of_declared_kinds(construct: Callable[..., None]) -> Callable[..., None]:
    """A constructor that raises ValueError for a setting of another kind than its annotation says.

    Annotations that are not among `KINDS`, alone or as `... | None`, are left to the constructor.
    """
    parameters = inspect.signature(construct).parameters.values()
    kinds = {x.name: _text(x.annotation) for x in parameters if x.kind is x.KEYWORD_ONLY}
    declared = {name: kind for name, kind in kinds.items() if kind.removesuffix(" | None") in KINDS}

    @functools.wraps(construct)
    def run(self: Any, *positional: Any, **settings: Any) -> None:
        for name, kind in declared.items():
            if name in settings:
                _require_kind(name, settings[name], kind)
        construct(self, *positional, **settings)

    return run


def _require_kind(name: str, value: object, kind: str) -> None:
    base = kind.removesuffix(" | None")
    fits, allowed = KINDS[base]
    none = base != kind
    require((none and value is None) or fits(value), name, value, f"None or {allowed}" if none else allowed)


def _text(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_integers(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(is_integer, value))


KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (is_integer, "an integer"),
    "float": (_is_number, "a number"),
    "str": (lambda value: isinstance(value, str), "a text"),
    "Sequence[int]": (_are_integers, "a list of integers"),
}
