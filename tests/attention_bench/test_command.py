"""The console command, as the project installs it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from attention_bench import __version__
from attention_bench.__main__ import COMMANDS, main
from attentions.common import commands
from harness.config.model import default_configuration, load_config

ROOT = Path(__file__).parents[2]
PACKAGES = ("attention_bench", "attentions", "bmrt", "harness", "lsh_bitnet", "lsh_v2", "models", "tasks")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attention_bench", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)


def test_init_writes_the_commented_default_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yml"
    assert main(["init", str(path)]) == 0
    assert path.read_text() == (ROOT / "conf.yml").read_text() == default_configuration().read_text()
    assert load_config(path) == load_config(ROOT / "conf.yml")
    assert f"attention-bench sweep {path}" in capsys.readouterr().out


def test_init_keeps_a_file_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "conf.yml"
    path.write_text("mine")
    assert main(["init", str(path)]) == 2
    assert path.read_text() == "mine"
    assert capsys.readouterr().err == f"{path} already exists; give another file\n"


def test_init_says_why_a_file_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "absent" / "conf.yml")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["swep"]])
def test_an_unknown_command_is_answered_with_the_list(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert all(name in output.err for name in ("init", *COMMANDS))
    assert ("'swep' is not a command" if arguments else "a command is required") in output.err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("init", *COMMANDS))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"attention-bench {__version__}\n"


def test_a_command_works_from_any_folder_and_names_itself(tmp_path: Path) -> None:
    changed = {"backends": ["flash"], "lengths": [64], "inputs": "gaussian", "also": [], "expect": {}}
    conf = yaml.safe_load((ROOT / "conf.yml").read_text()) | changed
    (tmp_path / "conf.yml").write_text(yaml.safe_dump(conf))
    planned = run(tmp_path, "sweep", "conf.yml", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "flash: attention" in planned.stdout
    refused = run(tmp_path, "sweep")
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage: attention-bench sweep ")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sweep", ["absent.yml"]),
        ("report", ["absent"]),
        ("regress", ["absent", "--baseline", "absent.json"]),
        ("profile", ["absent.yml"]),
        ("contract", ["flsh"]),
        ("inputs", ["--inputs", "absent"]),
    ],
)
def test_a_message_starts_with_the_command_that_was_typed(
    name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "_called", [f"attention-bench {name}"])
    module = COMMANDS[name][0]
    package = importlib.import_module(module)
    command = importlib.import_module(f"{module}.__main__") if hasattr(package, "__path__") else package
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"attention-bench {name}: ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_holds_everything_that_runs(tmp_path: Path) -> None:
    """Installed where no checkout is: weights, configurations, templates and C++ sources travel along."""
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
    subprocess.run([*wheel, "--wheel-dir", str(tmp_path)], check=True)
    (built,) = tmp_path.glob("*.whl")
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(built)]
    subprocess.run(install, check=True)
    for kind in ("*.py", "*.cpp", "*.hpp", "*.yml", "*.yaml", "*.html", "*.css", "*.js", "*.safetensors"):
        names = {path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob(kind)}
        missing = [str(name) for name in names if not (site / name).exists()]
        assert not missing, missing
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "attention_bench"]
    small = ["backends=[flash, bit_sampling]", "lengths=[64, 128]", "rounds=1", "also=[]", "expect={}"]
    options = [part for one in small for part in ("--set", one)]
    named = ["sweep", "conf", "--dry-run", *options]
    for arguments in (["init"], ["sweep", "conf.yml", "--out", "run", *options], ["report", "run"], named):
        called = [*command, *arguments]
        done = subprocess.run(called, check=False, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "bit_sampling" in (work / "run" / "report.md").read_text()
    models = "import bmrt.cache.engine as engine; print(engine.load_model('tiny-bitnet').config.name_or_path)"
    called = [sys.executable, "-P", "-c", models]
    done = subprocess.run(called, check=False, cwd=work, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(site / "models" / "tiny-bitnet"), done.stderr


def test_a_signal_while_a_command_is_still_imported_ends_it_with_one_line(tmp_path: Path) -> None:
    """From the console's first line on, before the module of the command has been looked at."""
    code = (
        "import os, runpy, signal, sys, attention_bench.__main__ as m;"
        "runpy.run_module = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT);"
        "sys.argv[1:] = ['sweep']; sys.exit(m.console())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")
