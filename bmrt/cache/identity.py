"""Content digests of what results depend on besides settings and questions: weights, tokenizer, code, and libraries."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import torch
import transformers

from harness.common.source_hash import source_hash

PIECE = 2**24  # values hashed at a time; bounds host memory if weights are on another device
NAMES = ("_name_or_path", "transformers_version")  # keys of a configuration that do not affect results
COMMANDS = ("babilong", "longbench", "ruler", "ablation", "run_single_sample")


def model_digest(model: Any) -> str:
    """Digest a model's configuration and weights, independent of where they were loaded from."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for config in (model.config, getattr(model, "generation_config", None)):
        facts = {} if config is None else config.to_dict()
        digest.update(_text({name: value for name, value in facts.items() if name not in NAMES}))
    for name, x in sorted(model.state_dict().items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\0".encode())
        for piece in x.detach().reshape(-1).split(PIECE):
            digest.update(piece.contiguous().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()[:16]


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest a tokenizer's vocabulary, rules, special tokens, and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules = {name: value for name, value in rules.items() if name not in ("truncation", "padding")}  # set by calls
    else:
        rules = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
    facts = [type(tokenizer).__name__, rules]
    facts += [getattr(tokenizer, name, None) for name in ("special_tokens_map", "chat_template")]
    return hashlib.sha256(_text(facts)).hexdigest()[:16]


@cache
def code_digest() -> dict[str, str]:
    """Return a digest of this package and the project code it imports, and the library versions."""
    code = source_hash(*(f"bmrt.{name}" for name in COMMANDS))
    return {"code": code, "torch": torch.__version__, "transformers": transformers.__version__}


def _text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
