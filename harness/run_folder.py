"""The folder of one run: rows, `run.json`, the resolved configuration, shared files while it lasts, the report."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.config import Config
from harness.config_source import LONGEST_PATH, dump, shortened
from harness.journal import ROWS

DEFAULT_PARENT = Path("reports/runs")
CACHE = "cache"


class FolderError(ValueError):
    """A folder that cannot hold a run; the message says which and why."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and its facts: what `run.json` holds of an earlier start; in a new run only its name."""

    path: Path
    facts: dict[str, Any]

    @property
    def config(self) -> Path:
        """The configuration as resolved."""
        return self.path / "conf.yml"

    @property
    def cache(self) -> Path:
        """Inputs, exact rows and fingerprints; there while the run lasts."""
        return self.path / CACHE

    def make(self) -> None:
        """Make the folder. Raises FolderError where that cannot be done."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"out: {self.path} cannot be made: {error.strerror}") from error

    def clear_cache(self) -> None:
        """Remove shared files; those of a killed run are not trusted, as the source may have changed since."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Write `run.json`, whole or not at all."""
        _replace(self.path / "run.json", json.dumps(facts, indent=1) + "\n")

    def write_config(self, config: Config) -> None:
        """Write the configuration as resolved, so that it can be run again."""
        data = config.model_dump(mode="json")
        data["also"] = [{key: value for key, value in grid.items() if value != data[key]} for grid in data["also"]]
        _replace(self.config, dump(data))


def new_run(wanted: str | None) -> RunFolder:
    """Where a new run goes: the folder wanted, or a new one named for the time below `reports/runs`.

    Nothing is written yet. Raises FolderError where it could not be made or written, or holds a run already.
    """
    if wanted == "":
        raise FolderError("out: '' is not allowed; it must be the path of a folder")
    run = new_name()
    path = Path(wanted) if wanted is not None else DEFAULT_PARENT / run
    require_folder(path, "out")
    if (path / ROWS).exists():
        raise FolderError(f"out: {path} holds a run already; go on with --resume {path}, or choose another folder")
    return RunFolder(path, {"run": run})


def old_run(wanted: str) -> RunFolder:
    """A run to go on with. Raises FolderError where there is none, or none that can be read."""
    path = Path(wanted)
    if not os.path.isfile(path / ROWS):  # noqa: PTH113, Path.is_file raises for a name that is too long
        raise FolderError(f"--resume: {shortened(wanted, LONGEST_PATH)} holds no run; there is no {ROWS} in it")
    _require_writable(path, "--resume")
    return RunFolder(path, _facts_of(path / "run.json"))


def _facts_of(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # killed before it was written
        return {}
    except OSError as error:
        raise FolderError(f"--resume: {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FolderError(f"--resume: {path} cannot be read: {error}") from error
    if not (isinstance(facts, dict) and isinstance(facts.get("machine", {}), dict)):
        raise FolderError(f"--resume: {path} cannot be read: it does not hold the facts of a run")
    return facts


def require_folder(path: Path, argument: str) -> None:
    """Raise FolderError, naming the argument, unless `path` is a folder that can be written, or can be made."""
    if "\0" in str(path):
        raise FolderError(f"{argument}: {str(path)!r} is not allowed; a path has no zero byte")
    _require_short_path(path, argument)  # before its thousands of parents are looked for
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        what = "it is not a folder" if there == path else f"{there} is not a folder"
        raise FolderError(f"{argument}: {path} cannot be made: {what}")
    _require_short_names(path, there, argument)
    _require_writable(there, argument)


def new_name() -> str:
    """A name for a run, from the time and two random bytes."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def now() -> str:
    """The time as `run.json` has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _require_short_path(path: Path, argument: str) -> None:
    """Raise FolderError for a path that is longer than the system allows."""
    whole = os.pathconf("/", "PC_PATH_MAX")
    if len(os.fsencode(path.absolute())) >= whole:
        raise FolderError(f"{argument}: '{str(path)[:60]}...' is not allowed; a path has less than {whole} bytes")


def _require_short_names(path: Path, there: Path, argument: str) -> None:
    """Raise FolderError for a name that is longer than the file system of the path's existing part `there` allows."""
    longest = os.pathconf(there, "PC_NAME_MAX")
    if any(len(os.fsencode(name)) > longest for name in path.parts):
        raise FolderError(f"{argument}: '{str(path)[:60]}...' is not allowed; a name has at most {longest} bytes")


def _require_writable(path: Path, argument: str) -> None:
    if not os.access(path, os.W_OK | os.X_OK):
        raise FolderError(f"{argument}: {path} cannot be written")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
