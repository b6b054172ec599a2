"""Declare every metric that a row may carry, with its unit and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """The meaning of a number in `Row.metrics`. `unit` is "" for a plain ratio."""

    title: str
    unit: str
    better: Literal["lower", "higher", "neither"]


METRICS: dict[str, Metric] = {
    "error": Metric("relative error against exact attention, |o - o*| / |o*|", "", "lower"),
    "error_v": Metric("error against exact attention per value, rms|o - o*| / rms|v|", "", "lower"),
    "naive_error": Metric("relative error against the method's own definition", "", "lower"),
    "gradient_error": Metric(
        "error of query gradients against the definition's, relative to them or, near zero, to what they subtract",
        "",
        "lower",
    ),
    "leak": Metric("relative change of earlier outputs when the future changes", "", "lower"),
    "kept_mass": Metric("share of the exact softmax weight on the keys that a method attends to", "", "higher"),
    "perplexity": Metric("perplexity", "", "lower"),
    "accuracy": Metric("accuracy", "", "higher"),
    "loss_before": Metric("held-out loss before training", "nats per token", "lower"),
    "loss_after": Metric("held-out loss after training", "nats per token", "lower"),
}
