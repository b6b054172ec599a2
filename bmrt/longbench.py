"""Evaluates LongBench v2 with a compressed cache (Bai et al. 2024, https://arxiv.org/abs/2412.15204).

    python -m bmrt.longbench --model_path DIR --method exact --compression_ratio 0.5 --save_dir results
    python -m bmrt.longbench --model_path DIR --data data.json ...       # the official file, no network
    python -m bmrt.longbench --score results                             # scores every .jsonl of a folder

Zero-shot prompt, answer extraction, and output lines follow the official protocol. The folder contains only such files,
so LongBench's own `result.py` can read it (it needs at least one line of each difficulty and length; `--score` does
not). The settings of the runs are in <save_dir>.settings/, and scores in <save_dir>.result.txt. Interrupted runs
continue.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track

from attentions.common.settings import require
from bmrt.evaluation.evaluate import interval
from bmrt.evaluation.hub import load_hub
from bmrt.evaluation.options import command, engine_of, file_name, require_writable, run
from bmrt.evaluation.records import Records, digest_of, locked, read_data, read_jsonl, require_unique

if TYPE_CHECKING:
    from bmrt.cache.engine import RecursiveCompressionEngine

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
    """Parse the arguments and run the evaluation, or score a folder."""
    parser = command(
        "longbench", "Evaluate LongBench v2 with a compressed cache.", max_new_tokens=128, model_needed=False
    )
    parser.add_argument(
        "--data", default=HUB, help=f"the official .json file, a .jsonl file or a hub id (default: {HUB})"
    )
    parser.add_argument("--num_samples", type=int, help="number of items, from the first (default: all)")
    parser.add_argument(
        "--max_len",
        type=int,
        default=120_000,
        help="maximum prompt length in tokens; longer prompts are cut in the middle",
    )
    parser.add_argument("--score", type=Path, help="only score the files in this folder")
    run(_run, parser, arguments)


def _run(given: argparse.Namespace) -> str:
    if given.score is not None:
        return score_folder(given.score)
    require(given.model_path is not None, "model_path", None, "given unless --score is")
    items = _items(given.data)[: given.num_samples]
    for folder in (given.save_dir, beside(given.save_dir, "settings")):
        require_writable(folder)
    engine = engine_of(given)
    path = given.save_dir / f"{file_name(Path(given.model_path).resolve().name, engine.settings.label)}.jsonl"
    records = answer_all(engine, items, path, given.max_len)
    return "\n".join([HEADER, score_line(path.stem, records)])


def answer_all(
    engine: RecursiveCompressionEngine, items: Iterable[dict[str, Any]], path: Path, max_len: int
) -> list[dict[str, Any]]:
    """Return the official lines of all items, new ones and existing ones.

    Raises ValueError for an item that lacks a field, for a duplicate `_id`, for a file made with another model, method,
    question, or version of the code, and while another process is writing to it.
    """
    items = require_complete(items)
    made_by = engine.identity() | {"max_len": max_len, "wording": BEFORE + AFTER}
    digests = {item["_id"]: digest_of({name: item[name] for name in (*FIELDS, "context")}) for item in items}
    notes = beside(path.parent, "settings") / f"{path.name}.json"
    with locked(path, notes):
        records = Records(path, made_by, key="_id", samples=digests, notes=notes)
        done = records.done
        wanted = [item for item in items if item["_id"] not in done]
        for item in track(wanted, description="LongBench v2", disable=len(wanted) < 2, transient=True):
            context, question = prompt_of(engine, item, max_len)
            response = engine(context, question)["text"][0].strip()
            pred = extract(response)
            line = {field: item[field] for field in FIELDS} | {"context": item["context"][:1000]}
            records.add(line | {"response": response, "pred": pred, "judge": pred == item["answer"]})
    return [line for line in records.lines if line["_id"] in digests]


def require_complete(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items. Raises ValueError for one that lacks a field, and for a duplicate `_id`."""
    items = list(items)
    for number, item in enumerate(items):
        missing = [field for field in (*FIELDS, "context") if not isinstance(item.get(field), str)]
        require(not missing, f"item {number}", missing, "complete: these fields must be texts")
        require(item["answer"] in ("A", "B", "C", "D"), f"answer of {item['_id']}", item["answer"], "A, B, C or D")
    require_unique((item["_id"] for item in items), "_id")
    return items


def beside(folder: Path, what: str) -> Path:
    """Return a path next to a results folder, which itself may contain only results."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name or 'root'}.{what}")


def prompt_of(engine: RecursiveCompressionEngine, item: dict[str, Any], max_len: int) -> tuple[str, str]:
    """Return the text before the question, and the question; a prompt above `max_len` tokens loses its middle."""
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
    """Extract the letter that an answer gives in the official form; None if there is none."""
    response = response.replace("*", "")
    for pattern in (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])"):
        if found := re.search(pattern, response):
            return found.group(1)
    return None


HEADER = "Model\tOverall\tEasy\tHard\tShort\tMedium\tLong"


def score_folder(folder: Path) -> str:
    """Score each .jsonl or .json of results in a folder, one line each; also writes <folder>.result.txt."""
    paths = sorted(folder.glob("*.json*"))
    require(bool(paths), "score", str(folder), "a folder with .jsonl files of results")
    text = "\n".join([HEADER, *(score_line(path.stem, _results(path)) for path in paths)])
    beside(folder, "result.txt").write_text(text + "\n", encoding="utf-8")
    return text


def _results(path: Path) -> list[dict[str, Any]]:
    """Read a results file. Raises ValueError that says what the file is instead."""
    records = read_jsonl(path)
    if not records:
        raise ValueError(f"{path} has no results")
    for number, record in enumerate(records, 1):
        missing = [name for name in ("judge", "difficulty", "length") if name not in record]
        if missing:
            raise ValueError(f"{path} is not a file of LongBench results: line {number} {_kind(record, missing)}")
        require(record["judge"] in (True, False), f"judge in {path} line {number}", record["judge"], "true or false")
    require_unique((str(record["_id"]) for record in records if "_id" in record), f"_id in {path}")
    return records


def _kind(record: dict[str, Any], missing: list[str]) -> str:
    """Describe a line that is not a result."""
    names = ", ".join(missing)
    if {"id", "target", "score"} <= record.keys():
        return f"is an answer to {record['id']!r} of another benchmark (babilong, ruler or ablation) and lacks {names}"
    if {"question", "choice_A", "context"} <= record.keys():
        return f"is a question, not an answer, and lacks {names}"
    if {"settings", "samples"} <= record.keys() or "selector_type" in record:
        return "has the settings of a run"
    return f"has {', '.join(record) or 'nothing'} and lacks {names}"


def score_line(name: str, records: list[dict[str, Any]]) -> str:
    """Format percent correct overall and by class; "-" for a class without items."""
    groups = [records, *([r for r in records if r[key] == value] for key, value in CLASSES)]
    scores = [[float(record["judge"]) for record in group] for group in groups]
    low, high = interval(scores[0])
    shares = [f"{100 * sum(group) / len(group):.1f}" if group else "-" for group in scores]
    return "\t".join([name, f"{shares[0]} ({100 * low:.1f}-{100 * high:.1f})", *shares[1:]])


def _items(source: str) -> list[dict[str, Any]]:
    path = Path(source)
    items = read_data(path) if path.suffix in (".json", ".jsonl") else list(load_hub(source, None, "train"))
    require(bool(items), "data", source, "a data set with at least one item")
    return require_complete(items)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
