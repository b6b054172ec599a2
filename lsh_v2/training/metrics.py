"""What a run leaves to be read: a line for each step, one JSON file, one figure. All of it follows from the lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scipy import stats

STEPS = "steps.jsonl"
METRICS = "training_metrics.json"


def write_steps(out: Path, steps: list[dict[str, Any]]) -> None:
    """Replace the record by these steps, all at once."""
    draft = out / (STEPS + ".new")
    draft.write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    draft.replace(out / STEPS)


def epoch_losses(steps: list[dict[str, Any]]) -> list[float]:
    """Mean training loss of each epoch."""
    by_epoch = _by_epoch(steps)
    return [sum(losses) / len(losses) for losses in by_epoch]


def loss_drop(steps: list[dict[str, Any]]) -> tuple[float, list[float]] | None:
    """First epoch's mean loss less the last's, with its 95 % interval (Welch); None below two steps in each."""
    by_epoch = _by_epoch(steps)
    if len(by_epoch) < 2 or min(len(by_epoch[0]), len(by_epoch[-1])) < 2:
        return None
    test: Any = stats.ttest_ind(by_epoch[0], by_epoch[-1], equal_var=False)
    interval = test.confidence_interval(0.95)
    return epoch_losses(steps)[0] - epoch_losses(steps)[-1], [float(interval.low), float(interval.high)]


def write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    """training_metrics.json, complete or as it was, and the figure beside it."""
    draft = out / (METRICS + ".new")
    draft.write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    draft.replace(out / METRICS)
    plot(metrics, out / "training_metrics.png")


def plot(metrics: dict[str, Any], path: Path) -> None:
    """Loss against step, training and held out."""
    from matplotlib.figure import Figure  # a second to load

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps = metrics["steps"]
    axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], lw=0.8, label="training")
    ends = {s["epoch"]: s["step"] for s in steps}
    axes.plot(list(ends.values())[: len(metrics["loss_eval"])], metrics["loss_eval"], "o-", label="held out")
    axes.set(xlabel="step", ylabel="loss, nats a label", yscale="log", title=f"{metrics['attention']} attention")
    axes.legend()
    figure.savefig(path, dpi=150)


def _by_epoch(steps: list[dict[str, Any]]) -> list[list[float]]:
    epochs = sorted({step["epoch"] for step in steps})
    return [[step["loss"] for step in steps if step["epoch"] == epoch] for epoch in epochs]
