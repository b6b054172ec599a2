"""Writes a run's metrics: one line per step, one JSON file, and one figure, all derived from the steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scipy import stats

from harness.common.atomic_write import write_whole

STEPS = "steps.jsonl"
METRICS = "training_metrics.json"


def write_steps(out: Path, steps: list[dict[str, Any]]) -> None:
    """Replace the record by these steps, all at once."""
    write_whole(out / STEPS, "".join(json.dumps(step) + "\n" for step in steps))


def epoch_losses(steps: list[dict[str, Any]]) -> list[float]:
    """Return the mean training loss of each epoch."""
    by_epoch = _by_epoch(steps)
    return [sum(losses) / len(losses) for losses in by_epoch]


def loss_drop(steps: list[dict[str, Any]]) -> tuple[float, list[float]] | None:
    """Return the first epoch's mean loss minus the last's, and a 95 % interval (Welch); None below two steps each."""
    by_epoch = _by_epoch(steps)
    if len(by_epoch) < 2 or min(len(by_epoch[0]), len(by_epoch[-1])) < 2:
        return None
    test: Any = stats.ttest_ind(by_epoch[0], by_epoch[-1], equal_var=False)
    interval = test.confidence_interval(0.95)
    return epoch_losses(steps)[0] - epoch_losses(steps)[-1], [float(interval.low), float(interval.high)]


def write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    """training_metrics.json, complete or as it was, and the figure beside it."""
    write_whole(out / METRICS, json.dumps(metrics, indent=1))
    plot(metrics, out / "training_metrics.png")


def plot(metrics: dict[str, Any], path: Path) -> None:
    """Plot training and held-out loss against step."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps = metrics["steps"]
    axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], lw=0.8, label="training")
    ends = {s["epoch"]: s["step"] for s in steps}
    axes.plot(list(ends.values())[: len(metrics["loss_eval"])], metrics["loss_eval"], "o-", label="held out")
    axes.set(xlabel="step", ylabel="loss, nats per label", yscale="log", title=f"{metrics['attention']} attention")
    axes.legend()
    figure.savefig(path, dpi=150)


def _by_epoch(steps: list[dict[str, Any]]) -> list[list[float]]:
    epochs = sorted({step["epoch"] for step in steps})
    return [[step["loss"] for step in steps if step["epoch"] == epoch] for epoch in epochs]
