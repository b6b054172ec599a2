from __future__ import annotations

from pathlib import Path

import pytest

from tasks.haystack import NOISE, Room, last_that, noise, place, ring, split_lines, text_lines
from tasks.text import TextBytes


@pytest.fixture
def numbered(tmp_path: Path) -> TextBytes:
    path = tmp_path / "numbered.txt"
    path.write_text("\n".join(f"line {i:03}" for i in range(200)))
    return TextBytes(path)


def test_inserts_lie_at_their_depths_and_equal_depths_keep_order() -> None:
    lines = list("abcd")
    assert place(lines, [(1.0, "Z"), (0.5, "M"), (0.5, "N"), (0.0, "A")]) == ["A", *"ab", "M", "N", *"cd", "Z"]
    assert lines == list("abcd")


def test_more_text_continues_the_same_lines(numbered: TextBytes) -> None:
    filler = text_lines(numbered, start=0.5, without=r"x^")
    few, many = filler(100), filler(1_000)
    assert many[: len(few)] == few
    assert len(many) > len(few) > 5
    assert set(many) <= {f"line {i:03}" for i in range(200)} | {"line 199line 000"}


def test_lines_that_match_are_left_out(numbered: TextBytes) -> None:
    found = text_lines(numbered, start=0.0, without=r"7$")(10_000)
    assert found
    assert not [line for line in found if line.endswith("7")]


def test_a_ring_gives_every_line_once() -> None:
    lines = [f"{i}" for i in range(10)]
    assert ring(lines, 0.73)(10_000) == ["7", "8", "9", "0", "1", "2", "3", "4", "5", "6"]
    assert ring(lines, 0.0)(3) == ["0", "1", "2"]


def test_long_lines_are_cut_at_spaces_and_lose_nothing_else() -> None:
    words = "lorem ipsum dolor " * 40 + "x" * 300
    pieces = split_lines(words.encode())
    assert max(map(len, pieces)) <= 120
    assert "".join("".join(pieces).split()) == "".join(words.split())
    assert set(" ".join(pieces[:4]).split()) == {"lorem", "ipsum", "dolor"}


def test_bytes_that_are_no_text_are_left_out() -> None:
    assert split_lines(b"a\xff\nb") == ["a", "b"]


@pytest.mark.parametrize("length", [100, 101, 250, 5_000])
def test_filler_is_as_much_as_fits(length: int) -> None:
    room = Room(length)
    lines = room.fill(noise, "\n".join)
    assert room.holds("\n".join(lines))
    assert not room.holds("\n".join([*lines, NOISE]))


def test_filler_that_ends_before_the_length_is_refused(numbered: TextBytes) -> None:
    with pytest.raises(ValueError, match=r"length=9000 is not allowed: there are only 19\d lines of filler"):
        Room(9_000).fill(text_lines(numbered, start=0.1, without=r"x^"), "\n".join)


def test_halving_finds_the_last_number_that_holds() -> None:
    for count in range(1, 40):
        for wanted in range(count):
            assert last_that(lambda number, wanted=wanted: number <= wanted, count) == wanted
