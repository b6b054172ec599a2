"""Decoding with LSH v2: any split gives `forward`'s rows, with bounded state and bounded work a token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attentions.common.problem import problem_of
from attentions.lsh_v2.held import Held, Rings
from attentions.lsh_v2.pools import Pools
from tests.attentions.lsh_v2.test_attention import SMALL, inputs, made

pytestmark = pytest.mark.no_type_checks  # thousands of calls of what `test_attention` checks

FEW_CODES: dict[str, Any] = SMALL | {"hash_dim": 1, "n_hashes": 2}  # four a round, so that windows are soon full


def decoded(attention: Any, whole: tuple[Tensor, ...], edges: list[int]) -> Tensor:
    stream = attention.stream(len(whole[0]))
    assert stream is not None
    pairs = zip([0, *edges], [*edges, whole[0].shape[2]], strict=True)
    return torch.cat([stream.extend(*(x[:, :, a:b] for x in whole)) for a, b in pairs], dim=2)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"n_hashes": 0},
        {"samples": 0},
        {"compression_factors": [1], "local": 1},
        {"compression_factors": [3], "local": 3},
        {"kv_heads": 1},
        {"n_hashes": 0, "samples": 0, "global_context": False},
    ],
    ids=str,
)
def test_token_by_token_decodes_like_forward_while_dead_pools_are_dropped(changed: dict[str, Any]) -> None:
    attention = made(heads=3, **FEW_CODES | changed)
    whole = inputs(240, heads=3)
    whole = (whole[0], *(x[:, : attention.kv_heads] for x in whole[1:]))
    want = attention(*whole)
    torch.testing.assert_close(decoded(attention, whole, list(range(1, 240))), want, rtol=1e-10, atol=1e-11)


def test_any_split_of_600_tokens_decodes_like_forward_while_dead_pools_are_dropped() -> None:
    """A prompt, single tokens and pieces in turn, so that each finds what the others left."""
    attention = made(heads=3, **FEW_CODES)
    whole, generator = inputs(600, heads=3), torch.Generator().manual_seed(0)
    want = attention(*whole)
    for _ in range(2):
        starts = torch.randint(1, 580, (9,), generator=generator).tolist()
        edges = sorted({at + i for at in starts for i in range(12)})
        torch.testing.assert_close(decoded(attention, whole, edges), want, rtol=1e-10, atol=1e-11)


def test_a_stream_holds_no_memory_of_its_caller() -> None:
    attention = made(**SMALL)
    whole = inputs(60)
    stream, want = attention.stream(1), attention(*whole)
    assert stream is not None
    for piece in ((0, 40), (40, 41), (41, 42), (42, 50)):
        given = [x[:, :, slice(*piece)].clone() for x in whole]
        torch.testing.assert_close(stream.extend(*given), want[:, :, slice(*piece)], rtol=1e-10, atol=1e-11)
        for x in given:
            x.fill_(torch.nan)


def test_a_copied_stream_goes_its_own_way() -> None:
    attention = made(**FEW_CODES)
    whole = inputs(120)
    want, stream = attention(*whole), attention.stream(1)
    assert stream is not None
    stream.extend(*(x[:, :, :80] for x in whole))
    other = copy.deepcopy(stream)
    for _ in range(30):
        other.extend(*(100 * x[:, :, :1] for x in whole))
    got = [stream.extend(*(x[:, :, t : t + 1] for x in whole)) for t in range(80, 120)]
    torch.testing.assert_close(torch.cat(got, dim=2), want[:, :, 80:], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("piece", "n"), [(1, 600), (100, 3000)])
def test_state_does_not_grow_with_the_sequence(piece: int, n: int) -> None:
    attention = made(**FEW_CODES)
    stream = attention.stream(1)
    assert stream is not None
    q, k, v = inputs(n)
    sizes = []
    for part in zip(*(x.split(piece, dim=2) for x in (q, k, v)), strict=True):
        stream.extend(*part)
        sizes.append(stream.state_bytes)
    late = sizes[len(sizes) // 3 :]
    assert max(late) <= attention.cost(problem_of(attention, q[:, :, : n // 3], k[:, :, : n // 3])).state_bytes
    assert max(late) <= 1.3 * max(sizes[: len(sizes) // 3])
    assert max(sizes) < (k.nbytes + v.nbytes) / 3


def test_cost_counts_the_rings_which_are_most_of_the_state_of_few_tokens() -> None:
    attention = made(**SMALL | {"hash_dim": 8, "bucket_size": 64})
    stream, (q, k, v) = attention.stream(1), inputs(20)
    assert stream is not None
    for t in range(20):
        stream.extend(*(x[:, :, t : t + 1] for x in (q, k, v)))
    most = attention.cost(problem_of(attention, q, k)).state_bytes
    assert 0.5 * most < stream.state_bytes <= most


def held_bytes(x: object) -> int:
    """Of every tensor that an object leads to; modules are not the stream's own."""
    if isinstance(x, Tensor):
        return x.untyped_storage().nbytes()
    if isinstance(x, list | tuple):
        return sum(held_bytes(one) for one in x)
    inside = vars(x) if hasattr(x, "__dict__") and not isinstance(x, torch.nn.Module) else {}
    return sum(held_bytes(one) for one in inside.values())


