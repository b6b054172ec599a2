"""What conf.yml may hold, and what the message says when it holds something else."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import yaml
from pydantic import ValidationError

from harness.config import model as config_module
from harness.config.model import (
    Config,
    SweepBudget,
    default_configuration,
    load_config,
    packaged_configurations,
)
from harness.config.yaml_source import ConfigError

ROOT = Path(__file__).parents[3]

MINIMAL = """\
backends: [vanilla, {name: bit_sampling, label: hashed, bits: [4, 8]}]
lengths: [128, 256]
batch: 1
heads: 4
head_dim: 64
causal: true
subject: attention
level: kernel
mode: forward
inputs: gaussian
dtype: float32
device: cpu
rounds: 3
budget: {case_s: 10, total_s: 60.5}
seed: 0
executor: local
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "conf.yml"
    path.write_text(MINIMAL)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def refused(path: Path, text: str) -> str:
    path.write_text(text)
    return message(path)


def test_one_value_is_an_axis_of_one(conf: Path) -> None:
    config = load_config(conf)
    assert config.lengths == (128, 256)
    assert config.batch == (1,)
    assert config.causal == (True,)
    assert config.budget == SweepBudget(case_s=10.0, memory_gb=None, total_s=60.5)


def test_a_key_that_allows_null_or_nothing_may_be_left_out(conf: Path) -> None:
    config = load_config(conf)
    assert (config.kv_heads, config.value_dim) == ((None,), (None,))
    assert (config.threads, config.text_file, config.out, config.also, config.expect) == (None, None, None, (), {})


def test_an_entry_of_backends_keeps_its_settings_beside_its_name(conf: Path) -> None:
    plain, hashed = load_config(conf).backends
    assert (plain.name, plain.label, plain.control, plain.settings) == ("vanilla", None, False, {})
    assert (hashed.name, hashed.label, hashed.settings) == ("bit_sampling", "hashed", {"bits": [4, 8]})


def test_the_configuration_is_frozen(conf: Path) -> None:
    config = load_config(conf)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_further_grid_has_the_main_grids_values_where_it_says_nothing(conf: Path) -> None:
    (grid,) = load_config(conf, ["also=[{lengths: 7, kv_heads: 2, rounds: 1}]"]).also
    assert (grid.lengths, grid.kv_heads, grid.rounds) == ((7,), (2,), 1)
    assert (grid.backends, grid.inputs) == (load_config(conf).backends, ("gaussian",))


def test_the_dumped_configuration_loads_to_the_same_one(tmp_path: Path) -> None:
    config = load_config(ROOT / "conf.yml")
    path = tmp_path / "resolved.yml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True))
    assert load_config(path) == config


def test_memory_is_three_quarters_of_what_is_available_unless_given() -> None:
    assert SweepBudget(case_s=1, memory_gb=1.5, total_s=1).memory_bytes() == 1_500_000_000
    available = psutil.virtual_memory().available
    assert SweepBudget(case_s=1, memory_gb=None, total_s=1).memory_bytes() == pytest.approx(0.75 * available, rel=0.25)


