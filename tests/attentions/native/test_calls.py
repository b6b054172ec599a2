"""What the native kernels are handed is checked once more where they are called, and indices where they meet them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from attentions.native import bucket_window, duality, library, selective_scan, short_convolution, vq
from attentions.native.calls import MAX_INDEX

if TYPE_CHECKING:
    from attentions.common.windows import Windows

pytestmark = pytest.mark.skipif(library("vq") is None, reason="no C++ compiler")


def bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel's function without the hook that checks shapes when tests run: users have none."""
    return inspect.unwrap(function)


Q, K, V = torch.randn(2, 12, 5), torch.randn(2, 9, 5), torch.randn(2, 9, 3)


def sorted_windows(*, codes: int = 4, **changes: Any) -> Windows:
    of_q, of_k = torch.randint(0, codes, (2, 12)), torch.randint(0, codes, (2, 9))
    given: dict[str, Any] = {
        "query_codes": of_q,
        "key_codes": of_k,
        "heads": 2,
        "codes": codes,
        "window": 3,
        "causal": True,
    }
    return bare(bucket_window.windows)(**{**given, **changes})


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("code", [4, -1, 2**31 - 1])
@pytest.mark.parametrize("side", ["query", "key"])
def test_codes_out_of_range_are_refused(side: str, code: int, dtype: torch.dtype) -> None:
    codes = torch.zeros(2, 12 if side == "query" else 9, dtype=dtype)
    codes[1, 8] = code
    with pytest.raises(ValueError, match=f"a {side}'s code is not from 0 to codes - 1"):
        sorted_windows(**{f"{side}_codes": codes})  # type: ignore[arg-type]


def test_codes_that_32_bits_would_bring_back_into_range_are_refused() -> None:
    codes = torch.zeros(2, 9, dtype=torch.int64)
    codes[0, 0] = 2**32
    with pytest.raises(ValueError, match="a key's code"):
        sorted_windows(key_codes=codes)


def test_codes_of_padding_may_be_anything() -> None:
    codes = torch.zeros(2, 9, dtype=torch.int64)
    codes[0, :4] = torch.tensor([-1, 2**40, -(2**40), 99])
    found = sorted_windows(key_codes=codes, real=torch.tensor([4, 0]))
    assert found.key_order[0, :4].tolist() == [0, 1, 2, 3]


def test_sort_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="first real key is not from 0 to the number of keys"):
        sorted_windows(real=torch.tensor([0, 10]))
    with pytest.raises(ValueError, match="12 queries of 1 heads and 9 keys"):
        sorted_windows(heads=1)
    with pytest.raises(ValueError, match="12 queries of 5 heads"):
        sorted_windows(heads=5)
    with pytest.raises(ValueError, match=rf"a row can have at most {MAX_INDEX} of each"):
        sorted_windows(codes=2**31)
    with pytest.raises(ValueError, match=rf"{9 * 2**29} sorted keys"):
        sorted_windows(forest=(2**29 - 1, 1))
    with pytest.raises(ValueError, match=r"real is torch.int64 of shape \(3,\)"):
        sorted_windows(real=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"limit is torch\.int32"):
        sorted_windows(limit=torch.zeros(2, 12, dtype=torch.int32))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("query_order", 12, "query_order holds a query that does not exist"),
        ("query_order", -1, "query_order holds a query that does not exist"),
        ("key_order", 9, "key_order holds a key that does not exist"),
        ("key_order", -1, "key_order holds a key that does not exist"),
        ("end", 10, "a window extends beyond the sorted keys"),
        ("start", -1, "a window extends beyond the sorted keys"),
    ],
)
def test_windows_that_lead_out_of_memory_are_refused_in_every_pass(name: str, value: int, says: str) -> None:
    table = sorted_windows(codes=1)
    out, lse = bare(bucket_window.forward)(Q, K, V, [table], 0.4, once=True)
    spoilt = replace(table, **{name: torch.full_like(getattr(table, name), value)})
    passes: list[Callable[[], object]] = [
        lambda: bare(bucket_window.forward)(Q, K, V, [spoilt], 0.4, once=True),
        lambda: bare(bucket_window.backward)(out, Q, K, V, out, lse, [spoilt], 0.4, once=True),
        lambda: bare(bucket_window.count)([spoilt], once=True),
    ]
    for run in passes:
        with pytest.raises(ValueError, match=says):
            run()


