"""Every option of every command, with values that it cannot take, ends in one line and exit status 2."""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest

from tests import preloaded
from tests.option_walk import Call, Ended, calls, commands, parsers, verdict


def walk(*options: str) -> CompletedProcess[str]:
    """In a process of its own: it forks once a call, and imports every command."""
    return preloaded.run("-m", "tests.option_walk", *options, timeout=7200)


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


@pytest.mark.parametrize("command", commands())
def test_every_argument_has_a_help_text(command: str) -> None:
    actions = [action for _, parser in parsers(command) for action in parser._actions]
    assert [action.dest for action in actions if not (action.help or "").strip()] == []


CALL = Call("some.command", ("--n=x",), "--n", "x", sure=True)


@pytest.mark.parametrize(
    ("status", "output", "why"),
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
def test_walk_tells_a_right_end_from_a_wrong_one(status: int | None, output: str, why: str) -> None:
    found = verdict(CALL, Ended(status, output))
    assert found.startswith(why)
    assert bool(found) == bool(why)
