"""Ctrl-C and SIGTERM at known moments of every command: what each ends with.

    python -m tests.interruption_walk
    python -m tests.interruption_walk --calls 1 100 10000 --only bmrt.ruler lsh_v2.train

A moment is the first import after `exit_on_signal`, the reading of the command line, or a number of calls of Python
functions after that. Prints a JSON list of what is wrong, and the number of interruptions on stderr. Each is a fork of
one process that has imported everything, in an empty folder of its own.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from attentions.common.stopping import INTERRUPTED, SIGNALS
from tests.option_walk import NEEDED, commands

IMPORT, COMMAND_LINE = -1, 0  # moments; others are numbers of calls
LIGHT = ("__future__", "attentions.common.stopping")  # what a command imports before `exit_on_signal`


def end_of(command: str, moment: int, number: signal.Signals) -> tuple[int, str]:
    """Exit status and stderr of a command in a fork that sends itself a signal."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        child = os.fork()
        if child == 0:
            _child(command, moment, number, folder, output)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), output.read_text(encoding="utf-8", errors="replace")


def _child(command: str, moment: int, number: signal.Signals, folder: str, output: Path) -> NoReturn:
    os.setsid()
    os.chdir(folder)
    for stream, path in ((0, Path("/dev/null")), (1, Path("/dev/null")), (2, output)):
        file = os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, stream)
    sys.argv = [command, *NEEDED.get(command, [])]
    sys.modules.pop(command)  # it is the main module now
    _arrange(moment, lambda: os.kill(os.getpid(), number))
    status: Any = 0
    try:
        runpy.run_module(command.removesuffix(".__main__"), run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def _arrange(moment: int, tell: Callable[[], None]) -> None:
    """Let `tell` be called once, at the moment."""
    if moment == IMPORT:
        usual = builtins.__import__

        def imported(name: str, globals: dict[str, Any] | None = None, *others: Any, **more: Any) -> Any:  # noqa: A002
            if globals and globals.get("__name__") == "__main__" and name not in LIGHT:
                builtins.__import__ = usual
                tell()
            return usual(name, globals, *others, **more)

        builtins.__import__ = imported
        return
    read, left = argparse.ArgumentParser.parse_known_args, moment

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event == "call":
            left -= 1
            if left == 0:
                sys.setprofile(None)
                tell()

    def parse(*arguments: Any, **more: Any) -> Any:
        argparse.ArgumentParser.parse_known_args = read  # type: ignore[method-assign]
        if moment == COMMAND_LINE:
            tell()
        found = read(*arguments, **more)
        sys.setprofile(count)
        return found

    argparse.ArgumentParser.parse_known_args = parse  # type: ignore[method-assign]


def verdict(moment: int, status: int, output: str) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    lines = [line for line in output.splitlines() if "interrupted" in line]
    if "Traceback" in output or "Exception ignored" in output:
        return "prints a traceback"
    if moment > 1 and not lines and status in (0, 1, 2, 3):
        return ""  # it had ended before
    if status != INTERRUPTED:
        return f"exit {status}"
    return "" if len(lines) == 1 else f"says {len(lines)} times that it was interrupted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk, print what is wrong as JSON; exit 1 if there is anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.interruption_walk", description="Signals to every command.")
    parser.add_argument("--calls", type=int, nargs="*", default=[1], help="of functions, after which a signal comes")
    parser.add_argument("--only", nargs="*", help="commands to walk (default: all)")
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    names = given.only or commands()
    for name in names:
        importlib.import_module(name)
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.default_int_handler, signal.SIG_DFL]
    assert threading.active_count() == 1, "a fork would have none of the other threads"
    wrong, count = [], 0
    for name in names:
        for moment in (IMPORT, COMMAND_LINE, *given.calls):
            for number in SIGNALS:
                status, output = end_of(name, moment, number)
                count += status == INTERRUPTED
                if why := verdict(moment, status, output):
                    wrong.append([name, moment, number.name, why, output[-1000:]])
    print(json.dumps(wrong, indent=1))
    print(f"{count} interruptions of {len(names)} commands, {len(wrong)} wrong", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
