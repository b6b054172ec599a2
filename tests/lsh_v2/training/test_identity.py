"""A run goes on with what it began as: configuration, files, tokens and source; and it is alone in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator

from lsh_v2.common.files import InUseError, digest, locked
from lsh_v2.common.schemas import TrainingState
from lsh_v2.train import main
from lsh_v2.training import Trainer, checks, identity
from lsh_v2.training.checkpoint import checkpoints, read_state
from lsh_v2.training.configuration import INCIDENTAL, TrainingConfig
from lsh_v2.training.run import TrainingLoop
from lsh_v2.training.tokenizer import tokenizer_of
from tasks.jsonl import write_examples
from tests.lsh_v2.tiny_training import TINY, Echo, steps_of, tiny

QUIET = {"num_answers": 0}


def command(out: Path, **changes: Any) -> int:
    """The command on the tiny training; returns its exit status."""
    path = out.with_suffix(".yml")
    path.write_text(yaml.safe_dump(TINY | QUIET | {"out": str(out)} | changes))
    return main([str(path)])


def unfinished(out: Path) -> None:
    """Leave a run as if it had been killed after its sixth step."""
    (out / "training_metrics.json").unlink()
    for path in checkpoints(out / "checkpoints"):
        if path.name > "step-00000006":
            shutil.rmtree(path)


def examples(path: Path, seed: int) -> Path:
    write_examples(path, [Echo(seed=seed).example(i) for i in range(20)])
    return path


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert command(out, num_answers=2) == 0
    return out


@pytest.fixture
def finished_run(trained_once: Path, tmp_path: Path) -> Path:
    """A run that has finished, with graded answers, in a folder of its own."""
    return shutil.copytree(trained_once, tmp_path / "run")


@pytest.mark.parametrize("key", ["train_file", "eval_file"])
@pytest.mark.parametrize("finished", [True, False])
def test_other_content_of_a_file_is_another_run(
    key: str, finished: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, out = examples(tmp_path / "examples.jsonl", 0), tmp_path / "run"
    assert command(out, keep_checkpoints=9, **{key: str(path)}) == 0
    if not finished:
        unfinished(out)
    curve = steps_of(out)
    examples(path, 1)
    capsys.readouterr()
    assert command(out, **{key: str(path)}) == 2
    assert f"which differs in the content of {key}, " in capsys.readouterr().err
    assert steps_of(out) == curve


def test_a_file_that_has_moved_is_the_same_run(tmp_path: Path) -> None:
    path, out = examples(tmp_path / "examples.jsonl", 0), tmp_path / "run"
    assert command(out, train_file=str(path), keep_checkpoints=9) == 0
    unfinished(out)
    assert command(out, train_file=str(path.rename(tmp_path / "moved.jsonl"))) == 0
    assert len(steps_of(out)) == 10


def test_other_code_is_another_run_unless_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "run"
    assert command(out, keep_checkpoints=9) == 0
    monkeypatch.setattr(identity, "source_hash", lambda *_: "edited")
    for _ in range(2):  # when it has finished, and when it has not
        capsys.readouterr()
        assert command(out) == 2
        assert "which differs in the source code: choose another `out`" in capsys.readouterr().err
        if (out / "training_metrics.json").exists():
            unfinished(out)
    assert command(out, resume_other_code=True) == 0
    assert len(steps_of(out)) == 10
    assert read_state(checkpoints(out / "checkpoints")[-1], TrainingState).identity["code"] == "edited"


def test_code_is_that_of_the_loop_the_attention_and_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(identity, "source_hash", lambda *modules: seen.extend(modules) or "")
    identity.code_of(tiny(tmp_path))
    assert seen == ["lsh_v2.training.run", "attentions.flash", "tests.lsh_v2.tiny_training"]


def test_other_tokens_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tokenizer or a task that is known by no file."""
    config = tiny(tmp_path, **QUIET)
    Trainer(config).run()
    example = Echo.example
    monkeypatch.setattr(Echo, "example", lambda self, index: example(self, index + 1))
    with pytest.raises(ValueError, match="which differs in the examples or their tokens"):
        Trainer(config).run()


def test_another_trained_tokenizer_is_another_run(tmp_path: Path) -> None:
    config = tiny(tmp_path, **QUIET, tokenizer="trained", tokenizer_size=300, num_train_sequences=8)
    Trainer(config).run()
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 7}))
    with pytest.raises(ValueError, match="which differs in the tokenizer's files"):
        Trainer(config).run()


