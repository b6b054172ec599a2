"""The commands end to end, without a network, on a model made for the occasion."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from bmrt import ablation, babilong, longbench, measure, ruler, run_single_sample
from bmrt.cache import engine
from bmrt.cache.prompts import Prompts
from bmrt.evaluation.babilong_data import PLACES, generate
from bmrt.evaluation.evaluate import Sample, interval
from bmrt.evaluation.generated import Generated
from bmrt.evaluation.options import LONGEST_NAME, file_name
from tasks.byte_tokenizer import ByteTokenizer

Command = Callable[[list[str]], None]


@pytest.fixture
def common(byte_model: Path, tmp_path: Path) -> list[str]:
    options = {"model_path": byte_model, "tokenizer": "bytes", "save_dir": tmp_path / "out", "block_size": 200}
    return [str(x) for name, value in options.items() for x in (f"--{name}", value)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def item(number: int, **changes: Any) -> dict[str, Any]:
    """A LongBench v2 item."""
    kinds = [
        ("easy", "short"),
        ("easy", "medium"),
        ("easy", "long"),
        ("hard", "short"),
        ("hard", "medium"),
        ("hard", "long"),
    ]
    difficulty, length = kinds[number % 6]
    made = {"_id": f"id{number}", "domain": "d", "sub_domain": "s", "difficulty": difficulty, "length": length}
    made |= {"question": f"Question {number}?", "answer": "ABCD"[number % 4], "context": f"Text {number}. " * 200}
    return made | {f"choice_{letter}": f"choice {letter}" for letter in "ABCD"} | changes


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([item(i) for i in range(6)]))
    return path


def test_single_sample_says_what_it_answered(
    common: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = "--data generated --dataset_config 1k --method hybrid --hybrid_ratio 0.6 --budget 128 --max_new_tokens 4"
    run_single_sample.main([*common, *options.split()])
    output = capsys.readouterr().out
    line = (tmp_path / "out" / "results.txt").read_text()
    assert line.strip() in output
    assert "dataset=1k/qa1 | method=exact+frequency_rank_0.6 | mode=recursive | budget=128 | correct=" in line
    run_single_sample.main([*common, *options.split(), "--method", "exact"])
    assert len((tmp_path / "out" / "results.txt").read_text().splitlines()) == 2


def test_a_ratio_and_a_budget_do_not_go_together(common: list[str]) -> None:
    with pytest.raises(SystemExit):
        run_single_sample.main([*common, "--budget", "128", "--compression_ratio", "0.5"])


def test_babilong_writes_its_own_format(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--data generated --dataset_config 1k --tasks qa1 qa2 --num_samples 2 --max_new_tokens 4"
    babilong.main([*common, *options.split()])
    with (tmp_path / "out" / "qa2_1k_exact_recursive_budget4096.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["target", "output", "question"]
    assert len(rows) == 2
    assert all(row["target"] in PLACES for row in rows)
    assert "n=2" in capsys.readouterr().out


def test_babilong_reads_a_file(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        json.dumps({"input": "John moved to the office.", "question": "Where is John?", "target": "office"}) + "\n"
    )
    babilong.main([*common, "--data", str(path), "--dataset_config", "0k", "--max_new_tokens", "2"])
    assert "n=1" in capsys.readouterr().out


def test_generated_samples_are_solvable_and_repeatable() -> None:
    for task in ("qa1", "qa2"):
        for row, again in islice(zip(generate(task, 800, 3), generate(task, 800, 3), strict=True), 20):
            assert row == again
            assert row["target"] in row["input"]
            assert len(row["input"]) < 1600
            about = row["question"].split()[-1].rstrip("?")
            facts = [line for line in row["input"].split("\n") if about in line]
            if task == "qa1":
                assert facts[-1].endswith(f"the {row['target']}.")
            else:
                holder = facts[-1].split()[0]
                moves = [x for x in row["input"].split("\n") if x.startswith(holder + " ") and " took " not in x]
                assert moves[-1].endswith(f"the {row['target']}.")


def test_ruler_runs_its_tasks(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--tasks niah_single_1 vt --length 1600 --num_samples 2 --compression_ratio 0.25 --max_new_tokens 4"
    ruler.main([*common, *options.split()])
    output = capsys.readouterr().out
    assert (
        output.strip()
        == (tmp_path / "out" / "ruler_niah_single_1+vt_1600_2samples_exact_recursive_ratio0.25.md").read_text().strip()
    )
    assert output.count("n=2") == 2


def test_ruler_reads_kvpress_columns(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"context": "a. " * 90, "question": "What?", "answer_prefix": " It is", "answer": ["1", "2"], "task": "own"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    ruler.main([*common, "--data", str(path), "--tasks", "own", "--budget", "64", "--max_new_tokens", "2"])
    assert "n=1" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["niah_single_3", "vt", "new_york"])
def test_generated_samples_are_judged_by_their_task_s_own_rule(task: str) -> None:
    made = Generated(task, 1500, count=2, wording="short", seed=0, prompts=Prompts(ByteTokenizer()))
    for sample in made.samples:
        assert 1300 < len(sample.context + sample.question + sample.target) <= 1498  # the two special tokens apart
        assert sample.context.endswith("\n")
        assert made.judge(sample, sample.target + "\x00. ") == 1
        assert made.judge(sample, "") == 0
    sample = made.samples[0]
    shares = {"vt": (" ".join(sample.target.split()[:2]), 0.4), "new_york": ("the" + sample.target, 0.0)}
    answer, score = shares.get(task, (sample.target[:-1], 0.0))
    assert made.judge(sample, answer) == score


KVPRESS = {"context": "a. " * 90, "question": "What?", "answer_prefix": " It is", "answer": ["1"], "task": "own"}


@pytest.mark.parametrize("answer", [3, np.int64(3), np.float32(3), [np.int64(3), "x"], Decimal(3)], ids=repr)
def test_a_reference_may_be_a_number_of_any_kind(answer: Any) -> None:
    (sample,) = ruler.from_rows([KVPRESS | {"answer": answer}], "own", 1)
    assert sample.facts["references"][0] in ("3", "3.0")


QA1 = {"input": "John moved to the office.", "question": "Where is John?", "target": "office"}


@pytest.mark.parametrize(
    ("main", "rows", "message"),
    [
        (ruler.main, [KVPRESS, KVPRESS | {"answer": []}], "answer of row 1=[]"),
        (ruler.main, [KVPRESS, KVPRESS | {"answer": [""]}], "answer of row 1=['']"),
        (ruler.main, [KVPRESS | {"answer": "\x00 "}], "answer of row 0="),
        (ruler.main, [KVPRESS | {"answer": ["1", None]}], "answer of row 0="),
        (ruler.main, [KVPRESS, KVPRESS | {"context": "a\ud800"}], "data.jsonl line 2 holds '\\ud800', a lone"),
        (babilong.main, [QA1, QA1 | {"target": "off\udc00ice"}], "data.jsonl line 2 holds '\\udc00', a lone"),
        (longbench.main, [item(0), item(1, question="\udfff?")], "data.jsonl line 2 holds '\\udfff', a lone"),
    ],
)
def test_data_that_cannot_be_judged_or_written_is_refused_when_it_is_read(
    common: list[str],
    tmp_path: Path,
    main: Command,
    rows: list[dict[str, Any]],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "load_model", lambda *args: pytest.fail("a model was loaded"))
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as ended:
        main([*common, "--data", str(path), *(["--tasks", "own"] if main is ruler.main else [])])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_an_answer_of_half_a_character_does_not_lose_the_table(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bmrt.cache.engine.Prompts.decode", lambda self, tokens: "off\ud800ice")
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(QA1) + "\n")
    babilong.main([*common, "--data", str(path), "--dataset_config", "0k", "--max_new_tokens", "2"])
    assert "off\\ud800ice" in (tmp_path / "out" / "qa1_0k_exact_recursive_budget4096.csv").read_text()


def test_fewer_or_other_samples_replace_nothing(common: list[str], tmp_path: Path) -> None:
    """What a folder held before is in it afterwards."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(KVPRESS | {"task": task}) + "\n" for task in ("a b", "a_b", "x" * 300) * 2))
    asked = [*common, "--data", str(path), "--budget", "64", "--max_new_tokens", "1"]
    given = [[name] for name in ("a b", "a_b", "x" * 300)] + [["a b", "a_b"]]
    held: dict[Path, str] = {}
    for tasks, count in [*((tasks, "2") for tasks in given), (["a b"], "1")]:
        ruler.main([*asked, "--tasks", *tasks, "--num_samples", count])
        tables = {path: path.read_text() for path in (tmp_path / "out").glob("*.md")}
        assert held.items() < tables.items()
        held = tables
    assert len([*(tmp_path / "out").glob("*.jsonl")]) == 3
    for start in (0, 3, 3):
        options = (
            f"--data generated --dataset_config 0k --num_samples 1 --max_new_tokens 1 --start_sample_index {start}"
        )
        babilong.main([*common, *options.split()])
    with (tmp_path / "out" / "qa1_0k_exact_recursive_budget4096.csv").open() as file:
        assert len([*csv.DictReader(file)]) == 2


