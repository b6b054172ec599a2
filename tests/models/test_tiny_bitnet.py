"""Training of the tiny BitNet: rows that can be told again, a loss that falls, a run that goes on where it stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM

from lsh_bitnet import load_model
from models import tiny_bitnet, tiny_bitnet_exam, tiny_bitnet_figure
from models.tiny_bitnet import FOLDER, TrainingPlan, TrainingRun, evaluate
from models.tiny_bitnet_data import KINDS, TOKENIZER, Mixture, split_text
from models.tiny_bitnet_figure import draw
from models.tiny_bitnet_layers import WarmingBitLinear
from tasks.example import Example, Task
from tasks.text import TextBytes

RATES = [(38_400, 1.0), (40_000, 0.5), (48_000, 0.0)]


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextBytes:
    return split_text(tmp_path_factory.mktemp("text"), 0.05)[0]


@pytest.fixture
def plan() -> TrainingPlan:
    """The real plan on a very small model, with easy rows."""
    content = yaml.safe_load((FOLDER / "train.yaml").read_text(encoding="utf8"))
    small = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "mlp": 48, "positions": 256}
    stages = [{"until": 48_000, "length": 48, "step_tokens": 480, "compiled": False, "mix": {"repeats": 1.0}}]
    shape = content["model"] | small
    return TrainingPlan.model_validate(
        content | {"model": shape, "stages": stages, "rates": RATES, "quantise": (960, 1_920)}
    )


def mixture(kind: str, text: TextBytes, length: int = 384) -> Mixture:
    return Mixture({kind: 1.0}, length, text=text, answer_weight=8.0, seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_steps_rows_are_the_same_every_time_and_differ_from_the_next(kind: str, text: TextBytes) -> None:
    one, again, other = (mixture(kind, text).batch(4, step) for step in (7, 7, 8))
    assert torch.equal(one.ids, again.ids)
    assert torch.equal(one.weights, again.weights)
    assert not torch.equal(one.ids, other.ids)
    assert (one.weights.sum(1) > 0).all()
    assert not one.weights[one.ids == TOKENIZER.pad_id].any()


@pytest.mark.parametrize("kind", ["needles", "new_york", "counting"])
def test_answers_weigh_more_than_text_and_can_be_found_in_it(kind: str, text: TextBytes) -> None:
    rows = mixture(kind, text, 512).batch(8, 0)
    several = 0
    for ids, weights in zip(rows.ids, rows.weights, strict=True):
        whole = TOKENIZER.decode(ids[weights > 0].tolist())
        answers = [output.strip() for output in answered(ids, weights)]
        several += len(answers) > 1
        if kind == "needles":
            told = re.findall(r"The special magic of (\S+) is (\d{7})\.", whole)
            asked = re.findall(r"The special magic of (\S+) is (\d{7})(?=\n|$)", whole)
            assert sorted(told) == sorted(asked)
            assert [value for _, value in asked] == answers
        else:
            told = re.findall(r"(\w+) New York", whole)
            asked = re.findall(r"mention (\d): (\w+)", whole)
            assert all(told[int(nth) - 1] == adjective for nth, adjective in asked)
            assert [adjective for _, adjective in asked] == answers
            assert kind == "new_york" or sorted(nth for nth, _ in asked) == ["1", "2"]
    assert several


def answered(ids: Tensor, weights: Tensor) -> list[str]:
    """The stretches of a row that weigh as answers do."""
    pieces: list[list[int]] = []
    for at in (weights == 8).nonzero().flatten().tolist():
        if not pieces or weights[at - 1] != 8:
            pieces.append([])
        pieces[-1].append(int(ids[at]))
    return [TOKENIZER.decode(piece) for piece in pieces]


@pytest.mark.parametrize(("kind", "context"), [("repeats", 1), ("mqar", 2)])
def test_what_counts_has_followed_the_same_before(kind: str, context: int, text: TextBytes) -> None:
    rows = Mixture({kind: 1.0}, 192, piece=64, text=text, answer_weight=8.0, seed=0).batch(4, 0)
    for ids, weights in zip(rows.ids.tolist(), rows.weights.tolist(), strict=True):
        asked = [at for at, weight in enumerate(weights) if weight and ids[at] < TOKENIZER.pad_id]
        assert len(asked) > 10
        for at in asked:
            before = [ids[i] for i in range(context, at) if ids[i - context : i] == ids[at - context : at]]
            assert ids[at] in before


def test_an_unknown_kind_is_refused(text: TextBytes) -> None:
    with pytest.raises(ValueError, match=r"mix=\['prose'\] is not allowed: the kinds are text, repeats"):
        mixture("prose", text)


def test_held_out_text_is_not_trained_on(tmp_path: Path) -> None:
    train, held_out = split_text(tmp_path, 0.05)
    whole = TextBytes()
    assert len(train) + len(held_out) == len(whole)
    assert torch.equal(held_out.tokens(1000), whole.tokens(1000, start=len(train)))
    assert 0.0499 < len(held_out) / len(whole) < 0.0501


def test_the_loss_falls(plan: TrainingPlan, tmp_path: Path) -> None:
    training = TrainingRun(plan, tmp_path)
    losses = [training.advance() for _ in range(60)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 3


def test_a_stopped_run_goes_on_where_it_was(plan: TrainingPlan, tmp_path: Path) -> None:
    whole = TrainingRun(plan, tmp_path / "whole")
    want = [whole.advance() for _ in range(6)]
    part = TrainingRun(plan, tmp_path / "part")
    got = [part.advance() for _ in range(3)]
    part.save()
    resumed = TrainingRun(plan, tmp_path / "part")
    resumed.load()
    assert (resumed.step, resumed.tokens) == (3, 3 * 480)
    got += [resumed.advance() for _ in range(3)]
    assert got == pytest.approx(want, rel=1e-4)


def test_a_run_goes_on_from_a_state_of_its_own_plan_alone(plan: TrainingPlan, tmp_path: Path) -> None:
    training = TrainingRun(plan, tmp_path)
    with pytest.raises(ValueError, match="there is no state in"):
        training.load()
    training.save()
    other = TrainingRun(plan.model_copy(update={"seed": plan.seed + 1}), tmp_path)
    with pytest.raises(ValueError, match=r"state\.pt is from another plan"):
        other.load()
    training.load()
    content = (tmp_path / "state.pt").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no state"):
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state\.pt cannot be read"):
            training.load()


def test_a_log_is_kept_until_a_new_run_has_a_line_for_it(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    (tmp_path / "log.jsonl").write_text("what was there\n")

    def stop(_: TrainingRun) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "advance", stop)
    given = ["--plan", str(tmp_path / "plan.yaml"), "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    with pytest.raises(SystemExit) as ended:
        tiny_bitnet.main(given)
    assert ended.value.code == 130
    assert (tmp_path / "log.jsonl").read_text() == "what was there\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "not valid YAML"), ("[1]", "must be a mapping"), ("seed: x", "seed: 'x'"), ("nothing: 1", "nothing: 1")],
)
def test_a_plan_that_is_none_is_said_in_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.yaml").write_text(content)
    with pytest.raises(SystemExit) as ended:
        tiny_bitnet.main(["--plan", str(tmp_path / "plan.yaml"), "--work", str(tmp_path), "--out", str(tmp_path)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("content", ["", "no JSON", "[1]", '{"tokens": 1}'])
def test_a_log_that_is_none_is_said_in_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(SystemExit) as ended:
        tiny_bitnet_figure.main(["--log", str(tmp_path / "log.jsonl")])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_exported_model_is_the_trained_one(plan: TrainingPlan, tmp_path: Path) -> None:
    training = TrainingRun(plan, tmp_path)
    training.advance()
    training.export(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    training.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, training.model.eval()(ids).logits)


def test_rates_rise_stay_and_fall(plan: TrainingPlan) -> None:
    assert [plan.rate(0, step) for step in (0, 4, 99)] == pytest.approx([1 / plan.warmup, 5 / plan.warmup, 1])
    found = [plan.rate(tokens, 10_000) for tokens in (0, 38_400, 39_200, 40_000, 44_000, 48_000)]
    assert found == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0])


def test_linears_are_quantised_little_by_little(plan: TrainingPlan, tmp_path: Path) -> None:
    assert [plan.quantised(tokens) for tokens in (0, 960, 1_440, 1_920, 10_000)] == [0, 0, 0.5, 1, 1]
    training = TrainingRun(plan, tmp_path)
    shares = []
    for _ in range(6):
        training.advance()
        linear = training.model.get_submodule("model.layers.0.mlp.up_proj")
        assert isinstance(linear, WarmingBitLinear)
        shares.append(linear.share.item())
    assert shares == [0, 0, 0, 0.5, 1, 1]


def test_the_plan_that_is_stored_can_be_read_and_its_lengths_fit_the_model() -> None:
    stored = TrainingPlan.model_validate(yaml.safe_load((FOLDER / "train.yaml").read_text(encoding="utf8")))
    assert [stage.until for stage in stored.stages] == sorted(stage.until for stage in stored.stages)
    assert all(stage.length <= stored.model.positions for stage in stored.stages)
    assert all(stage.step_tokens % stage.length == 0 for stage in stored.stages)
    assert all(set(stage.mix) <= set(KINDS) for stage in stored.stages)
    assert stored.stage(0) == stored.stages[0]
    assert stored.stage(stored.stages[0].until) == stored.stages[1]
    assert stored.stage(stored.total) == stored.stages[-1]
    assert stored.quantised(stored.stages[-1].until) == 1
    assert stored.rate(stored.total, 10_000) == 0


def test_the_log_holds_what_the_figure_draws() -> None:
    lines = [json.loads(line) for line in (FOLDER / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert all({"tokens", "loss", "bits_per_byte", "mqar", "needles"} <= line.keys() for line in lines)


class Told(Task):
    """A number that stands in the prompt after the same words; in every other prompt it does not."""

    def example(self, index: int) -> Example:
        known = f"the code of the door is {index:02d};\n" if index % 2 else ""
        return Example(f"{known}{'.' * 20}\nthe code of the door is ", f"{index:02d}")


def test_an_evaluation_is_right_about_a_model_that_copies(text: TextBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_bitnet, "checks", lambda *given: {"told": Told()})
    found = evaluate(load_model("written-induction").model, 192, text, examples=8)
    assert found["told"] == 0.5
    assert 2 < found["bits_per_byte"] < 12


def test_the_exam_asks_each_mention_with_and_without_other_cities(text: TextBytes) -> None:
    tasks = tiny_bitnet_exam.new_york(384, text)
    assert tasks.keys() <= tiny_bitnet_exam.TITLES.keys()
    for name, task in tasks.items():
        prompt = task.example(0).prompt
        assert len(re.findall(r"\w+ New York (?!mention)", prompt)) == int(name[-1]) + 1
        assert len(re.findall(r"the \w+ (?!New)[A-Z]\w+", prompt)) == (2 if name.startswith("new_york") else 0)


def test_the_exams_table_gives_intervals(text: TextBytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"bits_per_byte": 1.234} | dict.fromkeys(list(tiny_bitnet_exam.TITLES)[1:], 0.5)
    monkeypatch.setattr(tiny_bitnet_exam, "evaluate", lambda *given, **named: found)
    lines = tiny_bitnet_exam.table([384, 1024], 10, tmp_path, 0).splitlines()
    assert lines[0] == "| held out | 384 tokens | 1,024 tokens |"
    assert lines[2] == "| bits per byte | 1.23 | 1.23 |"
    assert lines[3] == "| needles | 50% (24% to 76%) | 50% (24% to 76%) |"
    assert lines[-1] == "| MQAR, tokens | 50% | 50% |"


def test_the_learning_curve_is_drawn_from_the_log(tmp_path: Path) -> None:
    draw(FOLDER / "log.jsonl", tmp_path / "learning.svg")
    assert "<svg" in (tmp_path / "learning.svg").read_text()
