"""What each kind of inputs promises besides the common rules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.inputs import CALIBRATION, Inputs, make_inputs, why_not
from harness.inputs.diagnostics import attention_weights, diagnose, sample_rows, visible_keys
from harness.inputs.planted import heavy_keys
from harness.inputs.text import CONTEXT, contexts, stretches
from tests.harness.input_cases import make_case, one_head

if TYPE_CHECKING:
    from harness.common.rows import Case


def exact_weights(inputs: Inputs, head: int, causal: bool) -> tuple[Tensor, Tensor]:
    """Sampled rows of a head and their exact weights."""
    at = sample_rows(inputs.q.shape[2], 200, seed=1)
    return at, attention_weights(inputs.q[:, head, at], inputs.k[:, head], visible_keys(inputs, at, causal))[0]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1024, 8192])
def test_the_planted_key_has_half_of_the_weight(n: int, causal: bool) -> None:
    case = one_head("planted", n=n, causal=causal)
    inputs, heavy = make_inputs(case, 0), heavy_keys(case, 0)
    for head in range(2):
        at, weights = exact_weights(inputs, head, causal)
        mass = weights.gather(1, heavy[0, head, at][:, None])
        assert mass.mean().item() == pytest.approx(0.5, abs=0.02)
        assert mass.quantile(0.05) > 0.4
        assert mass.quantile(0.95) < 0.6


@pytest.mark.parametrize("variant", [0, 1])
def test_planted_keys_lie_before_their_queries_at_uniform_distances(variant: int) -> None:
    case = one_head("planted", n=4096)
    heavy = heavy_keys(case, variant)[0]
    at = torch.arange(4096)
    assert (heavy[:, 1:] < at[1:]).all()
    assert (heavy >= 0).all()
    shares = heavy[:, 2000:] / at[2000:]
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(heavy[0], heavy[1])


def test_the_planted_key_of_a_decoded_token_has_half_of_the_weight() -> None:
    case = one_head("planted", n=4096, mode="decode")
    inputs, heavy = make_inputs(case, 0), heavy_keys(case, 0)
    weights = attention_weights(inputs.q[:, 0], inputs.k[:, 0], torch.tensor([4097]))
    assert weights[0, 0, heavy[0, 0, 0]].item() == pytest.approx(0.5, abs=0.05)


def test_too_small_a_head_gives_finite_planted_inputs() -> None:
    inputs = make_inputs(one_head("planted", n=4096, head_dim=3), 0)
    assert all(tensor.isfinite().all() for tensor in (inputs.q, inputs.k, inputs.v))


def test_a_context_is_the_weighted_sum_of_its_last_bytes() -> None:
    """Two places with the same last bytes have the same context; one byte that differs changes it."""
    word = list(b"abcdefg")
    tokens = torch.tensor([*b"______", *word, *b"xyz", *word, *b"______"])
    context = contexts(tokens, 32, seed=0, head=0)
    first, second = len(word), 2 * len(word) + 3
    assert len(context) == len(tokens) - CONTEXT + 1
    torch.testing.assert_close(context[first], context[second])
    assert not torch.allclose(context[first - 2], context[second - 2])


def test_text_queries_attend_to_what_followed_their_own_context(tmp_path: Path) -> None:
    """On a text that repeats, the heaviest key of a sharp head is a place with the query's own past."""
    period = 97
    phrase = bytes(torch.randint(33, 126, (period,), generator=torch.Generator().manual_seed(0)).tolist())
    path = tmp_path / "repeats.txt"
    path.write_bytes(phrase * 50)
    inputs = make_inputs(one_head(f"text:{path}", n=1000), 0)
    at, weights = exact_weights(inputs, 0, causal=True)
    assert ((at + 1 - weights.argmax(dim=1)) % period == 0).all()
    followed = inputs.v[0, 0, at[:-1] + 1]
    torch.testing.assert_close(inputs.v[0, 0, weights[:-1].argmax(dim=1)], followed)


