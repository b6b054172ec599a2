"""What must work under autocast, case by case, for a process of its own to run.

python -m tests.attentions.autocast_cases NAME
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attentions import BACKENDS
from attentions.base import ROUNDING, Attention
from attentions.controls import RandomSupport
from attentions.layer import AttentionLayer
from attentions.lsh_v2 import LSHv2
from attentions.recurrent.selective_scan import doubling, selective_scan
from attentions.recurrent.short_convolution import short_convolution
from attentions.recurrent.ssd import ssd
from hyper_attn.hyper_attn import HyperAttention
from transformer_vq.nn.attn_vq import VQAttention, VQAttentionQK
from transformer_vq.nn.config_spec import TransformerConfig

if TYPE_CHECKING:
    from transformer_vq.nn.base_attn import BaseAttention

HALVES = (torch.bfloat16, torch.float16)
SETTINGS: dict[str, dict[str, Any]] = {
    "bit_sampling": {"bits": 12, "window": 16, "local": 4, "balanced": True},
    "simhash": {"bits": 12, "window": 16, "local": 4, "balanced": True},
    "lsh_forest": {"bits": 16, "min_candidates": 9, "max_candidates": 64, "local": 4},
    "reformer": {"chunk": 16},
    "lsh_v2": {"bucket_size": 16, "local": 16, "hash_steps": 3},
    "vq": {"codes": 32, "block": 16},
    "vq_qk": {"codes": 32, "block": 16},
    "hyper": {"block_size": 16, "sample_size": 8, "min_seq_len": 32},
}
CLASSES: dict[str, type[Attention]] = {**BACKENDS, "random_support": RandomSupport}


def sample(*shape: int, seed: int) -> Tensor:
    """Gaussian numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(got: Any, want: Any, tolerance: float, what: str) -> None:
    """Assert that two results agree, relative to the wanted one's norm; integers exactly."""
    if isinstance(want, list | tuple):
        assert len(got) == len(want), what
        for x, y in zip(got, want, strict=True):
            close(x, y, tolerance, what)
    elif isinstance(want, Tensor) and want.is_floating_point():
        error = ((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-3)).item()
        assert error <= tolerance, f"{what}: relative error {error:.2e} is above {tolerance:.0e}"
    else:
        assert torch.equal(torch.as_tensor(got), torch.as_tensor(want)), what


def with_gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], weights: Sequence[Tensor], half: torch.dtype | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and gradients of inputs and weights, forward under autocast if `half` is given.

    Backward runs twice: under autocast too, where torch rounds its own products and all must be finite, and without.
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
        out = function(*leaves)
        upstream = sample(*out.shape, seed=9).to(out.dtype)
        arguments = {"inputs": [*leaves, *weights], "grad_outputs": upstream, "allow_unused": True}
        rounded = torch.autograd.grad(out, **arguments, materialize_grads=True, retain_graph=True)
    grads = torch.autograd.grad(out, **arguments, materialize_grads=True)
    assert all(torch.isfinite(x).all() for x in (out, *rounded, *grads)), "NaN or infinity"
    return out.detach(), grads


def backend(name: str) -> None:
    """A backend's call, everything else that it computes, and its block."""
    for half in HALVES:
        a = CLASSES[name](4, 16, kv_heads=2, max_len=256, **SETTINGS.get(name, {}))
        q, k, v = sample(2, 4, 90, 16, seed=0), sample(2, 2, 90, 16, seed=1), sample(2, 2, 90, 16, seed=2)
        learnt = copy.deepcopy(a)
        a.prepare(q, k, v)
        with torch.autocast("cpu", dtype=half):
            learnt.prepare(q, k, v)
        for key, tensor in a.state_dict().items():
            assert torch.equal(learnt.state_dict()[key], tensor), f"{name} learns another {key} under {half}"
        want, slopes = with_gradients(a, (q, k, v), [], None)
        got, found = with_gradients(a, (q, k, v), [], half)
        close(got, want, 1e-6, f"{name} under {half}")
        close(found, slopes, ROUNDING[half], f"gradients of {name} under {half}")
        _around(a, q, k, v, half)
        _block(a, half)