def test_state_bytes_are_those_of_every_tensor_held_with_the_room_to_grow() -> None:
    attention = made(heads=3, **FEW_CODES)
    stream, (q, k, v) = attention.stream(1), inputs(300, heads=3)
    assert stream is not None
    stream.extend(q[:, :, :100], k[:, :, :100], v[:, :, :100])
    for t in range(100, 300):
        stream.extend(*(x[:, :, t : t + 1] for x in (q, k, v)))
    assert stream.state_bytes == held_bytes(stream)


class Made(TorchDispatchMode):
    """Counts operations and the numbers that they make; views make none."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.operations += 1
            self.numbers += out.numel()
        return out


def test_a_token_makes_no_more_numbers_after_3200_tokens_than_after_800() -> None:
    """No window is full at 800, so that all of what is held grows fourfold meanwhile; a copy of it would show."""
    attention = made(**SMALL | {"hash_dim": 8, "bucket_size": 64, "n_hashes": 2})
    counts = []
    for n in (800, 3200):
        stream = attention.stream(1)
        assert stream is not None
        whole = inputs(n + 4)
        stream.extend(*(x[:, :, :n] for x in whole))
        for t in range(n, n + 3):  # the first of them makes the rings and room
            stream.extend(*(x[:, :, t : t + 1] for x in whole))
        with Made() as counted:
            stream.extend(*(x[:, :, n + 3 :] for x in whole))
        counts.append((counted.operations, counted.numbers))
    assert counts[0] == counts[1]


def test_rings_hold_the_last_pools_of_each_code_however_they_were_filled() -> None:
    codes = torch.randint(6, (2, 3, 80), generator=torch.Generator().manual_seed(0))
    codes[:, 1, :7] = -1  # a row that holds fewer
    grown = Rings.of(codes[:, :, :30], 6, 4)
    for place in range(30, 80):
        grown.add(codes[:, :, place], place)
    for rings in (grown, Rings.of(codes, 6, 4)):
        for r, x, code in ((r, x, c) for r in range(2) for x in range(3) for c in range(6)):
            want = (codes[r, x] == code).nonzero()[-4:, 0].tolist()
            assert rings.place[x, r, code].sort().values.tolist() == [-1] * (4 - len(want)) + want
    every = torch.arange(6).expand(2, 3, -1)
    assert [sorted(set(x.flatten().tolist()) - {-1}) for x in grown.find(every)] == [
        x.nonzero().flatten().tolist() for x in grown.alive(80)
    ]


def test_dropping_keeps_what_some_ring_names_and_moves_the_rings_along() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(4, (1, 2, 200), generator=generator)
    keys = torch.randn(2, 200, 3, generator=generator)
    held, whole = Held(1, 4, 5), Pools(keys, keys, codes, torch.arange(200).expand(2, -1))
    held.take(whole.keep(100))
    for place in range(100, 200):
        held.append(whole.drop(place).keep(1))
    found = held.find(torch.arange(4).expand(1, 2, -1))
    assert found is not None
    assert held.pools is not None
    assert held.pools.index.shape[1] < 60
    for x, code in ((x, c) for x in range(2) for c in range(4)):
        want = (codes[0, x] == code).nonzero()[-5:, 0]
        assert torch.equal(found.index[x, code], want)
        assert torch.equal(found.keys[x, code], keys[x, want])
