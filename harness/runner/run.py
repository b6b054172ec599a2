"""Measure one sweep: record the machine and its ceilings, write `run.json`, run the rounds, and clean up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.common.rows import SCHEMA, Row
from harness.measure.roofline import MeasureCeilings, ReachedRates
from harness.results import machine
from harness.results.rows_file import Journal, read_rows
from harness.results.run_dir import FolderError, RunFolder, new_name, now
from harness.runner.executor import Executor, Limits
from harness.runner.progress import Reporter, reporter
from harness.runner.scheduler import Circumstances, Rounds

if TYPE_CHECKING:
    from harness.common.deadline import Start
    from harness.config.model import Config
    from harness.runner.external import SweepPlan
    from harness.runner.signals import Interruption

CEILINGS_S = 1.5
CEILINGS_LIMIT_S = 120.0  # generous, for a busy machine


def measure(
    config: Config,
    plan: SweepPlan,
    folder: RunFolder,
    command: str,
    started: Start,
    executor: Executor,
    interruption: Interruption,
) -> bool:
    """Measure every row that is not recorded yet; return False if interrupted, True if finished.

    Raises JournalError and FolderError if the folder's rows cannot be read, continued or written, and ServerError if
    the fork server fails.
    """
    executor.start()
    earlier = read_rows(folder.path)
    journal = Journal(folder.path)
    report_to = reporter()
    try:
        folder.clear_cache()
        folder.cache.mkdir()
        executor.scratch = folder.cache
        if not folder.facts.get("machine"):  # a new run; a resumed one must first prove that it is on its machine
            folder.write_config(config)
        facts = _facts(config, plan, folder, command, earlier, executor, report_to)
        folder.write_config(config)
        folder.write_facts(facts)
        circumstances = _circumstances(config, plan, facts, started)
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
    plan: SweepPlan,
    folder: RunFolder,
    command: str,
    earlier: Sequence[Row],
    executor: Executor,
    report_to: Reporter,
) -> dict[str, Any]:
    """Return the contents of `run.json`.

    A resumed run keeps its name, start and ceilings, and must be on the same machine.
    """
    ceilings = _ceilings(plan, executor, report_to)
    here = machine.describe(ceilings.gpu)
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
        "machine": here.model_dump(),
        "versions": machine.versions(),
        "ceilings": _higher(ceilings, before.get("ceilings")),
        "config": config.model_dump(mode="json"),
        "class_facts": {one.case.label: plan.classes[one.case.backend].declared for one in plan.planned},
        "finished": None,
    }


def _ceilings(plan: SweepPlan, executor: Executor, report_to: Reporter) -> ReachedRates:
    """Measure this machine's ceilings for the dtypes of the plan, and its GPU's name; empty if that fails."""
    cases = [one.case for one in plan.planned]
    job = MeasureCeilings(
        device=cases[0].device,
        dtypes=sorted({case.dtype for case in cases}),
        threads=max(case.threads for case in cases),
        budget_s=CEILINGS_S,
    )
    measured = executor.run(job, Limits(CEILINGS_LIMIT_S))
    if measured.answer is not None:
        return measured.answer
    report_to.note(f"the limits of this machine are unknown, so times are not checked against them: {measured.reason}")
    return ReachedRates({}, 0.0, "")


def _higher(measured: ReachedRates, before: dict[str, Any] | None) -> dict[str, Any]:
    """Return the higher of two measurements of the same ceilings: a busy machine can only lower them."""
    before = before or {"flops_per_s": {}, "copy_bytes_per_s": 0.0}
    both = (measured.flops_per_s, before["flops_per_s"])
    return {
        "flops_per_s": {dtype: max(one.get(dtype, 0.0) for one in both) for dtype in both[0] | both[1]},
        "copy_bytes_per_s": max(measured.copy_bytes_per_s, before["copy_bytes_per_s"]),
    }


def _circumstances(config: Config, plan: SweepPlan, facts: dict[str, Any], started: Start) -> Circumstances:
    on_cpu = plan.planned[0].case.device == "cpu"
    return Circumstances(
        run=facts["run"],
        environment=json.dumps([facts["machine"]["name"], facts["versions"]], sort_keys=True),
        flops_per_s=facts["ceilings"]["flops_per_s"],
        copy_bytes_per_s=facts["ceilings"]["copy_bytes_per_s"],
        memory_bytes=config.budget.memory_bytes() if on_cpu else None,
        budget=config.budget,
        seed=config.seed,
        started=started,
    )
