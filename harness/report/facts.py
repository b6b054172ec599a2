"""What stands once in `run.json`: machine, versions, configuration, and the class facts of every label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness.config_errors import reason_of


class _Part(BaseModel):
    # A later version may write more than this one prints.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Machine(_Part):
    """Where the rows were measured."""

    name: str
    cpu: str = ""
    cores: int = 0
    memory_bytes: float = 0
    gpu: str = ""
    os: str = ""


class Ceilings(_Part):
    """Measured limits of the machine: FLOP/s by dtype, and bytes per second of a copy."""

    flops_per_s: dict[str, float] = Field(default_factory=dict)
    copy_bytes_per_s: float | None = None


_Said = Annotated[str, BeforeValidator(lambda value: value or "")]


class ClassFacts(_Part):
    """What an attention's class says of itself; what it does not say is empty, and then it is not exact."""

    paper: _Said = ""
    exact: Annotated[bool, BeforeValidator(bool)] = False
    approximates: _Said = ""
    claimed_time: _Said = ""
    causality: _Said = ""
    claimed_components: dict[str, tuple[float, float]] = Field(default_factory=dict)  # share of the time, exponent


class RunFacts(_Part):
    """The whole of `run.json`; `finished` is None while a run goes on or after it was broken off."""

    run: str
    started: str
    finished: str | None = None
    command: str = ""
    commit: str = ""
    dirty: bool = False
    machine: Machine
    versions: dict[str, str] = Field(default_factory=dict)
    ceilings: Ceilings = Field(default_factory=Ceilings)
    config: dict[str, Any] = Field(default_factory=dict)
    class_facts: dict[str, ClassFacts] = Field(default_factory=dict)


def read_facts(folder: Path) -> RunFacts:
    """The facts of the run in `folder`.

    Raises ValueError that names the file and the fields where it is missing or not what it should be.
    """
    path = folder / "run.json"
    try:
        return RunFacts.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); a report needs rows.jsonl and run.json"
        ) from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'text'}: {reason_of(fault)}" for fault in error.errors()]
        raise ValueError(f"{path}: {'; '.join(faults)}") from error