def test_every_key_of_the_default_configuration_is_there_with_a_comment() -> None:
    lines = (ROOT / "conf.yml").read_text().splitlines()
    for key in Config.model_fields:
        (at,) = [index for index, line in enumerate(lines) if line.startswith(f"{key}:")]
        assert "#" in lines[at] or lines[at - 1].startswith("#"), key


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=7", {"seed": 7}),
        ("lengths=[3, 5]", {"lengths": (3, 5)}),
        ("lengths.1=5", {"lengths": (128, 5)}),
        ("kv_heads=[null, 2]", {"kv_heads": (None, 2)}),
        ("mode=[train, decode]", {"mode": ("train", "decode")}),
        ("inputs=tests.x:make", {"inputs": ("tests.x:make",)}),
        ("text_file=a=b.txt", {"text_file": "a=b.txt"}),
        ("out=", {"out": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_override_replaces_a_value(conf: Path, override: str, expected: dict[str, object]) -> None:
    changed = load_config(conf, [override])
    assert changed == load_config(conf).model_copy(update=expected)


def test_overrides_reach_into_mappings_and_lists(conf: Path) -> None:
    overrides = ["budget.case_s=2.5", "backends.1.label=other", "backends.1.bits.0=5", "expect.vanilla.error=1.0e-3"]
    config = load_config(conf, overrides)
    assert config.budget.case_s == 2.5
    assert (config.backends[1].label, config.backends[1].settings) == ("other", {"bits": [5, 8]})
    assert config.expect["vanilla"].error == 1e-3


def test_an_override_of_an_axis_holds_in_further_grids_too(conf: Path) -> None:
    also = "also=[{lengths: 7, inputs: planted}]"
    (grid,) = load_config(conf, [also, "lengths=[3]"]).also
    assert (grid.lengths, grid.inputs) == ((3,), ("planted",))
    (grid,) = load_config(conf, [also, "also.0.lengths=[9]"]).also
    assert grid.lengths == (9,)


def test_sections_of_other_systems_are_left_to_them(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with conf.open("a") as file:
        file.write("other_system: {depth: 3}\n")
    assert "other_system: this key is unknown" in message(conf)
    monkeypatch.setattr(config_module, "SECTIONS", {"other_system": None})
    monkeypatch.setattr(config_module, "section_mistakes", lambda name, given: [f"{name}: {given['depth']} is deep"])
    assert "other_system: 3 is deep" in message(conf)
    monkeypatch.setattr(config_module, "section_mistakes", lambda *_: [])
    assert load_config(conf).seed == 0


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("lengths=[128, 0]", "lengths.1: 0 is not allowed; it must be an integer of at least 1, or a list of these"),
        ("lengths=0", "lengths: 0 is not allowed; it must be an integer of at least 1, or a list of these"),
        ("lengths=[1" + 20 * "0" + "]", f"lengths.0: 1{20 * '0'} is not allowed; it must be at most {2**40}"),
        ("lengths=[]", "lengths: [] is not allowed; it must be an integer of at least 1, or a list of these"),
        ("lengths=[2.0]", "lengths.0: 2.0 is not allowed; it must be an integer of at least 1, or a list of these"),
        ("lengths=[7, 7]", "lengths: [7, 7] is not allowed; 7 is repeated; each value may appear only once"),
        ("batch=true", "batch: true is not allowed; it must be an integer of at least 1, or a list of these"),
        ("rounds='3'", "rounds: '3' is not allowed; it must be an integer of at least 1"),
        ("rounds=[1, 2]", "rounds: [1, 2] is not allowed; it must be an integer of at least 1"),
        ("causal=1", "causal: 1 is not allowed; it must be true, false or a list of both"),
        ("kv_heads=0", "kv_heads: 0 is not allowed; it must be null (same as heads), a divisor of heads, or a list"),
        ("level=kernal", "level: 'kernal' is not allowed; it must be kernel, layer or a list of both"),
        (
            "dtype=[float8]",
            "dtype.0: 'float8' is not allowed; it must be float64, float32, bfloat16, float16 or a list",
        ),
        ("device=gpu", "device: 'gpu' is not allowed; it must be auto, cpu, cuda, cuda:<index> or mps"),
        ("threads=0", "threads: 0 is not allowed; it must be null (all cores) or an integer of at least 1"),
        ("seed=-1", "seed: -1 is not allowed; it must be an integer from 0 to 2**63 - 1"),
        ("executor=ray", "executor: ray is not allowed; it must be local"),
        ("budget.case_s=.inf", "budget.case_s: .inf is not allowed; it must be a number of seconds above 0"),
        ("budget.total_s=.nan", "budget.total_s: .nan is not allowed; it must be a number of seconds above 0"),
        ("budget.case_s=0", "budget.case_s: 0 is not allowed; it must be a number of seconds above 0"),
        ("budget.case_s=true", "budget.case_s: true is not allowed; it must be a number of seconds above 0"),
        (
            "budget.memory_gb=-1",
            "budget.memory_gb: -1 is not allowed; it must be null (three quarters of free memory)",
        ),
        (
            "budget.memory=1",
            "budget.memory: this key is unknown; did you mean memory_gb? known keys are case_s, memory_gb",
        ),
        ("budget=3", "budget: 3 is not allowed; it must be a mapping with case_s, memory_gb and total_s"),
        ("budget={case_s: 1}", "budget.total_s: this key is missing; it must be a number of seconds above 0"),
        ("lenghts=3", "lenghts: this key is unknown; did you mean lengths? known keys are subject, backends, lengths,"),
        ("subject=acuracy", "subject: 'acuracy' is not allowed; did you mean accuracy? it must be attention, accuracy"),
        ("subject=a b:C", "subject: 'a b:C' is not allowed; it must be attention, accuracy or package.module:Class"),
        ("backends=[]", "backends: [] is not allowed; it must be a list of names and of mappings"),
        ("backends=[3]", "backends.0: 3 is not allowed; it must be a list of names and of mappings"),
        ("backends=[{label: x}]", "backends.0.name: this key is missing; it must be a backend's name or package."),
        ("backends.1.control=1", "backends.1.control: 1 is not allowed; it must be true or false"),
        ("backends.1.label=''", "backends.1.label: '' is not allowed; it must be a line of text that names the series"),
        ("also=3", "also: 3 is not allowed; it must be a list of mappings with any of the grid's keys"),
        ("also=[3]", "also.0: 3 is not allowed; it must be a list of mappings with any of the grid's keys"),
        ("also=[{budget: 1}]", "also.0.budget: this key is unknown; known keys are subject, backends, lengths,"),
        ("also=[{lengths: [x]}]", "also.0.lengths.0: x is not allowed; it must be an integer of at least 1, or a list"),
        (
            "expect.vanilla.errors=1",
            "expect.vanilla.errors: this key is unknown; did you mean error? known keys are time_",
        ),
        (
            "expect.vanilla.error=-1",
            "expect.vanilla.error: -1 is not allowed; it must be null or a number of at least 0",
        ),
        ("expect.vanilla.time_exponent=2", "expect.vanilla.time_exponent: 2 is not allowed; it must be a list of two"),
        ("expect.vanilla.time_exponent=[2, 1]", "time_exponent: [2, 1] is not allowed; the lowest must not be above"),
        (
            "text_file=3",
            "text_file: 3 is not allowed; it must be null (Python's standard library) or the path of a file",
        ),
        (
            "out=[a]",
            "out: [a] is not allowed; it must be null (a new folder in reports/runs) or the path of a folder",
        ),
        ("lengths.2=1", "--set lengths.2=1: lengths is a list and has no item '2'; its items are 0 to 1"),
        ("lengths.-1=1", "--set lengths.-1=1: lengths is a list and has no item '-1'; its items are 0 to 1"),
        ("seed.x=1", "--set seed.x=1: seed is 0, which has no keys"),
        ("seed", "--set seed: must have the form key=value or key.key=value"),
        ("=3", "--set =3: must have the form key=value or key.key=value"),
        ("seed=[1", "--set seed=[1: line 1, column 3: not valid YAML:"),
        (
            "seed=!!python/name:os.system",
            "--set seed=!!python/name:os.system: the tag tag:yaml.org,2002:python/name:os",
        ),
    ],
    ids=lambda value: value if "=" in value and ":" not in value else "",
)
def test_what_is_not_allowed_is_named_with_path_value_and_what_is(conf: Path, override: str, line: str) -> None:
    text = message(conf, override)
    assert line.replace(" x ", " 'x' ").replace(": ray ", ": 'ray' ") in text
    assert len(text.splitlines()) == 2  # a heading, and one line for one mistake


@pytest.mark.parametrize("key", [line.partition(":")[0] for line in MINIMAL.splitlines()])
def test_a_missing_key_is_named(conf: Path, key: str) -> None:
    kept = [line for line in MINIMAL.splitlines() if not line.startswith(f"{key}:")]
    assert f"  {key}: this key is missing; it must be " in refused(conf, "\n".join(kept))


def test_all_mistakes_come_in_one_message(conf: Path) -> None:
    text = message(conf, "lengths=0", "seed=x", "budget.case_s=no", "also=[{heads: 0}]")
    paths = [line.partition(":")[0].strip() for line in text.splitlines()[1:]]
    assert sorted(paths) == ["also.0.heads", "budget.case_s", "lengths", "seed"]
    assert text.startswith(f"{conf} cannot be used:")


def test_all_bad_overrides_come_in_one_message(conf: Path) -> None:
    assert message(conf, "seed", "lengths.9=1").count("--set") == 2


def test_a_mistake_of_the_main_grid_is_not_repeated_for_further_grids(conf: Path) -> None:
    text = message(conf, "also=[{rounds: 1}, {lengths: 0}]", "batch=0")
    assert [line.partition(":")[0].strip() for line in text.splitlines()[1:]] == ["batch", "also.1.lengths"]


def test_a_mistake_in_an_override_is_not_repeated_for_further_grids(conf: Path) -> None:
    conf.write_text(conf.read_text() + "also: [{lengths: 8}]\n")
    text = message(conf, "lengths=[0]")
    assert [line.partition(":")[0].strip() for line in text.splitlines()[1:]] == ["lengths.0"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (MINIMAL + "seed: 1\n", "seed: the key is repeated in line 17; it may appear only once"),
        (MINIMAL + "expect: {a: {error: 1, error: 2}}\n", "expect.a.error: the key is repeated in line 17"),
        (
            MINIMAL + "out: !!python/object/apply:os.system [ls]\n",
            "out: the tag tag:yaml.org,2002:python/object/apply:",
        ),
        (MINIMAL + "out: !own x\n", "out: the tag !own is not allowed; only plain YAML is accepted"),
        (MINIMAL + "also: &loop [*loop]\n", "also.0: an alias to a node that contains it is not allowed"),
        (MINIMAL + "3: x\n", "the key '3' in line 17 is not allowed; keys must be text"),
        (MINIMAL + "? [a]\n: x\n", "in line 17 is not allowed; keys must be text"),
        ("- vanilla\n", "the top level is [vanilla]; it must be a mapping of keys to values"),
        ("", "the top level is null; it must be a mapping of keys to values"),
        ("a: [1\nb: 2\n", "line 2, column 2: not valid YAML: expected ',' or ']'"),
        ("a: 1\n---\nb: 1\n", "not valid YAML: but found another document"),
        ("a: \x00\n", "not valid YAML:"),
        ("a: 2020-13-45\n", "a: this key is unknown"),
    ],
    ids=["key", "nested", "object", "tag", "loop", "number", "sequence", "list", "empty", "open", "two", "nul", "date"],
)
def test_a_file_that_yaml_alone_would_let_through_or_choke_on_is_refused(conf: Path, text: str, line: str) -> None:
    found = refused(conf, text)
    assert line in found
    assert found.startswith(f"{conf} cannot be used:")


