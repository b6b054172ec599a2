"""Cases and rows for tests."""

from __future__ import annotations

from typing import Any

from harness.common.rows import Case, Row


def a_case(**changes: Any) -> Case:
    """A small case of a right backend, with some fields changed."""
    fields: dict[str, Any] = {
        "subject": "attention",
        "backend": "tests.harness.backends:Right",
        "label": "right",
        "settings": {},
        "level": "kernel",
        "mode": "forward",
        "inputs": "gaussian",
        "n": 256,
        "batch": 1,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 8,
        "value_dim": 16,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "causal": True,
        "seed": 0,
    }
    return Case(**(fields | changes))


def a_row(case: Case | None = None, **changes: Any) -> Row:
    """An ok row of a case, with some fields changed."""
    fields = {"run": "run", "key": "key", "round": 0, "status": "ok", "time_s": 0.1, "samples_s": [0.1]}
    return Row(**((case or a_case()).model_dump() | fields | changes))
