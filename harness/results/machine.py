"""Describe this machine: its hardware, the installed libraries, and the state of the source.

The machine's name is a slug of what determines its speed, so that rows from the same kind of machine can be compared.
Processors with the same name can differ (a virtual one is called "AMD EPYC" whatever the hardware), so the name
includes the architecture level and ends in a hash of everything known about the processor.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field

from harness.measure.cpu_load import cores

ROOT = Path(__file__).parents[2]
MODEL = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant", "CPU revision")
MOST_CORES, LARGEST_BYTES = 2**31 - 1, 1e300
PACKAGES = ("torch", "numpy", "einops", "triton", "flash-attn")  # those that can change a measurement
CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu{core}/cache")
# Instruction sets by which numerical code chooses its kernels.
FEATURES = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512", "avx_vnni", "amx", "sve", "asimd", "bf16", "i8mm")
# What each x86-64 level requires, as spelt in /proc/cpuinfo; each level includes the one before.
LEVELS = {
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
    "x86-64-v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


class Machine(BaseModel):
    """What measurements depend on. `gpu` is "" if there is none. Runs of older versions have only the first six fields.

    `architecture` is for example x86-64-v4; `model` holds the vendor's numbers (vendor, family, model, stepping),
    `features` the instruction sets, `caches` the cache sizes of one core, and `cpu_capability` what torch's own kernels
    use.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    cpu: str = ""
    cores: int = Field(default=0, ge=0, le=MOST_CORES)
    memory_bytes: float = Field(default=0, ge=0, le=LARGEST_BYTES, allow_inf_nan=False)
    gpu: str = ""
    os: str = ""
    architecture: str = ""
    model: str = ""
    features: str = ""
    caches: str = ""
    cpu_capability: str = ""

    @property
    def common_name(self) -> str:
        """The name shared by all machines whose processor has the same name; "" if unknown."""
        return common_name(self.gpu, self.cpu, self.cores, self.memory_bytes) if self.cpu else ""


def describe(gpu: str) -> Machine:
    """Describe this machine; `gpu` is the name of the GPU in use, "" for none."""
    import torch  # imported here because only measuring needs it

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
    return Machine(
        name=name,
        cpu=cpu,
        cores=count,
        memory_bytes=memory_bytes,
        gpu=gpu,
        os=platform.platform(terse=True),
        **facts,
    )


def common_name(gpu: str, cpu: str, count: int, memory_bytes: float) -> str:
    """Return the older form of machine name, which contains only the processor's name."""
    parts = (gpu, cpu, f"{count} cores", f"{round(memory_bytes / 2**30)} GB")
    return "-".join(slug for part in parts if (slug := _slug(part)))


def why_other(here: Machine, name: str) -> str:
    """Return why a run measured on the machine `name` cannot continue here, to end a sentence; "" if it can."""
    if name == here.name:
        return ""
    if name == common_name(here.gpu, here.cpu, here.cores, here.memory_bytes):
        return f"does not say which {here.cpu} it was measured on, so it may be another one; measure in a new folder"
    return f"was measured on {name}; this machine is {here.name}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of each installed library that can change a measurement."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> tuple[str, bool]:
    """Return the commit of the source and whether the working tree is dirty; ("", False) outside a git repository."""
    found = _git("rev-parse", "HEAD")
    return found, bool(found and _git("status", "--porcelain"))


def _processor() -> dict[str, str]:
    """Return Linux's description of the first processor; empty on other systems."""
    try:
        first = CPUINFO.read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _architecture(flags: set[str]) -> str:
    """Return the highest x86-64 level that the CPU flags satisfy; on other architectures, the architecture's name."""
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
    """List level, type and size of each cache of one of the cores in use."""
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
    """Return the processor's name."""
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
    """Return a command's output; "" if it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
