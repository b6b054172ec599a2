"""The folder of one run: rows, `run.json`, resolved configuration, report, and a cache that exists during the run."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.atomic_write import write_whole
from harness.common.text import LONGEST_PATH, shortened
from harness.config.yaml_source import dump
from harness.results.rows_file import ROWS

if TYPE_CHECKING:
    from harness.config.model import Config

DEFAULT_PARENT = Path("reports/runs")
CACHE = "cache"


class FolderError(ValueError):
    """A folder that cannot hold a run; the message says which one and why."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and its facts: the contents of an earlier `run.json`, or only the name for a new run."""

    path: Path
    facts: dict[str, Any]

    @property
    def config(self) -> Path:
        """Path of the resolved configuration."""
        return self.path / "conf.yml"

    @property
    def cache(self) -> Path:
        """Folder of inputs, exact rows and fingerprints; exists only during the run."""
        return self.path / CACHE

    def make(self) -> None:
        """Create the folder. Raises FolderError on failure."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"out: {self.path} cannot be created: {error.strerror}") from error

    def clear_cache(self) -> None:
        """Remove the shared files. Those of a killed run are not reused, because the source may have changed."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Write `run.json` atomically."""
        write_whole(self.path / "run.json", json.dumps(facts, indent=1) + "\n")

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration, so that it can be run again."""
        data = config.model_dump(mode="json")
        data["also"] = [{key: value for key, value in grid.items() if value != data[key]} for grid in data["also"]]
        write_whole(self.config, dump(data))


def new_run(wanted: str | None) -> RunFolder:
    """Return the folder for a new run: the requested path, or a new one named by the time, under `reports/runs`.

    Nothing is written yet. Raises FolderError if the folder cannot be created or written, or already holds a run.
    """
    if wanted == "":
        raise FolderError("out: '' is not allowed; it must be the path of a folder")
    run = new_name()
    path = Path(wanted) if wanted is not None else DEFAULT_PARENT / run
    require_folder(path, "out")
    if (path / ROWS).exists():
        raise FolderError(f"out: {path} already holds a run; continue with --resume {path} or choose another folder")
    return RunFolder(path, {"run": run})


def old_run(wanted: str) -> RunFolder:
    """Return an existing run to resume. Raises FolderError if there is none or it cannot be read."""
    path = Path(wanted)
    if not os.path.isfile(path / ROWS):  # noqa: PTH113, Path.is_file raises for a name that is too long
        raise FolderError(f"--resume: {shortened(wanted, LONGEST_PATH)} holds no run: it has no {ROWS}")
    _require_writable(path, "--resume")
    return RunFolder(path, _facts_of(path / "run.json"))


def _facts_of(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # the run was killed before it was written
        return {}
    except OSError as error:
        raise FolderError(f"--resume: {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FolderError(f"--resume: {path} cannot be read: {error}") from error
    if not (isinstance(facts, dict) and isinstance(facts.get("machine", {}), dict)):
        raise FolderError(f"--resume: {path} cannot be read: it does not hold the facts of a run")
    return facts


def require_folder(path: Path, argument: str) -> None:
    """Raise FolderError, naming the argument, unless `path` is a writable folder or can be created."""
    if "\0" in str(path):
        raise FolderError(f"{argument}: {str(path)!r} is not allowed; a path must not contain a null byte")
    _require_short_path(path, argument)  # check this before looking up its thousands of parents
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        what = "it is not a folder" if there == path else f"{there} is not a folder"
        raise FolderError(f"{argument}: {path} cannot be created: {what}")
    _require_short_names(path, there, argument)
    _require_writable(there, argument)


def new_name() -> str:
    """Return a new run name, made from the time and two random bytes."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def now() -> str:
    """Return the current time in the format of `run.json`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _require_short_path(path: Path, argument: str) -> None:
    """Raise FolderError for a path longer than the system allows."""
    whole = os.pathconf("/", "PC_PATH_MAX")
    if len(os.fsencode(path.absolute())) >= whole:
        raise FolderError(
            f"{argument}: '{str(path)[:60]}...' is not allowed; a path must have fewer than {whole} bytes"
        )


def _require_short_names(path: Path, there: Path, argument: str) -> None:
    """Raise FolderError for a name longer than the file system of `there`, the existing part of the path, allows."""
    longest = os.pathconf(there, "PC_NAME_MAX")
    if any(len(os.fsencode(name)) > longest for name in path.parts):
        raise FolderError(f"{argument}: '{str(path)[:60]}...' is not allowed; a name must have at most {longest} bytes")


def _require_writable(path: Path, argument: str) -> None:
    if not os.access(path, os.W_OK | os.X_OK):
        raise FolderError(f"{argument}: {path} cannot be written")
