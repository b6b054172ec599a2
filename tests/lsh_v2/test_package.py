from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from lsh_v2.common.files import digest
from lsh_v2.package import MANIFEST, NAME, PROJECT, check_package, main, write_package


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "final_results/pipeline_results.json": "{}",
        "data/results/training_metrics.json": '{"loss_train": [1]}',
        "data/results/training.log": "said",
        "data/results/checkpoints/step-00000002/state.json": "{}",
        "data/results/checkpoints/step-00000002/model.safetensors": "weights",
        "data/results/checkpoints/step-00000001/model.safetensors": "old weights",
        "data/results/quick_benchmark/report.html": "<html>",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_results_and_source_are_in_the_zip_as_the_manifest_says(root: Path) -> None:
    manifest = write_package(root, root / NAME)
    with zipfile.ZipFile(root / NAME) as archive:
        assert json.loads(archive.read(MANIFEST)) == manifest
        assert set(archive.namelist()) == {MANIFEST, *manifest}
        assert archive.read("data/results/checkpoints/step-00000002/model.safetensors") == b"weights"
        assert (
            archive.read("source/lsh_v2/package.py")
            == Path(__file__).parents[2].joinpath("lsh_v2/package.py").read_bytes()
        )
    assert {
        "source/pyproject.toml",
        "source/conf.yml",
        "source/tasks/needles.py",
        "data/results/quick_benchmark/report.html",
    } <= set(manifest)
    assert "data/results/checkpoints/step-00000001/model.safetensors" not in manifest
    assert not [name for name in manifest if "__pycache__" in name]
    assert check_package(root / NAME) == []


def test_no_file_of_the_source_is_left_out(root: Path) -> None:
    folders = [PROJECT / name for name in ("attentions", "harness", "hyper_attn", "lsh_v2", "tasks", "transformer_vq")]
    files = {path for folder in folders for path in folder.rglob("*.*") if path.is_file() and path.suffix != ".pyc"}
    assert {f"source/{path.relative_to(PROJECT).as_posix()}" for path in files} <= set(write_package(root, root / NAME))


def test_results_that_are_not_those_that_were_recorded_are_refused(root: Path) -> None:
    """As of a training that was begun anew after the pipeline had ended."""
    recorded = root / "final_results" / "pipeline_results.json"
    metrics = root / "data" / "results" / "training_metrics.json"
    artifacts = {"data/results/training_metrics.json": digest(metrics)}
    recorded.write_text(json.dumps({"artifacts": artifacts}))
    write_package(root, root / NAME)
    before = (root / NAME).read_bytes()
    metrics.write_text("of another run")
    with pytest.raises(
        ValueError, match=r"training_metrics\.json has changed since final_results/pipeline_results\.json"
    ):
        write_package(root, root / NAME)
    metrics.unlink()
    with pytest.raises(ValueError, match=r"training_metrics\.json is missing since .*: run python -m lsh_v2\.pipeline"):
        write_package(root, root / NAME)
    for damaged, message in (
        ("[" * 100_000, "it is not valid JSON"),
        ('{"artifacts": 3}', "artifacts: 3 is not allowed"),
    ):
        recorded.write_text(damaged)
        with pytest.raises(ValueError, match=rf"pipeline_results\.json cannot be read: {message}"):
            write_package(root, root / NAME)
    assert (root / NAME).read_bytes() == before


def test_a_manifest_nested_without_end_is_no_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(MANIFEST, "[" * 100_000)
    assert main(["--check", str(tmp_path / "x.zip")]) == 2
    assert "x.zip is not a valid package: recursion limit exceeded" in capsys.readouterr().err


def test_the_same_files_give_the_same_bytes(root: Path) -> None:
    for name in ("one.zip", "two.zip"):
        write_package(root, root / name)
        (root / "data/results/training.log").touch()
    assert (root / "one.zip").read_bytes() == (root / "two.zip").read_bytes()


def test_a_changed_a_missing_and_a_foreign_file_are_named(root: Path) -> None:
    write_package(root, root / NAME)
    with zipfile.ZipFile(root / NAME) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents["data/results/training.log"] = b"else"
    del contents["source/tasks/needles.py"]
    contents["foreign"] = b""
    with zipfile.ZipFile(root / "other.zip", "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    assert check_package(root / "other.zip") == [
        "foreign is not in the manifest",
        "source/tasks/needles.py is missing",
        "data/results/training.log has a SHA-256 that differs from the manifest",
    ]
    assert main(["--check", str(root / "other.zip")]) == 1


def test_a_run_that_has_not_been_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no final_results/pipeline_results\.json: run"):
        write_package(tmp_path, tmp_path / NAME)
    assert not (tmp_path / NAME).exists()


def test_what_is_no_package_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.zip").write_text("no zip")
    assert main(["--check", str(tmp_path / "x.zip")]) == 2
    assert "is not a valid package" in capsys.readouterr().err
    assert main(["--check", str(tmp_path / "absent.zip")]) == 2


def test_a_zip_that_cannot_be_written_leaves_the_earlier_one(root: Path) -> None:
    (root / "file").touch()
    with pytest.raises(ValueError, match="cannot be written: Not a directory"):
        write_package(root, root / "file" / NAME)


def test_the_command_says_how_much_it_packed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root)]) == 0
    assert capsys.readouterr().out.endswith(f"MB: {root / NAME}\n")
