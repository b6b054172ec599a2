"""Hash families collide as often as theory says, and codes depend on nothing that comes later."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom

from attentions.buckets import hashing
from attentions.buckets.hashing import BitSamplingHash, Hash, PositionHash, SimHash, bits_for

DIM, PAIRS = 32, 4000


def within_binomial(hits: int, trials: int, probability: float) -> bool:
    """Whether a count lies inside the central 99.99 % of a binomial."""
    low, high = binom.interval(0.9999, trials, probability)
    return low <= hits <= high


def pairs_at(angle: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pairs of unit vectors at one angle, (1, 1, PAIRS, DIM) each."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, PAIRS, DIM, generator=generator, dtype=torch.float64)
    a = a / a.norm(dim=-1, keepdim=True)
    b = b - (b * a).sum(-1, keepdim=True) * a
    b = b / b.norm(dim=-1, keepdim=True)
    return a[None, None], (math.cos(angle) * a + math.sin(angle) * b)[None, None]


@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("angle", [0.2, 0.7, 1.5])
def test_simhash_collides_with_one_minus_angle_over_pi_a_bit(bits: int, angle: float) -> None:
    hits = 0
    for seed in range(20):  # planes are shared by all pairs of a hash, so each hash judges a share of them
        a, b = (x[:, :, seed::20] for x in pairs_at(angle))
        simhash = SimHash(1, DIM, bits=bits, tables=8, seed=seed)
        hits += int((simhash(a) == simhash(b)).sum())
    expected = (1 - angle / math.pi) ** bits
    trials = 8 * PAIRS
    # Pairs that share planes are not independent; tables·seeds = 160 planes sets bound the spread from above.
    assert abs(hits / trials - expected) < 4 * math.sqrt(expected * (1 - expected) / 160 / 4)


def test_simhash_of_one_pair_a_hash_is_within_binomial_bounds() -> None:
    a, b = (x[:, :, :1] for x in pairs_at(0.7))
    simhash = SimHash(1, DIM, bits=3, tables=3000, seed=0)
    hits = int((simhash(a) == simhash(b)).sum())
    assert within_binomial(hits, 3000, (1 - 0.7 / math.pi) ** 3)


def test_bit_sampling_collides_by_the_share_of_equal_signs() -> None:
    a = torch.ones(1, 1, 1, DIM)
    b = a.clone()
    b[..., :8] = -1  # a quarter of the signs differ
    hits = int((h := BitSamplingHash(1, DIM, bits=3, tables=3000, seed=0))(a).eq(h(b)).sum())
    without_replacement = math.comb(24, 3) / math.comb(32, 3)
    assert within_binomial(hits, 3000, without_replacement)


def test_position_codes_are_uniform_and_match_by_chance() -> None:
    draw = PositionHash(1, DIM, bits=4, tables=1, seed=3)
    at = torch.arange(20_000)[None]
    query, key = draw.at(at, 2, query=True), draw.at(at, 2, query=False)
    assert within_binomial(int((query == key).sum()), 40_000, 1 / 16)
    assert within_binomial(int((key == 7).sum()), 40_000, 1 / 16)
    assert within_binomial(int((key[:, :, 0] == key[:, :, 1]).sum()), 20_000, 1 / 16)


def test_position_codes_of_a_prefix_are_a_prefix() -> None:
    draw = PositionHash(1, DIM, bits=8, tables=3, seed=3)
    long, short = (draw.at(torch.arange(n)[None], 2, query=True) for n in (1000, 77))
    assert torch.equal(long[..., :77], short)


def test_query_heads_share_their_key_heads_functions() -> None:
    x = torch.randn(2, 3, 50, DIM)
    for family in (BitSamplingHash, SimHash):
        hashed = family(3, DIM, bits=6, tables=2, seed=0)
        assert torch.equal(hashed(x.repeat_interleave(2, dim=1)), hashed(x).repeat_interleave(2, dim=2))


@pytest.mark.parametrize("kind", [SimHash, BitSamplingHash])
def test_codes_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch, kind: type[Hash]) -> None:
    hashed, x = kind(2, 16, bits=5, tables=3, seed=0), torch.randn(2, 4, 100, 16, dtype=torch.float64)
    whole = hashed(x)
    monkeypatch.setattr(hashing, "PIECE", 33)
    assert whole.shape == (3, 2, 4, 100)
    assert torch.equal(hashed(x), whole)


def test_balancing_splits_a_skewed_sample_evenly() -> None:
    x = torch.randn(1, 1, 5001, DIM) + 3
    hashed = BitSamplingHash(1, DIM, bits=1, tables=1, seed=0)
    assert hashed(x).double().mean() > 0.99
    hashed.balance(x)
    assert abs(hashed(x).double().mean().item() - 0.5) < 0.01


def test_codes_use_every_value_below_two_to_the_bits() -> None:
    codes = SimHash(1, DIM, bits=3, tables=1, seed=0)(torch.randn(1, 1, 2000, DIM))
    assert sorted(codes.unique().tolist()) == list(range(8))


@pytest.mark.parametrize(("bits", "allowed"), [(-1, "from 0 to 24"), (33, "from 0 to 24"), (24, "at most head_dim=8")])
def test_impossible_bits_are_refused_with_what_is_allowed(bits: int, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"bits={bits}.*{allowed}"):
        BitSamplingHash(1, 8, bits=bits, tables=1, seed=0)


def test_bits_follow_from_length_and_bucket() -> None:
    assert [bits_for(n, 256) for n in (128, 256, 1024, 65_536)] == [0, 0, 2, 8]
