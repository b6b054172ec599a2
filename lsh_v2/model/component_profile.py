"""Profiles a forward pass of the model over lengths: each part of the model, and each stage of its attention.

Parts of the model are timed in place, by hooks around their modules, so that in each pass they and `other_ms` add up to
`total_ms`. Stages of the attention (`Attention.components`) are timed separately, on the queries, keys, and values of
the first layer. Growth is fitted with a constant floor (`harness.stats.scaling`), because short lengths cost the same.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.common.atomic_write import write_whole
from harness.measure.elapsed import Elapsed
from harness.measure.timer import synchronize, time_once
from harness.stats.scaling import fit_scaling

if TYPE_CHECKING:
    from lsh_v2.model.language_model import LSHv2Model

PROFILES = "component_profiles.json"
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
REPEATS = 5  # timed passes at each length, after one warm-up pass

GUIDE_NAMES = {"bucket attention": "bucket_attn", "global context": "global"}

Samples = dict[str, dict[int, list[list[float]]]]
"""Milliseconds by component and length, one list for each repetition."""


def profile_model(
    model: LSHv2Model, out: Path, *, lengths: Sequence[int] | None = None, repeats: int = REPEATS
) -> dict[str, Any]:
    """Time a model's parts and write `component_profiles.json` and `.png` into `out`; returns the contents of the file.

    `lengths` defaults to LENGTHS, or to the model's maximum length if that is shorter. Lengths beyond the maximum are
    dropped. The model's mode is restored. Raises ValueError if no length is left.
    """
    limit = model.config.max_seq_len
    chosen = [n for n in lengths or (min(LENGTHS[0], limit), *LENGTHS[1:]) if n <= limit]
    if not chosen:
        raise ValueError(f"lengths={lengths} are not allowed: none is at most max_seq_len={limit}")
    samples: Samples = defaultdict(lambda: defaultdict(list))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for n in chosen:
                for name, values in _profile(model, n, repeats).items():
                    samples[name][n] = [[value] for value in values]
    finally:
        model.train(training)
    profile = {"attention": model.config.attention, **_summary(samples, chosen)}
    write_profile(out, profile)
    return profile


def write_profile(out: Path, profile: dict[str, Any]) -> None:
    """Write the file atomically, and the figure."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / PROFILES, json.dumps(profile, indent=1) + "\n")
    _plot(profile, out / PROFILES.replace(".json", ".png"))


def _profile(model: LSHv2Model, n: int, repeats: int) -> dict[str, list[float]]:
    """Return the milliseconds of each component at one length, one value per repetition."""
    device = model.embedding.weight.device
    ids = torch.randint(model.config.vocab_size, (1, n), generator=torch.Generator().manual_seed(n)).to(device)
    heads: list[tuple[Tensor, ...]] = []
    attention = model.block(0).mixer.attention
    with _listening(attention, heads):
        model(ids, logits_to_keep=1)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, value in _one_pass(model, ids).items():
            found[name].append(value)
    for name, stage in attention.components(*heads[0]).items():
        stage()
        found[stage_key(name)] = [1e3 * time_once(stage, device)[1] for _ in range(repeats)]
    return found


def stage_key(name: str) -> str:
    """Return the JSON key of an attention's stage, the guide's name if it has one."""
    return f"{GUIDE_NAMES.get(name, name.replace(' ', '_'))}_ms"


def _one_pass(model: LSHv2Model, ids: Tensor) -> dict[str, float]:
    """Return the milliseconds of each part in one forward pass; `other_ms` is the time outside all parts."""
    spent: dict[str, float] = defaultdict(float)
    with _timed(model, spent, ids.device):
        _, seconds = time_once(partial(model, ids, logits_to_keep=1), ids.device)
    found = {f"{name}_ms": 1e3 * value for name, value in spent.items()}
    return found | {"other_ms": 1e3 * seconds - sum(found.values()), "total_ms": 1e3 * seconds}


def _parts(model: LSHv2Model) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules that do not contain one another, with the name under which their times are summed."""
    yield "embedding", model.embedding
    for index in range(model.config.weight_sets):
        block = model.block(index)
        yield "in_projection", block.mixer.projection
        yield "attention", block.mixer.attention
        yield "out_projection", block.mixer.output
        yield "feed_forward", block.feed_forward


@contextmanager
def _timed(model: LSHv2Model, spent: dict[str, float], device: torch.device) -> Iterator[None]:
    """Add the seconds of each part to `spent` while the block runs."""
    running: dict[str, Elapsed] = {}

    def before(name: str, *_: object) -> None:
        synchronize(device)
        running[name] = Elapsed()

    def after(name: str, *_: object) -> None:
        synchronize(device)
        spent[name] += running[name].seconds()

    hooks = []
    for name, module in _parts(model):
        hooks.append(module.register_forward_pre_hook(partial(before, name)))
        hooks.append(module.register_forward_hook(partial(after, name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _listening(attention: nn.Module, heard: list[tuple[Tensor, ...]]) -> Iterator[None]:
    """Record the queries, keys, and values that reach an attention while the block runs."""
    hook = attention.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[:3]))
    try:
        yield
    finally:
        hook.remove()


def _summary(samples: Samples, lengths: Sequence[int]) -> dict[str, Any]:
    middle = {
        name: {n: sorted(value for (value,) in values)[len(values) // 2] for n, values in by_length.items()}
        for name, by_length in samples.items()
    }
    rows = [{"seq_len": n, **{name: values[n] for name, values in middle.items() if n in values}} for n in lengths]
    last = rows[-1]
    shares = {name: last[name] / last["total_ms"] for name in middle if name != "total_ms" and name in last}
    return {"lengths": rows, "shares_of_longest": shares, "growth": dict(_growth(samples))}


def _growth(samples: Samples) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the fitted exponents of components measured at three or more lengths."""
    for name, by_length in samples.items():
        positive = {n: values for n, values in by_length.items() if min(map(min, values)) > 0}
        if len(positive) >= 3:
            fit = fit_scaling(positive)
            yield name, {"exponent": fit.exponent, "interval": list(fit.interval), "verdict": fit.verdict}


def _plot(profile: dict[str, Any], path: Path) -> None:
    """Plot the milliseconds of each component against length."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in profile["shares_of_longest"]:
        points = [(row["seq_len"], row[name]) for row in profile["lengths"] if row.get(name, 0) > 0]
        axes.plot(*zip(*points, strict=True), "o-", lw=1, ms=3, label=name.removesuffix("_ms"))
    axes.set(xlabel="tokens", ylabel="milliseconds", title=f"{profile['attention']} attention, forward")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=150)
