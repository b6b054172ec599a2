"""Loads models by name: from the hub, a folder, the project's own small models, or with random weights.

load_model("tiny-bitnet")                              # included, byte-level, 3 MB
load_model("microsoft/bitnet-b1.58-2B-4T", device="cuda")
load_model("random-bitnet")                            # two layers of random, quantised weights
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitNetConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.utils import logging

from harness.common.packaged import packaged_models
from harness.runner.plan import resolve_device
from lsh_bitnet.quantised import quantise
from tasks.byte_tokenizer import ByteTokenizer
from tasks.tokenizer import Tokenizer, load_tokenizer

HUB: Mapping[str, str] = MappingProxyType(
    {
        "bitnet-2b": "microsoft/bitnet-b1.58-2B-4T",
        "bitnet-2b-bf16": "microsoft/bitnet-b1.58-2B-4T-bf16",
    }
)
DTYPES = ("auto", "float32", "bfloat16", "float16")
READ = (".json", ".safetensors", ".model", ".txt")  # suffixes of the files that loading a model reads
SMALL = packaged_models()
RANDOM: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"bitnet": BitNetConfig, "llama": LlamaConfig, "qwen3": Qwen3Config, "mistral": MistralConfig}
)


@dataclass(frozen=True)
class Loaded:
    """A causal language model in eval mode with its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer

    @property
    def positions(self) -> int | None:
        """Maximum sequence length of the model, None if there is no limit."""
        return positions_of(self.model.config.get_text_config())


def load_model(name: str, *, device: str = "cpu", dtype: str = "auto") -> Loaded:
    """Load the model `name`: a key of `HUB`, one of `SMALL`, "random-" and a key of `RANDOM`, a folder, or a hub id.

    A model whose vocabulary is bytes plus three special tokens uses the byte tokenizer; any other needs its own.
    Weights are read from safetensors only, because pickled ones can run code. Raises ValueError for a model that is
    missing or cannot be read, with how to get it, for a device that this machine does not have, and for an unknown
    dtype.
    """
    require_device(device)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not allowed: it must be {', '.join(DTYPES)}")
    if name.startswith("random-"):
        model: Any = random_model(name.removeprefix("random-"))
        return Loaded(name, _on(model if dtype == "auto" else model.to(getattr(torch, dtype)), device), ByteTokenizer())
    place = _place(name)
    if pickles := _pickles(Path(place)):
        raise ValueError(
            f"model {name!r} cannot be loaded: its weights are pickled ({pickles[0]}), which can run code when they "
            "are loaded; provide them as model.safetensors (load them where you trust them, then `save_pretrained`)"
        )
    try:
        model, missing, mismatched = _from_pretrained(place, dtype)
    except Exception as error:  # broken files raise many kinds of errors
        raise ValueError(f"model {name!r} cannot be loaded: {_in_a_line(error)}. {_how_to_get(name)}") from error
    for weights, what in ((missing, "lack"), (mismatched, "have shapes that differ from config.json for")):
        if weights:
            raise ValueError(
                f"model {name!r} cannot be loaded: its files {what} {len(weights)} of its weights, such as "
                f"{min(weights)}"
            )
    return Loaded(name, _on(model, device), _tokenizer(name, place, model.config.get_text_config().vocab_size))


def require_device(device: str) -> None:
    """Raise ValueError for a device that is not cpu, cuda, cuda:<index>, or mps, or that does not exist."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"device={device!r} is not allowed: it must be cpu, cuda, cuda:<index> or mps")
    if not resolve_device(device):
        raise ValueError(f"device={device!r} is not allowed: torch {torch.__version__} finds no such device")


def _from_pretrained(place: str, dtype: str) -> tuple[Any, set[str], set[str]]:
    """Load a model; also returns the names of missing and mismatched weights, which are initialised randomly."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    model, found = loading
    return model, set(found["missing_keys"]), {name for name, *_ in found["mismatched_keys"]}


