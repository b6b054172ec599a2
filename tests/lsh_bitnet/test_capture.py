"""Captured q, k and v are what the layers attend with, in the files that the harness reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attentions import build
from harness.inputs.file import File
from lsh_bitnet import capture
from lsh_bitnet.models import random_model
from tests.harness.cases import a_case
from tests.lsh_bitnet.models import ARCHITECTURES, close, loaded, logits, shared, tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_captured_tensors_give_the_layers_own_output(architecture: str, tmp_path: Path) -> None:
    model, ids = shared(architecture), tokens(2, 40)
    files = capture(loaded(model), ids, tmp_path)
    assert [file.name for file in files] == ["layer_00.safetensors", "layer_01.safetensors"]
    seen = {}
    layer = model.model.layers[1].self_attn
    inner = layer.attn_sub_norm if architecture == "bitnet" else layer.o_proj
    hook = inner.register_forward_pre_hook(lambda module, given: seen.update(out=given[0]))
    logits(model, ids)
    hook.remove()
    stored = load_file(files[1])
    assert {name: tuple(x.shape) for name, x in stored.items()} == {
        "q": (2, 4, 40, 16),
        "k": (2, 2, 40, 16),
        "v": (2, 2, 40, 16),
    }
    out = build("vanilla", heads=4, head_dim=16, kv_heads=2)(**stored)
    assert close(out.transpose(1, 2).flatten(2), seen["out"])


def test_the_harness_reads_what_is_captured(tmp_path: Path) -> None:
    (file,) = capture(loaded(shared("llama")), "some text to attend to, " * 4, tmp_path, layers=[1])
    case = a_case(n=48, batch=1, heads=4, kv_heads=2, head_dim=16, value_dim=16, inputs=str(file))
    inputs = File(str(file))
    assert inputs.why_not(case) == ""
    assert torch.equal(inputs.make(case, 0).q, load_file(file)["q"][:, :, :48])


def test_a_layer_that_is_not_there_and_a_text_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layers=\[7\] are not allowed"):
        capture(loaded(shared("llama")), "text", tmp_path, layers=[0, 7])
    with pytest.raises(ValueError, match="5000 tokens are not allowed"):
        capture(loaded(shared("llama")), "x" * 5000, tmp_path)
    for wrong in (
        torch.zeros(0),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(1, 4),
        "",
    ):
        with pytest.raises(ValueError, match="text of shape"):
            capture(loaded(shared("llama")), wrong, tmp_path)
    for outside in (-1, 259):
        with pytest.raises(ValueError, match="text contains tokens outside 0 to 258"):
            capture(loaded(shared("llama")), torch.tensor([[0, outside]]), tmp_path)
    with pytest.raises(ValueError, match="folder: /dev/null/x cannot be created"):
        capture(loaded(shared("llama")), "text", "/dev/null/x")
    with pytest.raises(ValueError, match="folder: /proc/x cannot be written"):
        capture(loaded(shared("llama")), "text", "/proc/x")
    assert not list(tmp_path.iterdir())


def test_files_of_another_model_or_text_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    first = capture(loaded(shared("llama")), "some text", tmp_path)
    before = [load_file(file) for file in first]
    assert capture(loaded(shared("llama")), "some text", tmp_path) == first  # the same again
    for model, text in (
        (shared("llama"), "other text"),
        (shared("qwen3"), "some text"),
        (random_model("llama", seed=9), "some text"),
    ):
        with pytest.raises(ValueError, match="is from another model or text"):
            capture(loaded(model), text, tmp_path, layers=[0])
    for file, tensors in zip(first, before, strict=True):
        assert all(torch.equal(x, tensors[name]) for name, x in load_file(file).items())
    first[1].write_bytes(first[1].read_bytes()[:100])
    with pytest.raises(ValueError, match="or is damaged"):
        capture(loaded(shared("llama")), "some text", tmp_path)
