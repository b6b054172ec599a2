"""Layers that are computed again in the backward pass give the gradients of layers that are kept, autocast or not."""

from __future__ import annotations

import pytest
import torch

from attentions import BACKENDS
from lsh_v2.model.language_model import LSHv2Model
from tests.lsh_v2.small import small_config, token_ids


@pytest.mark.parametrize("half", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", BACKENDS)
def test_checkpointed_layers_have_the_gradients_of_kept_ones(attention: str, half: torch.dtype | None) -> None:
    ids, found = token_ids(40), []
    for again in (False, True):
        config = small_config(attention=attention, reversible=False, gradient_checkpoint=again)
        model = LSHv2Model(config).train()
        calls = [0]
        model.block(0).mixer.attention.register_forward_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
            loss = model(ids, ids, logits_to_keep=0)["loss"]
        loss.backward()
        found.append((calls[0], [p.grad for p in model.parameters()]))
    (kept_calls, kept), (again_calls, again_grads) = found
    assert again_calls == 2 * kept_calls
    for one, two in zip(kept, again_grads, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert one.isfinite().all()
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
