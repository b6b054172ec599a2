"""The commands of the README run offline with their options, write one JSON file each, and say what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lsh_bitnet import evaluate, new_york, wikitext103
from lsh_bitnet.settings import read_experiment
from tests.lsh_bitnet.models import loaded, shared

CONFIGS = Path(evaluate.__file__).parent / "configs"
OFFLINE = ["--set", "model=random-bitnet", "--set", "text={corpus: stdlib}", "--set", "seq_len=64"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("lsh_bitnet.evaluate.load_corpus", _few)


def _few(name: str, split: str, *, path: str | None = None) -> str:
    from tasks.corpora import load_corpus

    return load_corpus(name, split, path=path)[:100_000]  # encoding all of a split takes seconds


def written(folder: Path) -> tuple[str, dict[str, Any]]:
    (path,) = folder.iterdir()
    return path.name, json.loads(path.read_text())


def test_the_wikitext103_command_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--max-batches 3 --batch-size 2 --seq-len 128 --split validation --device cpu --model random-bitnet"
    assert wikitext103.main([*options.split(), "--out", str(tmp_path)]) == 0
    name, values = written(tmp_path)
    assert name.startswith("baseline_stdlib_validation_all_3batches_2")
    assert (values["tokens"], values["predicted_tokens"]) == (3 * 2 * 128, 3 * 2 * 127)
    assert f"Perplexity = {values['perplexity']:.2f}" in capsys.readouterr().out


def test_its_defaults_are_987_batches_of_two_windows_of_128(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def stop(experiment: Any) -> None:
        seen.update(experiment.model_dump())
        raise ValueError("enough")

    monkeypatch.setattr(wikitext103, "evaluate", stop)
    with pytest.raises(SystemExit):
        wikitext103.main(["--model", "bitnet-2b"])
    assert [seen[name] for name in ("max_batches", "batch_size", "seq_len")] == [987, 2, 128]
    assert seen["text"]["corpus"] == "wikitext103"
    assert seen["name"] == "baseline_wikitext103_validation_all_all"


def test_the_new_york_command_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--n-samples 3 --batch-size 2 --device cpu --model random-bitnet --length 400"
    assert new_york.main([*options.split(), "--out", str(tmp_path)]) == 0
    name, values = written(tmp_path)
    assert name.startswith("baseline_synthetic_ny_adj_3samples_2")
    assert values["samples"] == 3
    assert len(values["answers"]) == 3
    low, high = values["interval"]
    assert low <= values["accuracy"] <= high
    assert "Accuracy = " in capsys.readouterr().out


def test_both_baselines_take_an_attention(tmp_path: Path) -> None:
    attention = ["--attention", "simhash", "--settings", '{"bits": 2, "window": 4}', "--dense-layers", "0"]
    model = ["--model", "random-llama", "--out", str(tmp_path)]
    wikitext103.main([*model, *attention, "--max-batches", "1"])
    _, values = written(tmp_path)
    assert values["by_layer"]["0"] == 1 > values["by_layer"]["1"]
    assert values["comparison_ratio"] == pytest.approx(values["comparisons"] / values["full_comparisons"])
    new_york.main([*model, *attention, "--n-samples", "1", "--length", "300"])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_configuration_runs_on_a_small_model(config: str, tmp_path: Path) -> None:
    arguments = [str(CONFIGS / config), *OFFLINE, "--set", "max_batches=2", "--out", str(tmp_path)]
    assert evaluate.main(arguments) == 0
    name, values = written(tmp_path)
    assert name.startswith(config.removesuffix(".yaml"))
    assert values["tokens"] == 2 * 64
    assert values["perplexity"] > 1
    assert ("comparison_ratio" in values) == ("lsh" in config)


def test_two_results_never_share_a_file(tmp_path: Path) -> None:
    from lsh_bitnet.results import save

    assert save("same", {}, tmp_path) != save("same", {}, tmp_path)


def test_configurations_differ_in_what_they_say(tmp_path: Path) -> None:
    full, hashed = (read_experiment(CONFIGS / f"wt2_bitnet_{kind}.yaml") for kind in ("full", "lsh_bitsampling"))
    assert full.attention is None
    assert hashed.attention is not None
    assert (full.text, full.seq_len) == (hashed.text, hashed.seq_len)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["seq_length=5"], "seq_length=5: Extra inputs are not permitted"),
        (["device.x=5"], "there is no mapping 'device' in the file"),
        (["nonsense"], "must be KEY=VALUE"),
        (["model=nobody/nothing"], "model 'nobody/nothing' cannot be loaded"),
        (["model=random-bitnet"], "corpus 'wikitext2' cannot be read from the hub"),
        (["model=random-bitnet", "text={corpus: stdlib}", "attention={backend: lhs}"], "no backend is called 'lhs'"),
        (["model=random-bitnet", "text={corpus: stdlib}", "seq_len=9999"], "9999 tokens are not allowed"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    changes: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = [part for change in changes for part in ("--set", change)]
    with pytest.raises(SystemExit) as ended:
        evaluate.main([str(CONFIGS / "wt2_bitnet_full.yaml"), *options, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_loaded_models_are_what_they_were_after_a_measurement() -> None:
    model = loaded(shared("bitnet"))
    before = model.model.config._attn_implementation
    experiment = read_experiment(CONFIGS / "wt2_bitnet_lsh_bitsampling.yaml", {"seq_len": 32, "max_batches": 1})
    evaluate.measure(model, "some text, " * 20, experiment)
    assert model.model.config._attn_implementation == before
