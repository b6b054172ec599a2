"""Summarises the rows of the long arena in one JSON file, with the guide's keys, and one figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.atomic_write import write_whole
from harness.stats.scaling import fit_scaling

if TYPE_CHECKING:
    from harness.common.rows import Row

SUMMARY = "benchmark_summary.json"
LEAST_SIZES = 3


def write_summary(out: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Write `benchmark_summary.json` atomically, and the figure; returns the contents of the file."""
    summary = summarise(rows)
    write_whole(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    if any(entry["latency_ms"] is not None for entry in summary["costs"]):
        _plot(summary, out / SUMMARY.replace(".json", ".png"))
    return summary


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return `costs` per attention and length, `scaling` exponents per attention, and `accuracies` per task."""
    costs = [row for row in rows if row.mode == "forward"]
    learnt = [row for row in rows if row.mode == "train"]
    labels = list(dict.fromkeys(row.label for row in costs))
    return {
        "costs": [_cost(row) for row in sorted(costs, key=lambda row: (labels.index(row.label), row.n))],
        "scaling": {label: _scaling([row for row in costs if row.label == label]) for label in labels},
        "accuracies": [_accuracy(row) for row in learnt],
    }


def _cost(row: Row) -> dict[str, Any]:
    return {
        "attention": row.label,
        "seq_len": row.n,
        "status": row.status,
        "reason": row.reason,
        "latency_ms": None if row.time_s is None else 1e3 * row.time_s,
        "tokens_per_sec": row.tokens_per_s,
        "rss_mb": row.metrics.get("rss_mb"),
        "peak_mb": None if row.peak_bytes is None else row.peak_bytes / 1e6,
        "samples": len(row.samples_s or ()),
        "parameters": row.metrics.get("parameters"),
    }


def _scaling(rows: Iterable[Row]) -> dict[str, Any]:
    """Fit the exponents of time and of memory allocated by torch, with a constant floor; None below three lengths."""
    fine = [row for row in rows if row.status == "ok"]
    times = {row.n: [[sample] for sample in row.samples_s] for row in fine if row.samples_s}
    peaks = {row.n: [[row.allocator_bytes]] for row in fine if row.allocator_bytes}
    return {"time": _fit(times), "memory": _fit(peaks)}


def _fit(samples: dict[int, list[list[float]]]) -> dict[str, Any] | None:
    if len(samples) < LEAST_SIZES:
        return None
    fit = fit_scaling(samples)
    return {
        "exponent": fit.exponent,
        "interval": list(fit.interval),
        "verdict": fit.verdict,
        "identified": fit.identified,
        "lengths": sorted(samples),
    }


def _accuracy(row: Row) -> dict[str, Any]:
    names = ("accuracy", "standard_error", "chance", "exact", "examples", "loss_eval", "parameters", "training_s")
    found = {name: row.metrics.get(name) for name in names}
    return {"attention": row.label, "task": row.inputs, "seq_len": row.n, "status": row.status, **found} | {
        "reason": row.reason
    }


def _plot(summary: dict[str, Any], path: Path) -> None:
    """Plot latency, peak memory, and throughput against length, one line per attention."""
    from matplotlib.figure import Figure  # takes a second to import

    quantities = (("latency_ms", "milliseconds"), ("peak_mb", "peak, MB"), ("tokens_per_sec", "tokens per second"))
    there = [(name, words) for name, words in quantities if any(cost[name] for cost in summary["costs"])]
    figure = Figure(figsize=(1 + 3.5 * len(there), 3.5), layout="constrained")
    for place, (name, words) in enumerate(there, 1):
        axes = figure.add_subplot(1, len(there), place)
        for label in summary["scaling"]:
            points = [(e["seq_len"], e[name]) for e in summary["costs"] if e["attention"] == label and e[name]]
            axes.plot([n for n, _ in points], [value for _, value in points], "o-", lw=1, ms=3, label=label)
        axes.set(xlabel="tokens", ylabel=words)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
