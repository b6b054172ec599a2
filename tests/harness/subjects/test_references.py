"""Shared inputs and exact rows: made once, the same for every backend, safe from every case."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.inputs import make_inputs
from harness.subjects import references
from harness.subjects.references import CALIBRATION, SAMPLED_ROWS, MakeReferences, NoSampleError, Store, sampled_rows
from tests.harness.backends import softmax
from tests.harness.cases import a_case


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_is_read_is_what_the_source_of_inputs_makes(store: Store) -> None:
    case = a_case()
    store.make(case, [0, 1])
    for variant in (0, 1):
        made = make_inputs(case, variant)
        for found, expected in zip(store.inputs(case, variant), (made.q, made.k, made.v), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_exact_rows_are_softmax_attention_in_float64(store: Store, causal: bool) -> None:
    case = a_case(causal=causal)
    store.make(case, [0])
    q, k, v = (tensor.double() for tensor in store.inputs(case, 0))
    expected = softmax(q, k, v, case.head_dim**-0.5, causal=causal)[:, :, sampled_rows(case.n, case.seed)]
    exact = store.exact(case)
    assert exact is not None
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)


def test_decoding_has_one_row_after_n(store: Store) -> None:
    case = a_case(mode="decode", n=100)
    store.make(case, [0])
    q, k, _ = store.inputs(case, 0)
    exact = store.exact(case)
    assert exact is not None
    assert (q.shape[2], k.shape[2], exact.shape[2]) == (1, 101, 1)


def test_a_layer_gets_x_and_no_exact_rows(store: Store) -> None:
    case = a_case(level="layer")
    store.make(case, [0])
    (x,) = store.inputs(case, 0)
    assert (x.shape, store.exact(case)) == ((1, case.n, case.heads * case.head_dim), None)


def test_backends_share_files_and_other_sizes_do_not(store: Store) -> None:
    store.make(a_case(), [0])
    same = a_case(backend="flash", label="other", settings={"a": 1}, subject="accuracy", mode="train", threads=7)
    assert store.missing(same, (0, 1)) == [1]
    for change in ({"n": 512}, {"seed": 1}, {"inputs": "planted"}, {"dtype": "float64"}, {"causal": False}):
        assert store.missing(a_case(**change), (0,)) == [0], change


def test_writing_into_inputs_changes_a_copy_only(store: Store) -> None:
    case = a_case()
    store.make(case, [0])
    q = store.inputs(case, 0)[0]
    before = q.clone()
    q.zero_()
    torch.testing.assert_close(store.inputs(case, 0)[0], before, rtol=0, atol=0)


def test_a_file_that_is_being_written_does_not_count(store: Store, tmp_path: Path) -> None:
    case = a_case()
    store.make(case, [0])
    (whole,) = tmp_path.iterdir()
    whole.rename(whole.with_suffix(".part"))
    assert store.missing(case, (0,)) == [0]


def test_a_disk_that_is_full_half_way_leaves_no_file_behind_that_counts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(references, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        store.make(a_case(), [0])
    assert store.missing(a_case(), (0,)) == [0]
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_find_no_room_are_told_from_those_that_cannot_be_made(tmp_path: Path) -> None:
    assert "No such file" in MakeReferences(tmp_path / "nowhere", a_case(), [0]).run()
    assert MakeReferences(tmp_path, a_case(), [0]).run() == ""


def own_file(path: Path, positions: int) -> str:
    tensors = {"q": (1, 2, positions, 8), "k": (1, 1, positions, 8), "v": (1, 1, positions, 16)}
    save_file({name: torch.randn(shape) for name, shape in tensors.items()}, path)
    return str(path)


def test_a_file_that_leaves_nothing_to_calibrate_on_says_so_to_whoever_asks(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    case, store = a_case(inputs=own_file(tmp_path / "own.safetensors", 256)), Store(tmp_path / "cache")
    store.make(case, (0, 1, CALIBRATION))
    assert store.missing(case, (0, 1, CALIBRATION)) == []
    assert [tensor.shape[2] for tensor in store.inputs(case, 0)] == [256, 256, 256]
    with pytest.raises(NoSampleError, match="has no data left for calibration"):
        store.inputs(case, CALIBRATION)
    roomy = a_case(inputs=own_file(tmp_path / "longer.safetensors", 300))
    store.make(roomy, [CALIBRATION])
    assert [tensor.shape[2] for tensor in store.inputs(roomy, CALIBRATION)] == [44, 44, 44]


def test_fingerprints_come_back_by_key(store: Store) -> None:
    assert store.fingerprint("abc") == {}
    store.keep_fingerprint("abc", {0: torch.ones(2), 1: torch.zeros(3)})
    assert {variant: rows.tolist() for variant, rows in store.fingerprint("abc").items()} == {0: [1, 1], 1: [0, 0, 0]}


@pytest.mark.parametrize("queries", [1, 63, 64, 65, 500, 262_144])
def test_sampled_rows_are_distinct_spread_and_hold_the_last(queries: int) -> None:
    rows = sampled_rows(queries, 3)
    assert len(rows) == min(queries, SAMPLED_ROWS)
    assert bool((rows.diff() > 0).all())
    assert rows[0] >= 0
    assert rows[-1] == queries - 1
    if queries > 2:
        assert abs(int((rows < queries // 2).sum()) - len(rows) // 2) <= 1
