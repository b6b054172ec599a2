from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from harness.report import units, write_report
from harness.report.__main__ import main
from harness.report.figures.palette import COLOURS
from tests.harness.report_fixture import BITS, FLASH, MADE, Made, made_facts, made_rows, usual_rows, write_run
from tests.harness.report_pages import elements, html_tables, markdown_tables, table_with

if TYPE_CHECKING:
    from harness.common.rows import Row

SIZES = tuple(2**power for power in range(9, 16))
HOSTILE = "<script>alert('x')</script> & \"q\" | `c` $a_b$ {{ 7*7 }} *s*"


def report(folder: Path, rows: Sequence[Row], made: Sequence[Made] = MADE, **changes: Any) -> tuple[str, str]:
    html, markdown = write_report(write_run(folder, rows, made_facts(made, **changes)))
    return html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return report(tmp_path_factory.mktemp("usual"), usual_rows())


def test_html_and_markdown_hold_the_same_tables(usual: tuple[str, str]) -> None:
    html, markdown = usual
    assert len(html_tables(html)) > 20
    assert html_tables(html) == markdown_tables(markdown)


def test_the_answer_comes_first_and_the_evidence_in_order(usual: tuple[str, str]) -> None:
    html, markdown = usual
    chapters = [
        "The answer",
        "Cost in numbers",
        "Cost against length",
        "Accuracy",
        "Causality violations",
        "Share of the roofline",
        "Not measured",
        "Provenance",
    ]
    assert re.findall("<h2>(.*)</h2>", html) == chapters
    assert re.findall("^## (.*)$", markdown, re.MULTILINE) == chapters
    assert html.index("Up to 2K use flash") < html.index("<table>")


def test_exponents_are_printed_with_interval_and_claim(usual: tuple[str, str]) -> None:
    growth = table_with(markdown_tables(usual[1]), "paper claims")
    rows = {row[0]: row for row in growth[1:]}
    assert rows["flash (exact)"][2] == "n^2"
    assert rows["flash (exact)"][1].startswith(("1.98 (", "1.99 (", "2.00 ("))
    assert rows["bit_sampling"][1].startswith(("1.05 (", "1.06 (", "1.07 ("))


def test_accuracy_stands_next_to_the_controls_for_every_kind_of_inputs(usual: tuple[str, str]) -> None:
    glance = table_with(markdown_tables(usual[1]), "text: error at 256K")
    assert {"planted: error at 256K", "gaussian: error at 256K", "gaussian: error_v at 256K"} <= set(glance[0])
    assert [row[0] for row in glance[1:]] == ["bit_sampling", "window (control)", "random (control)"]


def test_what_did_not_run_is_listed_with_its_reason(usual: tuple[str, str]) -> None:
    missing = table_with(markdown_tables(usual[1]), "why")
    reach = {row[0]: row[1:] for row in missing[1:]}
    assert reach["flash (exact)"][:3] == ["64K", "128K", "skipped"]
    listed = [table for table in markdown_tables(usual[1]) if table[0] == ["method", "on", "status", "at", "why"]]
    assert listed[0][1][:4] == ["vanilla (exact)", "text", "oom", "32K, 64K, 128K, 256K"]


def test_a_report_is_a_pure_function_of_its_folder(tmp_path: Path) -> None:
    rows = made_rows((FLASH, BITS), SIZES[:4], 2)
    assert report(tmp_path / "a", rows) == report(tmp_path / "b", rows)


def test_nothing_is_asked_of_a_network(usual: tuple[str, str]) -> None:
    loading = {"src", "srcset", "action", "poster", "data"}
    found = elements(usual[0])
    assert not [tag for tag, attributes in found if loading & attributes.keys()]
    assert [attributes["href"] for tag, attributes in found if tag == "link"] == ["data:,"]
    assert "@import" not in usual[0]


def test_ids_are_unique_and_every_reference_has_its_target(usual: tuple[str, str]) -> None:
    attributes = [attributes for _, attributes in elements(usual[0])]
    ids = [each["id"] for each in attributes if "id" in each]
    assert len(ids) == len(set(ids))
    names = [
        value for each in attributes for name, value in each.items() if name in {"href", "xlink:href", "clip-path"}
    ]
    targets = {
        name.removeprefix("url(").removesuffix(")")[1:] for name in names if name and name.startswith(("#", "url(#"))
    }
    assert targets
    assert targets <= set(ids)


