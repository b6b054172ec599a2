"""Inputs and exact answers of a run, made once for all backends, kept in files that every case maps.

One file holds one variant of the inputs of (inputs, shape, n, seed): at kernel level q, k, v, and with variant 0
exact softmax attention in float64 at the sampled rows; at layer level x. Beside them lie fingerprints: the rows that a
case gave in its first round, and what attentions learnt from their calibration samples. The folder belongs to one run
and goes when the run ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from attentions.reference import causal_pairs, softmax_attention
from harness import memory
from harness.inputs import make_hidden, make_inputs
from harness.rows import Case

CALIBRATION = 2
SAMPLED_ROWS = 64


class UnwritableError(OSError):
    """A file of the run could not be written: the disk is full, as a rule."""


class NoSampleError(ValueError):
    """There is no calibration sample of a case's inputs; the message says why."""


class Store:
    """The files of one run. Reading maps them: pages are shared by all cases, and writing changes a copy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def missing(self, case: Case, variants: Iterable[int]) -> list[int]:
        """Variants of a case's inputs that are not there yet, and of which nobody has said that there are none."""
        there = [variant for variant in variants if self._inputs(case, variant).exists()]
        if self._without_sample(case).exists():
            there.append(CALIBRATION)
        return [variant for variant in variants if variant not in there]

    def name(self, case: Case) -> str:
        """What all cases with the same inputs have in common."""
        return _anonymous(case).digest()

    def size_bytes(self, case: Case) -> int:
        """Bytes of a case's inputs, all variants that are there."""
        files = (self._inputs(case, variant) for variant in (0, 1, CALIBRATION))
        return sum(file.stat().st_size for file in files if file.exists())

    def inputs(self, case: Case, variant: int) -> tuple[Tensor, ...]:
        """(q, k, v) at kernel level, (x,) at layer level; on the CPU, each call a fresh mapping.

        Raises NoSampleError for a calibration sample that the source of these inputs cannot give.
        """
        if variant == CALIBRATION and (reason := self._without_sample(case)).exists():
            raise NoSampleError(reason.read_text(encoding="utf-8"))
        names = ("q", "k", "v") if case.level == "kernel" else ("x",)
        with safe_open(self._inputs(case, variant), framework="pt") as file:
            return tuple(file.get_tensor(name) for name in names)

    def exact(self, case: Case) -> Tensor | None:
        """Exact attention (B, H, R, E) in float64 on variant 0 at the sampled rows; None at layer level."""
        with safe_open(self._inputs(case, 0), framework="pt") as file:
            return file.get_tensor("exact") if "exact" in file.keys() else None  # noqa: SIM118

    def make(self, case: Case, variants: Iterable[int]) -> None:
        """Write the inputs of a case and their exact rows, and why there is no calibration sample, if there is none.

        Raises ValueError where the source cannot give the others, UnwritableError where there is no room for them.
        """
        for variant in variants:
            try:
                self._make(case, variant)
            except ValueError as error:
                if variant != CALIBRATION:
                    raise
                _write(str(error), self._without_sample(case))

    def _make(self, case: Case, variant: int) -> None:
        if case.level == "layer":
            tensors = {"x": make_hidden(_anonymous(case), variant).contiguous()}
        else:
            tensors = _kernel_inputs(_anonymous(case), variant)
        _save(tensors, self._inputs(case, variant))

    def fingerprint(self, key: str) -> dict[int, Tensor]:
        """Variant -> sampled rows that this case gave in its first round; empty if there was none."""
        file = self._fingerprint(key)
        return {int(name): rows for name, rows in load_file(file).items()} if file.exists() else {}

    def keep_fingerprint(self, key: str, rows: dict[int, Tensor]) -> None:
        """Write what `fingerprint` reads."""
        _save({str(variant): tensor.contiguous() for variant, tensor in rows.items()}, self._fingerprint(key))

    def prepared(self, case: Case) -> tuple[dict[str, Tensor], float] | None:
        """What an attention of this case learnt earlier in the run, and the seconds that took; None if none did."""
        file = self._prepared(case)
        if not file.exists():
            return None
        with safe_open(file, framework="pt") as opened:
            return load_file(file), float(opened.metadata()["prepare_s"])

    def keep_prepared(self, case: Case, state: dict[str, Tensor], prepare_s: float) -> None:
        """Write what `prepared` reads."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        _save(tensors, self._prepared(case), {"prepare_s": repr(prepare_s)})

    def _prepared(self, case: Case) -> Path:
        whoever = {"subject": "", "label": "", "control": False, "mode": "forward", "threads": 1}
        return self._folder / f"prepared-{case.model_copy(update=whoever).digest()}.safetensors"

    def _inputs(self, case: Case, variant: int) -> Path:
        return self._folder / f"inputs-{self.name(case)}-{variant}.safetensors"

    def _without_sample(self, case: Case) -> Path:
        return self._inputs(case, CALIBRATION).with_suffix(".txt")

    def _fingerprint(self, key: str) -> Path:
        return self._folder / f"rows-{key}.safetensors"


def make_references(*, folder: str, case: dict[str, Any], variants: list[int]) -> dict[str, Any]:
    """What a child does for the sweep: `Store.make`. The answer is {"unwritable": why}, empty where it was written."""
    try:
        with memory.unmeasured():
            Store(Path(folder)).make(Case(**case), variants)
    except UnwritableError as error:
        return {"unwritable": str(error)}
    return {"unwritable": ""}


def sampled_rows(queries: int, seed: int) -> Int[Tensor, " R"]:
    """64 query rows, one at random from each of as many equal stretches; all of them where there are fewer."""
    if queries <= SAMPLED_ROWS:
        return torch.arange(queries)
    draw = torch.rand(SAMPLED_ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    edges = torch.arange(SAMPLED_ROWS + 1) * queries // SAMPLED_ROWS
    rows = edges[:-1] + (draw * edges.diff()).long()
    rows[-1] = queries - 1  # the last row sees every key
    return rows


def _kernel_inputs(case: Case, variant: int) -> dict[str, Tensor]:
    made = make_inputs(case, variant)
    tensors = {"q": made.q.contiguous(), "k": made.k.contiguous(), "v": made.v.contiguous()}
    if variant != 0:  # errors are measured on variant 0
        return tensors
    queries, keys = made.q.shape[2], made.k.shape[2]
    rows = sampled_rows(queries, case.seed)
    pairs = causal_pairs(queries, keys, causal=case.causal, first=None, rows=rows, device=made.q.device)
    tensors["exact"] = softmax_attention(made.q, made.k, made.v, pairs, case.head_dim**-0.5, rows=rows)
    return tensors


def _anonymous(case: Case) -> Case:
    """The case without what its inputs and exact rows do not depend on; every backend's is the same."""
    mode = "decode" if case.mode == "decode" else "forward"
    nobody = {"subject": "", "backend": "", "label": "", "settings": {}, "control": False, "mode": mode}
    return case.model_copy(update={**nobody, "device": "cpu", "threads": 1})


def _write(text: str, path: Path) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnwritableError(str(error)) from error


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file that is there whole or not at all, even if this process is killed meanwhile."""
    part = path.with_suffix(".part")
    try:
        save_file(tensors, part, metadata)
        part.replace(path)
    except (OSError, SafetensorError) as error:  # the library has a class of its own for what the system refuses
        part.unlink(missing_ok=True)
        raise UnwritableError(str(error)) from error
