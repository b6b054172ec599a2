"""Every option of every command, with values that it cannot take, ends in one line and exit status 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.option_walk import Call, Ended, calls, commands, verdict


def walk(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it forks once a call, and imports every command."""
    return subprocess.run(
        [sys.executable, "-m", "tests.option_walk", *options], capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(1200)
def test_every_option_refuses_what_it_cannot_take_in_one_line() -> None:
    done = walk()
    assert done.stdout.strip() == "[]", done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_option_answers_any_value_with_a_traceback() -> None:
    done = walk("--doubtful")
    print(done.stderr.strip().splitlines()[-1])  # the counts
    assert done.stdout.strip() == "[]", done.stdout
    assert done.returncode == 0, done.stderr


def test_walk_reaches_the_options_of_every_command() -> None:
    assert {"harness.sweep", "bmrt.longbench", "lsh_v2.train", "benchmarks.lsh_v2_quality"} <= set(commands())
    found = list(calls("harness.sweep", doubtful=False))
    assert {"--set", "--no-such-option"} <= {call.option for call in found}
    assert all(call.sure for call in found)


CALL = Call("some.command", ("--n=x",), "--n", "x", sure=True)


@pytest.mark.parametrize(
    ("status", "said", "why"),
    [
        (2, "usage: some.command [-h]\n   [--n N]\nsome.command: error: argument --n: invalid int value: 'x'\n", ""),
        (2, "unusable configuration:\n  n: x is not an integer\n", ""),
        (1, "--n: 'x' is not an integer\n", "exit 1 where 2 is expected"),
        (None, "", "exit None where 2 is expected"),
        (2, "something is wrong\n", "names neither"),
        (2, "a warning\n--n: 'x' is not an integer\n", "2 messages"),
        (2, "Traceback (most recent call last):\n", "says 'Traceback'"),
        (2, "1 validation error for Config\n", "says 'validation error'"),
    ],
)
def test_walk_tells_a_right_end_from_a_wrong_one(status: int | None, said: str, why: str) -> None:
    found = verdict(CALL, Ended(status, said))
    assert found.startswith(why)
    assert bool(found) == bool(why)