def test_windows_that_do_not_ascend_end_no_process() -> None:
    table = sorted_windows(codes=1)
    out, lse = bare(bucket_window.forward)(Q, K, V, [table], 0.4, once=True)
    start = torch.tensor([5, 0] * 6, dtype=torch.int32).expand(2, -1)
    spoilt = replace(table, start=start.contiguous(), end=(start + 3).contiguous())
    bare(bucket_window.forward)(Q, K, V, [spoilt], 0.4, once=True)
    bare(bucket_window.backward)(out, Q, K, V, out, lse, [spoilt], 0.4, once=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": K[:1]}, r"k is torch\.float32 of shape \(1, 9, 5\)"),
        ({"k": K[..., :4]}, r"k is torch\.float32 of shape \(2, 9, 4\)"),
        ({"v": V[:, :5]}, r"v is torch\.float32 of shape \(2, 5, 3\)"),
        ({"q": Q[:, :5]}, r"index is torch\.int32 of shape \(2, 12\)"),
        ({"onto": (torch.zeros(2, 12, 3).double(), torch.zeros(2, 12))}, r"out is torch\.float64"),
        ({"onto": (torch.zeros(2, 12, 3), torch.zeros(2, 11))}, r"lse is torch\.float32 of shape \(2, 11\)"),
    ],
)
def test_window_attention_refuses_what_does_not_fit(change: dict[str, Any], says: str) -> None:
    given = {"q": Q, "k": K, "v": V, "tables": [sorted_windows()], "scale": 0.4, "once": True, **change}
    with pytest.raises(ValueError, match=says):
        bare(bucket_window.forward)(**given)


def test_union_without_members_is_refused() -> None:
    table = replace(sorted_windows(), members=None)
    with pytest.raises(ValueError, match="a union needs the members of its windows"):
        bare(bucket_window.forward)(Q, K, V, [table, table], 0.4, once=True)


def spoil(inputs: dict[str, Tensor], name: str, how: str) -> dict[str, Tensor]:
    x = inputs[name]
    other = torch.float32 if x.dtype == torch.float64 else torch.float64
    made = {
        "another dtype": lambda: x.to(other),
        "shorter": lambda: x[:, :-1] if x.ndim > 1 else x[:-1],
        "narrower": lambda: x[..., :-1],
    }
    return {**inputs, name: made[how]()}


SCAN = {
    "u": torch.randn(2, 3, 40, 5),
    "delta": torch.rand(2, 3, 40, 5),
    "a": -torch.rand(3, 5, 16),
    "b": torch.randn(2, 3, 40, 16),
    "c": torch.randn(2, 3, 2, 40, 16),
    "state": torch.zeros(2, 3, 5, 16),
}
DUALITY = {
    "x": torch.randn(2, 3, 40, 5),
    "log": -torch.rand(2, 3, 40),
    "b": torch.randn(2, 3, 40, 7),
    "c": torch.randn(2, 3, 2, 40, 7),
    "state": torch.zeros(2, 3, 5, 7),
}
CONVOLUTION = {"x": torch.randn(2, 40, 6), "weight": torch.randn(4, 6), "bias": torch.randn(6)}


@pytest.mark.parametrize("how", ["another dtype", "shorter", "narrower"])
@pytest.mark.parametrize("name", ["delta", "a", "b", "c", "state"])
def test_scan_refuses_what_does_not_fit(name: str, how: str) -> None:
    run = bare(selective_scan.forward)
    run(**SCAN, checkpoints=True)
    with pytest.raises(ValueError, match=r"the kernel expects|a kernel that expects|they must be the last of"):
        run(**spoil(SCAN, name, how), checkpoints=True)
    if name != "state":
        rest = {key: x for key, x in SCAN.items() if key != "state"}
        y, _, states = run(**SCAN, checkpoints=True)
        assert states is not None
        with pytest.raises(ValueError, match=r"the kernel expects|a kernel that expects|they must be the last of"):
            bare(selective_scan.backward)(y, **spoil(rest, name, how), states=states)
        with pytest.raises(ValueError, match=r"dy is|a kernel that expects"):
            bare(selective_scan.backward)(y[:, :, :1], **rest, states=states)
        with pytest.raises(ValueError, match="states is"):
            bare(selective_scan.backward)(y, **rest, states=states[:, :, :1].contiguous())


