"""Plots the learning curve of the tiny BitNet from its log.

python -m models.tiny_bitnet_figure        # models/tiny-bitnet/log.jsonl to learning.svg in the same folder
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lsh_bitnet.commands import Parser, run

FOLDER = Path(__file__).parent / "tiny-bitnet"
ACCURACIES = {
    "mqar": "MQAR, tokens",
    "needles": "needles",
    "new_york_1": "New York, 1st",
    "new_york_2": "New York, 2nd",
}


def draw(log: Path, figure: Path) -> None:
    """Plot held-out bits per byte and task accuracies against tokens read, with lines where the row length changes."""
    import matplotlib.pyplot as plt

    lines = _lines(log)
    drawing, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(6.5, 5), layout="constrained")
    above.plot(lines.tokens / 1e6, lines.bits_per_byte, marker=".")
    above.set(ylabel="bits per byte, held out", yscale="log", yticks=(1.5, 2, 3, 5, 10, 20))
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter("")
    for place, length in _changes(lines):
        above.axvline(place, color="0.8", lw=1)
        below.axvline(place, color="0.8", lw=1)
        above.text(place, 1.0, f" {length}", transform=above.get_xaxis_transform(), va="top", fontsize="small")
    for name, title in ACCURACIES.items():
        below.plot(lines.tokens / 1e6, 100 * lines[name], marker=".", label=title)
    below.set(xlabel="million training tokens", ylabel="accuracy, %", ylim=(-3, 103))
    below.legend()
    drawing.savefig(figure)
    plt.close(drawing)


def _lines(log: Path) -> pd.DataFrame:
    """Read the log. Raises ValueError if the file is not a training log."""
    try:
        lines = pd.read_json(log.open(encoding="utf8"), lines=True)
    except (ValueError, AttributeError) as error:  # from pandas: not JSON, or not one mapping per line
        raise ValueError(f"{log} cannot be read: it must have one JSON mapping per line") from error
    if missing := {"tokens", "length", "bits_per_byte", *ACCURACIES} - set(lines):
        raise ValueError(f"{log} is not a training log: it lacks {', '.join(sorted(missing))}")
    return lines


def _changes(lines: pd.DataFrame) -> list[tuple[float, int]]:
    """Return where the row length changes, in million tokens, and the new lengths."""
    starts = lines[lines.length != lines.length.shift()]
    begun = lines.tokens.shift(fill_value=0).loc[starts.index]
    return list(zip(begun / 1e6, starts.length, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Plot the stored log."""
    parser = Parser(
        prog="python -m models.tiny_bitnet_figure", description="Draw the learning curve of the tiny BitNet."
    )
    parser.add_argument("--log", type=Path, default=FOLDER / "log.jsonl", help="training log to draw")
    given = parser.parse_args(arguments)

    def work() -> int:
        draw(given.log, given.log.with_name("learning.svg"))
        return 0

    return run(parser, work)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
