"""The comparison: a model as the harness's subject, and the table and figure made of its rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from transformers import BloomConfig, MambaConfig

from harness.config.model import load_config
from harness.results.rows_file import read_rows
from harness.runner.plan import expand
from harness.subjects.base import Unsupported
from harness.subjects.references import Store
from lsh_bitnet import attend_with, compare, model_subject
from lsh_bitnet.model_subject import ModelSubject, _error, _Rounded
from lsh_bitnet.models import Loaded, random_model
from lsh_bitnet.swap import Swap
from tasks.example import Example, Task
from tasks.needles import Needles
from tests.harness.cases import a_case, a_row

SIZES: dict[str, Any] = {"n": 64, "batch": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "value_dim": 16}


class Small(ModelSubject):
    """A random model, two windows, no task."""

    model: ClassVar[str] = "random-llama"
    windows = 2

    def task(self, loaded: Loaded, n: int) -> Task | None:
        return None


class Answering(Small):
    """One that is asked for needles, as most are."""

    task = ModelSubject.task


class Asking(Small):
    """One whose task looks at the model, and would have no examples of so few tokens."""

    def task(self, loaded: Loaded, n: int) -> Task | None:
        return Needles(min(n, loaded.positions or n), wording="short", tokenizer=loaded.tokenizer, seed=1)


class Calling(Small):
    """One whose task calls it."""

    def task(self, loaded: Loaded, n: int) -> Task | None:
        return Echoed(loaded)


class Echoed(Task):
    """The model's own next token."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def example(self, index: int) -> Example:
        logits = self._loaded.model(torch.tensor([[index]])).logits
        return Example(str(index), str(int(logits[0, -1].argmax())))


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


class Ternary(Small):
    """A random BitNet: a rounding error that takes an activation over a threshold becomes a large one."""

    model: ClassVar[str] = "random-bitnet"


def trial_of(subject: ModelSubject, tmp_path: Path, backend: str, **changes: Any) -> Any:
    case = a_case(
        **{"backend": backend, "settings": {}, "level": "kernel", "mode": "forward", "causal": True, **SIZES, **changes}
    )
    return subject.setup(case, Store(tmp_path), "key")


def test_an_exact_attention_of_a_ternary_model_is_judged_by_what_rounding_does_in_it(tmp_path: Path) -> None:
    """The rounding is made here, because whether two kernels round alike depends on the machine."""
    trial = trial_of(Ternary(), tmp_path, "vanilla", n=512)
    errors = []
    for variant in (0, 1):
        with Swap(trial._loaded.model, _Rounded(trial._rounding / 4, seed=10 + variant), log=None):
            answer = trial.call(variant)
        errors.append(_error(trial._sample(answer), trial._own[variant]))
        assert trial.check(variant, answer).wrong == ""
    assert max(errors) > 1e-4  # more than any fixed limit for models that do not round
    assert trial._allowed < 0.1


def test_what_is_allowed_is_measured_in_each_model(tmp_path: Path) -> None:
    plain, ternary = (trial_of(subject, tmp_path, "vanilla")._allowed for subject in (Small(), Ternary()))
    assert plain < 5e-4
    assert ternary > 10 * plain


@pytest.mark.parametrize("subject", [Small(), Ternary()], ids=["plain", "ternary"])
def test_an_attention_that_is_not_exact_would_not_pass_for_one(tmp_path: Path, subject: ModelSubject) -> None:
    trial = trial_of(subject, tmp_path, "vanilla")
    with attend_with(trial._loaded.model, "bit_sampling", bits=0, window=60, local=1):  # of 64 tokens, the last 60
        near = trial._sample(trial._forward(trial._ids[0]))
    assert "differ from the model's own by" in trial._differs(near, trial._own[0], "the model's own")


