from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lsh_v2.common.files import digest
from lsh_v2.pipeline import __main__ as pipeline
from lsh_v2.pipeline import run as pipeline_run
from lsh_v2.pipeline.phases import Layout, Phase, phases_of
from lsh_v2.pipeline.run import PhaseFailed, PipelineError, excerpt, run_phases, write_results
from tests.lsh_v2.small import no_room


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path, quick=True)


def phase(layout: Layout, name: str, code: str = "", reads: tuple[Path, ...] = ()) -> Phase:
    """A phase that adds a line to what it makes, after `code`."""
    made = layout.results / name
    command = (sys.executable, "-c", f"{code}\nopen({str(made)!r}, 'a').write('x')\nprint('end of {name}')")
    return Phase(name, command, (made,), reads)


def runs(layout: Layout, name: str) -> int:
    """How often a phase has come to its end."""
    made = layout.results / name
    return len(made.read_text()) if made.exists() else 0


def test_finished_phases_are_passed_over(layout: Layout) -> None:
    phases = [phase(layout, "one"), phase(layout, "two")]
    assert [record.status for record in run_phases(phases, layout)] == ["done", "done"]
    assert [record.status for record in run_phases(phases, layout)] == ["already done", "already done"]
    assert [runs(layout, "one"), runs(layout, "two")] == [1, 1]


def test_a_removed_marker_and_a_missing_result_run_a_phase_again(layout: Layout) -> None:
    phases = [phase(layout, "one"), phase(layout, "two")]
    run_phases(phases, layout)
    layout.named("one", ".ok").unlink()
    (layout.results / "two").unlink()
    assert [record.status for record in run_phases(phases, layout)] == ["done", "done"]
    assert runs(layout, "one") == 2


def test_a_phase_whose_inputs_changed_runs_again(layout: Layout, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("a: 1")
    phases = [phase(layout, "one", reads=(config,))]
    run_phases(phases, layout)
    config.write_text("a: 2")
    assert run_phases(phases, layout)[0].status == "done"


def test_force_begins_anew(layout: Layout) -> None:
    phases = [phase(layout, "one"), phase(layout, "two")]
    run_phases(phases, layout)
    run_phases(phases, layout, force=True)
    assert [runs(layout, "one"), runs(layout, "two")] == [1, 1]


def test_a_failed_phase_is_said_with_its_traceback_and_is_where_the_next_start_goes_on(layout: Layout) -> None:
    broken = phase(layout, "two", "print('so far')\nraise OSError('the moon is full')")
    with pytest.raises(PhaseFailed, match="phase two failed") as caught:
        run_phases([phase(layout, "one"), broken, phase(layout, "three")], layout)
    assert [record.status for record in caught.value.records] == ["done", "failed"]
    last = caught.value.records[-1]
    assert last.excerpt.startswith("Traceback (most recent call last)")
    assert last.excerpt.endswith("OSError: the moon is full")
    assert "so far" in Path(last.log).read_text()
    whole = [phase(layout, "one"), phase(layout, "two"), phase(layout, "three")]
    assert [record.status for record in run_phases(whole, layout)] == ["already done", "done", "done"]


def test_a_phase_that_is_killed_says_so(layout: Layout) -> None:
    deadly = phase(layout, "one", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(PhaseFailed, match="killed by signal SIGKILL"):
        run_phases([deadly], layout)


def test_output_of_a_phase_is_on_the_screen_and_in_its_log(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    run_phases([phase(layout, "one", "import sys; sys.stderr.write('complaint\\n')")], layout)
    assert "  complaint\n" in capsys.readouterr().out
    assert layout.named("one", ".log").read_text() == "complaint\nend of one\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_killed_pipeline_takes_its_phase_along_and_the_next_one_finishes(layout: Layout) -> None:
    code = (
        "from pathlib import Path; import sys\n"
        "from lsh_v2.pipeline.phases import Layout, Phase\n"
        "from lsh_v2.pipeline.run import run_phases\n"
        f"layout = Layout(Path({str(layout.root)!r}), quick=True)\n"
        "sleeper = (sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(600)')\n"
        "run_phases([Phase('one', sleeper, (layout.results / 'one',))], layout)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as run:
        assert run.stdout is not None
        lines = [run.stdout.readline(), run.stdout.readline()]
        sleeper = psutil.Process(int(lines[1]))
        with pytest.raises(PipelineError, match="is in use by another pipeline"):
            run_phases([phase(layout, "one")], layout)
        run.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([sleeper], timeout=20)
    assert not alive or alive[0].status() == psutil.STATUS_ZOMBIE
    assert run_phases([phase(layout, "one")], layout)[0].status == "done"


def test_results_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    layout = Layout(tmp_path)
    with pytest.raises(PipelineError, match=r"data.* cannot be written: (File exists|Not a directory)"):
        run_phases([phase(layout, "one")], layout)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"training": True, "benchmark": True}, ["model", "data", "training", "profile", "benchmark"]),
        ({"training": False, "benchmark": True}, ["model", "data", "benchmark"]),
        ({"training": True, "benchmark": False}, ["model", "data", "training", "profile"]),
        ({"training": False, "benchmark": False}, ["model", "data"]),
    ],
)
def test_phases_are_those_asked_for(layout: Layout, asked: dict[str, bool], names: list[str]) -> None:
    assert [one.name for one in phases_of(layout, **asked)] == names


