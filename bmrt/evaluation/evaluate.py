"""Runs samples through an engine, records the answers in a file, and summarises the scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from rich.progress import track

from bmrt.evaluation.records import Records, digest_of, locked, require_unique

if TYPE_CHECKING:
    from bmrt.cache.engine import RecursiveCompressionEngine


@dataclass(frozen=True)
class Sample:
    """A context, a question about it, and the expected answer. `facts` are copied into the record."""

    id: str
    context: str
    question: str
    target: str
    facts: dict[str, Any] = field(default_factory=dict)


Judge = Callable[[Sample, str], float]


def evaluate(
    engine: RecursiveCompressionEngine, samples: Iterable[Sample], path: Path, judge: Judge, title: str = "samples"
) -> list[dict[str, Any]]:
    """Return the records of all samples, new ones and those already in `path`.

    A record holds id, target, response, score (0 to 1 by `judge`), the engine's cache figures, and the facts. Raises
    ValueError for a duplicate id, for a file made with another model, method, question, or version of the code, and
    while another process is writing to it.
    """
    samples = list(samples)
    require_unique((sample.id for sample in samples), "sample id")
    digests = {sample.id: digest_of(asdict(sample)) for sample in samples}
    made_by = engine.identity() | {"judge": getattr(judge, "__qualname__", type(judge).__qualname__)}
    with locked(path):
        records = Records(path, made_by, samples=digests)
        done = records.done
        wanted = [sample for sample in samples if sample.id not in done]
        for sample in track(wanted, description=title, disable=len(wanted) < 2, transient=True):
            answer = engine(sample.context, sample.question)
            response = answer.pop("text")[0]
            score = judge(sample, response)
            line = {"id": sample.id, "target": sample.target, "response": response, "score": score}
            records.add(line | answer | sample.facts)
    return [line for line in records.lines if line["id"] in digests]


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Wilson's 95 % interval for a mean of scores between 0 and 1; (0, 1) if there are none.

    Written out because scipy's takes counts, and scores may lie between 0 and 1. There the interval is wider than
    necessary, because scores of exactly 0 and 1 vary most.
    """
    n, z = len(scores), NormalDist().inv_cdf(0.975)
    if not n:
        return 0.0, 1.0
    mean = sum(scores) / n
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(scores: Sequence[float]) -> str:
    """Format a mean with its interval, as in "87.5 % (75.0-94.1, n=40)"."""
    if not scores:
        return "no samples"
    low, high = interval(scores)
    return f"{100 * sum(scores) / len(scores):.1f} % ({100 * low:.1f}-{100 * high:.1f}, n={len(scores)})"
