"""Perplexity is exp of nats over exactly the tokens that were predicted."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lsh_bitnet import attend_with
from lsh_bitnet.perplexity import Perplexity, measure_perplexity
from tests.lsh_bitnet.models import loaded, logits, shared

TEXT = "Ein Fluß, zwei Flüsse; " * 40
BYTES = list(TEXT.encode())


def test_perplexity_is_exp_of_the_mean_loss_in_nats() -> None:
    found = Perplexity(nats=3 * math.log(10), predicted=3, tokens=4, text_bytes=6)
    assert found.perplexity == pytest.approx(10)
    assert found.bits_per_byte == pytest.approx(math.log2(10) / 2)
    assert Perplexity(nats=1e6, predicted=1, tokens=2, text_bytes=1).perplexity == math.inf


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_window_predicts_all_its_tokens_but_the_first(batch_size: int) -> None:
    model = shared("bitnet")
    found = measure_perplexity(loaded(model), TEXT, seq_len=50, batch_size=batch_size)
    windows = [torch.tensor(BYTES[start : start + 50])[None] for start in range(0, len(BYTES) - 49, 50)]
    nats = sum(F.cross_entropy(logits(model, w)[0, :-1], w[0, 1:], reduction="sum").item() for w in windows)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.tokens == 50 * len(windows) == len(BYTES) // 50 * 50
    assert found.predicted == 49 * len(windows)


def test_bytes_are_those_that_the_predicted_tokens_spell() -> None:
    found = measure_perplexity(loaded(shared("bitnet")), "abcdefgh" * 10, seq_len=8)
    assert found.text_bytes == found.predicted == 70


def test_at_most_so_many_batches_are_read() -> None:
    found = measure_perplexity(loaded(shared("bitnet")), TEXT, seq_len=20, batch_size=2, max_batches=3)
    assert found.tokens == 3 * 2 * 20


def test_a_swapped_attention_is_what_is_measured() -> None:
    model = shared("bitnet")
    own = measure_perplexity(loaded(model), TEXT, seq_len=100, max_batches=2)
    with attend_with(model, "flash"):
        same = measure_perplexity(loaded(model), TEXT, seq_len=100, max_batches=2)
    with attend_with(model, "bit_sampling", bits=0, window=1, local=1):
        poor = measure_perplexity(loaded(model), TEXT, seq_len=100, max_batches=2)
    assert same.nats == pytest.approx(own.nats, rel=1e-5)
    assert abs(poor.nats - own.nats) > 0.01 * own.nats


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 1}, "seq_len=1 is not allowed"),
        ({"seq_len": 2000}, "seq_len=2000 is not allowed: the text has only"),
        ({"seq_len": 5000}, "5000 tokens are not allowed: tiny supports 4096"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_batches": 0}, "max_batches=0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_perplexity(loaded(shared("bitnet")), TEXT, **options)
