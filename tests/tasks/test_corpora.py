"""Corpora come from files, from folders laid out as on the hub, or not at all with how to get them."""

from __future__ import annotations

from pathlib import Path

import datasets
import pandas as pd
import pytest

from tasks.corpora import load_corpus
from tasks.text import TextBytes

LINES = ["", " = Heading = \n", " A first line .\n", "", " A second , with ü .\n"]


def parquet(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"text": lines}).to_parquet(path)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_rows_of_a_hub_folder_are_joined_as_they_stand(tmp_path: Path) -> None:
    folder = tmp_path / "wikitext" / "wikitext-103-raw-v1"
    parquet(folder / "validation-00000-of-00001.parquet", LINES)
    parquet(folder / "test-00000-of-00001.parquet", ["other"])
    assert load_corpus("wikitext103", "validation", path=tmp_path / "wikitext") == "".join(LINES)


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    for shard in (1, 0):
        parquet(tmp_path / f"train-0000{shard}-of-00002.parquet", [f"part {shard} "])
    assert load_corpus("wikitext2", "train", path=tmp_path) == "part 0 part 1 "


def test_texts_that_pandas_made_its_index_are_read(tmp_path: Path) -> None:
    pd.DataFrame({"text": LINES, "length": map(len, LINES)}).set_index("text").to_parquet(tmp_path / "test.parquet")
    assert load_corpus("wikitext2", "test", path=tmp_path) == "".join(LINES)


def test_a_file_is_the_split_of_wikitext(tmp_path: Path) -> None:
    path = tmp_path / "wiki.valid.raw"
    path.write_bytes("".join(LINES).encode())
    assert load_corpus("wikitext2", "validation", path=path) == "".join(LINES)


@pytest.mark.parametrize(("split", "share"), [("train", (0, 900)), ("validation", (900, 950)), ("test", (950, 1000))])
def test_enwik8_is_cut_by_bytes(tmp_path: Path, split: str, share: tuple[int, int]) -> None:
    whole = "".join(chr(97 + i * i % 26) for i in range(1000))
    (tmp_path / "enwik8").write_text(whole)
    assert load_corpus("enwik8", split, path=tmp_path / "enwik8") == whole[slice(*share)]
    parquet(tmp_path / "hub" / "enwik8-raw" / "train" / "train.parquet", [whole])
    assert load_corpus("enwik8", split, path=tmp_path / "hub") == whole[slice(*share)]


def test_the_standard_librarys_splits_make_up_the_whole() -> None:
    parts = [load_corpus("stdlib", split) for split in ("train", "validation", "test")]
    whole = TextBytes()
    assert sum(len(part.encode("utf-8", errors="replace")) for part in parts) == pytest.approx(len(whole), rel=1e-5)
    assert parts[0].encode()[:1000] == bytes(whole.tokens(1000).tolist())
    assert 0.024 < len(parts[2]) / len(whole) < 0.026


def test_a_corpus_that_is_not_there_is_refused_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot be read from the hub, Salesforce/wikitext: .* path=FILE"):
        load_corpus("wikitext103")


def test_a_folder_without_the_split_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "train-00000-of-00001.parquet", LINES)
    with pytest.raises(ValueError, match=r"there is no test\*\.parquet"):
        load_corpus("wikitext2", "test", path=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "wikitext"}, "corpus 'wikitext' is not allowed: it must be stdlib, wikitext103"),
        ({"name": "stdlib", "split": "dev"}, "split='dev' is not allowed: it must be train, validation, test"),
        ({"name": "stdlib", "path": "text.txt"}, "path='text.txt' is not allowed for stdlib"),
        ({"name": "enwik8", "path": "nowhere"}, "path='nowhere' is not allowed: there is no such file"),
    ],
)
def test_wrong_names_and_paths_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_corpus(**options)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": ["a", None]}, "row 2 of column 'text' is null: it must be text"),
        ({"text": [3, 4]}, "row 1 of column 'text' is '3': it must be text"),
        ({"txt": ["a"], "label": ["b"]}, "has no column 'text': it has 'txt', 'label'"),
    ],
)
def test_rows_that_are_no_text_are_named_with_their_file(tmp_path: Path, columns: dict, expected: str) -> None:
    parquet(tmp_path / "test-00000-of-00002.parquet", ["fine"])
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "test-00001-of-00002.parquet")
    with pytest.raises(ValueError, match=rf"test-00001-of-00002\.parquet:? {expected}"):
        load_corpus("wikitext2", "test", path=tmp_path)


def test_a_file_that_is_no_parquet_is_said(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"cannot be read from .*Parquet magic bytes"):
        load_corpus("wikitext2", "test", path=tmp_path)


def test_rows_of_the_hub_that_are_no_text_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", None]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(ValueError, match="Salesforce/wikitext: row 2 of column 'text' is null: it must be text"):
        load_corpus("wikitext2", "test")
