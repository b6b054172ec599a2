"""LongBench v2 with a compressed cache (Bai et al. 2024, https://arxiv.org/abs/2412.15204), by the official protocol.

    python -m bmrt.longbench --model_path DIR --method exact --compression_ratio 0.5 --save_dir results
    python -m bmrt.longbench --model_path DIR --data data.json ...       # the official file, no network
    python -m bmrt.longbench --score results                             # scores every .jsonl of a folder

Zero-shot prompt, extraction and output lines are the official ones, so its own `result.py` reads the files (which
needs two lines at least, and a line of each difficulty and length; `--score` needs neither). Interrupted runs continue.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.progress import track

from attentions.base import require
from bmrt.engine import RecursiveCompressionEngine
from bmrt.evaluation import interval
from bmrt.hub import load_hub
from bmrt.options import command, engine_of, run
from bmrt.records import Records, read_jsonl

HUB = "zai-org/LongBench-v2"
FIELDS = (
    "_id",
    "domain",
    "sub_domain",
    "difficulty",
    "length",
    "question",
    "choice_A",
    "choice_B",
    "choice_C",
    "choice_D",
    "answer",
)
BEFORE = "Please read the following text and answer the question below.\n\n<text>\n{context}\n</text>\n\n"
AFTER = (
    "What is the correct answer to this question: {question}\nChoices:\n(A) {choice_A}\n(B) {choice_B}\n"
    '(C) {choice_C}\n(D) {choice_D}\n\nFormat your response as follows: "The correct answer is (insert answer here)".'
)
CLASSES = (
    ("difficulty", "easy"),
    ("difficulty", "hard"),
    ("length", "short"),
    ("length", "medium"),
    ("length", "long"),
)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run, or score."""
    parser = command("longbench", "LongBench v2 with a compressed cache.", max_new_tokens=128, model_needed=False)
    parser.add_argument("--data", default=HUB, help=f"the official .json, a .jsonl, or a hub id (default: {HUB})")
    parser.add_argument("--num_samples", type=int, help="the first so many (default: all)")
    parser.add_argument("--max_len", type=int, default=120_000, help="longer prompts lose their middle (tokens)")
    parser.add_argument("--score", type=Path, help="score the files of this folder and do nothing else")
    run(_run, parser, arguments)


def _run(given: argparse.Namespace) -> str:
    if given.score is not None:
        return score_folder(given.score)
    require(given.model_path is not None, "model_path", None, "given, unless --score is")
    items = _items(given.data, given.num_samples)
    engine = engine_of(given)
    name = Path(given.model_path).name or "model"
    path = given.save_dir / f"{name}_{engine.settings.title.replace(' ', '_')}.jsonl"
    records = answer_all(engine, items, path, given.max_len)
    return "\n".join([HEADER, score_line(path.stem, records)])


def answer_all(
    engine: RecursiveCompressionEngine, items: Iterable[dict[str, Any]], path: Path, max_len: int
) -> list[dict[str, Any]]:
    """Official lines of all items, made now or before. Raises ValueError for an item that lacks a field."""
    records = Records(path, vars(engine.settings) | {"max_len": max_len}, key="_id")
    items = list(items)
    for number, item in enumerate(items):
        missing = [field for field in (*FIELDS, "context") if not isinstance(item.get(field), str)]
        require(not missing, f"item {number}", missing, "complete: these fields must be texts")
    wanted = [item for item in items if item["_id"] not in records.done]
    for item in track(wanted, description="LongBench v2", disable=len(wanted) < 2, transient=True):
        context, question = prompt_of(engine, item, max_len)
        response = engine(context, question)["text"][0].strip()
        pred = extract(response)
        line = {field: item[field] for field in FIELDS} | {"context": item["context"][:1000]}
        records.add(line | {"response": response, "pred": pred, "judge": pred == item["answer"]})
    ids = {item["_id"] for item in items}
    return [line for line in records.lines if line["_id"] in ids]


def prompt_of(engine: RecursiveCompressionEngine, item: dict[str, Any], max_len: int) -> tuple[str, str]:
    """Text before the question and question; a prompt of more than `max_len` tokens loses the middle of its text."""
    fields = {name: value.strip() for name, value in item.items() if isinstance(value, str)}
    before, after = BEFORE.format(context=fields["context"]), AFTER.format(**fields)
    room = max_len - engine.prompts.count(after)
    require(
        room >= 2,
        "max_len",
        max_len,
        f"more than {max_len - room + 1} tokens, or the question {item['_id']} does not fit",
    )
    return engine.prompts.middle_cut(before, room), after


def extract(response: str) -> str | None:
    """The letter that an answer gives in the official form; None if it gives none."""
    response = response.replace("*", "")
    for pattern in (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])"):
        if found := re.search(pattern, response):
            return found.group(1)
    return None


HEADER = "Model\tOverall\tEasy\tHard\tShort\tMedium\tLong"


def score_folder(folder: Path) -> str:
    """A line for each .jsonl or .json of results in a folder, also written to result.txt there."""
    paths = sorted(path for path in folder.glob("*.json*") if not path.name.endswith(".settings.json"))
    require(bool(paths), "score", str(folder), "a folder with .jsonl files of results")
    text = "\n".join([HEADER, *(score_line(path.stem, read_jsonl(path)) for path in paths)])
    (folder / "result.txt").write_text(text + "\n", encoding="utf-8")
    return text


def score_line(name: str, records: list[dict[str, Any]]) -> str:
    """Percent correct overall and by class; "-" for a class that has no items."""
    for record in records:
        missing = [key for key in ("judge", "difficulty", "length") if key not in record]
        if missing:
            raise ValueError(f"{name}, item {record.get('_id')}, has no {', '.join(missing)}: not a file of results")
    groups = [records, *([r for r in records if r[key] == value] for key, value in CLASSES)]
    scores = [[float(record["judge"]) for record in group] for group in groups]
    low, high = interval(scores[0])
    shares = [f"{100 * sum(group) / len(group):.1f}" if group else "-" for group in scores]
    return "\t".join([name, f"{shares[0]} ({100 * low:.1f}-{100 * high:.1f})", *shares[1:]])


def _items(source: str, count: int | None) -> list[dict[str, Any]]:
    path = Path(source)
    items = read_jsonl(path) if path.suffix in (".json", ".jsonl") else list(load_hub(source, None, "train"))
    require(bool(items), "data", source, "a data set with at least one item")
    return items[:count]


if __name__ == "__main__":
    main()
