"""Expand a configuration into cases, checking that each can be built."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from attentions import Attention, resolve
from harness.common.rows import Case
from harness.config.backends import LabelledBackend, entry_mistakes, label_clashes, series_of
from harness.config.yaml_source import ConfigError
from harness.measure.cpu_load import cores
from harness.runner.plan_checks import (
    build_mistakes,
    count_mistakes,
    expectation_mistakes,
    grid_mistakes,
    input_mistakes,
    size_mistakes,
)
from harness.subjects.component import LISTED_AT, SETTING, SUBJECT, stages

if TYPE_CHECKING:
    from harness.config.grid import Grid
    from harness.config.model import Config


@dataclass(frozen=True)
class Planned:
    """A case and the number of rounds in which it is measured."""

    case: Case
    rounds: int


@dataclass(frozen=True)
class _Part:
    """A grid with its series; `prefix` is the path to the grid."""

    grid: Grid
    series: list[LabelledBackend]
    prefix: str


def expand(config: Config, faulty: Collection[str] = ()) -> list[Planned]:
    """Return every case of the main grid and of `also`; a case in several grids appears once, with the most rounds.

    Device, threads and null sizes are resolved. Raises ConfigError with one line per mistake: too many cases, cases
    larger than the machine's memory, backends, settings, subjects and inputs that do not exist or cannot be built, and
    duplicate labels. Import paths in `faulty` are not checked.
    """
    grids = [("", config), *((f"also.{index}.", grid) for index, grid in enumerate(config.also))]
    _refuse(count_mistakes([grid for _, grid in grids]))
    parts = [_Part(grid, series_of(grid.backends, f"{prefix}backends"), prefix) for prefix, grid in grids]
    _refuse(_name_mistakes(config, parts, faulty))
    _refuse(
        [
            mistake
            for part in parts
            for one in part.series
            if one.backend not in faulty
            for mistake in build_mistakes(one, part.grid, config.seed)
        ]
    )
    planned: dict[str, Planned] = {}
    for part in parts:
        for case in _cases(part, config):
            before = planned.get(case.digest())
            planned[case.digest()] = Planned(case, max(part.grid.rounds, before.rounds if before else 0))
    cases = [one.case for one in planned.values() if one.case.inputs not in faulty]
    _refuse(input_mistakes(cases, config))
    return list(planned.values())


def component_cases(planned: Sequence[Planned]) -> list[Planned]:
    """Return the planned cases of attentions that have stages, each followed by one case per stage."""
    found: list[Planned] = []
    names: dict[str, list[str]] = {}
    for one in planned:
        case = one.case
        usual = (case.subject, case.level, case.mode) == ("attention", "kernel", "forward")
        if not usual or resolve(case.backend).components is Attention.components:
            continue
        if case.label not in names:
            names[case.label] = list(stages(case, LISTED_AT))
        found.append(one)
        for name in names[case.label]:
            changed = {
                "subject": SUBJECT,
                "label": f"{case.label}: {name}",
                "settings": {**case.settings, SETTING: name},
            }
            found.append(Planned(case.model_copy(update=changed), one.rounds))
    return found


def round_order(planned: Sequence[Planned], round: int, seed: int) -> list[Case]:  # noqa: A002, the name used here
    """Return the cases of a round, counted from 0, shuffled across backends and lengths, reproducibly for a seed."""
    cases = [one.case for one in planned if one.rounds > round]
    random.Random(f"{seed} {round}").shuffle(cases)
    return cases


def resolve_device(name: str) -> str:
    """Resolve `auto` to the first of cuda, mps and cpu that is available; return other names, or "" if unavailable."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, present in there.items() if present)
    kind, _, index = name.partition(":")
    if not there[kind] or (index and int(index) >= torch.cuda.device_count()):
        return ""
    return name


def _memory_bytes(device: str) -> int:
    """Return a device's total memory, free or not; on the CPU including swap."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total + psutil.swap_memory().total


def _refuse(mistakes: Sequence[str]) -> None:
    if mistakes:
        raise ConfigError(mistakes)


def _name_mistakes(config: Config, parts: Sequence[_Part], faulty: Collection[str]) -> list[str]:
    series = [one for part in parts for one in part.series]
    mistakes = (
        []
        if resolve_device(config.device)
        else [f"device: '{config.device}' is not available on this machine; auto uses what is"]
    )
    if (config.threads or 1) > (most := len(cores())):  # otherwise threads would wait for each other and distort times
        mistakes.append(f"threads: {config.threads} is not allowed; it must be from 1 to {most}, the number of cores")
    for part in parts:
        mistakes += grid_mistakes(part.grid, part.prefix, faulty)
        mistakes += size_mistakes(part.grid, part.prefix, _memory_bytes(resolve_device(config.device)))
        for index, entry in enumerate(part.grid.backends):
            if entry.name not in faulty:
                mistakes += entry_mistakes(entry, f"{part.prefix}backends.{index}")
    return mistakes + label_clashes(series) + expectation_mistakes(config, series)


def _cases(part: _Part, config: Config) -> Iterator[Case]:
    grid, device, threads = part.grid, resolve_device(config.device), config.threads or len(cores())
    axes = (grid.subject, grid.level, grid.mode, grid.inputs, grid.batch, grid.causal, grid.dtype)
    for subject, level, mode, inputs, batch, causal, dtype in itertools.product(*axes):
        for sizes, one, n in itertools.product(grid.head_sizes(), part.series, grid.lengths):
            yield Case(
                subject=subject,
                backend=one.backend,
                label=one.label,
                settings=one.settings,
                control=one.control,
                level=level,
                mode=mode,
                inputs=_inputs_name(inputs, config),
                n=n,
                batch=batch,
                heads=sizes.heads,
                kv_heads=sizes.kv_heads,
                head_dim=sizes.head_dim,
                value_dim=sizes.value_dim,
                dtype=dtype,
                device=device,
                threads=threads,
                causal=causal,
                seed=config.seed,
            )


def _inputs_name(inputs: str, config: Config) -> str:
    return f"text:{config.text_file}" if inputs == "text" and config.text_file else inputs
