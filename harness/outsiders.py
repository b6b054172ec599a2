"""What a configuration names by import path, `package.module:Name`, is imported and built in children alone.

Such a module may hang, end its process or take all memory, when it is imported already. Then its cases have that as
their outcome, and the sweep goes on. What Python says in an ordinary exception is a mistake in the configuration.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from attentions import Attention, resolve
from harness.backend_series import series_of
from harness.config import Config, ConfigError
from harness.executor import Executor, Limits, Outcome
from harness.names import is_path
from harness.plan import Planned, expand
from harness.plan_checks import build_mistakes
from harness.rows import Case
from harness.subjects import subject_content

PLANNING_S = 600.0  # limit of building each class at its longest length, when each alone has been built in time
SAID = ("paper", "exact", "approximates", "claimed_time", "causality")


@dataclass(frozen=True)
class ClassFacts:
    """What the sweep knows of a backend's class: where its source is, whether it learns, and what it says of itself."""

    module: str
    learns: bool = False
    said: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(SAID, "") | {"claimed_components": {}})


@dataclass(frozen=True)
class Plan:
    """The cases of a sweep, facts of each backend, and how looking at an outsider ended where that failed.

    `contents` has what each subject named by a path reads, where it says so.
    """

    planned: Sequence[Planned]
    classes: Mapping[str, ClassFacts]
    faults: Mapping[str, Outcome] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)

    def fault(self, case: Case) -> Outcome | None:
        """The outcome that a case has because of what it names."""
        names = (case.backend, case.subject, case.inputs)
        return next((self.faults[name] for name in names if name in self.faults), None)


def make_plan(config: Config, executor: Executor, *, stages: bool = False) -> Plan:
    """Plan a sweep; with `stages`, a case for each stage of the backends that name some, and no other backends.

    Raises ConfigError as `expand` does.
    """
    outsiders = outsiders_of(config)
    if not outsiders and not stages:
        return plan_here(expand(config))
    memory_bytes = config.budget.memory_bytes()
    faults: dict[str, Outcome] = {}
    for name in outsiders:
        arguments = {"name": name, "config": config.model_dump(mode="json")}
        outcome = executor.run("harness.outsiders:look", arguments, Limits(config.budget.case_s, memory_bytes))
        if outcome.status != "ok":
            faults[name] = Outcome(outcome.status, f"{name.partition(':')[0]}: {outcome.reason}", {}, outcome.wall_s)
    arguments = {"config": config.model_dump(mode="json"), "faulty": list(faults), "stages": stages}
    made = executor.run("harness.outsiders:plan_in_child", arguments, Limits(PLANNING_S, memory_bytes))
    if made.status != "ok":
        raise ConfigError([f"planning ends: {made.reason}"])
    if made.answer["mistakes"]:
        raise ConfigError(made.answer["mistakes"])
    planned = [Planned(Case(**case), rounds) for case, rounds in made.answer["planned"]]
    classes = {name: ClassFacts(**facts) for name, facts in made.answer["classes"].items()}
    return Plan(planned, classes, faults, made.answer["contents"])


def plan_here(planned: Sequence[Planned]) -> Plan:
    """The plan of cases whose backends this process may import."""
    return Plan(planned, {name: facts_of(name) for name in {one.case.backend: None for one in planned}})


def outsiders_of(config: Config) -> list[str]:
    """Every import path that a configuration holds."""
    grids = (config, *config.also)
    names = [name for grid in grids for name in (*(e.name for e in grid.backends), *grid.subject, *grid.inputs)]
    return [name for name in dict.fromkeys(names) if is_path(name)]


def facts_of(backend: str, faulty: Collection[str] = ()) -> ClassFacts:
    """What a class says of itself; a class outside the project may leave some unsaid, and a faulty one says nothing."""
    if backend in faulty:
        return ClassFacts(backend.partition(":")[0])
    found = resolve(backend)
    components = {name: list(claim) for name, claim in getattr(found, "claimed_components", {}).items()}
    said = {name: getattr(found, name, "") for name in SAID} | {"claimed_components": components}
    return ClassFacts(found.__module__, found.prepare is not Attention.prepare, said)


def look(*, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """What a child does with one outsider: import it and, if it is a backend, build each of its series."""
    given = Config.model_validate(config)
    with contextlib.suppress(Exception):  # the plan says what is wrong, in the words that belong to it
        importlib.import_module(name.partition(":")[0])
        for grid in (given, *given.also):
            entries = [entry for entry in grid.backends if entry.name == name]
            for one in series_of(entries, ""):
                list(build_mistakes(one, grid, given.seed))
    return {}


def plan_in_child(*, config: dict[str, Any], faulty: list[str], stages: bool) -> dict[str, Any]:
    """What a child does when outsiders take part: the plan as plain data."""
    try:
        planned = expand(Config.model_validate(config), faulty)
    except ConfigError as error:
        return {"mistakes": error.mistakes}
    if stages:
        from harness.components import component_cases

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
