"""Command-line options and exit handling shared by all commands."""

from __future__ import annotations

import argparse
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from attentions.common.settings import require
from bmrt.cache.engine import RecursiveCompressionEngine, require_device
from bmrt.cache.settings import LSH_MODES, SELECTORS, Settings
from bmrt.evaluation.records import digest_of
from bmrt.strategies.ties import TIES
from harness.common.command_line import MAX_COUNT, one_line
from harness.common.packaged import packaged_models

SETTINGS = {  # option of the command line -> setting
    "method": "selector_type",
    "lsh_mode": "lsh_mode",
    "mode": "selector_mode",
    "compression_mode": "compression_mode",
    "backend": "backend",
    "budget": "budget",
    "compression_ratio": "compression_ratio",
    "protection_divisor": "protection_divisor",
    "block_size": "block_size",
    "num_bits": "num_bits",
    "num_tables": "num_tables",
    "hybrid_primary": "hybrid_primary",
    "hybrid_secondary": "hybrid_secondary",
    "hybrid_ratio": "hybrid_ratio",
    "positions": "positions",
    "seed": "seed",
}
LEAST = {  # integer option -> its minimum
    "max_new_tokens": 1,
    "num_samples": 1,
    "start_sample_index": 0,
    "length": 1,
    "max_len": 1,
    "chunk": 1,
    "rounds": 1,
    "hidden": 4,
    "plain_most": 1,
}


MOST_NAME = 255  # bytes that file systems allow in a name
LONGEST_NAME = 200  # leaves room for suffixes such as .jsonl.settings.json.new


def command(
    name: str, description: str, *, max_new_tokens: int, method: bool = True, model_needed: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with the options for the model and, unless the command varies it itself, for the method."""
    parser = argparse.ArgumentParser(prog=f"python -m bmrt.{name}", description=description)
    parser.add_argument("--model_path", required=model_needed, help=f"{', '.join(packaged_models())}, folder or hub id")
    parser.add_argument("--tokenizer", help="folder, hub id, or 'bytes' (default: the model's own)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if available)")
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=max_new_tokens,
        help=f"maximum tokens of an answer (default: {max_new_tokens})",
    )
    parser.add_argument("--stop_words", nargs="*", help="strings that end an answer")
    # LongBench's own script reads everything in its folder, so other commands do not write there by default.
    folder = Path("results" if name == "longbench" else f"results_{name}")
    parser.add_argument("--save_dir", type=Path, default=folder, help=f"folder for results (default: {folder})")
    parser.add_argument("--block_size", type=int, default=4096, help="context tokens per forward pass")
    parser.add_argument(
        "--protection_divisor", type=int, default=4, help="n: the anchors and the local window each get budget/n"
    )
    parser.add_argument("--positions", default="absolute", help="absolute, or compact to go beyond the trained length")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random draws (default: 0)")
    _add_sizes(parser)
    if method:
        _add_method(parser)
    return parser


def engine_of(given: argparse.Namespace, **changes: Any) -> RecursiveCompressionEngine:
    """Build the engine that the options describe."""
    return RecursiveCompressionEngine(
        given.model_path,
        tokenizer=given.tokenizer,
        device=given.device,
        max_new_tokens=given.max_new_tokens,
        stop_words=given.stop_words,
        **(_settings(given) | changes),
    )


def run(
    main: Callable[[argparse.Namespace], str], parser: argparse.ArgumentParser, arguments: list[str] | None
) -> None:
    """Run a command and print its result; errors that the user can fix become one line and exit code 2.

    These are ValueError, OSError for a file that cannot be written, a missing extra, and a device with too little
    memory. Ctrl-C and SIGTERM end with exit code 130.
    """
    given = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("default", module="bmrt")
        try:
            _require_counts(given)
            if getattr(given, "device", None) is not None:
                require_device(given.device)
            Settings(**_settings(given))  # validate before loading anything
            print(main(given))
        except (ValueError, OSError, ImportError) as error:
            parser.exit(2, f"{parser.prog}: {one_line(error)}\n")
        except torch.OutOfMemoryError as error:
            message = " ".join(str(error).split())
            parser.exit(2, f"{parser.prog}: {message} Use smaller blocks (--block_size) or a smaller --budget\n")
        except KeyboardInterrupt:
            parser.exit(130, f"{parser.prog}: interrupted; answers so far are kept, and the same command continues\n")


def file_name(*parts: str) -> str:
    """Join the parts into a name of at most `LONGEST_NAME` bytes, for files with a suffix.

    A name that is too long or contains characters that are not allowed ends in a hash of the parts, so that no two
    share a file.
    """
    joined = "_".join(parts)
    name = re.sub(r"[^\w.+-]+", "_", joined).lstrip(".")
    short = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
    return joined if name == joined and len(joined.encode()) <= LONGEST_NAME else f"{short}_{digest_of(joined)[:8]}"


def require_writable(folder: Path, name: str = "save_dir") -> None:
    """Create the folder. Raises ValueError, before any work, if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        longest = min(MOST_NAME, os.pathconf(folder, "PC_NAME_MAX"))
        with tempfile.NamedTemporaryFile(dir=folder, suffix="x" * (longest - 20)):
            pass  # a long name, to detect a path that is too long
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{name}={str(folder)!r} cannot be written to: {reason}") from error


def require_distinct(name: str, values: Sequence[str]) -> None:
    """Raise ValueError for a list with duplicates."""
    require(len(set(values)) == len(values), name, " ".join(values), "a list without duplicates")


def _require_counts(given: argparse.Namespace) -> None:
    for name, least in LEAST.items():
        value = getattr(given, name, None)
        allowed = f"an integer from {least} to {MAX_COUNT}"
        require(value is None or least <= value <= MAX_COUNT, name, value, allowed)
    for length in getattr(given, "lengths", None) or ():
        require(1 <= length <= MAX_COUNT, "lengths", length, f"integers from 1 to {MAX_COUNT}")


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    return {setting: getattr(given, name) for name, setting in SETTINGS.items() if hasattr(given, name)}


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--budget", type=int, default=4096, help="tokens kept per layer and head (default: 4096)")
    sizes.add_argument(
        "--compression_ratio", type=float, help="share of each prompt's tokens to keep, instead of --budget"
    )


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", default="exact", choices=SELECTORS, help="how keys are selected (default: exact)")
    parser.add_argument(
        "--lsh_mode",
        default="frequency_rank",
        choices=LSH_MODES,
        help="variant of method lsh (default: frequency_rank)",
    )
    parser.add_argument("--mode", default="l2", choices=TIES, help="how keys with equal collision counts are ordered")
    parser.add_argument(
        "--compression_mode",
        default="recursive",
        choices=("recursive", "accumulate"),
        help="recursive (default): later blocks compete with kept tokens; accumulate: each block keeps its own share",
    )
    parser.add_argument(
        "--backend", default="eager", choices=("eager", "flash"), help="how exact scores are computed (default: eager)"
    )
    parser.add_argument("--num_bits", type=int, default=12, help="bits per hash of the LSH methods (default: 12)")
    parser.add_argument("--num_tables", type=int, default=20, help="hash tables of the LSH methods (default: 20)")
    parser.add_argument("--hybrid_primary", default="exact", help="first strategy of method hybrid (default: exact)")
    parser.add_argument("--hybrid_secondary", default="lsh", help="second strategy of method hybrid (default: lsh)")
    parser.add_argument(
        "--hybrid_ratio", type=float, default=0.5, help="share of the memory for the first strategy (default: 0.5)"
    )
