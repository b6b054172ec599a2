"""Long-term memory: equal to none while everything fits, bounded when not, and each rule against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attentions import build
from lsh_v2.model.memory import CompressedMemory, HashEvict, InfiniMemory, SegmentedAttention, gate_parameters
from lsh_v2.model.memory.base import Tokens
from lsh_v2.model.projection import Heads
from tests.lsh_v2.small import logits, small_model, token_ids

ALL = ["hash_evict", "compressed", "infini"]
B, H, G, D, E, C = 2, 6, 3, 7, 5, 4


def drawn(length: int, seed: int = 0) -> Heads:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(H, D), (G, D), (G, E), (H, C), (G, C)]
    return Heads(*(torch.randn(B, h, length, d, generator=draw, dtype=torch.float64) for h, d in shapes))


def tokens(heads: Heads) -> Tokens:
    return Tokens(heads.k, heads.v, heads.bare_k)


@pytest.mark.parametrize("memory", [*([name] for name in ALL), ALL])
def test_sequence_within_a_segment_is_as_without_memory(memory: list[str]) -> None:
    model, ids = small_model(memory=memory, memory_segment=24, memory_slots=8), token_ids(24)
    plain = small_model()
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(logits(model, ids), logits(plain, ids), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("memory", [["hash_evict"], ALL, ["compressed"]])
def test_memory_with_room_for_everything_is_full_attention(memory: list[str]) -> None:
    settings = {"memory_segment": 8, "memory_slots": 64, "compression_rate": 1}
    model, plain, ids = small_model(memory=memory, **settings), small_model(), token_ids(61)
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(logits(model, ids), logits(plain, ids), rtol=1e-9, atol=1e-10)
    tight = small_model(memory=memory, **settings | {"memory_slots": 8})
    tight.load_state_dict(model.state_dict())
    assert not torch.allclose(logits(tight, ids), logits(plain, ids))


@pytest.mark.parametrize("memory", [*([name] for name in ALL), ALL])
def test_state_is_bounded_and_used(memory: list[str]) -> None:
    model = small_model(memory=memory, memory_segment=16, memory_slots=8, max_seq_len=4096)
    stream = model.stream(1)
    assert stream is not None
    sizes = []
    for seed in range(12):
        stream.extend(token_ids(16, batch=1, seed=seed))
        sizes.append(stream.state_bytes)
    assert len(set(sizes[-6:])) == 1
    # A token of the first segment still matters once it is far outside the window.
    ids = token_ids(64, batch=1)
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 37
    assert (logits(model, ids) - logits(model, changed))[:, -1].abs().max() > 1e-9


def test_hash_evict_keeps_the_tokens_nearest_to_the_queries_in_hamming_distance() -> None:
    memory, heads = HashEvict(G, D, slots=9, bits=16, seed=0), drawn(30)
    kept, gone = memory.absorb(None, tokens(heads), heads.q)
    assert gone is not None
    assert (kept.length, gone.length) == (9, 21)
    for b in range(B):
        for g in range(G):
            of_k = heads.k[b, g] @ memory.projection[g].double() > 0
            of_q = torch.cat([heads.q[b, h] @ memory.projection[g].double() > 0 for h in (2 * g, 2 * g + 1)])
            distance = (of_k[:, None] != of_q).sum(-1).sum(-1)
            ranked = sorted(range(30), key=lambda i: (int(distance[i]), -i))
            assert torch.equal(kept.v[b, g], heads.v[b, g, sorted(ranked[:9])])
            assert torch.equal(gone.k[b, g], heads.k[b, g, sorted(ranked[9:])])


def test_hash_evict_hands_nothing_on_while_it_has_room() -> None:
    memory, heads = HashEvict(G, D, slots=30, bits=16, seed=0), drawn(30)
    kept, gone = memory.absorb(None, tokens(heads), heads.q)
    assert gone is None
    assert torch.equal(kept.k, heads.k)


def test_compressed_slots_are_means_of_consecutive_tokens() -> None:
    memory, heads = CompressedMemory(slots=8, rate=4), drawn(24)
    state, handed_on = memory.absorb(None, tokens(heads), heads.q)
    torch.testing.assert_close(state.v[:, :, 2], heads.v[:, :, 8:12].mean(2))
    assert torch.equal(handed_on.k, heads.k)


def test_compressed_memory_keeps_the_whole_past_ever_more_coarsely() -> None:
    memory, state, values = CompressedMemory(slots=8, rate=2), None, []
    for seed in range(9):
        heads = drawn(12, seed)
        values.append(heads.v)
        state, _ = memory.absorb(state, tokens(heads), heads.q)
        assert state.k.shape[2] == len(state.counts) <= 8
        past = torch.cat(values, dim=2)
        assert float(state.counts.sum()) == past.shape[2]
        ends = state.counts.cumsum(0).long().tolist()
        for slot, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            torch.testing.assert_close(state.v[:, :, slot], past[:, :, start:end].mean(2))
    assert state is not None
    assert state.counts[0] > state.counts[-1] == 2


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_infini_memory_is_the_published_recurrence(rule: str) -> None:
    memory = InfiniMemory(H, rule=rule).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(memory.gate)
    matrix, sums = torch.zeros(B, G, C, E, dtype=torch.float64), torch.zeros(B, G, C, dtype=torch.float64)
    state = None
    for seed in range(3):
        heads = drawn(10, seed)
        state, handed_on = memory.absorb(state, tokens(heads), heads.q)
        features = F.elu(heads.bare_k) + 1
        told = heads.v
        if rule == "delta" and seed:
            told = told - torch.einsum("bgtc,bgce->bgte", features, matrix) / (features @ sums[..., None])
        matrix = matrix + torch.einsum("bgtc,bgte->bgce", features, told)
        sums = sums + features.sum(2)
        assert torch.equal(handed_on.k, heads.k)
    heads, out = drawn(4, 9), torch.randn(B, H, 4, E, dtype=torch.float64)
    asked = F.elu(heads.bare_q) + 1
    group = [h // 2 for h in range(H)]
    recalled = torch.einsum("bhtc,bhce->bhte", asked, matrix[:, group]) / (asked @ sums[:, group, :, None])
    share = memory.gate.sigmoid()[:, None, None]
    want = share * recalled + (1 - share) * out
    torch.testing.assert_close(memory.merge(state, heads.bare_q, out), want, rtol=1e-10, atol=1e-12)
    assert torch.equal(memory.merge(None, heads.bare_q, out), out)


def test_attention_reads_the_oldest_memory_first_and_the_segment_s_own_keys_last() -> None:
    """Windows of the most recent keys depend on it."""
    attention, heads = build("flash", heads=H, head_dim=D, kv_heads=G, value_dim=E), drawn(13)
    evict, compressed = HashEvict(G, D, slots=4, bits=16, seed=0), CompressedMemory(slots=4, rate=4)
    seen = []
    attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    SegmentedAttention(attention, [evict, compressed], 8)(attention, heads)
    kept, gone = evict.absorb(None, Tokens(*(x[:, :, :8] for x in tokens(heads))), heads.q[:, :, :8])
    assert gone is not None
    want = torch.cat([gone.k.mean(2, keepdim=True), kept.k, heads.k[:, :, 8:]], dim=2)
    torch.testing.assert_close(seen[1], want)


def test_gates_are_named_for_the_optimizer() -> None:
    model = small_model(memory=ALL)
    assert [gate.shape for gate in gate_parameters(model)] == [(6,), (6,)]
    assert gate_parameters(small_model(memory=["hash_evict"])) == []


def test_gradients_flow_through_the_memories() -> None:
    attention = build("flash", heads=H, head_dim=D, kv_heads=G, value_dim=E)
    memories = [HashEvict(G, D, slots=4, bits=16, seed=0), CompressedMemory(slots=4, rate=2)]
    layer = SegmentedAttention(attention, [*memories, InfiniMemory(H, rule="delta").double()], 8)
    inputs = tuple(x.requires_grad_() for x in drawn(20))
    assert torch.autograd.gradcheck(lambda *x: layer(attention, Heads(*x)), inputs, fast_mode=True)
    (first,) = torch.autograd.grad(layer(attention, Heads(*inputs))[:, :, -1].sum(), inputs[2])
    assert first[:, :, :8].abs().amax(-1).max() > 1e-9
