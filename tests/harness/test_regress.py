from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.regress import main
from harness.results.baseline import load_baseline
from tests.harness.planted import OCTAVES, curve_s, row, timed_rows, write_run


def times(
    law: str = "n", *, floor: float = 4, factor: float = 1.0, rise: float = 0.0, seed: int = 0, noise: float = 0.02
):
    """Seconds by size and round; `factor` slows everything, `rise` adds to the exponent and leaves the middle."""
    rng = np.random.default_rng(seed)
    sizes = np.array(OCTAVES, dtype=float)
    work = curve_s(law) * (sizes / sizes[4]) ** rise
    seconds = factor * (1e-3 * floor + work)[:, None] * np.exp(noise * rng.standard_normal((len(sizes), 3)))
    return {n: list(map(float, rounds)) for n, rounds in zip(OCTAVES, seconds, strict=True)}


def unwrapped(capsys) -> str:
    """What was printed, with the lines of a table's cells joined."""
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in re.split("[│┃]", line)] for line in lines]
    return " ".join(cell for column in range(6) for cell in (row[column] for row in cells if len(row) > column) if cell)


def counted(name: str = "comparisons", factor: float = 1.0, **fields):
    return [row(n, **{name: factor * n**2}, **fields) for n in OCTAVES]


def compare(tmp_path: Path, before, after, *, machine: str = "box") -> int:
    baseline = tmp_path / "baseline" / "box.json"
    assert main([str(write_run(tmp_path / "old", before)), "--baseline", str(baseline), "--update"]) == 0
    return main([str(write_run(tmp_path / "new", after, machine=machine)), "--baseline", str(baseline)])


def test_the_same_speed_passes(tmp_path: Path, capsys):
    assert compare(tmp_path, timed_rows(times(seed=1)), timed_rows(times(seed=2))) == 0
    assert "pass: 1 pass, 0 fail, 0 ambiguous; times compared in 1 of 1 series" in capsys.readouterr().out


def test_a_faster_run_passes(tmp_path: Path):
    assert compare(tmp_path, timed_rows(times(seed=1)), timed_rows(times(seed=2, factor=0.5))) == 0


def test_a_slower_constant_fails_with_the_reason_and_the_next_step(tmp_path: Path, capsys):
    assert compare(tmp_path, timed_rows(times(seed=1)), timed_rows(times(seed=2, factor=1.2))) == 1
    printed = capsys.readouterr().out
    assert "significantly worse" in printed
    assert "--update" in printed


@pytest.mark.parametrize("floor", [0, 4, 32])
def test_a_higher_exponent_fails_even_at_the_same_level(tmp_path: Path, capsys, floor: float):
    before, after = times(floor=floor, seed=1), times(floor=floor, seed=2, rise=0.1)
    assert compare(tmp_path, timed_rows(before), timed_rows(after)) == 1
    assert "exponent +0." in capsys.readouterr().out


def test_noise_that_hides_the_margin_is_ambiguous(tmp_path: Path, capsys):
    before, after = times(seed=1, noise=0.3), times(seed=3, noise=0.3)
    assert compare(tmp_path, timed_rows(before), timed_rows(after)) == 3
    assert "with more rounds" in capsys.readouterr().out


def test_one_length_that_jumped_in_every_round_fails(tmp_path: Path, capsys):
    after = times(seed=2)
    after[OCTAVES[3]] = [3 * time for time in after[OCTAVES[3]]]
    assert compare(tmp_path, timed_rows(times(seed=1)), timed_rows(after)) == 1
    assert f"at n={OCTAVES[3]}" in unwrapped(capsys)


def test_a_jump_in_some_rounds_is_noise(tmp_path: Path):
    after = times(seed=2)
    after[OCTAVES[3]][1] *= 3
    assert compare(tmp_path, timed_rows(times(seed=1)), timed_rows(after)) == 0


