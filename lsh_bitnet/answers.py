"""Measures the accuracy of a model's answers on a task.

`measure_accuracy` decodes greedily from prompts in left-padded batches and uses the task's own score. `measure_forced`
checks in one forward call whether each token of the correct answer would have been chosen. For strictly causal
attentions and exact-match answers, the result is the same, in a tenth of the time, and it measures prefill only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import binomtest
from transformers import GenerationConfig

from lsh_bitnet.models import Loaded, require_length
from tasks.encoding import encode, encode_prompt

if TYPE_CHECKING:
    from tasks.example import Example, Task


@dataclass(frozen=True)
class Accuracy:
    """Result of a task: `right` of `samples` answers got the full score.

    `answers` are the model's answers in order, `targets` the correct ones, and `scores` the scores from 0 to 1; all
    three are empty if no text was kept.
    """

    right: int
    samples: int
    answers: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """Fraction of answers with the full score."""
        return self.right / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        found = binomtest(self.right, self.samples).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)


def measure_accuracy(
    loaded: Loaded, task: Task, *, samples: int, batch_size: int = 1, use_cache: bool = True, bos: bool = True
) -> Accuracy:
    """Measure the accuracy of the model, including a swapped attention, on examples 0 to `samples` - 1.

    use_cache: decode with a key/value cache; without it, each token needs a forward call over all tokens, for
    attentions that need as many queries as keys. bos: start prompts with the tokenizer's BOS token.

    Raises ValueError for sizes below one and for prompts longer than the model supports.
    """
    if samples < 1 or batch_size < 1:
        raise ValueError(f"samples={samples}, batch_size={batch_size} are not allowed: at least 1")
    answers: list[str] = []
    targets: list[str] = []
    scores: list[float] = []
    for start in range(0, samples, batch_size):  # examples are generated batch by batch
        examples = [task.example(index) for index in range(start, min(start + batch_size, samples))]
        texts = _answers(loaded, examples, use_cache=use_cache, bos=bos)
        answers += texts
        targets += [example.answer for example in examples]
        scores += [task.score(example, answer) for example, answer in zip(examples, texts, strict=True)]
    return Accuracy(sum(score >= 1 for score in scores), samples, tuple(answers), tuple(targets), tuple(scores))


def measure_forced(loaded: Loaded, task: Task, *, samples: int) -> Accuracy:
    """Measure the share of examples 0 to `samples` - 1 whose correct answer is the argmax at every token.

    The end-of-sequence token is not required, and no text is kept. Raises ValueError for less than one sample and for
    examples longer than the model supports.
    """
    if samples < 1:
        raise ValueError(f"samples={samples} is not allowed: at least 1")
    return Accuracy(sum(_chosen(loaded, task.example(index)) for index in range(samples)), samples)


def _chosen(loaded: Loaded, example: Example) -> bool:
    ids, labels = encode(example, loaded.tokenizer)
    require_length(loaded, len(ids))
    with torch.no_grad():
        chosen = loaded.model(ids[None, :-1].to(loaded.model.device), use_cache=False).logits[0].argmax(-1).cpu()
    asked = (labels[1:] >= 0) & (ids[1:] != loaded.tokenizer.eos_id)
    return bool((chosen == ids[1:])[asked].all())


def _answers(loaded: Loaded, examples: Sequence[Example], *, use_cache: bool, bos: bool) -> list[str]:
    tokenizer = loaded.tokenizer
    model: Any = loaded.model
    prompts = [encode_prompt(example, tokenizer)[0 if bos else 1 :] for example in examples]
    longest = max(map(len, prompts))
    new_tokens = max(len(tokenizer.encode(example.answer)) for example in examples) + 1  # plus eos
    require_length(loaded, longest + new_tokens)
    ids = torch.stack([torch.nn.functional.pad(p, (longest - len(p), 0), value=tokenizer.pad_id) for p in prompts])
    real = torch.stack([(torch.arange(longest) >= longest - len(prompt)).long() for prompt in prompts])
    settings: dict[str, Any] = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    with torch.no_grad():
        out = model.generate(
            ids.to(model.device),
            attention_mask=real.to(model.device),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=new_tokens, use_cache=use_cache, **settings
            ),
        )
    return [tokenizer.decode(row[longest:].tolist()) for row in out]
