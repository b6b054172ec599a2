"""LSH v2's hash functions and their training."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attentions.common.reference import causal_pairs
from attentions.lsh_v2.hashing import LearnedHash
from attentions.lsh_v2.training import HashTraining, Pairs, auxiliary_loss, draw_pairs, hash_loss, train
from tests.attentions.lsh_v2.test_attention import SMALL, inputs, made

HOW = HashTraining(scale=0.25, local=8, causal=True, steps=0, seed=0)


def test_rotations_are_orthogonal_and_differ_by_round() -> None:
    rotations = LearnedHash(2, 16, rounds=3, hash_dim=8, seed=0).rotations.detach()
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(8).expand_as(rotations), rtol=0, atol=1e-5)
    flat = rotations.flatten(0, 2).flatten(1)
    assert torch.pdist(flat).min() > 1


def test_both_rotations_of_a_round_start_from_one_projection_and_training_parts_them() -> None:
    attention = made(**SMALL | {"hash_steps": 2})
    one, two = attention.hashing.projections.unbind(2)
    assert torch.equal(one, two)
    attention.prepare(*inputs(100))
    one, two = attention.hashing.projections.unbind(2)
    assert (one - two).norm(dim=(-2, -1)).min() > 1e-3
    assert all(p.grad is None for p in attention.hashing.parameters())


def test_code_is_the_pair_of_largest_coordinates_whatever_the_length_of_the_vector() -> None:
    hashing = LearnedHash(1, 16, rounds=2, hash_dim=3, seed=0)
    hashing.projections.data[:, :, 1] += torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 1, 50, 16, generator=torch.Generator().manual_seed(0))
    codes = hashing(x)
    soft = hashing.soft(x, 0.1)[0, 0]  # Q, rounds, rotations, buckets
    first, second = soft.argmax(-1).unbind(-1)
    assert torch.equal(codes[:, 0, 0], (first * 6 + second).mT)
    assert torch.equal(codes, hashing(7 * x))
    assert torch.equal(hashing.coarse(codes[:, 0]), first.mT[:1])


@pytest.mark.parametrize("piece", [1, 16, 17, 40])
def test_codes_do_not_depend_on_how_many_are_made_at_once(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen and fewer go another way than more do."""
    hashing = LearnedHash(2, 16, rounds=3, hash_dim=5, seed=0).double()
    q, k, _ = inputs(40, heads=4)
    want = [hashing(q), hashing(k[:, :1], slice(1, 2))]
    monkeypatch.setattr("attentions.lsh_v2.hashing.PIECE", piece)
    assert torch.equal(hashing(q), want[0])
    assert torch.equal(hashing(k[:, :1], slice(1, 2)), want[1])


@pytest.mark.parametrize("causal", [True, False])
def test_training_draws_keys_as_often_as_exact_attention_outside_the_band(causal: bool) -> None:
    """20,000 draws a row; two query heads for each key head, fewer queries than keys."""
    q, k, _ = inputs(40, heads=4)
    q, k = q[:, :, -30:], k[:, ::2]
    how = HashTraining(scale=0.25, local=8, causal=causal, steps=0, seed=0, keys=20_000)
    pairs = draw_pairs(q, k, 30, how, torch.Generator().manual_seed(0))
    scores = (q @ k.repeat_interleave(2, 1).mT) * 0.25
    seen = causal_pairs(30, 40, causal=causal, first=None, rows=None, device=q.device)
    far = (torch.arange(10, 40)[:, None] - torch.arange(40)).abs() >= 8
    want = scores.masked_fill(~seen, -torch.inf).softmax(-1) * far
    mass = want.sum(-1).view(1, 2, 60)
    torch.testing.assert_close(pairs.mass, mass)
    torch.testing.assert_close(pairs.q, q.reshape(1, 2, 60, 16))
    means = (want @ k.repeat_interleave(2, 1)).view(1, 2, 60, 16) / mass.unsqueeze(-1)
    spread = k.std() / 20_000**0.5
    assert (pairs.k.mean(3) - means).abs().max() < 6 * spread


