"""One training run, on whatever accelerate finds: a CPU, a GPU, or several under torchrun or `accelerate launch`."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import ProjectConfiguration

from lsh_v2.training.configuration import TrainingConfig, differences, plain
from lsh_v2.training.metrics import METRICS
from lsh_v2.training.run import Run
from lsh_v2.training.trackers import require_installed

PATIENCE = timedelta(hours=12)  # the others wait while the first process evaluates; NCCL would for 10 minutes


class Trainer:
    """`Trainer(config).run()` trains to the end, going on from the newest checkpoint in `config.out` if there is one.

    Raises ValueError for trackers that are not installed and for an `out` that holds another configuration's run,
    CheckpointError for damaged and unwritable checkpoints, FloatingPointError for a loss that is not finite.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config, self.out = config, Path(config.out)
        self._trackers: dict[str, dict[str, Any]] = {}
        self._project = config.project
        for name in ("tensorboard", *config.trackers):
            self._enable(name, {})

    def enable_wandb(self, project: str, **settings: Any) -> None:
        """Log to Weights & Biases too; settings go to `wandb.init`. Raises ValueError where it is not installed."""
        self._name(project)
        self._enable("wandb", settings)

    def enable_mlflow(self, project: str, **settings: Any) -> None:
        """Log to MLflow too; settings go to accelerate's tracker. Raises ValueError where it is not installed."""
        self._name(project)
        self._enable("mlflow", settings)

    def run(self) -> dict[str, Any]:
        """Train, evaluate, and return what `training_metrics.json` then holds."""
        finished = self._finished()
        if finished is not None:
            return finished
        run = Run(self.config, self.out, self._accelerator())
        self._start_trackers(run)
        try:
            run.train()
            return run.finish()
        finally:
            run.accelerator.end_training()

    def _name(self, project: str) -> None:
        if self._project not in (project, self.config.project):
            raise ValueError(f"project={project!r} is not allowed: trackers share one, {self._project!r} already")
        self._project = project

    def _enable(self, name: str, settings: dict[str, Any]) -> None:
        require_installed([name])
        self._trackers[name] = settings

    def _finished(self) -> dict[str, Any] | None:
        """The metrics of a run of this configuration that came to its end."""
        path = self.out / METRICS
        if not path.exists():
            return None
        metrics = json.loads(path.read_text(encoding="utf-8"))
        same = not differences(metrics["config"], plain(self.config))
        return metrics if metrics["finished"] and same else None

    def _accelerator(self) -> Accelerator:
        return Accelerator(
            cpu=self.config.device == "cpu",
            mixed_precision=self.config.mixed_precision,
            log_with=list(self._trackers),  # type: ignore[arg-type]
            project_config=ProjectConfiguration(str(self.out), logging_dir=str(self.out / "tensorboard")),
            kwargs_handlers=[
                # Memories that never filled and hashes without an auxiliary loss have no gradient.
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )

    def _start_trackers(self, run: Run) -> None:
        flat = {
            key: value if isinstance(value, int | float) else str(value) for key, value in plain(self.config).items()
        }
        settings = {name: given for name, given in self._trackers.items() if given}
        run.accelerator.init_trackers(self._project, config=flat, init_kwargs=settings)