def test_every_key_decides_the_result_or_is_listed_as_incidental() -> None:
    assert TrainingConfig.model_fields.keys() > INCIDENTAL


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with locked(out, "training"):
        before = sorted(out.rglob("*"))
        assert command(out) == 2
        assert "run is in use by another training" in capsys.readouterr().err
        assert sorted(out.rglob("*")) == before
        with pytest.raises(InUseError), locked(out, "training"):
            pass
    assert command(out) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"torn', "training_metrics.json cannot be read: it is not valid JSON: EOF while parsing a string"),
        ("[]", "training_metrics.json cannot be read: [] is not allowed; it must be an object"),
        ("{}", "training_metrics.json cannot be read: config: this key is missing"),
        ("\x00\xff", "training_metrics.json cannot be read: "),
    ],
)
def test_damaged_metrics_are_named_and_nothing_else_is_touched(
    text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "run"
    assert command(out) == 0
    curve = steps_of(out)
    (out / "training_metrics.json").write_text(text, encoding="latin-1")
    capsys.readouterr()
    assert command(out) == 2
    output = capsys.readouterr().err
    assert reason in output
    assert output.endswith("remove it, and the same command creates it again\n")
    (out / "training_metrics.json").unlink()
    assert command(out) == 0
    assert steps_of(out) == curve


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("accuracy", None, "accuracy: null is not allowed; it must be "),
        ("accuracy", {"x": None}, "accuracy.x: null is not allowed; it must be an object"),
        ("accuracy", {"x": {"score": None}}, "accuracy.x.score: null is not allowed; it must be a valid number"),
        ("loss_train", None, "loss_train: null is not allowed"),
        ("loss_train", ["x"], "loss_train.0: 'x' is not allowed; it must be a valid number"),
        ("loss_train", [], "loss_train: [] is not allowed; it must not be empty"),
        ("loss_eval", [], "loss_eval: [] is not allowed; it must not be empty"),
        ("loss_eval", [float("nan")], "loss_eval.0: .nan is not allowed; it must be a finite number"),
        ("loss_drop_interval", [1.0], "loss_drop_interval: [1.0] is not allowed; it must be two numbers"),
        ("finished", "no", "finished: 'no' is not allowed; it must be a valid boolean"),
        ("config", None, "config: null is not allowed; it must be "),
        ("config", [], "config: [] is not allowed; it must be "),
        ("identity", 5, "identity: 5 is not allowed; it must be "),
        ("identity", None, "identity: null is not allowed; it must be "),
        ("identity", {"code": 5}, "identity.code: 5 is not allowed; it must be "),
        ("steps", None, "steps: null is not allowed"),
    ],
)
def test_values_of_metrics_that_cannot_be_are_named(
    key: str, value: object, reason: str, finished_run: Path, capsys: pytest.CaptureFixture
) -> None:
    path = finished_run / "training_metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    before = digest(finished_run)
    assert command(finished_run, num_answers=2) == 2
    output = capsys.readouterr().err
    assert output.startswith(f"{path} cannot be read: {reason}")
    assert output.endswith("; remove it, and the same command creates it again\n")
    assert digest(finished_run) == before


def test_metrics_nested_without_end_are_refused_in_words(finished_run: Path, capsys: pytest.CaptureFixture) -> None:
    (finished_run / "training_metrics.json").write_text(DEEP)
    assert command(finished_run, num_answers=2) == 2
    assert "training_metrics.json cannot be read: it is not valid JSON: recursion limit" in capsys.readouterr().err


def test_metrics_that_are_not_finished_are_gone_on_with(finished_run: Path) -> None:
    path = finished_run / "training_metrics.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"finished": False}))
    assert command(finished_run, num_answers=2) == 0
    assert json.loads(path.read_text()) == whole | {"config": whole["config"] | {"out": str(finished_run)}}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("step", "x", "step: 'x' is not allowed; it must be a valid integer"),
        ("step", -5, "step: -5 is not allowed; it must be greater than or equal to 0"),
        ("step", 8, "steps must be 1 to 8"),
        ("step", 10**9, "steps must be 1 to 1000000000"),
        ("steps", None, "steps: null is not allowed"),
        ("steps", [], "steps must be 1 to 10"),
        ("steps", [{"step": 1, "epoch": 0}], "steps.0.loss: this key is missing"),
        ("config", None, "config: null is not allowed"),
        ("identity", 3, "identity: 3 is not allowed"),
        ("seconds", "x", "seconds: 'x' is not allowed"),
        ("tokens", -1, "tokens: -1 is not allowed"),
        ("loss_eval", [None], "loss_eval.0: null is not allowed"),
        ("scaler", 5, "scaler: 5 is not allowed"),
        ("scaler", {"scale": 1.0}, "scaler must hold _growth_tracker, "),
        ("model", None, "model: null is not allowed"),
        ("model", {"d_model": -1}, "model.d_model: -1 is not allowed"),
        ("sha256", {}, "model.safetensors has changed since it was written"),
        ("sha256", {"model.safetensors": 1}, "sha256.model.safetensors: 1 is not allowed"),
    ],
)
def test_values_of_a_checkpoints_state_that_cannot_be_are_named(
    key: str, value: object, reason: str, finished_run: Path, capsys: pytest.CaptureFixture
) -> None:
    (finished_run / "training_metrics.json").unlink()
    newest = checkpoints(finished_run / "checkpoints")[-1]
    path = newest / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    before = digest(finished_run)
    assert command(finished_run, num_answers=2) == 1
    output = capsys.readouterr().err
    assert output.startswith(f"checkpoint {newest} is damaged: ")
    assert reason in output
    assert output.endswith(f"; remove the folder to continue from {checkpoints(newest.parent)[-2].name}\n")
    assert digest(finished_run) == before


