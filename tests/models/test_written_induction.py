"""The written model finds exactly what followed an earlier context, at any distance, among decoys."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from models import written_induction
from tasks.text import TextBytes

FOLDER = Path(written_induction.__file__).parent / "written-induction"


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER)


def needle(distance: int, seed: int, decoys: int = 0) -> tuple[bytes, bytes]:
    """Standard-library text with a key's number `distance` bytes before its end, and the key again; and the number."""
    draw = random.Random(seed)
    body = bytes(TextBytes().tokens(distance + 200, seed=seed).tolist())
    key, value = ("".join(draw.choices(letters, k=7)) for letters in (string.ascii_lowercase, string.digits))
    pieces = [f"\nThe magic number of {key} is {value}.\n".encode()]
    for _ in range(decoys):
        other, number = ("".join(draw.choices(letters, k=7)) for letters in (string.ascii_lowercase, string.digits))
        pieces.append(f"\nThe magic number of {other} is {number}.\n".encode())
    places = [200, *(draw.randrange(len(body)) for _ in range(decoys))]
    for place, piece in sorted(zip(places, pieces, strict=True), reverse=True):
        body = body[:place] + piece + body[place:]
    return body + f"\nThe magic number of {key} is ".encode(), value.encode()


@torch.no_grad()
def answer(model: Any, prompt: bytes, length: int) -> tuple[bytes, float]:
    """Greedy continuation, and the least probability that one of its bytes had."""
    ids = torch.tensor([list(prompt)])
    out = model.generate(ids, max_new_tokens=length, do_sample=False, output_scores=True, return_dict_in_generate=True)
    probabilities = torch.stack(out.scores).softmax(-1).amax(-1)
    return bytes(out.sequences[0, len(prompt) :].tolist()), probabilities.min().item()


@pytest.mark.parametrize("distance", [16, 100, 500, 2048])
@pytest.mark.parametrize("decoys", [0, 4])
def test_a_number_is_found_at_any_distance(model: Any, distance: int, decoys: int) -> None:
    prompt, value = needle(distance, seed=distance, decoys=decoys)
    output, probability = answer(model, prompt, len(value))
    assert output == value
    assert probability > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("distance", [16, 256, 1024, 2048, 4096])
def test_ten_numbers_of_ten_are_found_among_five(model: Any, distance: int) -> None:
    found = [needle(distance, seed, decoys=4) for seed in range(10)]
    assert all(answer(model, prompt, len(value))[0] == value for prompt, value in found)


def test_the_byte_after_the_longest_match_wins_over_shorter_and_later_ones(model: Any) -> None:
    assert answer(model, b"the wide red fox. a pale red cat. one red dog. the wide red ", 3)[0] == b"fox"


def test_repeated_random_bytes_are_predicted_from_the_second_time_on(model: Any) -> None:
    once = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    ids: Int[Tensor, "1 n"] = torch.cat((once, once))[None]
    with torch.no_grad():
        output = model(ids).logits[0].argmax(-1)
    assert torch.equal(output[256 + 8 : -1], ids[0, 256 + 9 :])


def test_the_weights_that_are_stored_are_those_that_are_written() -> None:
    stored = load_file(FOLDER / "model.safetensors")
    written = {name: x for name, x in written_induction.build().state_dict().items() if name in stored}
    assert stored.keys() == written.keys()
    assert all(torch.equal(stored[name], written[name]) for name in stored)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4_000_000


def test_bytes_are_words_of_the_nordstrom_robinson_code() -> None:
    codes: Float[Tensor, "256 16"] = written_induction.codes()
    products = codes @ codes.T
    values, counts = torch.unique(products[0], return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {-16: 1, -4: 112, 0: 30, 4: 112, 16: 1}
    assert (products - 16 * torch.eye(256)).max() == 4
    assert torch.equal(codes[:128], -codes[128:])
