"""Runs the long arena: each case once, in a fresh process, and one row per case whatever the outcome."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter

from attentions import resolve
from harness.common.rows import SCHEMA, Case, Row
from harness.common.source_hash import source_hash
from harness.config.backends import LabelledBackend
from harness.measure.cpu_load import cores
from harness.report import write_report
from harness.results import machine
from harness.results.rows_file import Journal, read_rows
from harness.results.run_dir import FolderError, RunFolder, now
from harness.runner.executor import Executor, Limits
from harness.runner.plan import resolve_device
from harness.runner.progress import reporter
from lsh_v2.arena.jobs import FORWARD, LEARNING, MODULE, ForwardPass, Learning
from lsh_v2.arena.summary import write_summary
from lsh_v2.common.files import read_object
from lsh_v2.common.schemas import ArenaRun
from lsh_v2.training.checkpoint import CheckpointError, load_model
from lsh_v2.training.identity import code_of, files_of

if TYPE_CHECKING:
    from lsh_v2.arena.config import ArenaConfig
    from lsh_v2.common.configuration import ModelConfig

CHECKPOINT = "checkpoint"  # the label of a trained model
CLASS_FACTS = ("paper", "exact", "approximates", "claimed_time", "causality")
LIMITS = {"timeout_seconds", "max_memory_gb", "training_timeout_seconds"}
# May differ when a run is resumed; a checkpoint is identified by its weights.
INCIDENTAL = {"out", "attentions", "sequence_lengths", "tasks", "checkpoint"} | LIMITS


@dataclass(frozen=True)
class ArenaCase:
    """A case, as the job that measures it, and its limits."""

    job: ForwardPass | Learning
    limits: Limits

    @property
    def case(self) -> Case:
        """What is measured."""
        return self.job.case


def run(config: ArenaConfig, command: str = "") -> dict[str, Any]:
    """Measure every case that `config.out` does not hold yet; returns the contents of `benchmark_summary.json`.

    Raises ValueError if `config.out` cannot be used or holds a run of another configuration.
    """
    folder = RunFolder(Path(config.out), {})
    cases, before, facts = list(cases_of(config)), facts_before(config), facts_of(config, command)
    folder.make()
    wanted = [(one, key_of(one, facts)) for one in cases]
    journal, report_to = Journal(folder.path), reporter()
    try:
        folder.write_facts(facts)
        same = all(before.config.get(name) == facts["config"][name] for name in LIMITS)
        rows = {row.key: row for row in read_rows(folder.path) if _final(row, same_limits=same)}
        todo = [(one, key) for one, key in wanted if key not in rows]
        for left in folder.path.glob("children-*"):  # left by a killed run
            shutil.rmtree(left)
        report_to.round(1, len(todo))
        with (
            tempfile.TemporaryDirectory(dir=folder.path, prefix="children-") as scratch,
            Executor(Path(scratch)) as executor,
        ):
            for one, key in todo:
                report_to.starts(one.case, sum(other.limits.time_s for other, _ in todo))
                rows[key] = row = row_of(one, key, facts["run"], executor, _stopped(one.case, rows.values()))
                journal.append(row)
                report_to.ended(row)
        folder.write_facts({**facts, "finished": now()})
    finally:
        report_to.close()
        journal.close()
    summary = write_summary(folder.path, [rows[key] for _, key in wanted])
    write_report(folder.path)
    return summary


def cases_of(config: ArenaConfig) -> Iterator[ArenaCase]:
    """Yield the cost cases, short lengths before long ones, then the tasks."""
    series = config.series()
    for n in config.sequence_lengths:
        for one in series:
            yield _cost(config, one, config.model_of(one, n), n)
        if config.checkpoint is not None:
            yield _checkpoint(config, config.checkpoint, n)
    for name in config.tasks:
        for one in series:
            yield _learning(config, name, one)


def row_of(one: ArenaCase, key: str, run: str, executor: Executor, stopped: str = "") -> Row:
    """Measure a case in its own child process, unless `stopped` gives a reason to skip it; returns its row."""
    identity = {**one.case.model_dump(), "run": run, "key": key, "round": 0}
    if stopped:
        return Row(**identity, status="skipped", reason=stopped)
    outcome = executor.run(one.job, one.limits)
    if outcome.answer is None:
        return Row(**identity, status=outcome.status, reason=outcome.reason)
    return Row(**identity, **outcome.answer.model_dump())


def _final(row: Row, *, same_limits: bool) -> bool:
    """Whether a row is final. Cases that hit a limit are retried under other limits, trainings after any timeout."""
    if row.status in ("ok", "wrong", "unsupported"):
        return True
    return same_limits and not (row.mode == "train" and row.status == "timeout")


def _stopped(case: Case, rows: Iterable[Row]) -> str:
    """Return why a case is skipped: a shorter length of the same attention ran out of time or memory. Empty if not."""
    for row in rows:
        same = (row.subject, row.label, row.inputs) == (case.subject, case.label, case.inputs)
        if same and row.n < case.n and row.status in ("timeout", "oom"):
            return f"{row.n} tokens already ended in {row.status}"
    return ""


def key_of(one: ArenaCase, facts: dict[str, Any]) -> str:
    """Hash what determines a case's row: case, other fields except limits, machine, library versions, and source."""
    source = _source(resolve(one.case.backend).__module__)
    adapter = TypeAdapter(type(one.job))
    fields = adapter.dump_python(one.job, mode="json", exclude={"case", "time_s", "memory_gb"})
    return one.case.digest(facts["machine"]["name"], json.dumps([facts["versions"], fields], sort_keys=True), source)


