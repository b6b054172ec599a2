"""Models by name: random ones, the project's own, folders; and what is said of those that are not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights

from lsh_bitnet import attend_with, load_model
from lsh_bitnet.models import SMALL, Loaded, content_of, random_model, require_length
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
    assert found.positions is not None
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


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def lacking(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled weights": (pickled, r"its weights are pickled \(pytorch_model\.bin\)"),
    "cut weights": (cut, "incomplete metadata"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "header too small"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "lacking weights": (lacking, r"its files lack 1 of its weights, such as model\.layers\.1\.mlp\.up_proj\.weight"),
    "weights of another shape": (lambda folder: edit(folder, intermediate_size=32), "have shapes that differ from"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "Unrecognized model"),
    "a configuration that is not valid JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "not a valid JSON",
    ),
    "an unknown architecture": (lambda folder: edit(folder, model_type="nonesuch"), "model type `nonesuch`"),
    "no language model": (lambda folder: edit(folder, model_type="t5"), "Unrecognized configuration class"),
    "a value of a wrong type": (lambda folder: edit(folder, num_attention_heads="x"), "expected int, got str"),
    "code of its own": (
        lambda folder: edit(folder, model_type="own", auto_map={"AutoConfig": "a.A", "AutoModelForCausalLM": "b.B"}),
        "custom code",
    ),
    "a tokenizer that is not valid JSON": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "has no tokenizer that can be loaded",
    ),
}


@pytest.mark.parametrize(("broken", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_refused_in_one_line(
    broken: Callable[[Path], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared("llama").save_pretrained(tmp_path)
    broken(tmp_path)
    capsys.readouterr()
    with pytest.raises(ValueError, match=message) as refused:
        load_model(str(tmp_path))
    assert len(str(refused.value).splitlines()) == 1
    assert capsys.readouterr() == ("", "")


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    random_model("llama", vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer that can be loaded"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "/nowhere", "./nowhere"], ids=repr)
def test_a_name_that_can_be_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not allowed: there is no such folder\. Known are tiny-bitnet"):
        load_model(name)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", "", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device: str) -> None:
    with pytest.raises(ValueError, match=r"device=.* is not allowed"):
        load_model("nobody/nothing", device=device)


def test_a_dtype_holds_for_every_kind_of_model(tmp_path: Path) -> None:
    shared("llama").save_pretrained(tmp_path)
    for name in ("random-llama", str(tmp_path)):
        assert load_model(name, dtype="bfloat16").model.dtype == torch.bfloat16
        assert load_model(name).model.dtype == torch.float32
    with pytest.raises(ValueError, match="dtype='int8' is not allowed: it must be auto, float32"):
        load_model("random-llama", dtype="int8")


def test_content_changes_with_weights_and_not_with_what_lies_beside_them(tmp_path: Path) -> None:
    random_model("llama", seed=1).save_pretrained(tmp_path)
    first = content_of(str(tmp_path))
    (tmp_path / "README.md").write_text("words")
    assert content_of(str(tmp_path)) == first
    random_model("llama", seed=2).save_pretrained(tmp_path)
    assert content_of(str(tmp_path)) != first
    assert content_of("random-llama") == "random-llama"


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="architecture 'rnn' is not allowed: it must be bitnet, llama"):
        load_model("random-rnn")


def test_a_model_without_a_longest_sequence_takes_any() -> None:
    model: Any = BloomForCausalLM(BloomConfig(vocab_size=259, hidden_size=64, n_layer=1, n_head=4))
    found = Loaded("bloom", model, ByteTokenizer())
    assert found.positions is None
    require_length(found, 10**9)


def test_sequences_past_the_models_length_are_refused() -> None:
    require_length(loaded(shared("llama")), 4096)
    with pytest.raises(ValueError, match="4097 tokens are not allowed: tiny supports 4096"):
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
