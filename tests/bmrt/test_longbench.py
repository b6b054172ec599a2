"""A folder of LongBench v2 results: the official script reads it, and nothing of another run gets into it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bmrt import longbench
from bmrt.evaluation.records import locked
from tests.bmrt.test_commands import bench, common, item, lines

__all__ = ["bench", "common"]  # fixtures

SHORT = ["--max_new_tokens", "2", "--budget", "64"]


def official(folder: Path) -> dict[str, list[float]]:
    """What LongBench's result.py makes of a folder, as it goes about it: every entry is a file of results, whose name
    up to the last dot is the model's; a list or lines of JSON; and each class is divided by its number."""
    table = {}
    for name in os.listdir(folder):  # noqa: PTH208, as it does
        text = (folder / name).read_text(encoding="utf-8")
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = [json.loads(line) for line in (folder / name).open(encoding="utf-8")]
        groups = [[r for r in found if r["difficulty"] == kind] for kind in ("easy", "hard")]
        groups += [[r for r in found if r["length"] == kind] for kind in ("short", "medium", "long")]
        shares = [round(100 * sum(int(r["judge"]) for r in group) / len(group), 1) for group in (found, *groups)]
        table[".".join(name.split(".")[:-1])] = shares
    return table


def refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        longbench.main(options)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_the_official_script_reads_the_folder(
    common: list[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers with all separators among them; also after scoring."""
    replies = iter(["The correct answer is (A)\u2028\x85.", "The correct answer is (B)\u2029\r\n"] + ["\x1e"] * 20)
    monkeypatch.setattr("bmrt.cache.engine.Prompts.decode", lambda self, tokens: next(replies))
    run = [*common, "--data", str(bench), "--max_new_tokens", "2"]
    longbench.main([*run, "--compression_ratio", "0.25"])
    longbench.main([*run, "--budget", "64", "--compression_mode", "accumulate", "--method", "lsh"])
    longbench.main([*run, "--method", "full"])
    longbench.main(["--score", str(tmp_path / "out")])
    table = official(tmp_path / "out")
    assert table["tiny-bytes_exact_recursive_ratio0.25"][:2] == [33.3, 66.7]
    assert sorted(table) == [
        "tiny-bytes_exact_recursive_ratio0.25",
        "tiny-bytes_frequency_rank_accumulate_budget64",
        "tiny-bytes_full",
    ]
    scored = (tmp_path / "out.result.txt").read_text().splitlines()[1:]
    assert {row.split("\t")[0]: float(row.split("\t")[1].split()[0]) for row in scored} == {
        name: shares[0] for name, shares in table.items()
    }


def test_a_name_that_stands_twice_is_refused_before_anything_is_asked(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([item(0), item(1), item(2, _id="id0")]))
    for some in (["--num_samples", "1"], []):
        assert "_id='id0'" in refused([*common, "--data", str(path), *SHORT, *some], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"answer": "E"}, "answer of id1='E'"), ({"context": None}, "context"), ({"_id": 7}, "item 1=['_id']")],
)
def test_incomplete_questions_are_named(
    common: list[str], tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([item(0), item(1, **changes)]))
    assert message in refused([*common, "--data", str(path), *SHORT], capsys)


def changed_model(byte_model: Path, tmp_path: Path) -> Path:
    """A model of the same name, one weight of which is another."""
    model = AutoModelForCausalLM.from_pretrained(byte_model)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    path = tmp_path / "other" / byte_model.name
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("model", "model was"),
        ("max_len", "max_len was"),
        ("answers", "max_new_tokens was"),
        ("stop", "stop_words was"),
        ("wording", "wording was"),
        ("code", "code was"),
        ("seed", "seed was"),
        ("context", "a different question with id 'id1'"),
        ("answer", "a different question with id 'id1'"),
        ("notes", "which records how it was made"),
    ],
)
def test_results_of_something_else_are_not_continued(
    common: list[str],
    bench: Path,
    byte_model: Path,
    tmp_path: Path,
    what: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [*common, "--data", str(bench), *SHORT]
    longbench.main([*options, "--num_samples", "2"])
    path = tmp_path / "out" / "tiny-bytes_exact_recursive_budget64.jsonl"
    before = path.read_bytes()
    items = json.loads(bench.read_text())
    match what:
        case "model":
            options[options.index(str(byte_model))] = str(changed_model(byte_model, tmp_path))
        case "max_len":
            options += ["--max_len", "2000"]
        case "answers":
            options += ["--max_new_tokens", "3"]
        case "stop":
            options += ["--stop_words", "a"]
        case "seed":
            options += ["--seed", "1"]
        case "wording":
            monkeypatch.setattr(longbench, "AFTER", longbench.AFTER + " ")
        case "code":
            monkeypatch.setattr("bmrt.cache.engine.code_digest", lambda: {"code": "another"})
        case "notes":
            for notes in (tmp_path / "out.settings").glob("*.json"):
                notes.unlink()
        case _:
            items[1][what] = "B" if what == "context" else "D"
            bench.write_text(json.dumps(items))
    assert message in refused(options, capsys)
    assert path.read_bytes() == before


def test_the_same_model_in_another_folder_is_the_same(
    common: list[str], bench: Path, byte_model: Path, tmp_path: Path
) -> None:
    options = [*common, "--data", str(bench), *SHORT]
    longbench.main([*options, "--num_samples", "2"])
    path = tmp_path / "elsewhere" / byte_model.name
    AutoModelForCausalLM.from_pretrained(byte_model).save_pretrained(path)
    options[options.index(str(byte_model))] = str(path)
    longbench.main(options)
    assert len(lines(tmp_path / "out" / "tiny-bytes_exact_recursive_budget64.jsonl")) == 6


def test_a_second_run_of_the_same_waits_for_nobody_and_changes_nothing(
    common: list[str], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / "tiny-bytes_exact_recursive_budget64.jsonl"
    with locked(path, tmp_path / "out.settings" / f"{path.name}.json"):
        assert "another process is writing" in refused([*common, "--data", str(bench), *SHORT], capsys)
        longbench.main([*common, "--data", str(bench), *SHORT, "--method", "recent", "--num_samples", "1"])
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qa1.jsonl", {"id": "qa1-0", "target": "office", "response": "", "score": 0.0}, "of another benchmark"),
        ("data.json", [item(0)], "is a question, not an answer"),
        ("x.jsonl.settings.json", {"settings": {}, "samples": {}}, "has the settings of a run"),
        ("x.json", {"a": 1}, "line 1 has a and lacks judge"),
        ("x.json", [], "has no results"),
        ("x.json", {"judge": "yes", "difficulty": "easy", "length": "long"}, "judge in"),
        ("x.json", [{"_id": "id0", "judge": True, "difficulty": "easy", "length": "long"}] * 2, "x.json='id0' is not"),
    ],
)
def test_a_folder_of_something_else_is_said_to_be(
    tmp_path: Path, name: str, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / name).write_text(json.dumps(content))
    line = refused(["--score", str(folder)], capsys)
    assert message in line
    assert name in line
    assert [path.name for path in folder.iterdir()] == [name]
