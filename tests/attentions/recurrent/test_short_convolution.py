"""The short convolution of the Mamba blocks: kernel and fallback against torch's own, and gradcheck."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attentions.native import short_convolution as native
from attentions.recurrent.short_convolution import short_convolution


@pytest.fixture(params=["native", "fallback"], autouse=True)
def either_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the C++ kernel where there is one, and without."""
    if request.param == "fallback":
        monkeypatch.setattr(native, "available", lambda x: False)
    elif not native.available(torch.zeros(1)):
        pytest.skip("no C++ compiler")


def inputs(positions: int, channels: int, width: int) -> list[Tensor]:
    """x, a slice of wider rows, weight and bias in float64."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 3 * torch.randn(shape, generator=draw, dtype=torch.float64)

    return [normal(2, positions, 2 * channels)[..., channels:], normal(channels, 1, width), normal(channels)]


def definition(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (weight.shape[2] - 1, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=len(weight))).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("positions", "channels", "width"), [(1, 1, 4), (2, 19, 4), (150, 40, 3), (64, 16, 1)])
def test_output_and_gradients_are_those_of_torch(positions: int, channels: int, width: int, dtype: torch.dtype) -> None:
    leaves = [x.to(dtype).requires_grad_() for x in inputs(positions, channels, width)]
    out, want = short_convolution(*leaves), definition(*(x.double() for x in leaves))
    bound = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out.double(), want, rtol=bound, atol=bound)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(want, leaves, upstream)
    found = torch.autograd.grad(out, leaves, upstream.to(dtype))
    for one, two in zip(found, expected, strict=True):
        assert (one - two).norm() <= (1e-12 if dtype == torch.float64 else 2e-6) * two.norm()


def test_no_bias_is_a_bias_of_zeros() -> None:
    x, weight, bias = inputs(20, 5, 4)
    torch.testing.assert_close(short_convolution(x, weight, None), definition(x, weight, torch.zeros_like(bias)))


def test_gradcheck() -> None:
    leaves = [x.requires_grad_() for x in inputs(5, 3, 4)]
    assert torch.autograd.gradcheck(short_convolution, leaves)


def test_huge_inputs_stay_finite() -> None:
    x, weight, bias = inputs(20, 5, 4)
    leaves = [y.float().mul(1e6).requires_grad_() for y in (x, weight, bias)]
    out = short_convolution(*leaves)
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(y).all() for y in torch.autograd.grad(out.sum(), leaves))


def test_future_inputs_change_nothing() -> None:
    x, weight, bias = inputs(130, 5, 4)
    changed = x.clone()
    changed[:, 70:] = torch.nan
    torch.testing.assert_close(
        short_convolution(changed, weight, bias)[:, :70], short_convolution(x, weight, bias)[:, :70]
    )
