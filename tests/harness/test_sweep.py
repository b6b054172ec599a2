"""The command, end to end: real children, real faults, real kills."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from harness.results.rows_file import ROWS, Journal, read_rows
from harness.sweep import main
from tests import preloaded
from tests.harness.cases import a_row

if TYPE_CHECKING:
    from harness.common.rows import Row

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "backends": ["tests.harness.backends:Right"],
    "lengths": [64],
    "batch": 1,
    "heads": 2,
    "head_dim": 8,
    "causal": True,
    "subject": "attention",
    "level": "kernel",
    "mode": "forward",
    "inputs": "gaussian",
    "dtype": "float32",
    "device": "cpu",
    "threads": 1,
    "rounds": 1,
    "budget": {"case_s": 30, "memory_gb": 2, "total_s": 300},
    "seed": 0,
    "executor": "local",
}


def backends(*names: str) -> list[dict[str, str]]:
    return [{"name": f"tests.harness.backends:{name}", "label": name} for name in names]


def start(folder: Path, *arguments: str, **config: Any) -> preloaded.Process:
    """A sweep of its own session, so that signals to it reach nobody else."""
    conf = folder.parent / "conf.yml"
    conf.write_text(yaml.safe_dump(BASE | config))
    return preloaded.start("-m", "harness.sweep", *(arguments or (str(conf), "--out", str(folder))), cwd=ROOT)


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def sweep(folder: Path, *arguments: str, **config: Any) -> Done:
    """The command in this process, which has imported already what takes a command seconds."""
    conf = folder.parent / "conf.yml"
    conf.write_text(yaml.safe_dump(BASE | config))
    return command(arguments or (str(conf), "--out", str(folder)))


def command(arguments: Sequence[str]) -> Done:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as end:  # of argparse
            status = int(str(end.code))
    return Done(status, out.getvalue(), err.getvalue())


def wait_until(condition: Callable[[], bool], seconds: float = 200.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def family(process: preloaded.Process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def by_label(folder: Path) -> dict[str, Row]:
    return {row.label: row for row in read_rows(folder)}


def test_each_fault_gets_one_row_with_status_and_reason_and_the_sweep_goes_on(folder: Path) -> None:
    """Also, at its end, an expectation that is not met."""
    faults = {
        "Right": ("ok", ""),
        "Inexact": ("ok", ""),
        "AddsOneHundredth": ("wrong", "differs from its own definition"),
        "Cannot": ("unsupported", "it only runs on Sundays"),
        "Raising": ("crash", "ArithmeticError: two and two made <b>five</b>"),
        "KillingItself": ("crash", "killed by SIGSEGV; its last output: these were its last words"),
        "ExitingQuietly": ("crash", "exited with code 0 without an answer"),
        "WritingGarbage": ("crash", "an invalid answer"),
        "PrintingGarbage": ("ok", ""),
        "Hungry": ("oom", "allocate"),
        "Hanging": ("timeout", "no answer within 20 s"),
    }
    budget = {"case_s": 20, "memory_gb": 2, "total_s": 300}
    expect = {"Right": {"error": 0.1}, "Inexact": {"error": 0.1}}
    done = sweep(folder, backends=backends(*faults), lengths=[160], budget=budget, expect=expect)
    assert done.returncode == 1, done.stderr
    failures = [line for line in done.stderr.splitlines() if line.startswith("expectation failed")]
    assert [("Inexact" in line, "0.5" in line) for line in failures] == [(True, True)]
    rows = by_label(folder)
    assert {label: row.status for label, row in rows.items()} == {label: fault[0] for label, fault in faults.items()}
    for label, (_, reason) in faults.items():
        assert reason in rows[label].reason
    assert {label for label, row in rows.items() if row.time_s is not None} == {"Right", "Inexact", "PrintingGarbage"}
    assert done.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert (folder / "report.md").exists()
    assert {path.name for path in folder.iterdir()} == {ROWS, "run.json", "conf.yml", "report.html", "report.md"}
    facts = json.loads((folder / "run.json").read_text())
    assert facts["finished"]
    assert facts["ceilings"]["flops_per_s"]["float32"] > 1e8
    assert facts["class_facts"]["Right"]["claimed_time"] == "n^2"
    assert {row.run for row in rows.values()} == {facts["run"]}


def test_killing_the_parent_leaves_no_child_and_resuming_neither_loses_nor_repeats(folder: Path) -> None:
    lengths = [64, 65]
    process = start(folder, backends=backends("Right", "Slow"), lengths=lengths, rounds=2)
    wait_until(lambda: (folder / ROWS).exists() and len(read_rows(folder)) >= 2)
    children = family(process)
    process.kill()
    process.communicate()
    for child in children:
        wait_until(lambda child=child: gone(child))
    before = read_rows(folder)
    with (folder / ROWS).open("a") as file:
        file.write('{"schema": 1, "run": "to')
    again = start(folder, "--resume", str(folder))
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    rows = read_rows(folder)
    assert rows[: len(before)] == before
    cells = [(row.label, row.n, row.round) for row in rows]
    assert sorted(cells) == sorted((label, n, r) for label in ("Right", "Slow") for n in lengths for r in (0, 1))
    assert len({row.run for row in rows}) == 1
    assert "is truncated and is skipped" in err
    command = f"python -m harness.sweep {folder.parent / 'conf.yml'}"  # not the one that resumed
    assert json.loads((folder / "run.json").read_text())["command"] == command


@pytest.mark.parametrize("there", [(ROWS,), (ROWS, "conf.yml", "cache")])
def test_a_sweep_killed_before_its_first_case_can_be_resumed(folder: Path, there: tuple[str, ...]) -> None:
    process = start(folder)
    wait_until(lambda: all((folder / name).exists() for name in there))
    process.kill()
    process.communicate()
    assert not (folder / "run.json").exists()
    conf = [] if (folder / "conf.yml").exists() else [str(folder.parent / "conf.yml")]
    done = sweep(folder, *conf, "--resume", str(folder))
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(folder)
    assert row.status == "ok"
    assert json.loads((folder / "run.json").read_text())["run"] == row.run


def listens(process: preloaded.Process) -> bool:
    """Whether it blocks or handles SIGTERM, as Python by itself does not."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk", "SigCgt"))]
    return any(mask & 1 << (signal.SIGTERM - 1) for mask in masks)


