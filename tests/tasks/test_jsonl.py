from __future__ import annotations

import itertools
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import synthetic
from tasks.example import Example
from tasks.jsonl import read_examples, write_examples
from tasks.mqar import MQARText
from tasks.synthetic import computational_reasoning

GOOD = '{"prompt": "a", "answer": " b"}\n'


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    examples = [
        *itertools.islice(computational_reasoning(), 20),
        MQARText(100, pairs=3).example(0),
        Example("é\n", "🙂"),
    ]
    assert write_examples(tmp_path / "new" / "x.jsonl", examples) == 22
    assert list(read_examples(tmp_path / "new" / "x.jsonl")) == examples


def test_examples_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD * 3 + "broken\n")
    assert len(list(itertools.islice(read_examples(path), 3))) == 3


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("broken", "is not valid JSON"),
        ('{"prompt": "a"', "is not valid JSON"),
        ("17", "is not an example: it must be an object"),
        ('{"prompt": "a"}', "answer must be text"),
        ('{"prompt": 3, "answer": "b"}', "prompt must be text"),
        ('{"prompt": "a", "answer": "b", "metadata": 1}', "metadata must be an object"),
        (
            '{"prompt": "a", "answer": "b", "anser": "c"}',
            'has unknown keys: "anser"; known keys are prompt, answer, metadata and spans',
        ),
        ('{"prompt": "a", "answer": "b", "spans": [[0, 2]]}', r"spans must be \[start, end\] pairs"),
        ('{"prompt": "abc", "answer": "b", "spans": [[1, 2], [0, 1]]}', r"spans must be .* in order: \[0, 1\]"),
        ('{"prompt": "a", "answer": "b", "spans": [3]}', "spans must be"),
        ('{"prompt": "a", "answer": "b", "spans": null}', "spans must be .* in order: null"),
        ('{"prompt": "a", "answer": "b", "spans": 5}', "spans must be .* in order: 5"),
        ('{"prompt": "a", "answer": "b", "spans": {}}', "spans must be .* in order: {}"),
        (
            '{"prompt": "a", "answer": "b", "metadata": {"task": ["x"]}}',
            r'metadata: task must be text or a number: \["x"\]',
        ),
        ('{"prompt": "a", "answer": "b", "metadata": {"task": null}}', "metadata: task must be text or a number: null"),
        ('{"prompt": "a", "answer": null}', "answer must be text: null"),
        (
            '{"prompt": "\\ud800", "answer": "b"}',
            r"is not valid JSON: .* escape at byte \d+, near .*ud[8c]00.*; a line must be a JSON object in UTF-8",
        ),
        (
            '{"prompt": "a", "answer": "b", "metadata": {"\\udc00": 1}}',
            r"is not valid JSON: .* escape at byte \d+, near .*ud[8c]00.*; a line must be a JSON object in UTF-8",
        ),
        ("[" * 100_000, "is not valid JSON: recursion limit exceeded at byte"),
        (
            '{"prompt": "a", "answer": "b", "metadata": ' + '{"a":' * 100_000,
            "is not valid JSON: recursion limit exceeded",
        ),
    ],
)
def test_a_broken_line_is_named_by_its_number_and_fault(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD + "\n" + GOOD + line + "\n" + GOOD)
    with pytest.raises(ValueError, match=rf"x\.jsonl line 4:? {why}"):
        list(read_examples(path))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD.encode() + b'{"prompt": "\xff", "answer": ""}\n')
    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        list(read_examples(path))
    path.write_bytes(
        b"\xef\xbb\xbf" + GOOD.encode() + b'{"prompt": "\xed\xa0\x80", "answer": ""}\n'
    )  # half a character
    with pytest.raises(ValueError, match="line 2 is not valid JSON: invalid unicode code point at byte 13"):
        list(read_examples(path))


def test_half_a_character_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match=r"cannot be written: '\\ud800' after .*abc' is a lone surrogate"):
        write_examples(path, [Example("a", "b"), Example("abc\ud800", "b")])
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    def examples() -> Iterator[Example]:
        yield Example("a", "b")
        raise KeyError("half way")

    path = tmp_path / "x.jsonl"
    path.write_text(GOOD)
    with pytest.raises(KeyError):
        write_examples(path, examples())
    assert path.read_text() == GOOD
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/x\.jsonl': File exists"):
        write_examples(tmp_path / "file" / "x.jsonl", [Example("a", "b")])


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ValueError, match=r"x\.jsonl': File too large"):
            write_examples(path, itertools.repeat(Example("a" * 100, "b"), 1_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == GOOD
    assert list(tmp_path.iterdir()) == [path]


def test_an_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'.*none\.jsonl': No such file"):
        list(read_examples(tmp_path / "none.jsonl"))


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    synthetic.main([str(path), "--count", "50", "--seed", "7"])
    assert capsys.readouterr().out.startswith(f"50 examples in {path}: ")
    assert list(read_examples(path)) == list(itertools.islice(computational_reasoning(seed=7), 50))
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(SystemExit) as stop:
        synthetic.main([str(path), "--check"])
    assert stop.value.code == 2
    assert f"{path} line 51 is not valid JSON" in capsys.readouterr().err
    path.write_text('{"prompt": "a", "answer": "b", "metadata": {"task": ["x"]}}\n')
    with pytest.raises(SystemExit) as stop:
        synthetic.main([str(path), "--check"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f'{path} line 1: metadata: task must be text or a number: ["x"]\n'


def test_tasks_may_be_numbered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "numbered.jsonl"
    path.write_text(
        "".join(f'{{"prompt": "a", "answer": "b", "metadata": {{"task": {task}}}}}\n' for task in ('"x"', 3))
    )
    assert [example.metadata["task"] for example in read_examples(path)] == ["x", 3]
    synthetic.main([str(path), "--check"])
    assert capsys.readouterr().out == f"2 examples in {path}: 1 3, 1 x\n"


def test_held_out_examples_are_hardly_ever_taught() -> None:
    """The quick examples are few enough to repeat; another seed's are still nearly all new."""
    taught = {example.prompt for example in itertools.islice(computational_reasoning(quick=True), 5_000)}
    held_out = [example.prompt for example in itertools.islice(computational_reasoning(quick=True, seed=1), 500)]
    assert sum(prompt in taught for prompt in held_out) < 5
