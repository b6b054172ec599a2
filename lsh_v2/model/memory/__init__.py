"""Long-term memories of bounded size for sequences longer than the window."""

from __future__ import annotations

from lsh_v2.model.memory.base import Memory
from lsh_v2.model.memory.compressed import CompressedMemory
from lsh_v2.model.memory.hash_evict import HashEvict
from lsh_v2.model.memory.infini import InfiniMemory, gate_parameters
from lsh_v2.model.memory.segments import SegmentedAttention, memories_of

__all__ = [
    "CompressedMemory",
    "HashEvict",
    "InfiniMemory",
    "Memory",
    "SegmentedAttention",
    "gate_parameters",
    "memories_of",
]
