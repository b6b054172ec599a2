"""The stages of LSH v2's `forward`, each callable on its own with the results of the earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.lsh_v2.merge import merged_attention

if TYPE_CHECKING:
    from attentions.lsh_v2.estimate import Estimate


def stages(
    estimates: Sequence[Estimate],
    scale: float,
    scan: Callable[[], Float[Tensor, "B H N E"]] | None,
    output: Callable[[Tensor, Tensor | None], Float[Tensor, "B H N E"]],
) -> Mapping[str, Callable[[], object]]:
    """Stages by name and in order, over the estimates of all levels; disabled ones are left out.

    `scan` computes the global context and `output` combines it with the estimate.
    """
    pooled = [one.pool() for one in estimates]
    codes = [one.codes(keys) for one, (keys, _) in zip(estimates, pooled, strict=True)]
    pools = [one.fresh(*x, of_k) for one, x, (_, of_k) in zip(estimates, pooled, codes, strict=True)]
    tables = [one.tables(of_q, x) for one, (of_q, _), x in zip(estimates, codes, pools, strict=True)]
    samples = [one.sample(x) for one, x in zip(estimates, pools, strict=True)]

    def attend() -> list[Tensor]:
        drawn = [x[0] if x else None for x in samples]
        parts = [one.parts(p, t, s) for one, p, t, s in zip(estimates, pools, tables, drawn, strict=True)]
        return [one.by_head(merged_attention(x, scale)[0]) for one, x in zip(estimates, parts, strict=True)]

    outs, context = attend(), None if scan is None else scan()
    found: dict[str, Callable[[], object]] = {
        "pooling": lambda: [one.pool() for one in estimates],
        "hashing": lambda: [one.codes(keys) for one, (keys, _) in zip(estimates, pooled, strict=True)],
        "bucket assignment": lambda: [
            one.tables(of_q, x) for one, (of_q, _), x in zip(estimates, codes, pools, strict=True)
        ],
        "dissimilarity samples": lambda: [one.sample(x) for one, x in zip(estimates, pools, strict=True)],
        "bucket attention": attend,
        "global context": lambda: scan and scan(),
        "output": lambda: output(torch.cat(outs, 1), context),
    }
    off = {
        "pooling": all(one.level.factor == 1 for one in estimates),
        "bucket assignment": all(one.settings.rounds == 0 for one in estimates),
        "dissimilarity samples": all(one.sampler is None for one in estimates),
        "global context": scan is None,
    }
    return {name: stage for name, stage in found.items() if not off.get(name)}
