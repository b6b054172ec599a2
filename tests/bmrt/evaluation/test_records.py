"""Results in a file: read again as they were written, and never mixed with those of something else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bmrt.evaluation.records import Records, locked, read_jsonl, require_unique

SETTINGS = {"a": 1}


def filled(path: Path, *names: str) -> Path:
    records = Records(path, SETTINGS)
    for name in names:
        records.add({"id": name})
    return path


@pytest.mark.parametrize(
    "code", [0x00, 0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029, 0xD800, 0x1F600]
)
def test_an_answer_may_hold_any_character(tmp_path: Path, code: int) -> None:
    response = f"left{chr(code)}right"
    Records(tmp_path / "r.jsonl", SETTINGS).add({"id": "one", "response": response})
    assert Records(tmp_path / "r.jsonl", SETTINGS).lines == [{"id": "one", "response": response}]


@pytest.mark.parametrize("code", [0x85, 0x2028, 0x2029])
def test_data_of_others_may_hold_any_separator_unescaped(tmp_path: Path, code: int) -> None:
    rows = [{"text": f"left{chr(code)}right"}, {"text": "more"}]
    path = tmp_path / "data.jsonl"
    path.write_text("\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", newline="")
    assert read_jsonl(path) == rows


@pytest.mark.parametrize("kept", [0, 1, 5, 10])
def test_a_last_line_cut_short_is_made_again(tmp_path: Path, kept: int) -> None:
    path = filled(tmp_path / "r.jsonl", "a", "b", "c")
    whole = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(whole[:2]) + b"\n" + whole[2][:kept])
    records = Records(path, SETTINGS)
    assert records.done == {"a", "b"}
    records.add({"id": "c"})
    assert Records(path, SETTINGS).done == {"a", "b", "c"}


def test_a_last_line_that_only_lacks_its_end_is_whole(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.jsonl", "a", "b")
    path.write_bytes(path.read_bytes()[:-1])
    Records(path, SETTINGS).add({"id": "c"})
    assert [line["id"] for line in Records(path, SETTINGS).lines] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace('"id": "b"', '"id" "b"'), "line 2 is not valid JSON"),
        (lambda text: text.replace('{"id": "b"}', "3"), "line 2"),
        (lambda text: text.replace('"id": "b"', '"name": "b"'), "line 2.*an object with 'id'"),
        (
            lambda text: text.replace('"b"', '"a"'),
            "id in .*='a' is not allowed: it must be unique, not repeated 2 times",
        ),
        (lambda text: text.replace('{"id": "b"}', "\0" * 11), "line 2 is not valid JSON"),
    ],
)
def test_other_damage_is_named(tmp_path: Path, damage, message: str) -> None:
    path = filled(tmp_path / "r.jsonl", "a", "b", "c")
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message):
        Records(path, SETTINGS)


def test_what_was_made_otherwise_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records = Records(path, {"model": "x", "budget": 64}, samples={"a": "1", "b": "2"})
    records.add({"id": "a"})
    with pytest.raises(ValueError, match="other settings \\(budget was 64 and is 128\\)"):
        Records(path, {"model": "x", "budget": 128})
    with pytest.raises(ValueError, match="seed was None and is 0"):
        Records(path, {"model": "x", "budget": 64, "seed": 0})
    with pytest.raises(ValueError, match="a different question with id 'b'"):
        Records(path, {"model": "x", "budget": 64}, samples={"b": "3"})
    # More questions of the same run are fine, and remembered.
    Records(path, {"model": "x", "budget": 64}, samples={"c": "3"})
    with pytest.raises(ValueError, match="a different question with id 'c'"):
        Records(path, {"model": "x", "budget": 64}, samples={"c": "4"})


def test_results_of_unknown_making_are_not_continued(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.jsonl", "a")
    notes = tmp_path / "r.jsonl.settings.json"
    notes.write_text(json.dumps({"selector_type": "exact"}))
    with pytest.raises(ValueError, match="does not say how"):
        Records(path, SETTINGS)
    notes.unlink()
    with pytest.raises(ValueError, match="which records how it was made"):
        Records(path, SETTINGS)
    path.unlink()
    assert Records(path, SETTINGS).done == set()


HOLD = """
import sys
from pathlib import Path
from bmrt.evaluation.records import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_writes_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match=r"another process is writing .*r\.jsonl"), locked(path):
            pass
        with locked(tmp_path / "other.jsonl"):
            pass
        other.kill()
    with locked(path):  # a killed process holds nothing
        pass


def test_names_stand_once() -> None:
    require_unique(["a", "b"], "_id")
    with pytest.raises(ValueError, match="_id='b'"):
        require_unique(["a", "b", "b"], "_id")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ('{"a": 1}\nx\n', "line 2"),
        ("3\n", "object"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_broken_data_is_named_by_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_jsonl(path)
