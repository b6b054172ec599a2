"""Command-line options, one-line error messages, and file names shared by the commands."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from harness.runner.worker import is_out_of_memory
from lsh_bitnet.models import DTYPES
from lsh_bitnet.results import FOLDER, LONGEST_WHAT, require_place

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line error messages."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def run(parser: argparse.ArgumentParser, work: Callable[[], int]) -> int:
    """Return the exit status of `work`; errors that the user can fix become one line and exit status 2.

    These are ValueError, a file that cannot be read or written, a missing package, and a device with too little memory.
    Ctrl-C and SIGTERM end with 130.
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
        parser.error("there is not enough memory: use a smaller batch or shorter sequences")
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, f"{parser.prog}: interrupted\n")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option `--out`; `require_out` checks it."""
    parser.add_argument("--out", default=str(FOLDER), metavar="DIR", help="folder for the JSON file with the results")


def require_out(given: argparse.Namespace) -> Path:
    """Return the results folder. Raises ValueError, before any work, if no file can be written there."""
    if not given.out:
        raise ValueError("--out: '' is not allowed; it must be the path of a folder")
    require_place(folder := Path(given.out), "--out")
    return folder


def baseline_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with model, attention, device, and output folder; commands add their own options."""
    parser = Parser(
        prog=f"python -m lsh_bitnet.{command}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--model", default="tiny-bitnet", help="name, folder or hub id; bitnet-2b is downloaded from the hub"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:<index> or mps")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="dtype of the weights (auto: as stored)")
    parser.add_argument("--attention", metavar="BACKEND", help="attention to swap in (default: the model's own)")
    parser.add_argument("--settings", default="{}", metavar="JSON", help="settings of that attention, as JSON")
    parser.add_argument(
        "--dense-layers", type=int, nargs="*", default=[], metavar="LAYER", help="layers that stay exact"
    )
    add_out(parser)
    return parser


def attention_of(given: argparse.Namespace) -> dict[str, Any] | None:
    """Return the attention that the options name, in the form of an experiment, or None.

    Raises ValueError for settings that are not a JSON object, and for settings or layers without an attention.
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
                raise ValueError(
                    f"{option} is not allowed without --attention: the model's own attention has no such settings"
                )
        return None
    return {"backend": given.attention, "settings": settings, "dense_layers": given.dense_layers}


def what_ran(*parts: str | None) -> str:
    """Join the given parts into a part of a file name, replacing characters that are not allowed.

    The parts share `LONGEST_WHAT` bytes.
    """
    words = [
        re.sub(r"[^\w.+-]+", "-", Path(part).name if part.startswith(("/", ".", "~")) else part)
        for part in parts
        if part
    ]
    most = (LONGEST_WHAT + 1) // max(1, len(words)) - 1
    cut = [word.strip("-.").encode()[:most].decode(errors="ignore") for word in words]
    return "_".join(word or "unnamed" for word in cut)
