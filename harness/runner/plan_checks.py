"""Check what a well-formed configuration names: things that do not exist or cannot be built."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from attentions import BACKENDS, build
from harness.common.import_path import import_path, nearest
from harness.config.grid import SUBJECTS, Grid, HeadSizes
from harness.config.yaml_source import show
from harness.inputs import why_not
from harness.runner.worker import in_words, is_out_of_memory

if TYPE_CHECKING:
    from harness.common.rows import Case
    from harness.config.backends import LabelledBackend
    from harness.config.model import Config

MOST_CASES = 50_000
WIDEST_BUILT = 2**24  # heads times width


def grid_mistakes(grid: Grid, prefix: str, faulty: Collection[str]) -> Iterator[str]:
    """Report subjects that cannot be imported, except faulty ones, and heads that are not a multiple of kv_heads."""
    for subject in grid.subject:
        try:
            if subject not in SUBJECTS and subject not in faulty:
                import_path(subject)
        except ValueError as error:
            yield f"{prefix}subject: {error}"
    for sizes in grid.head_sizes():
        if sizes.heads % sizes.kv_heads:
            yield (
                f"{prefix}kv_heads: {sizes.kv_heads} is not allowed; "
                f"it must be a divisor of heads, which is {sizes.heads}"
            )


def count_mistakes(grids: Sequence[Grid]) -> list[str]:
    """Report more than `MOST_CASES` cases in total, counted without creating them."""
    count = sum(map(_case_count, grids))
    if count <= MOST_CASES:
        return []
    return [f"{count} cases are requested; at most {MOST_CASES} are allowed, so shorten some of the lists"]


def _case_count(grid: Grid) -> int:
    axes = [grid.subject, grid.level, grid.mode, grid.inputs, grid.batch, grid.causal, grid.dtype, grid.lengths]
    axes += [grid.heads, grid.kv_heads, grid.head_dim, grid.value_dim]
    lists = [[value for value in entry.settings.values() if isinstance(value, list)] for entry in grid.backends]
    return math.prod(map(len, axes)) * sum(math.prod(map(len, axes)) for axes in lists)


def size_mistakes(grid: Grid, prefix: str, memory_bytes: int) -> list[str]:
    """Report the largest case whose inputs and output alone exceed the memory, and how many such cases there are.

    A case that fits the machine but exceeds its current limits is measured, and its row says so.
    """
    if not set(grid.subject) & set(SUBJECTS):
        return []  # other subjects decide themselves what they need
    axes = (grid.level, grid.mode, grid.batch, grid.dtype, grid.lengths, grid.head_sizes())
    needed = {choice: least_bytes(*choice) for choice in itertools.product(*axes)}
    impossible = {choice: count for choice, count in needed.items() if count > memory_bytes}
    if not impossible:
        return []
    largest = max(impossible, key=lambda choice: impossible[choice])
    _, _, batch, dtype, n, sizes = largest
    widths = f"head_dim {sizes.head_dim}" + (f", value_dim {sizes.value_dim}" * (sizes.value_dim != sizes.head_dim))
    others = f", and {len(impossible) - 1} smaller cases are too large as well" if len(impossible) > 1 else ""
    return [
        f"{prefix}lengths: n = {n} with batch {batch}, heads {sizes.heads}, kv_heads {sizes.kv_heads}, {widths} in "
        f"{dtype} is not possible: its inputs and output alone take {impossible[largest]} bytes, but this machine "
        f"has {memory_bytes}{others}"
    ]


def least_bytes(level: str, mode: str, batch: int, dtype: str, n: int, sizes: HeadSizes) -> int:
    """Return the bytes that any method needs: q, k, v and the output, or the layer's input and output."""
    if level == "layer":
        elements = 2 * n * sizes.heads * sizes.head_dim
    else:
        queries, keys = (1, n + 1) if mode == "decode" else (n, n)
        elements = (queries * sizes.heads + keys * sizes.kv_heads) * (sizes.head_dim + sizes.value_dim)
    return batch * elements * getattr(torch, dtype).itemsize


def expectation_mistakes(config: Config, series: Sequence[LabelledBackend]) -> list[str]:
    """Report unknown names in `expect`. A backend that exists but is not measured in this run is allowed."""
    known = dict.fromkeys([*(one.label for one in series), *(one.backend for one in series), *BACKENDS])
    return [
        f"expect.{name}: there is no such backend or label; {nearest(name, known)}known are {', '.join(known)}"
        for name in config.expect
        if name not in known
    ]


def build_mistakes(one: LabelledBackend, grid: Grid, seed: int) -> Iterator[str]:
    """Report what a series' constructor rejects, tried at the shortest and the longest length.

    Running out of memory here is not a mistake, and very wide models, which may need gigabytes, are not tried here;
    their cases report it.
    """
    lengths = dict.fromkeys((min(grid.lengths), max(grid.lengths)))
    for sizes, causal, n in itertools.product(grid.head_sizes(), grid.causal, lengths):
        if sizes.heads * max(sizes.head_dim, sizes.value_dim) > WIDEST_BUILT:
            continue
        shape = {"head_dim": sizes.head_dim, "kv_heads": sizes.kv_heads, "value_dim": sizes.value_dim}
        try:
            build(one.backend, heads=sizes.heads, **shape, causal=causal, max_len=n, seed=seed, **one.settings)
        except Exception as error:  # the constructor may be the user's
            if not is_out_of_memory(error):
                reason = str(error) if isinstance(error, ValueError | TypeError) else in_words(error)
                yield f"{one.path}: {one.label} with {show(one.settings)} cannot be built: {reason}"


def input_mistakes(cases: Sequence[Case], config: Config) -> list[str]:
    """Report, for each kind of inputs, the longest case whose inputs cannot be made."""
    reasons: dict[str, str] = {}
    for case in sorted(cases, key=lambda case: -case.n):
        if case.inputs not in reasons and (reason := why_not(case)):
            reasons[case.inputs] = reason
    paths = {f"text:{config.text_file}": "text_file"}
    return [f"{paths.get(inputs, 'inputs')}: {reason}" for inputs, reason in reasons.items()]
