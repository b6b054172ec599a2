"""The selective scan in Triton, forward and backward: a program runs a few channels of one row from end to end.

A chunk of positions is an associative scan over (decay, input), whose first input includes the previous state. Decays
are below one and only multiplied, so nothing overflows. Backward scans each chunk again from the state that forward
saved before it, and then the adjoint from the last position back. Sums over channels are partial sums per program,
added up afterwards in a fixed order: there are no atomics, so results are reproducible.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

STATES = 16
CHUNK = 32  # positions scanned at once: checkpoints then take half the bytes of u
BLOCK = 8  # channels per program: a tile of 32 x 8 x 16 is 32 registers in each of 128 threads


def forward(
    u: Float[Tensor, "B G M E"],
    delta: Float[Tensor, "B G M E"],
    a: Float[Tensor, "G E S"],
    b: Float[Tensor, "B G M S"],
    c: Float[Tensor, "B G R N S"],
    state: Float[Tensor, "B G E S"],
    *,
    checkpoints: bool,
) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"], Tensor | None]:
    """Return output, last state and, with `checkpoints`, the states from which `backward` starts its chunks."""
    B, G, M, E = u.shape
    assert a.shape[2] == STATES, "group the states by 16 first"
    y, last = u.new_empty(*c.shape[:-1], E), torch.empty_like(state, memory_format=torch.contiguous_format)
    states = u.new_empty(B, G, triton.cdiv(M, CHUNK), E, STATES) if checkpoints else None
    inputs = [x.contiguous() for x in (u, delta, a, b, c, state)]
    kept = y if states is None else states
    _launch(_forward, _grid(u), *inputs, y, last, kept, *_sizes(u, c), KEEP=checkpoints)
    return y, last, states


def backward(
    grad: Float[Tensor, "B G R N E"],
    u: Float[Tensor, "B G M E"],
    delta: Float[Tensor, "B G M E"],
    a: Float[Tensor, "G E S"],
    b: Float[Tensor, "B G M S"],
    c: Float[Tensor, "B G R N S"],
    states: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, a, b and c."""
    u, delta, a, b, c, grad = (x.contiguous() for x in (u, delta, a, b, c, grad))
    grid = _grid(u)
    du, ddelta, da = torch.empty_like(u), torch.empty_like(u), u.new_empty(*u.shape[:2], *a.shape[1:])
    db, dc = (x.new_empty(grid[1], *x.shape) for x in (b, c))
    inputs, outputs = (u, delta, a, b, c, grad, states), (du, ddelta, da, db, dc)
    _launch(_backward, grid, *inputs, *outputs, *_sizes(u, c), num_warps=8)  # with 4 warps its tiles spill
    return du, ddelta, da.sum(0), db.sum(0), dc.sum(0)


def _launch(kernel: Any, grid: tuple[int, int], *arguments: Tensor | int, **options: int) -> None:
    kernel[grid](*arguments, **_blocks(), **options)


def _blocks() -> dict[str, int]:
    return {"STATES": STATES, "CHUNK": CHUNK, "BLOCK": BLOCK}


def _grid(u: Tensor) -> tuple[int, int]:
    return u.shape[0] * u.shape[1], triton.cdiv(u.shape[3], BLOCK)


def _sizes(u: Tensor, c: Tensor) -> tuple[int, ...]:
    """Number of kinds G, queries per key R, keys M, keys before the first query, channels E."""
    return u.shape[1], c.shape[2], u.shape[2], u.shape[2] - c.shape[3], u.shape[3]


@triton.jit
def _join(decay, entry, next_decay, next_entry):
    return decay * next_decay, next_decay * entry + next_entry


@triton.jit
def _terms(u, delta, b, rate, row, t, e, s, keys, channels, wanted, STATES: tl.constexpr):
    """Steps and values (T, E), keys (T, S), decays and inputs (T, E, S) at t; masked positions change nothing."""
    there = wanted[:, None] & (e < channels)[None, :]
    at = (row * keys + t)[:, None] * channels + e[None, :]
    step, x = tl.load(delta + at, mask=there, other=0.0), tl.load(u + at, mask=there, other=0.0)
    key = tl.load(b + (row * keys + t)[:, None] * STATES + s[None, :], mask=wanted[:, None], other=0.0)
    return step, x, key, tl.exp(step[:, :, None] * rate[None, :, :]), (step * x)[:, :, None] * key[:, None, :]


