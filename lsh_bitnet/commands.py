"""Options that the two baseline commands share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lsh_bitnet.results import FOLDER
from lsh_bitnet.settings import AttentionSettings


def baseline_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Model, attention, device and output folder; the command adds its own."""
    parser = argparse.ArgumentParser(
        prog=f"python -m lsh_bitnet.{command}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="tiny-bitnet", help="name, folder or hub id; bitnet-2b is the hub's")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:<index> or mps")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--attention", metavar="BACKEND", help="attention to swap in; the model's own if not given")
    parser.add_argument("--settings", default="{}", metavar="JSON", help="settings of that attention")
    parser.add_argument("--dense-layers", type=int, nargs="*", default=[], metavar="LAYER", help="stay exact")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the JSON file")
    return parser


def attention_of(given: argparse.Namespace) -> AttentionSettings | None:
    """The attention that the options name, or None. Raises ValueError for settings that are no JSON object."""
    if given.attention is None:
        return None
    try:
        settings = json.loads(given.settings)
    except json.JSONDecodeError as error:
        raise ValueError(f"--settings {given.settings} is not allowed: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--settings {given.settings} is not allowed: it must be a JSON object")
    return AttentionSettings(backend=given.attention, settings=settings, dense_layers=given.dense_layers)
