"""Load `conf.yml` into frozen, validated objects.

A key may be omitted if null or an empty value is allowed; every other key is required.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from harness.common.source_hash import PACKAGES, ROOT
from harness.config.errors import mistakes_of
from harness.config.grid import Backend, Checked, Grid, Line, Size
from harness.config.sections import SECTIONS, grid_of, section_mistakes
from harness.config.yaml_source import ConfigError, apply_overrides, read_mapping, show

__all__ = [
    "Backend",
    "Config",
    "ConfigError",
    "Expectation",
    "Grid",
    "SweepBudget",
    "checked_config",
    "default_configuration",
    "load_config",
    "packaged_configurations",
]

_NAME = re.compile(r"[\w/-]{1,100}")  # without a suffix
MOST_S = MOST_GB = 1e9  # thirty years; an exabyte
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


class SweepBudget(Checked):
    """Limits for one case and for the whole run. `memory_gb` is in units of 10**9 bytes."""

    case_s: Seconds = Field(description=f"a number of seconds above 0 and at most {MOST_S:.0f}")
    memory_gb: Gigabytes | None = Field(
        None, description=f"null (three quarters of free memory) or gigabytes above 0 and at most {MOST_GB:.0f}"
    )
    total_s: Seconds = Field(description=f"a number of seconds above 0 and at most {MOST_S:.0f}")

    def memory_bytes(self) -> int:
        """Return the bytes that a case may use; if `memory_gb` is None, three quarters of the memory available now."""
        return int(psutil.virtual_memory().available * 0.75 if self.memory_gb is None else self.memory_gb * 1e9)


class Expectation(Checked):
    """Expected limits for a backend: exponents over n as (lowest, highest), largest `error` and largest `leak`."""

    time_exponent: Bounds | None = Field(None, description="null or a list of two numbers, lowest and highest")
    memory_exponent: Bounds | None = Field(None, description="null or a list of two numbers, lowest and highest")
    error: Limit | None = Field(None, description="null or a number of at least 0")
    leak: Limit | None = Field(None, description="null or a number of at least 0")


class Config(Grid):
    """The whole configuration.

    `also` holds further grids; a key that one omits is taken from the main grid. `expect` maps backend names or labels
    to expected limits. `threads` None means all cores; `out` None means a new folder. `model_dump(mode="json")` returns
    plain data that validates to the same configuration.
    """

    also: tuple[Grid, ...] = Field((), description="a list of mappings with any of the grid's keys")
    text_file: Line | None = Field(None, description="null (Python's standard library) or the path of a file")
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = Field(
        description="auto, cpu, cuda, cuda:<index> or mps"
    )
    threads: Size | None = Field(None, description="null (all cores) or an integer of at least 1")
    budget: SweepBudget = Field(description="a mapping with case_s, memory_gb and total_s")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(description="an integer from 0 to 2**63 - 1")
    executor: Literal["local"] = Field(description="local")
    expect: dict[str, Expectation] = Field(
        default_factory=dict, description="a mapping of backend names or labels to expected limits"
    )
    out: Line | None = Field(None, description="null (a new folder in reports/runs) or the path of a folder")

    @model_validator(mode="before")
    @classmethod
    def _complete_also(cls, raw: Any) -> Any:
        if not (isinstance(raw, dict) and isinstance(also := raw.get("also"), list | tuple)):
            return raw
        main = {key: raw[key] for key in Grid.model_fields if key in raw}
        return {**raw, "also": tuple({**main, **grid} if isinstance(grid, dict) else grid for grid in also)}


def load_config(path: Path, overrides: Sequence[str] = (), section: str | None = None) -> Config:
    """Read `conf.yml`, apply the overrides (`a.b=value`) and validate everything.

    `path` may be a name of `packaged_configurations` instead of a file.
    An override of a grid key also applies to the grids in `also`. If `section` is given, the grid is replaced by the
    keys that measure that section. Raises ConfigError with one line per mistake.
    """
    found = _found(Path(path))
    return checked_config(read_mapping(found), overrides, section, source=str(found))


def checked_config(
    data: Mapping[str, Any],
    overrides: Sequence[str] = (),
    section: str | None = None,
    *,
    source: str = "the configuration",
) -> Config:
    """Like `load_config`, for the contents of `conf.yml` as a mapping. Messages call it `source`."""
    raw = apply_overrides(dict(data), overrides, tuple(Grid.model_fields))
    sections = {name: raw.pop(name) for name in SECTIONS if name in raw}
    mistakes = [line for name, given in sections.items() for line in section_mistakes(name, given)]
    if section is not None and not mistakes:
        raw |= _measuring(section, sections, source)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError([*mistakes_of(error, Config, raw), *mistakes], source) from error
    if mistakes:
        raise ConfigError(mistakes, source)
    return config


def default_configuration() -> Path:
    """Return the path of the commented `conf.yml` that ships with the project; an installed package has a copy."""
    copy = Path(__file__).with_name("conf.yml")
    return copy if copy.exists() else Path(__file__).parents[2] / "conf.yml"


def packaged_configurations() -> dict[str, Path]:
    """Map names to the configurations that ship with the project.

    They are `conf`, each file of the folder `conf` by its name without suffix, and as `package/name` each YAML file of
    a package that has the key `backends`.
    """
    default = default_configuration()
    found = {path.stem: path for path in (default, *sorted((default.parent / "conf").glob("*.yml")))}
    for package in sorted(PACKAGES):
        for path in sorted((ROOT / package).glob("*.yml")):
            if "backends" in read_mapping(path):
                found[f"{package}/{path.stem}"] = path
    return found


def _found(path: Path) -> Path:
    """Return the path of a file, or the packaged configuration of that name. Raises ConfigError for an unknown name."""
    if not _NAME.fullmatch(str(path)) or path.is_file():
        return path
    known = packaged_configurations()
    if str(path) not in known and not path.exists():
        raise ConfigError([f"there is no such file or packaged configuration; there are {', '.join(known)}"], str(path))
    return known.get(str(path), path)


def _measuring(section: str, sections: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the keys that measure a section. Raises ConfigError if it is missing or cannot be measured."""
    if section not in SECTIONS:
        raise ConfigError([f"--section: {show(section)} is not allowed; it must be {' or '.join(SECTIONS)}"])
    if not sections.get(section):
        raise ConfigError([f"--section: there is no section {section}"], source)
    try:
        return grid_of(section, sections[section])
    except ValueError as error:
        raise ConfigError([str(error)], source) from error
