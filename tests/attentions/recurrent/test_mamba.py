"""The selective scan: kernel and fallback against the recurrence, and the block against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attentions import build
from attentions.native import selective_scan as native
from attentions.recurrent import mamba_block, recurrence
from attentions.recurrent.definition import sequential
from attentions.recurrent.mamba_block import MambaBlock
from attentions.recurrent.selective_scan import doubling, kernel_name, selective_scan
from attentions.recurrent.terms import Terms
from harness.measure.memory import resident_peak, return_freed_memory

B, G, R, M, E, S = 2, 3, 2, 150, 19, 5
Scan = Callable[..., tuple[Tensor, Tensor]]
needs_kernel = pytest.mark.skipif(kernel_name(torch.device("cpu")) != "native", reason="no C++ compiler")
SCANS = [pytest.param(selective_scan, id="native", marks=needs_kernel), pytest.param(doubling, id="fallback")]


def inputs(queries: int = M, keys: int = M, channels: int = E, states: int = S, **options: Any) -> list[Tensor]:
    """u, delta, a, b, c and a state in float64."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    u, delta = normal(B, G, keys, channels), normal(B, G, keys, channels).exp()
    a, b = -normal(G, channels, states).exp(), normal(B, G, keys, states)
    drawn = [u, delta, a, b, normal(B, G, R, queries, states), torch.zeros(B, G, channels, states).double()]
    return [x.requires_grad_() if options.get("grad") and i < 5 else x for i, x in enumerate(drawn)]