@pytest.mark.parametrize(("status", "code"), [("oom", 1), ("wrong", 1), ("crash", 1), ("timeout", 1), ("skipped", 3)])
def test_a_length_that_is_lost_is_told_with_its_reason(tmp_path: Path, capsys, status, code: int):
    after = timed_rows({n: rounds for n, rounds in times(seed=2).items() if n < OCTAVES[-1]})
    lost = row(OCTAVES[-1], status=status, reason="because")
    assert compare(tmp_path, timed_rows(times(seed=1)), [*after, lost]) == code
    assert "because" in capsys.readouterr().out


STATUSES = [("oom", 3), ("timeout", 3), ("skipped", 3), ("wrong", 1), ("crash", 1), ("unsupported", 1)]


@pytest.mark.parametrize(("status", "code"), STATUSES)
def test_a_length_that_is_lost_on_another_machine_never_passes(tmp_path: Path, capsys, status, code: int):
    lost = row(OCTAVES[-1], status=status, reason="because")
    after = [*timed_rows({n: times()[n] for n in OCTAVES[:-1]}, comparisons=5), lost]
    assert compare(tmp_path, timed_rows(times(), comparisons=5), after, machine="other") == code
    assert f"n={OCTAVES[-1]} is in the baseline and is now {status}: because" in unwrapped(capsys)


@pytest.mark.parametrize("machine", ["box", "other"])
@pytest.mark.parametrize(("status", "code"), STATUSES)
def test_a_length_of_which_there_are_counts_alone_can_be_lost_too(tmp_path: Path, capsys, status, code, machine: str):
    before = [row(n, subject="accuracy", comparisons=n, flops=n) for n in OCTAVES]
    lost = row(OCTAVES[-1], subject="accuracy", status=status, reason="because")
    expected = 1 if machine == "box" and status in ("oom", "timeout") else code
    assert compare(tmp_path, before, [*before[:-1], lost], machine=machine) == expected
    assert f"is now {status}: because" in unwrapped(capsys)


def test_of_the_rounds_of_a_lost_length_the_worst_counts(tmp_path: Path, capsys):
    after = timed_rows({n: rounds for n, rounds in times(seed=2).items() if n < OCTAVES[-1]})
    lost = [
        row(OCTAVES[-1], turn=turn, status=status, reason=f"why {status}")
        for turn, status in enumerate(("crash", "timeout", "skipped"))
    ]
    assert compare(tmp_path, timed_rows(times(seed=1)), [*after, *lost]) == 1
    assert "is now crash: why crash" in unwrapped(capsys)


@pytest.mark.parametrize(("status", "code"), [("crash", 1), ("timeout", 3), ("oom", 3), ("skipped", 0)])
def test_a_length_that_fails_in_one_round_is_told(tmp_path: Path, capsys, status, code: int):
    after = timed_rows(times(seed=2))
    after[-1] = row(OCTAVES[-1], turn=2, status=status, reason="because")
    assert compare(tmp_path, timed_rows(times(seed=1)), after) == code
    assert (f"is now {status} in 1 of 3 rounds: because" in unwrapped(capsys)) == (code != 0)


def test_a_length_whose_times_cannot_be_right_is_no_failure(tmp_path: Path, capsys):
    after = timed_rows({**times(seed=2), OCTAVES[-1]: [0.0, 0.0, 0.0]})
    assert compare(tmp_path, timed_rows(times(seed=1)), after) == 3
    assert f"n={OCTAVES[-1]} has no time: a time of 0 s is implausible" in unwrapped(capsys)


COUNTS: dict[str, Any] = {"comparisons": 5, "flops": 7, "allocator_bytes": 9}


@pytest.mark.parametrize("machine", ["box", "other"])
@pytest.mark.parametrize(
    ("name", "message"), [("comparisons", "comparisons"), ("flops", "FLOPs"), ("allocator_bytes", "allocator bytes")]
)
def test_counts_that_the_run_lacks_are_ambiguous_and_named(tmp_path: Path, capsys, machine, name, message: str):
    after = timed_rows(times(seed=2), **{**COUNTS, name: None})
    assert compare(tmp_path, timed_rows(times(seed=1), **COUNTS), after, machine=machine) == 3
    assert f"{message} in the baseline but not in this run: n={OCTAVES[0]}, {OCTAVES[1]}" in unwrapped(capsys)


