"""Models by name: on the hub, in a folder, among the project's own small ones, or random ones to try things on.

load_model("tiny-bitnet")                              # trained here, byte-level, 3 MB
load_model("microsoft/bitnet-b1.58-2B-4T", device="cuda")
load_model("random-bitnet")                            # two layers of random, quantised weights
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from lsh_bitnet.quantised import quantise
from tasks.byte_tokenizer import ByteTokenizer
from tasks.tokenizer import Tokenizer, load_tokenizer

OWN = Path(__file__).parents[1] / "models"
HUB: Mapping[str, str] = MappingProxyType(
    {
        "bitnet-2b": "microsoft/bitnet-b1.58-2B-4T",
        "bitnet-2b-bf16": "microsoft/bitnet-b1.58-2B-4T-bf16",
    }
)
SMALL = ("tiny-bitnet", "written-induction")
RANDOM: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"bitnet": BitNetConfig, "llama": LlamaConfig, "qwen3": Qwen3Config, "mistral": MistralConfig}
)


@dataclass(frozen=True)
class Loaded:
    """A causal language model in eval mode, and the tokenizer that its tokens are of."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer

    @property
    def positions(self) -> int:
        """The longest sequence that the model was made for."""
        return self.model.config.get_text_config().max_position_embeddings


def load_model(name: str, *, device: str = "cpu", dtype: str = "auto") -> Loaded:
    """The model called `name`: a key of `HUB`, one of `SMALL`, "random-" and a key of `RANDOM`, a folder, or a hub id.

    A model whose vocabulary is bytes and three special tokens reads bytes; any other needs a tokenizer beside it.
    Raises ValueError for a model that is not there, with how to get it.
    """
    if name.startswith("random-"):
        return Loaded(name, _on(random_model(name.removeprefix("random-")), device), ByteTokenizer())
    place = str(OWN / name) if name in SMALL else HUB.get(name, name)
    try:
        model = _on(AutoModelForCausalLM.from_pretrained(place, dtype=dtype), device)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be loaded: {_first_line(error)}. {_how_to_get(name)}") from error
    tokenizer = ByteTokenizer() if model.config.vocab_size == ByteTokenizer.vocab_size else load_tokenizer(place)
    return Loaded(name, model, tokenizer)


def random_model(architecture: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A two-layer byte-level model of random weights with grouped heads; `changes` go to its configuration.

    Weights are wide enough that attention is uneven; BitNet's linears are quantised. Raises ValueError for an
    architecture that is not in `RANDOM`.
    """
    if architecture not in RANDOM:
        raise ValueError(f"architecture {architecture!r} is not allowed: it must be {', '.join(RANDOM)}")
    sizes: dict[str, Any] = {
        "vocab_size": ByteTokenizer.vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.5,
        "pad_token_id": ByteTokenizer.pad_id,
        "bos_token_id": ByteTokenizer.bos_id,
        "eos_token_id": ByteTokenizer.eos_id,
        **({"sliding_window": None} if architecture == "mistral" else {}),
    }
    if architecture == "bitnet":
        del sizes["head_dim"]  # BitNet's is always hidden_size over heads
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(RANDOM[architecture](**{**sizes, **changes}))
    torch.random.set_rng_state(state)
    if architecture == "bitnet":
        quantise(model)
    return model.eval()


def _on(model: Any, device: str) -> PreTrainedModel:
    return model.to(device).eval()


def require_length(loaded: Loaded, tokens: int) -> None:
    """Raise ValueError where a sequence is longer than the model was made for."""
    if tokens > loaded.positions:
        raise ValueError(
            f"{tokens} tokens are not allowed: {loaded.name} was made for {loaded.positions} "
            "(max_position_embeddings); use shorter sequences or another model"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _how_to_get(name: str) -> str:
    known = [*SMALL, *HUB, *(f"random-{architecture}" for architecture in RANDOM)]
    if name in SMALL:
        return f"Its folder models/{name} comes with the repository: run from a checkout, or give a folder"
    return (
        f"Known are {', '.join(known)}, a folder with config.json and weights, and any hub id; a hub model is "
        "downloaded once where there is a network (`hf download ID`), and then found in the cache"
    )
