"""Runs phases one after another, with markers, logs, and an excerpt of the output of a failed phase."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.common.atomic_write import write_whole
from harness.common.source_hash import source_hash
from harness.measure.elapsed import Elapsed
from harness.results import machine
from harness.results.run_dir import now
from lsh_v2.common.files import InUseError, digest, locked
from lsh_v2.common.schemas import PhaseMarker, parse

if TYPE_CHECKING:
    from lsh_v2.pipeline.flags import Flag
    from lsh_v2.pipeline.phases import Layout, Phase

EXCERPT_LINES = 20
PROJECT = Path(__file__).parents[2]
SET_PDEATHSIG = 1  # prctl(2)


class PipelineError(ValueError):
    """The pipeline cannot run here; the message says why."""


@dataclass(frozen=True)
class PhaseRecord:
    """The outcome of a phase. `seconds` is the duration of the run that finished it."""

    name: str
    status: Literal["done", "already done", "failed"]
    seconds: float
    command: str
    log: str
    excerpt: str = ""


class PhaseFailed(RuntimeError):  # noqa: N818, it is the phase's failure
    """A phase failed; `records` are those of all phases so far, the failed one last."""

    def __init__(self, records: list[PhaseRecord]) -> None:
        self.records, last = records, records[-1]
        super().__init__(
            f"phase {last.name} failed; its full output is in {last.log}, and ends with:\n\n{last.excerpt}\n\n"
            "Once the cause is fixed, the same command continues with this phase; with --force it starts over."
        )


def run_phases(phases: Sequence[Phase], layout: Layout, *, force: bool = False) -> list[PhaseRecord]:
    """Run the phases without a valid marker, in order.

    Raises PhaseFailed, keeping the results of earlier phases, and PipelineError if another pipeline is using the same
    results or they cannot be written.
    """
    records: list[PhaseRecord] = []
    try:
        layout.results.mkdir(parents=True, exist_ok=True)
        with locked(layout.results, "pipeline"):
            for phase in phases:
                marker = layout.named(phase.name, ".ok")
                if force:
                    _remove((marker, *phase.makes))
            for phase in phases:
                records.append(_before(phase, layout) or _run(phase, layout))
                if records[-1].status == "failed":
                    raise PhaseFailed(records)
    except InUseError as error:
        raise PipelineError(str(error)) from error
    except OSError as error:
        raise PipelineError(
            f"{error.filename or layout.results} cannot be written: {error.strerror}; finished phases keep "
            "their markers"
        ) from error
    return records


def write_results(layout: Layout, records: Sequence[PhaseRecord], flags: Sequence[Flag]) -> Path:
    """Write the manifest atomically: phases, flags, machine, versions, and every artifact with its hash.

    Raises PipelineError if it cannot be written.
    """
    commit, dirty = machine.commit()
    results = {
        "mode": "quick" if layout.quick else "full",
        "written": now(),
        "phases": [asdict(record) for record in records],
        "flags": [asdict(flag) for flag in flags],
        "machine": machine.describe("").model_dump(),
        "versions": machine.versions(),
        "commit": commit,
        "dirty": dirty,
        "artifacts": {str(path.relative_to(layout.root)): digest(path) for path in artifacts(layout)},
    }
    try:
        layout.manifest.parent.mkdir(parents=True, exist_ok=True)
        write_whole(layout.manifest, json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise PipelineError(f"{error.filename or layout.manifest} cannot be written: {error.strerror}") from error
    return layout.manifest


def artifacts(layout: Layout) -> list[Path]:
    """Return the result files and what a trained model needs: its tokenizer and the newest checkpoint."""
    suffixes = {".json", ".jsonl", ".png", ".html", ".md", ".log", ".safetensors"}
    within = (layout.training / name for name in ("tokenizer", "component_report"))
    folders = {layout.results, layout.training, layout.benchmark, *within}
    found = {path for folder in folders for path in folder.glob("*") if path.suffix in suffixes}
    found |= set(max((layout.training / "checkpoints").glob("step-*"), default=layout.manifest).glob("*"))
    return sorted(path for path in found if path.is_file())


def excerpt(log: str) -> str:
    """Return the last traceback of a log, or its last lines if there is none; at most EXCERPT_LINES lines."""
    lines = log.rstrip().split("\n")
    begins = [place for place, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    return "\n".join(lines[begins[-1] if begins else 0 :][-EXCERPT_LINES:])


def _before(phase: Phase, layout: Layout) -> PhaseRecord | None:
    """Return the record of a phase that already finished with the same command, inputs, and results; otherwise None."""
    try:
        kept = parse(layout.named(phase.name, ".ok").read_bytes(), PhaseMarker)
    except (OSError, ValueError):
        return None
    for what, same in (("settings or sources", kept.of == _identity(phase)), ("results", kept.made == _made(phase))):
        if not same:
            print(f"phase {phase.name}: its {what} have changed since it finished; running it again", flush=True)
            return None
    print(f"phase {phase.name}: already done, in {kept.seconds:.0f} s", flush=True)
    return PhaseRecord(phase.name, "already done", kept.seconds, _shown(phase), str(layout.named(phase.name, ".log")))


def _run(phase: Phase, layout: Layout) -> PhaseRecord:
    print(f"phase {phase.name}: {_shown(phase)}", flush=True)
    log, elapsed = layout.named(phase.name, ".log"), Elapsed()
    status = _tee(phase.command, log)
    seconds = elapsed.seconds()
    if status:
        output = excerpt(log.read_text(encoding="utf-8", errors="replace"))
        return PhaseRecord(phase.name, "failed", seconds, _shown(phase), str(log), output)
    marker = layout.named(phase.name, ".ok")
    kept = {"of": _identity(phase), "made": _made(phase), "seconds": seconds, "finished": now()}
    write_whole(marker, json.dumps(kept) + "\n")
    return PhaseRecord(phase.name, "done", seconds, _shown(phase), str(log))


def _tee(command: Sequence[str], log: Path) -> int:
    """Run a command with its output on the screen and in a file; returns its exit status."""
    path = os.pathsep.join(p for p in (str(PROJECT), os.environ.get("PYTHONPATH")) if p)
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509, no threads here
        ) as process,
    ):
        assert process.stdout is not None, "stdout is piped"
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                print(f"  {line}", end="", flush=True)
        except BaseException:
            process.kill()
            raise
    if process.returncode < 0:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"killed by signal {signal.Signals(-process.returncode).name}\n")
    return process.returncode


def _die_with_parent() -> None:
    """Kill the phase when the pipeline is killed; otherwise the next run would write to the same files."""
    ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)


def _identity(phase: Phase) -> str:
    """Hash what determines a phase's result: its command, the files it reads, and the source it runs."""
    parts = [*phase.command[1:], *(digest(path) for path in phase.reads), *_sources(phase)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sources(phase: Phase) -> list[str]:
    """Hash the source of the module that a command runs and of the phase's modules; empty for other commands."""
    return [source_hash(phase.command[2], *phase.modules)] if phase.command[1] == "-m" else []


def _made(phase: Phase) -> dict[str, str]:
    """Return hashes of the phase's results, empty for missing ones."""
    return {path.name: digest(path) for path in phase.makes}


def _shown(phase: Phase) -> str:
    return " ".join(("python", *phase.command[1:]))


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
