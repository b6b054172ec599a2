"""All measuring of one sweep: what the machine is and can reach, `run.json`, the rounds, and leaving things tidy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from harness import machine
from harness.config import Config
from harness.executor import Executor, Limits
from harness.interruption import Interruption
from harness.journal import Journal, read_rows
from harness.outsiders import Plan
from harness.progress import Reporter, reporter
from harness.rounds import Circumstances, Rounds
from harness.rows import SCHEMA, Row
from harness.run_folder import FolderError, RunFolder, new_name, now

CEILINGS_S = 1.5
CEILINGS_LIMIT_S = 120.0  # a busy machine takes its time


def measure(
    config: Config,
    plan: Plan,
    folder: RunFolder,
    command: str,
    started_s: float,
    executor: Executor,
    interruption: Interruption,
) -> bool:
    """Take every row that is not there yet; returns whether it came to its end, or was interrupted.

    Raises JournalError and FolderError where the folder's rows cannot be read, continued or written, and ServerError.
    """
    executor.start()
    earlier = read_rows(folder.path)
    journal = Journal(folder.path)
    report_to = reporter()
    try:
        folder.clear_cache()
        folder.cache.mkdir()
        executor.scratch = folder.cache
        if not folder.facts.get("machine"):  # a new run; one that is resumed must prove to be on its machine first
            folder.write_config(config)
        facts = _facts(config, plan, folder, command, earlier, executor, report_to)
        folder.write_config(config)
        folder.write_facts(facts)
        circumstances = _circumstances(config, plan, facts, started_s)
        rounds = Rounds(plan, circumstances, journal, executor, folder.cache, report_to, earlier)
        rounds.prime()
        rounds.run(interruption.check)
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
    plan: Plan,
    folder: RunFolder,
    command: str,
    earlier: Sequence[Row],
    executor: Executor,
    report_to: Reporter,
) -> dict[str, Any]:
    """What `run.json` holds. A resumed run keeps its name, start and ceilings, and must be on the same machine."""
    ceilings = _ceilings(plan, executor, report_to)
    here = machine.describe(ceilings.pop("gpu"))
    before = folder.facts
    there = before.get("machine", {}).get("name", here.name)
    if why := machine.why_other(here, there):
        raise FolderError(f"--resume: {folder.path} {why}")
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
        "class_facts": {one.case.label: plan.classes[one.case.backend].said for one in plan.planned},
        "finished": None,
    }


def _ceilings(plan: Plan, executor: Executor, report_to: Reporter) -> dict[str, Any]:
    """This machine's ceilings for the dtypes of the plan, and its GPU's name; nothing known if that fails."""
    cases = [one.case for one in plan.planned]
    arguments = {
        "device": cases[0].device,
        "dtypes": sorted({case.dtype for case in cases}),
        "threads": max(case.threads for case in cases),
        "budget_s": CEILINGS_S,
    }
    measured = executor.run("harness.ceilings:measure_ceilings", arguments, Limits(CEILINGS_LIMIT_S))
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


def _circumstances(config: Config, plan: Plan, facts: dict[str, Any], started_s: float) -> Circumstances:
    on_cpu = plan.planned[0].case.device == "cpu"
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
