"""The layers: equal to dense softmax of codewords, trainable, and clear about what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.text import TextBytes
from transformer_vq.nn.attn_vq import VQAttention, VQAttentionQK
from transformer_vq.nn.config_spec import TransformerConfig

WIDTH = 24
LAYERS = (VQAttention, VQAttentionQK)
Layer = VQAttention | VQAttentionQK


def layer(kind: type[Layer], **settings: Any) -> Layer:
    """A float64 layer in eval mode whose codebooks a training call has started."""
    torch.manual_seed(0)
    config = {"d_model": WIDTH, "n_head": 2, "n_code": 9, "block_len": 8, "d_v": 5, **settings}
    made = kind(TransformerConfig(**config)).double()
    made.run(torch.randn(2, 40, WIDTH, dtype=torch.float64))
    return made.eval()


def sample(length: int = 50, seed: int = 1) -> Tensor:
    return torch.randn(2, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("settings", [{}, {"n_head": 1, "n_code_q": 4, "gated": False}, {"n_head": 4, "block_len": 3}])
def test_layer_and_its_gradients_are_those_of_dense_softmax(
    kind: type[Layer], causal: bool, settings: dict[str, Any]
) -> None:
    made, x = layer(kind, causal=causal, **settings), sample().requires_grad_()
    out, want = made.run(x).out, made.run(x, quadratic=True).out
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-11)
    leaves = [x, *made.parameters()]
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (out, want)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(made(x), want, rtol=1e-9, atol=1e-11)


def test_layer_is_softmax_of_both_codewords_written_out() -> None:
    made, x = layer(VQAttentionQK, n_head=1, gated=False, d_v=WIDTH), sample()
    assert made.query_quantiser is not None

    def quantised(y: Tensor, book: Tensor) -> Tensor:
        y = F.layer_norm(y, (WIDTH,)) / WIDTH**0.25
        return book[torch.cdist(y, book).argmin(-1)]

    q = quantised(made.to_q(x), made.query_quantiser.codebook[0])
    k = quantised(made.to_k(x), made.key_quantiser.codebook[0])
    scores = (q @ k.mT).masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(made(x), made.to_out(scores.softmax(-1) @ made.to_v(x)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", LAYERS)
def test_state_continues_a_sequence(kind: type[Layer]) -> None:
    made, x = layer(kind), sample()
    state, outs = None, []
    for piece in x.split([1, 30, 19], dim=1):
        result = made.run(piece, state=state)
        state = result.state
        outs.append(result.out)
    torch.testing.assert_close(torch.cat(outs, dim=1), made(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("causal", [True, False])
def test_documents_do_not_see_each_other(kind: type[Layer], causal: bool) -> None:
    made, x = layer(kind, causal=causal), sample()
    out = made(x, torch.tensor([[4] * 13 + [7] * 37, [1] * 50]))
    torch.testing.assert_close(out[:1, :13], made(x[:1, :13]), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(out[:1, 13:], made(x[:1, 13:]), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(out[1:], made(x[1:]), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(out[0, 13:], made(x)[0, 13:])


def test_a_state_goes_on_only_in_its_own_document() -> None:
    made, x = layer(VQAttentionQK), sample()
    first = made.run(x[:, :20], torch.tensor([[1] * 20, [1] * 5 + [2] * 15]))
    documents = torch.tensor([[1] * 30, [3] * 30])
    out = made.run(x[:, 20:], documents, first.state).out
    torch.testing.assert_close(out[0], made(x[:1])[0, 20:], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(out[1], made(x[1:, 20:])[0], rtol=1e-9, atol=1e-11)


def test_full_attention_has_as_many_distinct_outputs_as_query_codes() -> None:
    made, x = layer(VQAttentionQK, causal=False, gated=False, n_head=1, n_code_q=6), sample(300)
    with torch.no_grad():
        assert len(made(x[:1]).round(decimals=9).unique(dim=1)[0]) <= 6


@pytest.mark.parametrize("kind", LAYERS)
def test_eval_changes_nothing_and_training_moves_codebooks_after_the_output(kind: type[Layer]) -> None:
    made, x = layer(kind), sample()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    want = made.run(x).out
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    result = made.train().run(x)
    torch.testing.assert_close(result.out, want)
    assert not torch.equal(made.key_quantiser.codebook, before["key_quantiser.sums"])
    assert made.key_quantiser.counts.ne(before["key_quantiser.counts"]).any()


def test_losses_and_figures_are_returned_and_reach_the_projections() -> None:
    made = layer(VQAttentionQK, c_beta=0.5).train()
    result = made.run(sample())
    assert set(result.figures) == {
        f"{what}_{name}" for what in ("keys", "queries") for name in ("commitment", "codebook", "perplexity")
    }
    assert 1 < result.figures["keys_perplexity"] <= 9
    want = 0.5 * (result.figures["keys_commitment"] + result.figures["queries_commitment"])
    assert result.loss.item() == pytest.approx(want)
    result.loss.backward()
    assert made.to_k.weight.grad is not None
    assert made.to_k.weight.grad.any()


def test_mounted_codebooks_are_used_and_others_refused() -> None:
    made, x = layer(VQAttentionQK), sample()
    assert isinstance(made, VQAttentionQK)
    before = made(x)
    draw = torch.Generator().manual_seed(5)
    books = [torch.randn(2, 9, 12, dtype=torch.float64, generator=draw) for _ in range(2)]
    made.mount(*books)
    torch.testing.assert_close(made.key_quantiser.codebook, books[1])
    assert not torch.allclose(made(x), before)
    with pytest.raises(ValueError, match=r"shape \(2, 8, 12\) is not allowed: it must be \(2, 9, 12\)"):
        made.mount(books[0], books[1][:, :8])


def test_dropout_drops_entries_and_whole_sequences_in_training_alone() -> None:
    made = layer(VQAttention, p_dropres=0.5)
    x = sample().expand(-1, -1, -1).repeat(20, 1, 1)
    assert (made(x) != 0).all()
    torch.manual_seed(0)
    assert 0.4 < (made.train()(x) == 0).double().mean() < 0.6
    whole = layer(VQAttention, p_droplyr=0.5).train()
    torch.manual_seed(0)
    gone = (whole(x) == 0).all(2).all(1)
    assert gone.any()
    assert not gone.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_half_precision_sums_beyond_its_range_stay_right(dtype: torch.dtype, causal: bool) -> None:
    """Values of 3e4 that are summed over 50 keys of few codes leave float16's range; their mean does not."""
    made = layer(VQAttentionQK, causal=causal, gated=False, n_code=3)
    with torch.no_grad():
        made.to_v.weight.mul_(3e4 / made.to_v(sample()).abs().max())
        made.to_out.weight.mul_(0.1)
    x = sample()
    want = made(x)
    half = made.to(dtype)
    out = half(x.to(dtype))
    assert torch.isfinite(out).all()
    assert half.to_v(x.to(dtype)).float().sum(1).abs().max() > 65504
    assert ((out - want).norm() / want.norm()).item() < 0.2  # codes near a border may change


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9])
def test_sequence_about_as_long_as_a_block_is_right(length: int) -> None:
    made, x = layer(VQAttentionQK, block_len=8), sample(length)
    torch.testing.assert_close(made(x), made.run(x, quadratic=True).out, rtol=1e-9, atol=1e-11)


