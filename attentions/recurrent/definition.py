"""Recurrences by their definition in float64: position by position, or unrolled for selected rows."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.recurrent.terms import Terms, both_ways

PIECE = 128  # positions summed at once, so that their decays stay in cache


def sequential(terms: Terms) -> Float[Tensor, "B G R N E"]:
    """Run the recurrence position by position; returns every query row."""
    t = terms.double()
    if t.queries == 0:
        return t.x[:, :, None, :0].expand(-1, -1, t.c.shape[2], -1, -1)
    state, states = t.x.new_zeros(*t.x.shape[:2], t.x.shape[3], t.b.shape[3]), []
    for begin in range(0, t.b.shape[2], 256):  # decays and inputs of a few positions at once
        step, x, b = (y[:, :, begin : begin + 256] for y in (t.step, t.x, t.b))
        decays = (step[..., None] * t.rate[:, None]).exp().unbind(2)
        inputs = ((step * x)[..., None] * b[..., None, :]).unbind(2)
        for decay, entry in zip(decays, inputs, strict=True):
            state = torch.addcmul(entry, decay, state)
            states.append(state)
    return torch.einsum("bgrns,bgnes->bgrne", t.c, torch.stack(states[-t.queries :], dim=2))


def naive_both_ways(terms: Terms, *, causal: bool) -> Float[Tensor, "B G R N E"]:
    """`both_ways` with the sequential recurrence."""
    return both_ways(terms.double(), sequential, causal=causal)


def unrolled(
    terms: Terms, at: Int[Tensor, " N"], state: Float[Tensor, "B G E S"] | None = None
) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"]]:
    """Return outputs at positions `at`, in any order, and the state after the last position, all in float64.

    Uses the unrolled recurrence, h[t] = exp(rate · Σ step[s..t]) · h[s - 1] + Σ exp(rate · Σ step[j+1..t]) · step[j] ·
    x[j] ⊗ b[j] for j from s to t, so a few rows of a long sequence do not need one step per position.
    """
    t, wanted = terms.double(), at.tolist()
    state = t.x.new_zeros(*t.x.shape[:2], t.x.shape[3], t.b.shape[3]) if state is None else state
    kept, ends = {}, sorted({*(row + 1 for row in wanted), t.b.shape[2]})
    for begin, end in zip([0, *ends], ends, strict=False):
        for start in range(begin, end, PIECE):
            state = _after(t, slice(start, min(start + PIECE, end)), state)
        kept[end - 1] = state
    if not wanted:
        return t.x.new_zeros(*t.c.shape[:4], t.x.shape[3]), state
    return torch.einsum("bgrns,bgnes->bgrne", t.c, torch.stack([kept[row] for row in wanted], dim=2)), state


def _after(t: Terms, here: slice, state: Float[Tensor, "B G E S"]) -> Float[Tensor, "B G E S"]:
    """Return the state after the positions `here`."""
    step, x, b = (y[:, :, here] for y in (t.step, t.x, t.b))
    steps = step.cumsum(2)
    decay = ((steps[:, :, -1:] - steps)[..., None] * t.rate[:, None]).exp()
    entries = (step * x)[..., None] * decay
    # If all channels and entries share one decay, the sum over positions is one matrix product.
    summed = entries[..., 0].mT @ b if entries.shape[-1] == 1 else (entries * b[..., None, :]).sum(2)
    return torch.addcmul(summed, (steps[:, :, -1, :, None] * t.rate).exp(), state)
