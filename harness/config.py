"""The configuration: `conf.yml` as frozen, checked objects.

A key may be left out where null or nothing is allowed; every other key must be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from harness.config_errors import mistakes_of
from harness.config_grid import Backend, Checked, Grid, Line, Size
from harness.config_source import ConfigError, apply_overrides, read_mapping

__all__ = ["FOREIGN_SECTIONS", "Backend", "Budget", "Config", "ConfigError", "Expectation", "Grid", "load_config"]

# Top-level sections of conf.yml that belong to other systems, which read them themselves.
FOREIGN_SECTIONS: tuple[str, ...] = ("vq",)

MOST_S = MOST_GB = 1e9  # thirty years, an exabyte
Seconds = Annotated[float, Field(gt=0, le=MOST_S)]
Gigabytes = Annotated[float, Field(gt=0, le=MOST_GB)]
Limit = Annotated[float, Field(ge=0)]


def _interval(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) == 2:
        return tuple(value)
    raise ValueError("it must be a list of two numbers, lowest and highest")


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lowest must not be above the highest")
    return bounds


Bounds = Annotated[tuple[float, float], BeforeValidator(_interval), AfterValidator(_ordered)]


class Budget(Checked):
    """Limits of a case and of the run. `memory_gb` is in 10**9 bytes."""

    case_s: Seconds = Field(description=f"a number of seconds above 0 and at most {MOST_S:.0f}")
    memory_gb: Gigabytes | None = Field(
        None, description=f"null (three quarters of what is free) or gigabytes above 0 and at most {MOST_GB:.0f}"
    )
    total_s: Seconds = Field(description=f"a number of seconds above 0 and at most {MOST_S:.0f}")

    def memory_bytes(self) -> int:
        """Bytes that a case may use; where `memory_gb` is None, three quarters of what is available now."""
        return int(psutil.virtual_memory().available * 0.75 if self.memory_gb is None else self.memory_gb * 1e9)


class Expectation(Checked):
    """What must hold for a backend: exponents over n as (lowest, highest), largest `error`, largest `leak`."""

    time_exponent: Bounds | None = Field(None, description="null or a list of two numbers, lowest and highest")
    memory_exponent: Bounds | None = Field(None, description="null or a list of two numbers, lowest and highest")
    error: Limit | None = Field(None, description="null or a number of at least 0")
    leak: Limit | None = Field(None, description="null or a number of at least 0")


class Config(Grid):
    """The whole configuration. `also` holds further grids, complete: what one leaves out is the main grid's.

    `expect` maps backend names or labels to what must hold. None in `threads`: all cores; in `out`: a new folder.
    `model_dump(mode="json")` gives plain data that validates to the same configuration.
    """

    also: tuple[Grid, ...] = Field((), description="a list of mappings with any of the grid's keys")
    text_file: Line | None = Field(None, description="null (Python's standard library) or the path of a file")
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = Field(
        description="auto, cpu, cuda, cuda:<index> or mps"
    )
    threads: Size | None = Field(None, description="null (all cores) or an integer of at least 1")
    budget: Budget = Field(description="a mapping with case_s, memory_gb and total_s")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(description="an integer from 0 to 2**63 - 1")
    executor: Literal["local"] = Field(description="local")
    expect: dict[str, Expectation] = Field(
        default_factory=dict, description="a mapping of backend names or labels to what must hold"
    )
    out: Line | None = Field(None, description="null (a new folder below reports/runs) or the path of a folder")

    @model_validator(mode="before")
    @classmethod
    def _complete_also(cls, raw: Any) -> Any:
        if not (isinstance(raw, dict) and isinstance(also := raw.get("also"), list | tuple)):
            return raw
        main = {key: raw[key] for key in Grid.model_fields if key in raw}
        return {**raw, "also": tuple({**main, **grid} if isinstance(grid, dict) else grid for grid in also)}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `conf.yml`, put the overrides (`a.b=value`) in place and check everything.

    An override of a grid key holds in the grids of `also` too. Raises ConfigError, one message with a line for
    each mistake.
    """
    raw = apply_overrides(read_mapping(Path(path)), overrides, tuple(Grid.model_fields))
    raw = {key: value for key, value in raw.items() if key not in FOREIGN_SECTIONS}
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(mistakes_of(error, Config, raw), str(path)) from error
