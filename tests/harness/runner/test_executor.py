"""A child may do what it likes: the parent gets an outcome in words, and nothing is left behind."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.common.job import Answer, Job
from harness.runner import executor as executor_module
from harness.runner.executor import Executor, Limits, Outcome
from harness.runner.signals import Interruption
from tests.harness import jobs
from tests.harness.cases import a_case

LIMITS = Limits(time_s=60.0)


def run(executor: Executor, job: Job[Answer], limits: Limits = LIMITS) -> Outcome[Answer]:
    return executor.run(job, limits)


def wait_until(condition: Any, seconds: float = 200.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_an_answer_comes_back_as_it_was_given(executor: Executor) -> None:
    given = {"text": "ä \n <b>", "numbers": [1, 2.5, None], "nested": {"a": True}}
    outcome = run(executor, jobs.Echo(given))
    assert (outcome.status, outcome.reason, outcome.answer) == ("ok", "", given)


def test_fields_and_answers_keep_their_types(executor: Executor) -> None:
    """Values that JSON lacks too: a path, a tuple, an infinity inside settings."""
    folder, case, numbers = Path("/somewhere"), a_case(settings={"scale": math.inf}), (1.0, -math.inf)
    outcome = run(executor, jobs.GiveBack(folder, case, numbers))
    assert (outcome.status, outcome.answer) == ("ok", (folder, case, numbers))


def test_a_field_of_another_type_is_a_crash_that_names_it(executor: Executor) -> None:
    outcome = run(executor, jobs.Sleep(seconds="long"))  # type: ignore[arg-type]
    assert outcome.status == "crash"
    assert outcome.reason.startswith("ValidationError: 1 validation error for Sleep seconds ")


def test_a_long_answer_comes_back_whole(executor: Executor) -> None:
    outcome = run(executor, jobs.Echo({"text": "x" * 3_000_000}))
    assert len((outcome.answer or {})["text"]) == 3_000_000


def test_every_child_starts_from_nothing_and_with_the_environment_of_the_fork_server(executor: Executor) -> None:
    first, second = run(executor, jobs.Remember()), run(executor, jobs.Remember())
    assert first.answer == second.answer == jobs.Found(count=1, grad=True, threads="1")
    assert os.environ.get("OPENBLAS_NUM_THREADS") != "1" or "OPENBLAS_NUM_THREADS" in os.environ


def test_an_exception_is_a_crash_with_its_message_and_place(executor: Executor) -> None:
    outcome = run(executor, jobs.Fail())
    assert outcome.status == "crash"
    assert outcome.reason.startswith("KeyError: 'no such thing' (jobs.py line ")


def test_a_job_that_does_not_exist_is_a_crash(executor: Executor) -> None:
    @dataclass(frozen=True)
    class Nothing(jobs.Fail, Job[None]):
        """It stands in no module."""

    outcome = run(executor, Nothing())
    assert (outcome.status, "cannot be imported" in outcome.reason) == ("crash", True)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_killed_child_is_a_crash_that_names_the_signal_and_its_last_output(executor: Executor, number: int) -> None:
    outcome = run(executor, jobs.KillItself(number))
    assert outcome.status == "crash"
    assert signal.Signals(number).name in outcome.reason
    assert "these were its last words" in outcome.reason


def test_a_child_that_the_kernel_killed_for_memory_is_oom(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([7, 8])
    monkeypatch.setattr(executor_module, "_kernel_kills", lambda: next(counts))
    outcome = run(executor, jobs.KillItself(signal.SIGKILL))
    assert (outcome.status, "run out of memory" in outcome.reason) == ("oom", True)


@pytest.mark.parametrize(("code", "message"), [(3, "exited with code 3"), (0, "exited with code 0 without an answer")])
def test_a_child_that_leaves_without_an_answer_is_a_crash(executor: Executor, code: int, message: str) -> None:
    outcome = run(executor, jobs.Leave(code))
    assert outcome.status == "crash"
    assert outcome.reason == f"{message}; its last output: leaving now"


@pytest.mark.parametrize("text", ["\x00\x01garbage", "\x7f\xff\xff\xff", "[1, 2]", '{"status": "ok"}', "3"])
def test_garbage_instead_of_an_answer_is_a_crash(executor: Executor, text: str) -> None:
    outcome = run(executor, jobs.WriteEverywhere(text), Limits(20.0))
    assert (outcome.status, "an invalid answer" in outcome.reason) == ("crash", True)
    assert outcome.answer is None


def test_a_hanging_child_is_ended_in_time_with_all_that_it_started(executor: Executor, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    outcome = run(executor, jobs.HangWithAChild(pids), Limits(time_s=10.0))
    assert (outcome.status, outcome.reason) == ("timeout", "no answer within 10 s")
    assert all(wait_until(lambda pid=int(pid): is_gone(pid)) for pid in pids.read_text().split())


def test_what_a_finished_child_started_is_ended_too(executor: Executor, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    assert run(executor, jobs.LeaveAChild(pids)).status == "ok"
    assert wait_until(lambda: is_gone(int(pids.read_text())))


def test_what_a_finished_child_left_in_a_session_of_its_own_is_ended_too(executor: Executor, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    assert run(executor, jobs.LeaveADaemon(pids)).status == "ok"
    assert is_gone(int(pids.read_text()))


def test_a_child_that_ends_the_fork_server_is_a_crash_and_the_next_one_finds_another(tmp_path: Path) -> None:
    with Executor(tmp_path) as fresh:
        outcome = run(fresh, jobs.EndTheServer())
        assert (outcome.status, outcome.reason) == ("crash", "the process that started it was terminated")
        assert run(fresh, jobs.Echo({"a": 1})).answer == {"a": 1}


def test_a_signal_ends_the_child_at_once_and_the_fork_server_with_it(tmp_path: Path) -> None:
    pids, main = tmp_path / "pids", os.getpid()

    def interrupt() -> None:
        assert wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
        os.kill(main, signal.SIGTERM)

    with Interruption() as interruption, Executor(tmp_path, interruption) as fresh:
        sender = threading.Thread(target=interrupt)
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            run(fresh, jobs.HangWithAChild(pids), Limits(600.0))
        sender.join()
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_is_no_crash_of_the_child_unless_there_is_room(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    class Full:
        def __init__(self, **where: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    if not full:  # it only says so
        assert run(executor, jobs.FillADisk()).reason.startswith("OSError: [Errno 28] No space left on device")
        return
    original = tempfile.NamedTemporaryFile
    monkeypatch.setattr(
        tempfile, "NamedTemporaryFile", lambda **where: original(**where) if "suffix" in where else Full()
    )
    with pytest.raises(OSError, match="No space left"):
        run(executor, jobs.FillADisk())


@pytest.mark.parametrize(
    "output",
    [
        '{"status": "fine", "reason": "", "answer": {}}',
        '{"status": "ok", "answer": 3}',
        '{"status": "ok", "reason": "", "answer": null}',
        '{"status": "ok", "reason": "", "answer": {"count": "many", "grad": true, "threads": "1"}}',
    ],
)
def test_an_answer_of_another_form_is_a_crash(executor: Executor, output: str) -> None:
    outcome = run(executor, jobs.WriteEverywhere(output))
    assert (outcome.status, outcome.answer, "an invalid answer" in outcome.reason) == ("crash", None, True)


@pytest.mark.parametrize("job", [jobs.TakeTensors(), jobs.TakeBytes()])
def test_more_memory_than_allowed_is_oom(executor: Executor, job: Job[int]) -> None:
    outcome = run(executor, job, Limits(60.0, memory_bytes=2**30))
    assert outcome.status == "oom", outcome.reason


def test_a_child_that_prints_for_ever_does_not_fill_the_disk(executor: Executor) -> None:
    outcome = run(executor, jobs.PrintForEver(), Limits(60.0, file_bytes=2**20))
    assert (outcome.status, "File too large" in outcome.reason) == ("crash", True)


def test_the_parent_sleeps_while_a_child_works(executor: Executor) -> None:
    before = time.process_time()
    outcome = run(executor, jobs.Sleep(1.0))
    assert outcome.wall_s > 1.0
    assert time.process_time() - before < 0.3


def test_nothing_is_left_of_a_child_in_the_scratch_folder(tmp_path: Path) -> None:
    with Executor(tmp_path) as fresh:
        run(fresh, jobs.Fail())
    assert list(tmp_path.iterdir()) == []


PARENT = """
import sys
from pathlib import Path
from harness.runner.executor import Executor, Limits
from tests.harness.jobs import HangWithAChild
if __name__ == "__main__":
    Executor(Path(sys.argv[1])).run(HangWithAChild(Path(sys.argv[2])), Limits(600.0))
"""


def test_a_child_dies_with_its_parent_even_if_that_is_killed_outright(tmp_path: Path) -> None:
    script, pids = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path), str(pids)], env=environment)
    assert wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    servers = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    parent.wait()
    assert servers
    for pid in [*servers, *map(int, pids.read_text().split())]:
        assert wait_until(lambda pid=pid: is_gone(pid)), f"{pid} outlives its parent"


def test_signals_that_interrupt_nothing_cost_a_job_no_time(tmp_path: Path) -> None:
    """Python tells of every signal that it hears, a child's end for one, where it tells of Ctrl-C."""
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    done = threading.Event()

    def disturb() -> None:
        while not done.wait(0.01):
            os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=disturb)
    try:
        with Interruption() as interruption, Executor(tmp_path, interruption) as fresh:
            thread.start()
            outcome = run(fresh, jobs.Sleep(0.5))
            assert not interruption.asked
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert (outcome.status, outcome.reason) == ("ok", "")