def test_the_parts_that_a_case_takes_of_a_text_are_disjoint(tmp_path: Path) -> None:
    path = tmp_path / "numbered.txt"
    path.write_bytes(bytes(range(251)))
    case = make_case(f"text:{path}", n=20)
    plan = stretches(case)
    assert plan.needed == 2 * (CONTEXT + 20 + CONTEXT + 30)
    assert why_not(make_case(f"text:{path}", n=45)) == ""
    assert "is too short: it has 251 bytes, and n=46, batch=2 need 254" in why_not(make_case(f"text:{path}", n=46))
    with pytest.raises(ValueError, match="is too short"):
        make_inputs(make_case(f"text:{path}", n=46), 0)


def test_calibration_reads_other_bytes(tmp_path: Path) -> None:
    """Every byte of this text is there once, so its value vector tells where a position comes from."""
    path = tmp_path / "numbered.txt"
    path.write_bytes(bytes(range(251)))
    case = make_case(f"text:{path}", n=20, kv_heads=1, heads=1)
    taken = [
        {tuple(row) for row in make_inputs(case, variant).v[sequence, 0].tolist()}
        for variant in (0, 1, CALIBRATION)
        for sequence in (0, 1)
    ]
    shared = [len(taken[sequence] & taken[2 + sequence]) for sequence in (0, 1)]
    assert shared == [10, 10]
    assert (taken[0] | taken[2]).isdisjoint(taken[1] | taken[3])
    assert (taken[4] | taken[5]).isdisjoint(taken[0] | taken[1] | taken[2] | taken[3])


def test_an_unreadable_text_is_a_reason() -> None:
    assert "'/nowhere/text' cannot be read: No such file" in why_not(make_case("text:/nowhere/text"))


def own_file(folder: Path, **changes: tuple[int, ...]) -> str:
    shapes = {"q": (2, 6, 23, 11), "k": (2, 3, 23, 11), "v": (2, 3, 23, 5), **changes}
    path = folder / "own.safetensors"
    save_file({name: torch.ones(shape) for name, shape in shapes.items() if shape}, path)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"q": ()}, "the file has no tensor 'q', only k, v"),
        ({"k": (2, 6, 23, 11)}, "k has shape (2, 6, 23, 11); it must be (at least 2, 3, at least 23, 11)"),
        ({"v": (2, 3, 23)}, "v has shape (2, 3, 23); it must be (at least 2, 3, at least 23, 5)"),
        ({"q": (1, 6, 23, 11)}, "q has shape (1, 6, 23, 11); it must be (at least 2, 6, at least 23, 11)"),
        ({"q": (2, 6, 22, 11)}, "q has shape (2, 6, 22, 11); it must be (at least 2, 6, at least 23, 11)"),
    ],
    ids=["missing", "key heads", "axes", "sequences", "positions"],
)
def test_a_file_of_other_shapes_is_refused_with_both(
    tmp_path: Path, changes: dict[str, tuple[int, ...]], reason: str
) -> None:
    case = make_case(own_file(tmp_path, **changes))
    assert reason in why_not(case)
    with pytest.raises(ValueError, match=r"own\.safetensors"):
        make_inputs(case, 0)


def test_a_file_without_x_has_no_layer_inputs(tmp_path: Path) -> None:
    assert "the file has no tensor 'x', only k, q, v" in why_not(make_case(own_file(tmp_path), level="layer"))


def test_a_file_with_nothing_to_spare_cannot_calibrate(tmp_path: Path) -> None:
    case = make_case(own_file(tmp_path))
    assert make_inputs(case, 1).q.shape == (2, 6, 23, 11)
    with pytest.raises(ValueError, match="has no data left for calibration: 2 sequences of 23 positions"):
        make_inputs(case, CALIBRATION)


