"""Contract checks on inputs: mismatched, empty and padded ones, and autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attentions.common.problem import problem_of
from attentions.contract.candidate import B, Candidate, E, H, NotApplicable, agree

if TYPE_CHECKING:
    from attentions.base import Attention
    from attentions.common.stream import Stream

HALVES = (torch.bfloat16, torch.float16)


def refuses_what_disagrees(c: Candidate) -> None:
    """Tensors that do not fit the attention or each other raise ValueError, in a call and in a stream."""
    a = c.make()
    q, k, v = c.sample(a, 13, 13)
    wide = torch.cat((k, k[..., :1]), dim=3)
    wrong: dict[str, tuple[Tensor, Tensor, Tensor]] = {
        "values shorter than keys": (q, k, v[:, :, :9]),
        "keys shorter than values": (q, k[:, :, :9], v),
        "more queries than keys": (q, k[:, :, :9], v[:, :, :9]),
        "a different batch size for queries": (q[:1], k, v),
        "a different batch size for keys": (q, k[:1], v),
        "a different batch size for values": (q, k, v[:1]),
        "one query head too few": (q[:, 1:], k, v),
        "one key head too few": (q, k[:, 1:], v),
        "one value head too few": (q, k, v[:, 1:]),
        "wider queries": (torch.cat((q, q[..., :1]), dim=3), k, v),
        "wider keys": (q, wide, v),
        "wider queries and keys": (torch.cat((q, q[..., :1]), dim=3), wide, v),
        "narrower values": (q, k, v[..., 1:]),
        "queries with three axes": (q[0], k, v),
        "keys with five axes": (q, k[None], v),
        "float32 queries": (q.float(), k, v),
        "float32 keys": (q, k.float(), v),
        "bfloat16 values": (q, k, v.bfloat16()),
        "integers": (q.long(), k.long(), v.long()),
        "complex numbers": (q + 0j, k + 0j, v + 0j),
    }
    for what, inputs in wrong.items():
        _refused(lambda inputs=inputs: a(*inputs), what)
        _refused(lambda inputs=inputs: a.naive(*inputs), f"naive of {what}")
    for what, first in {
        "before the start": torch.tensor([0, -1]),
        "after the end": torch.tensor([14, 0]),
        "for only one sequence": torch.tensor([3]),
        "of floats": torch.tensor([0.0, 3.0]),
        "of booleans": torch.tensor([False, True]),
        "with two axes": torch.tensor([[0], [3]]),
    }.items():
        _refused(lambda first=first: a(q, k, v, first=first.to(c.device)), f"a first {what}")
    if a.stream(B) is None:
        return
    pieces = {what: inputs for what, inputs in wrong.items() if what not in ("float32 queries", "integers")}
    pieces |= {
        "another batch size": (q[:1], k[:1], v[:1]),
        "no tokens": (q[:, :, :0], k[:, :, :0], v[:, :, :0]),
        "more keys than queries": (q[:, :, :9], k, v),
    }
    for what, inputs in pieces.items():
        _refused(lambda inputs=inputs: _stream(a).extend(*inputs), f"a stream's piece with {what}")
    stream = _stream(a)
    stream.extend(q, k, v)
    _refused(lambda: stream.extend(q.float(), k.float(), v.float()), "a stream's piece in another dtype")
    for what, index in {"a sequence that does not exist": [0, B], "a negative index": [-1], "floats": [0.0]}.items():
        _refused(lambda index=index: stream.reorder(torch.tensor(index, device=c.device)), f"a reorder by {what}")


def empty_gives_empty(c: Candidate) -> None:
    """No sequences, no queries or nothing at all give an empty output of the right shape and zero gradients."""
    a = c.make()
    for batch, queries, keys in ((0, 5, 5), (B, 0, 5), (B, 0, 0), (0, 0, 0)):
        q, k, v = (x[:batch] for x in c.sample(a, queries, keys))
        if a.why_not(problem_of(a, q, k)):
            continue
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        what, shape = f"a batch of {batch}, {queries} queries and {keys} keys", (batch, H, queries, E)
        for first in (None, torch.zeros(batch, dtype=torch.int64, device=c.device)):
            out, definition = a(*inputs, first=first), a.naive(*inputs, first=first)
            assert out.shape == definition.shape == shape, (
                f"{tuple(out.shape)}, naive {tuple(definition.shape)}: {what}"
            )
            grads = torch.autograd.grad(out.sum(), inputs, allow_unused=True, materialize_grads=True)
            assert not any(x.any() for x in grads), f"gradients of {what} are not zero"
        count = a.comparisons(q, k)
        assert count.shape == (batch, H), f"comparisons of {what}: shape {tuple(count.shape)}"
        assert not count.any(), f"comparisons of {what} are not zero"
    stream = a.stream(0)
    if stream is not None:
        out = stream.extend(*(x[:0] for x in c.sample(a, 5, 5)))
        assert out.shape == (0, H, 5, E), f"a stream with no sequences gives {tuple(out.shape)}"


def padding_alone_gives_zeros(c: Candidate) -> None:
    """A row of nothing but padding gives zeros, has no gradient and changes no other row."""
    a = c.make()
    q, k, v = c.sample(a, 37, 37, grad=True)
    for first in ([37, 0], [37, 37], [0, 36]):
        at = torch.tensor(first, device=c.device)
        out, definition = a(q, k, v, first=at), a.naive(q, k, v, first=at)
        agree(out, definition, 1e-10, f"naive, first={first}")
        grads = torch.autograd.grad(out.square().sum(), (q, k, v), allow_unused=True, materialize_grads=True)
        for b, real in enumerate(first):
            assert not out[b, :, :real].any(), f"outputs of padded rows are not zero, first={first}"
            for name, grad in zip("qkv", grads, strict=True):
                assert torch.isfinite(grad).all(), f"gradient of {name}, first={first}: NaN or infinite values"
                assert not grad[b, :, :real].any(), f"padded positions have a gradient in {name}, first={first}"
            if real == 0:
                agree(out[b : b + 1], a(q[b : b + 1], k[b : b + 1], v[b : b + 1]), 1e-10, f"whole row, first={first}")


def padding_may_hold_anything(c: Candidate) -> None:
    """NaN, infinity and huge numbers in padding do not change output or gradients, with N = M and N < M."""
    a = c.make()
    fillers = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30], dtype=torch.float64, device=c.device)
    for queries, keys in ((67, 67), (29, 67)):
        clean = c.sample(a, queries, keys)
        if a.why_not(problem_of(a, clean[0], clean[1], backward=True)):
            continue
        first = torch.tensor([0, 43], device=c.device)
        want, wanted = _with_gradients(a, clean, first)
        dirty = [x.clone() for x in clean]
        padded = [max(0, 43 - keys + x.shape[2]) for x in clean]
        for x, count in zip(dirty, padded, strict=True):
            x[1, :, :count] = fillers.to(x.dtype).repeat(11)[:count, None]
        got, grads = _with_gradients(a, dirty, first)
        agree(got, want, 1e-12, f"non-finite padding, {queries} of {keys}")
        for name, x, y, count in zip("qkv", grads, wanted, padded, strict=True):
            agree(x, y, 1e-12, f"gradient of {name} beside non-finite padding, {queries} of {keys}")
            assert not x[1, :, :count].any(), f"padding has a gradient in {name}"
        agree(a.naive(*dirty, first=first), a.naive(*clean, first=first), 1e-12, "naive, non-finite padding")


def autocast_changes_nothing(c: Candidate) -> None:
    """Under autocast an attention computes in its inputs' dtype, or in autocast's dtype if they differ.

    Covers forward, backward and stream; autocast dtype, input dtype and padding are combined pairwise. If backward
    itself runs under autocast, torch rounds its products.
    """
    kind = torch.device(c.device).type
    padding = torch.tensor([0, 23], device=c.device)
    for half in (x for x in HALVES if x in c.backend.tolerance):
        for dtype in (torch.float32, half):
            first = padding if (dtype == half) == (half == torch.bfloat16) else None
            a = c.make(dtype)
            inputs = c.sample(a, 67, 67, dtype=dtype)
            mixed = inputs
            if dtype == half:  # mixed as in models; float32 represents all bfloat16 and float16 values
                mixed = (inputs[0].float(), inputs[1].float(), inputs[2])
            if a.why_not(problem_of(a, inputs[0], inputs[1], backward=True)):
                continue
            tolerance = c.backend.tolerance[dtype]
            want, wanted = _with_gradients(a, inputs, first)
            with torch.autocast(kind, dtype=half):
                out, inside = _with_gradients(a, mixed, first)
                leaves = [x.detach().clone().requires_grad_() for x in mixed]
                again = a(*leaves, first=first)
            assert out.dtype == dtype, f"{out.dtype} instead of {dtype} under autocast to {half}"
            agree(out, want, tolerance, f"{dtype} under autocast to {half}")
            after, rounded = _gradients(again, leaves), c.backend.tolerance[half]
            for grads, where, allowed in ((inside, "inside", rounded), (after, "after", tolerance)):
                for name, x, y in zip("qkv", grads, wanted, strict=True):
                    agree(x, y, allowed, f"gradient of {name} in {dtype}, taken {where} autocast to {half}")
            stream = a.stream(B)
            if stream is None:
                continue
            with torch.no_grad():
                plain = a(*inputs)
                with torch.autocast(kind, dtype=half):
                    cuts = (slice(0, 29), slice(29, 30), slice(30, 67))
                    pieces = [stream.extend(*(x[:, :, cut] for x in mixed)) for cut in cuts]
            agree(torch.cat(pieces, dim=2), plain, 2 * tolerance, f"stream in {dtype} under autocast to {half}")


def inference_mode_ends_nowhere(c: Candidate) -> None:
    """A stream filled under inference mode can continue outside it, and vice versa, also after a reorder."""
    a = c.make()
    if a.stream(B) is None:
        raise NotApplicable("it does not support decoding")
    q, k, v = c.sample(a, 70, 70)
    index = torch.tensor([1, 0], device=c.device)
    with torch.no_grad():
        want = a(q, k, v)
    modes = (torch.inference_mode, torch.no_grad)
    for begin, end in (modes, modes[::-1]):
        stream, found = _stream(a), []
        try:
            for mode, cut in ((begin, slice(0, 40)), (end, slice(40, 41)), (end, slice(41, 60))):
                with mode():
                    found.append(stream.extend(*(x[:, :, cut] * 1 for x in (q, k, v))))
            with begin():
                stream.reorder(index)
            for mode, cut in ((end, slice(60, 69)), (begin, slice(69, 70))):
                with mode():
                    found.append(stream.extend(*(x[index, :, cut] * 1 for x in (q, k, v)))[index])
        except RuntimeError as error:
            raise AssertionError(f"stream begun under {begin.__name__}: {error}") from error
        agree(torch.cat(found, dim=2), want, 1e-10, f"stream begun under {begin.__name__}")


def _with_gradients(
    a: Attention, inputs: tuple[Tensor, ...] | list[Tensor], first: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = a(*leaves, first=first)
    return out.detach(), _gradients(out, leaves)


def _gradients(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients for one upstream gradient drawn from a seed."""
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    upstream = upstream.to(out.device, out.dtype)
    return torch.autograd.grad(out, leaves, upstream, allow_unused=True, materialize_grads=True)


def _stream(a: Attention) -> Stream:
    stream = a.stream(B)
    assert stream is not None
    return stream


def _refused(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} instead of ValueError: {error}") from error
    raise AssertionError(f"{what}: not refused")


CHECKS: tuple[Callable[[Candidate], None], ...] = (
    refuses_what_disagrees,
    empty_gives_empty,
    padding_alone_gives_zeros,
    padding_may_hold_anything,
    autocast_changes_nothing,
    inference_mode_ends_nowhere,
)