def test_the_benchmark_times_a_checkpoint_where_there_is_one(layout: Layout) -> None:
    def command() -> str:
        return " ".join(phases_of(layout, training=False, benchmark=True)[-1].command)

    assert "checkpoint" not in command()
    (layout.training / "checkpoints").mkdir(parents=True)
    assert f"checkpoint={layout.training}" in command()


def test_quick_and_full_results_do_not_meet(tmp_path: Path) -> None:
    layouts = [Layout(tmp_path, quick=quick) for quick in (True, False)]
    quick, full = ([p for one in phases_of(lay, training=True, benchmark=True) for p in one.makes] for lay in layouts)
    assert not set(quick) & set(full)
    assert not [path for path in quick for other in full if path.is_relative_to(other) or other.is_relative_to(path)]


def test_results_that_cannot_be_recorded_are_said_and_the_phases_stay_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path, quick=True)
    monkeypatch.setattr(pipeline, "phases_of", lambda *_, **__: [phase(layout, "one")])
    with monkeypatch.context() as late:  # as if that had come about while the phases ran
        late.setattr(pipeline, "require_possible", lambda *_, **__: None)
        (tmp_path / "final_results").touch()
        assert pipeline.main(["--quick", "--root", str(tmp_path)]) == 2
        assert "final_results cannot be written: File exists" in capsys.readouterr().err
        (tmp_path / "final_results").unlink()
        layout.training.mkdir()
        (layout.training / "training_metrics.json").write_text('{"torn')
        assert pipeline.main(["--quick", "--root", str(tmp_path)]) == 2
        assert "training_metrics.json cannot be read: " in capsys.readouterr().err
        (layout.training / "training_metrics.json").unlink()
    assert pipeline.main(["--quick", "--root", str(tmp_path)]) == 0
    assert runs(layout, "one") == 1
    assert json.loads(layout.manifest.read_text())["phases"][0]["status"] == "already done"


def test_a_phase_whose_source_changed_runs_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    made = layout.results / "made"
    one = Phase("one", (sys.executable, "-m", "lsh_v2.model.rotary"), (made,))
    run_phases([one], layout)
    with monkeypatch.context() as edited:
        edited.setattr(pipeline_run, "source_hash", lambda module: f"edited {module}")
        assert run_phases([one], layout)[0].status == "done"