def test_a_file_calibrates_on_further_sequences(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    shapes = {"q": (3, 6, 23, 11), "k": (3, 3, 23, 11), "v": (3, 3, 23, 5)}
    tensors = {name: torch.arange(3.0)[:, None, None, None].expand(shape).clone() for name, shape in shapes.items()}
    save_file(tensors, path)
    calibration = make_inputs(make_case(str(path)), CALIBRATION)
    assert calibration.v.unique().tolist() == [2.0]


def test_a_file_with_nan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    shapes = {"q": (2, 6, 23, 11), "k": (2, 3, 23, 11), "v": (2, 3, 23, 5)}
    save_file({name: torch.full(shape, torch.nan if name == "k" else 0.0) for name, shape in shapes.items()}, path)
    with pytest.raises(ValueError, match="k has NaN or infinite values"):
        make_inputs(make_case(str(path)), 0)


OWN = {"q": (2, 6, 30, 11), "k": (2, 3, 30, 11), "v": (2, 3, 30, 5)}  # seven positions more than are asked for


def own_tensors(path: Path, name: str, change: Callable[[Tensor], Tensor]) -> str:
    tensors = {key: torch.ones(shape) for key, shape in OWN.items()}
    save_file(tensors | {name: change(tensors[name])}, path)
    return str(path)


def put(value: float, position: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(2, torch.tensor([position]), value)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize(
    ("change", "dtype", "reason"),
    [
        (put(torch.nan, 22), "float32", "has NaN or infinite values; all must be finite"),
        (put(-torch.inf, 0), "float32", "has NaN or infinite values; all must be finite"),
        (put(-7e4, 3), "float16", "reaches 7e+04, above the float16 maximum of 6.55e+04"),
        (put(-7e4, 3), "bfloat16", ""),
        (put(torch.nan, 23), "float32", ""),
        (lambda tensor: tensor.long(), "float32", "has dtype I64; it must be one of F64, F32, F16, BF16"),
        (lambda tensor: tensor.bool(), "float32", "has dtype BOOL; it must be one of"),
        (lambda tensor: tensor.bfloat16(), "float32", ""),
    ],
)
def test_numbers_of_a_file_that_cannot_be_used_are_told_when_planning(
    tmp_path: Path, name: str, change: Callable[[Tensor], Tensor], dtype: str, reason: str
) -> None:
    case = make_case(own_tensors(tmp_path / "own.safetensors", name, change), dtype=dtype)
    found = why_not(case)
    assert found.startswith(f"{name} {reason}") if reason else found == ""


def test_a_file_is_judged_again_once_it_was_replaced(tmp_path: Path) -> None:
    case = make_case(own_tensors(tmp_path / "own.safetensors", "k", put(torch.nan, 0)))
    assert why_not(case) != ""
    own_tensors(tmp_path / "own.safetensors", "k", put(1.0, 0))
    assert why_not(case) == ""


@pytest.mark.parametrize("prefix", ["text:", ""])
def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path: Path, prefix: str) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    assert "it is not a regular file" in why_not(make_case(f"{prefix}{pipe}"))


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b'\x40\0\0\0\0\0\0\0{"q": {"dtype": "F32"'])
def test_a_broken_file_is_one_message(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    assert why_not(make_case(str(path))).startswith(f"inputs file '{path}' cannot be read: ")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text("not tensors at all")
    assert "cannot be read" in why_not(make_case(str(path)))
    assert "cannot be read" in why_not(make_case(str(tmp_path / "absent.safetensors")))


def wrong_shape(case: Case, variant: int) -> object:
    return torch.zeros(2, 3), torch.zeros(case.n), variant


not_a_function = 3


def test_a_function_of_other_shapes_is_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"\[\(2, 3\), \(23,\), 'int'\]; it must return tensors of \[\(2, 6, 23"):
        make_inputs(make_case("tests.harness.inputs.test_kinds:wrong_shape"), 0)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no.such.module:function", "cannot be imported: No module named 'no'"),
        ("tests.harness.inputs.test_kinds:absent", "has no attribute 'absent'"),
        ("tests.harness.inputs.test_kinds:not_a_function", "it must be a function, not 3"),
    ],
    ids=["module", "name", "kind"],
)
def test_a_function_that_cannot_be_called_is_a_reason(path: str, reason: str) -> None:
    assert reason in why_not(make_case(path))


def test_gaussian_attention_is_nearly_uniform() -> None:
    found = diagnose(make_inputs(one_head("gaussian", n=2048), 0), causal=True)
    for nats in found.entropy_nats:
        assert found.uniform_nats - 0.7 < nats < found.uniform_nats  # half a nat below: the variance of scores is one
