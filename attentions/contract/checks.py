"""The contract of every attention, as checks that run on any class before it has its own tests.

Each check is a function of a `Candidate` that raises AssertionError with the reason, or `NotApplicable`. Agreement is
measured in float64 against the candidate's own `naive`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from attentions.buckets.support import SupportAttention
from attentions.common.problem import problem_of
from attentions.contract import inputs as contract_inputs
from attentions.contract import state as contract_state
from attentions.contract.candidate import EXACTLY, LENGTHS, B, Candidate, E, G, H, NotApplicable, agree

if TYPE_CHECKING:
    from attentions.base import Attention


def same_dtype_shape_and_device(c: Candidate) -> None:
    """The output has q's dtype and device and the value dimension, in every dtype of `tolerance`."""
    for dtype, tolerance in c.backend.tolerance.items():
        a = c.make(dtype)
        q, k, v = c.sample(a, 61, 61, dtype=dtype)
        if a.why_not(problem_of(a, q, k)):
            continue
        out = a(q, k, v)
        assert out.shape == (B, a.heads, 61, a.value_dim), f"shape {tuple(out.shape)}"
        assert out.dtype == dtype, f"dtype {out.dtype} for {dtype} inputs"
        assert out.device == q.device, f"device {out.device} for inputs on {q.device}"
        agree(out, a.naive(q, k, v), tolerance, f"output in {dtype} against naive")


def inputs_and_state_are_untouched(c: Candidate) -> None:
    """A call in eval mode changes no input, parameter, buffer or global random state."""
    a = c.make()
    inputs = c.sample(a, 67, 67)
    before = [x.clone() for x in (*inputs, *a.state_dict().values())]
    random = torch.random.get_rng_state()
    a(*inputs)
    for old, new in zip(before, (*inputs, *a.state_dict().values()), strict=True):
        assert torch.equal(old, new), "an input, parameter or buffer was changed"
    assert torch.equal(random, torch.random.get_rng_state()), "torch's global random state was used"


def seed_decides(c: Candidate) -> None:
    """Two attentions with the same seed give bitwise identical outputs."""
    one, two = c.make(seed=5), c.make(seed=5)
    inputs = c.sample(one, 67, 67)
    assert torch.equal(one(*inputs), two(*inputs)), "two attentions with the same seed differ"


def agrees_with_naive(c: Candidate) -> None:
    """`forward` equals `naive` at every length, with N = M and N < M, for all rows and for selected rows."""
    a = c.make()
    for queries, keys in LENGTHS:
        q, k, v = c.sample(a, queries, keys)
        if a.why_not(problem_of(a, q, k)):
            continue
        want = a.naive(q, k, v)
        agree(a(q, k, v), want, c.backend.tolerance[torch.float64], f"{queries} queries of {keys} keys")
        rows = torch.tensor([queries - 1, 0, queries // 2])
        agree(a.naive(q, k, v, rows=rows), want[:, :, rows], EXACTLY, f"naive by rows, {queries} of {keys}")


def ungrouped_heads_agree(c: Candidate) -> None:
    """As many key heads as query heads, and one key head for all, also agree with `naive`."""
    for kv_heads in (1, H):
        a = c.make(kv_heads=kv_heads)
        q, k, v = c.sample(a, 67, 67)
        agree(a(q, k, v), a.naive(q, k, v), c.backend.tolerance[torch.float64], f"{kv_heads} key heads of {H}")


def padding_changes_nothing(c: Candidate) -> None:
    """A left-padded row equals the same row without padding, whatever the padding contains."""
    a = c.make()
    q, k, v = c.sample(a, 67, 67)
    first = torch.tensor([0, 23], device=c.device)
    out, want = a(q, k, v, first=first), a(q[1:, :, 23:], k[1:, :, 23:], v[1:, :, 23:])
    agree(out[1:, :, 23:], want, 1e-10, "padded row")
    assert not out[1, :, :23].any(), "outputs of padded queries are not zero"
    agree(out[:1], a(q[:1], k[:1], v[:1]), 1e-10, "unpadded row next to a padded row")
    agree(out, a.naive(q, k, v, first=first), 1e-10, "padded naive")


def gradients_agree_with_naive(c: Candidate) -> None:
    """Gradients of q, k and v equal those through `naive`, with N = M, N < M and padding."""
    a = c.make()
    for queries, keys, first in ((67, 67, None), (13, 101, None), (67, 67, torch.tensor([0, 23], device=c.device))):
        q, k, v = c.sample(a, queries, keys, grad=True)
        if a.why_not(problem_of(a, q, k, backward=True)):
            continue
        want = a.naive(q, k, v, first=first)
        upstream = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(1))
        expected = torch.autograd.grad(want, (q, k, v), upstream, allow_unused=True, materialize_grads=True)
        got = torch.autograd.grad(
            a(q, k, v, first=first), (q, k, v), upstream, allow_unused=True, materialize_grads=True
        )
        for name, x, y in zip("qkv", got, expected, strict=True):
            agree(x, y, 1e-9, f"gradient of {name}, {queries} of {keys}")


def prefix_is_unchanged(c: Candidate) -> None:
    """Strict causality: `forward` on the first t tokens equals the first t rows of `forward` on all tokens."""
    a = strict(c)
    q, k, v = c.sample(a, 199, 199)
    whole = a(q, k, v)
    for t in (1, 64, 127, 198):
        agree(a(q[:, :, :t], k[:, :, :t], v[:, :, :t]), whole[:, :, :t], EXACTLY, f"first {t} tokens only")


def future_changes_nothing(c: Candidate) -> None:
    """Strict causality: different tokens from t on leave all earlier rows unchanged."""
    a = strict(c)
    one, two = c.sample(a, 199, 199, seed=1), c.sample(a, 199, 199, seed=2)
    for t in (1, 64, 127):
        mixed = [torch.cat((x[:, :, :t], 100 * y[:, :, t:]), dim=2) for x, y in zip(one, two, strict=True)]
        agree(a(*mixed)[:, :, :t], a(*one)[:, :, :t], EXACTLY, f"first {t} tokens with another future")


def no_gradient_from_the_future(c: Candidate) -> None:
    """Early outputs have no gradient for later queries, keys and values, but some for earlier values."""
    if not c.causal:
        raise NotApplicable("not causal")
    a = c.make()
    inputs = c.sample(a, 131, 131, grad=True)
    t = 61
    out = a(*inputs)[:, :, :t]
    grads = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True, materialize_grads=True)
    for name, grad in zip("qkv", grads, strict=True):
        assert not grad[:, :, t:].any(), f"rows before {t} have a gradient in {name} from {t} on"
    assert grads[2][:, :, :t].any(), "the output does not depend on earlier values at all"