def test_a_tag_runs_nothing(conf: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    refused(
        conf, f"{MINIMAL}out: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{trace}]]\n"
    )
    assert not trace.exists()


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    assert "the file cannot be read: No such file or directory" in message(tmp_path / "absent.yml")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "the file cannot be read: Is a directory" in message(tmp_path)


def test_a_file_that_is_no_text_is_refused(conf: Path) -> None:
    conf.write_bytes(b"seed: \xff\n")
    assert "the file is not UTF-8 text: invalid start byte at byte 6" in message(conf)


def test_a_long_value_is_shortened(conf: Path) -> None:
    line = message(conf, f"seed={'x' * 500}").splitlines()[1]
    assert len(line) < 200
    assert line.startswith("  seed: 'xxx")


def test_configurations_of_the_package_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any folder. A file of that name comes first, and a file name is never looked up."""
    monkeypatch.chdir(tmp_path)
    known = packaged_configurations()
    assert {"conf", "bmrt/decode", "lsh_bitnet/compare"} <= set(known)
    assert load_config(Path("conf")) == load_config(default_configuration())
    assert load_config(Path("bmrt/decode")) == load_config(known["bmrt/decode"])
    assert f"there are {', '.join(known)}" in message(Path("cnof"))
    assert "No such file" in message(Path("conf.yml"))
    (tmp_path / "conf").write_text(default_configuration().read_text().replace("rounds: 5", "rounds: 7"))
    assert load_config(Path("conf")).rounds == 7
