"""Training: the same curve after a kill, whole checkpoints, data in order, grading, and errors in words."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator

from harness.config_source import ConfigError
from lsh_v2.checkpoint import checkpoints, prune, read_state, save
from lsh_v2.configuration import model_config
from lsh_v2.memory import gate_parameters
from lsh_v2.model import LSHv2Model
from lsh_v2.train import FULL, main
from lsh_v2.training import CheckpointError, Trainer, TrainingConfig, load_model, load_training_config
from lsh_v2.training.configuration import training_config
from lsh_v2.training.data import Batches, Rows, loader_of, task_of
from lsh_v2.training.evaluation import answers, graded, held_out_loss
from lsh_v2.training.metrics import loss_drop
from lsh_v2.training.optimizer import optimizer_of, set_rates
from lsh_v2.training.tokenizer import tokenizer_of
from tasks.byte_tokenizer import ByteTokenizer
from tasks.encoding import encode
from tasks.example import Example, Task
from tasks.jsonl import write_examples
from tests.lsh_v2.small import small_config, small_model, token_ids

TINY: dict[str, Any] = {
    "model_size": None,
    "model": {
        "d_model": 16,
        "n_heads": 2,
        "n_kv_heads": 1,
        "n_layers": 2,
        "weight_tied_layers": 1,
        "feed_forward_dim": 16,
        "attention": "flash",
    },
    "task": "tests.lsh_v2.test_training:Echo",
    "pack": False,
    "seq_length": 64,
    "batch_size": 4,
    "num_epochs": 2,
    "num_train_sequences": 20,
    "num_eval_sequences": 6,
    "num_answers": 4,
    "max_answer_tokens": 8,
    "checkpoint_every": 2,
    "warmup_steps": 3,
    "learning_rate": 1e-2,
    "profile_components": False,
    "device": "cpu",
}


class Echo(Task):
    """Say a digit again."""

    def example(self, index: int) -> Example:
        digit = str(self.draw(index).randrange(10))
        return Example(f"say {digit}:", f" {digit}", {"task": "echo", "index": index})

    def chance(self, example: Example) -> float:
        return 0.1


def tiny(out: Path, **changes: Any) -> TrainingConfig:
    return training_config(TINY | {"out": str(out)} | changes)


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def command(out: Path, **changes: Any) -> subprocess.Popen:
    """`python -m lsh_v2.train` on a configuration file."""
    out.parent.mkdir(exist_ok=True)
    path = out.with_suffix(".yml")
    path.write_text(yaml.safe_dump(TINY | {"out": str(out)} | changes))
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    arguments = [sys.executable, "-m", "lsh_v2.train", str(path)]
    return subprocess.Popen(arguments, env=environment, cwd=root, stderr=subprocess.PIPE, text=True)


def test_killed_run_ends_with_the_curve_of_one_that_was_not(tmp_path: Path) -> None:
    """Held-out losses too, whose depth is drawn."""
    changes = {"num_train_sequences": 160, "checkpoint_every": 7, "num_answers": 0, "num_eval_sequences": 64}
    many = changes | {"model": TINY["model"] | {"ponder_inference": "sample", "ponder_weight": 1.0}}
    record = tmp_path / "killed" / "steps.jsonl"
    with command(tmp_path / "killed", **many) as killed:
        while not (record.exists() and len(record.read_text().splitlines()) >= 50):
            assert killed.poll() is None, killed.communicate()[1]
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    before = len(steps_of(tmp_path / "killed"))
    found = [Trainer(tiny(tmp_path / name, **many)).run() for name in ("killed", "whole")]
    assert 50 <= before < 80 == len(found[0]["steps"])
    assert found[0]["steps"] == found[1]["steps"]
    assert found[0]["loss_eval"] == found[1]["loss_eval"]
    one, two = (load_model(tmp_path / name).state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_run_leaves_metrics_a_figure_checkpoints_and_tensorboard_files(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    metrics = Trainer(config).run()
    assert metrics == json.loads((tmp_path / "training_metrics.json").read_text())
    assert (len(metrics["steps"]), len(metrics["loss_train"]), len(metrics["loss_eval"])) == (10, 2, 2)
    assert metrics["loss_eval"][-1] == held_out_loss(load_model(tmp_path), config, ByteTokenizer())
    low, high = metrics["loss_drop_interval"]
    assert low < metrics["loss_drop"] < high
    assert metrics["loss_drop"] == pytest.approx(metrics["loss_train"][0] - metrics["loss_train"][1])
    assert metrics["accuracy"]["echo"]["examples"] == 4
    assert metrics["parameters"] == sum(p.numel() for p in load_model(tmp_path).parameters())
    assert (tmp_path / "training_metrics.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").rglob("events.out.*"))
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000008", "step-00000010"]
    assert Trainer(config).run() == metrics  # finished: nothing is trained again
    with pytest.raises(ValueError, match="another configuration, different in learning_rate"):
        Trainer(tiny(tmp_path, learning_rate=5e-3)).run()


def test_run_profiles_its_model_even_where_that_is_shorter_than_all_lengths(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path, num_train_sequences=8, num_answers=0, profile_components=True)).run()
    (row,) = json.loads((tmp_path / "component_profiles.json").read_text())["lengths"]
    assert row["seq_len"] == 64
    assert row["total_ms"] > row["attention_ms"] > 0


def test_held_out_loss_is_the_mean_over_labels_whatever_the_batches(tmp_path: Path) -> None:
    """Odd one out, whose rows differ in length."""
    config = tiny(tmp_path, task="tasks.odd_one_out:OddOneOut", seq_length=512, learn="all", batch_size=4)
    tokenizer, task = ByteTokenizer(), task_of(config, evaluation=True)
    model = LSHv2Model(config.model_of(tokenizer.vocab_size)).eval()
    rows = [encode(task.example(i), tokenizer, learn="all") for i in range(6)]
    with torch.no_grad():
        logits = [model(row.input_ids[None])["logits"][0] for row in rows]
    losses = [
        torch.nn.functional.cross_entropy(x[:-1], r.labels[1:], reduction="none")
        for x, r in zip(logits, rows, strict=True)
    ]
    assert len({len(loss) for loss in losses}) > 1
    assert held_out_loss(model, config, tokenizer) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


def test_worker_processes_make_the_same_rows(tmp_path: Path) -> None:
    loaders = [loader_of(tiny(tmp_path, num_workers=count), ByteTokenizer())[0] for count in (0, 2)]
    assert [loader.num_workers for loader in loaders] == [0, 2]
    for one, two in zip(*loaders, strict=True):
        assert torch.equal(one.input_ids, two.input_ids)


def test_training_learns_and_the_model_s_own_answers_are_graded(tmp_path: Path) -> None:
    metrics = Trainer(tiny(tmp_path, num_train_sequences=800, num_epochs=2, batch_size=16, num_answers=40)).run()
    assert metrics["loss_drop_interval"][0] > 0
    echo = metrics["accuracy"]["echo"]
    assert echo["chance"] == pytest.approx(0.1)
    assert echo["score"] > 0.3  # a guesser passes this once in a thousand
    model, tokenizer, task = load_model(tmp_path), ByteTokenizer(), Echo(seed=1)
    (alone,) = answers(model, [task.example(3)], tokenizer, 8)
    nine = map(task.example, range(9))
    together = {e.metadata["index"]: o for e, o in answers(model, nine, tokenizer, 8)}
    assert together[3] == alone[1]


def test_grading_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([" 1", " 2"] * 5)
    monkeypatch.setattr(
        "lsh_v2.training.evaluation.answers",
        lambda _model, examples, *_: [(Example(e.prompt, " 1", e.metadata), next(said)) for e in examples],
    )
    found = graded(small_model(), Echo(), ByteTokenizer(), count=10, max_answer_tokens=4)
    assert found == {
        "echo": {
            "score": 0.5,
            "standard_error": pytest.approx(0.5 / 10**0.5),
            "exact": 0.5,
            "chance": pytest.approx(0.1),
            "examples": 10,
        }
    }


def test_full_configuration_file_names_every_key_with_the_guide_s_values() -> None:
    raw = yaml.safe_load(FULL.read_text())
    assert raw.keys() == TrainingConfig.model_fields.keys()
    assert load_training_config(FULL) == TrainingConfig()
    guide = {"model_size": "100M", "seq_length": 131_072, "batch_size": 1, "num_epochs": 5, "learning_rate": 1e-4}
    guide |= {"num_train_sequences": 1000, "num_eval_sequences": 100, "gradient_checkpoint": True}
    assert {key: raw[key] for key in guide} == guide
    assert raw["profile_components"] is True


def test_keys_of_the_training_reach_the_model(tmp_path: Path) -> None:
    for asked in (True, False):
        model = tiny(tmp_path, gradient_checkpoint=asked, seq_length=50, seed=3).model_of(300)
        assert (model.gradient_checkpoint, model.max_seq_len, model.seed, model.vocab_size) == (asked, 50, 3, 300)


def test_quick_configuration_is_allowed() -> None:
    config = load_training_config(FULL.with_name("quick.yml"))
    assert sum(p.numel() for p in LSHv2Model(config.model_of(259)).parameters()) < 2e6


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rat": 1.0}, "learning_rat: this key is unknown; did you mean learning_rate"),
        ({"model": {"d_modle": 8}}, "model.d_modle: this key is unknown; did you mean d_model"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed; it must be an integer of at least 1"),
        ({"trackers": ["wanb"]}, "tensorboard, wandb and mlflow"),
    ],
)
def test_mistakes_in_a_configuration_are_named(changes: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        tiny(tmp_path, **changes)


def test_command_says_what_is_wrong_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.yml").write_text("batch_sise: 3\n")
    assert main([str(tmp_path / "bad.yml")]) == 2
    assert "did you mean batch_size" in capsys.readouterr().err
    assert main(["--set", "model.attention=flush", "--set", f"out={tmp_path}"]) == 2
    assert "did you mean flash" in capsys.readouterr().err


def test_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("wandb", "mlflow") else 1)
    with pytest.raises(ValueError, match="pip install wandb"):
        Trainer(tiny(tmp_path)).enable_wandb(project="lsh_v2")
    with pytest.raises(ValueError, match="pip install mlflow"):
        Trainer(tiny(tmp_path, trackers=["mlflow"]))


def test_trackers_are_given_their_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as accelerate, which knows each of them; of those here TensorBoard alone is installed for certain."""
    asked: dict[str, Any] = {}

    class Recording(Accelerator):
        def __init__(self, log_with: list[str], **settings: Any) -> None:
            asked["log_with"] = log_with
            super().__init__(log_with=["tensorboard"], **settings)

        def init_trackers(self, project_name: str, config: dict | None = None, init_kwargs: dict | None = None) -> None:
            asked.update(project=project_name, init=init_kwargs)
            super().init_trackers(project_name, config)

    monkeypatch.setattr("lsh_v2.training.trainer.Accelerator", Recording)
    monkeypatch.setattr("lsh_v2.training.trainer.require_installed", lambda _: None)
    trainer = Trainer(tiny(tmp_path, num_train_sequences=4, num_answers=0))
    trainer.enable_wandb(project="lsh_v2", entity="me")
    trainer.run()
    assert asked == {"log_with": ["tensorboard", "wandb"], "project": "lsh_v2", "init": {"wandb": {"entity": "me"}}}


