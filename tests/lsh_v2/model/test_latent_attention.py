"""Latent attention against its formula written out, and decoding in the latent space against decoding outside it."""

from __future__ import annotations

import pytest
import torch

from lsh_v2.model.latent_attention import LatentProjection
from lsh_v2.model.mixer import Mixer
from lsh_v2.model.rotary import rotate, rotation
from tests.lsh_v2.small import logits, small_config, small_model, token_ids

CPU = torch.device("cpu")


def mixer(**settings: object) -> Mixer:
    torch.manual_seed(0)
    return Mixer(small_config(n_heads=4, n_kv_heads=2, **settings), 0).double().eval()


def test_rotated_products_depend_on_the_difference_of_positions_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64)

    def product(i: int, j: int) -> torch.Tensor:
        one, two = (rotation(at, 1, 6, 100.0, device=CPU, dtype=torch.float64) for at in (i, j))
        return (rotate(q, one) * rotate(k, two)).sum()

    torch.testing.assert_close(product(107, 100), product(7, 0), rtol=1e-12, atol=1e-12)
    assert abs(product(7, 0) - product(6, 0)) > 1e-3
    torch.testing.assert_close(rotate(q, rotation(3, 1, 6, 100.0, device=CPU)).norm(), q.norm())


@pytest.mark.parametrize("query_latent_dim", [None, 5])
def test_output_is_the_published_formula(query_latent_dim: int | None) -> None:
    m = mixer(query_latent_dim=query_latent_dim, rope_dim=6)
    p = m.projection
    assert isinstance(p, LatentProjection)
    x = torch.randn(2, 9, 48, dtype=torch.float64)
    at = rotation(0, 9, 6, 1000.0, device=CPU, dtype=torch.float64)
    down = x @ p.down.weight.T
    latent = torch.nn.functional.rms_norm(down[..., :48], (48,), p.norm.weight)
    rotary = rotate(down[:, None, :, 48:], at)[:, 0]
    q, (w_uk, w_uv) = p.to_q(x).view(2, 9, 4, 18), p.up_matrices()
    rows = []
    for h in range(4):
        bare, turned = q[:, :, h, :12], rotate(q[:, None, :, h, 12:], at)[:, 0]
        k, v = latent @ w_uk[h // 2].T, latent @ w_uv[h // 2].T
        scores = (bare @ k.mT + turned @ rotary.mT) / 18**0.5
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
        rows.append(scores.softmax(-1) @ v)
    want = torch.cat(rows, dim=-1) @ m.output.weight.T
    torch.testing.assert_close(m(x, at)[0], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["vanilla", "flash"])
def test_absorbed_decoding_is_plain_decoding_with_a_smaller_state(name: str) -> None:
    ids, sizes = token_ids(33), {}
    for absorbed in (True, False):
        model = small_model(attention=name, absorbed_decoding=absorbed, latent_dim=10, rope_dim=4)
        stream = model.stream(len(ids))
        assert stream is not None
        pieces = [stream.extend(piece) for piece in ids.split([9, 1, 1, 20, 1, 1], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), logits(model, ids), rtol=1e-9, atol=1e-10)
        sizes[absorbed] = stream.state_bytes
    tokens_kept = 4 * 3 * 33 * 8  # layers, sequences, tokens, bytes of a float64
    assert sizes == {True: tokens_kept * (10 + 4), False: tokens_kept * 2 * (8 + 4 + 8)}


def test_hashed_attention_takes_its_codes_from_the_expanded_keys() -> None:
    """The attention sees the very keys that `expand` makes, so hashing them needs nothing of its own."""
    m = mixer(attention="simhash")
    seen = []
    m.attention.register_forward_hook(lambda _module, args, _out: seen.append(args[1]))
    x, at = torch.randn(1, 7, 48, dtype=torch.float64), rotation(0, 7, m.attention.head_dim - 12, 1000.0, device=CPU)
    m(x, at)
    assert isinstance(m.projection, LatentProjection)
    torch.testing.assert_close(seen[0], m.projection.expand(*m.projection.cached(x, at))[1])
