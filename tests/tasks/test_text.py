from __future__ import annotations

import itertools
import sysconfig
from pathlib import Path

import pytest
import torch

from tasks.text import TextBytes


@pytest.fixture
def numbered(tmp_path: Path) -> TextBytes:
    """A text in which every byte tells its place."""
    path = tmp_path / "numbered.txt"
    path.write_bytes(bytes(range(251)))
    return TextBytes(path)


@pytest.fixture(scope="module")
def library() -> TextBytes:
    return TextBytes()


def test_the_standard_library_has_room_for_the_longest_default_length(library: TextBytes) -> None:
    assert len(library) > 2 * 262_144


def test_the_standard_library_is_python_source(library: TextBytes) -> None:
    text = bytes(library.tokens(200_000).tolist())
    assert text.count(b"\ndef ") + text.count(b"    def ") > 100


def test_the_standard_library_is_the_same_text_every_time(library: TextBytes) -> None:
    assert torch.equal(TextBytes().tokens(5_000, seed=7), library.tokens(5_000, seed=7))


def test_installed_packages_and_test_suites_are_not_part_of_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.py", "below/b.py", "site-packages/c.py", "below/tests/d.py", "__pycache__/e.py", "f.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.stem)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert sorted(bytes(TextBytes().tokens(2).tolist())) == [*b"ab"]
    assert len(TextBytes()) == 2


def test_an_installation_without_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="standard library holds no text"):
        len(TextBytes())


def test_tokens_are_bytes_in_order(numbered: TextBytes) -> None:
    tokens = numbered.tokens(13)
    assert tokens.dtype == torch.uint8
    assert tokens.tolist() == list(range(13))


def test_a_stretch_starts_where_the_one_before_it_ends(numbered: TextBytes) -> None:
    whole = numbered.tokens(120, seed=3)
    parts = [numbered.tokens(40, seed=3, start=start) for start in (0, 40, 80)]
    assert torch.equal(torch.cat(parts), whole)


def test_the_text_is_a_ring_read_at_most_once(numbered: TextBytes) -> None:
    assert sorted(numbered.tokens(251, seed=5).tolist()) == list(range(251))


def test_small_seeds_have_disjoint_stretches(numbered: TextBytes) -> None:
    seeds = 8
    stretches = [set(numbered.tokens(int(251 / (2.5 * seeds)), seed=seed).tolist()) for seed in range(seeds)]
    assert all(first.isdisjoint(second) for first, second in itertools.combinations(stretches, 2))


def test_a_short_text_says_how_much_it_has_and_needs(numbered: TextBytes) -> None:
    with pytest.raises(ValueError, match=r"numbered\.txt is too short: it has 251 bytes, but 252 are needed"):
        numbered.tokens(200, start=52)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'.*nothing\.txt' cannot be read: No such file"):
        TextBytes(tmp_path / "nothing.txt").tokens(1)


def test_a_folder_is_not_a_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        len(TextBytes(tmp_path))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.touch()
    with pytest.raises(ValueError, match="holds no text"):
        len(TextBytes(path))


@pytest.mark.parametrize("wrong", [{"count": -1}, {"count": 1, "start": -1}, {"count": 1, "seed": -1}], ids=str)
def test_negative_numbers_are_refused(numbered: TextBytes, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="none may be negative"):
        numbered.tokens(**wrong)
