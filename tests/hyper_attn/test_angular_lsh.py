"""Codes whose order is that of a Gray sequence."""

from __future__ import annotations

import itertools

import pytest
import torch

from hyper_attn.angular_lsh import AngularLSH, gray_order


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
def test_neighbouring_words_differ_in_one_bit(bits: int) -> None:
    words = gray_order(bits)
    assert sorted(words.tolist()) == list(range(2**bits))
    assert {int(x).bit_count() for x in words[1:] ^ words[:-1]} == {1}


def test_vectors_of_neighbouring_codes_differ_in_one_sign() -> None:
    lsh = AngularLSH(5, 3, seed=1)
    x = torch.randn(1, 1, 4000, 5, generator=torch.Generator().manual_seed(0))
    code, signs = lsh(x)[0, 0], x[0, 0] @ lsh.projections.T > 0
    of_code = [signs[code == c] for c in range(8)]
    assert all(len(x) and (x == x[0]).all() for x in of_code)
    distances = [(a[0] != b[0]).sum().item() for a, b in itertools.pairwise(of_code)]
    assert distances == [1] * 7


def test_length_of_a_vector_does_not_change_its_code() -> None:
    lsh, x = AngularLSH(16), torch.randn(2, 3, 50, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lsh(x), lsh(1000 * x))
    assert not torch.equal(lsh(x), lsh(-x))


def test_projections_are_a_function_of_the_seed() -> None:
    assert torch.equal(AngularLSH(16, seed=3).projections, AngularLSH(16, seed=3).projections)
    assert not torch.equal(AngularLSH(16, seed=3).projections, AngularLSH(16, seed=4).projections)


@pytest.mark.parametrize("num_projs", [0, 17])
def test_impossible_number_of_projections_is_refused(num_projs: int) -> None:
    with pytest.raises(ValueError, match=f"num_projs={num_projs} is not allowed: it must be from 1 to 16"):
        AngularLSH(16, num_projs)