def write_checkpoint(folder: Path, step: int) -> Path:
    config = model_config(**TINY["model"], vocab_size=259, max_seq_len=64)
    state = {"model": config.model_dump(mode="json")}
    return save(folder, step, LSHv2Model(config).state_dict(), {"0.x": torch.ones(3)}, state)


@pytest.mark.parametrize("harm", ["flip", "cut", "missing", "state"])
def test_damaged_checkpoint_is_named_with_the_one_that_is_left(harm: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3)
    path = write_checkpoint(tmp_path, 5)
    weights = path / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    if harm == "flip":
        raw[-100] ^= 1
        weights.write_bytes(raw)
    elif harm == "cut":
        weights.write_bytes(raw[: len(raw) // 2])
    elif harm == "missing":
        weights.unlink()
    else:
        (path / "state.json").write_text('{"step": 5, ')
    with pytest.raises(CheckpointError, match=r"step-00000005 is damaged.*go on from step-00000003"):
        read_state(path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path)


def test_model_with_memories_comes_back_as_it_was(tmp_path: Path) -> None:
    config = model_config(**small_config(attention="lsh_v2", memory=["hash_evict", "infini"]).model_dump())
    model = LSHv2Model(config).eval()
    save(tmp_path, 1, model.state_dict(), {}, {"model": config.model_dump(mode="json")})
    again, ids = load_model(tmp_path), token_ids(9)
    assert again.config == config
    assert torch.equal(again(ids)["logits"], model(ids)["logits"])


def test_disk_that_is_full_costs_no_earlier_checkpoint(tmp_path: Path) -> None:
    earlier = write_checkpoint(tmp_path, 3)
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 5 could not be written.*newest one is .*step-00000003"):
            write_checkpoint(tmp_path, 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == [earlier]
    load_model(earlier)


def test_what_a_killed_write_left_is_no_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3)
    (tmp_path / ".writing-00000005").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]
    prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_packed_rows_hold_whole_examples_and_each_only_once() -> None:
    tokenizer, task = ByteTokenizer(), Echo()
    rows = Rows(task, tokenizer, count=3, length=40, pack=True, learn="answer")
    size = len(encode(task.example(0), tokenizer).input_ids)
    for row in range(3):
        parts = [encode(task.example(row + 3 * n), tokenizer) for n in range(40 // size)]
        assert torch.equal(rows[row].input_ids, torch.cat([part.input_ids for part in parts]))
        assert torch.equal(rows[row].labels, torch.cat([part.labels for part in parts]))
    with pytest.raises(ValueError, match="more than seq_length=5"):
        Rows(task, tokenizer, count=3, length=5, pack=True, learn="answer")[0]


def test_order_of_rows_depends_on_seed_and_epoch_and_resumes_anywhere() -> None:
    batches = Batches(10, 3, seed=1)
    first = list(batches)
    assert sorted(row for batch in first for row in batch) == list(range(10))
    batches.epoch = 1
    second = list(batches)
    assert second != first
    batches.start = 2
    assert list(batches) == second[2:]


def test_evaluation_sees_other_examples_than_training(tmp_path: Path) -> None:
    config = tiny(tmp_path, task="tasks.odd_one_out:OddOneOut")
    train, held_out = (task_of(config, evaluation=which) for which in (False, True))
    assert {train.example(i).prompt for i in range(20)}.isdisjoint(held_out.example(i).prompt for i in range(20))


def test_examples_come_from_a_file_and_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    write_examples(path, [Echo().example(i) for i in range(5)])
    task = task_of(tiny(tmp_path, train_file=str(path)), evaluation=False)
    assert task.example(7).text == Echo().example(2).text
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3][:10], lines[4]]))
    with pytest.raises(ValueError, match="line 4"):
        task_of(tiny(tmp_path, train_file=str(path)), evaluation=False)