def test_counts_that_the_run_lacks_at_one_length_are_ambiguous(tmp_path: Path, capsys):
    after = counted()
    after[0] = row(OCTAVES[0], flops=1.0)
    assert compare(tmp_path, counted(), after) == 3
    assert f"comparisons in the baseline but not in this run: n={OCTAVES[0]} " in unwrapped(capsys)


def test_times_that_the_run_lacks_are_ambiguous(tmp_path: Path, capsys):
    after = [*timed_rows({n: times()[n] for n in OCTAVES[:-1]}, flops=5), row(OCTAVES[-1], flops=5)]
    assert compare(tmp_path, timed_rows(times(), flops=5), after) == 3
    assert f"times in the baseline but not in this run: n={OCTAVES[-1]}" in unwrapped(capsys)


def test_single_rounds_suffice_for_a_large_change(tmp_path: Path):
    before, after = (
        {n: rounds[:1] for n, rounds in times(seed=seed, factor=factor).items()} for seed, factor in ((1, 1), (2, 1.15))
    )
    assert compare(tmp_path, timed_rows(before), timed_rows(after)) == 1


def test_lengths_that_the_baseline_holds_and_the_run_lacks_are_ambiguous(tmp_path: Path, capsys):
    after = {n: rounds for n, rounds in times(seed=2).items() if n < OCTAVES[-2]}
    assert compare(tmp_path, timed_rows(times(seed=1)), timed_rows(after)) == 3
    assert f"not in this run: n={OCTAVES[-2]}, {OCTAVES[-1]}" in unwrapped(capsys)


def test_a_length_that_the_baseline_lacks_is_no_loss(tmp_path: Path):
    before = {n: rounds for n, rounds in times(seed=1).items() if n < OCTAVES[-1]}
    assert compare(tmp_path, timed_rows(before), timed_rows(times(seed=2))) == 0


def test_counts_at_a_length_that_the_run_lacks_are_ambiguous(tmp_path: Path):
    assert compare(tmp_path, counted(), counted()[:-1], machine="other") == 3


BUSY: dict[str, Any] = {"others_share": 0.4}


def test_a_slower_run_on_a_busy_machine_is_ambiguous_and_says_so(tmp_path: Path, capsys):
    after = timed_rows(times(seed=2, factor=1.5), **BUSY)
    assert compare(tmp_path, timed_rows(times(seed=1)), after) == 3
    printed = unwrapped(capsys)
    assert "significantly worse" in printed
    assert "but other programs took more than 10 % of CPU time in 27 of 27 timed cases" in printed
    assert "on an idle machine" in printed


def test_a_jump_and_a_timeout_on_a_busy_machine_are_ambiguous(tmp_path: Path):
    after = times(seed=2)
    after[OCTAVES[3]] = [3 * time for time in after[OCTAVES[3]]]
    assert compare(tmp_path / "jump", timed_rows(times(seed=1)), timed_rows(after, **BUSY)) == 3
    short = timed_rows({n: rounds for n, rounds in times(seed=2).items() if n < OCTAVES[-1]}, **BUSY)
    lost = row(OCTAVES[-1], status="timeout", reason="because")
    assert compare(tmp_path / "lost", timed_rows(times(seed=1)), [*short, lost]) == 3


def test_a_busy_machine_excuses_no_wrong_answer_and_no_count(tmp_path: Path):
    short = timed_rows({n: rounds for n, rounds in times(seed=2).items() if n < OCTAVES[-1]}, **BUSY)
    wrong = row(OCTAVES[-1], status="wrong", reason="because")
    assert compare(tmp_path / "wrong", timed_rows(times(seed=1)), [*short, wrong]) == 1
    assert compare(tmp_path / "counts", counted(time_s=1.0), counted(factor=2, time_s=1.0, **BUSY)) == 1


