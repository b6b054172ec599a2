"""What each strategy scores, against its definition; what is chosen from that, against brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from attentions.buckets.hashing import SimHash
from bmrt import STRATEGIES, Hybrid, build_strategy
from bmrt.cache.selection import keep
from bmrt.strategies import Strategy, View
from bmrt.strategies.magicpig import sampling_probability
from bmrt.strategies.mass import received
from bmrt.strategies.tables import most_matches
from bmrt.strategies.ties import TIES
from bmrt.strategies.trail import FADE
from tests.bmrt.views import ROOM, B, G, M, dense_mass, view

BY_QUERY = ("exact", "frequency_rank", "magicpig_baseline")


def padded(v: View) -> View:
    hidden = torch.zeros(B, v.keys.shape[2], dtype=torch.bool)
    hidden[1, :9] = True
    return replace(v, hidden=hidden)


@pytest.mark.parametrize("backend", ["eager", "flash"])
@pytest.mark.parametrize("block", [1, 4, 512])
@pytest.mark.parametrize("heads", [2, 4, 8])
@pytest.mark.parametrize("queries", [1, 5, M])
def test_received_mass_is_the_column_sum_of_the_softmax_matrix(
    backend: str, block: int, heads: int, queries: int
) -> None:
    for v in (view(heads=heads, queries=queries), padded(view(heads=heads, queries=queries))):
        torch.testing.assert_close(received(v, backend, block=block), dense_mass(v), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "flash"])
def test_a_question_looks_at_itself_too_and_only_tokens_are_scored(backend: str) -> None:
    v = view(question=5)
    mass = received(v, backend)
    torch.testing.assert_close(mass, dense_mass(v), rtol=1e-10, atol=1e-12)
    assert mass.shape == v.positions.shape
    assert (mass.sum(-1) < 2 * 5).all()  # of two heads' five queries, some weight falls on the question


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backends_agree_in_low_precision(dtype: torch.dtype) -> None:
    v = view()
    v = replace(v, queries=v.queries.to(dtype), keys=v.keys.to(dtype))
    torch.testing.assert_close(received(v, "eager"), received(v, "flash"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*STRATEGIES])
def test_scores_are_numbers_whatever_comes(name: str) -> None:
    strategy = build_strategy(name)
    zero = view()
    zero = replace(zero, queries=torch.zeros_like(zero.queries), keys=torch.zeros_like(zero.keys))
    huge = replace(zero, queries=zero.queries + 1e4, keys=zero.keys - 1e4)
    for v in (zero, huge, view(tokens=4, queries=1), padded(view())):
        score = strategy.score(v)
        assert score.shape == v.positions.shape
        assert not score.isnan().any()


@pytest.mark.parametrize("name", [*STRATEGIES])
def test_the_same_seed_gives_the_same_scores(name: str) -> None:
    one, two = (build_strategy(name).score(view()) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["random", "frequency_rank", "magicpig_baseline"])
def test_another_seed_or_layer_gives_other_scores(name: str) -> None:
    base = build_strategy(name, seed=0).score(view())
    assert not torch.equal(base, build_strategy(name, seed=1).score(view()))
    assert not torch.equal(base, build_strategy(name, seed=0).score(view(layer=2)))


@pytest.mark.parametrize("name", [*STRATEGIES])
def test_a_view_is_left_as_it_was(name: str) -> None:
    v, same = view(), view()
    build_strategy(name).score(v)
    assert torch.equal(v.keys, same.keys)
    assert torch.equal(v.queries, same.queries)
    assert torch.equal(v.candidates, same.candidates)


def needle(copies: float) -> View:
    """One key in the middle points along every query, 8 times as strong; 128 tokens, room for 16."""
    v = view(tokens=128, queries=4, question=4)
    direction = torch.zeros(8, dtype=torch.float64)
    direction[0] = 1.0
    v.keys[:, :, 60] = 8 * direction * copies
    queries = v.queries * 0.05 + direction
    return replace(v, queries=queries, room=torch.full((B, G), 16 - 8))


@pytest.mark.parametrize("name", [*BY_QUERY, "hybrid", "snapkv", "h2o"])
def test_a_planted_key_is_kept_at_eight_times_compression(name: str) -> None:
    v = needle(1.0)
    parts = build_strategy("frequency_rank"), build_strategy("magicpig_baseline")
    score = (Hybrid(*parts) if name == "hybrid" else build_strategy(name)).score(v)
    index = keep(
        score, ~v.candidates, torch.zeros_like(v.candidates), int((~v.candidates)[0, 0].sum()) + int(v.room[0, 0])
    )
    assert (index == 60).any(-1).all()


def test_a_random_choice_does_not_find_the_planted_key() -> None:
    found = 0
    for seed in range(20):
        v = needle(1.0)
        index = keep(build_strategy("random", seed=seed).score(v), ~v.candidates, torch.zeros_like(v.candidates), 16)
        found += int((index == 60).any(-1).sum())
    assert found < 0.3 * 20 * B * G


def test_random_choices_are_even_over_the_sequence() -> None:
    """Of 4,096 positions a quarter is kept; each eighth of the sequence has its share, within five deviations."""
    positions = torch.arange(4096).expand(B, G, -1)
    v = replace(view(), positions=positions)
    nowhere = torch.zeros(B, G, 4096, dtype=torch.bool)
    kept = keep(build_strategy("random").score(v), nowhere, nowhere, 1024)
    shares = torch.stack([((kept >= 512 * i) & (kept < 512 * (i + 1))).sum(-1) for i in range(8)]).double()
    assert ((shares - 128).abs() < 5 * math.sqrt(128 * 0.75)).all()


def test_exact_scores_do_not_favour_old_tokens() -> None:
    """On keys that are all alike in law: the oldest quarter gets about a quarter of what is kept; H2O gives it most."""
    share = {}
    for name in ("exact", "h2o"):
        settings = {"trail": 0} if name == "exact" else {}
        strategy, old, total = build_strategy(name, **settings), 0, 0
        for seed in range(8):
            v = view(seed, tokens=256, queries=256 if name == "h2o" else 16)
            v = replace(v, candidates=torch.ones_like(v.candidates))
            nowhere = torch.zeros_like(v.candidates)
            index = keep(strategy.score(v), nowhere, nowhere, 32)
            old, total = old + int((index < 64).sum()), total + index.numel()
        share[name] = old / total
    assert 0.15 < share["exact"] < 0.4
    assert share["h2o"] > 0.6


def test_what_follows_a_find_stays_with_it() -> None:
    v = view(tokens=60, queries=4, question=4)
    plain, trailed = (build_strategy("exact", trail=trail).score(v) for trail in (0, 6))
    for j in range(60):
        before = [i for i in range(max(0, j - 6), j + 1) if i >= 2]  # anchors pass nothing on
        faded = torch.tensor([1 - FADE * (j - i) for i in before], dtype=torch.float64)
        want = (plain[..., before] * faded).amax(-1) if before else torch.full((B, G), -math.inf, dtype=torch.float64)
        torch.testing.assert_close(trailed[..., j], want)


def test_a_trail_does_not_jump_over_what_was_dropped() -> None:
    v = view(tokens=30, queries=4, question=4)
    spaced = replace(v, positions=v.positions * 10, anchors=torch.zeros_like(v.anchors))
    torch.testing.assert_close(
        build_strategy("exact", trail=9).score(spaced), build_strategy("exact", trail=0).score(spaced)
    )


# Hashing.


def codes_of(v: View, *, bits: int, tables: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes of queries and centred keys, by the definition."""
    keys = v.choices.clone()
    for b, g in itertools.product(range(B), range(G)):
        keys[b, g] -= keys[b, g][v.candidates[b, g]].mean(0)
    family = SimHash(G, 8, bits=bits, tables=tables, seed=seed + (v.layer << 20))
    return family(v.grouped), family(keys)


