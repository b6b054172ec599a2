"""What a well-formed configuration can still ask in vain: things that do not exist or cannot be built."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from attentions import BACKENDS, build
from harness.backend_series import Series
from harness.config import Config
from harness.config_grid import SUBJECTS, Grid
from harness.config_source import show
from harness.inputs import why_not
from harness.names import import_path, nearest
from harness.rows import Case
from harness.worker import in_words, is_out_of_memory


def grid_mistakes(grid: Grid, prefix: str) -> Iterator[str]:
    """Subjects that cannot be imported, and heads that are no multiple of kv_heads."""
    for subject in grid.subject:
        try:
            if subject not in SUBJECTS:
                import_path(subject)
        except ValueError as error:
            yield f"{prefix}subject: {error}"
    for sizes in grid.head_sizes():
        if sizes.heads % sizes.kv_heads:
            yield (
                f"{prefix}kv_heads: {sizes.kv_heads} is not allowed; "
                f"it must be a divisor of heads, which is {sizes.heads}"
            )


def expectation_mistakes(config: Config, series: Sequence[Series]) -> list[str]:
    """Names in `expect` that mean nothing. A backend that exists but is not measured now may be expected of."""
    known = dict.fromkeys([*(one.label for one in series), *(one.backend for one in series), *BACKENDS])
    return [
        f"expect.{name}: no backend or label is called this; {nearest(name, known)}there are {', '.join(known)}"
        for name in config.expect
        if name not in known
    ]


def build_mistakes(one: Series, grid: Grid, seed: int) -> Iterator[str]:
    """What a series' constructor refuses, tried at the shortest and at the longest length.

    One that finds no room for itself refuses nothing: its case will say so.
    """
    lengths = dict.fromkeys((min(grid.lengths), max(grid.lengths)))
    for sizes, causal, n in itertools.product(grid.head_sizes(), grid.causal, lengths):
        shape = {"head_dim": sizes.head_dim, "kv_heads": sizes.kv_heads, "value_dim": sizes.value_dim}
        try:
            build(one.backend, heads=sizes.heads, **shape, causal=causal, max_len=n, seed=seed, **one.settings)
        except Exception as error:  # the constructor may be the user's
            if not is_out_of_memory(error):
                reason = str(error) if isinstance(error, ValueError | TypeError) else in_words(error)
                yield f"{one.path}: {one.label} with {show(one.settings)} cannot be built: {reason}"


def input_mistakes(cases: Sequence[Case], config: Config) -> list[str]:
    """For each kind of inputs the longest case whose inputs cannot be made."""
    reasons: dict[str, str] = {}
    for case in sorted(cases, key=lambda case: -case.n):
        if case.inputs not in reasons and (reason := why_not(case)):
            reasons[case.inputs] = reason
    paths = {f"text:{config.text_file}": "text_file"}
    return [f"{paths.get(inputs, 'inputs')}: {reason}" for inputs, reason in reasons.items()]
