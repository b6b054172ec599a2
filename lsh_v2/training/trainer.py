"""Runs one training on whatever accelerate finds: a CPU, a GPU, or several under torchrun or `accelerate launch`."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration

from harness.results.run_dir import RunFolder
from lsh_v2.common.files import locked, read_object
from lsh_v2.common.schemas import TrainingMetrics
from lsh_v2.training.checks import require_possible
from lsh_v2.training.configuration import TrainingConfig, plain
from lsh_v2.training.identity import require_same
from lsh_v2.training.metrics import METRICS
from lsh_v2.training.run import TrainingLoop, newest_state
from lsh_v2.training.trackers import require_installed

PATIENCE = timedelta(hours=12)  # other processes wait while the first evaluates; NCCL's default is 10 minutes


class Trainer:
    """`Trainer(config).run()` trains to the end, resuming from the newest checkpoint in `config.out` if there is one.

    Raises ValueError for an invalid configuration (see `require_possible`), and for an `out` that another process is
    using or that holds a run of another configuration, data, or code; CheckpointError for damaged and unwritable
    checkpoints; FloatingPointError for a loss that is not finite.
    """

    def __init__(self, config: TrainingConfig) -> None:
        require_possible(config)
        self.config, self.out = config, Path(config.out)
        self._trackers: dict[str, dict[str, Any]] = {}
        self._project = config.project
        for name in ("tensorboard", *config.trackers):
            self._enable(name, {})

    def enable_wandb(self, project: str, **settings: Any) -> None:
        """Also log to Weights & Biases; settings go to `wandb.init`. Raises ValueError if it is not installed."""
        self._name(project)
        self._enable("wandb", settings)

    def enable_mlflow(self, project: str, **settings: Any) -> None:
        """Also log to MLflow; settings are passed to accelerate's tracker. Raises ValueError if it is not installed."""
        self._name(project)
        self._enable("mlflow", settings)

    def run(self) -> dict[str, Any]:
        """Train, evaluate, and return the contents of `training_metrics.json`."""
        RunFolder(self.out, {}).make()
        accelerator = self._accelerator()
        try:
            with locked(self.out, "training") if accelerator.is_main_process else nullcontext():
                return self._run(accelerator)
        finally:
            accelerator.end_training()
            if accelerator.num_processes == 1:  # a later run in this process may use another device or precision
                AcceleratorState._reset_state(reset_partial_state=True)

    def _run(self, accelerator: Accelerator) -> dict[str, Any]:
        metrics = read_object(self.out / METRICS, TrainingMetrics)
        finished = metrics is not None and metrics.finished
        state = None if finished else newest_state(self.out)
        for before in (metrics, state):  # check before creating anything
            if before is not None:
                require_same(self.out, before, self.config)
        run = TrainingLoop(self.config, self.out, accelerator)
        for before in (metrics, state):
            if before is not None:
                require_same(self.out, before, self.config, run.identity)
        if metrics is not None and finished:
            return metrics.model_dump()
        run.resume(state)
        self._start_trackers(run)
        run.train()
        return run.finish()

    def _name(self, project: str) -> None:
        if self._project not in (project, self.config.project):
            raise ValueError(f"project={project!r} is not allowed: trackers already share {self._project!r}")
        self._project = project

    def _enable(self, name: str, settings: dict[str, Any]) -> None:
        require_installed([name])
        self._trackers[name] = settings

    def _accelerator(self) -> Accelerator:
        return Accelerator(
            cpu=self.config.device == "cpu",
            mixed_precision=self.config.mixed_precision,
            log_with=list(self._trackers),  # type: ignore[arg-type]
            project_config=ProjectConfiguration(str(self.out), logging_dir=str(self.out / "tensorboard")),
            kwargs_handlers=[
                # Memories that never filled, and hashes without an auxiliary loss, have no gradient.
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )

    def _start_trackers(self, run: TrainingLoop) -> None:
        flat = {
            key: value if isinstance(value, int | float) else str(value) for key, value in plain(self.config).items()
        }
        settings = {name: given for name, given in self._trackers.items() if given}
        run.accelerator.init_trackers(self._project, config=flat, init_kwargs=settings)