@pytest.mark.parametrize("given", [{}, {"queries": 36, "question": 36}])  # more queries than are compared at a time
def test_frequency_rank_counts_tables_shared_with_one_query(given: dict[str, int]) -> None:
    v = view(**given)
    asked, stored = codes_of(v, bits=3, tables=9, seed=4)
    score = build_strategy("frequency_rank", bits=3, tables=9, seed=4, tie="none", trail=0).score(v)
    for b, g, j in itertools.product(range(B), range(G), range(2, M)):  # anchors have no score
        by_query = [(asked[:, b, g, q] == stored[:, b, g, j]).sum() for q in range(asked.shape[-1])]
        assert score[b, g, j] == max(by_query)


def test_long_codes_are_compared_whole() -> None:
    """Codes of more than 15 bits: 1 and 65,537 have their last 16 bits in common."""
    asked, stored = torch.full((3, 1, 1, 1), 65537), torch.tensor([1, 65537]).expand(3, 1, 1, 2)
    assert most_matches(asked, stored).tolist() == [[[0, 3]]]


def test_frequency_rank_breaks_ties_and_nothing_else() -> None:
    v = view()
    plain = build_strategy("frequency_rank", tie="none", trail=0).score(v)
    for tie in TIES:
        score = build_strategy("frequency_rank", tie=tie, trail=0).score(v)
        assert torch.equal(score.floor(), plain)


