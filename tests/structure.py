"""The shape of the project's code: import depth, circles, class names that stand twice, lengths of files and functions.

python -m tests.structure                    # a table
python -m tests.structure --dot imports.dot  # the imports between packages and rooms, for Graphviz
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grimp
import networkx

from harness.common.source_hash import resolved_name

ROOT = Path(__file__).parents[1]
PACKAGES = [path.parent.name for path in sorted(ROOT.glob("*/__init__.py")) if path.parent.name != "tests"]


@dataclass(frozen=True)
class Shape:
    """What the table shows. A chain and a circle are lists of modules, each of which imports the next."""

    modules: int
    longest_chain: list[str]
    circles: list[list[str]]
    duplicate_classes: dict[str, list[str]]
    file_lines: list[int]
    function_lines: list[int]


def import_graph() -> networkx.DiGraph:
    """Modules of the project's packages with an edge to each module that they import, at any depth of their code.

    `resolve_name("package.module:Name")` counts, what is imported for annotations alone does not.
    """
    found = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    graph = networkx.DiGraph()
    graph.add_nodes_from(found.modules)
    for module in found.modules:
        graph.add_edges_from((module, other) for other in found.find_modules_directly_imported_by(module))
    for path in _files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        names = map(resolved_name, ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        graph.add_edges_from((module, name[0]) for name in names if name is not None and name[0] in graph)
    return graph


def shape() -> Shape:
    """Measure the project."""
    graph = import_graph()
    circles = [sorted(members) for members in networkx.strongly_connected_components(graph) if len(members) > 1]
    return Shape(
        modules=len(graph),
        longest_chain=longest_chain(graph),
        circles=sorted(circles, key=lambda members: (-len(members), members)),
        duplicate_classes=duplicate_classes(),
        file_lines=[len(path.read_text(encoding="utf-8").splitlines()) for path in _files()],
        function_lines=[
            (node.end_lineno or node.lineno) - node.lineno + 1
            for path in _files()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ],
    )


def longest_chain(graph: networkx.DiGraph) -> list[str]:
    """One longest chain of imports; of a circle it passes through one module."""
    condensed = networkx.condensation(graph)
    return [min(condensed.nodes[node]["members"]) for node in networkx.dag_longest_path(condensed)]


def duplicate_classes() -> dict[str, list[str]]:
    """Public class names that more than one module defines, with those modules."""
    where: dict[str, list[str]] = defaultdict(list)
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(str(path.relative_to(ROOT)))
    return {name: paths for name, paths in sorted(where.items()) if len(paths) > 1}


def rooms(graph: networkx.DiGraph) -> Counter[tuple[str, str]]:
    """How many imports lead from one room, a package or its subpackage, to another."""
    packages = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in ROOT.glob("*/**/__init__.py")}

    def room(module: str) -> str:
        return module if module in packages and module.count(".") else module.rpartition(".")[0] or module

    between = ((room(one), room(other)) for one, other in graph.edges)
    return Counter((one, other) for one, other in between if one != other)


def dot(graph: networkx.DiGraph) -> str:
    """The rooms and the imports between them as a Graphviz drawing."""
    lines = [f'  "{one}" -> "{other}" [label={count}];' for (one, other), count in sorted(rooms(graph).items())]
    return "\n".join(["digraph imports {", "  rankdir=TB; node [shape=box];", *lines, "}", ""])


def _files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def _table(found: Shape) -> str:
    files, functions = found.file_lines, found.function_lines
    rows = {
        "modules": found.modules,
        "longest import chain": len(found.longest_chain),
        "import circles": f"{len(found.circles)} of {', '.join(str(len(x)) for x in found.circles) or 'no'} modules",
        "class names defined twice": len(found.duplicate_classes),
        "lines of a file": f"median {statistics.median(files):g}, longest {max(files)}",
        "lines of a function": f"median {statistics.median(functions):g}, longest {max(functions)}",
    }
    return "\n".join(
        [
            *(f"{name}: {value}" for name, value in rows.items()),
            f"longest chain: {' > '.join(found.longest_chain)}",
            *(f"circle: {' '.join(circle)}" for circle in found.circles),
            *(f"twice: {name} in {', '.join(paths)}" for name, paths in found.duplicate_classes.items()),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; with --dot also write the drawing."""
    parser = argparse.ArgumentParser(prog="python -m tests.structure", description="The shape of the project's code.")
    parser.add_argument("--dot", type=Path, metavar="FILE", help="write the imports between rooms for Graphviz")
    given = parser.parse_args(arguments)
    print(_table(shape()))
    if given.dot is not None:
        given.dot.write_text(dot(import_graph()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
