"""Which paths can be a run's folder, and in which words others are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.results.run_dir import FolderError, new_run, require_folder


def test_a_folder_that_is_there_or_can_be_made_is_allowed_and_nothing_is_made(tmp_path: Path) -> None:
    require_folder(tmp_path, "out")
    require_folder(tmp_path / "new" / "below", "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("file", "out: .*file cannot be created: it is not a folder"),
        ("file/below", "out: .*below cannot be created: .*file is not a folder"),
        ("dangling", "out: .*dangling cannot be created: it is not a folder"),
        ("zero\0byte", r"out: '.*zero\\x00byte' is not allowed; a path must not contain a null byte"),
        ("n" * 256, "out: '.*' is not allowed; a name must have at most 255 bytes"),
        ("/".join(["name"] * 1000), "out: '.*' is not allowed; a path must have fewer than 4096 bytes"),
    ],
)
def test_a_path_that_can_be_no_folder_is_refused_in_words(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FolderError, match=message):
        require_folder(tmp_path / path, "out")
    with pytest.raises(FolderError, match=message):
        new_run(str(tmp_path / path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_leave_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FolderError, match=r"out: .* cannot be written"):
            require_folder(tmp_path / "new", "out")
    finally:
        tmp_path.chmod(0o700)


def test_a_path_of_thousands_of_folders_is_refused_before_any_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking each of its parents first would take far too long."""

    def look(path: Path) -> bool:
        raise AssertionError(f"{len(str(path))} letters were looked for")

    monkeypatch.setattr(os.path, "lexists", look)
    with pytest.raises(FolderError, match="a path must have fewer than"):
        require_folder(Path("x/" * 50_000), "out")
