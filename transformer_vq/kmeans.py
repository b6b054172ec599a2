"""Nearest codewords, and codebooks by k-means++ and Lloyd's iterations, for all heads at once.

Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding",
https://dl.acm.org/doi/10.5555/1283383.1283494; Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transformer_vq.precision import exact_products

SCORES_AT_ONCE = 2**22  # elements of rows by codes that are held at once


def nearest(x: Float[Tensor, "B H N D"], codebook: Float[Tensor, "H S D"]) -> Int[Tensor, "B H N"]:
    """Return the code of each row's nearest codeword, the first one on ties; computed in float32 or wider.

    |x - c|² is smallest where x · c - |c|²/2 is largest.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    book = codebook.detach().to(dtype)
    half = book.square().sum(-1).div(2)[:, None]
    (B, H, N, _), S = x.shape, book.shape[1]
    codes = torch.empty(B, H, N, dtype=torch.int64, device=x.device)
    step = max(1, SCORES_AT_ONCE // (H * S))
    for b in range(B):
        for begin in range(0, N, step):
            rows = x[b, :, begin : begin + step].detach().to(dtype)
            with exact_products(x.device):
                scores = torch.baddbmm(half, rows, book.mT, beta=-1)
            codes[b, :, begin : begin + step] = scores.argmax(-1)
    return codes


def kmeans(
    x: Float[Tensor, "H N D"], codes: int, *, iterations: int = 10, generator: torch.Generator | None = None
) -> Float[Tensor, "H S D"]:
    """Learn a codebook of `codes` codewords for the rows of each head by k-means++ seeding and Lloyd's iterations.

    A codeword that is nearest to no row does not move. There may be fewer rows than codes; some codewords are then
    equal. Raises ValueError if there are no rows.
    """
    if not x.shape[1]:
        raise ValueError("rows=0 is not allowed: a codebook needs at least 1 row to learn from")
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    codebook = _seeds(x, codes, generator)
    for _ in range(iterations):
        counts, sums = tally(x[None], nearest(x[None], codebook), codes)
        moved = (sums / counts.clamp(min=1).unsqueeze(-1))[0].to(x.dtype)
        codebook = torch.where(counts[0].unsqueeze(-1) > 0, moved, codebook)
    return codebook


def tally(
    values: Float[Tensor, "B G M E"], codes: Int[Tensor, "B G M"], size: int
) -> tuple[Float[Tensor, "B G S"], Float[Tensor, "B G S E"]]:
    """Return the number of rows of each of `size` codes, and the sum of their values, in float64."""
    counts = torch.zeros(*codes.shape[:2], size, dtype=torch.float64, device=codes.device)
    counts.scatter_add_(2, codes, torch.ones_like(codes, dtype=torch.float64))
    sums = torch.zeros(*codes.shape[:2], size, values.shape[3], dtype=torch.float64, device=codes.device)
    sums = sums.scatter_add(2, codes.unsqueeze(-1).expand(values.shape), values.double())
    return counts, sums


def _seeds(x: Float[Tensor, "H N D"], codes: int, generator: torch.Generator | None) -> Float[Tensor, "H S D"]:
    """Draw rows one after another, with probability proportional to the squared distance to the rows already drawn.

    If all distances are zero, because every distinct row has been drawn, rows are drawn uniformly.
    """
    H, N, D = x.shape
    found = x.new_empty(H, codes, D)
    distance, squares = x.new_ones(H, N), x.square().sum(-1)
    for s in range(codes):
        distance = torch.where(distance.sum(-1, keepdim=True) > 0, distance, torch.ones_like(distance))
        uniform = torch.rand(H, 1, generator=generator, dtype=torch.float64).to(x.device)
        reach = distance.double().cumsum(-1)
        chosen = torch.searchsorted(reach, uniform * reach[:, -1:], right=True).clamp(max=N - 1)
        found[:, s] = x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, D))[:, 0]
        with exact_products(x.device):
            product = (x @ found[:, s].unsqueeze(-1))[..., 0]
        to_new = squares - 2 * product + found[:, s].square().sum(-1, keepdim=True)
        distance = to_new.clamp(min=0) if s == 0 else torch.minimum(distance, to_new.clamp(min=0))
        distance.scatter_(1, chosen, 0)  # its distance to itself, which rounding may leave above zero
    return found
