"""Cases for tests of inputs: a size of its own for every axis, so that no transposition passes unnoticed."""

from __future__ import annotations

from typing import Any

from harness.common.rows import Case

PRIMES = {"batch": 2, "heads": 6, "kv_heads": 3, "head_dim": 11, "value_dim": 5, "n": 23}


def make_case(inputs: str, **changes: Any) -> Case:
    fixed = {
        "subject": "attention",
        "backend": "vanilla",
        "label": "vanilla",
        "settings": {},
        "level": "kernel",
        "mode": "forward",
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "causal": True,
        "seed": 0,
    }
    return Case(**{**fixed, **PRIMES, "inputs": inputs, **changes})


def one_head(inputs: str, **changes: Any) -> Case:
    """A single sequence with as many key heads as query heads."""
    return make_case(inputs, **{"batch": 1, "heads": 2, "kv_heads": 2, "head_dim": 64, "value_dim": 64, **changes})
