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
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Attention, Cost, Problem, Stream, require
from attentions.flash import by_row
from attentions.lsh_v2 import definition
from attentions.lsh_v2.context import GlobalContext
from attentions.lsh_v2.estimate import Estimate, Past, Settings
from attentions.lsh_v2.hashing import LearnedHash
from attentions.lsh_v2.levels import Level, levels_of
from attentions.lsh_v2.merge import Part, kernel_of, merged_attention
from attentions.lsh_v2.samples import Sampler
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
        return self._output(out, None if self.context is None else self.context.scan(q, k, v), q.dtype)

    def estimate(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]
    ) -> tuple[Float[Tensor, "B H N E"], Float[Tensor, "B H N"]]:
        """The estimate of softmax attention without the global context, and of its log-normaliser; float32 at least.

        The log-normaliser carries no gradient.
        """
        found = []
        for one in self._estimates(q, k, v):
            merged = merged_attention(self._parts(one), self.scale)
            found.append([self._by_head(x, q) for x in merged])
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
            heads.append(definition.softmax(support, q[:, support.head, chosen], k[:, g], v[:, g], self.scale))
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
                pairs = [window_pairs(part.tables) for part in self._parts(one)]
                total = torch.stack(pairs).sum(0).unflatten(1, (-1, q.shape[2])).sum(-1)
                found.append(total.view(q.shape[0], -1))
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
        """Stages over all levels, those that are switched off left out; each starts from what the earlier ones gave."""
        ones = list(self._estimates(q, k, v))
        pooled = [one.pool() for one in ones]
        codes = [one.codes(keys) for one, (keys, _) in zip(ones, pooled, strict=True)]
        pools = [one.fresh(*x, of_k) for one, x, (_, of_k) in zip(ones, pooled, codes, strict=True)]
        tables = [one.tables(of_q, x) for one, (of_q, _), x in zip(ones, codes, pools, strict=True)]
        sampled = [one.sample(x) for one, x in zip(ones, pools, strict=True)]
        drawn = [x[0] if x else None for x in sampled]

        def attend() -> list[Tensor]:
            parts = [one.parts(p, t, s) for one, p, t, s in zip(ones, pools, tables, drawn, strict=True)]
            return [self._by_head(merged_attention(x, self.scale)[0], q) for x in parts]

        outs, context = attend(), None if self.context is None else self.context.scan(q, k, v)
        found: dict[str, Callable[[], object]] = {
            "pooling": lambda: [one.pool() for one in ones],
            "hashing": lambda: [one.codes(keys) for one, (keys, _) in zip(ones, pooled, strict=True)],
            "bucket assignment": lambda: [
                one.tables(of_q, x) for one, (of_q, _), x in zip(ones, codes, pools, strict=True)
            ],
            "dissimilarity samples": lambda: [one.sample(x) for one, x in zip(ones, pools, strict=True)],
            "bucket attention": attend,
            "global context": lambda: self.context and self.context.scan(q, k, v),
            "output": lambda: self._output(torch.cat(outs, 1), context, q.dtype),
        }
        absent = {
            "pooling": all(level.factor == 1 for level in self.levels),
            "bucket assignment": self.n_hashes == 0,
            "dissimilarity samples": self.sampler is None,
            "global context": self.context is None,
        }
        return {name: stage for name, stage in found.items() if not absent.get(name)}

    def cost(self, problem: Problem) -> Cost:
        """Each query meets at most local + f - 1 keys of the band, n_hashes·bucket_size pools and one sample a stratum.

        Without causality band and windows count twice. FLOPs: these with 2·(D + E) each, hashing 2·D for each of
        n_hashes·2·hash_dim coordinates, and the scan. State of a level: the band, pools in some window, with code and
        place, of each stratum a key, a sum and two numbers, and the scan's state.
        """
        p, sides = problem, 1 if problem.causal else 2
        width, wide = p.head_dim + p.value_dim, max(p.dtype.itemsize, 4)
        rounds, hashed = self.hashing.rounds, self.hashing.rounds * 2 * self.hashing.hash_dim
        strata = self.sampler.strata if self.sampler else 0
        comparisons = flops = past_flops = state = 0
        for level in self.levels:
            f, heads = level.factor, level.heads.stop - level.heads.start
            pools = p.keys // f
            own = min(pools, sides * self.n_hashes * self.bucket_size)
            most = min(p.keys, sides * (self.local + f - 1)) + own + min(pools, strata)
            comparisons += p.batch * heads * p.queries * most
            flops += 2 * p.batch * p.head_dim * hashed * (heads * p.queries + level.rows * pools)
            past_flops += 2 * p.batch * p.head_dim * hashed * level.rows * ((p.keys - p.queries) // f)
            live = min(pools, self.n_hashes * self.bucket_size * self.hashing.buckets**2)
            slots = (self.local + f) * width * wide + 2 * live * (width * wide + 8 * (rounds + 1))
            state += p.batch * level.rows * (slots + strata * (width * wide + 8 * (rounds + 3)))
        flops += 2 * comparisons * width
        if self.context is not None:
            scan = self.context.scan.cost(p)
            flops, state, past_flops = flops + scan.flops, state + scan.state_bytes, past_flops + scan.past_flops
        return Cost(flops, comparisons, state, past_flops)

    def stream(self, batch: int) -> Stream | None:
        if not self.causal:
            return None
        from attentions.lsh_v2.stream import LSHv2Stream  # the stream needs this class

        return LSHv2Stream(self, batch)

    def level_estimate(self, level: Level, q: Float[Tensor, "B H N D"], past: Past) -> Estimate:
        """The estimate of a level's queries after `past`, in float32 at least."""
        return Estimate(level, self.settings, self.hashing, self.sampler, q, past)

    def _estimates(self, q: Tensor, k: Tensor, v: Tensor) -> Iterator[Estimate]:
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, v = (x.to(wide) for x in (q, k, v))
        for level in self.levels:
            keys, values = (x[:, level.kv_heads].flatten(0, 1) for x in (k, v))
            yield self.level_estimate(level, q, Past(0, keys, values, None, None))

    def _parts(self, one: Estimate) -> list[Part]:
        keys, values = one.pool()
        of_q, of_k = one.codes(keys)
        pools = one.fresh(keys, values, of_k)
        sampled = one.sample(pools)
        return one.parts(pools, one.tables(of_q, pools), sampled[0] if sampled else None)

    def _output(self, estimate: Tensor, context: Tensor | None, dtype: torch.dtype) -> Tensor:
        if context is not None and self.context is not None:
            estimate = estimate + self.context.gated(context)
        return estimate.to(dtype)

    def _by_head(self, x: Tensor, q: Tensor) -> Tensor:
        """(X, Q, ...) to (B, heads of the level, N, ...)."""
        return x.unflatten(1, (-1, q.shape[2])).unflatten(0, (q.shape[0], -1)).flatten(1, 2)

    def _supports(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Iterator[definition.Support]:
        wide = torch.promote_types(q.dtype, torch.float32)
        inputs = (q.to(wide), k.to(wide), v.to(wide), rows)
        return definition.supports(*inputs, self.levels, self.settings, self.hashing, self.sampler)

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