def stands(path: Path) -> bool:
    return path.exists()


def finished(folder: Path) -> bool:
    return (folder / "run.json").exists() and bool(json.loads((folder / "run.json").read_text())["finished"])


MANY = {"backends": backends("Right", "Slow"), "lengths": [64, 65, 66, 67, 68], "rounds": 9}
MOMENTS: dict[str, tuple[Callable[[preloaded.Process, Path], bool], dict[str, Any], range]] = {
    "while it starts": (lambda process, folder: listens(process), MANY, range(1)),
    "before its first case": (lambda process, folder: stands(folder / "run.json"), MANY, range(90)),
    "between its cases": (lambda process, folder: len(read_rows(folder)) >= 2, MANY, range(2, 90)),
    "while it reports": (lambda process, folder: finished(folder), {}, range(1, 2)),
}


@pytest.mark.parametrize(("number", "send", "times"), [(signal.SIGINT, os.killpg, 1), (signal.SIGTERM, os.kill, 2)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_sweep_keeps_and_reports_what_it_has(
    folder: Path, moment: str, number: int, send: Callable[[int, int], None], times: int
) -> None:
    """Whether the signal comes to it alone or to its group, once or twice."""
    reached, config, kept = MOMENTS[moment]
    process = start(folder, **config)
    wait_until(lambda: reached(process, folder))
    children = family(process)
    for _ in range(times):
        send(process.pid, number)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "Error" not in err
    assert len(read_rows(folder)) in kept
    if read_rows(folder):
        assert out.splitlines()[-1] == f"report: {folder / 'report.html'}"
        assert (folder / "report.html").exists()
    assert not (folder / "cache").exists()
    assert all(gone(child) for child in children)
    if moment == "between its cases":
        assert "everything measured so far is kept" in err


def test_a_sweep_that_nobody_listens_to_any_more_reports_all_the_same(folder: Path) -> None:
    """As with `| tee log`, which Ctrl-C ends first."""
    conf = folder.parent / "conf.yml"
    conf.write_text(yaml.safe_dump(BASE | MANY))
    command = [sys.executable, "-m", "harness.sweep", str(conf), "--out", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: len(read_rows(folder)) >= 1)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 130
    assert (folder / "report.html").exists()


def test_a_dry_run_tells_the_plan_and_writes_nothing(folder: Path) -> None:
    conf = folder.parent / "conf.yml"
    done = sweep(folder, str(conf), "--dry-run", "--out", str(folder), "--set", "lengths=[64, 128]")
    assert done.returncode == 0, done.stderr
    assert "n = 64, 128; rounds: 1" in done.stdout
    assert "2 cases; nothing was measured" in done.stdout
    assert list(folder.parent.iterdir()) == [conf]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{conf}", "--set", "lengths=0"], "lengths"),
        (["{conf}", "--set", "colour=red"], "colour"),
        (["{conf}", "--set", "backends=[flsh]"], "flash"),
        (["{conf}", "--out", "{conf}/below"], "is not a folder"),
        (["{conf}", "--out", "{full}"], "--resume"),
        (["{conf}", "--out", ""], "out: '' is not allowed"),
        (["--resume", "{full}"], "before it recorded its configuration; give a configuration"),
        (["--resume", "{empty}"], "holds no run"),
        (["{empty}/nothing.yml"], "nothing.yml"),
        ([], "give a configuration"),
        (["{conf}", "--out", "a", "--resume", "b"], "cannot be combined"),
    ],
)
def test_what_cannot_be_used_is_one_message_and_exit_status_two(
    folder: Path, arguments: list[str], reason: str
) -> None:
    places = {"conf": folder.parent / "conf.yml", "empty": folder.parent / "empty", "full": folder.parent / "full"}
    for place in ("empty", "full"):
        places[place].mkdir()
    (places["full"] / ROWS).write_text("")
    places["conf"].write_text(yaml.safe_dump(BASE))
    done = command([argument.format(**places) for argument in arguments])
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in folder.parent.iterdir()} == {"conf.yml", "empty", "full"}
    assert [path.name for place in ("empty", "full") for path in places[place].iterdir()] == [ROWS]