def test_measuring_what_is_allowed_leaves_the_attention_in_place(tmp_path: Path) -> None:
    trial = trial_of(Small(), tmp_path, "simhash", settings={"bits": 2, "window": 4, "local": 2})
    before = trial.call(0)
    assert trial._allowed > 0
    assert torch.equal(trial.call(0), before)


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
        ({"n": 5000}, "supports at most 4096 tokens"),
        ({"mode": "decode"}, "causal forward calls"),
        ({"causal": False}, "causal forward calls"),
        ({"dtype": "float64"}, "is loaded in float32, bfloat16, float16"),
        ({"batch": 9000}, "the text has"),
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
    with pytest.raises(ValueError, match="no successful `flash`"):
        compare.comparison([row for row in rows() if row.backend != "flash"])


@pytest.mark.parametrize("perplexity", [60.0, 70.0])  # full attention's is 8
def test_the_figure_shows_every_method_and_names_what_is_far_off(tmp_path: Path, perplexity: float) -> None:
    table = compare.comparison(rows())
    far = table[table.method == "simhash a"].assign(method="reformer b", backend="reformer", perplexity=perplexity)
    compare.figure(pd.concat((table, far)), tmp_path / "comparison.svg")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "comparison.svg").read_text())
    assert {"simhash", "full attention"} <= set(labels)
    assert ("reformer" in labels) == (perplexity < 64)
    assert ("above 8 times full attention's: reformer b" in labels) == (perplexity > 64)


@pytest.mark.slow
def test_the_command_sweeps_and_writes_table_and_figure(tmp_path: Path) -> None:
    backends = "[flash, {name: simhash, label: simhash a, bits: 2, window: 8, local: 8}]"
    sizes = ["--set", "lengths=[128]", "--set", "rounds=1", "--set", "threads=1"]
    assert compare.main(["--out", str(tmp_path), "--set", f"backends={backends}", *sizes]) == 0
    assert {row.label for row in read_rows(tmp_path) if row.status == "ok"} == {"flash", "simhash a"}
    assert {"report.html", "comparison.md", "comparison.svg"} <= {path.name for path in tmp_path.iterdir()}


