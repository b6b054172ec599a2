"""A sweep from Python: measure, and read what was measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.deadline import Start
from harness.config.model import Config, checked_config, load_config
from harness.report import write_report
from harness.results.rows_file import latest, read_rows
from harness.results.run_dir import new_run
from harness.runner.executor import Executor
from harness.runner.external import make_plan
from harness.runner.run import measure
from harness.runner.signals import Interruption
from harness.stats.analysis import Analysis

if TYPE_CHECKING:
    import pandas

    from harness.common.rows import Row
    from harness.results.series import Series


@dataclass(frozen=True)
class Run:
    """What a sweep has measured, read from its folder. `complete` is False if it was interrupted."""

    folder: Path
    complete: bool = True

    @cached_property
    def analysis(self) -> Analysis:
        """The rows with their series and fits. The file is read once."""
        return Analysis(latest(read_rows(self.folder)))

    @property
    def rows(self) -> Sequence[Row]:
        """One row per case and round, the latest where a case was measured again."""
        return self.analysis.rows

    @property
    def series(self) -> list[Series]:
        """The rows grouped into curves over the sequence length."""
        return self.analysis.series

    @property
    def report(self) -> Path:
        """The HTML report; `report.md` beside it has the same tables."""
        return self.folder / "report.html"

    def to_pandas(self) -> pandas.DataFrame:
        """A frame with one line per case and round: the fields of a row, each metric in a column of its own.

        Times are in seconds, sizes in bytes. `samples_s` stays a list, `settings` a dictionary.
        """
        import pandas

        lines = [row.model_dump(mode="json") for row in self.rows]
        return pandas.DataFrame([{**line, **line.pop("metrics")} for line in lines])


def run_sweep(
    config: Config | Mapping[str, Any] | str | Path, out: str | Path | None = None, *, overrides: Sequence[str] = ()
) -> Run:
    """Measure what a configuration asks for, write the report, and return what was measured.

    `config` is the path of a YAML file, its content as a mapping, or a `Config`. `overrides` replaces values, each as
    `key.key=value` with the value in YAML. `out` is the folder of rows and report, by default a new one in
    `reports/runs`. Ctrl-C ends the measuring; what was measured until then is kept and returned.
    Raises ConfigError for a configuration that cannot be used, FolderError for a folder that cannot be written or holds
    a run already, ServerError if no process for the cases can be started.
    """
    started = Start()
    if isinstance(config, str | Path):
        checked = load_config(Path(config), overrides)
    elif isinstance(config, Config):
        checked = checked_config(config.model_dump(mode="json"), overrides)
    else:
        checked = checked_config(config, overrides)
    folder = new_run(str(out) if out is not None else checked.out)
    with Interruption() as interruption, Executor(Path(tempfile.gettempdir()), interruption) as executor:
        plan = make_plan(checked, executor)
        folder.make()
        complete = measure(checked, plan, folder, "attention_bench.run_sweep", started, executor, interruption)
    run = Run(folder.path, complete)
    if run.rows:
        write_report(run.folder, run.analysis)
    return run
