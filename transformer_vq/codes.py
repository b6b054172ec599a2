"""Softmax attention to keys that are codewords, in time linear in the length.

All keys with one code have the same score, so a query needs each code only once: its score plus the logarithm of the
number of keys with that code, and the mean of their values (Lingle 2023, equations 12 to 17). Causal attention proceeds
block by block: one softmax over the codes of all keys before the block and over the block's own keys. It equals dense
softmax with each key replaced by its codeword, for any block length and any split of a sequence between calls.

The gradient of a key is straight-through. It is exact for queries in the key's own block. For later queries, and
without a causal mask, keys with one code share the mean of the gradients that all of them would get. Gradients of
values are exact within a call. The state that a call starts from is treated as a constant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from transformer_vq.kmeans import tally
from transformer_vq.precision import in_own_dtype

MEANS_AT_ONCE = 2**22  # elements of values by codes and blocks that are held and processed at once


@dataclass(frozen=True)
class State:
    """Attention's state of past keys: the number of keys per code and the sums of their values, in float64.

    `pull`, if present, is zero; it passes its gradient on to the keys summed in it.
    """

    counts: Float[Tensor, "B G S"]
    sums: Float[Tensor, "B G S E"]
    pull: Float[Tensor, "B G S D"] | None = None

    @staticmethod
    def empty(batch: int, heads: int, codes: int, value_dim: int, device: torch.device) -> State:
        """The state before the first key."""
        counts = torch.zeros(batch, heads, codes, dtype=torch.float64, device=device)
        return State(counts, counts.new_zeros(batch, heads, codes, value_dim))

    def extended(
        self, codes: Int[Tensor, "B G M"], v: Float[Tensor, "B G M E"], k: Float[Tensor, "B G M D"] | None = None
    ) -> State:
        """The state after further keys. `k` is not read, but gets a gradient if it requires one."""
        counts, sums = tally(v, codes, self.counts.shape[2])
        pull = self.pull
        if k is not None and k.requires_grad:
            own = tally(k - k.detach(), codes, self.counts.shape[2])[1]
            pull = own if pull is None else pull + own
        return State(self.counts + counts, self.sums + sums, pull)

    def select(self, index: Int[Tensor, " B"]) -> State:
        """The state of the sequences given by `index`."""
        return State(self.counts.index_select(0, index), self.sums.index_select(0, index))

    def detach(self) -> State:
        """The same without a graph."""
        return State(self.counts.detach(), self.sums.detach())

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return sum(x.numel() * x.itemsize for x in (self.counts, self.sums))


def straight_through(x: Float[Tensor, "*rows D"], codewords: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Return the codewords, with the gradient passed to x."""
    return codewords + (x - x.detach()) if x.requires_grad else codewords


def codewords(codebook: Float[Tensor, "G S D"], codes: Int[Tensor, "B G M"]) -> Float[Tensor, "B G M D"]:
    """Row `codes[b, g, m]` of codebook g."""
    heads = torch.arange(len(codebook), device=codes.device)[:, None]
    return F.embedding(codes + heads * codebook.shape[1], codebook.flatten(0, 1))


def attend_all(
    q: Float[Tensor, "B H N D"], codebook: Float[Tensor, "G S D"], state: State, *, scale: float
) -> Float[Tensor, "B H N E"]:
    """Attend from every query to the codewords of all keys in the state."""
    keys = codebook.to(q.dtype).expand(len(q), -1, -1, -1)
    if state.pull is not None:
        keys = keys + _means(state.counts, state.pull).to(q.dtype)
    values, bias = _means(state.counts, state.sums).to(q.dtype), state.counts.log().to(q.dtype)
    queries = q.unflatten(1, (len(codebook), -1)).flatten(0, 1)
    out = _softmax(queries, keys.flatten(0, 1), values.flatten(0, 1), bias.flatten(0, 1), scale)
    return out.unflatten(0, (len(q), -1)).flatten(1, 2)


