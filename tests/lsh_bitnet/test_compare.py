"""The comparison: a model as the harness's subject, and the table and figure made of its rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch

from harness.journal import read_rows
from harness.references import Store
from harness.subjects import Unsupported
from lsh_bitnet import compare
from lsh_bitnet.model_subject import ModelSubject
from lsh_bitnet.models import Loaded
from tasks.example import Task
from tests.harness.cases import a_case, a_row

SIZES: dict[str, Any] = {"n": 64, "batch": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "value_dim": 16}


class Small(ModelSubject):
    """A random model, two windows, no task."""

    model: ClassVar[str] = "random-llama"
    windows = 2

    def task(self, loaded: Loaded, n: int) -> Task | None:
        return None


def run(tmp_path: Path, backend: str, **settings: Any) -> tuple[dict[str, float], str]:
    case = a_case(backend=backend, settings=settings, level="kernel", mode="forward", causal=True, **SIZES)
    trial = Small().setup(case, Store(tmp_path), "key")
    trial.warm()
    first = trial.check(0, trial.call(0))
    second = trial.check(1, trial.call(1))
    return first.metrics, first.wrong or second.wrong


def test_full_attention_makes_all_comparisons_and_is_the_models_own(tmp_path: Path) -> None:
    metrics, wrong = run(tmp_path, "flash")
    assert wrong == ""
    assert metrics["comparison_ratio"] == 1
    assert metrics["perplexity_low"] == metrics["perplexity"] == metrics["perplexity_high"]


def test_a_hashed_attention_makes_fewer_and_differs_between_seeds(tmp_path: Path) -> None:
    metrics, wrong = run(tmp_path, "simhash", bits=2, window=4, local=2)
    assert wrong == ""
    assert metrics["comparison_ratio"] < 0.3
    assert metrics["perplexity_low"] < metrics["perplexity"] < metrics["perplexity_high"]


def test_an_exact_attention_that_is_off_is_wrong(tmp_path: Path) -> None:
    case = a_case(backend="flash", settings={}, level="kernel", mode="forward", causal=True, **SIZES)
    trial = Small().setup(case, Store(tmp_path), "key")
    assert "differ from the model's own by" in trial.check(0, trial.call(0) * 1.01).wrong
    assert trial.check(0, trial.call(0) * torch.nan).wrong == "logits are not finite"


def test_later_rounds_are_held_to_the_first_ones_answer(tmp_path: Path) -> None:
    case = a_case(backend="simhash", settings={}, level="kernel", mode="forward", causal=True, **SIZES)
    first = Small().setup(case, Store(tmp_path), "key")
    assert all(first.check(variant, first.call(variant)).wrong == "" for variant in (0, 1))
    first.keep()
    later = Small().setup(case, Store(tmp_path), "key")
    assert later.check(0, later.call(0)).wrong == ""
    assert "differ from the first round's" in later.check(0, later.call(0) * 1.01).wrong


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"heads": 8}, "random-llama has heads=4"),
        ({"n": 5000}, "made for 4096 tokens"),
        ({"mode": "decode"}, "causal forward calls"),
    ],
)
def test_a_case_that_is_not_the_models_is_unsupported(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    case = a_case(**{"backend": "flash", "level": "kernel", "mode": "forward", "causal": True, **SIZES, **changes})
    with pytest.raises(Unsupported, match=reason):
        Small().setup(case, Store(tmp_path), "key")


def rows() -> list[Any]:
    def row(label: str, backend: str, round: int, time_s: float, peak: float, ratio: float, perplexity: float) -> Any:  # noqa: A002
        metrics = {"perplexity": perplexity, "perplexity_low": perplexity, "perplexity_high": perplexity}
        if round == 0:
            metrics |= {"comparison_ratio": ratio, "bits_per_byte": 1.0, "accuracy": 0.5}
        case = a_case(backend=backend, label=label, n=2048)
        return a_row(case, round=round, time_s=time_s, peak_bytes=peak, metrics=metrics if round == 0 else {})

    return [
        row("flash", "flash", 0, 4.0, 100.0, 1.0, 8.0),
        row("flash", "flash", 1, 6.0, 100.0, 1.0, 8.0),
        row("simhash a", "simhash", 0, 1.0, 50.0, 0.1, 8.4),
        row("simhash a", "simhash", 1, 1.0, 50.0, 0.1, 8.4),
    ]


def test_the_table_says_what_each_method_costs_against_full_attention() -> None:
    table = compare.comparison(rows()).set_index("method")
    assert table.loss["simhash a"] == pytest.approx(0.05)
    assert table.speed_up["simhash a"] == pytest.approx(5)
    assert table.memory["simhash a"] == pytest.approx(0.5)
    assert table.comparison_ratio["simhash a"] == pytest.approx(0.1)
    assert table.loss["flash"] == 0
    assert "| simhash a | 2048 | 10.0% | 8.400 | +5.0% |" in compare.markdown(table.reset_index())


def test_a_run_without_full_attention_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no `flash` that ended well"):
        compare.comparison([row for row in rows() if row.backend != "flash"])


@pytest.mark.parametrize("perplexity", [60.0, 70.0])  # full attention's is 8
def test_the_figure_shows_every_method_and_names_what_is_far_off(tmp_path: Path, perplexity: float) -> None:
    table = compare.comparison(rows())
    far = table[table.method == "simhash a"].assign(method="reformer b", backend="reformer", perplexity=perplexity)
    compare.figure(pd.concat((table, far)), tmp_path / "comparison.svg")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "comparison.svg").read_text())
    assert {"simhash", "full attention"} <= set(words)
    assert ("reformer" in words) == (perplexity < 64)
    assert ("above 8 times full attention's: reformer b" in words) == (perplexity > 64)


@pytest.mark.slow
def test_the_command_sweeps_and_writes_table_and_figure(tmp_path: Path) -> None:
    backends = "[flash, {name: simhash, label: simhash a, bits: 2, window: 8, local: 8}]"
    sizes = ["--set", "lengths=[128]", "--set", "rounds=1", "--set", "threads=1"]
    assert compare.main(["--out", str(tmp_path), "--set", f"backends={backends}", *sizes]) == 0
    assert {row.label for row in read_rows(tmp_path) if row.status == "ok"} == {"flash", "simhash a"}
    assert {"report.html", "comparison.md", "comparison.svg"} <= {path.name for path in tmp_path.iterdir()}


def test_the_configuration_that_comes_with_it_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--dry-run"]) == 0
    assert "lsh_forest 16 trees" in capsys.readouterr().out