def test_names_of_files_are_of_what_was_run_alone() -> None:
    parts = [["a b"], ["a_b"], ["a/b"], [".a"], ["a"], [""], ["x" * 300], ["x" * 301], ["é" * 150], ["日" * 100]]
    names = [file_name(*one) for one in parts]
    assert len({*names}) == len(names)
    assert max(len(name.encode()) for name in names) <= LONGEST_NAME
    assert not any(name.startswith(".") or "/" in name for name in names)
    assert file_name("qa1", "4k", "exact_recursive_ratio0.25") == "qa1_4k_exact_recursive_ratio0.25"


def test_a_folder_whose_path_leaves_no_room_for_a_table_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "load_model", lambda *args: pytest.fail("a model was loaded"))
    folder = tmp_path / "/".join(["x" * 200] * 19)  # it can be made
    with pytest.raises(SystemExit):
        ruler.main(["--model_path", "m", "--save_dir", str(folder)])
    assert "File name too long" in capsys.readouterr().err


def test_a_late_sample_is_generated_at_once(common: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = "--data generated --dataset_config 0k --num_samples 1 --max_new_tokens 1 --start_sample_index 2000000000"
    babilong.main([*common, *options.split()])
    assert "n=1" in capsys.readouterr().out


def test_ruler_counts_references() -> None:
    sample = Sample("0", "", "", "", {"references": ["Alpha", "BETA"]})
    assert ruler.contained(sample, "it is\x00 alpha") == 0.5
    assert ruler.contained(sample, "beta alpha") == 1.0
    assert ruler.contained(sample, "") == 0.0


def test_longbench_writes_official_lines_and_resumes(
    common: list[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--data", str(bench), "--compression_ratio", "0.25", "--max_new_tokens", "4"]
    path = tmp_path / "out" / "tiny-bytes_exact_recursive_ratio0.25.jsonl"
    asked: list[str] = []
    prompt_of = longbench.prompt_of
    monkeypatch.setattr(longbench, "prompt_of", lambda *args: asked.append(args[1]["_id"]) or prompt_of(*args))
    longbench.main([*common, *options, "--num_samples", "4"])
    first = path.read_text()
    path.write_text(first[:-40])  # a crash in the middle of the last line
    longbench.main([*common, *options])
    assert asked == ["id0", "id1", "id2", "id3", "id3", "id4", "id5"]
    records = lines(path)
    assert [record["_id"] for record in records] == [f"id{i}" for i in range(6)]
    assert [*records[0]] == [*longbench.FIELDS, "context", "response", "pred", "judge"]
    assert path.read_text().startswith("\n".join(first.splitlines()[:3]))


def test_other_settings_do_not_meet_in_one_file(
    common: list[str], bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*common, "--data", str(bench), "--num_samples", "1", "--max_new_tokens", "2", "--budget", "64"]
    longbench.main(options)
    with pytest.raises(SystemExit) as ended:
        longbench.main([*options, "--block_size", "128"])
    assert ended.value.code == 2
    assert "other settings (block_size was 200 and is 128)" in capsys.readouterr().err


def test_longbench_scores_one_record_and_empty_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"judge": True, "difficulty": "easy", "length": "long"}
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "one.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "list.json").write_text(json.dumps([record, record | {"judge": False}]))
    longbench.main(["--score", str(folder)])
    output = capsys.readouterr().out
    table = {row.split("\t")[0]: row.split("\t")[1:] for row in output.splitlines()}
    assert table["one"] == ["100.0 (20.7-100.0)", "100.0", "-", "-", "-", "100.0"]
    assert table["list"][0].startswith("50.0")
    assert sorted(path.name for path in folder.iterdir()) == ["list.json", "one.jsonl"]
    assert (tmp_path / "results.result.txt").read_text() == output


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("**The correct answer is (C)**", "C"),
        ("The correct answer is D", "D"),
        ("The correct answer is A, not the correct answer is (B)", "A"),
        ("B", None),
        ("", None),
        ("The correct answer is (E)", None),
    ],
)
def test_longbench_reads_letters_as_the_official_script_does(response: str, letter: str | None) -> None:
    assert longbench.extract(response) == letter


