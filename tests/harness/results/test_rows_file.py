"""Rows survive kills, full disks and other versions."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.results.rows_file import ROWS, Journal, JournalError, latest, read_rows
from tests.harness.cases import a_case, a_row


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def test_rows_come_back_as_they_were_written(journal: Journal, tmp_path: Path) -> None:
    rows = [a_row(round=0, metrics={"error": 0.5}), a_row(round=1, status="oom", reason="no room\nhere", time_s=None)]
    for row in rows:
        journal.append(row)
    assert read_rows(tmp_path) == rows
    assert len((tmp_path / ROWS).read_text().splitlines()) == 2


def test_a_folder_without_rows_has_none(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []


def test_a_torn_last_line_is_skipped_with_a_warning(
    journal: Journal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal.append(a_row())
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"schema": 1, "run": "to')
    with caplog.at_level(logging.WARNING):
        assert read_rows(tmp_path) == [a_row()]
    assert "line 2 is truncated" in caplog.text


def test_a_row_after_a_torn_line_is_not_lost_and_nothing_is_destroyed(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text('{"schema": 1, "run": "to')
    journal = Journal(tmp_path)
    journal.append(a_row())
    journal.close()
    assert read_rows(tmp_path) == [a_row()]
    assert (tmp_path / ROWS).read_text().startswith('{"schema": 1, "run": "to\n')


@pytest.mark.parametrize("schema", [0, 2, None, "1"])
def test_a_row_of_another_schema_is_refused_and_stays(tmp_path: Path, schema: object) -> None:
    text = json.dumps({**json.loads(a_row().model_dump_json(by_alias=True)), "schema": schema}) + "\n"
    (tmp_path / ROWS).write_text(text)
    with pytest.raises(
        JournalError, match=r"line 1 has schema .*; this version reads only schema 1. Nothing was changed"
    ):
        read_rows(tmp_path)
    assert (tmp_path / ROWS).read_text() == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flavour": 1}, "flavour: this key is unknown"),
        ({"label": None}, "label: null is not allowed; it must be a valid string"),
        ({"n": 0}, "n: 0 is not allowed; it must be greater than or equal to 1"),
        ({"n": "x"}, "n: 'x' is not allowed; it must be a valid integer"),
    ],
)
def test_a_row_that_is_none_is_refused_in_words(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    line = {**json.loads(a_row().model_dump_json(by_alias=True)), **changes}
    (tmp_path / ROWS).write_text(json.dumps(line))
    with pytest.raises(JournalError, match=f"line 1 is not a row of schema 1: {message}"):
        read_rows(tmp_path)


def test_a_row_that_lacks_a_field_is_refused_by_its_name(tmp_path: Path) -> None:
    line = json.loads(a_row().model_dump_json(by_alias=True))
    del line["label"]
    (tmp_path / ROWS).write_text(json.dumps(line))
    with pytest.raises(JournalError, match=r"line 1 is not a row of schema 1: label: this key is missing\."):
        read_rows(tmp_path)


def test_a_full_disk_is_told_and_leaves_earlier_rows_whole(journal: Journal, tmp_path: Path) -> None:
    journal.append(a_row())
    size = (tmp_path / ROWS).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(JournalError, match=r"File too large.*free some space and continue with --resume"):
            journal.append(a_row(round=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / ROWS).stat().st_size == size
    journal.append(a_row(round=2))
    assert read_rows(tmp_path) == [a_row(), a_row(round=2)]


def test_two_sweeps_do_not_write_one_file(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="another sweep is writing"):
        Journal(tmp_path)


def test_of_rows_with_one_identity_and_round_the_last_counts() -> None:
    other = a_case(n=512)
    rows = [a_row(time_s=1.0), a_row(other), a_row(time_s=2.0), a_row(time_s=3.0, round=1)]
    assert latest(rows) == [rows[2], rows[1], rows[3]]
