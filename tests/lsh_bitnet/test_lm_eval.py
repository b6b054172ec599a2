"""EleutherAI's lm-evaluation-harness scores a model with the attention that was swapped into it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

from lsh_bitnet import attend_with
from tests.lsh_bitnet.models import logits, shared

Instance = pytest.importorskip("lm_eval.api.instance").Instance
HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM

CONTEXT, CONTINUATION = "the attention of this model", " was swapped"


def own_score(model: Any, tokenizer: Any) -> float:
    """Log-probability of the continuation, by hand."""
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (CONTEXT, CONTINUATION))
    ids = torch.tensor([before + after])
    found = logits(model, ids)[0].log_softmax(-1)
    places = torch.arange(len(before) - 1, len(before) + len(after) - 1)
    return found[places, ids[0, places + 1]].sum().item()


def test_its_log_likelihood_is_that_of_the_swapped_model() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    model = shared("llama")
    request = Instance(request_type="loglikelihood", doc={}, arguments=(CONTEXT, CONTINUATION), idx=0)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=128, add_bos_token=False)
    ((own, _),) = wrapped.loglikelihood([request], disable_tqdm=True)
    with attend_with(model, "simhash", bits=2, window=4, local=2):
        ((swapped, _),) = wrapped.loglikelihood([request], disable_tqdm=True)
        want = own_score(model, tokenizer)
    assert swapped == pytest.approx(want, rel=1e-4)
    assert own == pytest.approx(own_score(model, tokenizer), rel=1e-4)
    assert abs(swapped - own) > 0.01 * abs(own)
