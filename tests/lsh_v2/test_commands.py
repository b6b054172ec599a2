"""Every option of every command with a wrong value: one message, exit status 2, nothing begun."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from harness.runner.executor import Executor
from lsh_v2 import long_arena, long_example, package, profile, train
from lsh_v2.arena.config import ArenaConfig
from lsh_v2.pipeline import __main__ as pipeline
from lsh_v2.pipeline import check as pipeline_check
from lsh_v2.training.configuration import TrainingConfig
from lsh_v2.training.run import TrainingLoop
from tests.lsh_v2.tiny_training import TINY

ARENA = {
    "attentions": ["flash"],
    "sequence_lengths": [64, 128],
    "num_samples_per_length": 2,
    "max_memory_gb": 1.0,
    "timeout_seconds": 60,
    "model": TINY["model"],
    "training_timeout_seconds": 60,
    "device": "cpu",
    "tasks": {"echo": {"task": TINY["task"], "seq_length": 64}},
}
Command = Callable[[Sequence[str]], int]


@pytest.fixture(autouse=True)
def nothing_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainingLoop, "train", lambda _: pytest.fail("a training began"))
    monkeypatch.setattr(Executor, "run", lambda *_: pytest.fail("a case began"))
    monkeypatch.setattr(profile, "profile_model", lambda *_, **__: pytest.fail("a profile began"))
    monkeypatch.setattr(long_example, "measure", lambda *_: pytest.fail("a pass began"))
    monkeypatch.setattr(pipeline, "run_phases", lambda *_, **__: pytest.fail("a phase began"))
    Path("train.yml").write_text(yaml.safe_dump(TINY | {"out": "out"}))
    Path("arena.yml").write_text(yaml.safe_dump(ARENA | {"out": "out"}))
    Path("file").write_text("no folder")


def refused(command: Command, arguments: Sequence[str], capsys: pytest.CaptureFixture) -> str:
    """What a command says where it must refuse."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    try:
        status = command(arguments)
    except SystemExit as error:  # argparse's own
        status = error.code
    output = capsys.readouterr().err
    assert status == 2, (arguments, output)
    assert output.strip()
    assert "Traceback" not in output
    assert sorted(Path().rglob("*")) == before
    return output


def wrong_value(model: type[TrainingConfig] | type[ArenaConfig], key: str) -> str:
    """A value that a key cannot have: a number for a mapping, a mapping of nonsense for all else."""
    return "7" if "dict" in str(model.model_fields[key].annotation) else "{nonsense: [1]}"


@pytest.mark.parametrize("key", TrainingConfig.model_fields)
def test_every_key_of_the_training(key: str, capsys: pytest.CaptureFixture) -> None:
    output = refused(train.main, ["train.yml", "--set", f"{key}={wrong_value(TrainingConfig, key)}"], capsys)
    assert f"{key}: " in output
    checked = ["train.yml", "out", "report.json", "--set", f"{key}={wrong_value(TrainingConfig, key)}"]
    if key != "out":  # which the command's own argument replaces
        assert f"{key}: " in refused(pipeline_check.main, checked, capsys)


