"""Attention segment by segment, each beside what the memories kept of the segments before it.

Within a segment any attention runs on [slots of the memories, the segment's own keys]; a full segment then leaves
through the memories in the order they are named: each takes in what the one before hands on. Keys are hence bounded
by the slots and a segment, whatever the length of the sequence.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions import Attention
from attentions.base import Problem
from lsh_v2.configuration import ModelConfig
from lsh_v2.memory.base import Memory, Tokens, join
from lsh_v2.memory.compressed import CompressedMemory
from lsh_v2.memory.hash_evict import HashEvict
from lsh_v2.memory.infini import InfiniMemory
from lsh_v2.projection import Heads


class SegmentedAttention(nn.Module):
    """Memories for an attention, whose weights stay its owner's; it is handed in again with each call.

    Raises ValueError for an attention that needs as many queries as keys.
    """

    def __init__(self, attention: Attention, memories: list[Memory], segment: int) -> None:
        super().__init__()
        if reason := attention.why_not(probe(attention)):
            raise ValueError(f"memory needs an attention of fewer queries than keys, but {reason}")
        self.segment = segment
        self.memories = nn.ModuleList(memories)

    def forward(self, attention: Attention, heads: Heads) -> Float[Tensor, "B H N E"]:
        """The attention's output for the whole sequence."""
        outs, past, length = [], Past(attention, self.kinds()), heads.q.shape[2]
        for start in range(0, length, self.segment):
            piece = heads.stretch(start, min(start + self.segment, length))
            outs.append(past.attend(piece, Tokens(piece.k, piece.v, piece.bare_k)))
            if start + self.segment < length:
                past.leave(piece)
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)

    def kinds(self) -> list[Memory]:
        """The memories, typed."""
        return [memory for memory in self.memories if isinstance(memory, Memory)]

    def stream(self, attention: Attention) -> SegmentStream:
        """A fresh decoding state."""
        return SegmentStream(self.segment, Past(attention, self.kinds()))


class Past:
    """The states of the memories of an attention."""

    def __init__(self, attention: Attention, memories: list[Memory]) -> None:
        self._attention, self._memories = attention, memories
        self._states: list = [None] * len(self._memories)

    def attend(self, piece: Heads, own: Tokens) -> Float[Tensor, "B H T E"]:
        """Output of the piece's queries, the last of `own`, which are the segment's tokens so far."""
        kept = [memory.slots(state) for memory, state in zip(self._memories, self._states, strict=True)]
        keys = join(*reversed(kept), own)  # what later memories hold is older
        out = self._attention(piece.q, keys.k, keys.v)
        for memory, state in zip(self._memories, self._states, strict=True):
            out = memory.merge(state, piece.bare_q, out)
        return out

    def leave(self, segment: Heads) -> None:
        """Hand a full segment to the memories."""
        leaving: Tokens | None = Tokens(segment.k, segment.v, segment.bare_k)
        for i, memory in enumerate(self._memories):
            if leaving is None:
                return
            self._states[i], leaving = memory.absorb(self._states[i], leaving, segment.q)

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences that `index` names."""
        self._states = [m.select(state, index) for m, state in zip(self._memories, self._states, strict=True)]

    @property
    def state_bytes(self) -> int:
        """Bytes that the memories hold."""
        return sum(m.state_bytes(state) for m, state in zip(self._memories, self._states, strict=True))


class SegmentStream:
    """Decoding with memories: the segment so far, and the states of what left it."""

    def __init__(self, segment: int, past: Past) -> None:
        self._segment, self._past = segment, past
        self._own: Heads | None = None

    def extend(self, heads: Heads) -> Float[Tensor, "B H T E"]:
        """Append T tokens and return their rows."""
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
        """Keep the sequences that `index` names, in its order."""
        self._past.reorder(index)
        if self._own is not None:
            self._own = Heads(*(x.index_select(0, index) for x in self._own))

    @property
    def state_bytes(self) -> int:
        """Bytes that the state holds now."""
        own = 0 if self._own is None else sum(x.numel() * x.itemsize for x in self._own)
        return own + self._past.state_bytes


def memories_of(config: ModelConfig, seed: int) -> list[Memory]:
    """The memories that a configuration names, in its order."""
    made = {
        "hash_evict": lambda: HashEvict(
            config.n_kv_heads, config.key_dim, slots=config.memory_slots, bits=config.memory_bits, seed=seed
        ),
        "compressed": lambda: CompressedMemory(slots=config.memory_slots, rate=config.compression_rate),
        "infini": lambda: InfiniMemory(config.n_heads, rule=config.infini_rule),
    }
    return [made[name]() for name in config.memory]


def probe(attention: Attention) -> Problem:
    """A call with fewer queries than keys."""
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