def _around(a: Attention, q: Tensor, k: Tensor, v: Tensor, half: torch.dtype) -> None:
    """What is called beside `forward` answers under autocast as without."""
    rows = torch.tensor([0, 60, 89])
    calls: dict[str, Callable[[], Any]] = {
        "naive": lambda: a.naive(q, k, v, rows=rows),
        "comparisons": lambda: a.comparisons(q, k),
        "multiplicity": lambda: a.multiplicity(q, k, rows=rows),  # type: ignore[attr-defined]
        "kept_mass": lambda: a.kept_mass(q, k, rows=rows),  # type: ignore[attr-defined]
        "weights": lambda: a.weights(q, k, rows=rows),  # type: ignore[attr-defined]
        "estimate": lambda: a.estimate(q, k, v),  # type: ignore[attr-defined]
        "auxiliary_loss": lambda: a.auxiliary_loss(q, k),  # type: ignore[attr-defined]
        "components": lambda: list(a.components(q, k, v).values())[-1:] and list(a.components(q, k, v).values())[-1](),
    }
    with torch.no_grad():
        for name, call in calls.items():
            if hasattr(a, name):
                want = call()
                with torch.autocast("cpu", dtype=half):
                    got = call()
                close(got, want, 1e-6, f"{name} of {type(a).__name__} under {half}")
    if isinstance(a, LSHv2):
        functions = list(a.hashing.parameters())
        want, slopes = with_gradients(a.auxiliary_loss, (q, k), functions, None)
        got, found = with_gradients(a.auxiliary_loss, (q, k), functions, half)
        close(got, want, 1e-6, f"auxiliary loss under {half}")
        close(found, slopes, ROUNDING[half], f"gradients of the auxiliary loss under {half}")


def _block(a: Attention, half: torch.dtype) -> None:
    """The layer under autocast equals itself around the definition, whose projections are rounded alike.

    The Mamba blocks select nothing, so that they are compared with themselves without autocast.
    """
    block, x = a.block(72), sample(2, 90, 72, seed=3)  # three heads: a number alone may be a sum that cancels
    weights = list(block.parameters())
    if isinstance(block, AttentionLayer):
        want, slopes = with_gradients(block.naive, (x,), weights, half)
    else:
        want, slopes = with_gradients(block, (x,), weights, None)
    got, found = with_gradients(block, (x,), weights, half)
    close(got, want, ROUNDING[half], f"block of {type(a).__name__} under {half}")
    close(found, slopes, 2 * ROUNDING[half], f"gradients of the block of {type(a).__name__} under {half}")


def vq_layers() -> None:
    """Layers with codebooks: evaluation, and steps of training that move weights and codebooks."""
    for half in HALVES:
        for kind, causal in ((VQAttention, True), (VQAttention, False), (VQAttentionQK, True), (VQAttentionQK, False)):
            torch.manual_seed(0)
            config = TransformerConfig(d_model=32, n_head=2, n_code=16, block_len=16, causal=causal)
            layer = kind(config)
            layer.train().run(sample(2, 90, 32, seed=4))  # starts the codebooks
            layer, x = layer.eval(), sample(2, 90, 32, seed=5)
            with torch.autocast("cpu", dtype=half), torch.no_grad():
                dense = layer.run(x, quadratic=True).out
            got, found = with_gradients(layer, (x,), list(layer.parameters()), half)
            close(got, dense, ROUNDING[half], f"{kind.__name__} under {half} against dense attention")
            _, slopes = with_gradients(
                lambda x, layer=layer: layer.run(x, quadratic=True).out, (x,), list(layer.parameters()), half
            )
            close(found, slopes, 2 * ROUNDING[half], f"gradients of {kind.__name__} under {half}")
            _trains(layer.train(), half)