@triton.jit
def _forward(
    u, delta, a, b, c, start, y, last, states, kinds, repeats, keys, past, channels,
    KEEP: tl.constexpr, STATES: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    i, s = tl.arange(0, CHUNK), tl.arange(0, STATES)
    place = i[:, None, None]
    inside, own = (e < channels)[:, None], e[:, None] * STATES + s[None, :]
    rate = tl.load(a + (row % kinds) * channels * STATES + own, mask=inside, other=0.0)
    state = tl.load(start + row * channels * STATES + own, mask=inside, other=0.0)
    chunks = tl.cdiv(keys, CHUNK)
    for chunk in range(chunks):
        if KEEP:
            tl.store(states + (row * chunks + chunk) * channels * STATES + own, state, mask=inside)
        t = chunk * CHUNK + i
        _, _, _, decay, entry = _terms(u, delta, b, rate, row, t, e, s, keys, channels, t < keys, STATES)
        entry += tl.where(place == 0, decay * tl.expand_dims(state, 0), 0.0)
        _, h = tl.associative_scan((decay, entry), 0, _join)
        seen = (t >= past) & (t < keys)
        for r in range(repeats):
            query = ((row * repeats + r) * (keys - past) + t - past)[:, None]
            read = tl.load(c + query * STATES + s[None, :], mask=seen[:, None], other=0.0)
            out = tl.sum(h * read[:, None, :], axis=2)
            tl.store(y + query * channels + e[None, :], out, mask=seen[:, None] & (e < channels)[None, :])
        state = tl.sum(tl.where(place == CHUNK - 1, h, 0.0), axis=0)
    tl.store(last + row * channels * STATES + own, state, mask=inside)


@triton.jit
def _backward(
    u, delta, a, b, c, dy, states, du, ddelta, da, db, dc, kinds, repeats, keys, past, channels,
    STATES: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part, rows = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(0)
    e, i, s = part * BLOCK + tl.arange(0, BLOCK), tl.arange(0, CHUNK), tl.arange(0, STATES)
    place = i[:, None, None]
    inside, own = (e < channels)[:, None], e[:, None] * STATES + s[None, :]
    rate = tl.load(a + (row % kinds) * channels * STATES + own, mask=inside, other=0.0)
    chunks = tl.cdiv(keys, CHUNK)
    through_rate = tl.zeros_like(rate)
    pulled = tl.zeros_like(rate)  # adjoint of the state before the next chunk
    for back in range(chunks):
        chunk = chunks - 1 - back
        t = chunk * CHUNK + i
        before = tl.load(states + (row * chunks + chunk) * channels * STATES + own, mask=inside, other=0.0)
        shifted = (i > 0) & (t - 1 < keys)
        _, _, _, decay, entry = _terms(u, delta, b, rate, row, t - 1, e, s, keys, channels, shifted, STATES)
        entry = tl.where(place == 0, before[None, :, :], entry)
        _, earlier = tl.associative_scan((decay, entry), 0, _join)
        step, x, key, decay, entry = _terms(u, delta, b, rate, row, t, e, s, keys, channels, t < keys, STATES)
        h = decay * earlier + entry

        adjoint = tl.where(place == CHUNK - 1, tl.expand_dims(pulled, 0), 0.0) + tl.zeros_like(h)
        seen = (t >= past) & (t < keys)
        for r in range(repeats):
            query = ((row * repeats + r) * (keys - past) + t - past)[:, None]
            read = tl.load(c + query * STATES + s[None, :], mask=seen[:, None], other=0.0)
            grad = tl.load(dy + query * channels + e[None, :], mask=seen[:, None] & (e < channels)[None, :], other=0.0)
            adjoint += grad[:, :, None] * read[:, None, :]
            to = dc + (part * rows * repeats * (keys - past) + query) * STATES + s[None, :]
            tl.store(to, tl.sum(grad[:, :, None] * h, axis=1), mask=seen[:, None])
        later = (i < CHUNK - 1) & (t + 1 < keys)
        _, _, _, next_decay, _ = _terms(u, delta, b, rate, row, t + 1, e, s, keys, channels, later, STATES)
        _, adjoint = tl.associative_scan((next_decay, adjoint), 0, _join, reverse=True)

        into = tl.sum(adjoint * key[:, None, :], axis=2)
        through = adjoint * decay * earlier
        at = (row * keys + t)[:, None] * channels + e[None, :]
        there = (t < keys)[:, None] & (e < channels)[None, :]
        tl.store(du + at, into * step, mask=there)
        tl.store(ddelta + at, into * x + tl.sum(through * rate[None, :, :], axis=2), mask=there)
        to = db + ((part * rows + row) * keys + t)[:, None] * STATES + s[None, :]
        tl.store(to, tl.sum(adjoint * (step * x)[:, :, None], axis=1), mask=(t < keys)[:, None])
        through_rate += tl.sum(through * step[:, :, None], axis=0)
        pulled = tl.sum(tl.where(place == 0, decay * adjoint, 0.0), axis=0)
    tl.store(da + row * channels * STATES + own, through_rate, mask=inside)
