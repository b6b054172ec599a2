"""State space duality against the recurrence, and the block against transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attentions import build
from attentions.native import calls
from attentions.native import duality as native
from attentions.recurrent.definition import sequential
from attentions.recurrent.mamba2_block import Mamba2Block
from attentions.recurrent.ssd import segment_sums, ssd
from attentions.recurrent.terms import Terms
from tests.attentions.recurrent.test_mamba import check_against_mixer, check_same_weights

B, G, R, M, E, S = 2, 3, 2, 150, 19, 5


@pytest.fixture(params=["native", "fallback"])
def either_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the C++ kernel where there is one, and without."""
    if request.param == "fallback":
        monkeypatch.setattr(native, "available", lambda device: False)
    elif not native.available(torch.device("cpu")):
        pytest.skip("no C++ compiler")


def inputs(queries: int = M, keys: int = M, channels: int = E, states: int = S) -> list[Tensor]:
    """x, step, rate, b and c in float64."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    step, rate = normal(B, G, keys, 1).exp(), -normal(G, 1, 1).exp()
    x, b = normal(B, G, keys, channels), normal(B, G, keys, states)
    return [x, step, rate, b, normal(B, G, R, queries, states)]


def definition(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return sequential(Terms(c, b, x, step, rate))


@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (150, 150), (31, 150), (1, 67)])
def test_no_chunk_size_changes_the_sequential_recurrence(chunk: int, queries: int, keys: int) -> None:
    given = inputs(queries, keys)
    want = definition(*given)
    torch.testing.assert_close(ssd(*given, chunk=chunk)[0], want, rtol=1e-10, atol=1e-11)
    single = ssd(*(x.float() for x in given), chunk=chunk)[0]
    assert (single - want).norm() < 5e-6 * want.norm()


@pytest.mark.usefixtures("either_kernel")
def test_gradients_are_those_of_the_sequential_recurrence() -> None:
    leaves = [x.requires_grad_() for x in inputs(97, M)]
    upstream = torch.randn(B, G, R, 97, E, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = torch.autograd.grad(definition(*leaves), leaves, upstream)
    got = torch.autograd.grad(ssd(*leaves, chunk=16)[0], leaves, upstream)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("either_kernel")
def test_gradcheck() -> None:
    leaves = [x.requires_grad_() for x in inputs(3, 5, channels=2, states=2)]
    state = torch.randn(B, G, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: ssd(*x, chunk=2), (*leaves, state))


@pytest.mark.usefixtures("either_kernel")
def test_pieces_of_a_long_sequence_are_the_whole() -> None:
    x, step, rate, b, c = inputs(5000, 5000)
    want, last = ssd(x, step, rate, b, c)
    cut = 2100
    first, middle = ssd(x[:, :, :cut], step[:, :, :cut], rate, b[:, :, :cut], c[:, :, :, :cut])
    second, end = ssd(x[:, :, cut:], step[:, :, cut:], rate, b[:, :, cut:], c[:, :, :, cut:], middle)
    torch.testing.assert_close(torch.cat((first, second), dim=3), want, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(end, last, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_one_b_and_c_for_all_heads_is_a_copy_for_each(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # the heads go to threads in parts
    monkeypatch.setattr(calls, "ALONE", 1)
    x, step, rate, b, c = inputs()
    one = [y.requires_grad_() for y in (x, step, rate, b[:, :1].clone(), c[:, :1].clone())]
    each = [*one[:3], *(y.expand(B, G, *y.shape[2:]) for y in one[3:])]
    upstream = torch.randn(B, G, R, M, E, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want, got = ssd(*each, chunk=16)[0], ssd(*one, chunk=16)[0]
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    found, expected = (torch.autograd.grad(y, one, upstream) for y in (got, want))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("either_kernel")
def test_threads_that_share_the_channels_of_a_head_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [y[:1, :1].clone().requires_grad_() for y in inputs(channels=40)]
    leaves[2] = inputs()[2][:1].clone().requires_grad_()
    found = []
    monkeypatch.setattr(calls, "ALONE", 1)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        out = ssd(*leaves, chunk=16)[0]
        found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-11)


def test_segment_sums_keep_small_decays_beside_huge_ones() -> None:
    log = torch.tensor([-1.0, -1e6, -1e-6, -2e-6])
    sums = segment_sums(log)
    assert sums[3, 1] == -3e-6 + 0 * sums[1, 1]
    assert sums[0, 1] == -torch.inf
    assert not sums.diagonal().any()


@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 1e-6, 1e-3, 1.0, 30.0, 100.0, 1e3])
def test_extreme_decays_have_the_right_limits(dtype: torch.dtype, decay: float) -> None:
    x, step, rate, b, c = (y.to(dtype) for y in inputs())
    leaves = [y.requires_grad_() for y in (x, torch.ones_like(step), torch.full_like(rate, -decay), b, c)]
    out = ssd(*leaves)[0]
    want = definition(*leaves)
    assert (out - want).norm() < (1e-5 if dtype == torch.float32 else 1e-12) * want.norm()
    assert all(torch.isfinite(y).all() for y in torch.autograd.grad(out.sum(), leaves))


def test_chunk_is_a_setting_that_changes_nothing() -> None:
    q, k, v = (torch.randn(2, h, 300, 16, dtype=torch.float64) for h in (4, 2, 2))
    one, two = (build("mamba2", heads=4, head_dim=16, kv_heads=2, causal=False, chunk=c) for c in (16, 200))
    torch.testing.assert_close(one(q, k, v), two(q, k, v), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_of_a_block_changes_nothing(causal: bool) -> None:
    block = Mamba2Block(8, causal=causal, bias=True, states=6, head_dim=4, groups=2).double()
    x = torch.randn(2, 40, 8, dtype=torch.float64)
    first = torch.tensor([0, 13])
    out = block(x, first=first)
    torch.testing.assert_close(out[1:, 13:], block(x[1:, 13:]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out, block.naive(x, first=first), rtol=1e-10, atol=1e-12)
    assert not out[1, :13].any()


@pytest.mark.parametrize("length", [1, 7, 64, 130])
@pytest.mark.parametrize("groups", [1, 2])
def test_block_with_a_mixer_s_weights_is_the_mixer(length: int, groups: int) -> None:
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    from transformers import Mamba2Config

    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=16,
        num_heads=4,
        head_dim=8,
        expand=2,
        state_size=6,
        n_groups=groups,
        chunk_size=32,
        num_hidden_layers=1,
        use_bias=groups == 2,
    )
    mixer = modeling.Mamba2Mixer(config, layer_idx=0).eval()
    check_against_mixer(Mamba2Block.from_hf(mixer), mixer, length, 16)


@pytest.mark.parametrize("groups", [1, 3])
def test_block_goes_to_transformers_and_back(groups: int) -> None:
    pytest.importorskip("transformers")
    block = Mamba2Block(
        12, inner_dim=36, head_dim=6, states=5, groups=groups, width=3, bias=True, conv_bias=False, eps=1e-3,
        step_limit=(0.01, 0.05), seed=1,
    )  # fmt: skip
    mixer = block.to_hf()
    check_against_mixer(block, mixer, 33, 12)
    check_same_weights(Mamba2Block.from_hf(mixer), block)


def test_block_that_transformers_has_no_mixer_for_says_so() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="causal"):
        Mamba2Block(8, causal=False).to_hf()
    with pytest.raises(ValueError, match="inner_dim"):
        Mamba2Block(8, inner_dim=12).to_hf()
