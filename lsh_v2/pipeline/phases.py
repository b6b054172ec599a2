"""The phases of the pipeline, each a command, and the paths of their files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from attentions import resolve

HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Layout:
    """Paths of the results below `root`, as in the original guide."""

    root: Path
    quick: bool = False

    @property
    def results(self) -> Path:
        """Folder of markers, logs, and metrics."""
        return self.root / "data" / "results"

    @property
    def training(self) -> Path:
        """Folder of the training's metrics, checkpoints, and profile."""
        return self.results / "quick_training" if self.quick else self.results

    @property
    def benchmark(self) -> Path:
        """Folder of the long arena's rows, report, and summary."""
        return self.results / "quick_benchmark" if self.quick else self.results

    @property
    def manifest(self) -> Path:
        """File that records what ran and the resulting flags."""
        return self.root / "final_results" / "pipeline_results.json"

    def named(self, phase: str, suffix: str) -> Path:
        """Path of a phase's marker or log."""
        return self.results / f"{'quick_' if self.quick else ''}{phase}{suffix}"


@dataclass(frozen=True)
class Phase:
    """One command. `makes` are the files and folders it produces, removed when `--force` starts it over.

    `reads` are the files that determine its result along with the command, and `modules` the modules that its
    configuration names; a change in any of these invalidates the OK marker.
    """

    name: str
    command: tuple[str, ...]
    makes: tuple[Path, ...]
    reads: tuple[Path, ...] = ()
    modules: tuple[str, ...] = ()


def phases_of(layout: Layout, *, training: bool, benchmark: bool) -> list[Phase]:
    """Return the requested phases in order. Raises ConfigError for an unusable configuration."""
    modules, tokenizer = _training_names(layout)
    phases = [_model(layout, modules, tokenizer), _data(layout, modules, tokenizer)]
    if training:
        phases += [_training(layout, modules, tokenizer), _profile(layout, modules)]
    if benchmark:
        phases.append(_benchmark(layout, trained=training or (layout.training / "checkpoints").is_dir()))
    return phases


def _training_names(layout: Layout) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """Return the modules that the training configuration names, and the path of its tokenizer."""
    from lsh_v2.training.configuration import load_training_config  # needs accelerate, lsh_v2.package does not
    from lsh_v2.training.identity import modules_of

    config = load_training_config(config_of(layout, "train"))
    return modules_of(config), () if config.tokenizer in ("bytes", "trained") else (Path(config.tokenizer),)


def _arena_modules(layout: Layout) -> tuple[str, ...]:
    """Return the modules of the attentions and tasks that the long arena's configuration names."""
    from lsh_v2.arena.config import load_arena_config

    config = load_arena_config(config_of(layout, "long_arena"))
    attentions = (resolve(one.backend).__module__ for one in config.series())
    return (*attentions, *(task.task.partition(":")[0] for task in config.tasks.values()))


def _model(layout: Layout, modules: tuple[str, ...], tokenizer: tuple[Path, ...]) -> Phase:
    config, report = config_of(layout, "train"), layout.results / _quick(layout, "model_check.json")
    command = _python("lsh_v2.pipeline.check", str(config), str(layout.training), str(report))
    return Phase("model", command, (report,), (config, *tokenizer), modules)


def _data(layout: Layout, modules: tuple[str, ...], tokenizer: tuple[Path, ...]) -> Phase:
    config, files = config_of(layout, "train"), _examples(layout)
    command = _python("lsh_v2.pipeline.data", str(config), str(layout.training), *map(str, files))
    return Phase("data", command, files, (config, *tokenizer), modules)


def _examples(layout: Layout) -> tuple[Path, Path]:
    """Return the example files that the training reads, for training and for evaluation."""
    train, held_out = (layout.results / _quick(layout, f"{name}_examples.jsonl") for name in ("train", "eval"))
    return train, held_out


def _training(layout: Layout, modules: tuple[str, ...], tokenizer: tuple[Path, ...]) -> Phase:
    config, out = config_of(layout, "train"), layout.training
    names = ("training_metrics.json", "training_metrics.png", "steps.jsonl", "checkpoints", "tensorboard", "tokenizer")
    files = _examples(layout)
    given = (f"out={out}", "profile_components=false", f"train_file={files[0]}", f"eval_file={files[1]}")
    command = _python("lsh_v2.train", str(config), *(part for value in given for part in ("--set", value)))
    return Phase("training", command, tuple(out / name for name in names), (config, *files, *tokenizer), modules)


def _profile(layout: Layout, modules: tuple[str, ...]) -> Phase:
    out = layout.training
    quick = ["--no-report"] if layout.quick else []
    command = _python("lsh_v2.profile", str(out), "--out", str(out), *quick)
    makes = tuple(out / name for name in ("component_profiles.json", "component_profiles.png", "component_report"))
    return Phase("profile", command, makes, (out / "training_metrics.json",), modules)


def _benchmark(layout: Layout, *, trained: bool) -> Phase:
    config, out = config_of(layout, "long_arena"), layout.benchmark
    names = ("rows.jsonl", "run.json", "report.html", "report.md", "benchmark_summary.json", "benchmark_summary.png")
    checkpoint = ["--set", f"checkpoint={layout.training}"] if trained else []
    reads = (config, *([layout.training / "training_metrics.json"] if trained else []))
    command = _python("lsh_v2.long_arena", str(config), "--set", f"out={out}", *checkpoint)
    makes = tuple(out / name for name in (*names, "training"))
    return Phase("benchmark", command, makes, reads, _arena_modules(layout))


def config_of(layout: Layout, name: str) -> Path:
    """Return the path of the configuration of the training or of the long arena."""
    quick = {"train": "quick.yml", "long_arena": "long_arena_quick.yml"}
    return HERE / (quick[name] if layout.quick else f"{name}.yml")


def _quick(layout: Layout, name: str) -> str:
    return f"quick_{name}" if layout.quick else name


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)