def test_task_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be imported"):
        task_of(tiny(tmp_path, task="tasks.nothing:Nothing"), evaluation=False)
    with pytest.raises(ValueError, match="does not take"):
        task_of(tiny(tmp_path, task_settings={"wrong": 1}), evaluation=False)


def test_gates_have_their_own_rate_and_only_matrices_decay(tmp_path: Path) -> None:
    model = small_model(memory=["infini"])
    optimizer = optimizer_of(model, tiny(tmp_path, learning_rate=1e-3, gate_learning_rate=0.25))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(model.parameters()))
    set_rates(optimizer, 10, 1000, 10)
    for gate in gate_parameters(model):
        assert (groups[id(gate)]["lr"], groups[id(gate)]["weight_decay"]) == (pytest.approx(0.25), 0)
    decaying = {name for name, p in model.named_parameters() if groups[id(p)]["weight_decay"]}
    assert decaying == {n for n, p in model.named_parameters() if p.ndim == 2 and not n.startswith("embedding")}


def test_rate_warms_up_and_falls_to_a_tenth() -> None:
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(1)], "peak": 2.0}])
    shares = [set_rates(optimizer, step, 101, 10) for step in range(101)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[-1] == pytest.approx(0.1, abs=1e-3)
    assert optimizer.param_groups[0]["lr"] == 2.0 * shares[-1]


def test_drop_of_the_loss_has_an_interval_that_holds_it() -> None:
    steps = [{"epoch": e, "loss": 3.0 - e + 0.1 * (i % 2)} for e in range(3) for i in range(10)]
    drop = loss_drop(steps)
    assert drop is not None
    assert drop[0] == pytest.approx(2.0)
    assert 1.9 < drop[1][0] < 2.0 < drop[1][1] < 2.1
    assert loss_drop(steps[:10]) is None


def test_trained_tokenizer_has_a_token_for_each_frequent_word_and_loses_nothing(tmp_path: Path) -> None:
    settings = {"task": "tasks.odd_one_out:OddOneOut", "tokenizer": "trained", "tokenizer_size": 400}
    config = tiny(tmp_path, **settings)
    tokenizer = tokenizer_of(config)
    assert tokenizer.vocab_size == 400
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("<ITEMS> 4 17\n<OUTPUT>")]
    assert pieces == ["<ITEMS>", " 4", " 17", "\n", "<OUTPUT>"]
    for text in (task_of(config, evaluation=True).example(2).text, "Ünseen  words\n\n and\ttabs — 123456"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer_of(config).encode(" 17") == tokenizer.encode(" 17")  # made once, read again


def test_run_with_a_trained_tokenizer_goes_to_its_end(tmp_path: Path) -> None:
    settings = {"tokenizer": "trained", "tokenizer_size": 300, "num_train_sequences": 8, "num_answers": 2}
    metrics = Trainer(tiny(tmp_path, **settings)).run()
    assert load_model(tmp_path).config.vocab_size == metrics["model"]["vocab_size"] <= 300


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_batches_of_both(tmp_path: Path) -> None:
    """gloo on one machine; memories that never fill and tied layers must not confuse the reducer."""
    path = tmp_path / "two.yml"
    model = TINY["model"] | {"reversible": True, "memory": ["infini"]}
    path.write_text(yaml.safe_dump(TINY | {"model": model, "out": str(tmp_path / "two"), "batch_size": 2}))
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29617"]
    subprocess.run([*launch, "-m", "lsh_v2.train", str(path)], env=environment, cwd=root, check=True, timeout=280)
    Trainer(tiny(tmp_path / "one", model=model)).run()
    two, one = (steps_of(tmp_path / name) for name in ("two", "one"))
    assert len(two) == len(one) == 10
    # Labels differ in number between the halves of a batch only by padding, of which Echo has none.
    assert [step["loss"] for step in two[:5]] == pytest.approx([step["loss"] for step in one[:5]], rel=2e-3)
