"""Inputs and exact answers of a run, made once for all backends and stored in files that every case maps.

One file holds one variant of the inputs for (inputs, shape, n, seed): at kernel level q, k and v, plus, for variant 0,
exact softmax attention in float64 at the sampled rows; at layer level x. The folder also holds fingerprints (the rows
that a case gave in its first round) and what attentions learned from their calibration samples. It belongs to one run
and is removed when the run ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from attentions.common.reference import causal_pairs, softmax_attention
from harness.common.job import Job
from harness.common.rows import Case
from harness.inputs import make_hidden, make_inputs
from harness.measure import memory

CALIBRATION = 2
SAMPLED_ROWS = 64


class UnwritableError(OSError):
    """A file of the run could not be written, usually because the disk is full."""


class NoSampleError(ValueError):
    """There is no calibration sample for a case's inputs; the message says why."""


class Store:
    """The files of one run. Reading maps them: all cases share the pages, and writing to a tensor changes a copy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def missing(self, case: Case, variants: Iterable[int]) -> list[int]:
        """Return the variants of a case's inputs that do not exist yet, except those known to be unavailable."""
        there = [variant for variant in variants if self._inputs(case, variant).exists()]
        if self._without_sample(case).exists():
            there.append(CALIBRATION)
        return [variant for variant in variants if variant not in there]

    def name(self, case: Case) -> str:
        """Return the name that all cases with the same inputs share."""
        return _anonymous(case).digest()

    def size_bytes(self, case: Case) -> int:
        """Return the bytes of a case's inputs, over all variants that exist."""
        files = (self._inputs(case, variant) for variant in (0, 1, CALIBRATION))
        return sum(file.stat().st_size for file in files if file.exists())

    def inputs(self, case: Case, variant: int) -> tuple[Tensor, ...]:
        """Return (q, k, v) at kernel level or (x,) at layer level, on the CPU, freshly mapped on each call.

        Raises NoSampleError if the source of these inputs has no calibration sample.
        """
        if variant == CALIBRATION and (reason := self._without_sample(case)).exists():
            raise NoSampleError(reason.read_text(encoding="utf-8"))
        names = ("q", "k", "v") if case.level == "kernel" else ("x",)
        with safe_open(self._inputs(case, variant), framework="pt") as file:
            return tuple(file.get_tensor(name) for name in names)

    def exact(self, case: Case) -> Tensor | None:
        """Return exact attention (B, H, R, E) in float64 on variant 0 at the sampled rows; None at layer level."""
        with safe_open(self._inputs(case, 0), framework="pt") as file:
            return file.get_tensor("exact") if "exact" in file.keys() else None  # noqa: SIM118

    def make(self, case: Case, variants: Iterable[int]) -> None:
        """Write a case's inputs and exact rows; if there is no calibration sample, write the reason instead.

        Raises ValueError if the source cannot provide the other variants, and UnwritableError if the disk is full.
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
        """Map each variant to the sampled rows of this case's first round; empty if there was none."""
        file = self._fingerprint(key)
        return {int(name): rows for name, rows in load_file(file).items()} if file.exists() else {}

    def keep_fingerprint(self, key: str, rows: dict[int, Tensor]) -> None:
        """Write what `fingerprint` reads."""
        _save({str(variant): tensor.contiguous() for variant, tensor in rows.items()}, self._fingerprint(key))

    def prepared(self, case: Case) -> tuple[dict[str, Tensor], float] | None:
        """Return what an attention of this case learned earlier in the run, and the seconds it took, or None."""
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


@dataclass(frozen=True)
class MakeReferences(Job[str]):
    """Run `Store.make`; the answer is why the files could not be written, "" if they were."""

    folder: Path
    case: Case
    variants: list[int]

    def run(self) -> str:
        try:
            with memory.unmeasured():
                Store(self.folder).make(self.case, self.variants)
        except UnwritableError as error:
            return str(error)
        return ""


def sampled_rows(queries: int, seed: int) -> Int[Tensor, " R"]:
    """Return 64 query rows, one drawn at random from each of 64 equal ranges; all rows if there are fewer."""
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
    """Strip a case of everything that its inputs and exact rows do not depend on, so that all backends share them."""
    mode = "decode" if case.mode == "decode" else "forward"
    nobody = {"subject": "", "backend": "", "label": "", "settings": {}, "control": False, "mode": mode}
    return case.model_copy(update={**nobody, "device": "cpu", "threads": 1})


def _write(text: str, path: Path) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnwritableError(str(error)) from error


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file atomically, even if this process is killed meanwhile."""
    part = path.with_suffix(".part")
    try:
        save_file(tensors, part, metadata)
        part.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors raises its own class for system errors
        part.unlink(missing_ok=True)
        raise UnwritableError(str(error)) from error
