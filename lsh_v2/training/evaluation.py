"""Evaluates a model on held-out examples: its loss, and its own answers graded by the task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lsh_v2.model.generation import generate
from lsh_v2.training.data import TokenRows, collator, task_of
from tasks.encoding import IGNORED, encode_prompt

if TYPE_CHECKING:
    from lsh_v2.model.language_model import LSHv2Model
    from lsh_v2.training.configuration import TrainingConfig
    from tasks.example import Example, Task
    from tasks.tokenizer import Tokenizer

AT_ONCE = 64  # prompts of equal length answered in one batch


@torch.no_grad()
def held_out_loss(model: LSHv2Model, config: TrainingConfig, tokenizer: Tokenizer) -> float:
    """Return the mean cross-entropy in nats per label over `num_eval_sequences` rows, with inference-time halting."""
    rows = TokenRows(
        task_of(config, evaluation=True),
        tokenizer,
        count=config.num_eval_sequences,
        length=config.seq_length,
        pack=config.pack,
        learn=config.learn,
    )
    total, counted = 0.0, 0
    for batch in DataLoader(rows, batch_size=config.batch_size, collate_fn=collator(tokenizer.pad_id)):
        ids, labels = (x.to(model.embedding.weight.device) for x in batch)
        here = int((labels[:, 1:] != IGNORED).sum())
        total += float(model(ids, labels, logits_to_keep=0)["cross_entropy"]) * here
        counted += here
    return total / max(counted, 1)


def graded(
    model: LSHv2Model, task: Task, tokenizer: Tokenizer, *, count: int, max_answer_tokens: int, start: int = 0
) -> dict[str, dict[str, float]]:
    """Grade `count` examples by kind: the mean `score` of the model's greedy answers, its standard error, the share
    `exact` of answers equal to the reference, `chance`, and the number of `examples`.

    The kind is `metadata["task"]`. The model is told nothing about an answer except the limit on its length.
    """
    examples = [task.example(start + index) for index in range(count)]
    kinds: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for example, output in answers(model, examples, tokenizer, max_answer_tokens):
        entry = (task.score(example, output), float(output.split() == example.answer.split()), task.chance(example))
        kinds[str(example.metadata.get("task", task.name))].append(entry)  # may be a number in a file
    return {kind: _summary(torch.tensor(entries, dtype=torch.float64)) for kind, entries in sorted(kinds.items())}


def answers(
    model: LSHv2Model, examples: Iterable[Example], tokenizer: Tokenizer, limit: int
) -> Iterator[tuple[Example, str]]:
    """Yield each example with the model's greedy answer; prompts of equal length are batched."""
    prompts = sorted(((encode_prompt(e, tokenizer), e) for e in examples), key=lambda pair: len(pair[0]))
    for _, same in groupby(prompts, key=lambda pair: len(pair[0])):
        together = list(same)
        for begin in range(0, len(together), AT_ONCE):
            yield from _answered(model, together[begin : begin + AT_ONCE], tokenizer, limit)


def _answered(
    model: LSHv2Model, prompts: Sequence[tuple[Tensor, Example]], tokenizer: Tokenizer, limit: int
) -> Iterator[tuple[Example, str]]:
    ids = torch.stack([prompt for prompt, _ in prompts]).to(model.embedding.weight.device)
    limit = min(limit, model.config.max_seq_len - ids.shape[1])
    if limit < 1:
        raise ValueError(f"a prompt of {ids.shape[1]} tokens leaves no room in max_seq_len={model.config.max_seq_len}")
    produced = generate(model, ids, max_new_tokens=limit, stop=tokenizer.eos_id).tolist()
    for (_, example), tokens in zip(prompts, produced, strict=True):
        end = tokens.index(tokenizer.eos_id) if tokenizer.eos_id in tokens else len(tokens)
        yield example, tokenizer.decode(tokens[:end])


def _summary(entries: Tensor) -> dict[str, float]:
    score, exact, chance = entries.mean(0).tolist()
    error = float(entries[:, 0].std(correction=0)) / len(entries) ** 0.5
    return {
        "score": score,
        "standard_error": error,
        "exact": exact,
        "chance": chance,
        "examples": float(len(entries)),
    }
