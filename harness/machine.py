"""This machine: what it is, what is installed on it, and what state the source is in.

The name is a slug of what decides speed, so that rows of one kind of machine can be compared. Processors of one name
differ (a virtual one is called "AMD EPYC" whatever lies below it), so the name holds the level of the architecture and
ends in a hash of all that is known of the processor.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
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
MODEL = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant", "CPU revision")
PACKAGES = ("torch", "numpy", "einops", "triton", "flash-attn")  # what can change a measurement


CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu{core}/cache")
# Instructions that numerical code chooses its kernels by.
FEATURES = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512", "avx_vnni", "amx", "sve", "asimd", "bf16", "i8mm")
# What the levels of x86-64 ask for, as /proc/cpuinfo spells it; each has that of the one before, too.
LEVELS = {
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
    "x86-64-v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


@dataclass(frozen=True)
class Machine:
    """What measurements depend on. `gpu` is empty without one.

    `architecture` is such as x86-64-v4, `model` the maker's numbers (vendor, family, model, stepping), `features` the
    instruction sets, `caches` the sizes of one core's, `cpu_capability` what torch's own kernels use.
    """

    name: str
    cpu: str
    cores: int
    memory_bytes: int
    gpu: str
    os: str
    architecture: str
    model: str
    features: str
    caches: str
    cpu_capability: str

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return asdict(self)


def describe(gpu: str) -> Machine:
    """This machine, given the name of the GPU that is used, empty for none."""
    import torch  # here, since only who measures asks for it

    processor = _processor()
    cpu, count, memory_bytes = _cpu(processor), len(cores()), psutil.virtual_memory().total
    flags = set((processor.get("flags") or processor.get("Features", "")).split())
    facts = {
        "architecture": _architecture(flags),
        "model": ", ".join(f"{key} {processor[key]}" for key in MODEL if key in processor),
        "features": " ".join(sorted(flag for flag in flags if any(part in flag for part in FEATURES))),
        "caches": _caches(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    digest = hashlib.sha256(json.dumps([cpu, facts]).encode()).hexdigest()[:6]
    name = f"{common_name(gpu, cpu, count, memory_bytes)}-{_slug(facts['architecture'])}-{digest}"
    return Machine(name, cpu, count, memory_bytes, gpu, platform.platform(terse=True), **facts)


def common_name(gpu: str, cpu: str, count: int, memory_bytes: float) -> str:
    """What machines were called before they were told apart by more than the name of their processor."""
    parts = (gpu, cpu, f"{count} cores", f"{round(memory_bytes / 2**30)} GB")
    return "-".join(slug for part in parts if (slug := _slug(part)))


def why_other(here: Machine, name: str) -> str:
    """Why what was measured on the machine of that name cannot go on here, to end a sentence; empty if it can."""
    if name == here.name:
        return ""
    if name == common_name(here.gpu, here.cpu, here.cores, here.memory_bytes):
        return f"does not say which {here.cpu} it was measured on, so it may be another one; measure in a new folder"
    return f"was measured on {name}; this machine is {here.name}"


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


def _processor() -> dict[str, str]:
    """What Linux tells of the first processor; empty elsewhere."""
    try:
        first = CPUINFO.read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _architecture(flags: set[str]) -> str:
    """The highest level of x86-64 whose every part is there; elsewhere the name of the architecture."""
    level = platform.machine()
    if level not in ("x86_64", "AMD64"):
        return level
    level = "x86-64"
    for name, wanted in LEVELS.items():
        if not wanted <= flags:
            break
        level = name
    return level


def _caches() -> str:
    """Level, type and size of each cache of one of the cores in use."""
    folder = Path(str(CACHES).format(core=cores()[0]))
    found = []
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        found.append(f"L{level} {kind.lower()} {size}")
    return ", ".join(found)


def _cpu(processor: dict[str, str]) -> str:
    """The processor's own name for itself."""
    if name := processor.get("model name"):
        return name
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
