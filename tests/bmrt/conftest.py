"""A model of bytes on disk, made once, as the commands load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.bmrt.models import SHAPE


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random layers over bytes, without a tokenizer of its own."""
    path = tmp_path_factory.mktemp("models") / "tiny-bytes"
    torch.manual_seed(0)
    special: Any = {"vocab_size": 259, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
    settings: Any = SHAPE | special | {"max_position_embeddings": 16384}
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(path)
    return path
