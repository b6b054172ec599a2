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
from harness.config_source import ConfigError, apply_overrides, read_mapping, show
from harness.sections import SECTIONS, grid_of, section_mistakes

__all__ = ["Backend", "Budget", "Config", "ConfigError", "Expectation", "Grid", "load_config"]

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


def load_config(path: Path, overrides: Sequence[str] = (), section: str | None = None) -> Config:
    """Read `conf.yml`, put the overrides (`a.b=value`) in place and check everything.

    An override of a grid key holds in the grids of `also` too. With a `section`, what measures that section takes the
    grid's place. Raises ConfigError, one message with a line for each mistake.
    """
    raw = apply_overrides(read_mapping(Path(path)), overrides, tuple(Grid.model_fields))
    sections = {name: raw.pop(name) for name in SECTIONS if name in raw}
    mistakes = [line for name, given in sections.items() for line in section_mistakes(name, given)]
    if section is not None and not mistakes:
        raw |= _measuring(section, sections, str(path))
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError([*mistakes_of(error, Config, raw), *mistakes], str(path)) from error
    if mistakes:
        raise ConfigError(mistakes, str(path))
    return config


def _measuring(section: str, sections: dict[str, Any], source: str) -> dict[str, Any]:
    """The keys that measure a section. Raises ConfigError for one that is not there, or cannot be measured."""
    if section not in SECTIONS:
        raise ConfigError([f"--section: {show(section)} is not allowed; it must be {' or '.join(SECTIONS)}"])
    if not sections.get(section):
        raise ConfigError([f"--section: there is no section {section}"], source)
    try:
        return grid_of(section, sections[section])
    except ValueError as error:
        raise ConfigError([str(error)], source) from error
