"""Read YAML files and `--set` overrides into plain data, with stricter checks than YAML's own.

Numbers and booleans follow YAML 1.2, so `010`, `1:30`, `1_000`, `yes` and dates are text, and a key that expects a
number or a boolean rejects them; YAML 1.1 reads them as 8, 90, 1000, true and a date. The node tree is checked before
values are built from it, because duplicate keys, tags and aliases have a path there but are lost in the values.
"""

from __future__ import annotations

import copy
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.common.text import LONGEST, LONGEST_PATH, shortened

LARGEST_BYTES = 2**18  # of a file; far above any real configuration, and reading more would take seconds
MOST_VALUES = 10_000  # per file, including those repeated by aliases; about one second of work
DEEPEST = 32  # nesting depth of lists and mappings
MOST_MISTAKES = 20  # listed in one message

_TAG = "tag:yaml.org,2002:"
_KINDS = {
    yaml.ScalarNode: ("str", "int", "float", "bool", "null"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]{0,99})|0x[0-9a-fA-F]{1,16}", list("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|(?:0|[1-9][0-9]*)[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


class ConfigError(ValueError):
    """A configuration that cannot be used.

    `mistakes` has one line per mistake: path to the key, the value, and what is allowed.
    """

    def __init__(self, mistakes: Sequence[str], source: str = "the configuration") -> None:
        self.mistakes = _without_echoes(mistakes)
        listed = self.mistakes[:MOST_MISTAKES]
        if more := len(self.mistakes) - len(listed):
            listed.append(f"and {more} more")
        heading = f"{shortened(source, LONGEST_PATH)} cannot be used:"
        super().__init__("\n  ".join([heading, *listed]))


class _TooMuch(yaml.MarkedYAMLError):
    """Nesting is too deep, or there are too many values."""


class _Loader(yaml.SafeLoader):
    """Loader for the YAML 1.2 core schema that enforces the depth and size limits."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012, as in the base class

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        self._values += 1
        if self._depth > DEEPEST:
            raise _TooMuch(
                problem=f"more than {DEEPEST} levels of nested lists and mappings", problem_mark=event.start_mark
            )
        if self._values > 2 * MOST_VALUES:  # a mapping's keys count too
            raise _TooMuch(problem=f"more than {MOST_VALUES} values", problem_mark=event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text that YAML 1.1 or 1.2 would read as another type, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
_Dumper.yaml_implicit_resolvers = {
    letter: [*yaml.SafeDumper.yaml_implicit_resolvers.get(letter, []), *_Loader.yaml_implicit_resolvers.get(letter, [])]
    for letter in yaml.SafeDumper.yaml_implicit_resolvers.keys() | _Loader.yaml_implicit_resolvers.keys()
}


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ConfigError for anything else."""
    data = parse(_read(path), str(path))
    if not isinstance(data, dict):
        raise ConfigError([f"the top level is {show(data)}; it must be a mapping of keys to values"], str(path))
    return data


def parse(text: str, source: str) -> Any:
    """Parse YAML into plain data.

    Raises ConfigError for bad YAML, tags, repeated keys, and nesting or repetition beyond the limits above.
    """
    loader = None
    try:
        text.encode()
        loader = _Loader(text)
        node = loader.get_single_node()
        mistakes = [] if node is None else _Judge().mistakes(node)
        if mistakes:
            raise ConfigError(mistakes, source)
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        wrong = "" if isinstance(error, _TooMuch) else "not valid YAML: "
        raise ConfigError([f"{place}{wrong}{error.problem}"], source) from error
    except yaml.reader.ReaderError as error:
        letter = f"U+{error.character:04X}" if isinstance(error.character, int) else str(error.character)
        raise ConfigError([f"not valid YAML: the character {letter} is not allowed"], source) from error
    except UnicodeEncodeError as error:
        raise ConfigError([f"not valid YAML: a lone surrogate at {error.start}"], source) from error
    finally:
        if loader is not None:
            loader.dispose()


def dump(data: Any, **options: Any) -> str:
    """Return YAML that `parse` reads back as the same data; `options` are passed to `yaml.dump`."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options)


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], everywhere: Sequence[str]) -> dict[str, Any]:
    """Return a copy of the data with each `a.b=value` override applied.

    The path is dotted, list items are addressed by index, and the value is YAML. An override of a whole key listed in
    `everywhere` also applies to the grids in `also`. Raises ConfigError for an override without `=` or a path that does
    not exist.
    """
    data, mistakes = copy.deepcopy(data), []
    for override in overrides:
        path, equals, text = override.partition("=")
        try:
            if not (equals and all(_steps(path))):
                raise ValueError("must have the form key=value or key.key=value")
            if len(_steps(path)) > DEEPEST:
                raise ValueError(f"a path can have at most {DEEPEST} steps")
            _put(data, _steps(path), parse(text, "--set"))
        except ConfigError as error:
            mistakes += [f"--set {shortened(override)}: {mistake}" for mistake in error.mistakes]
        except ValueError as error:
            mistakes.append(f"--set {shortened(override)}: {error}")
        else:
            if path.strip() in everywhere:
                _drop_from_also(data, path.strip())
    if mistakes:
        raise ConfigError(mistakes)
    return data


def dotted(path: Sequence[object]) -> str:
    """Join ("a", 0, "b") into `a.0.b`, with each step on one line and shortened."""
    return ".".join(shortened(str(step)) for step in path)


def show(value: object) -> str:
    """Format a value as YAML on one line, shortened."""
    if isinstance(value, dict | list | tuple) and len(value) > 8:
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, str) and len(value) > LONGEST:
        value = value[:LONGEST]
    plain = list(value) if isinstance(value, tuple) else value
    try:
        text = dump(plain, default_flow_style=True, width=10**6)
    except yaml.YAMLError:
        text = repr(value)
    text = text.removesuffix("...\n").strip()
    if isinstance(value, str) and text == value:
        text = f"'{text}'"
    return shortened(text)


def _without_echoes(mistakes: Sequence[str]) -> list[str]:
    """Remove duplicates; a mistake that a grid in `also` inherits from the main grid is reported only there."""
    elsewhere = {_reason(mistake) for mistake in mistakes if not mistake.startswith("also.")}
    kept = [one for one in mistakes if not one.startswith("also.") or _reason(one) not in elsewhere]
    return list(dict.fromkeys(kept))


def _reason(mistake: str) -> str:
    path, _, reason = mistake.partition(": ")
    keys = [step for step in path.split(".") if not step.isdecimal()]  # an item's index differs between grids
    return f"{keys[-1]}: {reason}" if keys else reason


class _Judge:
    """Collects what is wrong with a node tree.

    Aliases make the tree a graph: each node is checked once and counted every time it is used.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def mistakes(self, node: yaml.Node) -> list[str]:
        found = list(self._mistakes(node, (), ()))
        if not found and self._counts[id(node)] > MOST_VALUES:
            found.append(f"more than {MOST_VALUES} values, including those repeated by aliases")
        return found

    def _mistakes(self, node: yaml.Node, path: tuple[object, ...], above: tuple[yaml.Node, ...]) -> Iterator[str]:
        if any(node is parent for parent in above):
            yield f"{_at(path)}an alias to a node that contains it is not allowed"
        elif id(node) not in self._counts:
            self._counts[id(node)] = 1
            if node.tag.removeprefix(_TAG) not in _KINDS[type(node)]:
                yield f"{_at(path)}the tag {shortened(node.tag)} is not allowed; only plain YAML is accepted"
            elif isinstance(node, yaml.ScalarNode):
                yield from _scalar_mistakes(node, path)
            else:
                yield from self._inside(node, path, (*above, node))
                parts = [part for item in node.value for part in (item[1:] if isinstance(item, tuple) else [item])]
                self._counts[id(node)] += sum(self._counts.get(id(part), 0) for part in parts)

    def _inside(self, node: yaml.Node, path: tuple[object, ...], above: tuple[yaml.Node, ...]) -> Iterator[str]:
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield from self._mistakes(item, (*path, index), above)
            return
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                yield f"{_at(path)}the key {show(key.value)} in line {line} is not allowed; keys must be text"
                continue
            yield from _scalar_mistakes(key, (*path, key.value))
            if key.value in seen:
                yield f"{dotted((*path, key.value))}: the key is repeated in line {line}; it may appear only once"
            seen.add(key.value)
            yield from self._mistakes(value, (*path, key.value), above)


def _scalar_mistakes(node: yaml.ScalarNode, path: tuple[object, ...]) -> Iterator[str]:
    """Report a value that does not match its tag, or text that cannot be encoded."""
    if node.tag in (f"{_TAG}str", f"{_TAG}merge"):
        try:
            node.value.encode()
        except UnicodeEncodeError:
            yield f"{_at(path)}{show(node.value)} is not allowed; it contains a lone surrogate"
        return
    name = node.tag.removeprefix(_TAG)
    if not re.fullmatch(_CORE[name][0], node.value):
        yield f"{_at(path)}{show(node.value)} is not allowed; it is not a valid {name}"


def _read(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # a pipe or a device might never end
            raise ConfigError(["the file cannot be read: it is a pipe, socket or device, not a file"], str(path))
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise ConfigError(
                [f"the file has more than {LARGEST_BYTES} bytes, too many for a configuration"], str(path)
            )
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([f"the file cannot be read: {error.strerror}"], str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"the file is not UTF-8 text: {error.reason} at byte {error.start}"], str(path)) from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"the file cannot be read: {error}"], str(path)) from error  # a zero byte in its path


def _steps(path: str) -> list[str]:
    return path.strip().split(".")


def _at(path: tuple[object, ...]) -> str:
    return f"{dotted(path)}: " if path else ""


def _put(data: Any, path: list[str], value: object) -> None:
    place = data
    for depth, step in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(place, dict):
            if last:
                place[step] = value
                return
            place = place.setdefault(step, {})
        elif isinstance(place, list):
            if not (step.isdecimal() and int(step) < len(place)):
                known = f"0 to {len(place) - 1}" if place else "none, since it is empty"
                raise ValueError(f"{dotted(path[:depth])} is a list and has no item {step!r}; its items are {known}")
            if last:
                place[int(step)] = value
                return
            place = place[int(step)]
        else:
            raise ValueError(f"{dotted(path[:depth])} is {show(place)}, which has no keys")


def _drop_from_also(data: dict[str, Any], key: str) -> None:
    also = data.get("also")
    for grid in also if isinstance(also, list) else []:
        if isinstance(grid, dict):
            grid.pop(key, None)