def test_text_from_outside_is_shown_and_never_run(tmp_path: Path) -> None:
    hostile = Made(
        HOSTILE, 1.0, 1e-4, 1e-3, errors={"text": 0.1}, longest=4096, why=("crash", f"line one\nline two {HOSTILE}")
    )
    rows = made_rows((FLASH, hostile), lengths=SIZES, settings={"<b>": HOSTILE}, device="cpu")
    facts = made_facts((FLASH, hostile), command=HOSTILE, config={"a": HOSTILE})
    facts["class_facts"][HOSTILE]["paper"] = "javascript:alert(1)"
    html, markdown = report(tmp_path, rows, (FLASH, hostile), **facts)
    tags = [tag for tag, _ in elements(html)]
    assert tags.count("script") == 1
    assert "b" not in tags
    assert not [each for _, each in elements(html) if (each.get("href") or "").startswith("javascript")]
    shown = " ".join(HOSTILE.split())
    assert f"{shown}" in {row[0] for table in html_tables(html) for row in table}
    assert html_tables(html) == markdown_tables(markdown)
    assert not {"script", "b"} & {tag for tag, _ in elements(MarkdownIt("commonmark").render(markdown))}


def test_circumstances_are_kept_apart(tmp_path: Path) -> None:
    few = SIZES[:3]
    rows = made_rows((FLASH,), few, 1) + made_rows((FLASH,), few, 1, mode="train", dtype="bfloat16")
    html, markdown = report(tmp_path, rows, (FLASH,))
    titles = [line for line in markdown.splitlines() if line.startswith("### ")]
    assert titles[:2] == ["### forward, float32", "### train, bfloat16"]
    times = [
        table[1][1] for table in html_tables(html) if table[0] == ["method", "512", "1K", "2K"] and len(table) == 2
    ]
    assert len({cell for cell in times if cell.endswith("· 1×)")}) == 2


def test_the_layer_level_is_reported_like_the_kernel(tmp_path: Path) -> None:
    html, _ = report(tmp_path, made_rows((FLASH, BITS), SIZES[-2:], 2, level="layer"), (FLASH, BITS))
    assert "layer forward" in html
    assert "bit_sampling is" in html


def test_other_subjects_get_their_metrics_and_no_answer(tmp_path: Path) -> None:
    task = [
        row.model_copy(
            update={
                "subject": "accuracy",
                "metrics": {"accuracy": 0.75, "surprise": 3.0},
                "time_s": None,
                "samples_s": None,
            }
        )
        for row in made_rows((BITS,), SIZES[:1], 1)
    ]
    html, markdown = report(tmp_path, [*made_rows((FLASH, BITS), SIZES[:2], 1), *task], (FLASH, BITS))
    assert "## Further metrics" in markdown
    assert ["bit_sampling", "accuracy", "75.0 %"] in [row[:3] for table in html_tables(html) for row in table]
    assert ["bit_sampling", "accuracy", "3.00"] in [row[:3] for table in html_tables(html) for row in table]


def test_what_measuring_took_stands_beside_the_passes(tmp_path: Path) -> None:
    rows = made_rows((FLASH, BITS), SIZES[:1], 3)
    rows[0] = rows[0].model_copy(update={"wall_s": (rows[0].measured_s or 0) + 2})
    html, _ = report(tmp_path, rows, (FLASH, BITS))
    whole = units.duration(sum(row.wall_s or 0 for row in rows))
    assert ["512", "6", whole, "700 ms", "2.00 s"] in [row for table in html_tables(html) for row in table]


@pytest.mark.parametrize("disturbed", [0, 1, 3])
def test_a_run_on_a_busy_machine_says_so_first(tmp_path: Path, disturbed: int) -> None:
    rows = made_rows((FLASH, BITS), SIZES[:1], 5)
    rows[:disturbed] = [row.model_copy(update={"others_share": 0.456}) for row in rows[:disturbed]]
    html, markdown = report(tmp_path, rows, (FLASH, BITS))
    share = "2.00 % of CPU time in the median timed case, at most "
    share += "45.6 %" if disturbed else "2.00 %"
    assert ["other programs", share] in [row for table in html_tables(html) for row in table]
    output = "Other programs took more than 10 % of CPU time in 3 of 10 timed cases (median 2 %)"
    assert (output in markdown.split("##")[0]) == (disturbed == 3)
    assert ("Other programs took" in markdown) == (disturbed == 3)


