"""Weights between the Mamba blocks and transformers' mixers: every dtype, copies, and no part that is not known."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attentions.recurrent.mamba2_block import Mamba2Block
from attentions.recurrent.mamba_block import MambaBlock

Block = type[MambaBlock] | type[Mamba2Block]
WIDTH = 24
BOTH: list[Block] = [MambaBlock, Mamba2Block]


def mixer_of(kind: Block, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A mixer of transformers whose settings are not the defaults."""
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    shared = {"hidden_size": WIDTH, "state_size": 6, "num_hidden_layers": 1, "conv_kernel": 3}
    if kind is MambaBlock:
        modeling = importlib.import_module("transformers.models.mamba.modeling_mamba")
        return modeling.MambaMixer(
            transformers.MambaConfig(**shared | {"time_step_rank": 3} | settings), layer_idx=0
        ).to(dtype)
    modeling = importlib.import_module("transformers.models.mamba2.modeling_mamba2")
    sizes = {"num_heads": 4, "head_dim": 12, "n_groups": 2, "chunk_size": 16, "time_step_limit": (0.01, 0.05)}
    return modeling.Mamba2Mixer(transformers.Mamba2Config(**shared | sizes | settings), layer_idx=0).to(dtype)


def drawn(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 33, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of theirs: float32


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ["silu", "swish"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", BOTH)
def test_block_of_a_mixer_has_its_dtype_and_its_output(
    kind: Block, dtype: torch.dtype, activation: str, biased: bool
) -> None:
    mixer = mixer_of(kind, dtype, use_bias=biased, use_conv_bias=not biased, hidden_act=activation)
    block, x = kind.from_hf(mixer), drawn(dtype)
    assert {p.dtype for p in block.parameters()} == {dtype}
    for learns in (False, True):
        with torch.set_grad_enabled(learns):
            got, want = block(x), mixer(x)
        assert got.dtype == dtype
        assert (got - want).double().norm() <= TOLERANCE[dtype] * want.double().norm()
    back = block.to_hf()
    assert all(p.dtype == dtype for p in back.parameters())
    assert (back(x) - want).double().norm() <= TOLERANCE[dtype] * want.double().norm()  # its chunks are others
    assert all(torch.equal(p, dict(mixer.named_parameters())[name]) for name, p in back.named_parameters())


@pytest.mark.parametrize("kept", [("A_log", "D"), ("A_log", "D", "norm.weight", "dt_bias", "dt_proj.bias")], ids=len)
@pytest.mark.parametrize("kind", BOTH)
def test_weights_of_several_dtypes_keep_each_its_own(kind: Block, kept: tuple[str, ...]) -> None:
    mixer = mixer_of(kind, torch.bfloat16)
    for name, weight in mixer.named_parameters():
        if name in kept and "dt_proj" not in name:
            weight.data = weight.data.float()
    block, x = kind.from_hf(mixer), drawn(torch.bfloat16)
    dtypes = {name: p.dtype for name, p in mixer.named_parameters()}
    assert {name: p.dtype for name, p in block.named_parameters()} == dtypes
    with torch.no_grad():
        got, want = block(x), mixer(x)
    assert got.dtype == torch.bfloat16
    assert (got - want).float().norm() <= 3e-2 * want.float().norm()
    assert {name: p.dtype for name, p in block.to_hf().named_parameters()} == dtypes


@pytest.mark.parametrize("kind", BOTH)
def test_weights_are_copies_both_ways(kind: Block) -> None:
    mixer = mixer_of(kind)
    block = kind.from_hf(mixer)
    again: Any = block.to_hf()
    with torch.no_grad():
        block.D.add_(1)
        again.D.add_(2)
    assert not torch.equal(mixer.D, block.D)
    assert torch.equal(mixer.D + 2, again.D)


def test_mixer_that_normalises_its_terms_is_refused() -> None:
    transformers: Any = importlib.import_module("transformers")
    config = transformers.FalconMambaConfig(hidden_size=WIDTH, state_size=6, num_hidden_layers=1, vocab_size=7)
    mixer = transformers.FalconMambaForCausalLM(config).backbone.layers[0].mixer
    with pytest.raises(ValueError, match=r"mixer='.*FalconMambaMixer' is not allowed: it must be .*MambaMixer"):
        MambaBlock.from_hf(mixer)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "other",
    [
        "falcon_mamba.modeling_falcon_mamba.FalconMambaMixer",
        "jamba.modeling_jamba.JambaMambaMixer",
        "zamba.modeling_zamba.ZambaMambaMixer",
        "zamba2.modeling_zamba2.Zamba2MambaMixer",
        "bamba.modeling_bamba.BambaMixer",
        "falcon_h1.modeling_falcon_h1.FalconH1Mixer",
        "granitemoehybrid.modeling_granitemoehybrid.GraniteMoeHybridMambaLayer",
        "mamba.modeling_mamba.MambaMixer",
        "mamba2.modeling_mamba2.Mamba2Mixer",
    ],
)
def test_mixers_of_other_models_are_refused_by_name(kind: Block, other: str) -> None:
    module, _, name = f"transformers.models.{other}".rpartition(".")
    if name == ("MambaMixer" if kind is MambaBlock else "Mamba2Mixer"):
        pytest.skip("this is the kind that it takes")
    mixer = nn.Module.__new__(getattr(importlib.import_module(module), name))
    nn.Module.__init__(mixer)  # its weights do not matter
    with pytest.raises(ValueError, match=f"mixer='.*{name}' is not allowed"):
        kind.from_hf(mixer)


def add_a_part(mixer: Any) -> None:
    mixer.b_norm = nn.LayerNorm(6)


def add_a_weight(mixer: Any) -> None:
    mixer.temperature = nn.Parameter(torch.ones(1))


def add_a_buffer(mixer: Any) -> None:
    mixer.register_buffer("b_rms", torch.ones(6), persistent=False)


def replace_a_projection(mixer: Any) -> None:
    class Adapted(nn.Linear):
        pass

    mixer.in_proj = Adapted(WIDTH, mixer.in_proj.out_features, bias=False)


def drop_a_bias(mixer: Any) -> None:
    mixer.out_proj.bias = None


def stretch_the_convolution(mixer: Any) -> None:
    mixer.conv1d.dilation = (2,)


def reshape_a_weight(mixer: Any) -> None:
    mixer.D = nn.Parameter(torch.ones(1))


def parametrize(mixer: Any) -> None:
    nn.utils.parametrizations.weight_norm(mixer.out_proj)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (add_a_part, "mixer.b_norm='torch.nn.modules.normalization.LayerNorm'"),
        (add_a_weight, "mixer's weights='temperature'"),
        (add_a_buffer, "mixer's buffers='b_rms'"),
        (replace_a_projection, "mixer.in_proj='.*Adapted'"),
        (drop_a_bias, "mixer's weights without='out_proj.bias'"),
        (stretch_the_convolution, r"mixer.conv1d.dilation=\(2,\)"),
        (reshape_a_weight, r"shape of mixer's D=\(1,\)"),
        (parametrize, "mixer.out_proj='.*ParametrizedLinear'"),
    ],
)
@pytest.mark.parametrize("kind", BOTH)
def test_part_that_is_not_known_is_refused_by_name(kind: Block, change: Callable[[Any], None], named: str) -> None:
    mixer = mixer_of(kind, use_bias=True)
    change(mixer)
    with pytest.raises(ValueError, match=named):
        kind.from_hf(mixer)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("kind", BOTH)
def test_other_activation_is_refused(kind: Block, activation: str) -> None:
    with pytest.raises(ValueError, match=f"activation='{activation}' is not allowed: it must be silu"):
        kind.from_hf(mixer_of(kind, hidden_act=activation))


def test_norm_over_other_groups_is_refused() -> None:
    mixer = mixer_of(Mamba2Block)
    mixer.norm.group_size = 48
    with pytest.raises(ValueError, match=r"mixer.norm.group_size=48 is not allowed: it must be 24"):
        Mamba2Block.from_hf(mixer)