def test_longbench_prompt_loses_its_middle_and_not_its_question(byte_model: Path) -> None:
    from bmrt import RecursiveCompressionEngine

    asked = RecursiveCompressionEngine(str(byte_model), tokenizer="bytes")
    whole, question = longbench.prompt_of(asked, item(0), 10**6)
    assert whole.startswith("Please read the following text and answer the question below.\n\n<text>\nText 0.")
    assert whole.endswith("Text 0.\n</text>\n\n")
    assert question.startswith("What is the correct answer to this question: Question 0?\nChoices:\n(A) choice A\n(B)")
    assert question.endswith('Format your response as follows: "The correct answer is (insert answer here)".')
    cut, same = longbench.prompt_of(asked, item(0), 1000)
    assert same == question
    assert len(cut) + len(question) in (999, 1000)  # two halves of the same size
    assert cut[:200] == whole[:200]
    assert cut[-200:] == whole[-200:]


def test_ablation_runs_the_grid_and_continues(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = engine.load_model
    monkeypatch.setattr(engine, "load_model", lambda *args: loads.append(args[0]) or load(*args))
    options = (
        "--tasks niah_single_1 --length 700 --wording short --num_samples 1 --compression_ratio 0.25 --max_new_tokens 2"
    )
    ablation.main([*common, *options.split()])
    name = "ablation_niah_single_1_700_1samples_ratio0.25"
    table = (tmp_path / "out" / f"{name}.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 1 + 2 + 4 + 12 + 5
    assert "<svg" in (tmp_path / "out" / f"{name}.svg").read_text()
    assert len(loads) == 1  # for all 24 methods
    ablation.main([*common, *options.split()])
    assert (tmp_path / "out" / f"{name}.md").read_text() == table
    assert all(len(lines(path)) == 1 for path in (tmp_path / "out").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("main", "options", "message"),
    [
        (run_single_sample.main, ["--protection_divisor", "2", "--data", "generated"], "protection_divisor=2"),
        (run_single_sample.main, ["--compression_ratio", "0", "--data", "generated"], "compression_ratio=0.0"),
        (run_single_sample.main, ["--dataset_config", "long", "--data", "generated"], "dataset_config='long'"),
        (run_single_sample.main, ["--dataset_split", "qa7", "--data", "generated"], "dataset_split='qa7'"),
        (run_single_sample.main, ["--model_path", "./no/such", "--data", "generated"], "model_path='./no/such'"),
        (babilong.main, ["--data", "nowhere.jsonl"], "cannot be read"),
        (babilong.main, ["--data", "tests/bmrt/models.py.json"], "cannot be read"),
        (longbench.main, ["--data", "nowhere.json"], "cannot be read"),
        (longbench.main, ["--score", "no/such/folder"], "folder with .jsonl"),
        (run_single_sample.main, ["--data", "generated", "--device", "abacus"], "device='abacus'"),
        (run_single_sample.main, ["--data", "generated", "--save_dir", "README.md/x"], "README.md"),
        (babilong.main, ["--data", "generated", "--compression_ratio", "1.5"], "compression_ratio=1.5"),
        (longbench.main, ["--protection_divisor", "2"], "protection_divisor=2"),
        (longbench.main, ["--method", "hybrid", "--hybrid_primary", "best"], "strategy='best'"),
        (longbench.main, ["--method", "h2o", "--compression_mode", "accumulate"], "H2O"),
        (ruler.main, ["--compression_ratio", "-1"], "compression_ratio=-1.0"),
        (ruler.main, ["--length", "40"], "length=40"),
        (ruler.main, ["--data", "bmrt/README.md.jsonl"], "cannot be read"),
        (ruler.main, ["--tasks", "niah_double"], "task='niah_double'"),
        (run_single_sample.main, ["--data", "generated", "--device", ""], "device=''"),
        (run_single_sample.main, ["--data", "generated", "--device", "meta"], "device='meta'"),
        (run_single_sample.main, ["--data", "generated", "--stop_words", ""], "stop_words=['']"),
        (run_single_sample.main, ["--data", "generated", "--results_file", "README.md/x"], "results_file='README.md'"),
        (babilong.main, ["--data", "generated", "--num_samples", "-1"], "num_samples=-1"),
        (babilong.main, ["--data", "generated", "--start_sample_index", "-1"], "start_sample_index=-1"),
        (babilong.main, ["--data", "generated", "--dataset_config", "999999M"], "1,048,574,951,424"),
        (babilong.main, ["--data", "generated", "--dataset_config", "²k"], "dataset_config='²k'"),
        (babilong.main, ["--data", "generated", "--dataset_config", "0k", "--num_samples", "9999999"], "9,999,999"),
        (babilong.main, ["--data", "generated", "--tasks", "qa1", "qa1"], "tasks='qa1 qa1'"),
        (babilong.main, ["--data", "generated", "--save_dir", "a\0b"], "save_dir='a\\x00b' cannot be written to"),
        (babilong.main, ["--data", "generated", "--save_dir", "/proc/x"], "save_dir='/proc/x' cannot be written to"),
        (babilong.main, ["--data", ""], "data=''"),
        (babilong.main, ["--data", "generated", "--compression_ratio", "nan"], "compression_ratio=nan"),
        (longbench.main, ["--max_len", "0"], "max_len=0"),
        (longbench.main, ["--num_samples", "0"], "num_samples=0"),
        (longbench.main, ["--num_bits", "99"], "bits=99"),
        (longbench.main, ["--num_tables", "1000000000"], "num_tables=1000000000"),
        (longbench.main, ["--hybrid_primary", "best"], "strategy='best'"),
        (ruler.main, ["--seed", "-1"], "seed=-1"),
        (ruler.main, ["--length", "1000000000000"], "length=1000000000000"),
        (ruler.main, ["--length", "1000000000"], "1,000,000,000"),
        (ruler.main, ["--tasks", "vt", "vt"], "tasks='vt vt'"),
        (ablation.main, ["--model_path", "./no/such"], "model_path='./no/such'"),
        (ablation.main, ["--protection_divisor", "1"], "protection_divisor=1"),
        (ablation.main, ["--tasks", "niah_double"], "task='niah_double'"),
    ],
)
def test_mistakes_end_with_one_clear_line(
    common: list[str], main: Command, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*common, *options])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def damaged(model: Path, folder: Path, damage: str) -> Path:
    """A copy of a model's folder with something wrong in it."""
    shutil.copytree(model, folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    match damage:
        case "no JSON":
            config.write_text("{")
        case "unknown kind":
            config.write_text('{"model_type": "nothing"}')
        case "wrong type":
            config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": "wide"'))
        case "no weights":
            weights.unlink()
        case "cut off":
            weights.write_bytes(weights.read_bytes()[:100])
        case "a layer too few":
            config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
        case "fewer words" | "padding beyond":
            loaded: Any = AutoModelForCausalLM.from_pretrained(model)
            loaded.resize_token_embeddings(64)
            if damage == "fewer words":
                loaded.config.pad_token_id = 0
            loaded.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        "no JSON",
        "unknown kind",
        "wrong type",
        "no weights",
        "cut off",
        "a layer too few",
        "fewer words",
        "padding beyond",
    ],
)
def test_a_damaged_model_is_no_traceback_and_gives_no_answers(
    byte_model: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = damaged(byte_model, tmp_path / "model", damage), tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        babilong.main(
            f"--model_path {path} --tokenizer bytes --data generated --dataset_config 0k --save_dir {out}".split()
        )
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("tokenizer's token" if damage == "fewer words" else "model_path=") in err
    assert not any(file.stat().st_size for file in out.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["growth", "--plain_most", "1"], "plain_most=1"),
        (["memory", "--chunk", "0"], "chunk=0"),
        (["memory", "--hidden", "33"], "hidden=33"),
        (["overhead", "--rounds", "0"], "rounds=0"),
        (["memory", "--strategies", "best"], "strategy='best'"),
        (["memory", "--lengths", "-4"], "lengths=-4"),
    ],
)
def test_mistakes_of_measurements_too(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        measure.main(options)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("method", ["sampling", ""])
def test_an_unknown_method_is_refused(common: list[str], method: str) -> None:
    with pytest.raises(SystemExit):
        run_single_sample.main([*common, "--method", method])


def test_a_data_set_that_is_not_there_is_said_to_be(
    common: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", absent)
    with pytest.raises(SystemExit) as ended:
        babilong.main(common)
    assert ended.value.code == 2
    assert "RMT-team/babilong" in capsys.readouterr().err


def test_intervals_are_wilson_s() -> None:
    low, high = interval([1.0] * 8 + [0.0] * 2)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval([]) == (0.0, 1.0)


def test_models_of_the_package_are_known_by_name_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With their byte tokenizer. Another name is refused with the list."""
    monkeypatch.chdir(tmp_path)
    options = "--tasks niah_single_2 --wording short --length 256 --num_samples 1 --budget 64 --max_new_tokens 1"
    ruler.main(["--model_path", "written-induction", *options.split()])
    assert "| niah_single_2 |" in capsys.readouterr().out
    assert (tmp_path / "results_ruler").is_dir()
    for command in (ruler, babilong, longbench, ablation, run_single_sample):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        assert "tiny-bitnet, written-induction, folder or hub id" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit):
        ruler.main(["--model_path", "tiny-bitnett", *options.split()])
    assert "one of tiny-bitnet, written-induction, a folder" in capsys.readouterr().err
