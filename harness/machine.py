"""This machine: what it is, what is installed on it, and what state the source is in.

The name is a slug of what decides speed, so that rows of one kind of machine can be compared.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from harness.load import cores

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "numpy", "einops", "triton", "flash-attn")  # what can change a measurement


@dataclass(frozen=True)
class Machine:
    """What measurements depend on. `gpu` is empty without one."""

    name: str
    cpu: str
    cores: int
    memory_bytes: int
    gpu: str
    os: str

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return asdict(self)


def describe(gpu: str) -> Machine:
    """This machine, given the name of the GPU that is used, empty for none."""
    cpu, count, memory_bytes = _cpu(), len(cores()), psutil.virtual_memory().total
    parts = (gpu, cpu, f"{count} cores", f"{round(memory_bytes / 2**30)} GB")
    name = "-".join(slug for part in parts if (slug := _slug(part)))
    return Machine(name, cpu, count, memory_bytes, gpu, platform.platform(terse=True))


def versions() -> dict[str, str]:
    """Version of Python and of each installed library that can change a measurement."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> tuple[str, bool]:
    """The commit of the source and whether files differ from it; ("", False) where git does not know."""
    found = _git("rev-parse", "HEAD")
    return found, bool(found and _git("status", "--porcelain"))


def _cpu() -> str:
    """The processor's own name for itself."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return found[1].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _slug(text: str) -> str:
    text = re.sub(r"\((R|TM)\)|CPU|Processor|@.*", " ", text, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _git(*arguments: str) -> str:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str:
    """What a command prints; empty where it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
