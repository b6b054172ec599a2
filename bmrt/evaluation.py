"""Questions to an engine, answers to a file, and what they amount to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from bmrt.engine import RecursiveCompressionEngine
from bmrt.records import Records


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
    """
    samples = list(samples)
    records = Records(path, asdict(engine.settings) | {"max_new_tokens": engine.max_new_tokens})
    wanted = [sample for sample in samples if sample.id not in records.done]
    for sample in track(wanted, description=title, disable=len(wanted) < 2, transient=True):
        answer = engine(sample.context, sample.question)
        response = answer.pop("text")[0]
        score = judge(sample, response)
        line = {"id": sample.id, "target": sample.target, "response": response, "score": score}
        records.add(line | answer | sample.facts)
    ids = {sample.id for sample in samples}
    return [line for line in records.lines if line["id"] in ids]


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
