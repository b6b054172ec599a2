"""Import and build user classes, named by `package.module:Name` in the configuration, in child processes only.

Such a module may hang, exit or use up all memory as soon as it is imported. In that case its cases get that outcome and
the sweep goes on. An ordinary Python exception is a mistake in the configuration.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Never

from attentions import Attention, resolve
from harness.common.import_path import is_path
from harness.common.job import Job
from harness.config.backends import series_of
from harness.config.model import Config
from harness.config.yaml_source import ConfigError
from harness.runner.executor import Executor, Limits, Outcome
from harness.runner.plan import Planned, component_cases, expand
from harness.runner.plan_checks import build_mistakes
from harness.subjects.base import subject_content

if TYPE_CHECKING:
    from harness.common.rows import Case

PLANNING_S = 600.0  # limit for building every class at its longest length, after each has been built alone in time
DECLARED = ("paper", "exact", "approximates", "claimed_time", "causality")


@dataclass(frozen=True)
class BackendClass:
    """What the sweep knows about a backend's class: its source module, whether it learns, and what it declares."""

    module: str
    learns: bool = False
    declared: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(DECLARED, "") | {"claimed_components": {}})


@dataclass(frozen=True)
class SweepPlan:
    """The cases of a sweep, facts about each backend, and the outcome of each external name that failed to load.

    `contents` maps each subject named by a path to a hash of the files that it reads, if it declares one.
    """

    planned: Sequence[Planned]
    classes: Mapping[str, BackendClass]
    faults: Mapping[str, Outcome[Never]] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)

    def fault(self, case: Case) -> Outcome[Never] | None:
        """Return the outcome that a case has because something it names failed to load, or None."""
        names = (case.backend, case.subject, case.inputs)
        return next((self.faults[name] for name in names if name in self.faults), None)


def make_plan(config: Config, executor: Executor, *, stages: bool = False) -> SweepPlan:
    """Plan a sweep; with `stages`, plan only the backends that have stages, with one case per stage.

    Raises ConfigError as `expand` does.
    """
    external_names = external_names_of(config)
    if not external_names and not stages:
        return plan_here(expand(config))
    memory_bytes = config.budget.memory_bytes()
    faults: dict[str, Outcome[Never]] = {}
    for name in external_names:
        outcome = executor.run(TryExternal(name, config), Limits(config.budget.case_s, memory_bytes))
        if outcome.status != "ok":
            faults[name] = Outcome(outcome.status, f"{name.partition(':')[0]}: {outcome.reason}", None, outcome.wall_s)
    made = executor.run(PlanExternal(config, list(faults), stages), Limits(PLANNING_S, memory_bytes))
    if made.answer is None:
        raise ConfigError([f"planning failed: {made.reason}"])
    if made.answer.mistakes:
        raise ConfigError(made.answer.mistakes)
    return SweepPlan(made.answer.planned, made.answer.classes, faults, made.answer.contents)


def plan_here(planned: Sequence[Planned]) -> SweepPlan:
    """Plan cases whose backends can be imported in this process."""
    return SweepPlan(planned, {name: facts_of(name) for name in {one.case.backend: None for one in planned}})


def external_names_of(config: Config) -> list[str]:
    """Return every import path in a configuration."""
    grids = (config, *config.also)
    names = [name for grid in grids for name in (*(e.name for e in grid.backends), *grid.subject, *grid.inputs)]
    return [name for name in dict.fromkeys(names) if is_path(name)]


def facts_of(backend: str, faulty: Collection[str] = ()) -> BackendClass:
    """Return what a class declares about itself; fields may be missing, and a faulty class declares nothing."""
    if backend in faulty:
        return BackendClass(backend.partition(":")[0])
    found = resolve(backend)
    components = {name: list(claim) for name, claim in getattr(found, "claimed_components", {}).items()}
    declared = {name: getattr(found, name, "") for name in DECLARED} | {"claimed_components": components}
    return BackendClass(found.__module__, found.prepare is not Attention.prepare, declared)


@dataclass(frozen=True)
class TryExternal(Job[None]):
    """Import one external name and, if it is a backend, build each of its series."""

    name: str
    config: Config

    def run(self) -> None:
        with contextlib.suppress(Exception):  # the planning step reports the mistake in its own words
            importlib.import_module(self.name.partition(":")[0])
            for grid in (self.config, *self.config.also):
                entries = [entry for entry in grid.backends if entry.name == self.name]
                for one in series_of(entries, ""):
                    list(build_mistakes(one, grid, self.config.seed))


@dataclass(frozen=True)
class ExternalPlan:
    """The mistakes of a configuration, or the parts of its plan that need the external classes."""

    mistakes: list[str] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
    classes: dict[str, BackendClass] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanExternal(Job[ExternalPlan]):
    """Make the plan of a configuration that names external classes, of which the `faulty` ones fail to load."""

    config: Config
    faulty: list[str]
    stages: bool

    def run(self) -> ExternalPlan:
        try:
            planned = expand(self.config, self.faulty)
        except ConfigError as error:
            return ExternalPlan(error.mistakes)
        if self.stages:
            sound = [one for one in planned if one.case.backend not in self.faulty]
            planned = [*component_cases(sound), *(one for one in planned if one.case.backend in self.faulty)]
        backends = {one.case.backend: None for one in planned}
        subjects = {one.case.subject: None for one in planned if is_path(one.case.subject)}
        return ExternalPlan(
            planned=planned,
            classes={name: facts_of(name, self.faulty) for name in backends},
            contents={name: subject_content(name) for name in subjects if name not in self.faulty},
        )