@pytest.mark.parametrize("status", ["oom", "crash", "wrong"])
def test_a_run_without_any_time_says_so_and_why(tmp_path: Path, status: str) -> None:
    rows = [
        row.model_copy(update={"status": status, "reason": "because", "time_s": None, "samples_s": None, "metrics": {}})
        for row in made_rows((FLASH, BITS), SIZES[:2], 1)
    ]
    html, markdown = report(tmp_path, rows, (FLASH, BITS))
    assert "Nothing could be timed" in markdown
    assert ["flash (exact)", status, "512, 1K", "because"] in [row for table in html_tables(html) for row in table]


def test_a_folder_without_rows_gives_a_report_that_says_so(tmp_path: Path) -> None:
    html, markdown = report(tmp_path, [])
    assert "Nothing could be timed" in html
    assert "no rows" in markdown


def test_one_length_one_round_and_one_backend_are_enough(tmp_path: Path) -> None:
    html, markdown = report(tmp_path, made_rows((FLASH,), SIZES[:1], 1), (FLASH,))
    assert "Use flash at 512." in markdown
    assert "<svg" in html


def test_rows_without_metrics_or_memory_still_make_a_report(tmp_path: Path) -> None:
    bare = dict.fromkeys(("peak_bytes", "allocator_bytes", "comparisons", "roofline_share", "flops_per_s"))
    rows = [row.model_copy(update=bare | {"metrics": {}}) for row in made_rows((FLASH, BITS), SIZES[:3], 1)]
    _, markdown = report(tmp_path, rows, (FLASH, BITS))
    assert "## Accuracy" not in markdown
    assert "## Cost in numbers" in markdown


def test_a_case_that_failed_in_one_round_keeps_its_time_and_is_listed(tmp_path: Path) -> None:
    rows = made_rows((FLASH,), SIZES[:3], 3)
    rows[0] = rows[0].model_copy(update={"status": "timeout", "reason": "slow", "time_s": None, "samples_s": None})
    html, _ = report(tmp_path, rows, (FLASH,))
    assert ["flash (exact)", "timeout", "512 (1 of 3 rounds)", "slow"] in [
        row for table in html_tables(html) for row in table
    ]
    assert any("· 2×" in row[1] for table in html_tables(html) for row in table if row[0] == "flash (exact)")


def test_a_class_that_says_little_of_itself_is_taken_as_approximate(tmp_path: Path) -> None:
    silent = {"paper": None, "exact": "", "approximates": None, "claimed_time": "", "causality": ""}
    html, _ = report(tmp_path, made_rows((BITS,), SIZES[:1], 1), (BITS,), class_facts={"bit_sampling": silent})
    assert "bit_sampling is fastest at" in html


def test_an_unfinished_run_is_marked(tmp_path: Path) -> None:
    html, markdown = report(tmp_path, made_rows((FLASH,), SIZES[:1], 1), (FLASH,), finished=None)
    assert "has not finished" in html
    assert "has not finished" in markdown


def test_the_command_writes_both_files_and_prints_their_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, made_rows((FLASH,), SIZES[:1], 1), made_facts((FLASH,)))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "report.html"), str(tmp_path / "report.md")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md", "rows.jsonl", "run.json"]


@pytest.mark.parametrize("text", [None, "{", json.dumps({"run": "x"})])
def test_a_folder_that_holds_no_run_is_refused_in_one_line(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m harness.report: ")
    assert "run.json" in message
    assert message.count("\n") == 1


def test_the_first_figure_becomes_a_file_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With every colour that it uses, for light pages and dark ones, and the names of the series."""
    folder, picture = write_run(tmp_path / "run", usual_rows(), made_facts()), tmp_path / "time.svg"
    assert main([str(folder), "--picture", str(picture)]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    assert sorted(path.name for path in folder.iterdir()) == ["rows.jsonl", "run.json"], "the report is left alone"
    text = picture.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    look = text[text.index("<style>") : text.index("</style>")]
    assert set(re.findall(r"var\(--(\w+)\)", text)) <= set(re.findall(r"--(\w+):", look.partition("@media")[0]))
    assert len(re.findall(r"--\w+:", look)) == 2 * len(COLOURS)
    assert FLASH.label in "".join(root.itertext())


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, picture = write_run(tmp_path / "run", usual_rows(), made_facts()), tmp_path / "absent" / "time.svg"
    assert main([str(folder), "--picture", str(picture)]) == 2
    assert capsys.readouterr().err == f"python -m harness.report: {picture}: No such file or directory\n"