def extreme_inputs_stay_finite(c: Candidate) -> None:
    """Constant, zero, huge (1e4) and tiny inputs give finite outputs and gradients in float32 and bfloat16.

    Gradients of huge inputs are not checked: a backward that recomputes takes exp(score - log-sum-exp) of two numbers
    near 1e8, and their rounding error alone exceeds float32's exponent range.
    """
    for dtype in (torch.float32, torch.bfloat16):
        a = c.make(dtype)
        for name, factor in (("zero", 0.0), ("constant", None), ("huge", 1e4), ("tiny", 1e-30)):
            inputs = [torch.ones_like(x) if factor is None else x * factor for x in c.sample(a, 67, 67, dtype=dtype)]
            inputs = [x.requires_grad_() for x in inputs]
            if a.why_not(problem_of(a, inputs[0], inputs[1])):
                continue
            out = a(*inputs)
            assert torch.isfinite(out).all(), f"{name} inputs in {dtype} give an output with NaN or infinity"
            if name == "huge":
                continue
            grads = torch.autograd.grad(out.sum(), inputs, allow_unused=True, materialize_grads=True)
            assert all(torch.isfinite(x).all() for x in grads), (
                f"{name} inputs in {dtype} give gradients with NaN or infinity"
            )


def future_nan_stays_there(c: Candidate) -> None:
    """NaN in a future query or key does not reach earlier rows. (For values see `nan_from_values`.)"""
    a = strict(c)
    for which, name in enumerate("qk"):
        clean = c.sample(a, 131, 131)
        dirty = [x.clone() for x in clean]
        dirty[which][:, :, 61:] = torch.nan
        agree(a(*dirty)[:, :, :61], a(*clean)[:, :, :61], EXACTLY, f"rows before a NaN in {name}")


def nan_from_values(c: Candidate) -> float:
    """Share of rows before a NaN value that it reaches: measured, not forbidden, because 0·NaN is NaN."""
    a = c.make()
    q, k, v = c.sample(a, 131, 131)
    v[:, :, 61:] = torch.nan
    return a(q, k, v)[:, :, :61].isnan().any(-1).double().mean().item()


def comparisons_are_counted(c: Candidate) -> None:
    """`comparisons` equals a brute-force count if the output is a weighted sum, and is within `cost()`."""
    keys = 67
    a = c.make(value_dim=keys)
    q, k, _ = c.sample(a, keys, keys)
    q = q * 0.1  # so that no weight underflows to zero
    count = a.comparisons(q, k)
    bound = a.cost(problem_of(a, q, k)).comparisons
    assert count.sum() <= bound, f"{count.sum()} comparisons exceed the bound {bound} from cost()"
    if isinstance(a, SupportAttention):
        assert torch.equal(count, a.multiplicity(q, k).sum((2, 3))), "comparisons() differs from the support's size"
    elif not a.exact:
        raise NotApplicable("scores are not pairs of a query and a key; only the bound is checked")
    if not isinstance(a, SupportAttention) or a.once:
        weights = a(q, k, torch.eye(keys, dtype=q.dtype, device=q.device).expand(B, G, keys, keys))
        assert torch.equal(count, (weights != 0).sum((2, 3))), "comparisons() differs from the number of weights"