SWEPT = ["--set", "subject=tests.lsh_bitnet.test_compare:Small", "--set", "lengths=[64]", "--set", "rounds=1"]
SWEPT += ["--set", "heads=4", "--set", "kv_heads=2", "--set", "head_dim=16", "--set", "threads=1"]
FLASH = ["--set", "backends=[flash]"]


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says before it ends with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        compare.main(arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "backends=[simhash]"], "at n = 64 there is no reference; flash must be among them"),
        (["--set", "subject=attention"], "it must be a ModelSubject"),
        (["--set", "subject=tests.lsh_bitnet.test_compare:Answering"], "lengths: n = 64 is not possible: length=64"),
        *(
            ([*options, "--set", change], message)
            for options in ([], ["--dry-run"])
            for change, message in (
                ("heads=8", "flash at n = 64 cannot be measured: random-llama has heads=4"),
                ("kv_heads=4", "cannot be measured: random-llama has kv_heads=2"),
                ("head_dim=32", "cannot be measured: random-llama has head_dim=16"),
                ("value_dim=32", "cannot be measured: random-llama has value_dim=16"),
                ("causal=false", "cannot be measured: a language model is measured only in causal forward calls"),
                ("mode=decode", "cannot be measured: a language model is measured only in causal forward calls"),
                ("dtype=float64", "cannot be measured: a model is loaded in float32, bfloat16, float16, not in"),
                (
                    "lengths=[64, 5000]",
                    "flash at n = 5000 cannot be measured: random-llama supports at most 4096 tokens",
                ),
                ("batch=9000", "two batches of 9000 x 64 tokens are needed; the text has"),
                ("lengths=[1]", "flash at n = 1 cannot be measured: perplexity needs windows of at least 2 tokens"),
                ("budget.case_s=1e-9", "lengths: n = 64 is not possible within budget.case_s = 1e-09: full attention"),
            )
        ),
        (["--set", "device=cuda:99"], "device"),
        (["--set", "device=tpu"], "device: 'tpu' is not allowed"),
        (["--set", "lengths=[0]"], "lengths"),
        (["--set", "lengths"], "key=value"),
        (["--conf", "nowhere.yml"], "nowhere.yml"),
        (["--out", "/dev/null/x"], "--out: /dev/null/x cannot be created"),
        (["--out", ""], "out: ''"),
        (["--resume", "/nowhere"], "--resume: /nowhere holds no run"),
        (["--resume", "a", "--out", "b"], "cannot be combined"),
        (["--rounds", "1"], "unrecognized arguments: --rounds 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_compared_is_said_before_the_first_case(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "sweep", lambda arguments: pytest.fail("it was measured"))
    assert message.replace("--out: /dev", "out: /dev") in refusal([*SWEPT, *FLASH, *arguments], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["Asking", "Calling"])
def test_a_task_that_needs_the_model_is_left_for_when_it_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_subject, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    subject = ["--set", f"subject=tests.lsh_bitnet.test_compare:{name}"]
    assert compare.main([*SWEPT, *FLASH, *subject, "--dry-run"]) == 0
    assert "flash" in capsys.readouterr().out


def test_a_task_has_the_loaded_model_when_it_is_measured(tmp_path: Path) -> None:
    trial = trial_of(Calling(), tmp_path, "flash")
    assert 0 <= trial.check(0, trial.call(0)).metrics["accuracy"] <= 1


class Renewed(Small):
    """A model in a folder, whose weights may be replaced."""

    model: ClassVar[str] = ""


def test_a_folder_is_gone_on_with_by_the_same_model_text_and_settings_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[list[str]] = []
    monkeypatch.setattr(compare, "sweep", lambda arguments: swept.append(list(arguments)) or 130)  # stopped at once
    monkeypatch.setattr(Renewed, "model", str(tmp_path / "model"))
    random_model("llama", seed=1).save_pretrained(tmp_path / "model")
    folder, renewed = tmp_path / "run", ["--set", "subject=tests.lsh_bitnet.test_compare:Renewed"]
    asked = [*SWEPT, *renewed, *FLASH]
    assert compare.main(["--out", str(folder), *asked]) == 130
    (case,) = [one.case for one in expand(load_config(compare.CONF, [one for one in asked if one != "--set"]))]
    (folder / "rows.jsonl").write_text(a_row(case).model_dump_json(by_alias=True) + "\n")
    (folder / "conf.yml").write_text(
        load_config(compare.CONF, [one for one in asked if one != "--set"]).model_dump_json()
    )
    assert compare.main(["--resume", str(folder)]) == 130
    assert compare.main(["--resume", str(folder), "--set", "lengths=[64, 128]"]) == 130  # more of the same
    for changes, message in (
        (["--set", "lengths=[128]"], "holds flash at n = 64"),
        (["--set", "subject=tests.lsh_bitnet.test_compare:Small"], "with settings other than"),
        (["--set", "dtype=bfloat16"], "with settings other than"),
    ):
        assert message in refusal(["--resume", str(folder), *changes], capsys)
    random_model("llama", seed=2).save_pretrained(tmp_path / "model")
    assert "holds rows of weights that" in refusal(["--resume", str(folder)], capsys)
    assert len(swept) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BloomConfig(vocab_size=259, hidden_size=64, n_layer=2, n_head=4), ""),
        (
            MambaConfig(vocab_size=259, hidden_size=64, num_hidden_layers=2),
            "a model of type mamba has no attention heads",
        ),
    ],
    ids=["bloom", "mamba"],
)
def test_a_model_may_have_no_longest_sequence_but_not_no_heads(
    config: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Renewed, "model", str(tmp_path))
    monkeypatch.setattr(compare, "sweep", lambda arguments: 0)
    config.save_pretrained(tmp_path)
    asked = [*SWEPT, *FLASH, "--set", "subject=tests.lsh_bitnet.test_compare:Renewed", "--set", "kv_heads=4"]
    if message:
        assert message in refusal([*asked, "--dry-run"], capsys)
    else:
        assert compare.main([*asked, "--dry-run"]) == 0


def test_the_configuration_that_comes_with_it_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--dry-run"]) == 0
    assert "lsh_forest 16 trees" in capsys.readouterr().out
