"""What training is fed and how it is graded: rows, their order, files, held-out examples, tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.training import tokenizer
from lsh_v2.training.data import Batches, TokenRows, loader_of, task_of
from lsh_v2.training.evaluation import graded, held_out_loss
from lsh_v2.training.tokenizer import tokenizer_of
from tasks.byte_tokenizer import ByteTokenizer
from tasks.encoding import encode
from tasks.example import Example
from tasks.jsonl import write_examples
from tests.lsh_v2.small import small_model
from tests.lsh_v2.tiny_training import Echo, tiny


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


def test_packed_rows_hold_whole_examples_and_each_only_once() -> None:
    tokenizer, task = ByteTokenizer(), Echo()
    rows = TokenRows(task, tokenizer, count=3, length=40, pack=True, learn="answer")
    size = len(encode(task.example(0), tokenizer).input_ids)
    for row in range(3):
        parts = [encode(task.example(row + 3 * n), tokenizer) for n in range(40 // size)]
        assert torch.equal(rows[row].input_ids, torch.cat([part.input_ids for part in parts]))
        assert torch.equal(rows[row].labels, torch.cat([part.labels for part in parts]))
    with pytest.raises(ValueError, match="more than seq_length=5"):
        TokenRows(task, tokenizer, count=3, length=5, pack=True, learn="answer")[0]


def test_order_of_rows_depends_on_seed_and_epoch_and_resumes_anywhere() -> None:
    batches = Batches(10, 3, seed=1)
    first = list(batches)
    assert sorted(row for batch in first for row in batch) == list(range(10))
    batches.epoch = 1
    second = list(batches)
    assert second != first
    batches.start = 2
    assert list(batches) == second[2:]


def test_processes_have_as_many_full_batches_each_wherever_they_go_on() -> None:
    batches = Batches(7, 2, seed=1, processes=2)
    whole = list(batches)
    assert [len(batch) for batch in whole] == [2] * 4 == [2] * len(batches)
    rows = [row for batch in whole for row in batch]
    assert sorted(rows[:7]) == list(range(7))
    assert rows[7:] == rows[:1]
    batches.start = 2
    assert list(batches) == whole[2:]
    assert [len(batch) for batch in Batches(1, 2, seed=1, processes=2)] == [2, 2]


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


def test_answers_to_a_file_are_graded_as_those_to_the_task_that_made_it(tmp_path: Path) -> None:
    path, settings = tmp_path / "examples.jsonl", {"task": "tasks.synthetic:computational_reasoning"}
    made = task_of(tiny(tmp_path, **settings), evaluation=True)
    examples = [made.example(i) for i in range(30)]
    write_examples(path, [*examples, Example("a", "b")])
    task = task_of(tiny(tmp_path, eval_file=str(path), **settings), evaluation=True)
    for one, two in zip(examples, map(task.example, range(30)), strict=True):
        answer_text = "\n".join(one.answer.split("\n")[:-1])
        assert (task.score(two, answer_text), task.chance(two)) == (made.score(one, answer_text), made.chance(one))
    assert len({task.score(e, "\n".join(e.answer.split("\n")[:-1])) for e in examples}) > 2
    assert (task.score(task.example(30), " b"), task.chance(task.example(30))) == (1, 0)


@pytest.mark.parametrize(
    ("task", "metadata", "message"),
    [
        ("tasks.odd_one_out:OddOneOut", {"task": "odd_one_out"}, "its metadata lacks 'items'"),
        ("tasks.odd_one_out:OddOneOut", {"task": "odd_one_out", "items": "x"}, "its metadata is not valid for 'odd_on"),
        ("tasks.odd_one_out:OddOneOut", {"task": "odd_one_out", "items": 0}, "its metadata is not valid for 'odd_one_"),
        (
            "tasks.odd_one_out:OddOneOut",
            {"task": "odd_one_out", "items": 0.5},
            "its metadata gives a score or chance of 2.0",
        ),
        ("tests.lsh_v2.training.test_data:Keyed", {"task": "keyed"}, "its metadata lacks 'key'"),
    ],
)
def test_an_example_that_cannot_be_graded_is_named_by_its_line(
    task: str, metadata: dict[str, object], message: str, tmp_path: Path
) -> None:
    """Whether its chance or its score asks for what is not there: that would be found when the training is over."""
    path = tmp_path / "examples.jsonl"
    write_examples(path, [Example("a", "b"), Example("a", "b", dict(metadata))])
    path.write_text("\n" + path.read_text())
    with pytest.raises(ValueError, match=rf"examples\.jsonl line 3: {message}"):
        task_of(tiny(tmp_path, eval_file=str(path), task=task), evaluation=True)


class Keyed(Echo):
    """A task whose score alone reads the metadata."""

    def score(self, example: Example, output: str) -> float:
        return float(example.metadata["key"] in output)

    def example(self, index: int) -> Example:
        made = super().example(index)
        return Example(made.prompt, made.answer, {"task": self.name, "key": made.answer})


def test_grading_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter([" 1", " 2"] * 5)
    monkeypatch.setattr(
        "lsh_v2.training.evaluation.answers",
        lambda _model, examples, *_: [(Example(e.prompt, " 1", e.metadata), next(replies)) for e in examples],
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


def test_task_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be imported"):
        task_of(tiny(tmp_path, task="tasks.nothing:Nothing"), evaluation=False)
    with pytest.raises(ValueError, match=r"task_settings=.* fails: TypeError: "):
        task_of(tiny(tmp_path, task_settings={"wrong": 1}), evaluation=False)


def test_trained_tokenizer_has_a_token_for_each_frequent_word_and_loses_nothing(tmp_path: Path) -> None:
    settings = {"task": "tasks.odd_one_out:OddOneOut", "tokenizer": "trained", "tokenizer_size": 400}
    config = tiny(tmp_path, **settings)
    made = tokenizer_of(config)
    assert made.vocab_size == 400
    pieces = [made.decode([token]) for token in made.encode("<ITEMS> 4 17\n<OUTPUT>")]
    assert pieces == ["<ITEMS>", " 4", " 17", "\n", "<OUTPUT>"]
    for text in (task_of(config, evaluation=True).example(2).text, "Ünseen  words\n\n and\ttabs — 123456"):
        assert made.decode(made.encode(text)) == text
    assert tokenizer_of(config).encode(" 17") == made.encode(" 17")  # made once, read again


def test_a_tokenizer_that_another_configuration_left_is_made_anew(tmp_path: Path) -> None:
    """As when a run was stopped, or failed in words, before its first checkpoint."""
    first = {"task": "tasks.odd_one_out:OddOneOut", "tokenizer": "trained", "tokenizer_size": 400}
    tokenizer_of(tiny(tmp_path, **first))
    examples = tmp_path / "examples.jsonl"
    write_examples(examples, [Example("kiwi kiwi", " kiwi")])
    others = ({"tokenizer_size": 350}, {"task": "tasks.set_data:SetData"}, {"train_file": str(examples)})
    for number, changes in enumerate(others):
        config = tiny(tmp_path, **first | changes)
        made, fresh = (
            tokenizer_of(config),
            tokenizer_of(config.model_copy(update={"out": str(tmp_path / str(number))})),
        )
        text = task_of(config, evaluation=False).example(3).text
        assert (made.vocab_size, made.encode(text)) == (fresh.vocab_size, fresh.encode(text))


def test_a_tokenizer_made_by_other_code_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, tokenizer="trained", tokenizer_size=300)
    tokenizer_of(config)
    before = (tmp_path / "tokenizer").stat().st_ino
    tokenizer_of(config)
    assert (tmp_path / "tokenizer").stat().st_ino == before
    monkeypatch.setattr(tokenizer, "source_hash", lambda _: "edited")
    tokenizer_of(config)
    assert '"code":"edited"' in (tmp_path / "tokenizer" / "made_of.json").read_text()


@pytest.mark.parametrize("harm", ["changed", "added", "no origin", "torn origin", "cut"])
def test_a_tokenizer_that_is_not_as_it_was_made_is_refused_and_kept(harm: str, tmp_path: Path) -> None:
    config = tiny(tmp_path, tokenizer="trained", tokenizer_size=300)
    tokenizer_of(config)
    folder = tmp_path / "tokenizer"
    origin, whole = folder / "made_of.json", (folder / "tokenizer.json").read_text()
    if harm == "changed":
        (folder / "tokenizer.json").write_text(whole.replace('"<eos>"', '"<end>"'))
    elif harm == "cut":
        (folder / "tokenizer.json").write_text(whole[:99])
    elif harm == "added":
        (folder / "chat_template.jinja").touch()
    elif harm == "torn origin":
        origin.write_text("[" * 100_000)
    else:
        origin.unlink()
    before = sorted((path.name, path.read_text()) for path in folder.iterdir())
    with pytest.raises(ValueError, match="tokenizer is not a tokenizer made by training: remove it, or choose another"):
        tokenizer_of(config)
    assert sorted((path.name, path.read_text()) for path in folder.iterdir()) == before
