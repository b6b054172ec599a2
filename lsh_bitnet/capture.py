"""Captures a model's own q, k, and v by layer, in files on which the harness can measure attentions.

from lsh_bitnet import capture, load_model
capture(load_model("tiny-bitnet"), text, "captured")
python -m harness.sweep conf.yml --set inputs=captured/layer_00.safetensors --set heads=4 --set kv_heads=2 ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attentions import build
from lsh_bitnet.dispatch import layer_of
from lsh_bitnet.models import Loaded, require_length
from lsh_bitnet.padding import attend, require_spans
from lsh_bitnet.results import require_place
from lsh_bitnet.swap import Swap


class _Recorder:
    """Exact attention that records its inputs."""

    def __init__(self, layers: Collection[int] | None) -> None:
        self.layers = layers
        self.kept: dict[int, dict[str, Tensor]] = {}

    def __call__(
        self,
        module: nn.Module,
        query: Float[Tensor, "B H N D"],
        key: Float[Tensor, "B G M D"],
        value: Float[Tensor, "B G M E"],
        attention_mask: Any,
        *,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Float[Tensor, "B N H E"], None]:
        layer = layer_of(module)
        if self.layers is None or layer in self.layers:
            self.kept[layer] = {
                name: x.detach().float().cpu().contiguous() for name, x in zip("qkv", (query, key, value), strict=True)
            }
        exact = build(
            "vanilla",
            heads=query.shape[1],
            head_dim=query.shape[3],
            kv_heads=key.shape[1],
            value_dim=value.shape[3],
            scale=scaling,
        )
        out = attend(exact, query, key, value, require_spans(attention_mask))
        return out.transpose(1, 2).contiguous(), None


def capture(
    loaded: Loaded, text: str | Int[Tensor, "B n"], folder: str | Path, *, layers: Collection[int] | None = None
) -> list[Path]:
    """Run the model on `text` (a string or tokens) and write each layer's q, k, and v; returns the files by layer.

    A file `layer_<index>.safetensors` holds q (B, H, n, D), k (B, G, n, D), and v (B, G, n, E) in float32, after rotary
    positions, as `inputs:` in conf.yml expects. Its metadata identify the model and the tokens. layers: indices; all if
    None.

    Raises ValueError, before the model runs, for no tokens, for more tokens than the model supports, for tokens outside
    its vocabulary, for a layer that it does not have, and for a folder that is not writable or holds files of another
    model or text.
    """
    ids = torch.tensor([loaded.tokenizer.encode(text)]) if isinstance(text, str) else text
    _require_tokens(loaded, ids)
    count = loaded.model.config.get_text_config().num_hidden_layers
    if wrong := sorted(set(layers or ()) - set(range(count))):
        raise ValueError(f"layers={wrong} are not allowed: the model has layers 0 to {count - 1}")
    folder, of = Path(folder), _identity(loaded, ids)
    require_place(folder, "folder")
    _require_own(folder, of)
    recorder = _Recorder(layers)
    with Swap(loaded.model, recorder, log=None), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        loaded.model(ids.to(loaded.model.device), use_cache=False)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for layer, tensors in sorted(recorder.kept.items()):
        files.append(folder / f"layer_{layer:02d}.safetensors")
        save_file(tensors, files[-1], metadata=of)
    return files


def _require_tokens(loaded: Loaded, ids: Tensor) -> None:
    if ids.ndim != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise ValueError(
            f"text of shape {tuple(ids.shape)} is not allowed: it must be (batch, tokens) with at least one of each"
        )
    require_length(loaded, ids.shape[1])
    known = loaded.model.config.get_text_config().vocab_size
    if not 0 <= int(ids.min()) <= int(ids.max()) < known:
        raise ValueError(f"text contains tokens outside 0 to {known - 1}, the vocabulary of {loaded.name}")


def _identity(loaded: Loaded, ids: Tensor) -> dict[str, str]:
    """Return what identifies a captured file: the model's name, and hashes of its current weights and of the tokens."""
    weights = hashlib.sha256()
    for name, x in loaded.model.state_dict().items():
        weights.update(name.encode())
        weights.update(x.detach().cpu().contiguous().view(torch.uint8).numpy() if x.ndim else str(x.item()).encode())
    tokens = hashlib.sha256(ids.to(torch.int64).cpu().numpy().tobytes())
    return {"model": loaded.name, "weights": weights.hexdigest(), "tokens": tokens.hexdigest()}


def _require_own(folder: Path, of: dict[str, str]) -> None:
    """Raise ValueError if the folder already holds captured files of another model or text."""
    for path in folder.glob("layer_*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                found = file.metadata()
        except (SafetensorError, OSError):
            found = None
        if found != of:
            raise ValueError(f"{path} is from another model or text, or is damaged: use another folder, or remove it")
