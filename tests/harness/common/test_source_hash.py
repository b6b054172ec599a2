"""The hash of a backend's source changes with what it computes, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.common import source_hash as source
from harness.common.source_hash import closure, source_hash

FILES = {
    "methods/__init__.py": "from methods.mine import Mine\nfrom methods.other import Other\nTABLE = {Mine, Other}\n",
    "methods/base.py": '"""Words."""\nimport math\nimport numpy\nclass Base:\n    """Words."""\n    x = 1  # words\n',
    "methods/mine.py": "from methods.base import Base\nfrom . import helper\nclass Mine(Base):\n    pass\n",
    "methods/helper.py": "from . import mine\ndef f():\n    from methods.late import late\n    return 'kernel.cpp'\n",
    "methods/late.py": "late = 1\n",
    "methods/other.py": "from methods.base import Base\nclass Other(Base):\n    y = 2\n",
    "methods/short.py": "from methods import Mine\n",
    "methods/whole.py": "from methods import TABLE\n",
    "methods/lazy/__init__.py": (
        "from typing import TYPE_CHECKING\nimport lazy_loader\nif TYPE_CHECKING:\n"
        "    from methods.lazy.one import One\n    from methods.lazy.two import Two\n"
        "__getattr__, __dir__, _ = lazy_loader.attach(__name__, None, {'one': ['One'], 'two': ['Two']})\n"
    ),
    "methods/lazy/one.py": "One = 1\n",
    "methods/lazy/two.py": "Two = 2\n",
    "methods/of_lazy.py": "from methods.lazy import One\n",
    "methods/table.py": "from pkgutil import resolve_name\nTABLE = {'one': resolve_name('methods.lazy:One')}\n",
    "methods/names.py": "TABLE = {'one': 'methods.lazy:One'}\n",
    "methods/native/kernel.cpp": '#include "shared.h"\nint one;\n',
    "methods/native/shared.h": "int two;\n",
    "methods/native/unused.cpp": "int three;\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    return tmp_path


def forget() -> None:
    for cached in (source._find, source._tree, source._nodes, source._imports, source._native_sources, source._meaning):
        cached.cache_clear()


def hash_after(project: Path, name: str, text: str) -> str:
    (project / name).write_text(text)
    forget()
    return source_hash("methods.mine")


def names(project: Path, module: str) -> set[str]:
    return {str(path.relative_to(project / "methods")) for path in closure(module)}


def test_the_closure_holds_what_is_imported_also_in_functions_and_native_files_that_are_named(project: Path) -> None:
    expected = {"mine.py", "base.py", "helper.py", "late.py", "native/kernel.cpp", "native/shared.h"}
    assert names(project, "methods.mine") == expected


def test_a_name_taken_from_a_package_leads_to_its_module_alone(project: Path) -> None:
    assert names(project, "methods.short") == {"short.py"} | names(project, "methods.mine")


def test_a_name_of_a_package_that_imports_lazily_leads_to_its_module_alone(project: Path) -> None:
    """The module that its imports for type checkers name."""
    assert names(project, "methods.of_lazy") == {"of_lazy.py", "lazy/one.py"}


def test_a_resolved_name_is_an_import_and_a_name_in_words_is_none(project: Path) -> None:
    """What a table resolves is part of its module. What a table only names is chosen, and hashed, elsewhere."""
    assert names(project, "methods.table") == {"table.py", "lazy/one.py"}
    assert names(project, "methods.names") == {"names.py"}


def test_a_package_that_makes_something_itself_brings_all_that_it_lists(project: Path) -> None:
    assert names(project, "methods.whole") >= {"__init__.py", "mine.py", "other.py"}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("methods/mine.py", "pass", "z = 3"),
        ("methods/base.py", "x = 1", "x = 2"),
        ("methods/late.py", "late = 1", "late = 2"),
        ("methods/native/kernel.cpp", "int one", "long one"),
        ("methods/native/shared.h", "int two", "long two"),
    ],
)
def test_any_change_in_the_closure_changes_the_hash(project: Path, name: str, old: str, new: str) -> None:
    before = source_hash("methods.mine")
    assert hash_after(project, name, FILES[name].replace(old, new)) != before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "methods/base.py",
            '"""Other words."""\nimport math\nimport numpy\n\nclass Base:\n\n    """More."""\n    x = 1\n',
        ),
        ("methods/other.py", "y = 3\n"),
        ("methods/native/unused.cpp", "int four;\n"),
    ],
)
def test_comments_docstrings_layout_and_other_files_do_not_change_it(project: Path, name: str, text: str) -> None:
    before = source_hash("methods.mine")
    assert hash_after(project, name, text) == before


def test_a_backend_of_this_project_does_not_depend_on_its_neighbours() -> None:
    found = {path.name for path in closure("attentions.vanilla")}
    assert {"vanilla.py", "base.py", "reference.py"} <= found
    assert not found & {"flash.py", "bit_sampling.py", "__init__.py"}


def test_a_module_without_source_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'no\.such' has no source file"):
        source_hash("no.such")
