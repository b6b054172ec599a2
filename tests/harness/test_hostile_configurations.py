"""Configurations that somebody wrote to do harm, or by mistake: one message, exit 2, and nothing on the disk."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.yaml_source import DEEPEST, LARGEST_BYTES, MOST_VALUES
from harness.sweep import main
from tests import preloaded

ROOT = Path(__file__).parents[2]

MINIMAL = """\
backends: [vanilla]
lengths: [16]
batch: 1
heads: 2
head_dim: 8
causal: true
subject: attention
level: kernel
mode: forward
inputs: gaussian
dtype: float32
device: cpu
threads: 1
rounds: 1
budget: {case_s: 10, total_s: 60}
seed: 0
executor: local
"""


def laughs(kind: str, rows: int = 10) -> str:
    """Each line repeats the one before nine times."""
    first, join = {"list": ("[x]", "[{}]"), "mapping": ("{k: x}", "{{{}}}"), "merge": ("{k: x}", "{{<<: [{}]}}")}[kind]
    lines = [f"a0: &a0 {first}"]
    for row in range(1, rows):
        parts = [f"k{place}: *a{row - 1}" if kind == "mapping" else f"*a{row - 1}" for place in range(9)]
        lines.append(f"a{row}: &a{row} {join.format(', '.join(parts))}")
    return "\n".join([*lines, f"expect: *a{rows - 1}\n"])


def with_value(key: str, value: str) -> str:
    """The minimal configuration with another value of a key."""
    lines = [line for line in MINIMAL.splitlines() if not line.startswith(f"{key}:")]
    return "\n".join([*lines, f"{key}: {value}", ""])


TEXTS: dict[str, tuple[str, str]] = {
    # Nested or repeated without end.
    "lists": (with_value("backends", "[" * 3000 + "]" * 3000), "nested lists and mappings"),
    "open lists": (with_value("backends", "[" * 100_000), "nested lists and mappings"),
    "mappings": (with_value("expect", "{a: " * 3000 + "1" + "}" * 3000), "nested lists and mappings"),
    "open mappings": ("{a: " * 50_000, "nested lists and mappings"),
    "dashes": ("a:\n" + "- " * 5000 + "x\n", "nested lists and mappings"),
    "indents": ("\n".join(" " * depth + "a:" for depth in range(400)), "nested lists and mappings"),
    "keys that are lists": ("? " * 3000, "nested lists and mappings"),
    "one too deep": (with_value("expect", "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)), "nested lists and mappings"),
    "laughs": (MINIMAL + laughs("list"), f"more than {MOST_VALUES} values"),
    "laughing mappings": (MINIMAL + laughs("mapping"), f"more than {MOST_VALUES} values"),
    "laughing merges": (MINIMAL + laughs("merge"), f"more than {MOST_VALUES} values"),
    "doubling": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
        f"more than {MOST_VALUES} values",
    ),
    "a list of itself": (MINIMAL + "also: &a [*a]\n", "also.0: an alias to a node that contains it"),
    "a mapping of itself": (MINIMAL + "expect: &a {x: *a}\n", "expect.x: an alias to a node that contains it"),
    "a merge of itself": (MINIMAL + "expect: &a {<<: *a}\n", "an alias to a node that contains it"),
    "the whole in itself": ("&a\nexpect: *a\n", "expect: an alias to a node that contains it"),
    "two in each other": (MINIMAL + "also: &a [&b [*a, *b]]\n", "an alias to a node that contains it"),
    "an anchor that is not there": (MINIMAL + "expect: *nothing\n", "undefined alias"),
    "an anchor twice": (MINIMAL + "also: [&a x, &a y]\n", "second occurrence"),
    "many values": (with_value("lengths", f"[{', '.join(map(str, range(1, 30_000)))}]"), "more than"),
    "too many values": ("- a\n" * 60_000, f"more than {MOST_VALUES} values"),
    "a long file": ("# " + "x" * LARGEST_BYTES, f"more than {LARGEST_BYTES} bytes"),
    # Keys.
    "a key twice": (MINIMAL + "seed: 1\n", "seed: the key is repeated"),
    "a key twice within": (with_value("budget", "{case_s: 1, case_s: 2, total_s: 3}"), "budget.case_s: the key is"),
    "a key twice by escapes": (MINIMAL + '"se\\x65d": 1\n', "seed: the key is repeated"),
    "a merge twice": (MINIMAL + "expect: {<<: {a: 1}, <<: {b: 1}}\n", "expect.<<: the key is repeated"),
    "a merge of a number": (MINIMAL + "expect: {<<: 3}\n", "expected a mapping"),
    "a merge of numbers": (MINIMAL + "expect: {<<: [3, 4]}\n", "expected a mapping"),
    "a merge as a value": (with_value("out", "<<"), "the tag"),
    "a key that is a number": (MINIMAL + "1: x\n", "keys must be text"),
    "a key that is null": (MINIMAL + "~: x\n", "keys must be text"),
    "a key that is true": (MINIMAL + "true: x\n", "keys must be text"),
    "a key that is a list": (MINIMAL + "? [a]\n: x\n", "keys must be text"),
    "a key that is a mapping": (MINIMAL + "? {a: 1}\n: x\n", "keys must be text"),
    "a key that is an alias": ("a: &a [x]\n? *a\n: y\n", "keys must be text"),
    "an empty key": (MINIMAL + "'': x\n", "this key is unknown"),
    "an unknown key": (MINIMAL + "lenghts: 3\n", "did you mean lengths"),
    "a key of 100,000 letters": (MINIMAL + f"? {'k' * 100_000}\n: x\n", "this key is unknown"),
    "a key with a line end": (MINIMAL + '"a\\nb": x\n', "this key is unknown"),
    "a key that colours": (MINIMAL + '"\\e[31m": x\n', "this key is unknown"),
    "a key of half a character": (MINIMAL + '"\\ud800": x\n', "lone surrogate"),
    "5,000 unknown keys": (MINIMAL + "".join(f"k{i}: x\n" for i in range(5000)), "and 180 more"),
    # Tags.
    "a tag that calls": (with_value("out", "!!python/object/apply:os.system [ls]"), "the tag"),
    "a tag that names": (with_value("out", "!!python/name:os.system"), "the tag"),
    "a module's tag": (with_value("out", "!!python/module:os"), "the tag"),
    "an own tag": (with_value("out", "!own x"), "the tag !own"),
    "a tag of 5,000 letters": (with_value("out", f"!{'x' * 5000} y"), "the tag"),
    "a tag without a handle": (with_value("out", "!a!b x"), "tag handle"),
    "a set": (with_value("lengths", "!!set {16}"), "the tag"),
    "bytes": (with_value("out", "!!binary aGk="), "the tag"),
    "pairs": (with_value("expect", "!!omap [a: 1]"), "the tag"),
    "a time": (with_value("out", "!!timestamp 2020-13-45"), "the tag"),
    "a list called a mapping": (with_value("expect", "!!map [a]"), "the tag"),
    "a mapping called text": (with_value("out", "!!str {a: b}"), "the tag"),
    "a word called an integer": (with_value("seed", "!!int x"), "it is not a valid int"),
    "nothing called an integer": (with_value("seed", '!!int ""'), "it is not a valid int"),
    "eight called an integer": (with_value("seed", "!!int 010"), "it is not a valid int"),
    "a word called a number": (with_value("budget", "{case_s: !!float x, total_s: 1}"), "it is not a valid float"),
    "nothing called a number": (with_value("budget", '{case_s: !!float "", total_s: 1}'), "it is not a valid float"),
    "a word called a switch": (with_value("causal", "!!bool maybe"), "it is not a valid bool"),
    "yes called a switch": (with_value("causal", "!!bool yes"), "it is not a valid bool"),
    "a word called null": (with_value("out", "!!null x"), "it is not a valid null"),
    # Numbers and switches of YAML 1.1.
    "an octal seed": (with_value("seed", "010"), "seed: '010' is not allowed"),
    "a sexagesimal length": (with_value("lengths", "[1:30]"), "lengths.0: '1:30' is not allowed"),
    "sexagesimal seconds": (with_value("budget", "{case_s: 1:30.5, total_s: 60}"), "budget.case_s: '1:30.5' is not"),
    "0o10": (with_value("seed", "0o10"), "seed: '0o10' is not allowed"),
    "a binary number": (with_value("seed", "0b11"), "seed: '0b11' is not allowed"),
    "underlines": (with_value("lengths", "1_000"), "lengths: '1_000' is not allowed"),
    "underlined seconds": (with_value("budget", "{case_s: 1_0.0, total_s: 60}"), "budget.case_s: '1_0.0' is not"),
    "yes": (with_value("causal", "yes"), "causal: 'yes' is not allowed"),
    "off": (with_value("causal", "Off"), "causal: 'Off' is not allowed"),
    "on": (with_value("causal", "[on, true]"), "causal.0: 'on' is not allowed"),
    "no": (with_value("causal", "NO"), "causal: 'NO' is not allowed"),
    "a date": (with_value("seed", "2020-01-01"), "seed: '2020-01-01' is not allowed"),
    "equals": (with_value("seed", "="), "seed: '=' is not allowed"),
    # Numbers that are none, too large or too small.
    "a seed of NaN": (with_value("seed", ".nan"), "seed: .nan is not allowed"),
    "infinite lengths": (with_value("lengths", ".inf"), "lengths: .inf is not allowed"),
    "NaN seconds": (with_value("budget", "{case_s: .NaN, total_s: 1}"), "budget.case_s: .nan is not allowed"),
    "infinite seconds": (with_value("budget", "{case_s: 1, total_s: .inf}"), "budget.total_s: .inf is not allowed"),
    "1e999 seconds": (with_value("budget", "{case_s: 1e999, total_s: 1}"), "budget.case_s: .inf is not allowed"),
    "1e300 seconds": (with_value("budget", "{case_s: 1e300, total_s: 1}"), "budget.case_s: 1.0e+300 is not allowed"),
    "1e300 gigabytes": (
        with_value("budget", "{case_s: 1, total_s: 1, memory_gb: 1e300}"),
        "budget.memory_gb: 1.0e+300 is not allowed",
    ),
    "negative gigabytes": (with_value("budget", "{case_s: 1, total_s: 1, memory_gb: -1}"), "budget.memory_gb: -1 is"),
    "no seconds": (with_value("budget", "{case_s: 0.0, total_s: 1}"), "budget.case_s: 0.0 is not allowed"),
    "a negative seed": (with_value("seed", "-1"), "seed: -1 is not allowed"),
    "a seed of 2^63": (with_value("seed", str(2**63)), f"seed: {2**63} is not allowed"),
    "a seed of 10,000 digits": (with_value("seed", "9" * 10_000), "seed: '999"),
    "a hexadecimal seed of 10,000 digits": (with_value("seed", f"0x{'f' * 10_000}"), "seed: '0xfff"),
    "lengths of 5,000 digits": (with_value("lengths", f"[{'1' * 5000}]"), "lengths.0: '111"),
    "a negative length": (with_value("lengths", "[16, -16]"), "lengths.1: -16 is not allowed"),
    "no length": (with_value("lengths", "[]"), "lengths: [] is not allowed"),
    "no heads": (with_value("heads", "0"), "heads: 0 is not allowed"),
    "half a head": (with_value("heads", "0.5"), "heads: 0.5 is not allowed"),
    "heads that are true": (with_value("heads", "true"), "heads: true is not allowed"),
    "heads in lists": (with_value("heads", "[[2]]"), "heads.0: [2] is not allowed"),
    "endless rounds": (with_value("rounds", str(2**40)), "rounds: 1099511627776 is not allowed"),
    "a negative expectation": (with_value("expect", "{vanilla: {error: -1}}"), "expect.vanilla.error: -1 is not"),
    "bounds of NaN": (with_value("expect", "{vanilla: {time_exponent: [.nan, 1]}}"), "is not allowed"),
    "bounds the wrong way": (with_value("expect", "{vanilla: {time_exponent: [2, 1]}}"), "the lowest must not be"),
    "a setting of NaN": (with_value("backends", "[{name: vanilla, scale: .nan}]"), "backends.0.scale: .nan is not"),
    "a setting of 100 digits": (with_value("backends", f"[{{name: bit_sampling, bits: 1{'0' * 99}}}]"), "bit_sampling"),
    # Sizes that cannot exist.
    "2^40 tokens": (with_value("lengths", "[16, 1099511627776]"), "but this machine has"),
    "10^9 heads": (with_value("heads", "1000000000") + "kv_heads: 1000000000\n", "but this machine has"),
    "a width of 10^12": (with_value("head_dim", "1000000000000"), "but this machine has"),
    "a value width of 10^12": (MINIMAL + "value_dim: 1000000000000\n", "but this machine has"),
    "a batch of 2^40": (with_value("batch", "1099511627776"), "but this machine has"),
    "a product beyond 64 bits": (
        with_value("batch", str(2**40)).replace("heads: 2", f"heads: {2**40}"),
        f"take {4 * 2**40 * 2**40 * 16 * 8 * 4} bytes",
    ),
    "sizes beyond 2^40": (with_value("batch", str(2**64)), f"it must be at most {2**40}"),
    "a layer of 2^40": (with_value("level", "layer").replace("[16]", f"[{2**40}]"), "but this machine has"),
    "2^40 tokens to decode after": (with_value("mode", "decode").replace("[16]", f"[{2**40}]"), "but this machine has"),
    "a further grid of 2^40": (MINIMAL + "also: [{lengths: 1099511627776}]\n", "also.0.lengths: n = 1099511627776"),
    "a million cases": (
        MINIMAL.replace("lengths: [16]", f"lengths: [{', '.join(map(str, range(1, 1001)))}]").replace(
            "batch: 1", f"batch: [{', '.join(map(str, range(1, 1001)))}]"
        ),
        "1000000 cases are requested",
    ),
    "a million settings": (
        with_value("backends", "[{name: bit_sampling, bits: [%s], window: [%s]}]" % ((",".join("1" * 1000),) * 2)),
        "1000000 cases are requested",
    ),
    # Text where a path or a name is wanted.
    "out with a zero byte": (with_value("out", '"a\\0b"'), 'out: "a\\0b" is not allowed'),
    "out of 5,000 letters": (with_value("out", "x" * 5000), "out:"),
    "out of 50,000 folders": (with_value("out", "x/" * 50_000), "out:"),
    "out with a line end": (with_value("out", '"a\\nb"'), "out:"),
    "out with a line separator": (with_value("out", '"a\\u2028b"'), "out:"),
    "out of half a character": (with_value("out", '"\\udc00"'), "lone surrogate"),
    "out below a file": (with_value("out", "/etc/passwd/x"), "out:"),
    "out below a device": (with_value("out", "/dev/null/x"), "out:"),
    "no out": (with_value("out", "''"), "out: '' is not allowed"),
    "inputs of 5,000 letters": (with_value("inputs", "x" * 5000), "inputs:"),
    "inputs with a zero byte": (with_value("inputs", '"a\\0b"'), "inputs:"),
    "a file of inputs of 5,000 letters": (with_value("inputs", f"{'x' * 5000}.safetensors"), "inputs:"),
    "a text of 5,000 letters": (with_value("text_file", "x" * 5000) + "also: [{inputs: text}]\n", "text_file:"),
    "a device as text": (with_value("text_file", "/dev/zero") + "also: [{inputs: text}]\n", "text_file:"),
    "a folder as text": (with_value("text_file", "/") + "also: [{inputs: text}]\n", "text_file:"),
    "a backend of 5,000 letters": (with_value("backends", f"[{'x' * 5000}]"), "backends.0"),
    "a backend with a zero byte": (with_value("backends", '["a\\0b"]'), "backends.0"),
    "a backend that is nowhere": (with_value("backends", "[no.such.module:Thing]"), "cannot be imported"),
    "a backend that is no class": (with_value("backends", "[os:sep]"), "backends.0"),
    "a subject that is no path": (with_value("subject", "'a b:C'"), "subject: 'a b:C' is not allowed"),
    "a label of two lines": (with_value("backends", '[{name: vanilla, label: "a\\nb"}]'), "backends.0.label"),
    "labels twice": (
        with_value("backends", "[{name: vanilla, label: a}, {name: flash, label: a}]"),
        "a label must name a single series",
    ),
    "a device that is not there": (with_value("device", "cuda:99"), "device: 'cuda:99' is not available"),
    "a device that is none": (with_value("device", "tpu"), "device: 'tpu' is not allowed"),
    "more threads than cores": (with_value("threads", "100000"), "threads: 100000 is not allowed"),
    # What is no mapping, or no YAML.
    "nothing": ("", "the top level is null"),
    "a space": (" \n", "the top level is null"),
    "a comment": ("# nothing\n", "the top level is null"),
    "a list": ("- a\n", "the top level is [a]"),
    "a word": ("word\n", "the top level is 'word'"),
    "a number": ("3\n", "the top level is 3"),
    "two documents": ("a: 1\n---\nb: 2\n", "another document"),
    "tabs": ("a:\n\t- b\n", "not valid YAML"),
    "an open quote": ('a: "b\n', "not valid YAML"),
    "an open list": ("a: [1\nb: 2\n", "not valid YAML"),
    "a lone bracket": ("a: ]\n", "not valid YAML"),
    "an unknown directive": ("%YAML 9.9\n---\na: 1\n", "not valid YAML"),
    "a wrong escape": ('a: "\\q"\n', "not valid YAML"),
    "a zero byte": ("a: \0\n", "not valid YAML"),
    "a control character": ("a: \x07\n", "not valid YAML"),
    "JSON that is cut off": ('{"backends": ["vanilla"', "not valid YAML"),
    "a page": ("<!DOCTYPE html><html><body>not found: 404</body></html>", "cannot be used"),
}

OVERRIDES: dict[str, tuple[str, str]] = {
    "no value": ("seed", "must have the form key=value"),
    "no key": ("=3", "must have the form key=value"),
    "an empty step": ("budget..case_s=1", "must have the form key=value"),
    "a dot too many": ("budget.case_s.=1", "must have the form key=value"),
    "a mistyped key": ("lenghts=[16]", "did you mean lengths"),
    "a mistyped key within": ("budget.cases=1", "did you mean case_s"),
    "a key of a number": ("seed.x=1", "seed is 0, which has no keys"),
    "an item that is not there": ("lengths.7=1", "its items are 0 to 0"),
    "an item without end": (f"lengths.{'9' * 5000}=1", "--set lengths.999"),
    "5,000 steps": (f"{'.'.join('a' * 5000)}=1", f"a path can have at most {DEEPEST} steps"),
    "3,000 lists": (f"backends={'[' * 3000}", "nested lists and mappings"),
    "octal": ("seed=010", "seed: '010' is not allowed"),
    "sexagesimal": ("lengths=[1:30]", "lengths.0: '1:30' is not allowed"),
    "an alias": ("lengths=*a", "undefined alias"),
    "a tag": ("seed=!!python/name:os.system", "the tag"),
    "no YAML": ("seed=[1", "not valid YAML"),
    "half a character": ("out=\udcff", "--set out"),
    "an open quote": ('out="a', "not valid YAML"),
    "a device that is not there": ("device=cuda:9", "is not available on this machine"),
    "a million letters": (f"seed={'x' * 1_000_000}", "seed: 'xxx"),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**9)


def circle(path: Path) -> None:
    path.symlink_to(path)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (pipe, "it is a pipe, socket or device"),
    "a socket": (listener, "it is a pipe, socket or device"),
    "a device": (endless, "it is a pipe, socket or device"),
    "a folder": (Path.mkdir, "Is a directory"),
    "a gigabyte": (gigabyte, "too many for a configuration"),
    "a link to itself": (circle, "symbolic links"),
    "nothing there": (lambda path: None, "No such file"),
    "UTF-16": (lambda path: path.write_text(MINIMAL, encoding="utf-16"), "not UTF-8 text"),
    "Latin-1": (lambda path: path.write_bytes(b"out: caf\xe9\n"), "not UTF-8 text"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "not UTF-8 text"),
}


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints on stderr, which must be one message that a person can read, with exit 2."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("python -m harness.sweep: ")
    assert len(printed.err) < 12_000
    assert all(letter.isprintable() or letter == "\n" for letter in printed.err)
    assert "pydantic" not in printed.err
    return printed.err


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_corpus_is_large() -> None:
    assert len(TEXTS) + len(OVERRIDES) + len(FILES) >= 120


def test_what_the_corpus_spoils_is_right(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "conf.yml").write_text(MINIMAL)
    assert main(["conf.yml", "--dry-run"]) == 0
    assert "1 cases" in capsys.readouterr().out


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_text_is_refused(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    text, message = TEXTS[name]
    (place / "conf.yml").write_text(text)
    assert message in refusal(["conf.yml", "--dry-run"], capsys)
    assert [path.name for path in place.iterdir()] == ["conf.yml"]


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_hostile_override_is_refused(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    override, message = OVERRIDES[name]
    (place / "conf.yml").write_text(MINIMAL)
    assert message in refusal(["conf.yml", "--dry-run", "--set", override], capsys)


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make, message = FILES[name]
    make(place / "conf.yml")
    assert message in refusal(["conf.yml", "--dry-run"], capsys)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "x/" * 5000, ""])
def test_a_hostile_path_is_refused(place: Path, capsys: pytest.CaptureFixture[str], path: str) -> None:
    (place / "conf.yml").write_text(MINIMAL)
    assert "cannot be used" in refusal([path or ".", "--dry-run"], capsys)
    assert "out:" in refusal(["conf.yml", "--dry-run", "--out", path], capsys)
    assert "--resume:" in refusal(["--resume", path or "nowhere"], capsys)


@pytest.mark.parametrize("name", ["laughs", "lists", "2^40 tokens"])
def test_the_command_itself_exits_with_2(place: Path, name: str) -> None:
    (place / "conf.yml").write_text(TEXTS[name][0])
    done = preloaded.run("-m", "harness.sweep", str(place / "conf.yml"), "--dry-run", cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("\ufeff" + MINIMAL, "seed", 0),
        (MINIMAL.replace("seed: 0", "seed: 0x10"), "seed", 16),
        (MINIMAL.replace("seed: 0", "seed: +7"), "seed", 7),
        (MINIMAL + "out: 010\n", "out", "010"),
        (MINIMAL + "out: 2020-01-01\n", "out", "2020-01-01"),
        (MINIMAL + "out: no\n", "out", "no"),
        (MINIMAL + "out: 'é 日本 😀'\n", "out", "é 日本 😀"),
        (MINIMAL + "out: !!str 3\n", "out", "3"),
        (
            "base: &b {}\n".replace("base: &b {}\n", "")
            + MINIMAL.replace("[16]", "&n [16]")
            + "also: [{lengths: *n}]\n",
            "seed",
            0,
        ),
    ],
)
def test_what_is_meant_is_taken_as_written(place: Path, text: str, key: str, value: object) -> None:
    from harness.config.model import load_config

    (place / "conf.yml").write_text(text, encoding="utf-8")
    assert getattr(load_config(place / "conf.yml"), key) == value