def test_the_same_speed_on_a_busy_machine_passes(tmp_path: Path):
    assert compare(tmp_path, timed_rows(times(seed=1)), timed_rows(times(seed=2), **BUSY)) == 0


def test_a_series_that_was_disturbed_alone_is_ambiguous(tmp_path: Path):
    quiet = [one for place in range(20) for one in timed_rows(times(seed=2), label=f"quiet {place}", others_share=0.0)]
    before = quiet + timed_rows(times(seed=1), label="disturbed")
    after = timed_rows(times(seed=2, factor=1.5), label="disturbed", **BUSY)
    assert compare(tmp_path / "busy", before, quiet + after) == 3
    after = timed_rows(times(seed=2, factor=1.5), label="disturbed", others_share=0.0)
    assert compare(tmp_path / "quiet", before, quiet + after) == 1


def one_slow_length(seed: int, *, n: int = OCTAVES[-1], disturbed: int = 3):
    """Times of which one length's are five times as slow, in that many rounds for the others' sake."""
    slow = {**times(seed=seed), n: [5 * time for time in times(seed=seed)[n]]}
    return [
        one.model_copy(update={"others_share": 0.6 if one.n == n and one.round < disturbed else 0.0})
        for one in timed_rows(slow)
    ]


def test_what_rests_on_one_length_of_a_busy_machine_is_ambiguous_and_says_so(tmp_path: Path, capsys):
    quiet = [one for place in range(4) for one in timed_rows(times(seed=2), label=f"quiet {place}", others_share=0.0)]
    assert compare(tmp_path, quiet + timed_rows(times(seed=1)), quiet + one_slow_length(2)) == 3
    printed = unwrapped(capsys)
    assert f"every round took more than 2 times as long as before at n={OCTAVES[-1]}" in printed
    assert f"time in 3 of 27 timed cases, at n={OCTAVES[-1]}, and the other cases alone do not show it" in printed
    assert "on an idle machine" in printed


def test_what_the_quiet_rounds_show_alone_is_a_failure(tmp_path: Path):
    quiet = [one for place in range(4) for one in timed_rows(times(seed=2), label=f"quiet {place}", others_share=0.0)]
    before = quiet + timed_rows(times(seed=1))
    slow = [one.model_copy(update={"others_share": 0.0}) for one in timed_rows(times(seed=2, factor=1.5))]
    slow[-1] = slow[-1].model_copy(update={"others_share": 0.6})
    assert compare(tmp_path / "one of many", before, quiet + slow) == 1
    assert compare(tmp_path / "none", before, quiet + one_slow_length(2, disturbed=0)) == 1


def test_a_baseline_of_a_few_disturbed_cases_is_recorded_with_a_warning(tmp_path: Path, capsys):
    rows = [*timed_rows(times(), label="quiet", others_share=0.0), *one_slow_length(1)]
    assert main([str(write_run(tmp_path / "run", rows)), "--baseline", str(tmp_path / "box.json"), "--update"]) == 0
    output = "recorded anyway: other programs took more than 10 % of CPU time in 3 of 54 timed cases"
    assert f"{output}, at n={OCTAVES[-1]}" in capsys.readouterr().err


def test_a_baseline_of_a_busy_machine_is_recorded_with_a_warning(tmp_path: Path, capsys):
    run = write_run(tmp_path / "run", timed_rows(times(), **BUSY))
    assert main([str(run), "--baseline", str(tmp_path / "box.json"), "--update"]) == 0
    assert "the machine was busy" in capsys.readouterr().err


OLD = {"name": "amd-epyc-2-cores-24-gb", "cpu": "AMD EPYC", "cores": 2, "memory_bytes": 24 * 2**30, "gpu": ""}
NEW = {**OLD, "name": "amd-epyc-2-cores-24-gb-x86-64-v4-0a1b2c", "architecture": "x86-64-v4"}


