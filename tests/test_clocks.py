"""Everything timed is timed through `harness.measure`: no other module reads a clock, except for the named ones."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator

import pytest

from tests.structure import PACKAGES, ROOT

# Functions of the module `time` that tell the time, and methods of `datetime` and `date` that do.
CLOCKS = {"clock_gettime", "monotonic", "perf_counter", "process_time", "thread_time", "time"}
CLOCKS |= {f"{name}_ns" for name in CLOCKS}
DATES = {"now", "today", "utcnow"}

MEASURING = ROOT / "harness" / "measure"

# The clocks that other modules read.
EXCEPTIONS = {
    "attentions/common/stopping.py": {"monotonic"},  # it may not import the harness, and must be light
    "harness/common/deadline.py": {"monotonic"},  # time limits
    "harness/inputs/file.py": {"time_ns"},  # the age of a file, by the clock that dates files
    "lsh_v2/training/run.py": {"perf_counter"},  # a training loop
    "models/tiny_bitnet.py": {"process_time"},  # a training loop
}


def clocks(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each clock in a module: anything of `timeit`, and what is in CLOCKS.

    The current date counts only where it is subtracted. Names other than `time` are found behind any object, such as
    `other_module.time.perf_counter`.
    """
    tree = ast.parse(source)
    imports = [one for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names]
    times = {"time", *(one.asname for one in imports if one.name == "time")}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, "timeit") for one in names if one.name == "timeit")
            case ast.ImportFrom(module="timeit"):
                yield node.lineno, "timeit"
            case ast.ImportFrom(module="time", names=names):
                yield from ((node.lineno, one.name) for one in names if one.name in {*CLOCKS, "*"})
            case ast.Attribute(value=value, attr=name) if name in CLOCKS and (name != "time" or _last(value) in times):
                yield node.lineno, name
    yield from _subtracted_dates(tree)


def _subtracted_dates(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the differences in which a side is the current date or a name that it was assigned to."""
    assigned = (node for node in ast.walk(tree) if isinstance(node, ast.Assign) and _dated(node.value, set()))
    names = {_last(target) for node in assigned for target in node.targets} - {""}
    for node in ast.walk(tree):
        match node:
            case ast.BinOp(left=left, op=ast.Sub(), right=right) if _dated(left, names) or _dated(right, names):
                yield node.lineno, "datetime"


def _dated(expression: ast.expr, names: set[str]) -> bool:
    """Return whether an expression contains a call like `datetime.now()`, or one of the names."""
    nodes = list(ast.walk(expression))
    called = {_last(node.func) for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    return bool(called & DATES or {_last(node) for node in nodes} & names)


def _last(node: ast.AST) -> str:
    """Return `c` of `a.b.c` and of `c`; "" for anything but a name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@pytest.fixture(scope="module")
def found() -> dict[str, list[tuple[int, str]]]:
    """The clocks of each module outside `harness/measure`."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    outside = (path for path in paths if not path.is_relative_to(MEASURING))
    return {str(path.relative_to(ROOT)): list(clocks(path.read_text(encoding="utf-8"))) for path in outside}


def test_no_module_reads_a_clock_that_is_not_its_to_read(found: dict[str, list[tuple[int, str]]]) -> None:
    wrong = [
        f"{path}:{line} reads a clock, {name}: measure with harness.measure, limit with harness.common.deadline"
        for path, lines in found.items()
        for line, name in lines
        if name not in EXCEPTIONS.get(path, ())
    ]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_used(found: dict[str, list[tuple[int, str]]]) -> None:
    assert {path: {name for _, name in found[path]} for path in EXCEPTIONS} == EXCEPTIONS


def test_every_clock_exists() -> None:
    assert set(dir(time)) >= CLOCKS


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import time\nstart = time.perf_counter()", [(2, "perf_counter")]),
        ("import time\nstart = time.time()", [(2, "time")]),
        ("import time as t\nstart = t.time()\nend = t.monotonic_ns()", [(2, "time"), (3, "monotonic_ns")]),
        ("from time import sleep, perf_counter", [(1, "perf_counter")]),
        ("from time import process_time as now", [(1, "process_time")]),
        ("from time import *", [(1, "*")]),
        ("def f():\n    import time\n    return time.thread_time()", [(3, "thread_time")]),
        ("import time\ndef f(clock=time.monotonic): ...", [(2, "monotonic")]),
        ("import timer\ntimer.time.perf_counter()\ntimer.time.time()", [(2, "perf_counter"), (3, "time")]),
        ("import timeit\ntimeit.timeit(work)", [(1, "timeit")]),
        ("from timeit import default_timer", [(1, "timeit")]),
        ("from datetime import datetime\ntook = datetime.now() - start", [(2, "datetime")]),
        ("import datetime as d\nstart = d.datetime.utcnow()\ntook = end - start", [(3, "datetime")]),
        ("self.start = datetime.now().timestamp()\ntook = end - self.start", [(2, "datetime")]),
    ],
)
def test_a_clock_is_found_however_it_was_imported(source: str, expected: list[tuple[int, str]]) -> None:
    assert sorted(clocks(source)) == expected


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(1)\ntime.strftime('%Y')",
        "from time import sleep",
        "row.time - other.time",
        "time_s = 3\ntime = time_s - 1",
        "from datetime import datetime\nname = f'{datetime.now():%Y}-{count - 1}'",
        "# time.perf_counter()\ncode = 'import time; time.time()'",
    ],
)
def test_what_tells_no_duration_is_no_clock(source: str) -> None:
    assert list(clocks(source)) == []
