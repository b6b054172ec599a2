"""Segment-by-segment attention, where each segment also attends to what the memories kept of earlier segments.

Within a segment, any attention runs on [memory slots, the segment's own keys]. A full segment is then passed through
the memories in their configured order; each memory absorbs the tokens that the one before hands on. The number of keys
is bounded by the slots plus one segment, whatever the sequence length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.common.problem import Problem
from lsh_v2.model.memory.base import Memory, Tokens, join
from lsh_v2.model.memory.compressed import CompressedMemory
from lsh_v2.model.memory.hash_evict import HashEvict
from lsh_v2.model.memory.infini import InfiniMemory
from lsh_v2.model.projection import Heads

if TYPE_CHECKING:
    from attentions import Attention
    from lsh_v2.common.configuration import ModelConfig


class SegmentedAttention(nn.Module):
    """Adds memories to an attention. The attention's weights stay with its owner, which passes it to each call.

    Raises ValueError for an attention that needs as many queries as keys.
    """

    def __init__(self, attention: Attention, memories: list[Memory], segment: int) -> None:
        super().__init__()
        if reason := attention.why_not(probe(attention)):
            raise ValueError(f"memory needs an attention with fewer queries than keys, but {reason}")
        self.segment = segment
        self.memories = nn.ModuleList(memories)

    def forward(self, attention: Attention, heads: Heads) -> Float[Tensor, "B H N E"]:
        """Return the attention's output for the whole sequence."""
        outs, past, length = [], MemoryStates(attention, self.kinds()), heads.q.shape[2]
        for start in range(0, length, self.segment):
            piece = heads.stretch(start, min(start + self.segment, length))
            outs.append(past.attend(piece, Tokens(piece.k, piece.v, piece.bare_k)))
            if start + self.segment < length:
                past.leave(piece)
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)

    def kinds(self) -> list[Memory]:
        """Return the memories with their type."""
        return [memory for memory in self.memories if isinstance(memory, Memory)]

    def stream(self, attention: Attention) -> SegmentStream:
        """Return a fresh decoding state."""
        return SegmentStream(self.segment, MemoryStates(attention, self.kinds()))


class MemoryStates:
    """The current states of an attention's memories."""

    def __init__(self, attention: Attention, memories: list[Memory]) -> None:
        self._attention, self._memories = attention, memories
        self._states: list = [None] * len(self._memories)

    def attend(self, piece: Heads, own: Tokens) -> Float[Tensor, "B H T E"]:
        """Return the output for the piece's queries, the last positions of `own`, the segment's tokens so far."""
        kept = [memory.slots(state) for memory, state in zip(self._memories, self._states, strict=True)]
        keys = join(*reversed(kept), own)  # later memories hold older tokens
        out = self._attention(piece.q, keys.k, keys.v)
        for memory, state in zip(self._memories, self._states, strict=True):
            out = memory.merge(state, piece.bare_q, out)
        return out

    def leave(self, segment: Heads) -> None:
        """Pass a full segment to the memories."""
        leaving: Tokens | None = Tokens(segment.k, segment.v, segment.bare_k)
        for i, memory in enumerate(self._memories):
            if leaving is None:
                return
            self._states[i], leaving = memory.absorb(self._states[i], leaving, segment.q)

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences in `index`."""
        self._states = [m.select(state, index) for m, state in zip(self._memories, self._states, strict=True)]

    @property
    def state_bytes(self) -> int:
        """Current size of the memories in bytes."""
        return sum(m.state_bytes(state) for m, state in zip(self._memories, self._states, strict=True))


class SegmentStream:
    """Decodes with memories: the current segment so far, and the states of the memories."""

    def __init__(self, segment: int, past: MemoryStates) -> None:
        self._segment, self._past = segment, past
        self._own: Heads | None = None

    def extend(self, heads: Heads) -> Float[Tensor, "B H T E"]:
        """Append T tokens and return their outputs."""
        outs = []
        while heads.q.shape[2]:
            if self._own is not None and self._own.q.shape[2] == self._segment:
                self._past.leave(self._own)
                self._own = None
            room = self._segment - (0 if self._own is None else self._own.q.shape[2])
            piece, heads = heads.stretch(0, room), heads.stretch(room, heads.q.shape[2])
            own = self._own = (
                piece if self._own is None else Heads(*(torch.cat(x, 2) for x in zip(self._own, piece, strict=True)))
            )
            outs.append(self._past.attend(piece, Tokens(own.k, own.v, own.bare_k)))
        return torch.cat(outs, dim=2)

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences in `index`, in that order."""
        self._past.reorder(index)
        if self._own is not None:
            self._own = Heads(*(x.index_select(0, index) for x in self._own))

    @property
    def state_bytes(self) -> int:
        """Current size of the state in bytes."""
        own = 0 if self._own is None else sum(x.numel() * x.itemsize for x in self._own)
        return own + self._past.state_bytes


def memories_of(config: ModelConfig, seed: int) -> list[Memory]:
    """Build the memories named in a configuration, in its order."""
    made = {
        "hash_evict": lambda: HashEvict(
            config.n_kv_heads, config.key_dim, slots=config.memory_slots, bits=config.memory_bits, seed=seed
        ),
        "compressed": lambda: CompressedMemory(slots=config.memory_slots, rate=config.compression_rate),
        "infini": lambda: InfiniMemory(config.n_heads, rule=config.infini_rule),
    }
    return [made[name]() for name in config.memory]


def probe(attention: Attention) -> Problem:
    """Describe a call with fewer queries than keys."""
    return Problem(
        batch=1,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        queries=1,
        keys=2,
        head_dim=attention.head_dim,
        value_dim=attention.value_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
        causal=attention.causal,
        backward=False,
    )
