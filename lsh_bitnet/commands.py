"""What the commands share: options, messages of one line, what a file is called."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from harness.worker import is_out_of_memory
from lsh_bitnet.models import DTYPES
from lsh_bitnet.results import FOLDER, LONGEST_WHAT, require_place

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def run(parser: argparse.ArgumentParser, work: Callable[[], int]) -> int:
    """The exit status of `work`; what the user can mend becomes one line and exit status 2.

    That is a ValueError, a file that cannot be read or written, a package that is not installed, and a device whose
    memory is too small. Ctrl-C and SIGTERM end with 130.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch.jit")
            return work()
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        parser.error("there is not enough memory: take a smaller batch or shorter sequences")
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, f"{parser.prog}: interrupted\n")


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option `--out`; `require_out` judges it."""
    parser.add_argument("--out", default=str(FOLDER), metavar="DIR", help="folder of the JSON file")


def require_out(given: argparse.Namespace) -> Path:
    """The folder of results. Raises ValueError, before any work, where no file can be written there."""
    if not given.out:
        raise ValueError("--out: '' is not allowed; it must be the path of a folder")
    require_place(folder := Path(given.out), "--out")
    return folder


def baseline_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Model, attention, device and output folder; the command adds its own."""
    parser = Parser(
        prog=f"python -m lsh_bitnet.{command}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="tiny-bitnet", help="name, folder or hub id; bitnet-2b is the hub's")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:<index> or mps")
    parser.add_argument("--dtype", default="auto", choices=DTYPES)
    parser.add_argument("--attention", metavar="BACKEND", help="attention to swap in; the model's own if not given")
    parser.add_argument("--settings", default="{}", metavar="JSON", help="settings of that attention")
    parser.add_argument("--dense-layers", type=int, nargs="*", default=[], metavar="LAYER", help="stay exact")
    add_out(parser)
    return parser


def attention_of(given: argparse.Namespace) -> dict[str, Any] | None:
    """The attention that the options name, as an experiment has it, or None.

    Raises ValueError for settings that are no JSON object, and for settings and layers without an attention.
    """
    try:
        settings = json.loads(given.settings)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"--settings {given.settings[:80]} is not allowed: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--settings {given.settings[:80]} is not allowed: it must be a JSON object")
    if given.attention is None:
        for option, value in (("--settings", settings), ("--dense-layers", given.dense_layers)):
            if value:
                raise ValueError(f"{option} is not allowed without --attention: the model's own has no such settings")
        return None
    return {"backend": given.attention, "settings": settings, "dense_layers": given.dense_layers}


def what_ran(*parts: str | None) -> str:
    """A part of a file's name that says what was run: the parts that there are, without what a name cannot hold.

    They share `LONGEST_WHAT` bytes.
    """
    words = [
        re.sub(r"[^\w.+-]+", "-", Path(part).name if part.startswith(("/", ".", "~")) else part)
        for part in parts
        if part
    ]
    most = (LONGEST_WHAT + 1) // max(1, len(words)) - 1
    cut = [word.strip("-.").encode()[:most].decode(errors="ignore") for word in words]
    return "_".join(word or "unnamed" for word in cut)
