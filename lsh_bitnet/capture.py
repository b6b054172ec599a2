"""A model's own q, k and v, layer by layer, as files that the harness measures attentions on.

from lsh_bitnet import capture, load_model
capture(load_model("tiny-bitnet"), text, "captured")
python -m harness.sweep conf.yml --set inputs=captured/layer_00.safetensors --set heads=4 --set kv_heads=2 ...
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from attentions import build
from lsh_bitnet.dispatch import layer_of
from lsh_bitnet.models import Loaded, require_length
from lsh_bitnet.padding import attend, require_spans
from lsh_bitnet.swap import Swap


class _Recorder:
    """Exact attention that keeps what it was given."""

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
    """Run the model on `text` (a string, or tokens) and write each layer's q, k and v; returns the files, by layer.

    A file `layer_<index>.safetensors` holds q (B, H, n, D), k (B, G, n, D) and v (B, G, n, E) in float32, after
    rotary positions: what `inputs:` in conf.yml reads. layers: indices; all if None.

    Raises ValueError for more tokens than the model was made for and for a layer that it does not have.
    """
    ids = torch.tensor([loaded.tokenizer.encode(text)]) if isinstance(text, str) else text
    require_length(loaded, ids.shape[1])
    recorder = _Recorder(layers)
    with Swap(loaded.model, recorder, log=None), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        loaded.model(ids.to(loaded.model.device), use_cache=False)
    if missing := set(layers or ()) - recorder.kept.keys():
        raise ValueError(f"layers={sorted(missing)} are not allowed: the model has {max(recorder.kept, default=0) + 1}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for layer, tensors in sorted(recorder.kept.items()):
        files.append(folder / f"layer_{layer:02d}.safetensors")
        save_file(tensors, files[-1])
    return files