def test_tie_breakers_are_what_they_say() -> None:
    v = view()
    queries, keys = v.grouped[0, 0], v.choices[0, 0]
    mean, variance = queries.mean(0), queries.var(0, correction=0)
    parts = torch.stack([part.mean(0) for part in queries.tensor_split(4)])
    wanted = {
        "l2": -(keys - mean).norm(dim=-1),
        "max_sim": cosine_similarity(keys[:, None], queries[None], dim=-1).amax(1),
        "mahalanobis": -((keys - mean) ** 2 / variance).sum(-1),
        "partitioned_centroid": cosine_similarity(keys[:, None], parts[None], dim=-1).amax(1),
    }
    for name, want in wanted.items():
        found = TIES[name](v.grouped, v.choices)[0, 0]
        assert found.argsort().tolist() == want.argsort().tolist()
        assert ((found >= 0) & (found <= 1)).all()


def test_codes_do_not_depend_on_length() -> None:
    family, x = SimHash(G, 8, bits=10, tables=5, seed=0), view().keys
    assert torch.equal(family(x), family(2 * x))


@pytest.mark.parametrize("degrees", [10.0, 45.0, 80.0])
def test_sampling_probability_is_what_tables_do(degrees: float) -> None:
    """Monte Carlo over 4,000 sets of tables, within four standard deviations."""
    bits, tables, trials, angle = 3, 6, 4000, math.radians(degrees)
    family = SimHash(1, 2, bits=bits, tables=tables * trials, seed=0)
    vectors = torch.tensor([[[[1.0, 0.0], [math.cos(angle), math.sin(angle)]]]], dtype=torch.float64)
    codes = family(vectors)[:, 0, 0].view(trials, tables, 2)
    meets = codes[..., 0] == codes[..., 1]
    p = (1 - angle / math.pi) ** bits
    assert abs(meets.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / meets.numel())
    u = float(sampling_probability(torch.tensor(math.cos(angle), dtype=torch.float64), bits, tables))
    sampled = (meets.sum(-1) >= 2).double().mean()
    assert abs(sampled - u) < 4 * math.sqrt(u * (1 - u) / trials)


@pytest.mark.parametrize(
    ("cos", "u150", "u170"), [(0.0, 0.0097, 0.0123), (0.2, 0.087, 0.107), (0.5, 0.736, 0.796), (0.7, 0.998, 0.999)]
)
def test_sampling_probability_has_the_values_of_the_formula(cos: float, u150: float, u170: float) -> None:
    found = [float(sampling_probability(torch.tensor(cos, dtype=torch.float64), 10, tables)) for tables in (150, 170)]
    assert found == pytest.approx([u150, u170], abs=6e-4)


def test_rounding_beyond_one_does_not_leave_the_arc_cosine() -> None:
    assert float(sampling_probability(torch.tensor(1.0000001), 10, 150)) == pytest.approx(1.0)
    assert float(sampling_probability(torch.tensor(-1.0000001), 10, 150)) == 0.0


def test_magicpig_puts_what_its_tables_sample_first() -> None:
    v = view()
    asked, stored = codes_of(v, bits=6, tables=9, seed=4)
    sampled = ((asked.unsqueeze(-1) == stored.unsqueeze(-2)).sum(0) >= 2).any(-2)
    score = build_strategy("magicpig_baseline", bits=6, tables=9, seed=4, tie="none", trail=0).score(v)
    assert torch.equal((score >= 1)[..., 2:], sampled[..., 2:])  # anchors have no score
    assert 0.05 < sampled.double().mean() < 0.95


