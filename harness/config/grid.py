"""The grid part of the configuration: backends and axes.

Each field's description says what is allowed and is used in error messages. A list is an axis of the grid; a single
value is an axis of length one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_serializer,
    model_validator,
)

from harness.common.import_path import is_path, nearest

SUBJECTS = ("attention", "accuracy")

MAX_SIZE = 2**40  # tokens, heads, etc.: far beyond any machine
MOST_ROUNDS = 1000

T = TypeVar("T")


class Checked(BaseModel):
    """A frozen model that rejects unknown keys, wrong types and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _as_axis(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _distinct(axis: tuple[T, ...]) -> tuple[T, ...]:
    repeated = [value for value, count in Counter(axis).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is repeated; each value may appear only once")
    return axis


def _countable(size: int) -> int:
    if size > MAX_SIZE:
        raise ValueError(f"it must be at most {MAX_SIZE}")
    return size


def _affordable(rounds: int) -> int:
    if rounds > MOST_ROUNDS:
        raise ValueError(f"it must be at most {MOST_ROUNDS}")
    return rounds


def _known_subject(name: str) -> str:
    if name in SUBJECTS or is_path(name):
        return name
    raise ValueError(f"{nearest(name, SUBJECTS)}it must be {', '.join(SUBJECTS)} or package.module:Class")


Axis = Annotated[tuple[T, ...], BeforeValidator(_as_axis), AfterValidator(_distinct), Field(min_length=1)]
Size = Annotated[int, Field(ge=1), AfterValidator(_countable)]
# No line separators and no control characters: paths cannot hold them and terminals interpret them.
Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]+$")]


class Backend(Checked):
    """An entry of `backends`: a name, or a mapping of `name`, `label`, `control` and the backend's settings.

    A list among the settings is an axis. A setting that is itself a list is written as a list inside a list.
    """

    name: Line = Field(description="a backend's name or package.module:Class")
    label: Line | None = Field(None, description="a line of text that names the series, or null")
    control: bool = Field(False, description="true or false")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the backend's constructor")

    @model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict):
            return value
        own = {key: value[key] for key in ("name", "label", "control") if key in value}
        return {**own, "settings": {key: given for key, given in value.items() if key not in own}}

    @model_serializer
    def _as_yaml(self) -> dict[str, Any]:
        return {"name": self.name, "label": self.label, "control": self.control, **self.settings}


@dataclass(frozen=True)
class HeadSizes:
    """Head counts and widths of one combination, with null replaced by its default."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


class Grid(Checked):
    """What is measured: every combination of one value from each axis, in `rounds` rounds."""

    subject: Axis[Annotated[Line, AfterValidator(_known_subject)]] = Field(
        description=f"{', '.join(SUBJECTS)} or package.module:Class, or a list of these"
    )
    backends: Annotated[tuple[Backend, ...], BeforeValidator(_as_axis), Field(min_length=1)] = Field(
        description="a list of names and of mappings {name: …, label: …, control: …, settings …}"
    )
    lengths: Axis[Size] = Field(description="an integer of at least 1, or a list of these")
    batch: Axis[Size] = Field(description="an integer of at least 1, or a list of these")
    heads: Axis[Size] = Field(description="an integer of at least 1, or a list of these")
    kv_heads: Axis[Size | None] = Field((None,), description="null (same as heads), a divisor of heads, or a list")
    head_dim: Axis[Size] = Field(description="an integer of at least 1, or a list of these")
    value_dim: Axis[Size | None] = Field(
        (None,), description="null (same as head_dim), an integer of at least 1, or a list of these"
    )
    causal: Axis[bool] = Field(description="true, false or a list of both")
    level: Axis[Literal["kernel", "layer"]] = Field(description="kernel, layer or a list of both")
    mode: Axis[Literal["forward", "train", "decode"]] = Field(description="forward, train, decode or a list of these")
    inputs: Axis[Line] = Field(
        description="gaussian, planted, text, a .safetensors file, package.module:function, or a list of these"
    )
    dtype: Axis[Literal["float64", "float32", "bfloat16", "float16"]] = Field(
        description="float64, float32, bfloat16, float16 or a list of these"
    )
    rounds: Annotated[Size, AfterValidator(_affordable)] = Field(description="an integer of at least 1")

    def head_sizes(self) -> list[HeadSizes]:
        """Return the distinct combinations of heads, kv_heads, head_dim and value_dim, valid or not."""
        axes = itertools.product(self.heads, self.kv_heads, self.head_dim, self.value_dim)
        return list(dict.fromkeys(HeadSizes(h, g or h, d, e or d) for h, g, d, e in axes))
