"""Turn pydantic's validation errors into messages: path to the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.common.import_path import nearest
from harness.config.yaml_source import dotted, show

Path = tuple[int | str, ...]
MAX_ERRORS = 200


def mistakes_of(error: ValidationError, model: type[BaseModel], raw: dict[str, Any]) -> list[str]:
    """Return one line per mistake in `raw`, the validated data, up to the first `MAX_ERRORS` mistakes."""
    return [_line(details, model, raw) for details in error.errors()[:MAX_ERRORS]]


def reason_of(details: ErrorDetails) -> str:
    """Describe a wrong key in a file written by a program, which has no field description to quote."""
    if details["type"] == "missing":
        return "this key is missing"
    if details["type"] == "extra_forbidden":
        return "this key is unknown"
    reason = details["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    return f"{show(details['input'])} is not allowed; {reason}"


def _line(details: ErrorDetails, model: type[BaseModel], raw: dict[str, Any]) -> str:
    path = _written(details["loc"], raw)
    owner, allowed = _declared(details["loc"], model)
    kind = details["type"]
    if kind == "extra_forbidden":
        known = list(owner.model_fields)
        return f"{dotted(path)}: this key is unknown; {nearest(str(path[-1]), known)}known keys are {', '.join(known)}"
    if kind == "missing":
        return f"{dotted(path)}: this key is missing; it must be {allowed}"
    if kind == "value_error":
        reason = str(details["ctx"]["error"]) if "ctx" in details else details["msg"]
        if not path:  # the reason names the conflicting keys
            return reason
        return f"{dotted(path)}: {show(_value(path, raw, details))} is not allowed; {reason}"
    return f"{dotted(path)}: {show(_value(path, raw, details))} is not allowed; it must be {allowed}"


def _written(location: Path, raw: object) -> Path:
    """Return the part of a location that exists in the file.

    A single value given for an axis has no index in the file.
    """
    path: list[int | str] = []
    for step in location:
        if isinstance(raw, dict) and isinstance(step, str):
            raw = raw.get(step)
        elif isinstance(raw, list) and isinstance(step, int):
            raw = raw[step]
        else:
            break
        path.append(step)
    return tuple(path) if path else location


def _value(path: Path, raw: Any, details: ErrorDetails) -> object:
    for step in path:
        try:
            raw = raw[step]
        except (KeyError, IndexError, TypeError):
            return details["input"]
    return raw


def _declared(location: Path, model: type[BaseModel]) -> tuple[type[BaseModel], str]:
    """Return the model that contains a location, and what its nearest declared field allows."""
    allowed = "a mapping"
    for step in location:
        if isinstance(step, str) and step in model.model_fields:
            field = model.model_fields[step]
            allowed = field.description or allowed
            model = next(_models(field.annotation), model)
    return model, allowed


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models inside a type such as `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