def test_a_state_nested_without_end_and_one_of_another_step_are_refused_in_words(
    finished_run: Path, capsys: pytest.CaptureFixture
) -> None:
    (finished_run / "training_metrics.json").unlink()
    newest = checkpoints(finished_run / "checkpoints")[-1]
    (newest / "state.json").write_text(DEEP)
    assert command(finished_run, num_answers=2) == 1
    assert "state.json: it is not valid JSON: recursion limit exceeded" in capsys.readouterr().err
    shutil.rmtree(newest)
    checkpoints(newest.parent)[-1].rename(newest)
    assert command(finished_run, num_answers=2) == 1
    assert "step-00000010 is damaged: state.json: step: 8 is not allowed; it must be 10; " in capsys.readouterr().err


def test_a_tokenizer_left_by_a_run_that_failed_in_words_is_not_the_next_ones(tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = {"tokenizer": "trained", "tokenizer_size": 300}
    assert command(out, **trained, seq_length=2) == 2  # with a tokenizer, and no room for the first example
    assert (out / "tokenizer").is_dir()
    changes = {"tokenizer": "trained", "tokenizer_size": 310, "task": "tasks.odd_one_out:OddOneOut"}
    for other in (out, tmp_path / "fresh"):
        assert command(other, **changes) == 0
    one, two = (json.loads((folder / "training_metrics.json").read_text()) for folder in (out, tmp_path / "fresh"))
    assert one["model"]["vocab_size"] == two["model"]["vocab_size"] == 310
    assert one["identity"] == two["identity"]
    assert steps_of(out) == steps_of(tmp_path / "fresh")


def test_a_tokenizer_that_a_run_has_begun_with_is_kept(tmp_path: Path) -> None:
    """By a run of another configuration, and by what prepares one."""
    config = tiny(tmp_path, **QUIET, tokenizer="trained", tokenizer_size=300, num_train_sequences=8)
    Trainer(config).run()
    before = digest(tmp_path / "tokenizer")
    other = config.model_copy(update={"tokenizer_size": 310})
    for start in (Trainer(other).run, lambda: tokenizer_of(other)):
        with pytest.raises(
            ValueError, match="holds a run of another configuration, which differs in tokenizer_size: choose"
        ):
            start()
    assert digest(tmp_path / "tokenizer") == before


@pytest.fixture
def trained_tokenizer_run(tmp_path: Path) -> TrainingConfig:
    config = tiny(tmp_path, **QUIET, tokenizer="trained", tokenizer_size=300, num_train_sequences=8)
    Trainer(config).run()
    return config


def make_older(out: Path) -> None:
    """Leave a run as a version did that did not note what its tokenizer was made of."""
    (out / "tokenizer" / "made_of.json").unlink()
    files = digest(out / "tokenizer")
    for path in (
        out / "training_metrics.json",
        *(folder / "state.json" for folder in checkpoints(out / "checkpoints")),
    ):
        content = json.loads(path.read_text())
        content["identity"]["tokenizer"] = files
        path.write_text(json.dumps(content))


def test_an_older_version_s_run_keeps_its_tokenizer(trained_tokenizer_run: TrainingConfig, tmp_path: Path) -> None:
    config, want = trained_tokenizer_run, steps_of(tmp_path)
    make_older(tmp_path)
    before = digest(tmp_path / "tokenizer")
    assert Trainer(config).run()["finished"]
    unfinished(tmp_path)
    assert Trainer(config).run()["finished"]
    assert steps_of(tmp_path) == want
    assert digest(tmp_path / "tokenizer") == before
    with pytest.raises(ValueError, match="which differs in tokenizer_size: choose"):
        tokenizer_of(config.model_copy(update={"tokenizer_size": 310}))
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 7}))
    with pytest.raises(ValueError, match="which differs in the tokenizer's files"):
        Trainer(config).run()