def test_what_does_not_fit_is_refused() -> None:
    made, x = layer(VQAttention), sample()
    state = made.run(x).state
    with pytest.raises(ValueError, match=r"shape \(2, 50, 23\) is not allowed: it must be \(batch, length >= 1, 24"):
        made(x[:, :, 1:])
    with pytest.raises(ValueError, match=r"x of shape \(2, 0, 24\) is not allowed"):
        made(x[:, :0])
    with pytest.raises(ValueError, match=r"doc_ids of shape \(2, 49\) is not allowed: it must be \(2, 50\)"):
        made(x, torch.zeros(2, 49, dtype=torch.int64))
    with pytest.raises(ValueError, match="a state of 2 sequences is not allowed: x has 1"):
        made.run(x[:1], state=state)
    with pytest.raises(ValueError, match="a state is not allowed"):
        layer(VQAttention, causal=False).run(x, state=state)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_has_an_empty_output_and_teaches_nothing(
    kind: type[Layer], causal: bool, training: bool
) -> None:
    made, nothing = layer(kind, causal=causal).train(training), sample()[:0].requires_grad_()
    before, usual = {name: x.clone() for name, x in made.state_dict().items()}, made.eval().run(sample())
    result = made.train(training).run(nothing)
    assert result.out.shape == (0, 50, WIDTH)
    assert result.loss.item() == 0
    assert result.figures == dict.fromkeys(usual.figures, 0.0)
    (result.out.sum() + result.loss).backward()
    assert nothing.grad is not None
    assert nothing.grad.shape == nothing.shape
    assert all(torch.equal(x, before[name]) for name, x in made.state_dict().items())
    if causal:
        assert made.run(nothing, state=result.state).out.shape == (0, 50, WIDTH)


