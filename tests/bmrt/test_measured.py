"""Memory that stays flat, the bounded cache as an attention, and its rows in the harness."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attentions.common.reference import causal_pairs, softmax_attention
from bmrt import BoundedCache, measure
from bmrt.cache.attention import BoundedAttention
from bmrt.subjects import STEPS, DecodeSubject
from harness import sweep
from harness.common.rows import Case
from harness.measure.memory import allocator_peak
from harness.subjects.references import Store
from tests.bmrt.models import tiny, tokens

decoding: dict[str, Any] = {
    "subject": "bmrt.subjects:DecodeSubject",
    "label": "decode",
    "level": "kernel",
    "mode": "decode",
    "inputs": "gaussian",
    "batch": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "value_dim": 8,
    "dtype": "float32",
    "device": "cpu",
    "threads": 1,
    "causal": True,
    "seed": 0,
}


def given(**changes: Any) -> argparse.Namespace:
    usual = {"budget": 64, "chunk": 64, "strategies": ["exact"], "lengths": None, "hidden": 32, "rounds": 1}
    return argparse.Namespace(**(usual | changes))


def test_memory_is_flat_over_context() -> None:
    """Peak of all forward passes and the cache at rest, at 128 to 2,048 tokens: within five percent."""
    table = measure.memory(given(lengths=[128, 512, 2048]))
    rows = [[float(x.replace(",", "")) for x in line.split("|")[1:5]] for line in table.splitlines()[2:5]]
    peaks, caches = [row[2] for row in rows], [row[1] for row in rows]
    assert max(peaks) < 1.05 * min(peaks)
    assert max(caches) == min(caches)
    assert rows[-1][3] == 16 * rows[0][3]  # a cache that keeps everything is not


def test_reported_bytes_are_the_bytes_of_the_tensors() -> None:
    model = tiny(dtype=torch.float32)
    cache = BoundedCache(model, 32, strategy="recent")
    for part in tokens(96).split(16, 1):
        model(part, past_key_values=cache)
    layer = cache.layers[0]
    own = 2 * layer.keys.numel() * 4 + layer.positions.numel() * 8
    assert layer.state_bytes == own == 2 * 2 * 32 * 8 * 4 + 2 * 32 * 8
    assert cache.state_bytes == 2 * own


def test_a_plain_cache_is_not_flat_by_the_same_measure() -> None:
    """Or the test above could not fail."""
    from transformers import DynamicCache

    model = measure.small_model(32)
    peaks = [
        allocator_peak(lambda n=n: measure.prefill(model, DynamicCache(config=model.config), n, 64))[1]
        for n in (128, 2048)
    ]
    assert peaks[1] > 1.5 * peaks[0]


def test_overhead_is_a_share_of_the_plain_prefill() -> None:
    table = measure.overhead(given(lengths=[256], strategies=["exact", "hybrid"]))
    rows = [line.split("|")[1:6] for line in table.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["plain", "exact", "hybrid"]
    assert rows[0][2].strip() == "100.0%"
    assert rows[0][3].strip() == "0.000"
    assert all(float(row[3]) <= float(row[1]) + 0.01 for row in rows)


def test_growth_is_fitted_to_the_times_of_each_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times made up: n for a bounded cache, n² for a plain one."""
    lengths: list[int] = []

    def prefill(model: Any, cache: Any, length: int, chunk: int) -> None:
        lengths.append(length if isinstance(cache, BoundedCache) else length**2)

    def timed(call: Any) -> tuple[float, float]:
        call()
        return 1e-5 * lengths[-1], 0.0

    monkeypatch.setattr(measure, "prefill", prefill)
    monkeypatch.setattr(measure, "timed", timed)
    table = measure.growth(given(lengths=[2**i for i in range(6, 13)], strategies=["exact", "hybrid"], plain_most=2048))
    rows = {row[0].strip(): row[1:] for row in (line.split("|")[1:] for line in table.splitlines()[2:])}
    assert [row[0].strip() for row in rows.values()] == ["64 to 2,048", "64 to 4,096", "64 to 4,096"]
    assert [float(rows[name][3]) for name in ("plain", "exact", "hybrid")] == pytest.approx([2, 1, 1], abs=0.002)


@pytest.mark.parametrize("strategy", ["exact", "frequency_rank", "h2o"])
def test_the_attention_is_softmax_over_what_was_kept(strategy: str) -> None:
    attention = BoundedAttention(4, 8, kv_heads=2, budget=24, block=16, strategy=strategy)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.randn(2, heads, 75, 8, generator=draw, dtype=torch.float64) for heads in (4, 2, 2))
    out = attention(q, k, v)
    rows = torch.tensor([0, 15, 16, 40, 74])
    torch.testing.assert_close(out[:, :, rows], attention.naive(q, k, v, rows=rows), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(attention(*(x[:, :, :40] for x in (q, k, v))), out[:, :, :40], rtol=1e-10, atol=1e-11)
    exact = softmax_attention(
        q, k, v, causal_pairs(75, 75, causal=True, first=None, rows=None, device=q.device), attention.scale
    )
    torch.testing.assert_close(out[:, :, :16], exact[:, :, :16], rtol=1e-10, atol=1e-11)
    assert (out - exact).abs().max() > 0.05


@pytest.mark.parametrize(
    ("backend", "settings"), [("vanilla", {}), ("bmrt.cache.attention:BoundedAttention", {"budget": 64})]
)
def test_a_decoded_token_is_softmax_over_what_the_cache_holds(
    backend: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    state = {}
    for n in (96, 160):
        case = Case(**decoding, backend=backend, settings=settings, n=n)
        trial = DecodeSubject().setup(case, Store(tmp_path), "key")
        try:
            findings = [trial.check(variant, trial.call(variant)) for variant in (0, 1, 0)]
            wrong = trial.check(0, trial.call(0) + 1)
            trial.rewind()
            trial.call(0)
        finally:
            torch.set_grad_enabled(True)
        assert not any(finding.wrong for finding in findings)
        assert all(finding.metrics["naive_error"] < 1e-5 for finding in findings)
        assert wrong.wrong
        facts = trial.facts(thorough=True)
        pairs = (facts.comparisons or 0) / (2 * 4)  # a query head
        assert 61 <= pairs <= 65 if settings else pairs == n + STEPS  # a budget of 64 has four tokens of slack
        state[n] = facts.state_bytes
    assert (state[96] == state[160]) == bool(settings)


@pytest.mark.slow
def test_decoding_is_a_row_of_the_harness(tmp_path: Path) -> None:
    replaced = ["lengths=[96, 160]", "rounds=1", "threads=1", "heads=2", "head_dim=8", "inputs=gaussian"]
    backends = (
        "[{name: vanilla, label: full}, {name: 'bmrt.cache.attention:BoundedAttention', label: kept, budget: 64}]"
    )
    options = [f"backends={backends}", *replaced, f"out={tmp_path / 'run'}"]
    sweep.main(["bmrt/decode.yml", *(x for option in options for x in ("--set", option))])
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert {(row["label"], row["n"], row["status"]) for row in rows} == {
        (label, n, "ok") for label in ("full", "kept") for n in (96, 160)
    }
    kept = {row["n"]: row for row in rows if row["label"] == "kept"}
    full = {row["n"]: row for row in rows if row["label"] == "full"}
    assert kept[96]["state_bytes"] == kept[160]["state_bytes"]
    assert full[96]["state_bytes"] < full[160]["state_bytes"]
    assert all(row["time_s"] > 0 and row["metrics"]["naive_error"] < 1e-5 for row in rows)
