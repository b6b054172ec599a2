"""Everything that a result needs in one zip: source, configuration, metrics, logs and weights, with their hashes.

    python -m lsh_v2.package                                        # writes lsh_v2_complete_package.zip
    python -m lsh_v2.package --check lsh_v2_complete_package.zip    # compares every file with the manifest

`manifest.json` in the zip lists each file with its size and SHA-256. The same files give the same zip, byte for byte.
"""

from __future__ import annotations

from attentions.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the imports that take long

import argparse
import hashlib
import json
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from pydantic_core import from_json

from harness.command_line import one_line
from harness.config_source import LONGEST_PATH, shortened
from lsh_v2.endings import end
from lsh_v2.files import digest, read_object
from lsh_v2.pipeline_phases import Layout
from lsh_v2.pipeline_run import artifacts
from lsh_v2.schemas import PipelineResults

NAME = "lsh_v2_complete_package.zip"
MANIFEST = "manifest.json"
PROJECT = Path(__file__).parents[1]
FOLDERS = ("attentions", "docs", "harness", "hyper_attn", "lsh_v2", "tasks", "transformer_vq")
FILES = ("LICENSE", "Makefile", "README.md", "conf.yml", "constraints.txt", "environment.yml", "pyproject.toml")
SOURCE = {".py", ".yml", ".md", ".cpp", ".hpp", ".css", ".js", ".html", ".svg"}
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can name; times would make each zip another


def write_package(root: Path, out: Path) -> dict[str, Any]:
    """Write the zip, complete or as it was; returns the manifest.

    Raises ValueError where there are no results yet, where they are not those that the pipeline recorded last, and
    where the zip cannot be written.
    """
    entries = dict(sorted(_entries(root)))
    if not any(name.startswith("final_results/") for name in entries):
        raise ValueError(
            f"{shortened(str(root), LONGEST_PATH)} holds no final_results/pipeline_results.json: "
            "run python -m lsh_v2.pipeline first"
        )
    manifest = {name: {"bytes": path.stat().st_size, "sha256": digest(path)} for name, path in entries.items()}
    recorded = read_object(Layout(root).manifest, PipelineResults) or PipelineResults()
    for name, sha256 in recorded.artifacts.items():
        if name not in manifest or manifest[name]["sha256"] != sha256:
            what = "has changed" if name in manifest else "is missing"
            raise ValueError(
                f"{shortened(str(root / name), LONGEST_PATH)} {what} since final_results/pipeline_results.json was "
                "written: run python -m lsh_v2.pipeline again"
            )
    try:
        with NamedTemporaryFile(dir=out.absolute().parent, delete=False) as part:
            try:
                with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                    archive.writestr(_info(MANIFEST), json.dumps(manifest, indent=1) + "\n")
                    for name, path in entries.items():
                        with archive.open(_info(name), "w", force_zip64=True) as target, path.open("rb") as source:
                            shutil.copyfileobj(source, target)
                Path(part.name).replace(out)
            except BaseException:
                Path(part.name).unlink()
                raise
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror}") from error
    return manifest


def check_package(path: Path) -> list[str]:
    """What is wrong with a zip, a sentence for each fault; nothing if it is as it was written.

    Raises ValueError for a file that is no such zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = from_json(archive.read(MANIFEST))  # which refuses what is nested without end
            if not (isinstance(manifest, dict) and all(isinstance(one, dict) for one in manifest.values())):
                raise ValueError(f"its {MANIFEST} is no mapping of names to sizes and hashes")
            names = set(archive.namelist()) - {MANIFEST}
            faults = [f"{name} is not in the manifest" for name in sorted(names - set(manifest))]
            faults += [f"{name} is missing" for name in sorted(set(manifest) - names)]
            for name in sorted(names & set(manifest)):
                with archive.open(name) as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != manifest[name].get("sha256"):  # type: ignore[arg-type]
                        faults.append(f"{name} has another SHA-256 than the manifest says")
            return faults
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise ValueError(f"{shortened(str(path), LONGEST_PATH)} is no package: {reason}") from error


def _entries(root: Path) -> Iterator[tuple[str, Path]]:
    """Names in the zip and the files behind them."""
    for name in FILES:
        if (PROJECT / name).exists():
            yield f"source/{name}", PROJECT / name
    for folder in FOLDERS:
        for path in (PROJECT / folder).rglob("*"):
            if path.suffix in SOURCE and "__pycache__" not in path.parts:
                yield f"source/{path.relative_to(PROJECT).as_posix()}", path
    layouts = [Layout(root, quick=quick) for quick in (False, True)]
    for path in {path for layout in layouts for path in artifacts(layout)} | {layouts[0].manifest}:
        if path.exists():
            yield path.relative_to(root).as_posix(), path


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the zip; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lsh_v2.package", description="Source and results in one zip.")
    parser.add_argument(
        "--root", type=Path, default=Path(), help="folder with data/ and final_results/ (default: here)"
    )
    parser.add_argument("--out", type=Path, help=f"the zip (default: {NAME} in the root)")
    parser.add_argument("--check", type=Path, metavar="ZIP", help="compare a zip with its manifest instead")
    given = parser.parse_args(arguments)
    try:
        if given.check is not None:
            faults = check_package(given.check)
            print("\n".join(faults) or f"{given.check} is whole")
            return 1 if faults else 0
        out = given.out or given.root / NAME
        manifest = write_package(given.root, out)
    except (Exception, KeyboardInterrupt) as error:
        return end(error, given.root)
    print(f"{len(manifest)} files, {out.stat().st_size / 1e6:.1f} MB: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
