"""Named rows of a recurrence, summed up, against all rows position by position."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attentions import build
from attentions.recurrent import recurrence
from attentions.recurrent.definition import PIECE, sequential, unrolled
from attentions.recurrent.terms import Terms

ROWS = torch.tensor([299, 0, 7, 7, 150, 8])  # in any order, some twice, some further apart than a piece


def terms(width: int, states: int) -> Terms:
    """300 positions in float64; decays of each channel and entry, or with 1 and 1 the same for all."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    step, rate = (normal(2, 3, 300, width) - 2).exp(), -normal(3, width, states).exp()
    return Terms(normal(2, 3, 2, 300, 5), normal(2, 3, 300, 5), normal(2, 3, 300, 9), step, rate)


def part(given: Terms, here: slice) -> Terms:
    """The positions `here` and their queries."""
    return Terms(given.c[:, :, :, here], given.b[:, :, here], given.x[:, :, here], given.step[:, :, here], given.rate)


@pytest.mark.parametrize(("width", "states"), [(9, 5), (1, 1)])
def test_named_rows_are_those_of_the_sequential_recurrence(width: int, states: int) -> None:
    given = terms(width, states)
    assert ROWS.unique().diff().max() > PIECE
    chosen = Terms(given.c[:, :, :, ROWS], given.b, given.x, given.step, given.rate)
    torch.testing.assert_close(unrolled(chosen, ROWS)[0], sequential(given)[:, :, :, ROWS], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("width", "states"), [(9, 5), (1, 1)])
def test_a_segment_goes_on_from_the_state_before_it(width: int, states: int) -> None:
    given = terms(width, states)
    early, late = (part(given, slice(start, start + 150)) for start in (0, 150))
    everywhere = torch.arange(150)
    first, state = unrolled(early, everywhere)
    torch.testing.assert_close(
        torch.cat((first, unrolled(late, everywhere, state)[0]), dim=3), sequential(given), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("queries", [300, 200])
def test_naive_by_rows_is_naive_whatever_the_segments(
    monkeypatch: pytest.MonkeyPatch, name: str, causal: bool, queries: int
) -> None:
    monkeypatch.setattr(recurrence, "SEGMENT", 64)
    attention = build(name, heads=4, head_dim=8, kv_heads=2, causal=causal)
    q, k, v = torch.randn(2, 4, queries, 8), torch.randn(2, 2, 300, 8), torch.randn(2, 2, 300, 8)
    first, rows = torch.tensor([0, 110]), torch.tensor([199, 0, 64, 5])
    want = attention.naive(q, k, v, first=first)[:, :, rows]
    torch.testing.assert_close(attention.naive(q, k, v, first=first, rows=rows), want, rtol=1e-12, atol=1e-13)
