"""Numbers of command lines within their limits; mistakes in one line."""

from __future__ import annotations

import argparse

import pytest

from harness.common.command_line import count, mistakes_in_words


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("7", 7), (str(2**31 - 1), 2**31 - 1)])
def test_count_reads_integers_within_its_limits(text: str, value: int) -> None:
    assert count()(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5", "nan", str(2**31), "9" * 5000])
def test_count_refuses_anything_else_and_names_it(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not an integer from 1 to 2147483647") as raised:
        count()(text)
    assert repr(text[:50]) in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("this\n  is wrong"), "tool: this is wrong\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "tool: a.txt: No such file or directory\n"),
        (OSError("no reason"), "tool: no reason\n"),
        (OSError(36, "File name too long", "x" * 5000), f"tool: {'x' * 297}...: File name too long\n"),
        (IsADirectoryError(21, "Is a directory", "a\nb"), "tool: a\\nb: Is a directory\n"),
    ],
)
def test_mistake_is_one_line_and_status_2(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), mistakes_in_words(argparse.ArgumentParser(prog="tool")):
        raise error
    assert capsys.readouterr().err == line


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), mistakes_in_words(argparse.ArgumentParser()):
        raise ZeroDivisionError