def test_loss_is_the_mass_that_no_round_finds_and_how_many_keys_share_a_bucket() -> None:
    """Pair by pair, round by round, from the probabilities of single buckets."""
    hashing = LearnedHash(1, 16, rounds=3, hash_dim=2, seed=0).double()
    q, k, others = inputs(5, heads=1)
    pairs = Pairs(q, torch.stack((k, k.flip(2)), dim=3), torch.tensor([[[0.1, 0.2, 0.0, 0.3, 0.9]]], dtype=q.dtype))
    # Q, rounds, rotations, buckets
    of_q, of_k, of_others = (hashing.soft(x, 0.3)[0, 0].detach() for x in (q, k, others))
    kept = 0.0
    for i, mass in enumerate(pairs.mass[0, 0].tolist()):
        for j in (i, 4 - i):
            apart = [1 - math.prod(float(of_q[i, r, t] @ of_k[j, r, t]) for t in range(2)) for r in range(3)]
            kept += mass * (1 - math.prod(apart)) / 2 / 1.5
    shares = [torch.einsum("ka,kc->ac", *of_others[:, r].unbind(1)) / 5 for r in range(3)]
    crowding = sum(math.log(float(share.square().sum())) for share in shares) / 3
    loss = hash_loss(hashing, pairs, others, replace(HOW, balance=0.7), 0.3)
    torch.testing.assert_close(loss.item(), 0.7 * crowding - kept, rtol=1e-9, atol=0)


def test_training_cools_from_hot_to_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, soft = [], LearnedHash.soft
    monkeypatch.setattr(LearnedHash, "soft", lambda self, x, t: seen.append(t) or soft(self, x, t))
    q, k, _ = inputs(60)
    train(LearnedHash(2, 16, rounds=1, hash_dim=2, seed=0), q, k, replace(HOW, steps=50))
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == HOW.hot
    assert HOW.cold < seen[-1] < 1.05 * HOW.cold


def clusters(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's key says in 4 of 16 dimensions which of 16 signs it has; the rest is louder noise."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (1, 1, n, 4), generator=generator).double() * 2 - 1
    k = 2 * torch.randn(1, 1, n, 16, dtype=torch.float64, generator=generator)
    q = 0.3 * torch.randn(1, 1, n, 16, dtype=torch.float64, generator=generator)
    k[..., :4], q[..., :4] = 1.5 * signs, 6.0 * signs
    return q, k, k


def test_training_keeps_more_mass_at_no_more_comparisons() -> None:
    made_of: dict[str, Any] = {
        "heads": 1, "n_hashes": 2, "hash_dim": 4, "bucket_size": 32, "local": 8, "samples": 0,
        "compression_factors": [1], "global_context": False,
    }  # fmt: skip
    q, k, _ = clusters(1024, seed=1)
    untrained, trained = made(**made_of, hash_steps=0), made(**made_of, hash_steps=60)
    before = torch.random.get_rng_state()
    trained.prepare(*clusters(1024, seed=2))
    assert torch.equal(before, torch.random.get_rng_state())
    rows = torch.arange(512, 1024, 8)
    kept = [attention.kept_mass(q, k, rows=rows).mean().item() for attention in (trained, untrained)]
    assert trained.comparisons(q, k) <= untrained.comparisons(q, k)
    assert kept[0] > 1.5 * kept[1]


def test_training_spreads_keys_that_share_a_direction_over_the_buckets() -> None:
    """Untrained, a common offset puts nearly all of them into few buckets."""
    q, k, v = (x + 3.0 for x in inputs(600, heads=1))
    sizes = []
    for steps in (0, 60):
        attention = made(heads=1, n_hashes=2, hash_dim=4, samples=0, hash_steps=steps, compression_factors=[1])
        attention.prepare(q, k, v)
        codes = attention.hashing(k).flatten(1)
        sizes.append(torch.stack([one.bincount(minlength=64) for one in codes]).double().square().sum(-1).mean())
    assert sizes[1] < 0.5 * sizes[0]


def test_training_looks_at_the_last_tokens_of_a_sample_alone() -> None:
    learnt = []
    for first, last in ((1, 3), (2, 3), (1, 4)):
        parts = zip(inputs(50, seed=first), inputs(60, seed=last), strict=True)
        q, k, _ = (torch.cat(x, dim=2) for x in parts)
        hashing = LearnedHash(2, 16, rounds=2, hash_dim=4, seed=0)
        train(hashing, q, k, replace(HOW, steps=2, tokens=60))
        learnt.append(hashing.projections.detach())
    assert torch.equal(learnt[0], learnt[1])
    assert not torch.equal(learnt[0], learnt[2])


def test_auxiliary_loss_moves_the_hash_alone() -> None:
    attention = made(**SMALL)
    q, k, _ = (x.requires_grad_() for x in inputs(100))
    loss = attention.auxiliary_loss(q, k)
    loss.backward()
    assert q.grad is None
    assert k.grad is None
    for p in attention.hashing.parameters():
        assert p.grad is not None
        assert p.grad.any()
        p.data -= 0.05 * p.grad
    assert auxiliary_loss(attention.hashing, q, k, attention._training()) < loss
