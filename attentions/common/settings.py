"""Checks of a backend's settings against the types its constructor declares, before its own code runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeGuard

LARGEST_SIZE = 2**31 - 1


class Shape(TypedDict, total=False):
    """The settings that every attention takes beside `heads` and `head_dim`; `attentions.base` gives their meaning."""

    kv_heads: int | None
    value_dim: int | None
    causal: bool
    scale: float | None
    max_len: int | None
    seed: int


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError with the setting's name, its value and what is allowed, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether this is an integer of at most 64 bits; bools are not."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def require_size(name: str, value: object, least: int) -> None:
    """Raise ValueError unless `value` is an integer from `least` to `LARGEST_SIZE`."""
    fits = is_integer(value) and least <= value <= LARGEST_SIZE
    require(fits, name, value, f"an integer from {least} to {LARGEST_SIZE}")


def python_scalar(value: Any) -> Any:
    """Convert a numpy scalar to a Python number or bool; return anything else unchanged."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


def checked_size(least: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a method whose first argument is a size: raises ValueError unless it is an integer >= `least`."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(method)
        name = list(signature.parameters)[1]

        @functools.wraps(method)
        def run(*positional: Any, **named: Any) -> Any:
            given = signature.bind(*positional, **named)
            given.arguments[name] = python_scalar(given.arguments[name])
            require_size(name, given.arguments[name], least)
            return method(*given.args, **given.kwargs)

        return run

    return decorate


def checked_types(construct: Callable[..., None]) -> Callable[..., None]:
    """Decorates a constructor: raises ValueError for a keyword-only setting that does not match its annotation.

    A setting's own default is always allowed, and numpy scalars count as Python scalars. Annotations other than those
    in `TYPES`, alone or as `... | None`, are not checked.
    """
    parameters = [x for x in inspect.signature(construct).parameters.values() if x.kind is x.KEYWORD_ONLY]
    declared = {x.name: text for x in parameters if (text := _text(x.annotation)).removesuffix(" | None") in TYPES}
    defaults = {x.name: x.default for x in parameters}

    @functools.wraps(construct)
    def run(self: Any, *positional: Any, **settings: Any) -> None:
        positional = tuple(map(python_scalar, positional))
        settings = {name: python_scalar(value) for name, value in settings.items()}
        for name, annotation in declared.items():
            if name in settings and settings[name] is not defaults[name]:
                _require_type(name, settings[name], annotation)
        construct(self, *positional, **settings)

    return run


def _require_type(name: str, value: object, annotation: str) -> None:
    base = annotation.removesuffix(" | None")
    fits, allowed = TYPES[base]
    none = base != annotation
    require((none and value is None) or fits(value), name, value, f"None or {allowed}" if none else allowed)


def _text(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a number; bools are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_integers(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(is_integer(x) for x in value)


TYPES: dict[str, tuple[Callable[[object], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (is_integer, "an integer of at most 64 bits"),
    "float": (is_number, "a number"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "Sequence[int]": (_are_integers, "a list of integers"),
}