def test_a_phase_whose_results_changed_or_are_missing_runs_again(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of them, not the first alone."""
    first, second = layout.results / "first", layout.results / "second"
    code = f"open({str(first)!r}, 'w').write('1'); open({str(second)!r}, 'w').write('2')"
    one = Phase("one", (sys.executable, "-c", code), (first, second))
    run_phases([one], layout)
    for harm in (lambda: second.write_text("of another run"), second.unlink, first.unlink):
        harm()
        capsys.readouterr()
        assert [record.status for record in run_phases([one], layout)] == ["done"]
        assert "phase one: its results have changed since it finished; running it again" in capsys.readouterr().out
        assert (first.read_text(), second.read_text()) == ("1", "2")
    assert run_phases([one], layout)[0].status == "already done"


def test_phases_know_the_modules_and_the_tokenizer_that_their_configurations_name(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No import leads to them, so the source of the commands does not cover them."""
    (tmp_path / "quick.yml").write_text(TRAINING + f"tokenizer: {tmp_path / 'own'}\n")
    (tmp_path / "long_arena_quick.yml").write_text(ARENA)
    monkeypatch.setattr("lsh_v2.pipeline.phases.HERE", tmp_path)
    found = {one.name: one for one in phases_of(layout, training=True, benchmark=True)}
    for name in ("model", "data", "training", "profile"):
        assert found[name].modules == ("attentions.flash", "tasks.synthetic")
    for name in ("model", "data", "training"):
        assert tmp_path / "own" in found[name].reads
    assert "attentions.flash" in found["benchmark"].modules
    for one in found.values():
        before = pipeline_run._identity(one)
        with monkeypatch.context() as edited:
            edited.setattr(pipeline_run, "source_hash", lambda *modules: " ".join(modules))
            assert pipeline_run._sources(one) == [" ".join((one.command[2], *one.modules))]
            assert pipeline_run._identity(one) != before


def test_files_that_are_not_made_again_are_read_before_the_phases_run(
    layout: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the phases begin anew: those of a benchmark that is left out stay."""
    monkeypatch.setattr(pipeline, "run_phases", lambda *_, **__: pytest.fail("a phase ran"))
    path = layout.benchmark / "benchmark_summary.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"costs": 5, "scaling": {}}')
    assert pipeline.main(["--quick", "--no-benchmark", "--force", "--root", str(layout.root)]) == 2
    assert "benchmark_summary.json cannot be read: costs: 5 is not allowed; " in capsys.readouterr().err


@pytest.mark.parametrize(
    "torn", ["", "[]", '{"of"', "{}", "[" * 100_000, '{"of": "x", "made": {}, "seconds": "y"}', '{"of": 1}']
)
def test_a_marker_that_is_no_marker_is_none(layout: Layout, torn: str) -> None:
    run_phases([phase(layout, "one")], layout)
    layout.named("one", ".ok").write_text(torn)
    assert run_phases([phase(layout, "one")], layout)[0].status == "done"


def test_a_full_disk_stops_a_phase_and_the_next_start_goes_on_with_it(layout: Layout) -> None:
    """Its log grows beyond the room there is."""
    chatter = phase(layout, "two", "print('x' * 10_000)")
    with no_room(5_000), pytest.raises(PipelineError, match="cannot be written: File too large; finished phases"):
        run_phases([phase(layout, "one"), chatter], layout)
    assert [record.status for record in run_phases([phase(layout, "one"), chatter], layout)] == ["already done", "done"]
    assert runs(layout, "one") == 1


def test_an_excerpt_is_the_last_traceback_or_the_last_lines() -> None:
    trace = "Traceback (most recent call last):\n  File\nKeyError: 1"
    assert excerpt(f"a\n{trace}\nb\n{trace}\n") == trace
    assert excerpt("\n".join(map(str, range(100)))) == "\n".join(map(str, range(80, 100)))


def test_the_manifest_names_every_artifact_with_its_hash(layout: Layout) -> None:
    for path in ("quick_training/checkpoints/step-00000001/old", "quick_training/checkpoints/step-00000002/state.json"):
        (layout.results / path).parent.mkdir(parents=True)
        (layout.results / path).write_text(path)
    others = (
        "quick_data.log",
        "quick_training/tokenizer/tokenizer.json",
        "quick_training/component_report/report.html",
    )
    for path in others:
        (layout.results / path).parent.mkdir(exist_ok=True)
        (layout.results / path).write_text("said")
    (layout.results / "quick_data.ok").write_text("of the machinery")
    found = json.loads(write_results(layout, [], []).read_text())["artifacts"]
    names = {f"data/results/{path}" for path in ("quick_training/checkpoints/step-00000002/state.json", *others)}
    assert found == {name: digest(layout.root / name) for name in names}


TRAINING = """
model_size: null
model: {d_model: 32, n_heads: 2, n_kv_heads: 1, n_layers: 2, weight_tied_layers: 1, attention: flash}
task_settings: {quick: true}
pack: false
seq_length: 256
batch_size: 4
num_epochs: 2
num_train_sequences: 200
num_eval_sequences: 4
num_answers: 6
max_answer_tokens: 4
profile_components: false
checkpoint_every: 5
device: cpu
"""
ARENA = """
attentions: [flash]
sequence_lengths: [64, 128]
num_samples_per_length: 2
max_memory_gb: 8.0
timeout_seconds: 120
model: {d_model: 32, n_heads: 2, n_kv_heads: 1, n_layers: 2, weight_tied_layers: 1, feed_forward_dim: 32}
training_timeout_seconds: 60
device: cpu
threads: 1
"""


def wait_for_the_middle(name: str, layout: Layout) -> None:
    """Of a phase that has just begun; the data's takes less than a second."""
    steps = layout.training / "steps.jsonl"
    while name == "training" and not (steps.exists() and len(steps.read_text().splitlines()) > 20):
        time.sleep(0.01)
    if name != "training":
        time.sleep(0.1 if name == "data" else 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_pipeline_killed_in_each_phase_and_started_again_finishes(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("quick.yml", TRAINING), ("long_arena_quick.yml", ARENA)):
        (tmp_path / name).write_text(text)
    start = (
        "import sys; from pathlib import Path; import lsh_v2.pipeline.phases as phases\n"
        f"phases.HERE = Path({str(tmp_path)!r})\n"
        f"from lsh_v2.pipeline import main; sys.exit(main(['--quick', '--root', {str(layout.root)!r}]))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONUNBUFFERED": "1"}
    for name in ("model", "data", "training", "profile", "benchmark"):
        with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, env=environment, text=True) as run:
            assert run.stdout is not None
            assert any(line.startswith(f"phase {name}: python") for line in run.stdout)
            wait_for_the_middle(name, layout)
            run.send_signal(signal.SIGKILL)
        assert not layout.named(name, ".ok").exists()
    monkeypatch.setattr("lsh_v2.pipeline.phases.HERE", tmp_path)
    assert pipeline.main(["--quick", "--root", str(layout.root)]) == 0
    output = capsys.readouterr().out
    assert "success flags" in output
    results = json.loads(layout.manifest.read_text())
    assert [one["name"] for one in results["phases"]] == ["model", "data", "training", "profile", "benchmark"]
    assert "data/results/quick_benchmark/benchmark_summary.json" in results["artifacts"]
