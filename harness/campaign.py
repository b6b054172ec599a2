"""All measuring of one sweep: what the machine is and can reach, `run.json`, the rounds, and leaving things tidy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attentions import resolve
from harness import machine
from harness.config import Config
from harness.executor import Executor, Limits
from harness.interruption import Interruption
from harness.journal import Journal, read_rows
from harness.plan import Planned
from harness.progress import Reporter, reporter
from harness.rounds import Circumstances, Rounds
from harness.rows import SCHEMA, Row
from harness.run_folder import FolderError, RunFolder, new_name, now
from harness.subjects import SUBJECTS

CEILINGS_S = 1.5
SERVICE_S = 600.0  # limit of what is no case: a native backend may have to be compiled


def measure(config: Config, planned: Sequence[Planned], folder: RunFolder, command: str, started_s: float) -> bool:
    """Take every row that is not there yet; returns whether it came to its end, or was interrupted.

    Raises JournalError and FolderError where the folder's rows cannot be read, continued or written.
    """
    earlier = read_rows(folder.path)
    journal = Journal(folder.path)
    report_to = reporter()
    try:
        with Interruption() as interruption:
            folder.clear_cache()
            folder.cache.mkdir()
            if not folder.facts.get("machine"):  # a new run; one that is resumed must prove to be on its machine first
                folder.write_config(config)
            executor = Executor(folder.cache)
            facts = _facts(config, planned, folder, command, earlier, executor, report_to)
            folder.write_config(config)
            folder.write_facts(facts)
            _prime(planned, executor, report_to)
            circumstances = _circumstances(config, planned, facts, started_s)
            Rounds(planned, circumstances, journal, executor, folder.cache, report_to, earlier).run(interruption.check)
            folder.write_facts({**facts, "finished": now()})
            return True
    except KeyboardInterrupt:
        report_to.note("interrupted; everything measured so far is kept")
        return False
    finally:
        report_to.close()
        journal.close()
        folder.clear_cache()


def _facts(
    config: Config,
    planned: Sequence[Planned],
    folder: RunFolder,
    command: str,
    earlier: Sequence[Row],
    executor: Executor,
    report_to: Reporter,
) -> dict[str, Any]:
    """What `run.json` holds. A resumed run keeps its name, start and ceilings, and must be on the same machine."""
    ceilings = _ceilings(planned, executor, report_to)
    here = machine.describe(ceilings.pop("gpu"))
    before = folder.facts
    there = before.get("machine", {}).get("name", here.name)
    if there != here.name:
        raise FolderError(f"--resume: {folder.path} was measured on {there}; this machine is {here.name}")
    commit, dirty = machine.commit()
    return {
        "run": before.get("run") or (earlier[0].run if earlier else new_name()),
        "schema": SCHEMA,
        "started": before.get("started", now()),
        "command": command,
        "commit": commit,
        "dirty": dirty,
        "machine": here.as_dict(),
        "versions": machine.versions(),
        "ceilings": _higher(ceilings, before.get("ceilings")),
        "config": config.model_dump(mode="json"),
        "class_facts": {one.case.label: _class_facts(one.case.backend) for one in planned},
        "finished": None,
    }


def _ceilings(planned: Sequence[Planned], executor: Executor, report_to: Reporter) -> dict[str, Any]:
    """This machine's ceilings for the dtypes of the plan, and its GPU's name; nothing known if that fails."""
    cases = [one.case for one in planned]
    arguments = {
        "device": cases[0].device,
        "dtypes": sorted({case.dtype for case in cases}),
        "threads": max(case.threads for case in cases),
        "budget_s": CEILINGS_S,
    }
    measured = executor.run("harness.ceilings:measure_ceilings", arguments, Limits(SERVICE_S))
    if measured.status == "ok":
        return measured.answer
    report_to.note(f"what this machine can reach is unknown, so no time is judged by it: {measured.reason}")
    return {"flops_per_s": {}, "copy_bytes_per_s": 0.0, "gpu": ""}


def _higher(measured: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The higher of two measurements of the same ceilings: a busy machine only ever shows less."""
    if before is None:
        return measured
    both = (measured["flops_per_s"], before["flops_per_s"])
    return {
        "flops_per_s": {dtype: max(one.get(dtype, 0.0) for one in both) for dtype in both[0] | both[1]},
        "copy_bytes_per_s": max(measured["copy_bytes_per_s"], before["copy_bytes_per_s"]),
    }


def _class_facts(backend: str) -> dict[str, Any]:
    """What a class says of itself; a class outside the project may leave some unsaid."""
    found = resolve(backend)
    names = ("paper", "exact", "approximates", "claimed_time", "causality")
    components = {name: list(claim) for name, claim in getattr(found, "claimed_components", {}).items()}
    return {name: getattr(found, name, "") for name in names} | {"claimed_components": components}


def _prime(planned: Sequence[Planned], executor: Executor, report_to: Reporter) -> None:
    """Run each backend once on a few tokens, so that what is compiled on first use is there before the first case.

    What goes wrong here goes wrong in the cases too, which say so; why something could not be compiled is said here.
    """
    first: dict[str, Planned] = {}
    for one in sorted(planned, key=lambda one: one.case.n):
        if one.case.subject in SUBJECTS:
            first.setdefault(one.case.backend, one)
    warned: dict[str, None] = {}
    for one in first.values():
        outcome = executor.run("harness.attention_case:prime", {"case": one.case.model_dump()}, Limits(SERVICE_S))
        warned |= dict.fromkeys(outcome.answer.get("warnings", ()))
    for warning in warned:
        report_to.note(warning)


def _circumstances(
    config: Config, planned: Sequence[Planned], facts: dict[str, Any], started_s: float
) -> Circumstances:
    on_cpu = planned[0].case.device == "cpu"
    return Circumstances(
        run=facts["run"],
        environment=json.dumps([facts["machine"]["name"], facts["versions"]], sort_keys=True),
        flops_per_s=facts["ceilings"]["flops_per_s"],
        copy_bytes_per_s=facts["ceilings"]["copy_bytes_per_s"],
        memory_bytes=config.budget.memory_bytes() if on_cpu else None,
        budget=config.budget,
        seed=config.seed,
        started_s=started_s,
    )
