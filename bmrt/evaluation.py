"""Questions to an engine, answers to a file, and what they amount to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from bmrt.engine import RecursiveCompressionEngine
from bmrt.records import Records, alone, digest_of, require_unique


@dataclass(frozen=True)
class Sample:
    """A context, a question about it, and what is to come out. `facts` go into the record as they are."""

    id: str
    context: str
    question: str
    target: str
    facts: dict[str, Any] = field(default_factory=dict)


Judge = Callable[[Sample, str], float]


def evaluate(
    engine: RecursiveCompressionEngine, samples: Iterable[Sample], path: Path, judge: Judge, title: str = "samples"
) -> list[dict[str, Any]]:
    """Records of all samples, those made now and those that `path` had already.

    A record holds id, target, response, score (0 to 1 by `judge`), what the engine says of its cache, and the facts.
    Raises ValueError for an id that stands twice, for a file of another model, method, question or version of the code,
    and while another process writes to it.
    """
    samples = list(samples)
    require_unique((sample.id for sample in samples), "sample id")
    digests = {sample.id: digest_of(asdict(sample)) for sample in samples}
    made_by = engine.identity() | {"judge": getattr(judge, "__qualname__", type(judge).__qualname__)}
    with alone(path):
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
    """Wilson's 95 % interval of a mean of scores between 0 and 1; (0, 1) for none.

    Exact scores of 0 and 1 vary most; for scores in between it is wider than need be.
    """
    n, z = len(scores), 1.959964
    if not n:
        return 0.0, 1.0
    mean = sum(scores) / n
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(scores: Sequence[float]) -> str:
    """As in "87.5 % (75.0-94.1, n=40)"."""
    if not scores:
        return "no samples"
    low, high = interval(scores)
    return f"{100 * sum(scores) / len(scores):.1f} % ({100 * low:.1f}-{100 * high:.1f}, n={len(scores)})"
