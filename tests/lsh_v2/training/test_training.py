"""Training: the same curve after a kill and in several processes, what a run leaves, rates."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lsh_v2 import train
from lsh_v2.common.configuration import model_config
from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.model.memory import gate_parameters
from lsh_v2.model.sizes import parameters
from lsh_v2.train import FULL
from lsh_v2.training import Trainer, TrainingConfig, load_model, load_training_config
from lsh_v2.training.checkpoint import checkpoints, save
from lsh_v2.training.evaluation import answers, held_out_loss
from lsh_v2.training.metrics import loss_drop
from lsh_v2.training.optimizer import optimizer_of, set_rates
from tasks.byte_tokenizer import ByteTokenizer
from tests import preloaded
from tests.lsh_v2.small import small_config, small_model, token_ids
from tests.lsh_v2.tiny_training import TINY, Echo, steps_of, tiny


def command(out: Path, **changes: Any) -> preloaded.Process:
    """`python -m lsh_v2.train` on a configuration file."""
    out.parent.mkdir(exist_ok=True)
    path = out.with_suffix(".yml")
    path.write_text(yaml.safe_dump(TINY | {"out": str(out)} | changes))
    root = Path(__file__).parents[3]
    return preloaded.start("-m", "lsh_v2.train", str(path), cwd=root)


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
    with pytest.raises(ValueError, match="another configuration, which differs in learning_rate"):
        Trainer(tiny(tmp_path, learning_rate=5e-3)).run()


def test_run_profiles_its_model_even_where_that_is_shorter_than_all_lengths(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path, num_train_sequences=8, num_answers=0, profile_components=True)).run()
    (row,) = json.loads((tmp_path / "component_profiles.json").read_text())["lengths"]
    assert row["seq_len"] == 64
    assert row["total_ms"] > row["attention_ms"] > 0


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


def test_commands_that_are_written_down_make_a_model() -> None:
    text = FULL.with_name("README.md").read_text() + (train.__doc__ or "")
    written = re.findall(r"^ *(?:python|torchrun|accelerate) .*-m lsh_v2\.train\b(.*)$", text, re.MULTILINE)
    assert len(written) == 8
    for arguments in written:
        given = shlex.split(arguments, comments=True)
        path = FULL.parents[1] / given.pop(0) if given and not given[0].startswith("-") else FULL
        overrides = [word for word in given if word != "--set"]
        assert parameters(load_training_config(path, overrides).model_of(500)) > 1e5


def test_quick_configuration_is_allowed() -> None:
    config = load_training_config(FULL.with_name("quick.yml"))
    assert sum(p.numel() for p in LSHv2Model(config.model_of(259)).parameters()) < 2e6


def test_model_with_memories_comes_back_as_it_was(tmp_path: Path) -> None:
    config = model_config(**small_config(attention="lsh_v2", memory=["hash_evict", "infini"]).model_dump())
    model = LSHv2Model(config).eval()
    save(tmp_path, 1, model.state_dict(), {}, {"model": config.model_dump(mode="json")})
    again, ids = load_model(tmp_path), token_ids(9)
    assert again.config == config
    assert torch.equal(again(ids)["logits"], model(ids)["logits"])


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


def test_run_with_a_trained_tokenizer_goes_to_its_end(tmp_path: Path) -> None:
    settings = {"tokenizer": "trained", "tokenizer_size": 300, "num_train_sequences": 8, "num_answers": 2}
    metrics = Trainer(tiny(tmp_path, **settings)).run()
    assert load_model(tmp_path).config.vocab_size == metrics["model"]["vocab_size"] <= 300


def two_processes(out: Path, **changes: Any) -> str:
    """`torchrun --nproc_per_node 2 -m lsh_v2.train` by gloo; returns what it printed."""
    path, root = out.with_suffix(".yml"), Path(__file__).parents[3]
    path.write_text(yaml.safe_dump(TINY | {"out": str(out), "batch_size": 2} | changes))
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    train = [*launch, "-m", "lsh_v2.train", str(path)]
    return subprocess.run(
        train, env=environment, cwd=root, check=True, timeout=280, stdout=subprocess.PIPE, text=True
    ).stdout


@pytest.mark.slow
def test_two_processes_go_on_as_if_they_had_not_stopped_and_write_everything_once(tmp_path: Path) -> None:
    """With a last batch that is not full, and a number of batches that is odd."""
    out, changes = tmp_path / "run", {"num_train_sequences": 17, "num_answers": 2}
    output = two_processes(out, **changes)
    assert output.count("training_metrics.json") == output.count("loss by epoch") == 1
    assert len(list((out / "tensorboard").rglob("events.out.*"))) == 2  # the curves, and the configuration's own
    curve = steps_of(out)
    assert [step["step"] for step in curve] == list(range(1, 11))
    shutil.rmtree(out / "checkpoints" / "step-00000010")
    (out / "training_metrics.json").unlink()
    two_processes(out, **changes)
    assert steps_of(out) == curve


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_batches_of_both(tmp_path: Path) -> None:
    """Memories that never fill and tied layers must not confuse the reducer."""
    model = TINY["model"] | {"reversible": True, "memory": ["infini"]}
    two_processes(tmp_path / "two", model=model)
    Trainer(tiny(tmp_path / "one", model=model)).run()
    two, one = (steps_of(tmp_path / name) for name in ("two", "one"))
    assert len(two) == len(one) == 10
    # Labels differ in number between the halves of a batch only by padding, of which Echo has none.
    assert [step["loss"] for step in two[:5]] == pytest.approx([step["loss"] for step in one[:5]], rel=2e-3)
