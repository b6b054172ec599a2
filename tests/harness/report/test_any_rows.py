"""Whatever rows a run holds, it has a report: random subsets, values, statuses, labels and lengths."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from harness.report.__main__ import main
from harness.report.document import build_document
from harness.report.figures.length import MOST_DRAWN
from harness.report.pieces import Document, Figure
from harness.report.render import render_html, render_markdown
from harness.results.rows_file import latest
from harness.results.run_file import RunFacts
from harness.stats.analysis import Analysis
from tests.harness.report_fixture import FLASH, LENGTHS, MADE, VANILLA, Made, made_facts, made_rows, write_run
from tests.harness.report_pages import html_tables

if TYPE_CHECKING:
    from harness.common.rows import Row

VALUES = (0.0, math.inf, math.nan, -1.0, 5e-324, 1e-300, 1e-60, 1e59, 1e300, 1.0, 1.8724627674488294)
LABELS = (
    "", " ", "x" * 3000, "one setting=12 " * 30, "é 日本 😀", "שלום عربى", "a\nb\r\nc", "<script>alert(1)</script>&\"'",
    "$x^2$", "\x00\x07\x1b[31m", "\ud800", "a | `b` *c* _d_ [e](f)", "\u2028\u0085",
)  # fmt: skip
FIELDS = (
    "peak_bytes", "allocator_bytes", "flops", "comparisons", "tokens_per_s", "roofline_share", "flops_per_s",
    "prepare_s", "wall_s", "measured_s", "others_share", "state_bytes", "output_bytes",
)  # fmt: skip
STATUSES = ("unsupported", "skipped", "oom", "timeout", "crash", "wrong", "ok")


def a_value(rng: random.Random) -> float:
    return rng.choice([*VALUES, rng.uniform(1, 9), 10 ** rng.uniform(-12, 12)])


def changed(row: Row, rng: random.Random, same: float | None) -> Row:
    """A row as a broken clock, a strange method or an editor may have left it."""
    changes: dict[str, Any] = {}
    if rng.random() < 0.4 and row.status == "ok":
        time_s = a_value(rng) if same is None else same
        changes |= {"time_s": time_s, "samples_s": [time_s] * rng.choice([1, 5])}
    if rng.random() < 0.3:
        changes |= {name: rng.choice([None, a_value(rng)]) for name in FIELDS if rng.random() < 0.4}
    if rng.random() < 0.3:
        kept = [name for name in row.metrics if rng.random() < 0.7]
        changes["metrics"] = {name: rng.choice([row.metrics[name], a_value(rng)]) for name in kept}
    if rng.random() < 0.25:
        changes |= {"status": rng.choice(STATUSES), "reason": rng.choice(["", "why\nso", "x" * 2000, "<b>"])}
        changes |= {"time_s": None, "samples_s": None} if rng.random() < 0.7 else {}
    return row.model_copy(update=changes)


def any_rows(rng: random.Random) -> list[Row]:
    lengths = rng.sample(LENGTHS, rng.choice([1, 1, 2, 3, 6, 12]))
    rows = [row for row in made_rows() if row.n in lengths]
    rows = rng.sample(rows, min(len(rows), rng.choice([1, 1, 2, 3, 8, 30, 80])))
    names = {
        label: rng.choice([label, rng.choice(LABELS) + rng.choice(["", label])]) for label in {r.label for r in rows}
    }
    sizes = {n: rng.choice([n, n, 1, 3, 2**53, 2**53 - 1, rng.randrange(1, 2**50)]) for n in lengths}
    same = rng.choice([None, a_value(rng)])
    renamed = [row.model_copy(update={"label": names[row.label], "n": sizes[row.n]}) for row in rows]
    return [changed(row, rng, same) for row in renamed]


def document_of(rows: list[Row], **facts: Any) -> Document:
    return build_document(Analysis(latest(rows)), RunFacts.model_validate(made_facts(**facts)))


@pytest.mark.parametrize("seed", range(20))
def test_any_rows_have_a_report(seed: int) -> None:
    rng = random.Random(seed)
    rows = any_rows(rng)
    facts = rng.choice([{}, {"finished": None}, {"class_facts": {}}])
    document = document_of(rows, **facts)
    html, markdown = render_html(document), render_markdown(document)
    assert html.encode()
    assert markdown.encode()
    assert not set(html + markdown) & {"\x00", "\x07", "\x1b"}
    assert "<script>alert" not in html
    tables = html_tables(html)
    assert all(len(row) == len(table[0]) for table in tables for row in table)
    figures = [item for chapter in document.chapters for group in chapter.groups for item in group.items]
    for figure in (item for item in figures if isinstance(item, Figure)):
        assert ElementTree.fromstring(figure.wide).tag.endswith("svg")
        assert "nan" not in figure.narrow.lower().split("<text")[0]


@pytest.mark.parametrize("seed", range(12))
def test_one_case_with_one_sample_has_a_report(seed: int) -> None:
    time_s = [1.8724627674488294, 0.0747068800001216][seed] if seed < 2 else random.Random(seed).uniform(1, 9)
    (row,) = made_rows((FLASH,), lengths=(64,), rounds=1)
    row = row.model_copy(update={"time_s": time_s, "samples_s": [time_s], "tokens_per_s": 64 / time_s})
    html = render_html(document_of([row]))
    assert f"{time_s:.3g}"[:3] in html


@pytest.mark.parametrize("time_s", [0.0, math.inf, math.nan, -1.0, 1e300])
def test_a_time_that_is_none_is_left_out_and_named(tmp_path: Path, time_s: float) -> None:
    rows = made_rows((FLASH, VANILLA), lengths=(512, 1024), rounds=1)
    rows[0] = rows[0].model_copy(update={"time_s": time_s, "samples_s": [time_s]})
    write_run(tmp_path, rows, made_facts((FLASH, VANILLA)))
    lines = [json.loads(row.model_dump_json(by_alias=True)) for row in rows]
    lines[0] |= {"time_s": time_s, "samples_s": [time_s]}  # pydantic writes null for what is not finite
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(tmp_path)]) == 0
    assert f"a time of {time_s:g} s is implausible and is left out" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("count", [60, 110, 130, 300, 5000])
def test_a_long_label_leaves_the_figure_its_room(count: int) -> None:
    label = ("one setting=12 " * 400)[:count]
    rows = [row.model_copy(update={"label": label}) for row in made_rows((FLASH,), lengths=(512, 1024, 2048), rounds=1)]
    document = document_of(rows)
    html = render_html(document)
    assert any(" ".join(label.split()) in cell for table in html_tables(html) for row in table for cell in row)
    assert "…" in html


def test_very_many_series_are_all_in_the_tables_and_some_in_the_figures() -> None:
    many = [Made(f"method {place}", 1.0, 1e-4, 1e-3 * (1 + place)) for place in range(MOST_DRAWN + 6)]
    document = document_of(made_rows(many, lengths=(512, 1024, 2048), rounds=1), class_facts={})
    items = [item for chapter in document.chapters for group in chapter.groups for item in group.items]
    figures = [item for item in items if isinstance(item, Figure)]
    assert figures
    assert all(len(figure.legend) <= MOST_DRAWN for figure in figures)
    assert (
        f"{MOST_DRAWN} of {MOST_DRAWN + 6} series, first those that reach furthest, then the lowest" in figures[0].note
    )
    assert "method 0" in figures[0].legend
    html = render_html(document)
    assert all(f"method {place}<" in html for place in range(MOST_DRAWN + 6))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "rows.jsonl").unlink(), "it has no rows"),
        (lambda folder: (folder / "rows.jsonl").write_text(""), "it has no rows"),
        (lambda folder: (folder / "rows.jsonl").write_text('{"schema": 99}\n'), "line 1 has schema 99"),
        (lambda folder: (folder / "rows.jsonl").write_text('{"schema": 1, "n": 0}\n'), "line 1 is not a row"),
        (lambda folder: (folder / "run.json").unlink(), "run.json: there is no such file"),
        (lambda folder: (folder / "run.json").write_text("{"), "run.json: "),
        (lambda folder: (folder / "run.json").write_text("[]"), "run.json: "),
        (lambda folder: (folder / "run.json").write_text("[" * 100_000), "run.json: "),
        (lambda folder: (folder / "run.json").write_bytes(b"\xff\xfe"), "run.json: "),
    ],
)
def test_a_folder_without_a_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    write_run(tmp_path, made_rows((FLASH,), lengths=(512,), rounds=1), made_facts(MADE))
    spoil(tmp_path)
    assert main([str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert (len(printed.err.splitlines()), printed.out) == (1, "")


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("absent", "x" * 5000):
        assert main([str(tmp_path / name)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_line_that_is_cut_or_nested_without_end_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, made_rows((FLASH,), lengths=(512, 1024), rounds=1), made_facts(MADE))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("[" * 100_000 + '\n{"schema": 1, "n": 51')
    assert main([str(tmp_path)]) == 0
    assert [record.getMessage().partition("rows.jsonl ")[2] for record in caplog.records] == [
        "line 3 is truncated and is skipped",
        "line 4 is truncated and is skipped",
    ]
