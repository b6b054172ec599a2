"""LSH v2: learned hashing, hierarchical compression, dissimilarity sampling and global context in one attention.

Built from the promises of the original README, whose code was never public. For each query head

    out = softmax estimate + tanh(gate) · selective scan

and the estimate is one softmax over three disjoint sets of keys:

- the band: the `local` most recent keys, uncompressed (`levels`);
- the buckets: in each of `n_hashes` rounds the `bucket_size` most recent keys before the band whose learned code is
  the query's, each once (`hashing`, `windows`). A head of compression factor f meets means of f keys there, with
  + log f in the logit;
- the samples: of everything else before the band one key a stratum, weighted by the stratum's size (`samples`).

All of it is strictly causal, and decodes with bounded state. `definition` is the same in dense masks; the gate
starts closed. What the original README means for a whole model (MLA, long-term memory, PonderNet) is not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Attention, Cost, Problem, Stream, require
from attentions.flash import by_row
from attentions.lsh_v2.context import GlobalContext
from attentions.lsh_v2.cost import estimate_cost
from attentions.lsh_v2.definition import Support, softmax, supports
from attentions.lsh_v2.estimate import Estimate, Past, Settings
from attentions.lsh_v2.hashing import LearnedHash
from attentions.lsh_v2.levels import Level, levels_of
from attentions.lsh_v2.merge import kernel_of, merged_attention
from attentions.lsh_v2.samples import Sampler
from attentions.lsh_v2.stages import stages
from attentions.lsh_v2.training import HashTraining, auxiliary_loss, train
from attentions.reference import causal_pairs
from attentions.window_attention import window_pairs

SHARED = 128  # the most positions that share samples


class LSHv2(Attention):
    """Settings, with the original README's defaults where it has any.

    `n_hashes` rounds of codes of two rotations in `hash_dim` dimensions, 0: no buckets; `bucket_size` keys of a
    bucket; `compression_factors` over the heads, [1]: no compression; `local` keys of the band; `samples` keys of
    each of the 2·hash_dim coarse buckets, 0: none; `global_context`: the gated scan; `hash_steps` of training in
    `prepare`, 0: codes stay untrained.

    Raises ValueError for a `local` below the least common multiple of the factors.
    """

    paper = "https://arxiv.org/abs/2001.04451"  # Reformer, whose rotations these are; the original has no paper
    approximates = None
    claimed_time = "n^0.9"
    # Share of the time and exponent over n that the original README gives for its components.
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
        **shape: Any,
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
        self.settings = Settings(n_hashes, bucket_size, local, block, self.causal, self.scale)
        rounds = max(n_hashes, 1)  # the first one also divides keys into strata
        self.hashing = LearnedHash(self.kv_heads, head_dim, rounds=rounds, hash_dim=hash_dim, seed=self.seed)
        self.sampler = Sampler(self.hashing.buckets, samples, self.seed) if samples else None
        sizes = {"kv_heads": self.kv_heads, "value_dim": self.value_dim, "causal": self.causal, "seed": self.seed}
        self.context = GlobalContext(heads, head_dim, scale=self.scale, **sizes) if global_context else None
        if not global_context:  # then it is an approximation, and is judged as one
            vars(self)["approximates"] = "softmax"

    @property
    def kernel(self) -> str:
        """Which implementation runs: "native" or "torch fallback"."""
        return (
            "native"
            if kernel_of(self.hashing.projections.device).__name__.endswith("bucket_window")
            else ("torch fallback")
        )

    @property
    def reach(self) -> int:
        """Tokens that a round's windows cover where buckets are even: bucket_size · codes, at factor 1."""
        return self.bucket_size * self.hashing.buckets**2

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        if first is not None:
            return by_row(self, q, k, v, first)
        out, _ = self.estimate(q, k, v)
        return self._output(out, None if self.context is None else self._scan(q, k, v), q.dtype)

    def estimate(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]
    ) -> tuple[Float[Tensor, "B H N E"], Float[Tensor, "B H N"]]:
        """The estimate of softmax attention without the global context, and of its log-normaliser; float32 at least.

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
        """Train the hash functions to put queries and the keys they weigh into one bucket; see `training`."""
        train(self.hashing, q, k, self._training())

    def auxiliary_loss(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Float[Tensor, ""]:
        """The same loss on sampled rows of this sequence, to be added to a model's: it moves the hash alone."""
        return auxiliary_loss(self.hashing, q, k, self._training())

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        """Keys of the band, pools and samples that enter the output, each one comparison."""
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
        """Share of the softmax weight on keys of the band and of the windows, alone or in a pool; not on samples."""
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
        """The softmax estimate's, see `estimate_cost`, and the scan's."""
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
        from attentions.lsh_v2.stream import LSHv2Stream  # the stream needs this class

        return LSHv2Stream(self, batch)

    def level_estimate(self, level: Level, q: Float[Tensor, "B H N D"], past: Past) -> Estimate:
        """The estimate of a level's queries after `past`, in float32 at least."""
        return Estimate(level, self.settings, self.hashing, self.sampler, q, past)

    def _scan(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The global context in float32 at least: what a gate closes may be beyond half precision's range."""
        assert self.context is not None, "it is switched on"
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