def streams_like_forward(c: Candidate) -> None:
    """Any split of a sequence through `extend` gives the rows of `forward`; `reorder` keeps the named sequences."""
    a = c.make()
    if a.stream(B) is None:
        raise NotApplicable("it does not support decoding")
    q, k, v = c.sample(a, 101, 101)
    want = a(q, k, v)
    for split in ([1] * 29 + [72], [101], [37, 1, 1, 62], [64, 37]):
        stream = a.stream(B)
        assert stream is not None
        pieces = [stream.extend(*x) for x in zip(*(y.split(split, dim=2) for y in (q, k, v)), strict=True)]
        agree(torch.cat(pieces, dim=2), want, 1e-10, f"stream in pieces {split[:4]}")
    index = torch.tensor([1, 1], device=c.device)
    stream = a.stream(B)
    assert stream is not None
    stream.extend(q[:, :, :50], k[:, :, :50], v[:, :, :50])
    stream.reorder(index)
    got = [stream.extend(*(x[index, :, i : i + 1] for x in (q, k, v))) for i in (50, 51)]
    agree(torch.cat(got, dim=2), want[index, :, 50:52], 1e-10, "stream after reorder")
    problem = problem_of(a, q, k)
    assert stream.state_bytes <= a.cost(problem).state_bytes, "the state is larger than the bound from cost()"


def says_why_not(c: Candidate) -> None:
    """`why_not` rejects what cannot run with a sentence; everything it does not reject runs."""
    a = c.make()
    for queries, keys, dtype in ((7, 3, None), (5, 5, None), (1, 9, None), (9, 9, torch.int64)):
        q, k, v = c.sample(a, queries, keys)
        problem = problem_of(a, q, k)
        reason = a.why_not(problem if dtype is None else replace(problem, dtype=dtype))
        assert isinstance(reason, str), f"why_not gave {reason!r}"
        if not reason:
            assert a(q, k, v).shape == (B, H, queries, E), f"{queries} queries of {keys} keys in {dtype}"


def cost_is_positive(c: Candidate) -> None:
    """`cost` gives finite, non-negative numbers that do not decrease with length."""
    a = c.make()
    small, large = (a.cost(problem_of(a, *c.sample(a, n, n)[:2])) for n in (100, 200))
    for name in ("flops", "comparisons", "state_bytes"):
        assert 0 <= getattr(small, name) <= getattr(large, name) < float("inf"), f"{name} of cost()"


def layer_agrees_with_its_naive(c: Candidate) -> None:
    """The layer keeps its input's shape and equals the layer around `naive`, for all rows and selected rows."""
    a = c.make()
    layer = a.block(13).to(torch.float64).eval()
    x = torch.randn(B, 67, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = layer.naive(x)  # type: ignore[operator]
    agree(layer(x), want, c.backend.tolerance[torch.float64], "layer")
    rows = torch.tensor([66, 0, 40])
    agree(layer.naive(x, rows=rows), want[:, rows], EXACTLY, "layer's naive by rows")  # type: ignore[operator]


def strict(c: Candidate) -> Attention:
    """Create the attention if it is causal and claims strict causality; raise NotApplicable otherwise."""
    if not c.causal or c.backend.causality != "strict":
        raise NotApplicable("not strictly causal")
    return c.make()


CHECKS: tuple[Callable[[Candidate], None], ...] = (
    same_dtype_shape_and_device,
    inputs_and_state_are_untouched,
    seed_decides,
    agrees_with_naive,
    ungrouped_heads_agree,
    padding_changes_nothing,
    gradients_agree_with_naive,
    prefix_is_unchanged,
    future_changes_nothing,
    no_gradient_from_the_future,
    extreme_inputs_stay_finite,
    future_nan_stays_there,
    comparisons_are_counted,
    streams_like_forward,
    says_why_not,
    cost_is_positive,
    layer_agrees_with_its_naive,
    *contract_inputs.CHECKS,
    *contract_state.CHECKS,
)


def outcomes(c: Candidate) -> dict[str, str]:
    """Run all checks; each outcome is "holds", "does not apply: ..." or "FAILS: ...", including crashes."""
    found = {}
    for check in CHECKS:
        try:
            check(c)
            found[check.__name__] = "holds"
        except NotApplicable as reason:
            found[check.__name__] = f"does not apply: {reason}"
        except AssertionError as wrong:
            found[check.__name__] = f"FAILS: {wrong}"
        except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError) as crash:
            found[check.__name__] = f"FAILS: {type(crash).__name__}: {crash}"
    return found
