"""What it takes to extend the project: each kind of extension is added to a copy, counted, and used.

CONTRIBUTING.md lists the same kinds with the same files.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.report_fixture import FLASH, LENGTHS, made_facts, made_rows, write_run

ROOT = Path(__file__).parents[1]
PACKAGES = ("attentions", "bmrt", "harness", "hyper_attn", "lsh_v2", "tasks", "transformer_vq")

INPUTS = '''"""One key for every position: attention is the mean over all values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from harness.inputs.base import InputKind, Inputs
from harness.inputs.gaussian import Gaussian

if TYPE_CHECKING:
    from harness.common.rows import Case


class Level(InputKind):
    """Gaussian inputs whose keys are all equal to the first one."""

    def make(self, case: Case, variant: int) -> Inputs:
        drawn = Gaussian().make(case, variant)
        return Inputs(drawn.q, drawn.k[:, :, :1].expand_as(drawn.k).contiguous(), drawn.v)

    def hidden(self, case: Case, variant: int) -> Float[Tensor, "B M X"]:
        return Gaussian().hidden(case, variant)
'''

STRATEGY = '''"""Keeps the tokens right after the anchors, which is the opposite of `recent`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bmrt.strategies.base import Strategy, View


class Oldest(Strategy):
    """Scores tokens by position, earlier ones higher."""

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        return -view.positions.double()
'''

TASK = '''"""Say a word backwards."""

from __future__ import annotations

from tasks.example import Example, Task
from tasks.words import NOUNS


class Backwards(Task):
    """The answer is the word of the prompt, last letter first."""

    def example(self, index: int) -> Example:
        word = self.draw(index).choice(NOUNS)
        return Example(f"backwards, {word} is", f" {word[::-1]}", {"task": self.name, "index": index})
'''

CHAPTER = '''"""A chapter of the report: how often each method was measured."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.pieces import Cell, Chapter, Column, Group, Table
from harness.report.sections import ReportSection


def repeats_chapter(sections: Sequence[ReportSection]) -> Chapter:
    """The number of rows of each method on each kind of inputs."""
    curves = [(section, curve) for section in sections for curve in section.curves]
    rows = [[Cell(curve.label), Cell(section.case.inputs), Cell(str(len(curve.rows)))] for section, curve in curves]
    columns = [Column("method", numeric=False), Column("inputs", numeric=False), Column("rows")]
    return Chapter("repeats", "How often it was measured", "", [Group("", [Table("Rows", columns, rows)])])
