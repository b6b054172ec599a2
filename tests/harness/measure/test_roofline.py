"""What a machine can reach, by dtype."""

from __future__ import annotations

import pytest
import torch

from harness.measure import roofline as ceilings
from harness.measure.roofline import WIDER, MeasureCeilings


def rates(monkeypatch: pytest.MonkeyPatch, reached: dict[str, float], dtypes: list[str]) -> dict[str, float]:
    names = {getattr(torch, name): rate for name, rate in reached.items()}
    monkeypatch.setattr(ceilings, "_matmul_flops_per_s", lambda device, dtype, budget_s: names[dtype])
    monkeypatch.setattr(ceilings, "_copy_bytes_per_s", lambda device, budget_s: 1.0)
    threads = torch.get_num_threads()
    return MeasureCeilings("cpu", dtypes, threads, budget_s=1.0).run().flops_per_s


def test_a_dtype_is_never_slower_than_one_that_holds_all_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = {"float64": 25.0, "float32": 50.0, "bfloat16": 1.0, "float16": 2.0}
    asked = ["bfloat16", "float16", "float32", "float64"]
    expected = {"bfloat16": 50.0, "float16": 50.0, "float32": 50.0, "float64": 25.0}
    assert rates(monkeypatch, emulated, asked) == expected
    assert rates(monkeypatch, emulated, ["bfloat16"]) == {"bfloat16": 50.0}


def test_a_dtype_that_is_fast_keeps_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor_cores = {"float64": 30.0, "float32": 60.0, "bfloat16": 900.0, "float16": 800.0}
    assert rates(monkeypatch, tensor_cores, list(tensor_cores)) == tensor_cores
    assert rates(monkeypatch, {"float64": 60.0, "float32": 50.0}, ["float32"]) == {"float32": 60.0}


def test_wider_dtypes_hold_every_value() -> None:
    for narrow, wider in WIDER.items():
        small = torch.finfo(getattr(torch, narrow))
        for name in wider:
            large = torch.finfo(getattr(torch, name))
            assert large.max >= small.max
            assert large.eps < small.eps
            assert large.tiny <= small.tiny


def test_a_clock_that_stands_still_gives_no_rate_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "MATMUL_SIZES", (8,))
    monkeypatch.setattr(ceilings, "COPY_BYTES", 64)
    monkeypatch.setattr(ceilings, "MOST_LOOKS", 5)
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: 7.0)
    found = MeasureCeilings("cpu", ["float32"], torch.get_num_threads(), budget_s=0.1).run()
    assert (found.flops_per_s, found.copy_bytes_per_s) == ({"float32": 0.0}, 0.0)
