"""Every option of every command with values that it cannot take: what each ends with.

    python -m tests.option_walk                   # values that no such option takes
    python -m tests.option_walk --doubtful        # and values that some take: -1, nan, "", paths that are not there
    python -m tests.option_walk --only bmrt.ruler

Prints a JSON list of what is wrong, and how many calls were made on stderr. Commands are the modules that can be run
with `python -m`; options are read from their parsers, so a new one is walked without being named here. Each call is a
fork of one process that has imported everything, in an empty folder of its own.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import itertools
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("attentions", "harness", "tasks", "lsh_v2", "lsh_bitnet", "bmrt", "models", "benchmarks")
MODEL = ["--model_path", str(ROOT / "models/written-induction"), "--tokenizer", "bytes"]
NO_COMMANDS = {"harness.runner.fork_server", "lsh_v2.pipeline.check"}  # started by other commands, never by a user
# What a command needs before any other argument is looked at.
NEEDED: dict[str, list[str]] = {
    "attentions.contract.__main__": ["simhash"],
    "benchmarks.lsh_v2_quality": ["--learning"],
    "bmrt.babilong": [*MODEL, "--max_new_tokens", "1"],
    "bmrt.ablation": [*MODEL, "--max_new_tokens", "1"],
    "bmrt.longbench": [*MODEL, "--max_new_tokens", "1"],
    "bmrt.ruler": [*MODEL, "--max_new_tokens", "1"],
    "bmrt.run_single_sample": [*MODEL, "--max_new_tokens", "1"],
    "bmrt.measure": ["memory"],
    "harness.sweep": [str(ROOT / "conf.yml"), "--dry-run"],
    "harness.profile": [str(ROOT / "conf.yml")],
    "harness.report.__main__": ["no-such-run"],
    "harness.regress": ["no-such-run", "--baseline", "no-such-baseline.json"],
    "lsh_bitnet.evaluate": [str(ROOT / "lsh_bitnet/configs/wt2_bitnet_full.yaml")],
    "lsh_v2.pipeline.data": [str(ROOT / "lsh_v2/quick.yml"), "out", "train.jsonl", "eval.jsonl"],
    "models.tiny_bitnet": ["--work", "work", "--out", "out"],
    "models.written_induction": ["--out", "out"],
    "tasks.synthetic": ["examples.jsonl"],
}
REFUSED_S = 120.0  # a wrong value is found before any work
WORKING_S = 4.0  # what goes on for longer has taken a doubtful value, and is stopped
TRACES = re.compile(
    r"Traceback|validation error|\[type=|islice|empty sequence|object is not|Error: |NoneType|__\w+__|Errno", re.ASCII
)


@dataclass(frozen=True)
class Call:
    """A command line, and whether it must be refused."""

    command: str
    arguments: tuple[str, ...]
    option: str
    value: str
    sure: bool


@dataclass(frozen=True)
class Ended:
    """How a call ended: its exit status, None if it was still working, and what it wrote to stderr."""

    status: int | None
    stderr: str


def commands() -> list[str]:
    """Every module of the project that `python -m` runs."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body):
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return [name for name in found if name not in NO_COMMANDS]


class _CapturedError(Exception):
    pass