@cache
def _source(backend: str) -> str:
    return source_hash(MODULE, backend)


def facts_before(config: ArenaConfig) -> ArenaRun:
    """Read `run.json` of the previous start, empty before the first. Raises ValueError if it is damaged."""
    return read_object(Path(config.out) / "run.json", ArenaRun) or ArenaRun()


def facts_of(config: ArenaConfig, command: str) -> dict[str, Any]:
    """Return the contents of `run.json`; a resumed run keeps its name and start time.

    Raises FolderError if `out` holds a run of another configuration.
    """
    before, plain = facts_before(config), config.model_dump(mode="json")
    differing = [key for key, value in (before.config or plain).items() if plain.get(key) != value]
    if differing := sorted(set(differing) - INCIDENTAL):
        raise FolderError(
            f"{config.out} holds a run of another configuration, which differs in {', '.join(differing)}: choose "
            "another `out`, or remove it"
        )
    device = resolve_device(config.device)
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    commit, dirty = machine.commit()
    labels = {one.label: one.backend for one in config.series()}
    return {
        "run": before.run or f"long-arena-{now()}",
        "schema": SCHEMA,
        "started": before.started or now(),
        "command": command,
        "commit": commit,
        "dirty": dirty,
        "machine": machine.describe(gpu).model_dump(),
        "versions": machine.versions(),
        "config": plain,
        "class_facts": {
            label: {name: getattr(resolve(backend), name, "") for name in CLASS_FACTS}
            for label, backend in labels.items()
        },
        "finished": None,
    }


def _cost(
    config: ArenaConfig,
    one: LabelledBackend,
    model: ModelConfig,
    n: int,
    checkpoint: str | None = None,
    weights: str = "",
) -> ArenaCase:
    case = _case(config, one, model, subject=FORWARD, n=n, inputs="text", mode="forward")
    job = ForwardPass(
        case=case,
        model=model,
        checkpoint=checkpoint,
        weights=weights,
        samples=config.num_samples_per_length,
        time_s=config.timeout_seconds,
        memory_gb=config.max_memory_gb,
    )
    on_cpu = case.device == "cpu"
    limit = int(config.max_memory_gb * 1e9) if on_cpu else None  # a GPU driver maps more than the memory there is
    return ArenaCase(job, Limits(config.timeout_seconds, limit, None))


def _checkpoint(config: ArenaConfig, folder: str, n: int) -> ArenaCase:
    """Time the trained model at a length, which may exceed the length it was trained for."""
    kept, weights = _trained(folder)
    model = kept.model_copy(update={"max_seq_len": max(n, kept.max_seq_len)})
    one = LabelledBackend(model.attention, CHECKPOINT, model.attention_settings, False, "checkpoint")
    return _cost(config, one, model, n, folder, weights)


@cache
def _trained(folder: str) -> tuple[ModelConfig, str]:
    """Return the configuration of a trained model and the hash of its weights."""
    try:
        model = load_model(folder)
    except CheckpointError as error:
        raise ValueError(f"checkpoint={folder} is not allowed: {error}") from error
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return model.config, digest.hexdigest()


def _learning(config: ArenaConfig, name: str, one: LabelledBackend) -> ArenaCase:
    label = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in one.label)
    training = config.training_of(name, one, Path(config.out) / "training" / f"{name}-{label}")
    # Never resume what other code or other file contents started: it gets another folder, and so another row.
    read = hashlib.sha256(json.dumps([code_of(training), files_of(training)]).encode()).hexdigest()
    training = training.model_copy(update={"out": f"{training.out}-{read[:8]}"})
    model = training.model_of(vocab_size=259)
    case = _case(config, one, model, subject=LEARNING, n=training.seq_length, inputs=name, mode="train")
    return ArenaCase(Learning(case, training), Limits(config.training_timeout_seconds, None, None))


def _case(
    config: ArenaConfig, one: LabelledBackend, model: ModelConfig, *, subject: str, n: int, inputs: str, mode: Any
) -> Case:
    return Case(
        subject=subject,
        backend=one.backend,
        label=one.label,
        settings=one.settings,
        control=one.control,
        level="layer",
        mode=mode,
        inputs=inputs,
        n=n,
        batch=1,
        heads=model.n_heads,
        kv_heads=model.n_kv_heads,
        head_dim=model.key_dim,
        value_dim=model.head_dim,
        dtype=config.dtype if subject == FORWARD else "float32",
        device=resolve_device(config.device),
        threads=config.threads or len(cores()),
        causal=model.causal,
        seed=config.seed,
    )
