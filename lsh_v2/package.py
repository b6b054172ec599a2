"""Packs everything behind a result into one zip: source, configuration, metrics, logs, and weights, with their hashes.

    python -m lsh_v2.package                                        # writes lsh_v2_complete_package.zip
    python -m lsh_v2.package --check lsh_v2_complete_package.zip    # compares every file with the manifest

`manifest.json` in the zip lists each file with its size and SHA-256. The same files produce the same zip, byte for
byte.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

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

from harness.common.command_line import one_line
from harness.common.text import LONGEST_PATH, shortened
from lsh_v2.common.endings import end
from lsh_v2.common.files import digest, read_object
from lsh_v2.common.schemas import PipelineResults
from lsh_v2.pipeline.phases import Layout
from lsh_v2.pipeline.run import artifacts

NAME = "lsh_v2_complete_package.zip"
MANIFEST = "manifest.json"
PROJECT = Path(__file__).parents[1]
FOLDERS = ("attentions", "docs", "harness", "hyper_attn", "lsh_v2", "tasks", "transformer_vq")
FILES = ("LICENSE", "Makefile", "README.md", "conf.yml", "constraints.txt", "environment.yml", "pyproject.toml")
SOURCE = {".py", ".yml", ".md", ".cpp", ".hpp", ".css", ".js", ".html", ".svg"}
EPOCH = (1980, 1, 1, 0, 0, 0)  # earliest time a zip can store; fixed, so that zips are reproducible


def write_package(root: Path, out: Path) -> dict[str, Any]:
    """Write the zip atomically; returns the manifest.

    Raises ValueError if there are no results yet, if they differ from those the pipeline last recorded, or if the zip
    cannot be written.
    """
    entries = dict(sorted(_entries(root)))
    if not any(name.startswith("final_results/") for name in entries):
        raise ValueError(
            f"{shortened(str(root), LONGEST_PATH)} has no final_results/pipeline_results.json: "
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
    """Return one sentence per fault in a zip; empty if it is intact.

    Raises ValueError if the file is not a package.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = from_json(archive.read(MANIFEST))  # rejects excessive nesting
            if not (isinstance(manifest, dict) and all(isinstance(one, dict) for one in manifest.values())):
                raise ValueError(f"its {MANIFEST} is not a mapping of names to sizes and hashes")
            names = set(archive.namelist()) - {MANIFEST}
            faults = [f"{name} is not in the manifest" for name in sorted(names - set(manifest))]
            faults += [f"{name} is missing" for name in sorted(set(manifest) - names)]
            for name in sorted(names & set(manifest)):
                with archive.open(name) as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != manifest[name].get("sha256"):  # type: ignore[arg-type]
                        faults.append(f"{name} has a SHA-256 that differs from the manifest")
            return faults
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise ValueError(f"{shortened(str(path), LONGEST_PATH)} is not a valid package: {reason}") from error


def _entries(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names in the zip and the files to store under them."""
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
    parser = argparse.ArgumentParser(
        prog="python -m lsh_v2.package", description="Pack source and results into one zip."
    )
    parser.add_argument(
        "--root", type=Path, default=Path(), help="folder with data/ and final_results/ (default: here)"
    )
    parser.add_argument("--out", type=Path, help=f"path of the zip (default: {NAME} in the root)")
    parser.add_argument("--check", type=Path, metavar="ZIP", help="check a zip against its manifest instead")
    given = parser.parse_args(arguments)
    try:
        if given.check is not None:
            faults = check_package(given.check)
            print("\n".join(faults) or f"{given.check} is intact")
            return 1 if faults else 0
        out = given.out or given.root / NAME
        manifest = write_package(given.root, out)
    except (Exception, KeyboardInterrupt) as error:
        return end(error, given.root)
    print(f"{len(manifest)} files, {out.stat().st_size / 1e6:.1f} MB: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
