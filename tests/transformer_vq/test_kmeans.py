"""Nearest codewords and k-means: against brute force and on planted clusters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transformer_vq import kmeans as module
from transformer_vq.kmeans import kmeans, nearest, tally


def clusters(rows: int = 600, centres: int = 7, dim: int = 5, heads: int = 2) -> tuple[Tensor, Tensor]:
    """Rows around well separated centres, (heads, rows, dim), and the centres."""
    draw = torch.Generator().manual_seed(0)
    means = 10 * torch.randn(heads, centres, dim, generator=draw, dtype=torch.float64)
    near = means[:, torch.arange(rows) % centres]
    return near + 0.1 * torch.randn(near.shape, generator=draw, dtype=torch.float64), means


@pytest.mark.parametrize("at_once", [1, 100, 2**22])
def test_nearest_is_the_code_of_least_distance(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
    x, book = torch.randn(3, 2, 53, 5, dtype=torch.float64), torch.randn(2, 11, 5, dtype=torch.float64)
    want = (x.unsqueeze(3) - book[None, :, None]).square().sum(-1).argmin(-1)
    assert torch.equal(nearest(x, book), want)


def test_nearest_of_equal_codewords_is_the_first() -> None:
    book = torch.tensor([[[1.0, 0], [0, 1], [1, 0]]])
    assert nearest(torch.tensor([[[[2.0, 0], [0, 2]]]]), book).tolist() == [[[0, 1]]]


def test_half_precision_does_not_overflow() -> None:
    book = torch.tensor([[[3e4, 0], [6e4, 0]]], dtype=torch.float16)
    assert nearest(book[None], book).tolist() == [[[0, 1]]]


def test_kmeans_finds_planted_clusters() -> None:
    x, means = clusters()
    book = kmeans(x, 7, generator=torch.Generator().manual_seed(0))
    distance = torch.cdist(means, book).amin(-1)
    assert (distance < 0.1).all()


def test_seeds_lie_further_apart_than_random_rows() -> None:
    """With a seed in each of 7 clusters, which uniform draws hit in 0.6 % of cases, no row is far from one."""
    x, _ = clusters()
    book = kmeans(x, 7, iterations=0, generator=torch.Generator().manual_seed(0))
    assert (torch.cdist(x, book).amin(-1) < 2).all()


def test_lloyd_lowers_the_distance_to_the_nearest_codeword() -> None:
    x = torch.randn(1, 500, 4, generator=torch.Generator().manual_seed(0))
    found = [
        torch.cdist(x, kmeans(x, 16, iterations=i, generator=torch.Generator().manual_seed(0))).amin(-1).mean()
        for i in (0, 1, 10)
    ]
    assert found[0] > found[1] > found[2]


def test_fewer_rows_than_codes_are_all_codewords() -> None:
    x = torch.randn(2, 5, 3)
    book = kmeans(x, 12, generator=torch.Generator().manual_seed(0))
    assert book.shape == (2, 12, 3)
    assert torch.cdist(x, book).amin(-1).max() < 1e-3


def test_draws_are_a_function_of_the_generator() -> None:
    x, _ = clusters()
    before = torch.random.get_rng_state()
    one, two = (kmeans(x, 5, iterations=0, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_row_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="rows=0 is not allowed"):
        kmeans(torch.randn(2, 0, 3), 4)


def test_tally_counts_and_sums_by_code() -> None:
    values, codes = torch.randn(2, 3, 20, 4), torch.randint(6, (2, 3, 20))
    counts, sums = tally(values, codes, 6)
    one_hot = torch.nn.functional.one_hot(codes, 6).double()
    torch.testing.assert_close(counts, one_hot.sum(2))
    torch.testing.assert_close(sums, one_hot.mT @ values.double())