@pytest.mark.parametrize("how", ["another dtype", "shorter", "narrower"])
@pytest.mark.parametrize("name", ["log", "b", "c", "state"])
def test_duality_refuses_what_does_not_fit(name: str, how: str) -> None:
    y, last, before = bare(duality.forward)(**DUALITY, chunk=16, checkpoints=True)
    assert before is not None
    with pytest.raises(ValueError, match=r"the kernel expects|a kernel that expects|keys must divide rows"):
        bare(duality.forward)(**spoil(DUALITY, name, how), chunk=16, checkpoints=True)
    if name != "state":
        rest = {key: x for key, x in DUALITY.items() if key != "state"}
        with pytest.raises(ValueError, match=r"the kernel expects|a kernel that expects|keys must divide rows"):
            bare(duality.backward)(y, last, **spoil(rest, name, how), before=before, chunk=16)
        with pytest.raises(ValueError, match="before is"):
            bare(duality.backward)(y, last, **rest, before=before, chunk=8)
    with pytest.raises(ValueError, match="chunk=0"):
        bare(duality.forward)(**DUALITY, chunk=0, checkpoints=True)


@pytest.mark.parametrize("how", ["another dtype", "shorter", "narrower"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_convolution_refuses_what_does_not_fit(name: str, how: str) -> None:
    bare(short_convolution.forward)(**CONVOLUTION)
    for run in (bare(short_convolution.forward), lambda **x: bare(short_convolution.backward)(CONVOLUTION["x"], **x)):
        with pytest.raises(ValueError, match=f"{name} is"):
            run(**spoil(CONVOLUTION, name, how))
    with pytest.raises(ValueError, match=r"dy is|a kernel that expects"):
        bare(short_convolution.backward)(CONVOLUTION["x"][:, 1:], **CONVOLUTION)


@pytest.mark.parametrize("code", [7, -1, 2**40])
def test_codes_of_codewords_out_of_range_are_refused(code: int) -> None:
    v, codes = torch.randn(2, 3, 30, 5), torch.zeros(2, 3, 30, dtype=torch.int64)
    counts, sums = torch.zeros(2, 3, 7, dtype=torch.float64), torch.zeros(2, 3, 7, 5, dtype=torch.float64)
    q, book, table = torch.randn(2, 6, 30, 4), torch.randn(3, 7, 4), torch.randn(6, 7, 7)
    q_codes = torch.zeros(2, 6, 30, dtype=torch.int64)
    bare(vq.tally)(v, codes, counts, sums)
    bare(vq.attend)(q, book, codes, v, counts, sums, 0.5)
    bare(vq.attend_by_code)(q_codes, table, None, None, counts, sums)
    codes[1, 2, 29] = q_codes[1, 5, 29] = code
    with pytest.raises(ValueError, match="a key's code is not from 0 to codes - 1"):
        bare(vq.tally)(v, codes, counts, sums)
    with pytest.raises(ValueError, match="a key's code is not from 0 to codes - 1"):
        bare(vq.attend)(q, book, codes, v, counts, sums, 0.5)
    with pytest.raises(ValueError, match="a query's code is not from 0 to codes - 1"):
        bare(vq.attend_by_code)(q_codes, table, None, None, counts, sums)
    with pytest.raises(ValueError, match="a code is not from 0 to codes - 1"):
        bare(vq.look_up)(torch.randn(2, 6, 7, 5), q_codes)


def test_codebooks_and_sums_that_do_not_fit_are_refused() -> None:
    v, codes = torch.randn(2, 3, 30, 5), torch.zeros(2, 3, 30, dtype=torch.int64)
    counts, sums = torch.zeros(2, 3, 7, dtype=torch.float64), torch.zeros(2, 3, 7, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="sums is"):
        bare(vq.tally)(v, codes, counts, sums[..., :4].contiguous())
    with pytest.raises(ValueError, match=r"counts is torch\.float32"):
        bare(vq.tally)(v, codes, counts.float(), sums)
    with pytest.raises(ValueError, match=r"codes is torch\.int32"):
        bare(vq.tally)(v, codes.int(), counts, sums)
    with pytest.raises(ValueError, match=r"codes is torch\.int64 of shape \(2, 3, 29\)"):
        bare(vq.tally)(v, codes[:, :, 1:], counts, sums)
    with pytest.raises(ValueError, match="strides"):  # written in place, so it cannot be copied
        bare(vq.tally)(v, codes, counts, sums.mT.contiguous().mT)
    with pytest.raises(ValueError, match="codebook is"):
        bare(vq.nearest)(torch.randn(2, 3, 30, 5), torch.randn(3, 7, 4))


def test_a_kernel_that_finds_no_memory_says_so() -> None:
    """A sort's counters of two thousand million codes, beyond what the address space of the test allows."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), limits[1]))
    try:
        with pytest.raises(MemoryError, match="window_sort_int64 of the native kernel bucket_window ran out of memory"):
            sorted_windows(codes=2**31 - 2, query_codes=torch.zeros(2, 12).long(), key_codes=torch.zeros(2, 9).long())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
