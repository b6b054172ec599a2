"""Hash all source that decides what a backend computes, so that a changed backend is measured again.

The hash covers the file of the backend's class, every file of the project that it imports directly or indirectly, and
the native sources that these files name. Imports are read from the syntax tree, including those inside functions and
calls of `resolve_name`; nothing is imported. Comments, docstrings and layout are ignored. A name imported from a
package resolves to the module that the package's `__init__` imports it from; otherwise each backend would depend on
everything that its package lists.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from harness.common.import_path import is_path

ROOT = Path(__file__).resolve().parents[2]
# The project's packages. An installed copy sits among third-party libraries, which are not hashed.
PACKAGES = frozenset(
    {
        "attention_bench",
        "attentions",
        "bmrt",
        "harness",
        "hyper_attn",
        "lsh_bitnet",
        "lsh_v2",
        "models",
        "tasks",
        "transformer_vq",
        "vq_training",
    }
)
NATIVE = ("*.cpp", "*.cu", "*.h", "*.hpp", "*.cuh")


def source_hash(*modules: str) -> str:
    """Hash the import closure of the given modules. Raises ValueError for a module without a source file."""
    files: set[Path] = set()
    for module in modules:
        files |= closure(module)
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: (path.name, str(path))):
        digest.update(f"{path.name}\0{_meaning(path)}\0".encode())
    return digest.hexdigest()[:16]


def content_hash(path: Path) -> str:
    """Hash the contents of a file. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def closure(module: str) -> set[Path]:
    """Return all files of the module's project that it depends on, including its own."""
    path = _find(module)
    if path is None:
        raise ValueError(f"module {module!r} has no source file")
    first = _Module(module, path)
    seen: set[Path] = set()
    waiting = [first]
    while waiting:
        current = waiting.pop()
        if current.path in seen:
            continue
        seen.add(current.path)
        seen |= _native_sources(current.path)
        waiting += [found for found in _imports(current) if _inside(found, first)]
    return seen


@dataclass(frozen=True)
class _Module:
    name: str
    path: Path

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    @property
    def root(self) -> Path:
        """The folder that contains the top-level package or module."""
        return self.path.parents[self.name.count(".") + (self.path.name == "__init__.py")]

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@cache
def _imports(module: _Module) -> list[_Module]:
    if module.path.suffix != ".py":
        return []
    found: list[_Module] = []
    for node in _nodes(module.path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found += _module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module.package)
            for alias in node.names:
                found += _origin_of(base, alias.name)
        elif resolved := resolved_name(node):
            found += _origin_of(*resolved)
    return list(dict.fromkeys(found))


def resolved_name(node: ast.AST) -> tuple[str, str] | None:
    """Return module and name of `resolve_name("package.module:Name")`, which imports as a statement does, else None."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "resolve_name":
        for argument in node.args:
            if isinstance(argument, ast.Constant) and is_path(str(argument.value)):
                module, _, name = str(argument.value).partition(":")
                return module, name
    return None


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the module after `from`, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


def _origin_of(base: str, name: str) -> Iterator[_Module]:
    """Resolve `from base import name`: a submodule, the source of a name that `base` re-exports, or `base` itself."""
    if submodule := list(_module(f"{base}.{name}")):
        yield from submodule
        return
    for found in _module(base):
        if found.path.name == "__init__.py" and (further := _reexported(found, name)):
            yield from _origin_of(*further)
        else:
            yield found


def _reexported(package: _Module, name: str) -> tuple[str, str] | None:
    """Return the module and name that a package re-exports `name` from, or None.

    Lazy packages have these imports for type checkers only.
    """
    for node in _nodes(package.path):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _absolute(node, package.package), alias.name
    return None


@cache
def _native_sources(path: Path) -> set[Path]:
    """Return the native files that the module's strings name, and the files that those include.

    Searches the module's folder and its `native` subfolder.
    """
    if path.suffix != ".py":
        return set()
    words = {node.value for node in _nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    folders = (path.parent, path.parent / "native")
    there = {file for folder in folders for kind in NATIVE for file in folder.glob(kind)}
    named = {file for file in there if file.name in words or file.stem in words}
    while added := {file for file in there - named if any(file.name in _included(other) for other in named)}:
        named |= added
    return named


def _included(path: Path) -> set[str]:
    return {Path(name).name for name in re.findall(r'#\s*include\s*"([^"]+)"', path.read_text())}


@cache
def _meaning(path: Path) -> str:
    """Return a Python file's syntax tree without docstrings, or the content hash of any other file."""
    if path.suffix != ".py":
        return content_hash(path)
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


@cache
def _nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(_tree(path)))


def _module(name: str) -> Iterator[_Module]:
    if (path := _find(name)) is not None:
        yield _Module(name, path)


@cache
def _find(name: str) -> Path | None:
    """Return a module's file without importing it; None for the standard library."""
    if not name or name.split(".")[0] in sys.stdlib_module_names:
        return None
    for folder in (ROOT, *(Path(entry or ".").resolve() for entry in sys.path)):
        base = folder.joinpath(*name.split("."))
        names = (f"{base.name}{suffix}" for suffix in (".py", *EXTENSION_SUFFIXES))
        for path in (base / "__init__.py", *map(base.with_name, names)):
            if path.is_file():
                return path
    return None


def _inside(found: _Module, first: _Module) -> bool:
    """Return whether a file belongs to this project or to the first module's project, not to an installed library."""
    if found.top == first.top or (found.top in PACKAGES and found.root == ROOT):
        return True
    return (
        any(found.path.is_relative_to(root) for root in (ROOT, first.root)) and "site-packages" not in found.path.parts
    )
