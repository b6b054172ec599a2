"""What is as wide as the vocabulary or the feed-forward layer exists for a chunk of the sequence at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.measure.memory import allocator_peak
from lsh_v2.model import loss
from lsh_v2.model.feed_forward import FeedForward

POSITIONS, CHUNK = 2048, 256


def step_bytes(call: Callable[[], Tensor]) -> int:
    """Peak of a call and its backward pass."""

    def step() -> None:
        call().sum().backward()

    step()
    return allocator_peak(step)[1]


def test_losses_of_a_long_sequence_do_not_store_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    states, head = torch.randn(POSITIONS, 8, requires_grad=True), torch.randn(600, 8, requires_grad=True)
    labels, found = torch.randint(600, (POSITIONS,)), {}
    for chunk in (CHUNK, POSITIONS):
        monkeypatch.setattr(loss, "CHUNK", chunk)
        found[chunk] = step_bytes(lambda: loss.token_losses(states, head, labels))
    assert found[CHUNK] < 0.4 * found[POSITIONS]


def test_feed_forward_does_not_store_its_inner_values() -> None:
    x = torch.randn(1, POSITIONS, 8, requires_grad=True)
    some, whole = (FeedForward(8, 300, chunk=chunk) for chunk in (CHUNK, POSITIONS))
    assert step_bytes(lambda: some(x)) < 0.4 * step_bytes(lambda: whole(x))