def run_on(folder: Path, machine: dict, rows) -> str:
    write_run(folder, rows)
    (folder / "run.json").write_text(json.dumps({"run": "a run", "machine": machine}))
    return str(folder)


@pytest.mark.parametrize("machine", [OLD, NEW])
def test_a_baseline_that_does_not_tell_its_processor_is_compared_by_counts(tmp_path: Path, capsys, machine: dict):
    slow = timed_rows(times(seed=2, factor=9), comparisons=5)
    before = run_on(tmp_path / "old", OLD, timed_rows(times(seed=1), comparisons=5))
    baselines = tmp_path / "baselines"
    baselines.mkdir()
    assert main([before, "--baseline", str(baselines), "--update"]) == 0
    assert [path.name for path in baselines.iterdir()] == ["amd-epyc-2-cores-24-gb.json"]
    assert main([run_on(tmp_path / "new", machine, slow), "--baseline", str(baselines)]) == 0
    assert "does not identify its machine, amd-epyc-2-cores-24-gb, well enough to compare" in unwrapped(capsys)
    more = timed_rows(times(seed=2), comparisons=6)
    assert main([run_on(tmp_path / "more", machine, more), "--baseline", str(baselines)]) == 1


def test_a_baseline_that_tells_its_processor_gets_a_file_of_its_own(tmp_path: Path):
    baselines = tmp_path / "baselines"
    baselines.mkdir()
    for name, machine in (("old", OLD), ("new", NEW)):
        run = run_on(tmp_path / name, machine, timed_rows(times(seed=1)))
        assert main([run, "--baseline", str(baselines), "--update"]) == 0
    assert sorted(path.stem for path in baselines.iterdir()) == [OLD["name"], NEW["name"]]
    slow = run_on(tmp_path / "slow", NEW, timed_rows(times(seed=2, factor=1.5)))
    assert main([slow, "--baseline", str(baselines)]) == 1


def test_the_published_run_and_baseline_can_still_be_read(capsys):
    reports = Path(__file__).parents[2] / "reports"
    for folder in (reports / "published").iterdir():
        assert main([str(folder), "--baseline", str(reports / "baseline")]) in (0, 1, 3)
        assert folder.name in capsys.readouterr().out


@pytest.mark.parametrize("name", ["comparisons", "flops", "allocator_bytes"])
@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.0009, 0), (1.002, 1), (0.998, 3)])
def test_counts_are_compared_to_a_thousandth(tmp_path: Path, name: str, factor: float, code: int):
    assert compare(tmp_path, counted(name), counted(name, factor)) == code


def test_counts_are_compared_on_another_machine_with_other_threads(tmp_path: Path):
    assert compare(tmp_path, counted(), counted(threads=8), machine="other") == 0
    assert compare(tmp_path / "2", counted(), counted(factor=2, threads=8), machine="other") == 1


def test_allocator_bytes_depend_on_threads(tmp_path: Path):
    before = [row(n, comparisons=n, allocator_bytes=n) for n in OCTAVES]
    after = [row(n, comparisons=n, allocator_bytes=2 * n, threads=8) for n in OCTAVES]
    assert compare(tmp_path, before, after, machine="other") == 0


def test_times_are_not_compared_on_another_machine(tmp_path: Path, capsys):
    slow = timed_rows(times(factor=9), comparisons=5)
    assert compare(tmp_path, timed_rows(times(), comparisons=5), slow, machine="other") == 0
    printed = capsys.readouterr().out
    assert "times not compared: the baseline is from another machine, box" in printed
    assert "times compared in 0 of 1 series" in printed