@pytest.mark.parametrize("kind", LAYERS)
def test_tokens_of_another_dtype_are_refused_but_under_autocast(kind: type[Layer]) -> None:
    made = layer(kind).float()
    with pytest.raises(ValueError, match=r"x of dtype torch\.float64 is not allowed: .* weights are torch\.float32"):
        made(sample())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(made(sample().bfloat16())).all()


@pytest.mark.parametrize("causal", [True, False])
def test_the_published_configuration_is_finite(causal: bool) -> None:
    """d_model 1024, one head, 128 codes, blocks of 32."""
    config = TransformerConfig(d_model=1024, n_head=1, n_code=128, block_len=32, causal=causal)
    made = VQAttentionQK(config).eval()
    with torch.no_grad():
        out = made(torch.randn(1, 1024, 1024, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(out).all()
    assert out.std() > 0


class Model(nn.Module):
    """Bytes to the next byte's logits through one layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(256, config.d_model), nn.Linear(config.d_model, 256)
        self.attention = VQAttentionQK(config)


def test_two_hundred_steps_on_text_lower_both_losses_and_leave_no_dead_code() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(
        d_model=32, n_head=2, n_code=16, block_len=32, c_beta=0.05, lr=3e-3, global_batch_size=4, sequence_len=64
    )
    model, text = Model(config), TextBytes()
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr)
    count = config.global_batch_size * (config.sequence_len + 1)
    losses, commitments, result = [], [], None
    for step in range(200):
        tokens = text.tokens(count, start=step * count).long().view(config.global_batch_size, -1)
        x = model.embed(tokens[:, :-1])
        result = model.attention.run(x)
        loss = F.cross_entropy(model.read(x + result.out).flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        (loss + result.loss).backward()
        optimiser.step()
        losses.append(loss.item())
        commitments.append(result.figures["keys_commitment"] + result.figures["queries_commitment"])
    tenth = [sum(x[a:b]) / 20 for x in (losses, commitments) for a, b in ((0, 20), (180, 200))]
    assert tenth[1] < 0.8 * tenth[0]
    assert tenth[3] < 0.8 * tenth[2]
    assert result is not None
    assert min(result.figures["keys_perplexity"], result.figures["queries_perplexity"]) > 4
    for quantiser in (model.attention.key_quantiser, model.attention.query_quantiser):
        assert quantiser is not None
        assert (quantiser.counts >= config.c_dead * quantiser.counts.mean(-1, keepdim=True)).all()
