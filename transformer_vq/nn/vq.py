"""A learning vector quantiser: codewords follow the running mean of the vectors nearest to them.

Van den Oord et al. 2017, "Neural discrete representation learning", https://arxiv.org/abs/1711.00937, appendix A, with
the constants of Lingle 2023, https://arxiv.org/abs/2309.16354. The codebook is initialised by k-means++ on the first
training batch; codes that fall out of use are reseeded with vectors of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transformer_vq.codes import codewords, straight_through
from transformer_vq.kmeans import kmeans, nearest, tally
from transformer_vq.nn.recomputation import Passes, draw_ticket, in_backward
from transformer_vq.precision import Selector

SMALLEST_COUNT = 0.01  # lower bound of the divisor of a mean


class Quantised(NamedTuple):
    """Result of quantising vectors.

    `codewords` pass their gradient to the vectors. `commitment`: squared distance to the codeword, summed over heads,
    averaged over vectors, with its gradient. `codebook`: the same number without a gradient, for reporting; the
    codebooks' own averaging reduces it. `perplexity`: exp of the entropy of the codes' use, averaged over heads.
    `book`: the codebook used.
    """

    codes: Int[Tensor, "B H N"]
    codewords: Float[Tensor, "B H N D"]
    commitment: Float[Tensor, ""]
    codebook: Float[Tensor, ""]
    perplexity: Float[Tensor, ""]
    book: Float[Tensor, "H S D"]


class VectorQuantiser(Selector):
    """`heads` codebooks of `codes` codewords of width `dim`, in float32 or wider whatever the layer is converted to.

    `gamma` is the decay of a codebook's running means per step, `dead` the share of the mean use below which a code is
    reseeded. Until the first training step, codebooks are Gaussian with standard deviation `spread`, drawn from `seed`.

    Under gradient checkpointing a recomputation uses the codebook of the pass that it repeats, and updates none. Random
    draws in training depend only on the ticket that each pass draws from torch's global generator.
    """

    def __init__(
        self,
        heads: int,
        codes: int,
        dim: int,
        *,
        gamma: float = 0.99,
        dead: float = 0.03,
        spread: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.codes, self.dim, self.gamma, self.dead = heads, codes, dim, gamma, dead
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("sums", torch.randn(heads, codes, dim, generator=draw, dtype=torch.float32) * spread)
        self.register_buffer("counts", torch.ones(heads, codes, dtype=torch.float32))
        self.register_buffer("started", torch.tensor(False))
        self._passes, self._ticket = Passes(), seed

    sums: Tensor
    counts: Tensor
    started: Tensor

    @property
    def codebook(self) -> Float[Tensor, "H S D"]:
        """The codewords: running means of the vectors of each code."""
        return self.sums / self.counts.clamp(min=SMALLEST_COUNT).unsqueeze(-1)

    def mount(self, codebook: Float[Tensor, ...]) -> None:
        """Use an existing codebook. Raises ValueError for another shape and for NaN or infinity."""
        wanted = (self.heads, self.codes, self.dim)
        if tuple(codebook.shape) != wanted:
            raise ValueError(f"codebook of shape {tuple(codebook.shape)} is not allowed: it must be {wanted}")
        if not torch.isfinite(codebook).all():
            raise ValueError("codebook with NaN or infinity is not allowed: it must be finite")
        self.sums.copy_(codebook)
        self.counts.fill_(1)
        self.started.fill_(True)

    def forward(self, x: Float[Tensor, "B H N D"]) -> Quantised:
        """Return the nearest codewords of x. In training, the first call initialises the codebook."""
        book = self._book(x) if self.training else self.codebook
        codes = nearest(x, book)
        found = codewords(book.to(x.dtype), codes)
        commitment = (x - found).square().sum((1, 3)).mean()
        used = torch.stack([row.bincount(minlength=self.codes) for row in codes.transpose(0, 1).flatten(1)])
        share = used.double() / used.sum(-1, keepdim=True)
        perplexity = torch.special.entr(share).sum(-1).exp().mean()
        return Quantised(codes, straight_through(x, found), commitment, commitment.detach(), perplexity, book)

    def _book(self, x: Tensor) -> Tensor:
        """The codebook of a training pass, or of the pass being recomputed."""
        self._ticket = draw_ticket()
        if in_backward():
            return self._passes.find(self._ticket)
        if not self.started:
            self.start(x)
        book = self.codebook
        self._passes.keep(self._ticket, book)
        return book

    def _generator(self) -> torch.Generator:
        """Generator for this pass; torch's own is not used, because a recomputation must find its state unchanged."""
        return torch.Generator().manual_seed(self._ticket)

    @torch.no_grad()
    def start(self, x: Float[Tensor, "B H N D"]) -> None:
        """Initialise the codebook from x by k-means++, and the use of each code."""
        book = kmeans(x.transpose(0, 1).flatten(1, 2), self.codes, generator=self._generator())
        self.mount(book.to(self.sums.dtype))
        counts, _ = tally(x, nearest(x, self.codebook), self.codes)
        self.sums.mul_(counts.sum(0).clamp(min=1).to(self.sums.dtype).unsqueeze(-1))
        self.counts.copy_(counts.sum(0).clamp(min=1))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "B H N D"], codes: Int[Tensor, "B H N"]) -> Int[Tensor, " H"]:
        """Update the running means and reseed dead codes; return the number of dead codes in each head.

        Does nothing when a backward pass reruns the layer.
        """
        if in_backward():
            return torch.zeros(self.heads, dtype=torch.int64, device=x.device)
        counts, sums = (y.sum(0) for y in tally(x, codes, self.codes))
        self.counts.lerp_(counts.to(self.counts.dtype), 1 - self.gamma)
        self.sums.lerp_(sums.to(self.sums.dtype), 1 - self.gamma)
        mean = self.counts.mean(-1, keepdim=True)
        dead = self.counts < self.dead * mean
        rows = x.transpose(0, 1).flatten(1, 2)
        chosen = torch.randint(rows.shape[1], dead.shape, generator=self._generator()).to(x.device)
        seeds = rows.gather(1, chosen.unsqueeze(-1).expand(-1, -1, self.dim)).to(self.sums.dtype)
        self.sums.copy_(torch.where(dead.unsqueeze(-1), seeds * mean.unsqueeze(-1), self.sums))
        self.counts.copy_(torch.where(dead, mean, self.counts))
        return dead.sum(-1)