@pytest.mark.parametrize(("stream", "encoding"), [("/dev/full", "utf-8"), ("/dev/null", "ascii")])
def test_a_verdict_stands_where_it_cannot_be_printed(tmp_path: Path, stream: str, encoding: str):
    """A full disk, and a terminal without the letters that tables are made of."""
    run, path = write_run(tmp_path / "run", timed_rows(times(), label="·", comparisons=5)), tmp_path / "box.json"
    assert main([str(run), "--baseline", str(path), "--update"]) == 0
    command = [sys.executable, "-m", "harness.regress", str(run), "--baseline", str(path)]
    with Path(stream).open("w") as out:
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment, timeout=300, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("wanted", "coloured"), [({"FORCE_COLOR": "1"}, True), ({}, False)])
def test_colours_are_kept_for_who_asks_for_them(tmp_path: Path, wanted: dict[str, str], coloured: bool):
    """As a build's log does, which is no terminal."""
    run, path = write_run(tmp_path / "run", timed_rows(times(), comparisons=5)), tmp_path / "box.json"
    assert main([str(run), "--baseline", str(path), "--update"]) == 0
    command = [sys.executable, "-m", "harness.regress", str(run), "--baseline", str(path)]
    names = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TERM")
    environment = {name: value for name, value in os.environ.items() if name not in names} | wanted
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0
    assert ("\x1b[" in done.stdout) == coloured


def test_nothing_in_common_is_ambiguous(tmp_path: Path, capsys):
    assert compare(tmp_path, timed_rows(times()), timed_rows(times()), machine="other") == 3
    assert "nothing to compare" in capsys.readouterr().out


def test_a_series_without_baseline_is_ambiguous(tmp_path: Path, capsys):
    both = timed_rows(times(seed=1)) + timed_rows(times(seed=1), label="new one")
    assert compare(tmp_path, timed_rows(times(seed=2)), both) == 3
    assert "not in the baseline" in capsys.readouterr().out


def test_a_baseline_series_that_was_not_run_is_named(tmp_path: Path, capsys):
    both = timed_rows(times(seed=1)) + timed_rows(times(seed=1), label="left out")
    assert compare(tmp_path, both, timed_rows(times(seed=2))) == 3
    printed = capsys.readouterr().out
    assert "in the baseline but not in this run: left out" in printed
    assert "ambiguous: 1 pass, 0 fail, 1 ambiguous" in printed


def test_labels_are_printed_as_they_are(tmp_path: Path, capsys):
    rows = timed_rows(times(), label="[bold]x[/bold]")
    compare(tmp_path, rows, rows)
    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_a_folder_of_baselines_stands_for_the_machines_file(tmp_path: Path):
    run = write_run(tmp_path / "run", timed_rows(times()))
    (tmp_path / "all").mkdir()
    assert main([str(run), "--baseline", str(tmp_path / "all"), "--update"]) == 0
    assert load_baseline(tmp_path / "all" / "box.json").machine == "box"
    assert main([str(run), "--baseline", str(tmp_path / "all")]) == 0


def test_update_keeps_series_that_this_run_did_not_measure(tmp_path: Path):
    path = tmp_path / "box.json"
    for label, run in (("one", "first"), ("two", "second")):
        folder = write_run(tmp_path / run, timed_rows(times(), label=label), run=run)
        assert main([str(folder), "--baseline", str(path), "--update"]) == 0
    kept = load_baseline(path)
    assert {record.case.label: record.run for record in kept.series.values()} == {"one": "first", "two": "second"}
    (one, _) = sorted(kept.series.values(), key=lambda record: record.case.label)
    assert one.times_s == times()


def updated(tmp_path: Path, capsys, before, after) -> str:
    """What is said on standard error of an update of a baseline by a second run."""
    for name, rows in (("first", before), ("second", after)):
        assert main([str(write_run(tmp_path / name, rows)), "--baseline", str(tmp_path / "b.json"), "--update"]) == 0
        printed = capsys.readouterr().err
    return printed


