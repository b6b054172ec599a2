"""The whole model: sizes, tying, streams, causality, encoders, long inputs, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from attentions import BACKENDS
from lsh_v2 import create_lsh_v2_model
from lsh_v2.common.configuration import ModelConfig, model_config
from lsh_v2.model.generation import generate
from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.model.sizes import parameters, parse_size, sized_config
from tests.lsh_v2.small import VOCABULARY, logits, small_config, small_model, token_ids

STREAMING = [name for name in BACKENDS if small_model(attention=name).stream(1) is not None]
MEMORIES = ["hash_evict", "compressed", "infini"]


def test_defaults_are_the_original_readme_s() -> None:
    config = ModelConfig()
    assert (config.vocab_size, config.d_model, config.n_heads, config.n_kv_heads) == (32_000, 768, 12, 4)
    assert (config.n_layers, config.max_seq_len, config.bucket_size) == (24, 131_072, 128)
    assert (config.use_ponder, config.weight_tied_layers) == (True, 6)


@pytest.mark.parametrize("attention", ["lsh_v2", "flash"])
@pytest.mark.parametrize("size", ["25M", "100M", "181M", "350M", "60M", 140_000_000])
def test_target_size_is_hit_within_three_percent(size: str | int, attention: str) -> None:
    found = parameters(sized_config(size, attention=attention))
    assert abs(found - parse_size(size)) <= 0.03 * parse_size(size)


@pytest.mark.parametrize("settings", [{}, {"use_ponder": False, "weight_tied_layers": None}, {"latent": False}])
def test_counted_parameters_are_those_of_the_model(settings: dict) -> None:
    config = small_config(**settings)
    assert parameters(config) == sum(p.numel() for p in LSHv2Model(config).parameters())


def test_created_model_has_the_seed_s_call_and_size() -> None:
    model = create_lsh_v2_model(500, "1M", d_model=64, n_heads=4, n_kv_heads=2, attention="flash").eval()
    assert abs(sum(p.numel() for p in model.parameters()) - 1e6) <= 3e4
    assert model(torch.zeros(1, 5, dtype=torch.long))["logits"].shape == (1, 5, 500)


def test_tied_layers_share_their_weights_and_untied_ones_do_not() -> None:
    def count(sets: int | None) -> int:
        return parameters(small_config(n_layers=24, weight_tied_layers=sets, use_ponder=False))

    outside = VOCABULARY * 48 + 48  # embedding and last norm
    assert count(None) - outside == 4 * (count(6) - outside)
    model = LSHv2Model(small_config(n_layers=24, weight_tied_layers=6, use_ponder=False))
    assert model.block(23) is model.block(5)
    assert model.block(5) is not model.block(4)


def test_tied_model_computes_every_layer() -> None:
    shallow, deep = (small_model(n_layers=n, weight_tied_layers=2, use_ponder=False) for n in (2, 6))
    deep.load_state_dict(shallow.state_dict())
    assert not torch.allclose(logits(shallow, token_ids(9)), logits(deep, token_ids(9)))


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize("name", STREAMING)
def test_stream_in_any_pieces_is_the_parallel_form(name: str, latent: bool) -> None:
    model = small_model(attention=name, latent=latent, n_layers=2, weight_tied_layers=1)
    ids = token_ids(31)
    want = logits(model, ids)
    for pieces in ([31], [1] * 4 + [27], [17, 1, 1, 12]):
        stream = model.stream(len(ids))
        assert stream is not None
        got = torch.cat([stream.extend(piece) for piece in ids.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("memory", [*([name] for name in MEMORIES), MEMORIES])
@pytest.mark.parametrize("name", ["flash", "bit_sampling"])
def test_stream_with_memory_is_the_parallel_form(name: str, memory: list[str]) -> None:
    model = small_model(attention=name, memory=memory, memory_segment=8, memory_slots=4, compression_rate=2)
    ids = token_ids(45)
    stream = model.stream(len(ids))
    assert stream is not None
    got = torch.cat([stream.extend(piece) for piece in ids.split([3, 20, 1, 1, 20], dim=1)], dim=1)
    torch.testing.assert_close(got, logits(model, ids), rtol=1e-8, atol=1e-8)


def test_reordered_stream_goes_on_with_the_sequences_named() -> None:
    for settings in ({}, {"attention": "mamba"}, {"memory": MEMORIES, "memory_segment": 8, "memory_slots": 4}):
        model, ids = small_model(**settings), token_ids(30)
        stream = model.stream(len(ids))
        assert stream is not None
        stream.extend(ids[:, :20])
        order = torch.tensor([2, 0])
        stream.reorder(order)
        torch.testing.assert_close(stream.extend(ids[order, 20:]), logits(model, ids)[order, 20:])


@pytest.mark.parametrize("settings", [{}, {"memory": MEMORIES, "memory_segment": 8, "memory_slots": 4}])
@pytest.mark.parametrize("name", ["flash", "bit_sampling", "mamba"])
def test_no_logit_depends_on_a_later_token(name: str, settings: dict) -> None:
    model, ids = small_model(attention=name, **settings), token_ids(40)
    changed = torch.cat((ids[:, :25], (ids[:, 25:] + 1) % VOCABULARY), dim=1)
    before, after = logits(model, ids), logits(model, changed)
    torch.testing.assert_close(after[:, :25], before[:, :25], rtol=1e-10, atol=1e-12)
    assert (after[:, 25:] - before[:, 25:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("name", ["flash", "bit_sampling", "mamba", "lsh_v2"])
def test_encoder_sees_both_sides(name: str) -> None:
    model = small_model(attention=name, causal=False)
    states = model.embed(token_ids(20, batch=1)).detach().requires_grad_()
    model.embed = lambda _: states  # type: ignore[method-assign]
    middle = model(token_ids(20, batch=1))["logits"][0, 10].sum()
    (reached,) = torch.autograd.grad(middle, states)
    assert reached[0].norm(dim=-1).min() > 1e-9
    assert model.stream(1) is None


def test_encoder_is_trained_on_the_token_itself_and_decoder_on_the_next() -> None:
    ids = token_ids(11)
    labels = torch.where(torch.arange(11) % 3 == 1, ids, -100)
    for causal in (True, False):
        model = small_model(causal=causal, use_ponder=False)
        out = model(ids, labels)
        shift = 1 if causal else 0
        want = torch.nn.functional.cross_entropy(
            out["logits"][:, : 11 - shift].flatten(0, 1), labels[:, shift:].flatten(), ignore_index=-100
        )
        torch.testing.assert_close(out["cross_entropy"], want)


@pytest.mark.parametrize("use_ponder", [True, False])
def test_loss_of_training_is_the_weighted_sum_of_its_terms(use_ponder: bool) -> None:
    model = small_model(attention="lsh_v2", use_ponder=use_ponder, ponder_weight=0.7, auxiliary_weight=0.3)
    ids, alone = token_ids(23), []
    for block in (model.block(0), model.block(1)):
        block.mixer.register_forward_hook(lambda _module, _inputs, out: alone.append(float(out[1].detach())))
    found = {name: float(x.detach()) for name, x in model.train()(ids, ids).items() if x.ndim == 0}
    want = found["cross_entropy"] + 0.7 * found.get("ponder_kl", 0.0) + 0.3 * found["auxiliary_loss"]
    assert found["loss"] == pytest.approx(want)
    assert ("ponder_kl" in found) is use_ponder
    assert len(alone) == 4
    assert found["auxiliary_loss"] == pytest.approx(sum(alone) / 4) != 0


@pytest.mark.parametrize("name", BACKENDS)
def test_every_attention_trains_in_the_model(name: str) -> None:
    model, ids = small_model(attention=name, n_layers=2, weight_tied_layers=1).train(), token_ids(40)
    loss = model(ids, ids)["loss"]
    weights = {key: p for key, p in model.named_parameters() if ".attention." not in key}
    gradients = torch.autograd.grad(loss, list(weights.values()))
    for key, gradient in zip(weights, gradients, strict=True):
        assert gradient.isfinite().all(), key
        assert gradient.abs().max() > 1e-9, key
    with torch.no_grad():
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            weight -= 1e-3 * gradient / torch.cat([g.flatten() for g in gradients]).norm()
        assert model(ids, ids)["loss"] < loss


def test_left_padding_changes_nothing() -> None:
    model, ids = small_model(), token_ids(20)
    padded = torch.cat((torch.zeros(3, 7, dtype=torch.long), ids), dim=1)
    out = model(padded, first=torch.tensor([7, 7, 7]))["logits"]
    torch.testing.assert_close(out[:, 7:], logits(model, ids), rtol=1e-8, atol=1e-8)


def test_chunks_and_kept_logits_change_nothing() -> None:
    whole, ids = small_model(), token_ids(50)
    chunked = small_model(feed_forward_chunk=7)
    torch.testing.assert_close(logits(chunked, ids), logits(whole, ids), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(whole(ids, logits_to_keep=3)["logits"], whole(ids)["logits"][:, -3:])
    assert "logits" not in whole(ids, logits_to_keep=0)
    grads = [
        torch.autograd.grad(m(ids, ids)["loss"], list(m.parameters()), allow_unused=True) for m in (whole, chunked)
    ]
    for one, two in zip(*grads, strict=True):
        if one is not None:
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)


def test_generation_follows_the_argmax_of_the_parallel_form() -> None:
    for name in ("flash", "reformer"):  # one with a stream, one without
        model, prompt = small_model(attention=name), token_ids(6)
        produced = generate(model, prompt, max_new_tokens=9)
        sequence = torch.cat((prompt, produced), dim=1)
        for at in range(6, 15):
            assert torch.equal(logits(model, sequence[:, :at])[:, -1].argmax(-1), sequence[:, at])


def test_generation_stops_and_draws_by_seed() -> None:
    model, prompt = small_model(), token_ids(6)
    free = generate(model, prompt, max_new_tokens=12)
    stop = int(free[0, 3])
    stopped = generate(model, prompt, max_new_tokens=12, stop=stop)
    assert (stopped[0, 3:] == stop).all()
    drawn = [generate(model, prompt, max_new_tokens=12, temperature=2.0, top_k=5, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_generation_does_not_train_and_leaves_the_mode_as_it_was() -> None:
    model, modes = small_model().train(), []
    model.block(0).feed_forward.register_forward_hook(lambda module, *_: modes.append(module.training))
    generate(model, token_ids(6), max_new_tokens=2)
    assert modes
    assert not any(modes)
    assert model.training


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"d_modle": 8}, "did you mean d_model"),
        ({"d_model": 50}, "multiple of n_heads=6"),
        ({"n_kv_heads": 4}, "divisor of n_heads=6"),
        ({"weight_tied_layers": 3}, "divisor of n_layers=4"),
        ({"weight_tied_layers": None}, "use_ponder"),
        ({"attention": "flsh"}, "did you mean flash"),
        ({"memory": ["infini"], "causal": False}, "causal"),
        ({"memory": ["infinite"]}, "hash_evict, compressed and infini"),
        ({"memory": ["infini", "infini"]}, "without duplicates"),
        ({"memory": ["compressed"], "memory_segment": 10}, "multiple of compression_rate=4"),
    ],
)
def test_impossible_configurations_are_refused_in_words(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        small_config(**settings)


def test_other_misuse_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="max_seq_len=512"):
        small_model()(token_ids(513))
    with pytest.raises(ValueError, match="equally many of both"):
        small_model(attention="reformer", memory=["infini"])
    with pytest.raises(ValueError, match="cannot be reached"):
        create_lsh_v2_model(target_params="10M", attention="flash", d_model=768, n_heads=12)
    with pytest.raises(ValueError, match="'10 parsecs'"):
        create_lsh_v2_model(target_params="10 parsecs")
    with pytest.raises(ValueError, match="causal"):
        generate(small_model(causal=False), token_ids(3), max_new_tokens=1)
    with pytest.raises(ValueError, match="no setting 'windw'"):
        LSHv2Model(small_config(attention_settings={"windw": 3}))


def test_bucket_size_reaches_the_backend_s_own_setting() -> None:
    model = LSHv2Model(model_config(**small_config(attention="bit_sampling", bucket_size=19).model_dump()))
    assert getattr(model.block(0).mixer.attention, "window") == 19  # noqa: B009