'''


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the packages that an extension needs, and of the default configuration."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "conf.yml", tmp_path / "project")
    return tmp_path / "project"


def add(project: Path, files: dict[str, str], lines: dict[str, dict[str, str]]) -> None:
    """Write new files, and insert lines into existing ones, each after the only line that starts as given."""
    for name, text in files.items():
        with (project / name).open("x") as file:
            file.write(text)
    for name, inserted in lines.items():
        there = (project / name).read_text().splitlines()
        for before, line in inserted.items():
            (at,) = (number for number, text in enumerate(there) if text.startswith(before))
            there.insert(at + 1, line)
        (project / name).write_text("\n".join([*there, ""]))


def additions(project: Path) -> tuple[set[str], dict[str, int]]:
    """Compare a copy with the project: its new files, and the number of changed lines of each changed file."""
    new, changed = set[str](), dict[str, int]()
    for path in (path for package in PACKAGES for path in (project / package).rglob("*") if path.is_file()):
        name = str(path.relative_to(project))
        if "__pycache__" in path.parts:
            continue
        if not (ROOT / name).exists():
            new.add(name)
        elif path.read_bytes() != (ROOT / name).read_bytes():
            compared = difflib.ndiff((ROOT / name).read_text().splitlines(), path.read_text().splitlines())
            changed[name] = sum(line[:2] in ("+ ", "- ") for line in compared)
    return new, changed


def use(project: Path, code: str) -> str:
    """Run code on the copy in a process of its own; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(project)}
    check = f"import attentions; assert attentions.__file__.startswith({str(project)!r}), attentions.__file__\n"
    command = [sys.executable, "-c", check + code]
    done = subprocess.run(command, check=False, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_backend_is_one_file_and_one_line(copy: Path) -> None:
    """The contract command, `build` and a sweep know it by its name."""
    line = '    "my_window": resolve_name("attentions.my_window:SlidingWindow"),'
    example = (ROOT / "docs" / "examples" / "my_window.py").read_text()
    add(copy, {"attentions/my_window.py": example}, {"attentions/registry.py": {"BACKENDS: ": line}})
    assert additions(copy) == ({"attentions/my_window.py"}, {"attentions/registry.py": 1})
    said = use(
        copy,
        "from attentions import build\n"
        "from attentions.contract.__main__ import main as contract\n"
        "from harness.sweep import main as sweep\n"
        "assert build('my_window', heads=2, head_dim=8, window=3).window == 3\n"
        "assert contract(['my_window', '--quiet']) == 0\n"
        "options = ['backends=[flash, {name: my_window, window: [64, 128]}]', 'lengths=256', 'also=[]', 'expect={}']\n"
        "assert sweep(['conf.yml', '--dry-run', *(part for one in options for part in ('--set', one))]) == 0\n",
    )
    assert "my_window, causal: 0 of" in said
    assert "my_window window=128: attention" in said


def test_an_input_kind_is_one_file_and_one_line(copy: Path) -> None:
    """Attention over it is as uniform as it can be; a sweep plans it."""
    line = '    "level": resolve_name("harness.inputs.level:Level"),'
    add(copy, {"harness/inputs/level.py": INPUTS}, {"harness/inputs/make.py": {"KINDS: ": line}})
    assert additions(copy) == ({"harness/inputs/level.py"}, {"harness/inputs/make.py": 1})
    said = use(
        copy,
        "from harness.inputs.__main__ import main as inputs\n"
        "from harness.sweep import main as sweep\n"
        "assert inputs(['--inputs', 'level', '--lengths', '64']) == 0\n"
        "options = ['backends=[flash]', 'lengths=256', 'inputs=level', 'also=[]', 'expect={}']\n"
        "assert sweep(['conf.yml', '--dry-run', *(part for one in options for part in ('--set', one))]) == 0\n",
    )
    (figures,) = (line.split(" | ") for line in said.splitlines() if line.startswith("| level"))
    assert figures[3] == figures[4], "the entropy is the largest possible"
    assert "flash: attention, kernel, forward, level" in said


def test_a_cache_strategy_is_one_file_and_one_line(copy: Path) -> None:
    """A bounded cache keeps what it selects; the commands' settings know it as a method."""
    line = '        "oldest": resolve_name("bmrt.strategies.oldest:Oldest"),'
    add(copy, {"bmrt/strategies/oldest.py": STRATEGY}, {"bmrt/strategies/__init__.py": {"    {": line}})
    assert additions(copy) == ({"bmrt/strategies/oldest.py"}, {"bmrt/strategies/__init__.py": 1})
    said = use(
        copy,
        "import torch\n"
        "from attentions import build\n"
        "from bmrt.cache.settings import Settings\n"
        "print(type(Settings(selector_type='oldest', budget=16).strategy()).__name__)\n"
        "size = {'heads': 2, 'head_dim': 4, 'value_dim': 1, 'causal': True}\n"
        "cache = {'budget': 16, 'protection_divisor': 4, 'block': 8, 'strategy': 'oldest'}\n"
        "attention = build('bmrt.cache.attention:BoundedAttention', **size, **cache)\n"
        "q = k = torch.zeros(1, 2, 64, 4)\n"
        "v = torch.arange(64.)[:, None].expand(1, 2, 64, 1)\n"
        "print(float(attention(q, k, v)[0, 0, 56]))\n",
    )
    name, mean = said.split()
    kept = [*range(12), *range(52, 56), 56]  # anchors and the oldest, the local window, and the query's own token
    assert name == "Oldest"
    assert float(mean) == pytest.approx(sum(kept) / len(kept), rel=1e-5)


def test_a_task_is_one_file(copy: Path) -> None:
    """Training a language model takes it by its path."""
    add(copy, {"tasks/backwards.py": TASK}, {})
    assert additions(copy) == ({"tasks/backwards.py"}, {})
    said = use(
        copy,
        "from lsh_v2.train import FULL\n"
        "from lsh_v2.training import load_training_config\n"
        "from lsh_v2.training.checks import mistakes_of_training\n"
        "from lsh_v2.training.data import task_of\n"
        "overrides = ['task=tasks.backwards:Backwards', 'out=trained', 'device=cpu', 'mixed_precision=\"no\"']\n"
        "config = load_training_config(FULL, overrides)\n"
        "assert not mistakes_of_training(config), mistakes_of_training(config)\n"
        "print(task_of(config, evaluation=True).example(0).text)\n",
    )
    word, answer = said.removeprefix("backwards, ").split(" is ")
    assert word == answer.strip()[::-1]


def test_a_chapter_of_the_report_is_one_file_and_two_lines(copy: Path, tmp_path: Path) -> None:
    """Its import and its place in the order of chapters; both formats print it."""
    lines = {
        "from harness.report.tables.quality": "from harness.report.repeats import repeats_chapter",
        '        Chapter("causality"': "        repeats_chapter(sections),",
    }
    add(copy, {"harness/report/repeats.py": CHAPTER}, {"harness/report/document.py": lines})
    assert additions(copy) == ({"harness/report/repeats.py"}, {"harness/report/document.py": 2})
    run = write_run(tmp_path / "run", made_rows((FLASH,), LENGTHS[:1], 1), made_facts((FLASH,)))
    use(copy, f"from harness.report.__main__ import main\nassert main([{str(run)!r}]) == 0\n")
    assert '<section id="repeats"' in (run / "report.html").read_text()
    assert "## How often it was measured" in (run / "report.md").read_text()


@pytest.mark.parametrize(
    "path",
    [
        "attentions/registry.py",
        "harness/inputs/make.py",
        "bmrt/strategies/__init__.py",
        "tasks/NAME.py",
        "harness/report/document.py",
    ],
)
def test_the_guide_names_the_files(path: str) -> None:
    assert f"`{path}`" in (ROOT / "CONTRIBUTING.md").read_text()
