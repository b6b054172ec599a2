"""What a backend's settings are checked for before its own code sees them: the kind that the constructor declares."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

LARGEST_SIZE = 2**31 - 1


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError that names a setting, its value and what is allowed, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether this is an integer of 64 bits, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def require_size(name: str, value: object, least: int) -> None:
    """Raise ValueError unless `value` is an integer from `least` up to what indices of 32 bits can count."""
    fits = is_integer(value) and least <= value <= LARGEST_SIZE
    require(fits, name, value, f"an integer from {least} to {LARGEST_SIZE}")


def plain(value: Any) -> Any:
    """A numpy scalar as Python's own number or truth value; anything else as it is."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


def of_size(method: Callable[..., Any], least: int) -> Callable[..., Any]:
    """A method whose one argument is a size of at least `least`, checked."""
    name = list(inspect.signature(method).parameters)[1]

    @functools.wraps(method)
    def run(self: Any, *positional: Any, **named: Any) -> Any:
        positional, named = tuple(map(plain, positional)), {key: plain(value) for key, value in named.items()}
        require_size(name, positional[0] if positional else named.get(name), least)
        return method(self, *positional, **named)

    return run


def of_declared_kinds(construct: Callable[..., None]) -> Callable[..., None]:
    """A constructor that raises ValueError for a setting of another kind than its annotation says.

    A setting's own default is always allowed, and numpy's scalars are taken as Python's. Annotations that are not among
    `KINDS`, alone or as `... | None`, are left to the constructor.
    """
    parameters = [x for x in inspect.signature(construct).parameters.values() if x.kind is x.KEYWORD_ONLY]
    declared = {x.name: kind for x in parameters if (kind := _text(x.annotation)).removesuffix(" | None") in KINDS}
    defaults = {x.name: x.default for x in parameters}

    @functools.wraps(construct)
    def run(self: Any, *positional: Any, **settings: Any) -> None:
        positional, settings = tuple(map(plain, positional)), {name: plain(x) for name, x in settings.items()}
        for name, kind in declared.items():
            if name in settings and settings[name] is not defaults[name]:
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


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a number, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_integers(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(is_integer(x) for x in value)


KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (is_integer, "an integer of 64 bits"),
    "float": (is_number, "a number"),
    "str": (lambda value: isinstance(value, str), "a text"),
    "Sequence[int]": (_are_integers, "a list of integers"),
}
