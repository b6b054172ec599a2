"""Text corpora for perplexity: WikiText-103 raw, WikiText-2 raw, EnWik8, and the standard library's source offline.

Merity et al. 2016, https://arxiv.org/abs/1609.07843; Mahoney, http://mattmahoney.net/dc/textdata.html. Articles are
joined unchanged, including blank lines and " = Heading = " lines. A corpus comes from a local file, from a folder of
Parquet files laid out as on the hub, from the hub's cache, or from the hub.

    load_corpus("wikitext103", "validation")
    load_corpus("enwik8", "test", path="data/enwik8")
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attentions.common.extras import missing_extra
from tasks.text import TextBytes

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus:
    """Location of a text on the hub, and its train, validation, and test fractions if the hub has no splits."""

    repository: str
    configuration: str
    revision: str | None = None
    shares: tuple[float, float, float] | None = None


CORPORA: Mapping[str, Corpus] = MappingProxyType(
    {
        "wikitext103": Corpus("Salesforce/wikitext", "wikitext-103-raw-v1"),
        "wikitext2": Corpus("Salesforce/wikitext", "wikitext-2-raw-v1"),
        # `datasets` no longer runs its loading script; the hub keeps its single row as Parquet.
        "enwik8": Corpus("LTCB/enwik8", "enwik8-raw", "refs/convert/parquet", (0.9, 0.05, 0.05)),
    }
)
STDLIB_SHARES = (0.95, 0.025, 0.025)


def load_corpus(name: str, split: str = "validation", *, path: str | Path | None = None) -> str:
    """Load the text of a split.

    name: "stdlib", or one of `CORPORA`. path: a text file, or a folder of Parquet files. For "enwik8", a file is the
    whole corpus, whose first 90 %, next 5 %, and last 5 % are train, validation, and test; for other corpora, a file is
    the split itself. "stdlib" takes no path; its last 5 % are validation and test, half each.

    Raises ValueError for an unknown name or split, and for a missing corpus, with how to get it.
    """
    if name not in CORPORA and name != "stdlib":
        raise ValueError(f"corpus {name!r} is not allowed: it must be stdlib, {', '.join(CORPORA)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not allowed: it must be {', '.join(SPLITS)}")
    if name == "stdlib":
        if path is not None:
            raise ValueError(
                f"path={str(path)!r} is not allowed for stdlib, which is the source of this Python installation"
            )
        whole = TextBytes()
        return _share(bytes(whole.tokens(len(whole)).tolist()), split, STDLIB_SHARES)
    corpus = CORPORA[name]
    if path is not None and Path(path).is_file():
        content = Path(path).read_bytes()
        return _share(content, split, corpus.shares) if corpus.shares else content.decode("utf-8", errors="replace")
    if path is not None and not Path(path).is_dir():
        raise ValueError(f"path={str(path)!r} is not allowed: there is no such file or folder")
    return _from_datasets(name, corpus, split, None if path is None else Path(path))


def _share(content: bytes, split: str, shares: tuple[float, float, float]) -> str:
    """Return a split's part of the whole corpus, by bytes."""
    place = SPLITS.index(split)
    start, stop = (round(sum(shares[:end]) * len(content)) for end in (place, place + 1))
    return content[start:stop].decode("utf-8", errors="replace")


def _from_datasets(name: str, corpus: Corpus, split: str, folder: Path | None) -> str:
    """Return the concatenated rows of the split, or the split's share of all rows if the hub has no splits."""
    try:
        import datasets
        import pandas as pd  # its Parquet reader needs a dependency of datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise missing_extra("models", error) from error
    stored = "train" if corpus.shares else split
    try:
        if folder is None:
            rows = datasets.load_dataset(
                corpus.repository, corpus.configuration, split=stored, revision=corpus.revision
            )
            text = _joined(rows["text"], corpus.repository)
        else:
            files = _parquet_files(folder, corpus, stored)
            text = "".join(_joined(_column(pd.read_parquet(path), path), path) for path in files)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"corpus {name!r} cannot be read from {folder or 'the hub, ' + corpus.repository}: {error}. With a "
            "network it is downloaded once and then read from the cache; without one, give path=FILE with its text "
            "or a folder that holds the repository's Parquet files, or use 'stdlib'"
        ) from error
    return _share(text.encode("utf-8"), split, corpus.shares) if corpus.shares else text


def _column(table: pd.DataFrame, path: str) -> list[Any]:
    """Return the column `text` of a Parquet file, even if it is the index. Raises ValueError if there is none."""
    if "text" in table.index.names:
        table = table.reset_index()
    if "text" not in table.columns:
        raise ValueError(f"{path} has no column 'text': it has {', '.join(map(repr, table.columns)) or 'none'}")
    return table["text"].tolist()


def _joined(rows: Iterable[Any], source: str) -> str:
    """Concatenate rows. Raises ValueError for a row that is not text."""
    texts = list(rows)
    for number, row in enumerate(texts, 1):
        if not isinstance(row, str):
            missing = row is None or (isinstance(row, float) and math.isnan(row))
            shown = "null" if missing else repr(str(row)[:80])
            raise ValueError(f"{source}: row {number} of column 'text' is {shown}: it must be text")
    return "".join(texts)


def _parquet_files(folder: Path, corpus: Corpus, split: str) -> list[str]:
    below = folder / corpus.configuration
    found = sorted(str(path) for path in (below if below.is_dir() else folder).rglob(f"{split}*.parquet"))
    if not found:
        raise FileNotFoundError(f"there is no {split}*.parquet")
    return found
