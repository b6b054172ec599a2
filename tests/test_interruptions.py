"""Ctrl-C and SIGTERM: how commands end, and what is left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attentions.common.stopping import SIGNALS
from tests import preloaded
from tests.option_walk import commands

ROOT = Path(__file__).parents[1]
SAID = "interrupted\n"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)


def test_every_command_ends_with_one_line_at_its_first_import_when_it_reads_its_options_and_when_it_works() -> None:
    done = preloaded.run("-m", "tests.interruption_walk", "--calls", "1", cwd=ROOT)
    assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr
    assert f"{6 * len(commands())} interruptions" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_command_ends_with_one_line_after_some_work() -> None:
    command = [sys.executable, "-m", "tests.interruption_walk", "--calls", "100", "3000", "100000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr


def test_a_package_reaches_its_commands_first_line_without_a_heavy_import() -> None:
    packages = sorted({command.rpartition(".")[0] for command in commands()})
    program = (
        "import importlib, signal, sys; before = set(sys.modules)\n"
        f"for name in {packages!r}:\n    importlib.import_module(name)\n"
        "import attentions.common.stopping\n"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(*tops, 'argparse' in sys.modules, 'asyncio' in sys.modules)\n"
        "print(signal.getsignal(2) is signal.default_int_handler, signal.getsignal(15) is signal.SIG_DFL)"
    )
    done = run("-c", program)
    own = {name.partition(".")[0] for name in packages}
    imported, left_alone = done.stdout.splitlines()
    assert (set(imported.split()), left_alone) == ({*own, "lazy_loader", "False"}, "True True"), done.stderr


BEGINNING = """
import os, signal, subprocess, sys
from attentions.common.stopping import exit_on_signal, run_interruptible
exit_on_signal()
number = int(sys.argv[1])
def tell():
    os.kill(os.getpid(), number)
def work():
    while True:
        for i in range(10**6):
            pass
"""
ASKS = (
    "import signal as s; print(s.getsignal(2) is s.default_int_handler, s.getsignal(15) is s.SIG_DFL, "
    "s.pthread_sigmask(s.SIG_BLOCK, ()))"
)
# What `main` does -> the program, its exit status, what it prints, what it says on stderr.
PROGRAMS = {
    "is interrupted": ("def main(): tell(); work()", 130, "", SAID),
    "says itself what is kept": (
        "def main():\n try:\n  tell(); work()\n except KeyboardInterrupt:\n  tell(); print('kept'); return 130",
        130,
        "kept\n",
        "",
    ),
    "leaves a finaliser that swallows it": (
        "class A:\n def __del__(self): tell(); print('finalised')\ndef main(): A(); work()",
        130,
        "",
        SAID,
    ),
    "imports": (
        "sys.path.insert(0, sys.argv[2])\ndef main(): import whole; print(whole.made); work()",
        130,
        "1\n",
        SAID,
    ),
    "hangs in an import": (
        "sys.path.insert(0, sys.argv[2])\ndef main(): import hanging",
        130,
        "",
        SAID,
    ),
    "waits for a thread": (
        "def main():\n import threading, time\n threading.Thread(target=time.sleep, args=(600,)).start()\n"
        " threading.Timer(1, lambda: os.kill(os.getpid(), number)).start(); tell(); work()",
        130,
        "",
        SAID,
    ),
    "is a guest in a thread": (
        "import threading, time\nsys.exit = lambda status: None\ndef main(): print('worked'); return 0\n"
        "kept = run_interruptible\ndef run_interruptible(main):\n"
        " thread = threading.Thread(target=kept, args=(main,)); thread.start(); thread.join()",
        0,
        "worked\n",
        "",
    ),
    "has ended": ("def main(): import atexit; atexit.register(tell); return 3", 3, "", ""),
    "ends by itself": ("def main(): import atexit; atexit.register(tell); sys.exit(2)", 2, "", ""),
    "forks": (
        "def main():\n child = os.fork()\n if child == 0:\n  tell(); os.kill(os.getpid(), 15); work()\n"
        " print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
        0,
        "143\n",
        "",
    ),
    "starts a program": (
        f"def main(): subprocess.run([sys.executable, '-c', {ASKS!r}])",
        0,
        "True True set()\n",
        "",
    ),
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("does", PROGRAMS)
def test_a_command_that(does: str, number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "whole.py").write_text(
        "import sys\nsys.modules['__main__'].tell()\nfor i in range(10**5):\n    pass\nmade = 1\n"
    )
    (tmp_path / "hanging.py").write_text("import sys, time\nsys.modules['__main__'].tell()\ntime.sleep(600)\n")
    program, status, printed, output = PROGRAMS[does]
    done = run("-c", f"{BEGINNING}\n{program}\nsys.exit(run_interruptible(main))", str(int(number)), str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (status, printed, output)


@pytest.mark.parametrize("package", ["attentions", "bmrt", "harness.inputs", "harness.report", "lsh_bitnet", "lsh_v2"])
def test_a_package_that_imports_on_demand_has_its_names_and_modules(package: str) -> None:
    program = (
        f"import pkgutil, {package} as p\n"
        "assert set(p.__all__) <= set(dir(p))\n"
        "modules = {m.name for m in pkgutil.iter_modules(p.__path__)} - {'__main__', *p.__all__}\n"
        "print([m for m in sorted(modules) if getattr(p, m).__name__ != f'{p.__name__}.{m}'])\n"
        "print(hasattr(p, 'no_such_name'))"
    )
    done = run("-c", program)
    assert (done.stdout, done.stderr) == ("[]\nFalse\n", "")
