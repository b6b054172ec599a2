"""What a model's attention has and a swap would leave out is refused by its name, before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    GptOssConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from lsh_bitnet import attend_with
from lsh_bitnet.features import require_known
from lsh_bitnet.models import random_model
from tests.lsh_bitnet.models import logits, shared, tokens

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}


def test_capped_scores_are_refused() -> None:
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES))
    with pytest.raises(ValueError, match=r"with attn_logit_softcapping=50\.0 is not allowed: .* support capped scores"):
        attend_with(model, "flash")


def test_capped_scores_that_are_switched_off_are_not() -> None:
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES, attn_logit_softcapping=None)).eval()
    ids = tokens(1, 20)
    want = logits(model, ids)
    with attend_with(model, "flash"):
        assert torch.allclose(logits(model, ids), want, atol=1e-5)


def test_sinks_are_refused() -> None:
    model = AutoModelForCausalLM.from_config(GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1))
    with pytest.raises(
        ValueError,
        match=r"model\.layers\.0\.self_attn\.sinks is not allowed: these attentions do not support attention sinks",
    ):
        attend_with(model, "flash")


def test_score_biases_of_an_encoder_and_decoder_are_refused() -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match=r"T5ForConditionalGeneration with (relative_attention|is_encoder)"):
        attend_with(model, "flash")


def test_biases_by_distance_are_refused() -> None:
    model: Any = random_model("llama")
    model.config.alibi = True
    with pytest.raises(ValueError, match=r"LlamaForCausalLM with alibi=True is not allowed: .* support score biases"):
        attend_with(model, "flash")


def test_attention_that_is_not_causal_is_refused() -> None:
    config = BertConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    with attend_with(model, "flash"), pytest.raises(ValueError, match="not allowed"):
        model(tokens(1, 8))


def test_dropout_is_refused_in_training_and_only_there() -> None:
    model = random_model("llama", attention_dropout=0.1)
    with attend_with(model, "flash"):
        logits(model, tokens(1, 8))
        with pytest.raises(ValueError, match=r"attention_dropout=0\.1 is not allowed"):
            model.train()(tokens(1, 8))


def test_attention_weights_are_refused() -> None:
    model = shared("llama")
    with attend_with(model, "flash"), pytest.raises(ValueError, match="output_attentions is not allowed"):
        logits(model, tokens(1, 8), output_attentions=True)


def test_sequences_given_by_their_lengths_are_refused() -> None:
    model = shared("llama")
    lengths = torch.tensor([0, 4, 8], dtype=torch.int32)
    with attend_with(model, "flash"), pytest.raises(ValueError, match=r"cu_seq_lens_q is .* support packed"):
        logits(model, tokens(1, 8), cu_seq_lens_q=lengths, cu_seq_lens_k=lengths, max_length_q=4, max_length_k=4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("softcap", 30.0),
        ("s_aux", torch.zeros(2)),
        ("position_bias", torch.zeros(1, 2, 4, 4)),
        ("block_indices", torch.zeros(2, dtype=torch.int64)),
        ("cache", object()),
        ("is_causal", False),
        ("whatever_comes_next", torch.zeros(2)),
    ],
)
def test_what_a_layer_asks_beyond_its_inputs_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}.* is not allowed: these attentions do not support "):
        require_known({name: value})


def test_what_asks_for_nothing_passes() -> None:
    require_known({"position_ids": torch.zeros(1, 4), "use_cache": True, "softcap": None, "output_attentions": False})
    require_known({"is_causal": True, "num_items_in_batch": torch.tensor(4), "position_embeddings": (torch.zeros(1),)})