def definition(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return sequential(Terms(c, b, u, delta, a))


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize(
    ("queries", "keys", "channels", "states"),
    [(1, 1, 1, 1), (63, 63, 19, 16), (31, 150, 16, 5), (1, 67, 40, 37), (150, 150, 64, 16)],
)
def test_scan_is_the_sequential_recurrence(scan: Scan, queries: int, keys: int, channels: int, states: int) -> None:
    given = inputs(queries, keys, channels, states)
    want = definition(*given[:5])
    torch.testing.assert_close(scan(*given)[0], want, rtol=1e-11, atol=1e-12)
    single = scan(*(x.float() for x in given))[0]
    assert (single - want).norm() < 2e-6 * want.norm()


@pytest.mark.parametrize("scan", SCANS)
def test_gradients_are_those_of_the_sequential_recurrence(scan: Scan) -> None:
    given = inputs(97, M, channels=40, grad=True)
    upstream = torch.randn(B, G, R, 97, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = torch.autograd.grad(definition(*given[:5]), given[:5], upstream)
    got = torch.autograd.grad(scan(*given)[0], given[:5], upstream)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scan", SCANS)
def test_gradcheck(scan: Scan) -> None:
    small = inputs(3, 5, channels=2, states=2, grad=True)
    assert torch.autograd.gradcheck(lambda *x: scan(*x, small[5])[0], small[:5])


@pytest.mark.parametrize("scan", SCANS)
def test_two_halves_are_the_whole(scan: Scan) -> None:
    u, delta, a, b, c, state = inputs()
    want, last = scan(u, delta, a, b, c, state)
    first, middle = scan(u[:, :, :70], delta[:, :, :70], a, b[:, :, :70], c[:, :, :, :70], state)
    second, end = scan(u[:, :, 70:], delta[:, :, 70:], a, b[:, :, 70:], c[:, :, :, 70:], middle)
    torch.testing.assert_close(torch.cat((first, second), dim=3), want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("segment", [1, 7, 64])
def test_segments_without_gradients_are_the_whole(name: str, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = build(name, heads=4, kv_heads=2, head_dim=8, value_dim=6).double()
    q, k, v = (torch.randn(2, h, 67, d, dtype=torch.float64) for h, d in ((4, 8), (2, 8), (2, 6)))
    first = torch.tensor([0, 30])
    whole = attention(q.requires_grad_(), k, v, first=first)
    monkeypatch.setattr(recurrence, "SEGMENT", segment)
    torch.testing.assert_close(attention(q.detach(), k, v, first=first), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunk_size_changes_nothing(chunk: int) -> None:
    given = inputs()
    torch.testing.assert_close(doubling(*given, chunk=chunk)[0], doubling(*given)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 1e-6, 1e-3, 1.0, 30.0, 100.0, 1e3])
def test_extreme_decays_have_the_right_limits(scan: Scan, dtype: torch.dtype, decay: float) -> None:
    given = [x.to(dtype) for x in inputs()]
    given[1], given[2] = torch.ones_like(given[1]), torch.full_like(given[2], -decay)
    leaves = [x.requires_grad_() for x in given[:5]]
    out = scan(*leaves, given[5])[0]
    want = definition(*leaves)
    assert (out - want).norm() < (1e-5 if dtype == torch.float32 else 1e-12) * want.norm()
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(out.sum(), leaves))
    if decay >= 100:  # nothing is remembered
        now = torch.einsum("bgrts,bgts,bgte->bgrte", leaves[4], leaves[3], leaves[0])
        torch.testing.assert_close(out, now, rtol=1e-4, atol=1e-4)


def test_fallback_of_the_attention_equals_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = build("mamba", heads=4, head_dim=16, kv_heads=2, causal=False)
    q, k, v = (torch.randn(2, h, 100, 16, dtype=torch.float64) for h in (4, 2, 2))
    want = attention(q, k, v)
    monkeypatch.setattr(native, "available", lambda device: False)
    torch.testing.assert_close(attention(q, k, v), want, rtol=1e-10, atol=1e-12)
    assert attention.kernel == "torch fallback"


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_hundred_thousand_tokens_stay_finite_with_a_bounded_state(name: str) -> None:
    attention = build(name, heads=1, head_dim=16)
    x = torch.randn(1, 1, 100_000, 16, generator=torch.Generator().manual_seed(0))
    stream = attention.stream(1)
    assert stream is not None
    sizes = []
    for piece in x.split(50_000, dim=2):
        assert torch.isfinite(stream.extend(piece, piece, piece)).all()
        sizes.append(stream.state_bytes)
    assert sizes == [16 * 16 * 4] * 2
    assert torch.isfinite(attention(x, x, x)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_million_tokens_stay_finite_and_near_float64(name: str) -> None:
    attention = build(name, heads=1, head_dim=64)
    x = torch.randn(1, 1, 2**20, 64, generator=torch.Generator().manual_seed(0))
    out = attention(x, x, x)
    assert torch.isfinite(out).all()
    tail = slice(2**19, None)  # what half a million tokens have built up
    want = attention.double()(x.double(), x.double(), x.double())[:, :, tail]
    assert (out[:, :, tail] - want).norm() < 1e-5 * want.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_memory_of_a_million_tokens_is_that_of_a_segment(name: str) -> None:
    attention = build(name, heads=1, head_dim=64).eval()
    beyond = []
    for n in (2**18, 2**20):
        x = torch.randn(1, 1, n, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return_freed_memory()
            out, peak = resident_peak(lambda x=x: attention(x, x, x))
        if peak is None:
            pytest.skip("this system does not tell the peak of memory")
        beyond.append(peak - out.nbytes)
    assert beyond[1] < 2 * beyond[0] + 2**25
    assert beyond[1] < out.nbytes / 2  # which is 256 MiB


@pytest.mark.parametrize("causal", [True, False])
def test_padding_of_a_block_changes_nothing(causal: bool) -> None:
    block = MambaBlock(8, causal=causal, bias=True).double()
    x = torch.randn(2, 40, 8, dtype=torch.float64)
    first = torch.tensor([0, 13])
    out = block(x, first=first)
    torch.testing.assert_close(out[1:, 13:], block(x[1:, 13:]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out, block.naive(x, first=first), rtol=1e-10, atol=1e-12)
    assert not out[1, :13].any()


@pytest.mark.parametrize("piece", [1, 2, 16, 64])
def test_pieces_of_a_block_without_gradients_are_the_whole(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block = MambaBlock(8, bias=True).double()
    x = torch.randn(2, 64, 8, dtype=torch.float64)
    first = torch.tensor([0, 19])
    want = block(x, first=first)
    monkeypatch.setattr(mamba_block, "PIECE", piece)
    with torch.no_grad():
        torch.testing.assert_close(block(x, first=first), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [1, 7, 64, 130])
@pytest.mark.parametrize("bias", [True, False])
def test_block_with_a_mixer_s_weights_is_the_mixer(length: int, bias: bool) -> None:
    modeling = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    from transformers import MambaConfig

    torch.manual_seed(0)
    config = MambaConfig(
        hidden_size=24, state_size=8, time_step_rank=3, num_hidden_layers=1, use_bias=bias, use_conv_bias=bias
    )
    mixer = modeling.MambaMixer(config, layer_idx=0).eval()
    block = MambaBlock.from_hf(mixer)
    check_against_mixer(block, mixer, length, 24)


@pytest.mark.parametrize("bias", [True, False])
def test_block_goes_to_transformers_and_back(bias: bool) -> None:
    pytest.importorskip("transformers")
    block = MambaBlock(12, inner_dim=36, states=5, width=3, rank=2, bias=bias, conv_bias=not bias, seed=1)
    mixer = block.to_hf()
    check_against_mixer(block, mixer, 33, 12)
    check_same_weights(MambaBlock.from_hf(mixer), block)


def test_block_that_transformers_has_no_mixer_for_says_so() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="causal"):
        MambaBlock(8, causal=False).to_hf()
    with pytest.raises(ValueError, match="inner_dim"):
        MambaBlock(8, inner_dim=12).to_hf()


def check_same_weights(one: torch.nn.Module, two: torch.nn.Module) -> None:
    """The same names, and under each the same numbers."""
    ours, theirs = one.state_dict(), two.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def check_against_mixer(block: torch.nn.Module, mixer: torch.nn.Module, length: int, width: int) -> None:
    """Same output and same gradients of input and weights."""
    x = torch.randn(3, length, width, requires_grad=True)
    want, got = mixer(x), block(x)
    want = want[0] if isinstance(want, tuple) else want
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(got)
    names = [name for name, _ in block.named_parameters()]
    theirs = dict(mixer.named_parameters())
    expected = torch.autograd.grad(want, [x, *(theirs[name] for name in names)], upstream)
    found = torch.autograd.grad(got, [x, *(p for _, p in block.named_parameters())], upstream)
    for name, one, two in zip(["x", *names], found, expected, strict=True):
        assert (one - two).norm() <= 1e-5 * max(1.0, two.norm().item()), name
