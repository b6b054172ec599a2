"""Import and build user classes, named by `package.module:Name` in the configuration, in child processes only.

Such a module may hang, exit or use up all memory as soon as it is imported. In that case its cases get that outcome and
the sweep goes on. An ordinary Python exception is a mistake in the configuration.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from attentions import Attention, resolve
from harness.common.import_path import is_path
from harness.common.rows import Case
from harness.config.backends import series_of
from harness.config.model import Config
from harness.config.yaml_source import ConfigError
from harness.runner.executor import Executor, Limits, Outcome
from harness.runner.plan import Planned, component_cases, expand
from harness.runner.plan_checks import build_mistakes
from harness.subjects.base import subject_content

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
    faults: Mapping[str, Outcome] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)

    def fault(self, case: Case) -> Outcome | None:
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
    faults: dict[str, Outcome] = {}
    for name in external_names:
        arguments = {"name": name, "config": config.model_dump(mode="json")}
        outcome = executor.run("harness.runner.external:look", arguments, Limits(config.budget.case_s, memory_bytes))
        if outcome.status != "ok":
            faults[name] = Outcome(outcome.status, f"{name.partition(':')[0]}: {outcome.reason}", {}, outcome.wall_s)
    arguments = {"config": config.model_dump(mode="json"), "faulty": list(faults), "stages": stages}
    made = executor.run("harness.runner.external:plan_in_child", arguments, Limits(PLANNING_S, memory_bytes))
    if made.status != "ok":
        raise ConfigError([f"planning failed: {made.reason}"])
    if made.answer["mistakes"]:
        raise ConfigError(made.answer["mistakes"])
    planned = [Planned(Case(**case), rounds) for case, rounds in made.answer["planned"]]
    classes = {name: BackendClass(**facts) for name, facts in made.answer["classes"].items()}
    return SweepPlan(planned, classes, faults, made.answer["contents"])


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


def look(*, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Import one external name and, if it is a backend, build each of its series. Runs in a child."""
    given = Config.model_validate(config)
    with contextlib.suppress(Exception):  # the planning step reports the mistake in its own words
        importlib.import_module(name.partition(":")[0])
        for grid in (given, *given.also):
            entries = [entry for entry in grid.backends if entry.name == name]
            for one in series_of(entries, ""):
                list(build_mistakes(one, grid, given.seed))
    return {}


def plan_in_child(*, config: dict[str, Any], faulty: list[str], stages: bool) -> dict[str, Any]:
    """Make the plan as plain data. Runs in a child when the configuration names external classes."""
    try:
        planned = expand(Config.model_validate(config), faulty)
    except ConfigError as error:
        return {"mistakes": error.mistakes}
    if stages:
        sound = [one for one in planned if one.case.backend not in faulty]
        planned = [*component_cases(sound), *(one for one in planned if one.case.backend in faulty)]
    backends = {one.case.backend: None for one in planned}
    subjects = {one.case.subject: None for one in planned if is_path(one.case.subject)}
    return {
        "mistakes": [],
        "planned": [[one.case.model_dump(), one.rounds] for one in planned],
        "classes": {name: asdict(facts_of(name, faulty)) for name in backends},
        "contents": {name: subject_content(name) for name in subjects if name not in faulty},
    }