def test_update_names_the_lengths_and_counts_that_are_dropped(tmp_path: Path, capsys):
    before = timed_rows(times(), comparisons=5, flops=7)
    after = timed_rows({n: times()[n] for n in OCTAVES[:2]}, comparisons=5)
    output = updated(tmp_path, capsys, before, after)
    lost = f"n={', '.join(map(str, OCTAVES[2:]))}; FLOPs at n={OCTAVES[0]}, {OCTAVES[1]}"
    assert output == f"planted: dropped from the baseline because this run lacks it: {lost}\n"
    (record,) = load_baseline(tmp_path / "b.json").series.values()
    assert record.lengths == set(OCTAVES[:2])


def test_update_says_nothing_where_nothing_is_dropped(tmp_path: Path, capsys):
    before = timed_rows({n: times()[n] for n in OCTAVES[:2]})
    assert updated(tmp_path, capsys, before, timed_rows(times(), comparisons=5)) == ""


def test_update_says_that_a_series_of_which_nothing_was_measured_stays(tmp_path: Path, capsys):
    before = timed_rows(times(), label="one") + timed_rows(times(), label="two")
    after = [*timed_rows(times(), label="one"), row(128, label="two", status="crash")]
    output = updated(tmp_path, capsys, before, after)
    assert output == "two: nothing was measured in this run, so its baseline entry is kept\n"
    assert len(load_baseline(tmp_path / "b.json").series) == 2


def test_help_says_what_update_drops(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "lengths missing from the run are dropped and reported" in " ".join(capsys.readouterr().out.split())


def test_update_leaves_the_baseline_of_another_machine_alone(tmp_path: Path, capsys):
    path = tmp_path / "box.json"
    main([str(write_run(tmp_path / "old", timed_rows(times()))), "--baseline", str(path), "--update"])
    before = path.read_text()
    other = write_run(tmp_path / "new", timed_rows(times()), machine="other")
    assert main([str(other), "--baseline", str(path), "--update"]) == 2
    assert "use another file" in capsys.readouterr().err
    assert path.read_text() == before


def unusable(tmp_path: Path, capsys, *, baseline: str | None = None, folder: Path | None = None) -> str:
    path = tmp_path / "baseline.json"
    if baseline is not None:
        path.write_text(baseline)
    folder = folder or write_run(tmp_path / "run", timed_rows(times()))
    assert main([str(folder), "--baseline", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    return printed.err


def test_a_missing_baseline_says_how_to_write_one(tmp_path: Path, capsys):
    assert "write one with --update" in unusable(tmp_path, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "schema is null"),
        ('{"schema": 9}', "schema is 9"),
        ('{"schema": 1, "machine": "box"}', "series: this key is missing"),
        ('{"schema": 1, "machine": "box", "series": {"k": {}}}', "series.k."),
        ("[" * 100_000, "is not valid JSON"),
        ("\0", "is not valid JSON"),
    ],
)
def test_a_baseline_of_another_form_is_refused(tmp_path: Path, capsys, text: str, message: str):
    assert message in unusable(tmp_path, capsys, baseline=text)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys):
    assert "no such folder" in unusable(tmp_path, capsys, folder=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "run.json" in unusable(tmp_path, capsys, folder=tmp_path / "empty")


@pytest.mark.parametrize("time_s", ["0.0", "-1.0", "Infinity", "NaN", "1e300"])
def test_a_time_in_a_baseline_that_is_none_is_refused(tmp_path: Path, capsys, time_s: str):
    path = tmp_path / "baseline.json"
    main([str(write_run(tmp_path / "old", timed_rows({1024: [123.0]}))), "--baseline", str(path), "--update"])
    capsys.readouterr()
    text = path.read_text().replace("123.0", time_s)
    assert "times_s.1024.0" in unusable(tmp_path, capsys, baseline=text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("memory_bytes", value) for value in ("Infinity", "-Infinity", "NaN", "-1", "1e308", "1" + "0" * 400)),
        *(("cores", value) for value in ("-1", "1" + "0" * 400)),
    ],
)
def test_a_number_of_a_machine_that_can_be_none_is_refused(tmp_path: Path, capsys, name: str, value: str):
    folder = write_run(tmp_path / "run", timed_rows(times()))
    machine = json.dumps({**OLD, name: "?"}).replace('"?"', value)
    (folder / "run.json").write_text(f'{{"run": "r", "machine": {machine}}}')
    assert f"run.json: machine.{name}: " in unusable(tmp_path, capsys, folder=folder)