def _trains(layer: BaseAttention, half: torch.dtype) -> None:
    """Commitment falls, and codebooks are the running means that the same vectors give without autocast."""
    optimizer, losses = torch.optim.Adam(layer.parameters(), lr=3e-3), []
    for step in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=half):
            result = layer.run(sample(2, 64, 32, seed=step))
            loss = result.out.float().square().mean() + 1e3 * result.loss
        loss.backward()
        optimizer.step()
        losses.append(result.loss.item())
        assert all(torch.isfinite(x).all() for x in layer.state_dict().values()), f"NaN after a step under {half}"
    assert losses[-1] < losses[0], f"commitment under {half}: {losses}"
    quantiser = copy.deepcopy(layer.key_quantiser)
    vectors = sample(2, 2, 64, 16, seed=6)
    plain = copy.deepcopy(quantiser)
    torch.manual_seed(1)
    plain.update(vectors, plain(vectors).codes)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=half):
        quantiser.update(vectors, quantiser(vectors).codes)
    close(quantiser.codebook, plain.codebook, 1e-6, f"codebook after a step under {half}")


def hyper_attention() -> None:
    """HyperAttention by itself, with its log-sum-exp, causal and not, in either dtype."""
    q, k, v = sample(2, 4, 90, 16, seed=0), sample(2, 2, 90, 16, seed=1), sample(2, 2, 90, 16, seed=2)
    for half in HALVES:
        for causal in (True, False):
            module = HyperAttention(16, 5, 16, 8, 32)

            def call(*inputs: Tensor, module: nn.Module = module, causal: bool = causal) -> Tensor:
                out, lse = module(*inputs, causal=causal, return_lse=True)
                return torch.cat((out.flatten(), lse.flatten()))

            want, slopes = with_gradients(call, (q, k, v), [], None)
            got, found = with_gradients(call, (q, k, v), [], half)
            close(got, want, 1e-6, f"HyperAttention under {half}")
            close(found, slopes, 1e-5, f"gradients of HyperAttention under {half}")
            small = tuple(x.to(half) for x in (q, k, v))
            want, _ = with_gradients(call, tuple(x.float() for x in small), [], None)
            got, _ = with_gradients(call, small, [], half)
            close(got, want, ROUNDING[half], f"HyperAttention in {half} under {half}")


def scans() -> None:
    """What the Mamba blocks are made of, called with float32 and, where a weight meets an activation, mixed."""
    u, b, c = sample(2, 3, 90, 8, seed=0), sample(2, 3, 90, 16, seed=1), sample(2, 3, 1, 90, 16, seed=2)
    delta, a = sample(2, 3, 90, 8, seed=3).sigmoid(), -sample(3, 8, 16, seed=4).exp()
    calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "selective scan": (lambda *x: selective_scan(*x)[0], (u, delta, a, b, c)),
        "doubling": (lambda *x: doubling(*x, state=u.new_zeros(2, 3, 8, 16))[0], (u, delta, a, b, c)),
        "duality": (lambda *x: ssd(*x)[0], (u, delta[..., :1], a[:, :1, :1], b, c)),
        "convolution": (short_convolution, (u[:, 0], sample(8, 1, 4, seed=5), sample(8, seed=6))),
    }
    for half in HALVES:
        for name, (call, inputs) in calls.items():
            want, slopes = with_gradients(call, inputs, [], None)
            got, found = with_gradients(call, inputs, [], half)
            close(got, want, 1e-6, f"{name} under {half}")
            close(found, slopes, 1e-5, f"gradients of the {name} under {half}")
        x, weight, bias = calls["convolution"][1]
        out = short_convolution(x.to(half), weight, bias)
        assert out.dtype == half, f"a convolution of {half} by float32 weights gives {out.dtype}"
        close(out, short_convolution(x.to(half).float(), weight, bias), ROUNDING[half], f"convolution of {half}")


CASES: dict[str, Callable[[], None]] = {
    **{name: lambda name=name: backend(name) for name in CLASSES},
    "VQ layers": vq_layers,
    "HyperAttention": hyper_attention,
    "scans": scans,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    CASES[sys.argv[1]]()
