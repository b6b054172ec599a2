"""The project's own promises about itself: its drawing, its two dependency lists, its README."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from attentions import BACKENDS

ROOT = Path(__file__).parents[1]

# Which of the project's packages each may import. They point downwards only.
MAY_IMPORT: dict[str, set[str]] = {
    "transformer_vq": set(),
    "hyper_attn": set(),
    "attentions": {"transformer_vq", "hyper_attn"},
    "tasks": {"attentions"},
    "harness": {"attentions", "tasks"},
    "lsh_v2": {"harness", "tasks", "attentions"},
    "lsh_bitnet": {"harness", "tasks", "attentions"},
    "bmrt": {"harness", "tasks", "attentions"},
}
PACKAGES = [name for name in MAY_IMPORT if (ROOT / name).is_dir()]


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_downwards(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    against = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in imports(path) & (set(MAY_IMPORT) - allowed)
    }
    assert not against


def test_harness_knows_no_backend_by_name() -> None:
    backends = {backend.__module__ for backend in BACKENDS.values()} - {"attentions.base"}
    against = set()
    for path in (ROOT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and node.module in backends:
                against.add(f"{path.relative_to(ROOT)} imports {node.module}")
    assert not against


def test_conda_environment_lists_what_pyproject_lists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf8"))
    python, *_, pip = environment["dependencies"]
    assert python == f"python{project['requires-python']}"
    assert sorted(pip["pip"][1:], key=str.lower) == sorted(project["dependencies"], key=str.lower)


def test_every_dependency_is_pinned_for_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf8").splitlines()
    pinned = {re.split("[=[]", line)[0].lower().replace("_", "-") for line in lines if not line.startswith("#")}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[\[>=<]", name)[0].lower().replace("_", "-") for name in wanted} <= pinned


def test_readme_draws_the_tree_that_is_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    drawn = set(re.findall(r"^([a-z_0-9]+)/ ", readme, re.MULTILINE))
    assert drawn >= set(PACKAGES) | {"tests", "benchmarks", "reports"}
    assert all((ROOT / name).is_dir() for name in drawn)


def test_no_file_names_a_path_of_one_machine() -> None:
    """Nothing committed depends on where somebody's checkout lies."""
    pattern = re.compile(r"(?<![\w.])/(work|root|home/\w+|Users/\w+)/")
    suffixes = {".py", ".md", ".yml", ".toml", ".txt", ".cpp", ".json", ".html", ".jsonl"}
    folders = [*PACKAGES, "tests", "benchmarks", "reports/published", "reports/baseline"]
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    paths += [path for path in ROOT.iterdir() if path.suffix in suffixes]
    assert not [str(path.relative_to(ROOT)) for path in paths if pattern.search(path.read_text(encoding="utf8"))]