# Hybrid and selection.


class Given(Strategy):
    """Scores that somebody wrote down."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def score(self, view: View) -> Tensor:
        return self.scores


def chosen(strategy: Strategy, v: View) -> Tensor:
    fixed = ~v.candidates
    return keep(strategy.score(v), fixed, torch.zeros_like(fixed), int(fixed[0, 0].sum()) + ROOM)


def parts(seed: int = 0) -> tuple[Strategy, Strategy]:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, B, G, M, generator=draw, dtype=torch.float64)
    return Given(scores[0]), Given(scores[1])


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_hybrid_of_one_part_is_that_part(ratio: float) -> None:
    first, second = parts()
    assert torch.equal(chosen(Hybrid(first, second, ratio=ratio), view()), chosen(first if ratio else second, view()))
    real = build_strategy("exact"), build_strategy("frequency_rank")
    assert torch.equal(chosen(Hybrid(*real, ratio=ratio), view()), chosen(real[0] if ratio else real[1], view()))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_a_hybrid_is_the_disjoint_union_of_two_choices(ratio: float) -> None:
    v, (first, second) = view(), parts()
    share = round(ratio * ROOM)
    index = chosen(Hybrid(first, second, ratio=ratio), v)
    for b, g in itertools.product(range(B), range(G)):
        options = [j for j in range(M) if v.candidates[b, g, j]]
        one = sorted(options, key=lambda j: -float(first.score(v)[b, g, j]))[:share]
        rest = [j for j in options if j not in one]
        two = sorted(rest, key=lambda j: -float(second.score(v)[b, g, j]))[: ROOM - share]
        fixed = [j for j in range(M) if not v.candidates[b, g, j]]
        assert index[b, g].tolist() == sorted(fixed + one + two)


@pytest.mark.parametrize("short", ["first", "second", "both"])
def test_a_hybrid_fills_the_room_where_a_part_has_too_little(short: str) -> None:
    v, (first, second) = view(), parts()
    for part in (first,) * (short != "second") + (second,) * (short != "first"):
        assert isinstance(part, Given)
        part.scores[..., :8] += 100  # evidence for tokens 2 to 7 of the candidates alone
        part.scores[..., 8:] = -math.inf
    index = chosen(Hybrid(first, second, ratio=0.5), v)
    assert index.shape[-1] == 7 + ROOM
    wanted = 6 if short == "both" else 5
    assert (((index >= 2) & (index < 8)).sum(-1) >= wanted).all()


def test_parts_that_keep_running_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="H2O"):
        Hybrid(build_strategy("h2o"), build_strategy("exact"))


def test_parts_look_with_as_many_queries_as_alone() -> None:
    few, many = build_strategy("exact", observes=2), build_strategy("random")
    v = view(queries=5)
    alone = chosen(few, replace(v, queries=v.queries[:, :, -2:]))
    assert torch.equal(chosen(Hybrid(few, many, ratio=1.0), v), alone)


def test_keeping_is_forced_then_best_then_hidden() -> None:
    scores = torch.tensor([[[5.0, 9.0, 1.0, -math.inf, 7.0, 8.0]]])
    forced = torch.tensor([[[False, False, True, False, False, False]]])
    hidden = torch.tensor([[[False, True, False, False, False, False]]])
    kept = [keep(scores, forced, hidden, count)[0, 0].tolist() for count in range(1, 7)]
    assert kept == [[2], [2, 5], [2, 4, 5], [0, 2, 4, 5], [0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_of_equals_the_later_stay() -> None:
    no = torch.zeros(1, 1, 6, dtype=torch.bool)
    assert keep(torch.zeros(1, 1, 6), no, no, 2)[0, 0].tolist() == [4, 5]


@pytest.mark.parametrize("name", [*STRATEGIES])
def test_h2o_alone_looks_at_every_chunk(name: str) -> None:
    built: Any = build_strategy(name)
    assert built.accumulates == (name == "h2o")
    assert (built.observes is None) == (name == "h2o")