def parsers(command: str) -> list[tuple[list[str], argparse.ArgumentParser]]:
    """The parser of a command, or those of its subcommands with the words that choose them."""
    captured: list[argparse.ArgumentParser] = []

    def capture(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        captured.append(self)
        raise _CapturedError

    kept = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = capture  # type: ignore[method-assign, assignment]
    try:
        _main(command, [])
    except _CapturedError:
        pass
    finally:
        argparse.ArgumentParser.parse_known_args = kept  # type: ignore[method-assign]
    assert captured, f"{command} reads no command line"
    subcommands = [a for a in captured[0]._actions if isinstance(a, argparse._SubParsersAction)]
    if not subcommands:
        return [([], captured[0])]
    return [([name], parser) for name, parser in subcommands[0].choices.items()]


def calls(command: str, *, doubtful: bool) -> Iterator[Call]:
    """Each option of a command, and its positional arguments, with each wrong value."""
    needed = NEEDED.get(command, [])
    for prefix, parser in parsers(command):
        yield Call(command, (*needed, *prefix, "--no-such-option"), "--no-such-option", "--no-such-option", sure=True)
        for action in parser._actions:
            if action.nargs == 0 or isinstance(action, argparse._HelpAction | argparse._VersionAction):
                continue
            for value, sure in values(action):
                if not (sure or doubtful):
                    continue
                if action.option_strings:
                    option = max(action.option_strings, key=len)
                    given = (*needed, *prefix, f"{option}={value}")
                else:
                    option = action.dest
                    given = (*prefix, value, *(needed[1:] if needed and needed[0][0] != "-" else needed))
                yield Call(command, given, option, value, sure)


def values(action: argparse.Action) -> Iterator[tuple[str, bool]]:
    """Values for an option, each with whether no option of its kind can take it."""
    if action.choices is not None:
        yield from (("no-such-value", True), ("", True))
    elif action.type is not None and action.type is not Path:
        for value in ("no-such-value", "", "1.5", "-1", "0", "nan", "inf", "1e400", "9" * 30):
            yield value, not _takes(action, value)
    elif "--set" in action.option_strings:
        yield from (("nonsense", True), ("=1", True), ("seed=[1", True), ("no_such_key=1", True), ("", True))
    elif action.dest == "device":
        yield from (("no-such-device", True), ("cuda:99", True), ("", False))
    else:
        yield from (("no/such/place", False), ("/dev/null/x", False), ("x" * 5000, False), ("", False), ("\n", False))


def _takes(action: argparse.Action, value: str) -> bool:
    assert callable(action.type)
    try:
        action.type(value)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False
    return True


def run(call: Call) -> Ended:
    """The call in a fork, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        log, limit = Path(folder, "stderr"), time.monotonic() + (REFUSED_S if call.sure else WORKING_S)
        child = os.fork()
        if child == 0:
            os._exit(_child(call, folder, log))
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() > limit:
                code = None
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
            time.sleep(0.005)
        return Ended(code, log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")


def _child(call: Call, folder: str, log: Path) -> int:
    os.setsid()  # whatever it starts can be stopped with it
    os.chdir(folder)
    os.mkdir("work")  # noqa: PTH102
    os.chdir("work")
    for number, path in ((0, Path("/dev/null")), (1, Path("/dev/null")), (2, log)):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
    try:
        ended = _main(call.command, list(call.arguments))
    except SystemExit as exit_:
        ended = exit_.code
    except BaseException:
        traceback.print_exc()
        ended = 70
    sys.stderr.flush()
    if isinstance(ended, str):
        os.write(2, ended.encode())
        ended = 1
    return ended or 0


def _main(command: str, arguments: list[str]) -> int | str | None:
    sys.argv = [command, *arguments]
    function = importlib.import_module(command).main
    return function(arguments) if inspect.signature(function).parameters else function()


def verdict(call: Call, ended: Ended) -> str:
    """What is wrong with how a call ended; empty if nothing is."""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    if lines and lines[0].startswith("usage:"):
        lines = list(itertools.dropwhile(lambda line: line.startswith(("usage:", " ")), lines))
    messages = [line for line in lines if not line.startswith(" ")]  # a message may go on in indented lines
    if found := TRACES.search(ended.stderr.replace(": error: ", "")):
        return f"says {found[0]!r}"
    if call.sure and ended.status != 2:
        return f"exit {ended.status} where 2 is expected"
    if ended.status in (0, None):
        return ""
    if ended.status not in (1, 2, 3):
        return f"exit {ended.status}"
    if len(messages) != 1:
        return f"{len(messages)} messages where one is expected"
    names = (call.option, call.value or "''", repr(call.value), call.value.partition("=")[0] or "=")
    if call.sure and not any(name in "\n".join(lines) for name in names):
        return "names neither the option nor its value"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Walk, print what is wrong as JSON; exit 1 if there is anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.option_walk", description="Wrong values for every option.")
    parser.add_argument("--doubtful", action="store_true", help="values too that some options can take")
    parser.add_argument("--only", nargs="*", help="commands to walk (default: all)")
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"  # what is asked here has nothing to do with a network
    names = given.only or commands()
    for name in names:
        importlib.import_module(name)
    wrong, count = [], 0
    for name in names:
        for call in calls(name, doubtful=given.doubtful):
            ended = run(call)
            count += 1
            if why := verdict(call, ended):
                shown = " ".join(x if len(x) < 80 else f"{x[:20]}...({len(x)})" for x in call.arguments)
                wrong.append({"command": f"{name} {shown}", "why": why, "stderr": ended.stderr[-400:]})
    print(json.dumps(wrong, indent=1))
    print(f"{count} calls of {len(names)} commands, {len(wrong)} wrong", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
