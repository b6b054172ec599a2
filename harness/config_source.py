"""From a YAML file and `--set` overrides to plain data, refusing what YAML lets through.

Only `yaml.safe_load` makes values. The tree of nodes is read beside it, since duplicate keys and foreign tags have
a path there, and are silent or nameless in the values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml


class ConfigError(ValueError):
    """A configuration that cannot be used. `mistakes` has a line for each: path to the key, value, what is allowed."""

    def __init__(self, mistakes: Sequence[str], source: str = "the configuration") -> None:
        self.mistakes = _without_echoes(mistakes)
        super().__init__("\n  ".join([f"{source} cannot be used:", *self.mistakes]))


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"the file cannot be read: {error.strerror}"], str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"the file is not UTF-8 text: {error.reason} at byte {error.start}"], str(path)) from error
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError([f"the top level is {show(data)}; it must be a mapping of keys to values"], str(path))
    return data


def parse(text: str, source: str) -> Any:
    """Plain data from YAML. Raises ConfigError for bad YAML, other tags than YAML's own, and repeated keys."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        mistakes = [] if node is None else list(_mistakes(node, (), ()))
        if mistakes:
            raise ConfigError(mistakes, source)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError([f"{place}not YAML: {error.problem}"], source) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2020-13-45
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"not YAML: {error}"], source) from error


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], everywhere: Sequence[str]) -> dict[str, Any]:
    """Data with each `a.b=value` put in its place: a dotted path, list items by index, the value as YAML.

    An override of a whole key among `everywhere` holds in the grids of `also` too. Raises ConfigError for
    overrides without a `=` and paths that lead nowhere.
    """
    data, mistakes = copy.deepcopy(data), []
    for override in overrides:
        path, equals, text = override.partition("=")
        try:
            if not (equals and path.strip()):
                raise ValueError("must have the form key=value or key.key=value")
            _put(data, path.strip().split("."), parse(text, f"--set {override}"))
        except ConfigError as error:
            mistakes += [f"--set {override}: {mistake}" for mistake in error.mistakes]
        except ValueError as error:
            mistakes.append(f"--set {override}: {error}")
        else:
            if path.strip() in everywhere:
                _drop_from_also(data, path.strip())
    if mistakes:
        raise ConfigError(mistakes)
    return data


def dotted(path: Sequence[object]) -> str:
    """`a.0.b` of ("a", 0, "b")."""
    return ".".join(map(str, path))


def show(value: object) -> str:
    """A value as YAML writes it, on one line, shortened."""
    if isinstance(value, dict | list | tuple) and len(value) > 8:
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    plain = list(value) if isinstance(value, tuple) else value
    try:
        text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    except yaml.YAMLError:
        text = repr(value)
    text = text.removesuffix("...\n").strip()
    if isinstance(value, str) and text == value:
        text = f"'{text}'"
    return text if len(text) <= 80 else text[:77] + "..."


def _without_echoes(mistakes: Sequence[str]) -> list[str]:
    """Each mistake once; what a grid of `also` has from the main grid is reported there alone."""
    elsewhere = {_reason(mistake) for mistake in mistakes if not mistake.startswith("also.")}
    kept = [one for one in mistakes if not one.startswith("also.") or _reason(one) not in elsewhere]
    return list(dict.fromkeys(kept))


def _reason(mistake: str) -> str:
    path, _, reason = mistake.partition(": ")
    keys = [step for step in path.split(".") if not step.isdecimal()]  # an item's index differs from grid to grid
    return f"{keys[-1]}: {reason}" if keys else reason


def _mistakes(node: yaml.Node, path: tuple[object, ...], above: tuple[yaml.Node, ...]) -> Iterator[str]:
    if node.tag not in yaml.SafeLoader.yaml_constructors:
        yield f"{_at(path)}the tag {node.tag} is not allowed; only plain YAML is"
    elif any(node is parent for parent in above):
        yield f"{_at(path)}an alias to what contains it is not allowed"
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _mistakes(item, (*path, index), (*above, node))
    elif isinstance(node, yaml.MappingNode):
        yield from _mapping_mistakes(node, path, (*above, node))


def _mapping_mistakes(node: yaml.MappingNode, path: tuple[object, ...], above: tuple[yaml.Node, ...]) -> Iterator[str]:
    seen = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            yield f"{_at(path)}the key {show(key.value)} in line {line} is not allowed; keys are text"
            continue
        if key.value in seen:
            yield f"{dotted((*path, key.value))}: the key is there twice, again in line {line}; once is allowed"
        seen.add(key.value)
        yield from _mistakes(value, (*path, key.value), above)


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
                known = f"0 to {len(place) - 1}" if place else "none, it is empty"
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