@pytest.mark.parametrize("name", ["", "../x", "a\0b", "\ud800", "\x1b[31m\nx", "x" * 5000])
def test_a_machine_whose_name_can_name_no_file_has_none_in_a_folder(tmp_path: Path, capsys, name: str):
    folder = write_run(tmp_path / "run", timed_rows(times()), machine=name)
    for options in ([], ["--update"]):
        assert main([str(folder), "--baseline", str(tmp_path), *options]) == 2
        printed = capsys.readouterr()
        assert (len(printed.err.splitlines()), printed.out) == (1, "")
        assert "give the file itself" in printed.err


@pytest.mark.parametrize("field", ["label", "inputs", "reason", "run", "machine"])
def test_text_that_a_terminal_cannot_show_is_escaped(tmp_path: Path, capsys, field: str):
    """As edited by hand: a sweep writes none."""
    strange, path = "a\ud800\x1b[31m\n\0b", str(tmp_path / "b.json")
    rows = [one.model_dump(mode="json", by_alias=True) for one in timed_rows(times())]
    usual, facts = [dict(one) for one in rows], {"run": "r", "machine": {"name": "box"}}
    if field == "reason":
        rows[-1] |= {"status": "crash", "reason": strange}
    elif field == "run":
        facts["run"] = strange
    elif field == "machine":
        facts["machine"] = {"name": strange}
    else:
        rows = [{**one, field: strange, "heads": 4 + (n % 2)} for n, one in enumerate(rows)] + usual
    folder = write_run(tmp_path / "run", timed_rows(times()))
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (folder / "run.json").write_text(json.dumps(facts))
    assert main([str(folder), "--baseline", path, "--update"]) == 0
    assert main([str(folder), "--baseline", path]) in (0, 1, 3)
    printed = capsys.readouterr()
    assert printed.err.encode() == b""
    assert "\\ud800" in printed.out
    assert all(letter.isprintable() or letter == "\n" for letter in printed.out)


@pytest.mark.parametrize("name", ["rows.jsonl", "run.json"])
def test_a_file_of_a_run_that_is_a_folder_is_refused(tmp_path: Path, capsys, name: str):
    folder = write_run(tmp_path / "run", timed_rows(times()))
    (folder / name).unlink()
    (folder / name).mkdir()
    assert name in unusable(tmp_path, capsys, folder=folder)


def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path, capsys):
    assert "xxx" in unusable(tmp_path, capsys, folder=tmp_path / ("x" * 5000))
    run = write_run(tmp_path / "run", timed_rows(times()))
    assert main([str(run), "--baseline", "y" * 5000]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_without_rows_is_refused(tmp_path: Path, capsys):
    assert "it has no rows" in unusable(tmp_path, capsys, folder=write_run(tmp_path / "none", []))


def test_a_row_of_another_schema_is_refused(tmp_path: Path, capsys):
    folder = write_run(tmp_path / "run", timed_rows(times()))
    (folder / "rows.jsonl").write_text(json.dumps({"schema": 99}) + "\n")
    assert "schema 99" in unusable(tmp_path, capsys, folder=folder)


def test_a_run_that_measured_nothing_is_no_baseline(tmp_path: Path, capsys):
    folder = write_run(tmp_path / "run", [row(128, status="oom")])
    assert main([str(folder), "--baseline", str(tmp_path / "box.json"), "--update"]) == 2
    assert "nothing to record" in capsys.readouterr().err
    assert not (tmp_path / "box.json").exists()
