"""Decoding one token: gather the keys its queries attend to and compute one softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from attentions.lsh_v2.estimate import Past
    from attentions.lsh_v2.held import Found
    from attentions.lsh_v2.samples import Reservoir


class Met(NamedTuple):
    """Keys that queries attend to: Y is R, or 1 if all R share them; `bias` is minus infinity for other keys."""

    keys: Float[Tensor, "X Y K D"]
    values: Float[Tensor, "X Y K E"]
    bias: Float[Tensor, "#X #R #K"]


def token_attention(
    q: Float[Tensor, "X R D"], past: Past, found: Found | None, factor: int, scale: float
) -> Float[Tensor, "X R E"]:
    """The last token of `past` for the R query heads of each key/value head: the softmax of `definition` on one row.

    `past.keys` are its band, `found` the pools in its buckets.
    """
    bias = torch.tensor(math.log(factor), dtype=q.dtype, device=q.device)
    met = [Met(past.keys.unsqueeze(1), past.values.unsqueeze(1), q.new_zeros(1, 1, 1))]
    own = q.new_full((*q.shape[:2], 1), -1, dtype=torch.int64) if found is None else found.index
    if found is not None:
        once = (own >= 0) & (own > F.pad(own[..., :-1], (1, 0), value=-1))
        met.append(Met(found.keys, found.values, bias.where(once, -torch.inf)))
    if past.reservoir is not None:
        met.append(_samples(past.reservoir, past.begin // factor, own, bias))
    scores = [(q.unsqueeze(-2) @ one.keys.mT).squeeze(-2) * scale + one.bias for one in met]
    weights = torch.cat(scores, -1).softmax(-1).split([x.shape[-1] for x in scores], -1)
    outs = [(weight.unsqueeze(-2) @ one.values).squeeze(-2) for weight, one in zip(weights, met, strict=True)]
    return torch.stack(outs).sum(0)


def _samples(reservoir: Reservoir, before: int, own: Int[Tensor, "X R K"], bias: Tensor) -> Met:
    """The sample of each stratum that is before pool `before` and not among `own`, which ascends."""
    index = reservoir.pools.index.unsqueeze(1).expand(-1, own.shape[1], -1).contiguous()
    place = torch.searchsorted(own, index).clamp(max=own.shape[2] - 1)
    rest = (index < before) & (own.gather(2, place) != index)
    count = reservoir.count.unsqueeze(-1).to(bias.dtype)
    keys, values = reservoir.pools.keys.unsqueeze(1), (reservoir.pools.values / count.clamp(min=1)).unsqueeze(1)
    return Met(keys, values, (bias + count.log().mT).where(rest, -torch.inf))
