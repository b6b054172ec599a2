"""LSH v2: learned hashing, hierarchical compression, dissimilarity sampling and global context in one attention.

Implements the method that the original README describes; its code was never public. For each query head

    out = softmax estimate + tanh(gate) · selective scan

The estimate is one softmax over three disjoint sets of keys:

- the band: the `local` most recent keys, uncompressed (`levels`); - the buckets: in each of `n_hashes` rounds, the
`bucket_size` most recent keys before the band whose learned code
  equals the query's, each counted once (`hashing`, `windows`). A head with compression factor f attends to means of f
  keys here, with + log f in the logit;
- the samples: one key per stratum of all other keys before the band, weighted by the size of the stratum (`samples`).

The method is strictly causal and decodes with bounded state. `definition` computes the same with dense masks. The gate
is initialised to zero. The original README's model-level features (MLA, long-term memory, PonderNet) are not included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Attention
from attentions.buckets.window_attention import window_pairs
from attentions.common.problem import Cost, Problem
from attentions.common.reference import causal_pairs
from attentions.common.settings import Shape, require
from attentions.lsh_v2.context import GlobalContext
from attentions.lsh_v2.cost import estimate_cost
from attentions.lsh_v2.definition import Support, softmax, supports
from attentions.lsh_v2.estimate import Estimate, EstimateSettings, Past
from attentions.lsh_v2.hashing import LearnedHash
from attentions.lsh_v2.levels import Level, levels_of
from attentions.lsh_v2.merge import kernel_of, merged_attention
from attentions.lsh_v2.samples import Sampler
from attentions.lsh_v2.stages import stages
from attentions.lsh_v2.training import HashTraining, auxiliary_loss, train

if TYPE_CHECKING:
    from attentions.common.stream import Stream

SHARED = 128  # most positions that share samples


class LSHv2(Attention):
    """Settings, with the original README's defaults where it gives any.

        `n_hashes`: rounds; each has a code from two rotations in `hash_dim` dimensions. 0: no buckets.
        `bucket_size`: keys attended to per bucket.
        `compression_factors`: factors, distributed over the heads. [1]: no compression.
        `local`: keys in the band.
        `samples`: sampled keys per coarse bucket, of which there are 2·hash_dim. 0: none.
        `global_context`: whether to add the gated scan.
        `hash_steps`: training steps in `prepare`. 0: codes stay untrained.

    Raises ValueError if `local` is below the least common multiple of the factors.
    """

    paper = "https://arxiv.org/abs/2001.04451"  # Reformer, source of the rotations; the original has no paper
    approximates = None
    accepts_padding = False
    claimed_time = "n^0.9"
    # Share of the time and exponent of n that the original README gives for its components.
    claimed_components: ClassVar[Mapping[str, tuple[float, float]]] = MappingProxyType(
        {
            "hashing": (0.451, 0.487),
            "bucket assignment": (0.150, 0.420),
            "output": (0.149, 0.270),
            "global context": (0.068, 0.153),
            "bucket attention": (0.065, 0.078),
        }
    )

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        n_hashes: int = 4,
        hash_dim: int = 8,
        bucket_size: int = 128,
        compression_factors: Sequence[int] = (1, 2, 4),
        local: int = 64,
        samples: int = 4,
        global_context: bool = True,
        hash_steps: int = 200,
        **shape: Unpack[Shape],
    ) -> None:
        super().__init__(heads, head_dim, **shape)
        for name, value in (("n_hashes", n_hashes), ("samples", samples), ("hash_steps", hash_steps)):
            require(value >= 0, name, value, "an integer of at least 0")
        require(1 <= hash_dim <= min(head_dim, 64), "hash_dim", hash_dim, f"from 1 to {min(head_dim, 64)}")
        require(bucket_size >= 1, "bucket_size", bucket_size, "an integer of at least 1")
        valid = len(compression_factors) > 0 and all(f >= 1 for f in compression_factors)
        require(valid, "compression_factors", compression_factors, "a list of integers of at least 1")
        common = math.lcm(*compression_factors)
        require(local >= common, "local", local, f"at least {common}, a multiple of every compression factor")
        self.n_hashes, self.bucket_size, self.local, self.samples = n_hashes, bucket_size, local, samples
        self.hash_steps = hash_steps
        self.levels = levels_of(heads, self.kv_heads, compression_factors)
        block = min(local, SHARED) // common * common
        self.settings = EstimateSettings(n_hashes, bucket_size, local, block, self.causal, self.scale)
        rounds = max(n_hashes, 1)  # the first round also divides keys into strata
        self.hashing = LearnedHash(self.kv_heads, head_dim, rounds=rounds, hash_dim=hash_dim, seed=self.seed)
        self.sampler = Sampler(self.hashing.buckets, samples, self.seed) if samples else None
        sizes = {"kv_heads": self.kv_heads, "value_dim": self.value_dim, "causal": self.causal, "seed": self.seed}
        self.context = GlobalContext(heads, head_dim, scale=self.scale, **sizes) if global_context else None
        if not global_context:  # then it approximates softmax, and is judged by that
            vars(self)["approximates"] = "softmax"

    @property
    def reach(self) -> int:
        """Tokens that a round's windows cover if buckets are even: bucket_size · codes, at factor 1."""
        return self.bucket_size * self.hashing.buckets**2

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        del first  # `accepts_padding` is off
        native = kernel_of(q.device).__name__.endswith("bucket_window")
        self.kernel = "native" if native else "torch fallback"
        out, _ = self.estimate(q, k, v)
        return self._output(out, None if self.context is None else self._scan(q, k, v), q.dtype)

    def estimate(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]
    ) -> tuple[Float[Tensor, "B H N E"], Float[Tensor, "B H N"]]:
        """Return the softmax estimate without global context and its log-normaliser, in float32 or wider.

        The log-normaliser carries no gradient.
        """
        found = []
        for one in self._estimates(q, k, v):
            merged = merged_attention(one.all_parts()[0], self.scale)
            found.append([one.by_head(x) for x in merged])
        outs, lses = zip(*found, strict=True)
        return torch.cat(outs, 1), torch.cat(lses, 1)

    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        chosen = torch.arange(q.shape[2], device=q.device) if rows is None else rows.to(q.device)
        if first is not None:
            return self._naive_by_row(q, k, v, first, chosen)
        group, heads = self.heads // self.kv_heads, []
        for support in self._supports(q, k, v, chosen):
            g = support.head // group
            heads.append(softmax(support, q[:, support.head, chosen], k[:, g], v[:, g], self.scale))
        out = torch.stack(heads, 1)
        return out if self.context is None else out + self.context.gated(self.context.scan.naive(q, k, v, rows=chosen))

    def prepare(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> None:
        """Train the hash functions to put queries and the keys they attend to in one bucket; see `training`."""
        train(self.hashing, q, k, self._training())

    def auxiliary_loss(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Float[Tensor, ""]:
        """The training loss on sampled rows of this input, to add to a model's loss; only the hash gets gradients."""
        return auxiliary_loss(self.hashing, q, k, self._training())

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        """Number of keys of the band, pools and samples that enter the output; each is one comparison."""
        found = []
        with torch.no_grad():
            for one in self._estimates(q, k, k[..., :1]):
                pairs = [window_pairs(part.tables) for part in one.all_parts()[0]]
                found.append(one.by_head(torch.stack(pairs).sum(0)).sum(-1))
        return torch.cat(found, 1)

    def kept_mass(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R"]:
        """Share of the softmax weight on keys of the band and the windows, alone or in a pool; excludes samples."""
        chosen = torch.arange(q.shape[2], device=q.device) if rows is None else rows.to(q.device)
        pairs = causal_pairs(q.shape[2], k.shape[2], causal=self.causal, first=None, rows=chosen, device=q.device)
        found = []
        for support in self._supports(q, k, k[..., :1], chosen):
            scores = q[:, support.head, chosen].double() @ k[:, support.head * self.kv_heads // self.heads].double().mT
            weights = (scores * self.scale).masked_fill(~pairs[:, 0], -torch.inf).softmax(-1)
            inside = support.near.clone()
            covered = support.own.repeat_interleave(support.factor, -1)
            inside[..., : covered.shape[-1]] |= covered
            found.append((weights * inside).sum(-1))
        return torch.stack(found, 1)

    def components(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]
    ) -> Mapping[str, Callable[[], object]]:
        scan = None if self.context is None else partial(self._scan, q, k, v)
        return stages(list(self._estimates(q, k, v)), self.scale, scan, partial(self._output, dtype=q.dtype))

    def cost(self, problem: Problem) -> Cost:
        """Cost of the softmax estimate (see `estimate_cost`) plus that of the scan."""
        strata = self.sampler.strata if self.sampler else 0
        one = estimate_cost(problem, self.levels, self.settings, self.hashing, strata)
        if self.context is None:
            return one
        scan = self.context.scan.cost(problem)
        state_bytes = one.state_bytes + scan.state_bytes
        return Cost(one.flops + scan.flops, one.comparisons, state_bytes, one.past_flops + scan.past_flops)

    def stream(self, batch: int) -> Stream | None:
        if not self.causal:
            return None
        from attentions.lsh_v2.stream import LSHv2Stream  # imported here because the stream imports this class

        return LSHv2Stream(self, batch)

    def level_estimate(self, level: Level, q: Float[Tensor, "B H N D"], past: Past) -> Estimate:
        """Return the estimate of a level's queries after `past`, in float32 or wider."""
        return Estimate(level, self.settings, self.hashing, self.sampler, q, past)

    def _scan(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Global context in float32 or wider: values behind a closed gate can overflow half precision."""
        assert self.context is not None, "global context is enabled"
        return self.context.scan(*(_wide(x) for x in (q, k, v)))

    def _estimates(self, q: Tensor, k: Tensor, v: Tensor) -> Iterator[Estimate]:
        q, k, v = (_wide(x) for x in (q, k, v))
        for level in self.levels:
            keys, values = (x[:, level.kv_heads].flatten(0, 1) for x in (k, v))
            yield self.level_estimate(level, q, Past(0, keys, values, None, None))

    def _output(self, estimate: Tensor, context: Tensor | None, dtype: torch.dtype) -> Tensor:
        if context is not None and self.context is not None:
            estimate = estimate + self.context.gated(context)
        return estimate.to(dtype)

    def _supports(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Iterator[Support]:
        q, k, v = (_wide(x) for x in (q, k, v))
        return supports(q, k, v, rows, self.levels, self.settings, self.hashing, self.sampler)

    def _naive_by_row(self, q: Tensor, k: Tensor, v: Tensor, first: Tensor, rows: Tensor) -> Tensor:
        out = q.new_zeros(*q.shape[:2], len(rows), v.shape[3], dtype=torch.float64)
        before = k.shape[2] - q.shape[2]
        for b, real in enumerate(first.tolist()):
            one, start = slice(b, b + 1), max(real - before, 0)
            kept = rows >= start
            found = self.naive(q[one, :, start:], k[one, :, real:], v[one, :, real:], rows=rows[kept] - start)
            out[b, :, kept] = found[0]
        return out

    def _training(self) -> HashTraining:
        return HashTraining(self.scale, self.local, self.causal, self.hash_steps, self.seed)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
