"""Atomic checkpoints: written to a temporary folder, hashed, synced, and renamed, so they are complete or absent.

A folder `step-00000100` holds model.safetensors, optimizer.safetensors, and state.json, which has everything else and
the SHA-256 of the other two. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.common.text import shortened
from lsh_v2.common.files import digest
from lsh_v2.common.schemas import CheckpointState, parse
from lsh_v2.model.language_model import LSHv2Model

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
NAME = re.compile(r"step-(\d{8})")

Kept = TypeVar("Kept", bound=CheckpointState)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which one, why, and what is left."""


def save(
    folder: Path, step: int, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write a checkpoint of `step` below `folder`. Raises CheckpointError and leaves earlier checkpoints unchanged."""
    final, writing = folder / f"step-{step:08d}", folder / f".writing-{step:08d}"
    try:
        writing.mkdir(parents=True, exist_ok=True)
        for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
            save_file({key: x.detach().contiguous() for key, x in tensors.items()}, writing / name)
        hashes = {name: digest(writing / name) for name in (MODEL, OPTIMIZER)}
        (writing / STATE).write_text(json.dumps({**state, "step": step, "sha256": hashes}), encoding="utf-8")
        for path in writing.iterdir():
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        writing.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise CheckpointError(_unwritten(folder, step, error)) from error
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints below a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name))


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and the remains of interrupted writes."""
    for path in [*checkpoints(folder)[:-keep], *folder.glob(".writing-*")]:
        shutil.rmtree(path)


def read_state(path: Path, kind: type[Kept]) -> Kept:
    """Read a checkpoint's state.json after checking its files against their hashes.

    Raises CheckpointError if the checkpoint is damaged, its state does not match the schema, or its step is wrong.
    """
    try:
        state = parse((path / STATE).read_bytes(), kind)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(_damaged(path, f"{STATE}: {reason}")) from error
    if (named := NAME.fullmatch(path.name)) and int(named[1]) != state.step:
        raise CheckpointError(_damaged(path, f"{STATE}: step: {state.step} is not allowed; it must be {int(named[1])}"))
    for name in (MODEL, OPTIMIZER):
        if not (path / name).is_file():
            raise CheckpointError(_damaged(path, f"{name} is missing"))
        if digest(path / name) != state.sha256.get(name):
            raise CheckpointError(_damaged(path, f"{name} has changed since it was written (different SHA-256)"))
    return state


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors of one checkpoint file, on the CPU."""
    return load_file(path / name)


def load_model(folder: Path | str) -> LSHv2Model:
    """Load the model of a checkpoint, or of the newest one in a run's folder, in eval mode.

    Raises CheckpointError if there is none or it is damaged.
    """
    folder = Path(folder)
    found = [folder] if (folder / STATE).exists() else checkpoints(folder / "checkpoints") or checkpoints(folder)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    model = LSHv2Model(read_state(found[-1], CheckpointState).model)
    load_weights(model, found[-1])
    return model.eval()


def load_weights(model: LSHv2Model, path: Path) -> None:
    """Load the weights of a checkpoint into a model. Raises CheckpointError if they do not fit."""
    try:
        model.load_state_dict(read_tensors(path, MODEL))
    except RuntimeError as error:  # from torch, one line per weight
        reason = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint {path} does not match the model: {shortened(reason, 400)}") from error


def flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's per-parameter state as named tensors; groups are rebuilt from the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(x) for index, entry in state.items() for name, x in entry.items()}


def unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the state returned by `flatten` into an optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = x
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritten(folder: Path, step: int, error: Exception) -> str:
    left = checkpoints(folder)
    kept = f"the newest one is {left[-1]}" if left else "there is no checkpoint yet"
    free = shutil.disk_usage(folder).free / 1e9 if folder.exists() else 0.0
    return f"checkpoint of step {step} could not be written: {error} ({free:.2f} GB free in {folder}); {kept}"


def _damaged(path: Path, reason: str) -> str:
    others = [other.name for other in checkpoints(path.parent) if other != path]
    advice = f"remove the folder to continue from {others[-1]}" if others else "there is no other checkpoint"
    return f"checkpoint {path} is damaged: {reason}; {advice}"
