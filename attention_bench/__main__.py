"""The command line of the benchmark: `attention-bench COMMAND`, or `python -m attention_bench COMMAND`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from attentions.common.commands import CONSOLE as NAME
from attentions.common.commands import call_as
from attentions.common.stopping import exit_on_signal, run_interruptible

# Each runs as `python -m MODULE` does, with the same options and exit status.
COMMANDS = {
    "sweep": ("harness.sweep", "measure what a configuration asks for, and write a report"),
    "report": ("harness.report", "rewrite the report of a run"),
    "regress": ("harness.regress", "compare a run with a baseline: pass, fail or ambiguous"),
    "profile": ("harness.profile", "time the stages of backends that define stages, such as lsh_v2"),
    "contract": ("attentions.contract", "check an attention against the contract"),
    "inputs": ("harness.inputs", "show how uneven attention is on each kind of inputs"),
}
INIT = "write a commented conf.yml to start from"
UNUSABLE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if given[:1] == ["--version"]:
        from attention_bench import __version__

        print(f"{NAME} {__version__}")
        return 0
    name = given[0] if given else ""
    if name == "init":
        return init(given[1:])
    if name not in COMMANDS:
        message = f"{name!r} is not a command" if name else "a command is required"
        print(f"{NAME}: {message}\n\n{usage()}", file=sys.stderr)
        return UNUSABLE
    call_as(f"{NAME} {name}")
    sys.argv[1:] = given[1:]
    if not sys.flags.safe_path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: attentions of the user's own are imported from here
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    return 0  # never reached: every command ends with SystemExit


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:9} {text}" for name, text in [("init", INIT), *((k, v[1]) for k, v in COMMANDS.items())]]
    return "\n".join([f"usage: {NAME} COMMAND [options]", "", *lines, "", f"{NAME} COMMAND --help lists its options"])


def init(arguments: Sequence[str]) -> int:
    """Write the default configuration to a new file."""
    import argparse

    from harness.config.model import default_configuration

    parser = argparse.ArgumentParser(prog=f"{NAME} init", description=INIT)
    parser.add_argument("path", nargs="?", type=Path, default=Path("conf.yml"), help="default: conf.yml")
    path: Path = parser.parse_args(arguments).path
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(default_configuration().read_text(encoding="utf-8"))
    except FileExistsError:
        print(f"{path} already exists; give another file", file=sys.stderr)
        return UNUSABLE
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)
        return UNUSABLE
    print(f"wrote {path}; measure it with: {NAME} sweep {path}")
    return 0


def console() -> int:
    """Run the command of this process; from here on both signals end it with one line."""
    exit_on_signal()
    own = sys.argv[1:2] == ["init"]  # the other commands listen to signals themselves
    return (run_interruptible(main) or 0) if own else main()


if __name__ == "__main__":
    sys.exit(console())
