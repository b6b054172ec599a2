"""Random calls of every backend, each judged against its definition in float64, or refused where it is wrong.

    python -m tests.attentions.fuzz --seed 7 --calls 100 [--backends mamba vq]

prints one line of JSON: how many calls were valid, padded, with gradients, in streams, of layers, refused, and what
went wrong. It is a program of its own, so that a crash of a kernel fails the test that runs it and ends nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attentions import BACKENDS, native
from attentions.common.problem import problem_of
from attentions.contract.candidate import agree
from attentions.controls import RandomSupport

if TYPE_CHECKING:
    from attentions.base import Attention

CLASSES: dict[str, type[Attention]] = {**BACKENDS, "random_support": RandomSupport}
ROWS = 24  # judged of a long call
BUILD_LIMIT_S = 3000.0  # sanitizers make a kernel a minute's work, and the machine may be busy
Inputs = tuple[Tensor, Tensor, Tensor]


def settings(draw: random.Random, name: str, dim: int) -> dict[str, Any]:
    """Settings of a backend, small enough that windows truncate and buckets differ."""
    some = draw.randint
    windows = {
        "tables": some(1, 3),
        "window": some(1, 9),
        "local": some(1, 5),
        "duplicates": draw.choice(["once", "allow"]),
    }
    local, window = some(1, 5), some(1, 9)
    trees = some(1, 3)
    block = {"codes": some(1, 21), "block": some(1, 40)}
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "bit_sampling": lambda: {**windows, "bits": some(0, min(dim, 6)), "balanced": draw.random() < 0.3},
        "simhash": lambda: {**windows, "bits": some(0, 10), "balanced": draw.random() < 0.3},
        "random_support": lambda: {"window": window},
        "lsh_forest": lambda: {
            "trees": trees,
            "bits": some(1, 9),
            "min_candidates": some(1, window),
            "max_candidates": trees * window + local,
            "local": local,
        },
        "reformer": lambda: {"hashes": some(1, 3), "chunk": some(1, 20), "buckets": draw.choice([2, 5, 64, 200])},
        "lsh_v2": lambda: {
            "n_hashes": some(0, 3),
            "hash_dim": some(1, min(dim, 4)),
            "bucket_size": some(1, 7),
            "compression_factors": draw.choice([[1], [1, 2], [1, 2, 4], [3, 1]]),
            "local": some(4, 12),
            "samples": some(0, 3),
            "global_context": draw.random() < 0.5,
            "hash_steps": 0,
        },
        "vq": lambda: block,
        "vq_qk": lambda: block,
        "mamba": lambda: {"states": draw.choice([1, 5, 16, 21])},
        "mamba2": lambda: {"chunk": some(1, 70)},
        "hyper": lambda: {
            "block_size": some(1, 20),
            "sample_size": some(1, 20),
            "min_seq_len": some(2, 60),
            "lsh_num_projs": some(1, 6),
        },
    }
    return made.get(name, dict)()


def laid_out(draw: random.Random, x: Tensor) -> Tensor:
    """The same tensor in another layout of memory, or one that repeats itself with strides of zero."""
    kind = draw.choice(["plain", "plain", "positions first", "slice", "every second", "one", "backwards"])
    if kind == "positions first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "slice":
        return torch.nn.functional.pad(x, (3, 2, 1, 0))[:, :, 1:, 3 : 3 + x.shape[3]]
    if kind == "every second":
        return x.repeat_interleave(2, dim=3)[..., ::2]
    if kind == "one":
        axis = draw.randint(0, 2)
        return x.narrow(axis, 0, 1).expand_as(x) if x.shape[axis] else x
    return x.flip(1).contiguous().flip(1).mT.contiguous().mT if kind == "backwards" else x


def wrong(draw: random.Random, inputs: Inputs, first: Tensor | None) -> tuple[Inputs, Tensor | None, str]:
    """A call that must be refused, and why."""
    (q, k, v), kind = inputs, draw.randint(0, 11)
    (B, _, _, _), M = q.shape, k.shape[2]
    outside = torch.full((B,), draw.choice([-1, M + 1, 2**40, -(2**62)]))
    changes: list[tuple[Inputs, Tensor | None, str]] = [
        ((q, torch.cat((k, k[:, :, :1]), 2), v), first, "more keys than values"),
        ((q, k, torch.cat((v, v[:, :, :1]), 2)), first, "more values than keys"),
        ((torch.cat((q, q), 0), k, v), first, "two batches"),
        ((q, torch.cat((k, k), 1), v), first, "more key heads"),
        ((q, k, torch.cat((v, v), 3)), first, "wider values"),
        ((torch.cat((q, q), 3), k, v), first, "wider queries"),
        ((torch.cat((q, q), 3), torch.cat((k, k), 3), v), first, "wider queries and keys"),
        ((q, k, v.float() if v.dtype == torch.float64 else v.double()), first, "values of another dtype"),
        ((q.int(), k.int(), v.int()), first, "integers"),
        ((torch.cat((q, k.repeat(1, q.shape[1] // k.shape[1], 1, 1)), 2), k, v), first, "more queries than keys"),
        (inputs, outside, "a first outside"),
        (inputs, torch.zeros(B + 1, dtype=torch.int64), "a first too many"),
    ]
    return changes[kind]


def one_call(draw: random.Random, name: str, seen: Counter[str]) -> None:
    """Draw a call, run it and judge it; raises AssertionError with what is wrong."""
    G, dim, width = draw.randint(1, 3), draw.randint(1, 20), draw.randint(1, 20)
    heads, causal = G * draw.randint(1, 3), draw.random() < 0.7
    chosen = settings(draw, name, dim)
    sizes = {"heads": heads, "head_dim": dim, "kv_heads": G, "value_dim": width, "max_len": 512, "causal": causal}
    torch.manual_seed(draw.randrange(2**31))
    torch.set_num_threads(draw.choice([1, 3]))
    a = CLASSES[name](**sizes, seed=draw.randint(0, 9), **chosen).eval()
    dtype = draw.choice([torch.float64, *a.tolerance])
    a = a.to(dtype if dtype == torch.float64 else torch.float32)
    B = draw.choice([0, 1, 1, 2, 3])
    M = draw.choice([0, 1, draw.randint(2, 40), draw.randint(2, 40), draw.randint(41, 150), draw.randint(600, 4500)])
    N = M if draw.random() < 0.6 else draw.randint(0, M)
    shapes = ((B, heads, N, dim), (B, G, M, dim), (B, G, M, width))
    q, k, v = (laid_out(draw, torch.randn(shape, dtype=torch.float64).to(dtype)) for shape in shapes)
    first = torch.tensor([draw.randint(0, M) for _ in range(B)], dtype=torch.int64) if draw.random() < 0.4 else None
    what = f"{sizes} {chosen} B={B} N={N} M={M} {dtype} first={None if first is None else first.tolist()}"
    if draw.random() < 0.15 and B and N:
        inputs, at, why = wrong(draw, (q, k, v), first)
        try:
            a(*inputs, first=at)
        except ValueError:
            seen["refused"] += 1
            return
        raise AssertionError(f"{why} was not refused: {what}")
    if a.why_not(problem_of(a, q, k)):
        seen["cannot run"] += 1
        return
    rows = torch.tensor(sorted(draw.sample(range(N), min(N, ROWS))), dtype=torch.int64) if N > 150 else None
    learns = dtype == torch.float64 and rows is None and draw.random() < 0.5
    leaves = [x.detach().requires_grad_(learns) for x in (q, k, v)]
    out, want = a(*leaves, first=first), a.naive(*leaves, first=first, rows=rows)
    seen["valid"] += 1
    seen["padded"] += first is not None
    agree(out if rows is None else out[:, :, rows], want, a.tolerance[dtype], f"output, {what}")
    if learns:
        upstream = torch.randn_like(out)
        got, expected = (
            torch.autograd.grad(x, leaves, upstream, allow_unused=True, materialize_grads=True) for x in (out, want)
        )
        for letter, x, y in zip("qkv", got, expected, strict=True):
            agree(x, y, 1e-8, f"gradient of {letter}, {what}")
        seen["gradients"] += 1
    if dtype == torch.float64 and first is None and N == M > 0 and draw.random() < 0.8:
        stream = a.stream(B)
        if stream is not None:
            cuts = sorted({0, N, *(draw.randint(0, N) for _ in range(3))})
            pieces = [stream.extend(*(x.detach()[:, :, i:j] for x in leaves)) for i, j in pairwise(cuts)]
            agree(torch.cat(pieces, dim=2), out.detach(), 1e-9, f"stream cut at {cuts}, {what}")
            seen["streams"] += 1


def one_layer(draw: random.Random, name: str, seen: Counter[str]) -> None:
    """The same for the layer around an attention, in float64."""
    heads, dim, causal = draw.randint(1, 3), draw.choice([2, 6, 16]), draw.random() < 0.7
    chosen = settings(draw, name, dim)
    torch.manual_seed(draw.randrange(2**31))
    torch.set_num_threads(draw.choice([1, 3]))
    a = CLASSES[name](heads=heads, head_dim=dim, max_len=512, causal=causal, **chosen)
    width, B, N = (
        draw.randint(1, 20),
        draw.randint(0, 2),
        draw.choice([0, 1, draw.randint(2, 40), draw.randint(41, 150)]),
    )
    block = a.block(width).double().eval()
    x = torch.randn(B, N, width, dtype=torch.float64, requires_grad=True)
    first = torch.tensor([draw.randint(0, N) for _ in range(B)], dtype=torch.int64) if draw.random() < 0.4 else None
    what = f"layer, heads={heads} head_dim={dim} {causal=} {chosen} x={tuple(x.shape)} {first=}"
    out, want = block(x, first=first), block.naive(x, first=first)  # type: ignore[operator]
    agree(out, want, a.tolerance[torch.float64], f"output, {what}")
    upstream = torch.randn_like(out)
    got, expected = (
        torch.autograd.grad(y, x, upstream, allow_unused=True, materialize_grads=True) for y in (out, want)
    )
    agree(got[0], expected[0], 1e-8, f"gradient, {what}")
    seen["layers"] += 1


def main(arguments: list[str] | None = None) -> int:
    """Exit 0 when every call was right, 1 when one was not."""
    parser = argparse.ArgumentParser(description="Random calls of every backend.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--backends", nargs="*", default=list(CLASSES))
    chosen = parser.parse_args(arguments)
    native.BUILD_LIMIT_S = native.LOCK_LIMIT_S = BUILD_LIMIT_S
    seen: Counter[str] = Counter()
    mismatches = []
    for i in range(chosen.calls):
        name, seed = chosen.backends[i % len(chosen.backends)], f"{chosen.seed}-{i}"
        print(f"{name} {seed}", file=sys.stderr, flush=True)  # the last one before a crash
        try:
            (one_layer if i % 10 == 9 else one_call)(random.Random(seed), name, seen)
        except AssertionError as error:
            mismatches.append(f"{name} {seed}: {error}")
        except Exception as error:
            mismatches.append(f"{name} {seed}: {type(error).__name__}: {error}")
    print(json.dumps({**seen, "calls": chosen.calls, "mismatches": mismatches, "native": native.build_all()}))
    return int(bool(mismatches))


if __name__ == "__main__":
    sys.exit(main())
