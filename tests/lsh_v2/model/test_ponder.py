"""Halting: distributions, the direction of the divergence, the training loss, and how inference stops."""

from __future__ import annotations

import math

import pytest
import torch

from lsh_v2.model.ponder import Chosen, Halting, Stopping, divergence, expected_steps, log_geometric, log_halting
from tests.lsh_v2.small import small_model, token_ids


def random_logits(steps: int = 5) -> torch.Tensor:
    return 3 * torch.randn(steps, 2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_probabilities_are_the_published_product_and_sum_to_one() -> None:
    logits = random_logits()
    rate, p = torch.sigmoid(logits), log_halting(logits).exp()
    torch.testing.assert_close(p.sum(0), torch.ones(2, 7, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    for n in range(4):
        torch.testing.assert_close(p[n], rate[n] * (1 - rate[:n]).prod(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(p[4], (1 - rate[:4]).prod(0), rtol=1e-12, atol=1e-14)


def test_prior_is_geometric_over_the_steps_there_are() -> None:
    prior = log_geometric(6, 0.3, torch.device("cpu")).exp()
    torch.testing.assert_close(prior[1:] / prior[:-1], torch.full((5,), 0.7, dtype=torch.float64))
    assert float(prior.sum()) == pytest.approx(1)


def test_divergence_is_from_p_to_the_prior_and_not_back() -> None:
    log_p = log_halting(random_logits(3))
    p, prior = log_p.exp(), log_geometric(3, 0.4, torch.device("cpu")).exp().view(3, 1, 1)
    forward, back = (p * (p / prior).log()).sum(0), (prior * (prior / p).log()).sum(0)
    torch.testing.assert_close(divergence(log_p, 0.4), forward, rtol=1e-10, atol=1e-12)
    assert (forward - back).abs().min() > 1e-3
    # A p that leaves steps out costs a finite amount in this direction, and an infinite one in the other.
    certain = log_halting(torch.tensor([60.0, 0.0, 0.0], dtype=torch.float64))
    assert float(divergence(certain, 0.4)) == pytest.approx(-math.log(float(prior[0, 0, 0])), rel=1e-6)


def test_divergence_is_zero_at_the_prior_alone() -> None:
    prior = log_geometric(4, 0.4, torch.device("cpu"))
    assert float(divergence(prior, 0.4)) == pytest.approx(0, abs=1e-12)
    assert float(divergence(prior, 0.2)) > 1e-2


def test_halting_starts_at_the_rate_of_the_prior() -> None:
    rate = torch.sigmoid(Halting(8, 0.3)(torch.randn(2, 5, 8)))
    torch.testing.assert_close(rate, torch.full((2, 5), 0.3))


def test_expected_steps_count_from_one() -> None:
    at_once, never = (log_halting(torch.full((5,), x, dtype=torch.float64)) for x in (80.0, -80.0))
    assert (float(expected_steps(at_once)), float(expected_steps(never))) == (pytest.approx(1), pytest.approx(5))


def test_training_loss_is_the_expectation_over_the_steps() -> None:
    model, ids = small_model(n_layers=6, auxiliary_weight=0.0), token_ids(13)
    found = model.train()(ids, ids)
    x, at = model.embed(ids), model.rotation(0, 13)
    losses, logits, x1, x2 = [], [], x, x
    assert model.halting is not None
    for layer in range(6):
        block = model.block(layer)
        x1 = x1 + block.attend(x2, at)[0]
        x2 = x2 + block.feed(x1)
        if layer % 2:
            state = (x1 + x2) / 2
            raw = model.head(state)[:, :-1].flatten(0, 1)
            losses.append(torch.nn.functional.cross_entropy(raw, ids[:, 1:].flatten(), reduction="none").view(3, 12))
            logits.append(model.halting(state)[:, :-1])
    log_p = log_halting(torch.stack(logits))
    want = (log_p.exp() * torch.stack(losses)).sum(0).mean()
    torch.testing.assert_close(found["cross_entropy"], want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["ponder_kl"], divergence(log_p, 0.4).mean(), rtol=1e-10, atol=1e-12)
    total = found["cross_entropy"] + 0.01 * found["ponder_kl"]
    torch.testing.assert_close(found["loss"], total, rtol=1e-10, atol=1e-12)
    assert 1 < float(found["expected_steps"]) < 3


def test_threshold_stops_at_the_first_step_whose_cumulated_probability_reaches_it() -> None:
    logits = random_logits()
    cumulated = log_halting(logits).exp().cumsum(0)
    want = (cumulated >= 0.6 - 1e-12).int().argmax(0) + 1
    chosen = Chosen(Stopping("threshold", 0.6, 5))
    states = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None, None, None].expand(5, 2, 7, 3)
    for n in range(5):
        if chosen.offer(states[n], logits[n]):
            break
    assert chosen.steps is not None
    assert torch.equal(chosen.steps, want)
    assert torch.equal(chosen.state[..., 0], want.double())


def test_drawn_steps_follow_the_halting_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.3, -0.5, 1.0, 0.0]).view(4, 1, 1).expand(4, 1, 20_000)
    chosen = Chosen(Stopping("sample", 0.5, 4))
    for n in range(4):
        chosen.offer(torch.zeros(1, 20_000, 1), logits[n])
    assert chosen.steps is not None
    found = torch.bincount(chosen.steps.flatten(), minlength=5)[1:] / 20_000
    torch.testing.assert_close(found, log_halting(logits[:, 0, 0]).exp(), rtol=0, atol=0.015)  # four standard errors


def test_passes_end_when_every_position_has_halted() -> None:
    model = small_model(n_layers=6, weight_tied_layers=2)
    assert model.halting is not None
    ran = []
    model.block(0).mixer.register_forward_hook(lambda *_: ran.append(1))
    for bias, passes in ((50.0, 1), (-50.0, 3)):
        ran.clear()
        torch.nn.init.zeros_(model.halting.to_logit.weight)
        torch.nn.init.constant_(model.halting.to_logit.bias, bias)
        out = model(token_ids(9))
        assert (len(ran), float(out["expected_steps"])) == (passes, passes)


def test_full_depth_without_pondering_is_the_last_step_of_pondering() -> None:
    pondering, plain = small_model(ponder_inference="all"), small_model(use_ponder=False)
    plain.load_state_dict({k: v for k, v in pondering.state_dict().items() if not k.startswith("halting")})
    ids = token_ids(11)
    torch.testing.assert_close(pondering(ids)["logits"], plain(ids)["logits"], rtol=1e-12, atol=1e-12)
