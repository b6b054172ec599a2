"""Every configuration in conf/ can be planned, says what it asks, and has flash beside what it measures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.config.model import load_config
from harness.runner.plan import component_cases, expand

CONFIGURATIONS = sorted((Path(__file__).parents[3] / "conf").glob("*.yml"))


def test_there_are_configurations() -> None:
    assert {path.stem for path in CONFIGURATIONS} >= {"lsh_family", "codebooks", "recurrent", "lsh_v2"}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_configuration_is_planned_with_flash_in_the_same_run(path: Path) -> None:
    planned = expand(load_config(path))
    flash = {one.case.n for one in planned if one.case.backend == "flash" and one.case.mode == "forward"}
    assert 65_536 in flash, "ratios are of times in one run"
    assert {one.case.backend for one in planned} > {"flash"}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_configuration_says_at_its_head_what_it_asks_and_how_long_it_takes(path: Path) -> None:
    head = [line.removeprefix("# ") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()]
    command = f"python -m harness.sweep conf/{path.name}"
    (place,) = (index for index, line in enumerate(head) if line.endswith(command))
    assert " ".join(head[:place]).endswith("?"), "the question comes first"
    assert re.fullmatch(rf"About \d+ minutes on two cores: {re.escape(command)}", head[place])


@pytest.mark.parametrize("name", ["lsh_family", "codebooks", "lsh_v2"])
def test_a_profile_of_a_configuration_times_the_stages_that_it_names(name: str) -> None:
    (path,) = (path for path in CONFIGURATIONS if path.stem == name)
    stages = {one.case.settings.get("component") for one in component_cases(expand(load_config(path, ["lengths=512"])))}
    wanted = {
        "lsh_family": {"hashing", "bucket assignment", "bucket attention"},
        "codebooks": {"code search", "attention with known codes"},
        "lsh_v2": {"hashing", "bucket attention", "global context"},
    }
    assert wanted[name] <= stages
