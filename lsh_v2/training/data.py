"""Token rows for training: generated or from a file, one example per row or packed, in a resumable order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from harness.common.import_path import import_path
from tasks.encoding import Encoded, collate, encode
from tasks.example import Example, Mixed, Task
from tasks.jsonl import numbered_examples

if TYPE_CHECKING:
    from lsh_v2.training.configuration import TrainingConfig
    from tasks.tokenizer import Tokenizer


class FileTask(Task):
    """Cycles through the examples of a `.jsonl` file; kinds of examples that `like` generates are scored by it.

    Raises ValueError for a broken line, an empty file, or an example whose metadata do not allow scoring, naming the
    line.
    """

    def __init__(self, path: Path, like: Task) -> None:
        super().__init__()
        self._kinds = {task.name: task for task in (like.tasks if isinstance(like, Mixed) else [like])}
        self.examples: list[Example] = []
        for number, example in numbered_examples(path):
            self._require_gradable(example, f"{path} line {number}")
            self.examples.append(example)
        if not self.examples:
            raise ValueError(f"{path} holds no examples")

    def example(self, index: int) -> Example:
        return self.examples[index % len(self.examples)]

    def score(self, example: Example, output: str) -> float:
        kind = self._kind(example)
        return super().score(example, output) if kind is None else kind.score(example, output)

    def chance(self, example: Example) -> float:
        kind = self._kind(example)
        return super().chance(example) if kind is None else kind.chance(example)

    def _require_gradable(self, example: Example, location: str) -> None:
        """Raise ValueError unless the correct answer's score and the chance are numbers from 0 to 1."""
        try:
            figures = (self.score(example, example.answer), self.chance(example))
            wrong = [figure for figure in figures if not 0 <= figure <= 1]
        except KeyError as error:
            raise ValueError(f"{location}: its metadata lacks {error}") from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise ValueError(
                f"{location}: its metadata is not valid for {example.metadata.get('task')!r}: {error}"
            ) from error
        if wrong:
            raise ValueError(f"{location}: its metadata gives a score or chance of {wrong[0]}: it must be from 0 to 1")

    def _kind(self, example: Example) -> Task | None:
        return self._kinds.get(example.metadata.get("task", ""))


class TokenRows(Dataset):
    """`count` rows of at most `length` tokens.

    When packed, row r holds examples r, r + count, r + 2·count, and so on, as many as fit completely; packed examples
    attend to one another, as documents do in language model training. Raises ValueError if a single example is too
    long.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, *, count: int, length: int, pack: bool, learn: str) -> None:
        self._task, self._tokenizer = task, tokenizer
        self._count, self._length, self._pack, self._learn = count, length, pack, learn

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Encoded:
        parts: list[Encoded] = []
        room = self._length
        for index, example in enumerate(self._task.stream(row, self._count)):
            encoded = encode(example, self._tokenizer, learn=self._learn)
            if len(encoded.input_ids) > room:
                if not parts:
                    raise ValueError(
                        f"example {row + index * self._count} has {len(encoded.input_ids)} tokens, "
                        f"more than seq_length={self._length}"
                    )
                break
            parts.append(encoded)
            room -= len(encoded.input_ids)
            if not self._pack:
                break
        return Encoded(*(torch.cat(same) for same in zip(*parts, strict=True)))


class Batches(Sampler):
    """Batches of row numbers, shuffled by seed and epoch only; the first `start` batches of the epoch are skipped.

    Several processes take batches in turn. All of them get the same number of full batches; to make that possible, the
    epoch is padded with its first rows. Accelerate would pad too, but with the first rows after `start`.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, processes: int = 1) -> None:
        self._rows, self.batch_size, self._seed, self._processes = rows, batch_size, seed, processes
        self.drop_last = False
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return math.ceil(self._rows / (self.batch_size * self._processes)) * self._processes

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(self._rows, generator=draw)
        if self._processes > 1:
            order = order[torch.arange(len(self) * self.batch_size) % self._rows]
        return iter([batch.tolist() for batch in order.split(self.batch_size)[self.start :]])


def task_of(config: TrainingConfig, *, evaluation: bool) -> Task:
    """Build a configuration's task; evaluation uses another seed, and therefore other examples, or its own file.

    Raises ValueError for a path that is not a task, for invalid settings, and for broken files.
    """
    made = made_task(config, evaluation=evaluation)
    path = config.eval_file if evaluation else config.train_file
    return made if path is None else FileTask(Path(path), made)


def made_task(config: TrainingConfig, *, evaluation: bool) -> Task:
    """Build the task that generates examples and grades answers, and try one example. Raises ValueError if it fails."""
    maker = import_path(config.task)
    if not callable(maker):
        raise ValueError(f"task={config.task!r} is not allowed: it must make a tasks.example.Task")
    try:
        made = maker(seed=2 * config.seed + evaluation, **config.task_settings)
        if isinstance(made, Task):
            made.example(0)
    except Exception as error:  # runs user code
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"task={config.task} with task_settings={config.task_settings} fails: {why}") from error
    if not isinstance(made, Task):
        raise ValueError(f"task={config.task!r} is not allowed: it must make a tasks.example.Task")
    return made


def loader_of(config: TrainingConfig, tokenizer: Tokenizer, processes: int = 1) -> tuple[DataLoader, Batches]:
    """Return the training batches of all processes and the sampler that orders them."""
    rows = TokenRows(
        task_of(config, evaluation=False),
        tokenizer,
        count=config.num_train_sequences,
        length=config.seq_length,
        pack=config.pack,
        learn=config.learn,
    )
    batches = Batches(len(rows), config.batch_size, config.seed, processes)
    loader = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=collator(tokenizer.pad_id),
        num_workers=config.num_workers,
        generator=torch.Generator(),  # a loader draws once per start, and a resumed epoch starts twice
    )
    return loader, batches


def collator(pad_id: int) -> Callable[[list[Encoded]], Encoded]:
    """Return a function that collates rows into a batch and can be pickled for worker processes."""
    return partial(collate, pad_id=pad_id)