def attend_past(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G N D"],
    codes: Int[Tensor, "B G N"],
    v: Float[Tensor, "B G N E"],
    codebook: Float[Tensor, "G S D"],
    state: State,
    *,
    scale: float,
    block: int,
) -> tuple[Float[Tensor, "B H N E"], State]:
    """Attend from each query to the codewords of the state's keys and of these keys up to its own.

    Returns the output and the state after these keys. `k` is not read, but gets a gradient if it requires one.
    """
    (B, G, N, E), S = v.shape, codebook.shape[1]
    if k.requires_grad and state.pull is None:
        state = replace(state, pull=torch.zeros(*state.counts.shape, k.shape[3], dtype=k.dtype, device=k.device))
    step = block * max(1, MEANS_AT_ONCE // (B * G * S * E))
    outs = []
    for begin in range(0, N, step):
        slab = slice(begin, begin + step)
        part = q[:, :, slab], k[:, :, slab], codes[:, :, slab], v[:, :, slab]
        out, state = _blocks(*part, codebook, state, scale, min(block, part[3].shape[2]))
        outs.append(out)
    return torch.cat(outs, dim=2), state


def _blocks(
    q: Tensor, k: Tensor, codes: Tensor, v: Tensor, codebook: Tensor, state: State, scale: float, block: int
) -> tuple[Tensor, State]:
    """Process several blocks at once: each is a softmax over S biased codes and over L keys with a causal mask."""
    (B, G, N, _), fill = v.shape, -v.shape[2] % block
    own = straight_through(k, codewords(codebook, codes).to(q.dtype))
    real = torch.ones_like(codes, dtype=torch.float64).unsqueeze(-1)
    q, own, v, real = (F.pad(x, (0, 0, 0, fill)) if fill else x for x in (q, own, v, real))
    codes = F.pad(codes, (0, fill)) if fill else codes
    before, counts = _before(real, codes, block, state.counts.unsqueeze(-1))
    before, counts = before[..., 0], counts[..., 0]
    before_sums, sums = _before(v, codes, block, state.sums)
    keys, pull = codebook.to(q.dtype)[None, :, None].expand(B, -1, codes.shape[2] // block, -1, -1), state.pull
    if pull is not None:
        nothing = k - k.detach()
        before_pull, pull = _before(F.pad(nothing, (0, 0, 0, fill)) if fill else nothing, codes, block, pull)
        keys = keys + _means(before, before_pull).to(q.dtype)
    ours = (x.unflatten(2, (-1, block)) for x in (own, v))
    theirs = keys, _means(before, before_sums).to(v.dtype)
    keys, values = (torch.cat(x, dim=3).flatten(0, 2) for x in zip(theirs, ours, strict=True))
    queries = q.unflatten(1, (G, -1)).unflatten(3, (-1, block)).transpose(2, 3).flatten(0, 2)
    out = _softmax(queries, keys, values, _bias(before.log().to(q.dtype).flatten(0, 2), block), scale)
    out = out.unflatten(0, (B, G, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return out[:, :, :N], State(counts, sums, pull)


def _bias(past: Float[Tensor, "P S"], block: int) -> Float[Tensor, "P L S+L"]:
    """Bias added to scores: log counts of the codes, and minus infinity for keys after the query."""
    present = torch.full((block, block), -torch.inf, dtype=past.dtype, device=past.device).triu(1)
    return torch.cat((past[:, None].expand(-1, block, -1), present.expand(len(past), -1, -1)), dim=2)


def _before(x: Tensor, codes: Tensor, block: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Per-code sums of everything before each block, (B, G, blocks, S, W), and of everything up to the end.

    Totals between slabs keep the dtype of `start`; within a slab they have that of x.
    """
    (B, G, N, W), S = x.shape, start.shape[2]
    blocks = N // block
    place = torch.arange(B * G * blocks, device=x.device).repeat_interleave(block) * S + codes.flatten()
    zeros = x.new_zeros(B * G * blocks * S, W)
    each = zeros.scatter_add(0, place[:, None].expand(-1, W), x.reshape(-1, W)).view(B, G, blocks, S, W)
    running = each.cumsum(2)
    exclusive = torch.cat((torch.zeros_like(running[:, :, :1]), running[:, :, :-1]), dim=2)
    return exclusive + start[:, :, None].to(x.dtype), start + running[:, :, -1].to(start.dtype)


def _means(counts: Tensor, sums: Tensor) -> Tensor:
    return sums / counts.clamp(min=1).unsqueeze(-1).to(sums.dtype)


@in_own_dtype
def _softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """torch's attention on P problems: q (P, R, N, D), k (P, M, D), v (P, M, E), bias (P, M) or (P, N, M)."""
    R, E = q.shape[1], v.shape[-1]
    width = max(q.shape[-1], E)  # fused kernels need equal widths; zeros change no score
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    bias = bias[:, None, None] if bias.ndim == 2 else bias[:, None]
    k, v = (x[:, None].expand(-1, R, -1, -1) for x in (k, v))
    mask = bias.expand(-1, R, q.shape[2], -1) if q.is_cuda else bias
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[..., :E]
