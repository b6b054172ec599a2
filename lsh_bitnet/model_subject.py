"""Harness subject that measures a whole model with one attention after another.

    subject: lsh_bitnet.model_subject:TinyBitNet

Measures time and memory of a forward call, perplexity, accuracy, and comparisons. To use your own model, define a
subclass with its name in any importable module:

    class Mine(ModelSubject):
        model = "microsoft/bitnet-b1.58-2B-4T"

Metrics: `perplexity` and `bits_per_byte` on held-out text in windows of n tokens, as the mean over `seeds` of the hash
functions, with `perplexity_low` and `perplexity_high` over the seeds; `accuracy` of whole answers; and
`comparison_ratio`, the comparisons made relative to full attention's, counted on the perplexity text.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions import resolve
from attentions.base import ROUNDING
from harness.subjects.base import CheckResult, Facts, Trial, Unsupported
from lsh_bitnet.answers import measure_forced
from lsh_bitnet.dispatch import MODEL_DECIDES, Dispatch
from lsh_bitnet.models import DTYPES, Loaded, config_of, content_of, load_model, positions_of, shape_of, tokenizer_of
from lsh_bitnet.perplexity import Perplexity, measure_perplexity
from lsh_bitnet.swap import Swap, attend_with
from tasks.corpora import load_corpus
from tasks.needles import Needles

if TYPE_CHECKING:
    from harness.common.rows import Case
    from harness.subjects.references import Store
    from tasks.example import Example, Task

REPEATS = 3  # runs that differ only by rounding, to measure its effect in this model
MARGIN = 2  # factor on the largest difference
OWN_CALLS = 4  # the model's own output on both sets of rows, and the attention's


class ModelSubject:
    """A forward call of `model` on n tokens of the standard library's test split, with the case's attention."""

    model: ClassVar[str]
    windows: ClassVar[int] = 8  # windows of n tokens, for perplexity
    samples: ClassVar[int] = 20  # samples of the task, for accuracy
    seeds: ClassVar[int] = 3  # seeds of the hash functions, for perplexity

    def task(self, loaded: Loaded, n: int) -> Task | None:
        """Return the task for accuracy, or None for no accuracy.

        This is also called before the weights are read, to check that there are examples of n tokens; a task that needs
        the model itself is then not checked.
        """
        return Needles(n, wording="short", tokenizer=loaded.tokenizer, seed=1)

    def content(self) -> str:
        """Return a hash of the model's weights, configuration, and tokenizer."""
        return content_of(self.model)

    def why_not(self, case: Case) -> str:
        """Return why a case cannot be measured in this model, determined without its weights; empty if it can."""
        if case.mode != "forward" or not case.causal:
            return "a language model is measured only in causal forward calls"
        if case.dtype not in DTYPES:
            return f"a model is loaded in {', '.join(DTYPES[1:])}, not in {case.dtype}"
        config = config_of(self.model)
        shape = shape_of(config)
        want = {**shape, "value_dim": shape["head_dim"]}
        if wrong := [f"{name}={value}" for name, value in want.items() if getattr(case, name) != value]:
            return f"{self.model} has {', '.join(wrong)}"
        if case.n < 2:
            return "perplexity needs windows of at least 2 tokens"
        if (most := positions_of(config)) is not None and case.n > most:
            return f"{self.model} supports at most {most} tokens"
        if 2 * case.batch * case.n > (known := len(_held_out())):
            return f"two batches of {case.batch} x {case.n} tokens are needed; the text has {known} bytes"
        return ""

    def require_examples(self, n: int) -> None:
        """Raise ValueError if accuracy has no examples of n tokens, as far as can be determined without weights."""
        unread: Any = _Unread()
        try:
            task = self.task(Loaded(self.model, unread, tokenizer_of(self.model)), n)
            for index in range(self.samples):
                if task is not None:
                    task.example(index)
        except _NeedsWeightsError:
            return

    def forwards(self, n: int) -> int:
        """Return the minimum number of forward calls of n tokens in a case's first round."""
        windows = min(self.windows, len(_held_out()) // (8 * n))  # assumes at most 8 bytes per token
        return OWN_CALLS + self.seeds * max(1, windows)

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        if reason := self.why_not(case):
            raise Unsupported(reason)
        return ModelTrial(self, load_model(self.model, device=case.device, dtype=case.dtype), case, store, key)


class TinyBitNet(ModelSubject):
    """The small BitNet model trained in this repository."""

    model = "tiny-bitnet"
    windows = 4
    samples = 10


class WrittenInduction(ModelSubject):
    """The model with hand-written weights for retrieval; its questions repeat the needle's own words."""

    model = "written-induction"
    windows = 3
    samples = 10

    def task(self, loaded: Loaded, n: int) -> Task | None:
        return Completion(n, wording="short", tokenizer=loaded.tokenizer, seed=1)


class Completion(Needles):
    """Needle in text, queried by its first words: the answer is what followed them."""

    def example(self, index: int) -> Example:
        found = super().example(index)
        lines = found.prompt.split("\n")
        lines[-1] = f"The special magic of {found.metadata['keys'][0]} is"
        return replace(found, prompt="\n".join(lines))


class _NeedsWeightsError(Exception):
    """A task needs the model, whose weights have not been read."""


class _Unread:
    """Placeholder for the model before its weights are read."""

    def __getattr__(self, name: str) -> Any:
        raise _NeedsWeightsError(name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        raise _NeedsWeightsError


@cache
def _held_out() -> str:
    return load_corpus("stdlib", "test")


class ModelTrial(Trial):
    """One model with one attention, called on two alternating sets of rows."""

    def __init__(self, subject: ModelSubject, loaded: Loaded, case: Case, store: Store, key: str) -> None:
        self.device = torch.device(case.device)
        self.tokens = case.batch * case.n
        self._subject, self._loaded, self._case, self._store, self._key = subject, loaded, case, store, key
        self._known = store.fingerprint(key)
        self._own = [self._sample(self._forward(ids)) for ids in self._ids]
        self._swap = self._attend(seed=case.seed)

    def call(self, variant: int) -> Float[Tensor, "B n V"]:
        return self._forward(self._ids[variant])

    def warm(self) -> None:
        self._forward(self._ids[0][:, :16])

    def check(self, variant: int, answer: Any) -> CheckResult:
        with torch.compiler.set_stance("force_eager"):
            return self._check(variant, answer)

    def _forward(self, ids: Int[Tensor, "B n"]) -> Float[Tensor, "B n V"]:
        """Compute logits with uncompiled quantised linears, because compiling them takes minutes per shape."""
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return self._loaded.model(ids, use_cache=False).logits

    def _check(self, variant: int, answer: Float[Tensor, "B n V"]) -> CheckResult:
        if not torch.isfinite(answer).all():
            return CheckResult(wrong="logits are not finite")
        sample = self._sample(answer)
        exact = resolve(self._case.backend).exact
        if wrong := self._differs(sample, self._own[variant], "the model's own") if exact else "":
            return CheckResult(wrong=wrong)
        if variant in self._known:
            return CheckResult(wrong=self._differs(sample, self._known[variant], "the first round's"))
        self._known[variant] = sample
        return CheckResult(self._quality() if variant == 0 else {})

    def _differs(self, found: Tensor, want: Tensor, whose: str) -> str:
        error = _error(found, want)
        if error <= self._rounding or error <= self._allowed:
            return ""
        return f"logits differ from {whose} by {error:.2g}; the limit is {self._allowed:.2g}"

    @property
    def _rounding(self) -> float:
        return ROUNDING[getattr(torch, self._case.dtype)]

    @cached_property
    def _allowed(self) -> float:
        """Relative error of logits that rounding explains in this model.

        Quantised activations jump when rounding moves them across a threshold, so the logits of a ternary model differ
        by far more than its attention does. To measure this, exact attention is run several times with noise of the
        size that an exact backend is allowed (`ROUNDING`).
        """
        found = []
        for seed in range(REPEATS):
            with Swap(self._loaded.model, _Rounded(self._rounding, seed), log=None):
                found.append(_error(self._sample(self._forward(self._ids[0])), self._own[0]))
        return MARGIN * max(found)

    def keep(self) -> None:
        self._store.keep_fingerprint(self._key, self._known)

    def facts(self, *, thorough: bool) -> Facts:
        del thorough
        return Facts()

    def _attend(self, *, seed: int, count: bool = False) -> Swap:
        settings = {name: value for name, value in self._case.settings.items() if name not in MODEL_DECIDES}
        return attend_with(self._loaded.model, self._case.backend, count=count, seed=seed, **settings)

    def _quality(self) -> dict[str, float]:
        found, ratios = zip(*(self._perplexity(seed) for seed in range(self._subject.seeds)), strict=True)
        each = [one.perplexity for one in found]
        metrics = {
            "perplexity": statistics.mean(each),
            "perplexity_low": min(each),
            "perplexity_high": max(each),
            "bits_per_byte": statistics.mean(one.bits_per_byte for one in found),
            "comparison_ratio": statistics.mean(ratios),
        }
        task = self._subject.task(self._loaded, self._case.n)
        if task is not None:
            metrics["accuracy"] = measure_forced(self._loaded, task, samples=self._subject.samples).accuracy
        return metrics

    def _perplexity(self, seed: int) -> tuple[Perplexity, float]:
        with self._attend(seed=seed, count=True) as swap:
            found = measure_perplexity(
                self._loaded, self._text, seq_len=self._case.n, batch_size=1, max_batches=self._subject.windows
            )
            assert swap.log is not None, "counting was requested"
            return found, swap.log.ratio

    @cached_property
    def _text(self) -> str:
        return _held_out()[: 8 * self._case.n * max(self._subject.windows + 1, self._case.batch)]

    @cached_property
    def _ids(self) -> Sequence[Int[Tensor, "B n"]]:
        """Two sets of rows from the start of the text."""
        tokens = torch.tensor(self._loaded.tokenizer.encode(self._text)[: 2 * self.tokens], device=self.device)
        if len(tokens) < 2 * self.tokens:
            raise Unsupported(f"{2 * self.tokens} tokens are needed, and the text has {len(tokens)}")
        return tokens.view(2, self._case.batch, self._case.n).unbind()

    def _sample(self, logits: Float[Tensor, "B n V"]) -> Float[Tensor, "B rows V"]:
        return logits[:, :: max(1, self._case.n // 64)].float().cpu()


class _Rounded(Dispatch):
    """Exact attention with noise of a given relative size added to its output."""

    def __init__(self, size: float, seed: int) -> None:
        super().__init__("flash", {})
        self._size, self._draw = size, torch.Generator().manual_seed(seed)

    def __call__(self, *arguments: Any, **named: Any) -> tuple[Float[Tensor, "B N H E"], None]:
        out, _ = super().__call__(*arguments, **named)
        noise = torch.randn(out.shape, generator=self._draw).to(out)
        return out + noise * (self._size * out.norm() / noise.norm()), None


def _error(found: Tensor, want: Tensor) -> float:
    return ((found - want).norm() / want.norm()).item()