def _tokenizer(name: str, place: str, vocabulary: int) -> Tokenizer:
    if vocabulary == ByteTokenizer.vocab_size and not any(Path(place).glob("tokenizer*")):
        return ByteTokenizer()
    try:
        return load_tokenizer(place)
    except Exception as error:  # many kinds of errors, as for weights
        raise ValueError(f"model {name!r} has no tokenizer that can be loaded: {_in_a_line(error)}") from error


def _place(name: str) -> str:
    """Return the folder or hub id behind a name."""
    if name in SMALL:
        return str(SMALL[name])
    if not re.fullmatch(r"[^\0]{1,1000}", name) or (name.startswith((".", "/", "~")) and not Path(name).is_dir()):
        raise ValueError(f"model {name[:80]!r} is not allowed: there is no such folder. {_how_to_get(name)}")
    return HUB.get(name, name)


def config_of(name: str) -> Any:
    """Load the configuration of a model's text layers, without its weights. Raises ValueError as `load_model` does."""
    if name.startswith("random-"):
        return random_model(name.removeprefix("random-")).config.get_text_config()
    try:
        return AutoConfig.from_pretrained(_place(name), trust_remote_code=False).get_text_config()
    except Exception as error:  # many kinds of errors, as for weights
        raise ValueError(f"model {name!r} cannot be loaded: {_in_a_line(error)}. {_how_to_get(name)}") from error


def tokenizer_of(name: str) -> Tokenizer:
    """Load the tokenizer of a model, without its weights. Raises ValueError as `load_model` does."""
    if name.startswith("random-"):
        return ByteTokenizer()
    return _tokenizer(name, _place(name), config_of(name).vocab_size)


def positions_of(config: Any) -> int | None:
    """Return the maximum length in a text configuration; some, such as Bloom's with relative biases, have none."""
    return getattr(config, "max_position_embeddings", None)


def shape_of(config: Any) -> dict[str, int]:
    """Return the number of heads and their width from a text configuration. Raises ValueError if it has no heads."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise ValueError(f"a model of type {config.model_type} has no attention heads")
    return {
        "heads": heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
    }


def content_of(name: str) -> str:
    """Identify the content behind a model's name by a hash or commit, which changes when the weights change.

    For a folder this is the SHA-256 of its configuration, weights, and tokenizer; for a hub id the commit in the cache
    ("" if there is none); for a random model its name.
    """
    if name.startswith("random-"):
        return name
    place = Path(_place(name))
    if place.is_dir():
        digest = hashlib.sha256()
        for path in sorted(path for path in place.iterdir() if path.suffix in READ and path.is_file()):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(2**24):
                    digest.update(block)
        return f"sha256:{digest.hexdigest()}"
    found = try_to_load_from_cache(str(place), "config.json")
    return f"commit:{Path(found).parent.name}" if isinstance(found, str) else ""


def random_model(architecture: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Build a two-layer byte-level model with random weights and grouped heads; `changes` go to its configuration.

    The weights are large enough to make attention uneven; BitNet's linears are quantised. Raises ValueError for an
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
    """Raise ValueError if a sequence is longer than the model supports."""
    if loaded.positions is not None and tokens > loaded.positions:
        raise ValueError(
            f"{tokens} tokens are not allowed: {loaded.name} supports {loaded.positions} "
            "(max_position_embeddings); use shorter sequences or another model"
        )


def _pickles(folder: Path) -> list[str]:
    """Return the pickled weight files in a folder that has no safetensors files."""
    if not os.path.isdir(folder) or any(folder.glob("*.safetensors")):  # noqa: PTH112, Path raises for a long name
        return []
    return sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(kind))


def _in_a_line(error: BaseException) -> str:
    """Return an error's message in one line, or its type if there is no message."""
    message = " ".join(str(error).split()).rstrip(".:")
    message = message if len(message) <= 200 else message[:200] + "..."
    return message or type(error).__name__


def _how_to_get(name: str) -> str:
    known = [*SMALL, *HUB, *(f"random-{architecture}" for architecture in RANDOM)]
    if name in SMALL:
        return f"Its folder models/{name} is part of the repository: run from a checkout or give a folder"
    return (
        f"Known are {', '.join(known)}, a folder with config.json and weights, and any hub id; a hub model is "
        "downloaded once if there is a network (`hf download ID`), and then read from the cache"
    )
