"""Models by name: random ones, the project's own, folders; and what is said of those that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights

from lsh_bitnet import attend_with, load_model
from lsh_bitnet.models import SMALL, random_model, require_length
from lsh_bitnet.quantised import quantise
from tasks.byte_tokenizer import ByteTokenizer
from tests.lsh_bitnet.models import ARCHITECTURES, close, loaded, logits, shared, tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_random_model_is_the_same_every_time_and_attends_unevenly(architecture: str) -> None:
    one, two = load_model(f"random-{architecture}").model, random_model(architecture)
    assert torch.equal(logits(one, tokens()), logits(two, tokens()))
    with attend_with(one, "bit_sampling", bits=0, window=1, local=1):
        assert not close(logits(one, tokens()), logits(two, tokens()), 0.1)


def test_making_a_random_model_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    random_model("llama")
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("name", SMALL)
def test_the_projects_own_models_load_and_read_bytes(name: str) -> None:
    found = load_model(name)
    assert isinstance(found.tokenizer, ByteTokenizer)
    assert found.positions >= 2048
    assert torch.isfinite(logits(found.model, tokens(1, 20))).all()


def test_tiny_bitnet_comes_back_with_quantised_linears_and_grouped_heads() -> None:
    model = load_model("tiny-bitnet").model
    layer = model.model.layers[0]
    assert all(
        isinstance(linear, AutoBitLinear) and linear.online_quant
        for linear in (layer.self_attn.q_proj, layer.mlp.down_proj)
    )
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    folder = Path(__file__).parents[2] / "models" / "tiny-bitnet"
    assert (folder / "model.safetensors").stat().st_size <= 12e6


@pytest.mark.parametrize("training", [True, False])
def test_quantised_linears_are_in_training_where_the_linears_were(training: bool) -> None:
    model = quantise(torch.nn.Sequential(torch.nn.Linear(4, 4)).train(training))
    assert [module.training for module in model.modules()] == [training] * 2


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    shared("qwen3").save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(str(tmp_path)).model, tokens()), logits(shared("qwen3"), tokens()))


def test_a_missing_model_is_refused_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"model 'nobody/nothing' cannot be loaded: .* Known are tiny-bitnet, .*hf"):
        load_model("nobody/nothing")


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="architecture 'rnn' is not allowed: it must be bitnet, llama"):
        load_model("random-rnn")


def test_sequences_past_the_models_length_are_refused() -> None:
    require_length(loaded(shared("llama")), 4096)
    with pytest.raises(ValueError, match="4097 tokens are not allowed: tiny was made for 4096"):
        require_length(loaded(shared("llama")), 4097)


def test_quantising_keeps_the_weights_and_rounds_them_as_it_runs() -> None:
    model = random_model("llama")
    plain, want = logits(model, tokens()), {name: x.clone() for name, x in model.state_dict().items()}
    quantise(model)
    assert all(torch.equal(x, want[name]) for name, x in model.state_dict().items())
    assert not close(logits(model, tokens()), plain, 1e-2)
    linear = model.model.layers[0].mlp.up_proj
    assert isinstance(linear, AutoBitLinear)
    columns = linear(torch.eye(64))  # activations of a unit vector lose nothing to 8 bits
    assert len(columns.unique()) == 3


def test_a_packed_model_gives_the_logits_of_the_online_one_under_a_swap() -> None:
    """`BitLinear`, two bits a weight, as the hub's packed checkpoint is stored."""
    model = random_model("bitnet")
    with attend_with(model, "simhash", bits=2, window=8, local=4):
        want = logits(model, tokens())
    for name, module in list(model.named_modules()):
        if isinstance(module, AutoBitLinear):
            scale = 1 / module.weight.abs().mean().clamp(min=1e-5)
            packed = BitLinear(module.in_features, module.out_features, bias=False, dtype=torch.float32)
            ternary = (module.weight.detach() * scale).round().clamp(-1, 1)
            packed.load_state_dict({"weight": pack_weights(ternary), "weight_scale": scale.detach()[None]})
            model.set_submodule(name, packed)
    with attend_with(model, "simhash", bits=2, window=8, local=4):
        got = logits(model, tokens())
    assert sum(isinstance(module, BitLinear) for module in model.modules()) == 14
    assert close(got, want, 1e-4)