def test_rows_of_another_version_stop_a_resume_and_stay(folder: Path) -> None:
    folder.mkdir()
    journal = Journal(folder)
    journal.append(a_row())
    journal.close()
    text = (folder / ROWS).read_text().replace('"schema":1', '"schema":2')
    (folder / ROWS).write_text(text)
    done = sweep(folder, str(folder.parent / "conf.yml"), "--resume", str(folder))
    assert done.returncode == 2
    assert "has schema 2; this version reads only schema 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / ROWS).read_text() == text


LIMITED = """
import resource, sys
if __name__ == "__main__":
    from harness.sweep import main
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("lengths", "kept", "message"),
    [
        ([4, 5, 6, 7, 8, 9, 10, 11], range(1, 8), "rows.jsonl cannot be written: File too large"),
        ([64, 65], range(1), "cache cannot be written: .*File too large.*; free some space and continue with --resume"),
    ],
    ids=["rows", "inputs"],
)
def test_a_full_disk_is_one_message_and_keeps_the_rows(
    folder: Path, lengths: list[int], kept: range, message: str
) -> None:
    conf = folder.parent / "conf.yml"
    conf.write_text(yaml.safe_dump(BASE | {"lengths": lengths}))
    done = preloaded.run("-c", LIMITED, str(conf), "--out", str(folder), cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    rows = read_rows(folder)
    assert len(rows) in kept
    assert {row.status for row in rows} <= {"ok"}
    assert sweep(folder, "--resume", str(folder)).returncode == 0
    assert sorted(row.n for row in read_rows(folder)) == lengths