@pytest.mark.parametrize("key", ArenaConfig.model_fields)
def test_every_key_of_the_long_arena(key: str, capsys: pytest.CaptureFixture) -> None:
    output = refused(long_arena.main, ["arena.yml", "--set", f"{key}={wrong_value(ArenaConfig, key)}"], capsys)
    assert key in output


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("seq_length=-1", "seq_length: -1 is not allowed"),
        ("seq_length=2000000000000", "seq_length: 2000000000000 is not allowed"),
        ("seed=99999999999999999999", "seed: 99999999999999999999 is not allowed"),
        ("num_workers=1000000", "num_workers: 1000000 is not allowed"),
        ("model_size=9999999B", "target_params='9999999B' is not allowed"),
        ("model_size=huge", "target_params='huge' is not allowed"),
        ("task=tests.nothing:Echo", "'tests.nothing:Echo' cannot be imported"),
        ("task=math:pi", "task='math:pi' is not allowed"),
        ("task_settings.bogus=1", "task_settings={'bogus': 1} fails: TypeError"),
        ("task_settings.seed=1", "task_settings={'seed': 1} fails: TypeError"),
        ("train_file=nothing.jsonl", "train_file: there is no file nothing.jsonl"),
        ("eval_file=.", "eval_file: there is no file ."),
        ("out=file", "out: file cannot be created: it is not a folder"),
        ("out=file/below", "out: file/below cannot be created"),
        ("mixed_precision=fp16", "mixed_precision: fp16 is not allowed on a CPU"),
        ("trackers=[mlflow, mlfow]", "trackers"),
        ("model.attention=flush", "did you mean flash"),
        ("nonsense", "must have the form key=value"),
        ("learning_rate.deep=1", "learning_rate"),
    ],
)
def test_values_of_a_training_that_cannot_be(value: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in refused(train.main, ["train.yml", "--set", value], capsys)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("sequence_lengths=[64, -1]", "sequence_lengths.1: -1 is not allowed"),
        ("tasks.echo.task=tests.nothing:Echo", "tasks.echo: 'tests.nothing:Echo' cannot be imported"),
        ("tasks.echo.settings.bogus=1", "tasks.echo: task=tests.lsh_v2.tiny_training:Echo with task_settings="),
        ("tasks.echo.training.mixed_precision=fp16", "tasks.echo: mixed_precision: fp16 is not allowed on a CPU"),
        ("tasks.echo.training.batch_size=0", "batch_size: 0 is not allowed"),
        ("out=file", "out: file cannot be created: "),
        ("checkpoint=nowhere", "there is no checkpoint in nowhere"),
        ("attentions=[flash, {name: flash, bogus: 1}]", "attentions.1.bogus: this setting is unknown"),
        ("device=cuda:99", "device: 'cuda:99' is not available on this machine"),
        ("model.d_model=-8", "d_model: -8 is not allowed"),
    ],
)
def test_values_of_the_long_arena_that_cannot_be(value: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in refused(long_arena.main, ["arena.yml", "--set", value], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "-5"], "--lengths -5 is not allowed; it must be integers from 1 to"),
        (["--lengths", "64", "0"], "--lengths 0 is not allowed"),
        (["--lengths", "many"], "invalid int value: 'many'"),
        (["--lengths", "2000000000000"], "--lengths 2000000000000 is not allowed"),
        (["--size", "huge"], "target_params='huge' is not allowed"),
        (["--set", "attention=flush"], "cannot be used:\n  unknown backend 'flush'; did you mean flash"),
        (["--set", "target_params=3"], "--set target_params is not allowed; use --size"),
        (["--set", "n_heads=-1"], "n_heads: -1 is not allowed"),
        (["--out", "file"], "--out: file cannot be created: it is not a folder"),
        (["nowhere"], "there is no checkpoint in nowhere"),
        (["nowhere", "--set", "attention=flash"], "--set and --size are not allowed with a checkpoint"),
        (["nowhere", "--size", "25M"], "--set and --size are not allowed with a checkpoint"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_options_of_the_profile(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in refused(profile.main, arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "-1"], "sequence length=-1 is not allowed"),
        (["--tokens", "0"], "sequence length=0 is not allowed"),
        (["--tokens", "x"], "invalid int value"),
        (["--tokens", "131073"], "sequence length=131073 is not allowed"),
        (["--size", "-3"], "target_params='-3' is not allowed"),
        (["--set", "attention=flush"], "cannot be used:\n  unknown backend 'flush'; did you mean flash"),
        (["--set", "="], "must have the form key=value"),
    ],
)
def test_options_of_the_long_example(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    small = ["--size", "25M"] if "--size" not in arguments else []
    assert message in refused(long_example.main, [*small, *arguments], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "file"], "--root: file/data/results cannot be created: "),
        (["--root", "zero\0"], "a path must not contain a null byte"),
        (["--quick", "yes"], "unrecognized arguments: yes"),
    ],
)
def test_options_of_the_pipeline(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in refused(pipeline.main, ["--quick", *arguments], capsys)


@pytest.mark.parametrize("name", ["quick_training/training_metrics.json", "quick_benchmark/benchmark_summary.json"])
@pytest.mark.parametrize("text", ['{"torn', "[]", "{}"])
def test_damaged_results_are_named_before_a_phase(name: str, text: str, capsys: pytest.CaptureFixture) -> None:
    path = Path("data/results") / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    output = refused(pipeline.main, ["--quick"], capsys)
    assert str(path) in output
    assert "remove it, and the same command creates it again" in output


@pytest.mark.parametrize("text", ['{"torn', "[]", '{"config": []}'])
def test_a_damaged_run_of_the_long_arena_is_named(text: str, capsys: pytest.CaptureFixture) -> None:
    Path("out").mkdir()
    Path("out/run.json").write_text(text)
    assert "run.json" in refused(long_arena.main, ["arena.yml"], capsys)


def zipped(name: str, text: str) -> None:
    with zipfile.ZipFile("some.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)


def test_options_of_the_package(capsys: pytest.CaptureFixture) -> None:
    results = Path("final_results/pipeline_results.json")
    assert "has no final_results" in refused(package.main, ["--root", "."], capsys)
    assert "has no final_results" in refused(package.main, ["--root", "nowhere"], capsys)
    results.parent.mkdir()
    results.write_text("{}")
    assert "cannot be written: No such file" in refused(package.main, ["--out", "nowhere/a.zip"], capsys)
    for path in ("file", "nowhere", "final_results"):
        assert f"{path} is not a valid package: " in refused(package.main, ["--check", path], capsys)
    for text in ("7", "[]", '{"a": 1}', '{"torn'):
        zipped("manifest.json", text)
        assert "some.zip is not a valid package: " in refused(package.main, ["--check", "some.zip"], capsys)
    zipped("manifest.json", json.dumps({"a": {}}) * 1 + " " * 5000)
    raw = bytearray(Path("some.zip").read_bytes())
    raw[45:60] = bytes(15)
    Path("some.zip").write_bytes(raw)
    assert "some.zip is not a valid package: " in refused(package.main, ["--check", "some.zip"], capsys)
    assert "required: config, out, report" in refused(pipeline_check.main, [], capsys)
