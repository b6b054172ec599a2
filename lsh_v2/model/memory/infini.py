"""Infini memory: everything that left the window, summed into one matrix per head and read by linear attention.

Munkhdalai et al. 2024, Infini-attention, https://arxiv.org/abs/2404.07143: with sigma = elu + 1, reading is
sigma(Q) M / (sigma(Q) z); writing adds sigma(K)^T V (linear) or sigma(K)^T (V - sigma(K) M / (sigma(K) z)) (delta), and
z sums sigma(K). Keys and queries carry no position. A gate per query head mixes the memory's output into the
attention's. An empty memory leaves the output unchanged, unlike the paper's formula.

A public reproduction found that the gate does not train at the learning rate of the other weights. `gate_parameters`
returns the gates so that training can give them their own learning rate and no weight decay.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attentions.recurrent.terms import at_least_float32
from lsh_v2.model.memory.base import Memory, Tokens


class Sums(NamedTuple):
    """M and z of each key/value head."""

    matrix: Float[Tensor, "B G F E"]
    keys: Float[Tensor, "B G F"]


class InfiniMemory(Memory):
    """Memory of constant size, F·E + F values per key/value head; `rule` is "linear" or "delta"."""

    def __init__(self, heads: int, *, rule: Literal["linear", "delta"]) -> None:
        super().__init__()
        self.rule = rule
        self.gate = nn.Parameter(torch.zeros(heads))

    def absorb(self, state: Sums | None, leaving: Tokens, q: Float[Tensor, "B H N D"]) -> tuple[Sums, Tokens]:
        exact = at_least_float32(leaving.v.dtype)
        keys, values = feature(leaving.bare_k.to(exact)), leaving.v.to(exact)
        if state is None:
            zero = keys.new_zeros(*keys.shape[:2], keys.shape[-1], values.shape[-1])
            state = Sums(zero, zero[..., 0])
        elif self.rule == "delta":
            values = values - read(state, keys)
        return Sums(state.matrix + keys.transpose(2, 3) @ values, state.keys + keys.sum(2)), leaving

    def merge(
        self, state: Sums | None, bare_q: Float[Tensor, "B H N F"], out: Float[Tensor, "B H N E"]
    ) -> Float[Tensor, "B H N E"]:
        if state is None:
            return out
        group = bare_q.shape[1] // state.keys.shape[1]
        of_head = Sums(*(x.repeat_interleave(group, dim=1) for x in state))
        share = torch.sigmoid(self.gate)[:, None, None].to(out.dtype)
        return share * read(of_head, feature(bare_q.to(of_head.keys.dtype))).to(out.dtype) + (1 - share) * out


def feature(x: Tensor) -> Tensor:
    """elu + 1, always positive."""
    return F.elu(x) + 1


def read(state: Sums, features: Float[Tensor, "B H N F"]) -> Float[Tensor, "B H N E"]:
    """Return the mean value that the features retrieve from the memory."""
    return (features @ state.matrix) / (features @ state.keys.unsqueeze(-1))


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the gates of every Infini memory in a model."""
    return [module.gate for module in model.modules() if isinstance(module, InfiniMemory)]
