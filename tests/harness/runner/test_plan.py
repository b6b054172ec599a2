"""Which cases a configuration asks for, and what it may ask in vain."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from attentions import BACKENDS
from harness.config.backends import series_of
from harness.config.grid import Backend
from harness.config.model import Config, load_config
from harness.config.yaml_source import ConfigError
from harness.measure.cpu_load import cores
from harness.runner.plan import Planned, expand, resolve_device, round_order

ROOT = Path(__file__).parents[3]

BASE = {
    "backends": ["vanilla", "bit_sampling"],
    "lengths": [8, 16],
    "batch": 1,
    "heads": 4,
    "head_dim": 16,
    "causal": True,
    "subject": "attention",
    "level": "kernel",
    "mode": "forward",
    "inputs": "gaussian",
    "dtype": "float32",
    "device": "cpu",
    "rounds": 3,
    "budget": {"case_s": 10, "total_s": 60},
    "seed": 5,
    "executor": "local",
}


def config(**changes: object) -> Config:
    return Config.model_validate({**BASE, **changes})


def plan(**changes: object) -> list[Planned]:
    return expand(config(**changes))


def refusal(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(**changes)
    return str(caught.value)


def labels(*entries: object) -> list[str]:
    return [series.label for series in series_of([Backend.model_validate(entry) for entry in entries], "backends")]


def values(planned: list[Planned], field: str) -> list[object]:
    return list(dict.fromkeys(getattr(one.case, field) for one in planned))


def test_every_backend_meets_every_length_once() -> None:
    met = [(one.case.label, one.case.n) for one in plan()]
    assert sorted(met) == [("bit_sampling", 8), ("bit_sampling", 16), ("vanilla", 8), ("vanilla", 16)]


@pytest.mark.parametrize(
    ("axis", "given"),
    [
        ("subject", ["attention", "accuracy"]),
        ("level", ["kernel", "layer"]),
        ("mode", ["forward", "train", "decode"]),
        ("inputs", ["gaussian", "planted", "text"]),
        ("batch", [2, 3]),
        ("heads", [4, 8]),
        ("kv_heads", [1, 2, 4]),
        ("head_dim", [16, 32]),
        ("value_dim", [5, 7]),
        ("dtype", ["float32", "bfloat16"]),
        ("causal", [True, False]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_is_an_axis_of_the_grid(axis: str, given: list[object]) -> None:
    planned = plan(**{axis: given})
    assert len(planned) == 4 * len(given)
    assert values(planned, axis) == given


def test_null_sizes_are_what_they_stand_for() -> None:
    (one, *_) = plan(heads=6, head_dim=16)
    assert (one.case.kv_heads, one.case.value_dim) == (6, 16)


def test_sizes_that_come_to_the_same_are_measured_once() -> None:
    assert len(plan(kv_heads=[None, 4])) == 4


def test_device_and_threads_are_resolved() -> None:
    (one, *_) = plan(device="auto", threads=None)
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert (one.case.device, one.case.threads) == (expected, len(cores()))
    assert values(plan(threads=1), "threads") == [1]


def test_more_threads_than_cores_are_refused() -> None:
    count = len(cores())
    assert f"threads: {count + 1} is not allowed; it must be from 1 to {count}" in refusal(threads=count + 1)
    assert values(plan(threads=count), "threads") == [count]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device: 'cuda:0' is not available on this machine; auto uses what is" in refusal(device="cuda:0")


def test_auto_takes_cuda_first_and_an_index_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("auto", "cuda:1", "cuda:2", "cpu")] == ["cuda", "cuda:1", "", "cpu"]


def test_the_text_file_is_part_of_the_inputs_name(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"x" * 1000)
    assert values(plan(inputs=["text", "planted"], text_file=str(path)), "inputs") == [f"text:{path}", "planted"]


def test_further_grids_have_rounds_of_their_own_and_no_case_is_there_twice() -> None:
    also = [{"lengths": [16, 32], "rounds": 5}, {"rounds": 1}, {"lengths": 8, "rounds": 1, "inputs": "planted"}]
    planned = plan(also=also)
    found = {(one.case.inputs, one.case.n): one.rounds for one in planned if one.case.label == "vanilla"}
    assert found == {("gaussian", 8): 3, ("gaussian", 16): 5, ("gaussian", 32): 5, ("planted", 8): 1}
    assert len(planned) == 8


def test_a_list_in_the_settings_is_an_axis_that_the_label_shows() -> None:
    entry = {"name": "bit_sampling", "label": "hashed", "bits": [2, 3], "tables": 2}
    assert labels(entry) == ["hashed bits=2", "hashed bits=3"]
    planned = plan(backends=[entry])
    assert [one.case.settings for one in planned][::2] == [{"bits": 2, "tables": 2}, {"bits": 3, "tables": 2}]


def test_a_list_within_a_list_is_a_value() -> None:
    (series,) = series_of([Backend.model_validate({"name": "x", "offsets": [[1, 2]]})], "backends")
    assert series.settings == {"offsets": [1, 2]}
    assert series.label == "x offsets=[1, 2]"


def test_without_a_label_the_settings_given_make_it() -> None:
    assert labels("vanilla", {"name": "bit_sampling", "bits": 4}, "a.b:Own", {"name": "a.b:Own", "mode": "fast"}) == [
        "vanilla",
        "bit_sampling bits=4",
        "Own",
        "Own mode=fast",
    ]


def test_controls_are_marked() -> None:
    planned = plan(backends=["vanilla", {"name": "bit_sampling", "control": True}])
    assert {one.case.label: one.case.control for one in planned} == {"vanilla": False, "bit_sampling": True}


def test_a_backend_of_ones_own_is_named_by_its_path() -> None:
    assert values(plan(backends=["attentions.vanilla:Vanilla"]), "label") == ["Vanilla"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"backends": ["flsh"]}, "backends.0: unknown backend 'flsh'; did you mean flash, lsh_v2?"),
        ({"backends": ["vanilla", {"name": "no.such:One"}]}, "backends.1: backend 'no.such:One' cannot be imported"),
        (
            {"backends": [{"name": "bit_sampling", "bitz": 3}]},
            "backends.0.bitz: this setting is unknown; did you mean bits? bit_sampling has bits,",
        ),
        (
            {"backends": [{"name": "bit_sampling", "tabels": 3}]},
            "backends.0.tabels: this setting is unknown; did you mean",
        ),
        (
            {"backends": [{"name": "bit_sampling", "heads": 2}]},
            "backends.0.heads: this is not a backend setting; a key of the grid decides it",
        ),
        ({"backends": [{"name": "bit_sampling", "bits": []}]}, "backends.0.bits: [] is not allowed; it must be plain"),
        (
            {"backends": [{"name": "bit_sampling", "bits": [8, "9"]}]},
            "backends.0.bits: [8, '9'] is not allowed; it must be int or null, or a list of these",
        ),
        (
            {"backends": [{"name": "bit_sampling", "window": True}]},
            "backends.0.window: true is not allowed; it must be int, or a list of these",
        ),
        (
            {"backends": [{"name": "flash", "scale": "big"}]},
            "backends.0.scale: 'big' is not allowed; it must be float or null",
        ),
        (
            {"backends": ["tests.harness.backends:NotToBeBuilt"]},
            "backends.0: NotToBeBuilt with {} cannot be built: LookupError: no such thing (backends.py line",
        ),
        (
            {"backends": ["tests.harness.not_a_module:One"]},
            "backends.0: backend 'tests.harness.not_a_module:One' cannot be imported: RuntimeError: not today",
        ),
        (
            {"inputs": "tests.harness.not_a_module:make"},
            "inputs: 'tests.harness.not_a_module:make' cannot be imported: RuntimeError: not today",
        ),
        (
            {"backends": [{"name": "bit_sampling", "bits": float("nan")}]},
            "backends.0.bits: .nan is not allowed; it must be plain finite data",
        ),
        (
            {"backends": [{"name": "bit_sampling", "label": "many", "bits": 99}]},
            "backends.0: many with {bits: 99} cannot be built: bits=99 is not allowed",
        ),
        (
            {"backends": ["vanilla", {"name": "bit_sampling", "label": "vanilla"}]},
            "backends.1.label: 'vanilla' is not allowed; backends.0 already uses it, and a label must name a single "
            "series",
        ),
        (
            {"heads": [4, 8], "kv_heads": 8},
            "kv_heads: 8 is not allowed; it must be a divisor of heads, which is 4",
        ),
        ({"kv_heads": 3}, "kv_heads: 3 is not allowed; it must be a divisor of heads, which is 4"),
        ({"subject": "no.such:One"}, "subject: 'no.such:One' cannot be imported: No module named 'no'"),
        ({"inputs": ["text", "gausian"]}, "inputs: unknown inputs 'gausian'; did you mean gaussian?"),
        ({"inputs": "text", "text_file": "/nowhere"}, "text_file: text file '/nowhere' cannot be read: No such file"),
        ({"inputs": "text", "batch": 10**6}, "inputs: Python"),
        ({"inputs": "/nowhere.safetensors"}, "inputs: inputs file '/nowhere.safetensors' cannot be read"),
        (
            {"expect": {"flsh": {"error": 1.0}}},
            "expect.flsh: there is no such backend or label; did you mean flash or lsh_v2? known are vanilla,",
        ),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_what_cannot_be_is_named_with_its_path(changes: dict[str, object], line: str) -> None:
    text = refusal(**changes)
    assert f"\n  {line}" in text
    assert len(text.splitlines()) == 2


def test_a_backend_that_finds_no_room_for_itself_is_left_to_its_case() -> None:
    assert len(plan(backends=["tests.harness.backends:Immense"])) == 2


def test_a_mistake_that_a_further_grid_inherits_is_told_once() -> None:
    backends = ["flsh"]
    text = refusal(backends=backends, kv_heads=3, also=[{"backends": backends, "kv_heads": 3, "rounds": 1}])
    assert len(text.splitlines()) == 3


def test_the_longest_length_that_the_inputs_cannot_give_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_file({name: torch.zeros(1, 4, 12, 16) for name in "qkv"}, path)
    text = refusal(inputs=str(path), lengths=[8, 16, 24])
    assert "inputs: q has shape (1, 4, 12, 16); it must be (at least 1, 4, at least 24, 16)" in text
    assert len(plan(inputs=str(path), lengths=[8, 12])) == 4


def test_a_known_backend_that_is_not_measured_may_be_expected_of() -> None:
    assert len(plan(backends=["vanilla"], expect={"flash": {"error": 1.0}, "bit_sampling": {"leak": 0.0}})) == 2


def test_the_order_of_a_round_is_shuffled_and_the_same_for_the_same_seed() -> None:
    planned = plan(lengths=[8, 16, 24, 32, 40])
    orders = [[case.digest() for case in round_order(planned, round_, 0)] for round_ in (0, 1, 2)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert all(before != after for before, after in pairwise([[one.case.digest() for one in planned], *orders]))
    assert orders[1] == [case.digest() for case in round_order(planned, 1, 0)]
    assert orders[1] != [case.digest() for case in round_order(planned, 1, 9)]


def test_a_round_has_the_cases_that_have_so_many_rounds() -> None:
    planned = plan(also=[{"inputs": "planted", "rounds": 1}])
    counts = [len(round_order(planned, round_, 0)) for round_ in range(5)]
    assert counts == [8, 4, 4, 0, 0]


def test_the_default_configuration_holds_what_it_promises() -> None:
    planned = expand(load_config(ROOT / "conf.yml", ["device=cpu"]))
    main = [one for one in planned if one.case.subject == "attention"]
    extra = [one for one in planned if one.case.subject == "accuracy"]
    controls = ["window (control)", "random (control)"]
    series = [*BACKENDS, *controls]
    assert values(main, "label") == series
    assert values(main, "n") == [2**power for power in range(7, 19)]
    assert values(main, "inputs") == ["text"]
    assert {one.rounds for one in main} == {5}
    assert values(extra, "label") == ["bit_sampling", "simhash", "lsh_forest", "vq", "vq_qk", "hyper", *controls]
    assert values(extra, "inputs") == ["planted", "gaussian"]
    assert {one.rounds for one in extra} == {1}
    assert {one.case.label for one in planned if one.case.control} == set(controls)


def test_planning_imports_nothing_that_only_reports_need() -> None:
    """A bad configuration is refused within seconds, so planning must not wait for pandas."""
    heavy = "{'pandas', 'scipy', 'seaborn', 'matplotlib'}"
    code = f"import sys, harness.runner.plan; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_an_override_of_backends_leaves_no_other_backend() -> None:
    planned = expand(load_config(ROOT / "conf.yml", ["backends=[flash]", "lengths=[128]", "device=cpu"]))
    assert values(planned, "label") == ["flash"]
    assert len(planned) == 3
