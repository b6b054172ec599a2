"""The project's own promises about itself: its drawing, its two dependency lists, its README."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from attentions import BACKENDS
from harness.common import source_hash
from harness.common.import_path import is_path
from harness.common.source_hash import resolved_name
from hyper_attn.state import Drawn
from transformer_vq.precision import Selector

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
    "vq_training": {"harness", "tasks", "attentions", "transformer_vq"},
    "attention_bench": {"attentions", "harness", "lsh_bitnet", "bmrt"},
}
PACKAGES = [name for name in MAY_IMPORT if (ROOT / name).is_dir()]
# The same order as in docs/layout.md, highest first. Packages of one line never import each other.
ORDER = [
    {"attention_bench"},
    {"lsh_v2", "lsh_bitnet", "bmrt", "vq_training"},
    {"harness"},
    {"tasks"},
    {"attentions"},
    {"transformer_vq", "hyper_attn"},
]
# The one place where `harness` names a package above it: a section of conf.yml that another package measures.
SECTIONS_TABLE = "harness/config/sections.py"


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif resolved := resolved_name(node):
            found.add(resolved[0].split(".")[0])
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


def test_what_may_be_imported_keeps_the_order_of_packages() -> None:
    """So that an entry of the table above cannot allow an import upwards or sideways."""
    assert set().union(*ORDER) == set(MAY_IMPORT)
    for place, names in enumerate(ORDER):
        below = set(itertools.chain(*ORDER[place + 1 :]))
        assert all(MAY_IMPORT[name] <= below for name in names), names


def test_harness_names_no_package_above_it() -> None:
    """Not in a path `package.module:Name` either, except in the table of sections."""
    above = set().union(*ORDER[:2])
    named = set()
    for path in (ROOT / "harness").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf8")))
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        if {text.split(".")[0] for text in texts if is_path(text)} & above:
            named.add(str(path.relative_to(ROOT)))
    assert named == {SECTIONS_TABLE}


def test_the_lowest_packages_keep_selecting_tensors_alike() -> None:
    """Neither may import the other, so each has the same code, which must not drift apart."""
    for name in ("_apply", "_load_from_state_dict"):
        ours, theirs = (inspect.getsource(getattr(kind, name)) for kind in (Drawn, Selector))
        assert ours.replace("Drawn", "Selector") == theirs


def test_harness_knows_no_backend_by_name() -> None:
    backends = {backend.__module__ for backend in BACKENDS.values()} - {"attentions.base"}
    against = set()
    for path in (ROOT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and node.module in backends:
                against.add(f"{path.relative_to(ROOT)} imports {node.module}")
    assert not against


def project_table() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]


def canonical(requirement: str) -> str:
    """The package that a requirement names, in lower case with hyphens."""
    return re.split(r"[\[>=<;]", requirement)[0].strip().lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    """Packages that installing the project with these extras asks for by name."""
    project, found, left = project_table(), set[str](), list(extras)
    wanted = list(project["dependencies"])
    while left:
        for requirement in project["optional-dependencies"][left.pop()]:
            if canonical(requirement) == project["name"]:
                left += re.findall(r"\[(.+)\]", requirement)[0].split(",")
            else:
                wanted.append(requirement)
    found |= {canonical(requirement) for requirement in wanted}
    return found


def third_party(paths: Iterable[Path]) -> set[str]:
    """Packages, as pip calls them, of everything that these files import from outside."""
    own = {*PACKAGES, "models", "benchmarks", "tests"}
    names = {name for path in paths for name in imports(path)} - set(sys.stdlib_module_names) - own - {"", "__future__"}
    owners = packages_distributions()
    return {canonical(owners[name][0]) if name in owners else name for name in names}


def test_conda_environment_holds_everything_that_is_imported() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf8"))
    python, *_, pip = environment["dependencies"]
    assert python == f"python{project_table()['requires-python']}"
    constraint, editable = pip["pip"]
    assert constraint == "--constraint constraints.txt"
    extras = re.fullmatch(r"--editable \.\[(.+)\]", editable)
    assert extras
    code = [path for name in (*PACKAGES, "models", "benchmarks", "tests") for path in (ROOT / name).rglob("*.py")]
    assert third_party(code) <= declared(*extras[1].split(","))
    assert {"pytest-benchmark", "notebook", "ipykernel"} <= declared(*extras[1].split(","))


def test_installed_packages_import_what_their_dependencies_hold() -> None:
    """Without the dev extra: what a user imports comes from the dependencies, or from an extra that has a name."""
    code = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    core = [path for path in code if path.relative_to(ROOT).parts[0] in ("attentions", "transformer_vq", "hyper_attn")]
    assert third_party(code) <= declared("models", "gpu")
    assert third_party(core) - declared() <= {"transformers", "triton"}, "taken from where they are there"


def test_every_dependency_is_pinned_for_tests() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf8").splitlines()
    pinned = {canonical(line) for line in lines if not line.startswith("#")}
    assert declared("dev") <= pinned


def test_a_wheel_and_the_source_hash_know_the_same_packages() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    wheel = table["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(wheel) == source_hash.PACKAGES == {*PACKAGES, "models"}


def test_a_wheel_holds_the_configurations_where_they_are_looked_for() -> None:
    """`conf.yml`, and the folder `conf` if there is one, beside the module that finds them."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    included = table["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    there = [name for name in ("conf.yml", "conf") if (ROOT / name).exists()]
    assert included == {name: f"harness/config/{name}" for name in there}


def test_documentation_draws_the_tree_that_is_there() -> None:
    layout = (ROOT / "docs" / "layout.md").read_text(encoding="utf8")
    drawn = set(re.findall(r"^([a-z_0-9]+)/ ", layout, re.MULTILINE))
    assert drawn >= set(PACKAGES) | {"tests", "benchmarks", "reports"}
    assert all((ROOT / name).is_dir() for name in drawn)


def test_readme_lists_every_backend_with_its_paper_and_causality() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf8").splitlines()
    listed = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert list(listed) == list(BACKENDS)
    for name, backend in BACKENDS.items():
        assert f"]({backend.paper})" in listed[name]
        assert listed[name].endswith(f"| {backend.causality} |")


@pytest.mark.parametrize("package", ["lsh_bitnet", "lsh_v2", "bmrt", "transformer_vq", "hyper_attn"])
def test_readme_maps_the_original_project_to_files_that_are_there(package: str) -> None:
    lines = (ROOT / package / "README.md").read_text(encoding="utf8").splitlines()
    right = [line.split("|")[2] for line in lines if line.startswith("|") and line.count("|") == 3]
    named = {
        path for cell in right for path in re.findall(r"(?:`|\]\()(?:\.\./)?([\w/]+/(?:\w+\.(?:py|cpp))?)[`)]", cell)
    }
    assert named, "it maps no module"
    assert not [path for path in named if not (ROOT / path).exists()]


def test_no_file_names_a_path_of_one_machine() -> None:
    """Nothing committed depends on where somebody's checkout lies."""
    pattern = re.compile(r"(?<![\w.])/(work|root|home/\w+|Users/\w+)/")
    suffixes = {".py", ".md", ".yml", ".toml", ".txt", ".cpp", ".json", ".html", ".jsonl"}
    folders = [*PACKAGES, "tests", "benchmarks", "reports/published", "reports/baseline"]
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    paths += [path for path in ROOT.iterdir() if path.suffix in suffixes]
    assert not [str(path.relative_to(ROOT)) for path in paths if pattern.search(path.read_text(encoding="utf8"))]
