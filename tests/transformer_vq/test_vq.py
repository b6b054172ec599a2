"""The quantiser: what it learns, what it reports, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from transformer_vq.nn.vq import VectorQuantiser

HEADS, CENTRES, DIM = 2, 6, 5


def centres() -> Tensor:
    return 5 * torch.randn(HEADS, CENTRES, DIM, generator=torch.Generator().manual_seed(3))


def batch(seed: int, rows: int = 300) -> Tensor:
    """Vectors around planted centres, (2, heads, rows, dim)."""
    draw = torch.Generator().manual_seed(seed)
    chosen = centres()[:, torch.randint(CENTRES, (2 * rows,), generator=draw)]
    found = chosen + 0.1 * torch.randn(chosen.shape, generator=draw)
    return found.unflatten(1, (2, rows)).transpose(0, 1)


def train(quantiser: VectorQuantiser, steps: int) -> None:
    quantiser.train()
    for step in range(steps):
        x = batch(step)
        quantiser.update(x, quantiser(x).codes)


def test_codebook_converges_to_the_means_of_planted_clusters() -> None:
    quantiser = VectorQuantiser(HEADS, CENTRES, DIM, gamma=0.9)
    quantiser.mount(centres() + 0.5 * torch.randn(HEADS, CENTRES, DIM, generator=torch.Generator().manual_seed(4)))
    assert (quantiser.codebook - centres()).norm(dim=-1).max() > 0.5
    train(quantiser, 100)
    assert (quantiser.codebook - centres()).norm(dim=-1).max() < 0.05


def test_running_means_are_those_of_the_paper() -> None:
    quantiser = VectorQuantiser(1, 2, 1, gamma=0.75, dead=0.0)
    quantiser.mount(torch.tensor([[[0.0], [10.0]]]))
    x = torch.tensor([[[[1.0], [2.0], [12.0]]]])
    quantiser.update(x, quantiser(x).codes)
    torch.testing.assert_close(quantiser.counts, torch.tensor([[0.75 + 0.25 * 2, 0.75 + 0.25]]))
    torch.testing.assert_close(quantiser.codebook[0, :, 0], torch.tensor([0.25 * 3 / 1.25, 7.5 + 0.25 * 12]))


def test_first_training_batch_starts_the_codebook_and_eval_changes_nothing() -> None:
    quantiser = VectorQuantiser(HEADS, CENTRES, DIM).eval()
    drawn = quantiser.codebook.clone()
    quantiser(batch(0))
    assert torch.equal(quantiser.codebook, drawn)
    quantiser.train()(batch(0))
    started = quantiser.codebook.clone()
    assert (torch.cdist(centres(), started).amin(-1) < 0.2).all()
    quantiser(batch(1))
    assert torch.equal(quantiser.codebook, started)


def test_dead_codes_are_seeded_anew_and_come_into_use() -> None:
    quantiser = VectorQuantiser(HEADS, 12, DIM, gamma=0.5).train()
    far = torch.full((HEADS, 12, DIM), 1e3)
    far[:, :2] = centres()[:, :2]
    quantiser.mount(far)
    x = batch(0)
    assert quantiser(x).codes.unique().numel() <= 2
    seeded = torch.zeros(HEADS, dtype=torch.int64)
    for step in range(40):
        x = batch(step)
        seeded += quantiser.update(x, quantiser(x).codes)
    assert (seeded >= 10).all()
    last = quantiser(x)
    assert all(last.codes[:, h].unique().numel() == 12 for h in range(HEADS))
    assert (quantiser.counts >= quantiser.dead * quantiser.counts.mean(-1, keepdim=True)).all()


def test_no_code_is_dead_after_an_update() -> None:
    quantiser = VectorQuantiser(1, 4, 1, gamma=0.0, dead=0.1).train()
    quantiser.mount(torch.tensor([[[0.0], [1.0], [50.0], [60.0]]]))
    x = torch.tensor([[[[0.1], [0.9], [0.2], [1.1]]]])
    assert quantiser.update(x, quantiser(x).codes).tolist() == [2]
    assert quantiser.codebook.max() < 2


def test_perplexity_is_the_number_of_codes_in_equal_use() -> None:
    quantiser = VectorQuantiser(1, 8, 1)
    quantiser.mount(torch.arange(8.0).view(1, 8, 1))
    assert math.isclose(quantiser(torch.arange(4.0).view(1, 1, 4, 1)).perplexity.item(), 4, rel_tol=1e-6)
    assert math.isclose(quantiser(torch.zeros(1, 1, 9, 1)).perplexity.item(), 1, rel_tol=1e-6)


def test_commitment_is_the_squared_distance_with_its_gradient() -> None:
    quantiser = VectorQuantiser(2, 2, 1)
    quantiser.mount(torch.tensor([[[0.0], [4.0]], [[0.0], [4.0]]]))
    x = torch.tensor([[[[1.0], [4.0]], [[3.0], [0.0]]]], requires_grad=True)
    found = quantiser(x)
    assert found.commitment.item() == found.codebook.item() == 1.0  # (1 + 1 + 0 + 0) over 2 positions
    assert not found.codebook.requires_grad
    (grad,) = torch.autograd.grad(found.commitment, x)
    torch.testing.assert_close(grad, torch.tensor([[[[1.0], [0.0]], [[-1.0], [0.0]]]]))


def test_codewords_have_the_gradient_of_the_vectors() -> None:
    quantiser = VectorQuantiser(HEADS, CENTRES, DIM)
    x = batch(0, rows=10).requires_grad_()
    upstream = torch.randn_like(x)
    (grad,) = torch.autograd.grad(quantiser(x).codewords, x, upstream)
    torch.testing.assert_close(grad, upstream)


def test_fewer_vectors_than_codes_start_a_finite_codebook() -> None:
    quantiser = VectorQuantiser(HEADS, 40, DIM).train()
    x = batch(0, rows=3)
    found = quantiser(x)
    quantiser.update(x, found.codes)
    assert torch.isfinite(quantiser.codebook).all()
    assert found.commitment < 1e-8


@pytest.mark.parametrize("shape", [(2, 6, 4), (1, 6, 5), (6, 5)])
def test_codebook_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    quantiser = VectorQuantiser(HEADS, CENTRES, DIM)
    with pytest.raises(ValueError, match=r"is not allowed: it must be \(2, 6, 5\)"):
        quantiser.mount(torch.zeros(shape))


def test_codebook_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity is not allowed"):
        VectorQuantiser(1, 2, 1).mount(torch.tensor([[[0.0], [math.nan]]]))


def test_state_dict_holds_all_that_was_learnt() -> None:
    one, two = VectorQuantiser(HEADS, CENTRES, DIM), VectorQuantiser(HEADS, CENTRES, DIM, seed=1)
    train(one, 3)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.codebook, two.codebook)
    assert two.started
