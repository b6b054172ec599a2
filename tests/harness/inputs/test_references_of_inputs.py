"""Rules that inputs of every kind obey."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.inputs import CALIBRATION, make_hidden, make_inputs, why_not
from tests.harness.input_cases import make_case

if TYPE_CHECKING:
    from harness.common.rows import Case

KINDS = ("gaussian", "planted", "text", "file", "function")
MODES = ("forward", "train", "decode")


def own_function(case: Case, variant: int) -> object:
    """A user's function, which knows nothing of shared halves."""
    draw = torch.Generator().manual_seed(1000 * case.seed + variant)
    positions = case.n + (case.mode == "decode")
    if case.level == "layer":
        return torch.randn(case.batch, positions, case.heads * case.head_dim, generator=draw)
    queries = 1 if case.mode == "decode" else positions
    return (
        torch.randn(case.batch, case.heads, queries, case.head_dim, generator=draw),
        torch.randn(case.batch, case.kv_heads, positions, case.head_dim, generator=draw),
        torch.randn(case.batch, case.kv_heads, positions, case.value_dim, generator=draw),
    )


@pytest.fixture(scope="session")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with more sequences and positions than the cases take."""
    path = tmp_path_factory.mktemp("inputs") / "own.safetensors"
    draw = torch.Generator().manual_seed(0)
    shapes = {"q": (3, 6, 59, 11), "k": (3, 3, 59, 11), "v": (3, 3, 59, 5), "x": (3, 59, 66)}
    save_file({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, path)
    return str(path)


@pytest.fixture(scope="session")
def own_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text of random bytes, in which two places hardly ever agree."""
    path = tmp_path_factory.mktemp("inputs") / "own.txt"
    draw = torch.Generator().manual_seed(0)
    path.write_bytes(bytes(torch.randint(256, (70_000,), generator=draw).tolist()))
    return str(path)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, own_file: str, own_text: str) -> str:
    named = {
        "text": f"text:{own_text}",
        "file": own_file,
        "function": "tests.harness.inputs.test_references_of_inputs:own_function",
    }
    return str(named.get(request.param, request.param))


def qkv(case: Case, variant: int) -> tuple[Tensor, Tensor, Tensor]:
    made = make_inputs(case, variant)
    return made.q, made.k, made.v


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_dtypes_are_those_of_the_case(kind: str, mode: str, dtype: str) -> None:
    q, k, v = qkv(make_case(kind, mode=mode, dtype=dtype), 0)
    queries, keys = (1, 24) if mode == "decode" else (23, 23)
    assert (q.shape, k.shape, v.shape) == ((2, 6, queries, 11), (2, 3, keys, 11), (2, 3, keys, 5))
    assert {tensor.dtype for tensor in (q, k, v)} == {getattr(torch, dtype)}


@pytest.mark.parametrize("n", [3, 23])
def test_variants_share_the_first_half_and_differ_after(kind: str, n: int) -> None:
    case = make_case(kind, n=n)
    for zero, one in zip(qkv(case, 0), qkv(case, 1), strict=True):
        assert torch.equal(zero[:, :, : n // 2], one[:, :, : n // 2])
        assert (zero[:, :, n // 2 :] != one[:, :, n // 2 :]).any(dim=-1).any(dim=2).all()  # in each sequence and head


@pytest.mark.parametrize("n", [1, 2])
def test_variants_of_the_shortest_sequences_differ_in_their_last_value(kind: str, n: int) -> None:
    """Keys may agree here: a text's key encodes earlier bytes, which are shared."""
    zero, one = (qkv(make_case(kind, n=n), variant)[2] for variant in (0, 1))
    assert torch.equal(zero[:, :, : n - 1], one[:, :, : n - 1])
    assert (zero[:, :, -1] != one[:, :, -1]).any(dim=-1).all()


def test_variants_of_decoding_share_half_of_the_keys_and_differ_in_the_query(kind: str) -> None:
    case = make_case(kind, mode="decode")
    (q0, k0, v0), (q1, k1, v1) = qkv(case, 0), qkv(case, 1)
    assert torch.equal(k0[:, :, :12], k1[:, :, :12])
    assert torch.equal(v0[:, :, :12], v1[:, :, :12])
    assert not torch.equal(k0[:, :, 12:], k1[:, :, 12:])
    assert not torch.equal(q0, q1)


def test_calibration_is_other_data_with_as_many_queries_as_keys(kind: str) -> None:
    case = make_case(kind, mode="decode")
    q, k, v = qkv(case, CALIBRATION)
    assert q.shape[2] == k.shape[2] == v.shape[2] == 23
    attended = {tuple(row) for variant in (0, 1) for row in qkv(case, variant)[2].flatten(0, 2).tolist()}
    if not kind.startswith("text"):  # a byte has one value vector wherever it stands
        assert attended.isdisjoint(tuple(row) for row in v.flatten(0, 2).tolist())
    assert not torch.equal(k, qkv(case, 0)[1][:, :, :23])


def test_inputs_are_the_same_every_time(kind: str) -> None:
    for variant in (0, 1, CALIBRATION):
        for first, second in zip(qkv(make_case(kind), variant), qkv(make_case(kind), variant), strict=True):
            assert torch.equal(first, second)


def test_another_seed_gives_other_inputs(kind: str) -> None:
    if kind.endswith(".safetensors"):
        pytest.skip("a file is the same for every seed")
    for first, second in zip(qkv(make_case(kind, seed=0), 0), qkv(make_case(kind, seed=1), 0), strict=True):
        assert not torch.equal(first, second)


def test_heads_and_sequences_differ(kind: str) -> None:
    for tensor in qkv(make_case(kind), 0):
        sequences = tensor.flatten(0, 1)
        assert len({tuple(sequence.flatten().tolist()) for sequence in sequences}) == len(sequences)


@pytest.mark.parametrize("mode", MODES)
def test_hidden_inputs_obey_the_same_rules(kind: str, mode: str) -> None:
    case = make_case(kind, mode=mode, level="layer", dtype="float64")
    zero, one = make_hidden(case, 0), make_hidden(case, 1)
    positions = 24 if mode == "decode" else 23
    assert zero.shape == one.shape == (2, positions, 66)
    assert zero.dtype == torch.float64
    assert torch.equal(zero[:, : positions // 2], one[:, : positions // 2])
    assert (zero[:, positions // 2 :] != one[:, positions // 2 :]).flatten(1).any(dim=1).all()
    assert make_hidden(case, CALIBRATION).shape == (2, 23, 66)


def test_every_kind_says_that_it_can(kind: str) -> None:
    assert why_not(make_case(kind)) == ""


def test_unknown_inputs_are_named_with_the_nearest() -> None:
    message = "unknown inputs 'gausian'; did you mean gaussian"
    assert message in why_not(make_case("gausian"))
    with pytest.raises(ValueError, match=message):
        make_inputs(make_case("gausian"), 0)


def test_a_fourth_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant=3 is not allowed"):
        make_inputs(make_case("gaussian"), 3)


@pytest.mark.parametrize("kind", ["gaussian", "planted", "text"])
def test_calibration_is_never_longer_than_its_limit(kind: str) -> None:
    case = make_case(kind, n=20_000, batch=1, heads=1, kv_heads=1)
    assert make_inputs(case, CALIBRATION).k.shape[2] == 16_384


def test_a_text_file_is_named_in_the_inputs(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_bytes(b"The quick brown fox jumps over the lazy dog. " * 8)
    made = make_inputs(make_case(f"text:{path}"), 0)
    assert made.meta == {"text": str(path)}