@pytest.mark.parametrize("name", [".DS_Store", "._tokenizer.json", "Thumbs.db"])
def test_what_others_leave_beside_a_tokenizer_is_not_the_tokenizer(
    trained_tokenizer_run: TrainingConfig, tmp_path: Path, name: str
) -> None:
    (tmp_path / "tokenizer" / name).write_bytes(b"\0")
    assert Trainer(trained_tokenizer_run).run()["finished"]


def test_another_configuration_is_refused_before_its_examples_are_looked_at(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path, **QUIET)).run()
    with pytest.raises(ValueError, match="which differs in seq_length: choose"):
        Trainer(tiny(tmp_path, **QUIET, seq_length=8)).run()


def test_a_digest_of_a_folder_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    before = digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = digest(tmp_path)
    (tmp_path / "b").write_text("y")
    assert len({before, renamed, digest(tmp_path), digest(tmp_path / "none")}) == 4
    assert digest(tmp_path / "none") == ""


@pytest.mark.parametrize("attention", ["flash", "lsh_v2"])
def test_bfloat16_trains(attention: str, tmp_path: Path) -> None:
    model = TINY["model"] | {"attention": attention, "gradient_checkpoint": True}
    whole, half = (
        Trainer(tiny(tmp_path / precision, **QUIET, mixed_precision=precision, model=model)).run()
        for precision in ("no", "bf16")
    )
    assert half["loss_train"][1] < half["loss_train"][0]
    assert half["loss_train"] == pytest.approx(whole["loss_train"], rel=0.05)
    assert half["loss_train"] != whole["loss_train"]


def test_float16_is_refused_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(tmp_path / "run", mixed_precision="fp16") == 2
    assert 'mixed_precision: fp16 is not allowed on a CPU; use "no" or bf16' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def scaled(trainer: Trainer) -> Accelerator:
    """An accelerator with the scaler of float16, which accelerate makes on GPUs alone."""
    accelerator = Accelerator(cpu=True, log_with=list(trainer._trackers), project_dir=str(trainer.out))
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)  # type: ignore[assignment]
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    return accelerator


def test_scaler_of_float16_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients overflow at first, so the scale falls and rises again, and its steps are passed over."""
    monkeypatch.setattr(checks, "_has_gpu", lambda _: True)
    monkeypatch.setattr(Trainer, "_accelerator", scaled)
    changes = QUIET | {"mixed_precision": "fp16", "keep_checkpoints": 9, "checkpoint_every": 1}
    Trainer(tiny(tmp_path / "whole", **changes)).run()
    Trainer(tiny(tmp_path / "halved", **changes)).run()
    unfinished(tmp_path / "halved")
    Trainer(tiny(tmp_path / "halved", **changes)).run()
    assert steps_of(tmp_path / "halved") == steps_of(tmp_path / "whole")
    one, two = (
        [
            (read_state(path, TrainingState).scaler or {})["scale"]
            for path in checkpoints(tmp_path / name / "checkpoints")
        ]
        for name in ("whole", "halved")
    )
    assert one == two
    assert len(set(one)) > 1
    assert "gradient_norm" not in steps_of(tmp_path / "whole")[0]


def test_a_loss_that_is_not_finite_spoils_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(tmp_path / "run", learning_rate=1e30, warmup_steps=0, checkpoint_every=1) == 1
    output = capsys.readouterr().err
    assert (
        "the loss of step 2 is nan; lower learning_rate; the newest checkpoint, step-00000001, is from before" in output
    )
    assert len(steps_of(tmp_path / "run")) == 1


def test_a_gradient_that_is_not_finite_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss may be finite all the same, and the next checkpoint would hold what it did to the weights."""
    clip = Accelerator.clip_grad_norm_

    def broken(self: Accelerator, parameters: Any, largest: float) -> Any:
        norm: Any = clip(self, parameters, largest)
        return norm * torch.inf

    out = tmp_path / "run"
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", broken)
    with pytest.raises(FloatingPointError, match="the gradient of step 1 has norm inf; lower learning_rate; there is"):
        Trainer(tiny(out, **QUIET, checkpoint_every=1)).run()
    assert not checkpoints(out / "checkpoints")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seq_length": 8}, "training example 0 has 10 tokens, more than seq_length=8"),
        ({"seq_length": 10, "num_train_sequences": 1, "eval_file": "long.jsonl"}, "held-out example 1 has "),
    ],
)
def test_examples_without_room_are_found_before_the_first_step(
    changes: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_examples(Path("long.jsonl"), [Echo().example(0), Echo().example(0).__class__("say much more:", " 1")])
    monkeypatch.setattr(TrainingLoop, "train", lambda _: pytest.fail("a step was made"))
    assert command(tmp_path / "run", **changes) == 2
    assert reason in capsys.readouterr().err
