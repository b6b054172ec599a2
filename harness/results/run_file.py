"""Read `run.json`, written once per run: machine, versions, configuration, and what each backend's class declares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness.config.errors import reason_of
from harness.config.yaml_source import dotted
from harness.results.machine import Machine

NAME = "run.json"


class RunFileError(ValueError):
    """A `run.json` that is missing, unreadable or malformed; the message says which file and why."""


class _Part(BaseModel):
    # A later version may write keys that this one does not know.
    model_config = ConfigDict(frozen=True, extra="ignore")


class MachineCeilings(_Part):
    """Measured limits of the machine: FLOP/s by dtype, and bytes per second of a copy."""

    flops_per_s: dict[str, float] = Field(default_factory=dict)
    copy_bytes_per_s: float | None = None


_Said = Annotated[str, BeforeValidator(lambda value: value or "")]


class ClassFacts(_Part):
    """What an attention class declares about itself; undeclared fields are empty, and `exact` is then False."""

    paper: _Said = ""
    exact: Annotated[bool, BeforeValidator(bool)] = False
    approximates: _Said = ""
    claimed_time: _Said = ""
    causality: _Said = ""
    claimed_components: dict[str, tuple[float, float]] = Field(default_factory=dict)  # share of the time, exponent


class RunFacts(_Part):
    """The contents of `run.json`; `finished` is None while a run is going on or after an interruption."""

    run: str
    started: str = ""
    finished: str | None = None
    command: str = ""
    commit: str = ""
    dirty: bool = False
    machine: Machine
    versions: dict[str, str] = Field(default_factory=dict)
    ceilings: MachineCeilings = Field(default_factory=MachineCeilings)
    config: dict[str, Any] = Field(default_factory=dict)
    class_facts: dict[str, ClassFacts] = Field(default_factory=dict)


def read_facts(folder: Path) -> RunFacts:
    """Read the facts of the run in `folder`. Raises RunFileError, naming the file and its invalid keys."""
    path = folder / NAME
    if not folder.is_dir():
        raise RunFileError(f"{folder}: there is no such folder; give one written by a sweep")
    try:
        return RunFacts.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise RunFileError(f"{path}: there is no such file; give a folder written by a sweep") from error
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        faults = [f"{dotted(fault['loc']) or 'top level'}: {reason_of(fault)}" for fault in error.errors()]
        raise RunFileError(f"{path}: {'; '.join(faults)}") from error
    except (ValueError, RecursionError) as error:
        raise RunFileError(f"{path}: is not valid JSON ({error}); give a folder written by a sweep") from error
