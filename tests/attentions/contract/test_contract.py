"""The contract over every backend, and over backends that break it on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from attentions import BACKENDS
from attentions.contract.__main__ import main
from attentions.contract.candidate import Candidate, NotApplicable
from attentions.contract.checks import CHECKS, nan_from_values
from attentions.controls import RandomSupport
from tests.attentions import broken, broken_state

if TYPE_CHECKING:
    from attentions.base import Attention

# All parts of lsh_v2 with trained codes, each part alone (buckets, samples, compression, scan), and all but one.
LSH_V2: dict[str, Any] = {
    "n_hashes": 3, "hash_dim": 2, "bucket_size": 5, "local": 8, "samples": 2, "hash_steps": 0,
}  # fmt: skip
_BARE: dict[str, Any] = {"samples": 0, "compression_factors": [1], "global_context": False}
LSH_V2_ALONE: list[dict[str, Any]] = [
    _BARE,
    {**_BARE, "n_hashes": 0, "samples": 3},
    {**_BARE, "compression_factors": [1, 3], "local": 9},
    {**_BARE, "n_hashes": 0, "global_context": True},
]
LSH_V2_OFF: list[dict[str, Any]] = [{"n_hashes": 0}, *({name: value} for name, value in _BARE.items())]
# Settings small enough that windows truncate and buckets differ; a backend without an entry runs on its defaults.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "bit_sampling": [
        {"bits": 2, "tables": 3, "window": 7, "local": 2},
        {"bits": 1, "tables": 2, "window": 5, "local": 1, "duplicates": "allow", "balanced": True},
        {"bits": 0, "window": 16, "local": 4},
        {},
    ],
    "simhash": [{"bits": 2, "tables": 3, "window": 7, "local": 2, "balanced": True}, {}],
    "lsh_forest": [{"trees": 3, "bits": 6, "min_candidates": 5, "max_candidates": 17, "local": 2}, {}],
    "reformer": [{"hashes": 3, "chunk": 5, "buckets": 6}, {"hashes": 1, "chunk": 16, "buckets": 200}],
    "lsh_v2": [{**LSH_V2, **changes} for changes in ({"hash_steps": 2}, *LSH_V2_ALONE, *LSH_V2_OFF)],
    "mamba": [{}, {"states": 21}],
    "mamba2": [{}, {"chunk": 5}],
    "vq": [{"codes": 19, "block": 16}, {"codes": 1, "block": 1}, {}],
    "vq_qk": [{"codes": 19, "block": 16}, {"codes": 5, "block": 300}, {}],
    "hyper": [
        {"block_size": 16, "sample_size": 8, "min_seq_len": 32},
        {"block_size": 5, "sample_size": 24, "min_seq_len": 7, "lsh_num_projs": 3},
        {},
    ],
}
CLASSES: dict[str, type[Attention]] = {**BACKENDS, "random_support": RandomSupport}
CANDIDATES = {
    f"{name}-{index}-{'causal' if causal else 'full'}": Candidate(backend, {**settings, "causal": causal})
    for name, backend in CLASSES.items()
    for index, settings in enumerate(SETTINGS.get(name, [{}]))
    for causal in (True, False)
}


BROKEN = broken.CASES | broken_state.CASES


def cases() -> Iterator[Any]:
    """Every candidate with every check; types are checked in the first causal settings of each backend."""
    for name, candidate in CANDIDATES.items():
        for check in CHECKS:
            marks = () if name.endswith("-0-causal") else (pytest.mark.no_type_checks,)
            yield pytest.param(candidate, check, id=f"{name}-{check.__name__}", marks=marks)


@pytest.mark.parametrize(("candidate", "check"), list(cases()))
def test_backend_keeps_the_contract(candidate: Candidate, check: Callable[[Candidate], None]) -> None:
    try:
        check(candidate)
    except NotApplicable as reason:
        pytest.skip(str(reason))


@pytest.mark.no_type_checks
@pytest.mark.parametrize(("backend", "caught_by"), BROKEN.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_broken_backend_fails_the_check_that_should_see_it(backend: type[Attention], caught_by: set[str]) -> None:
    failed = set()
    for check in CHECKS:
        try:
            check(Candidate(backend))
        except AssertionError:
            failed.add(check.__name__)
        except NotApplicable:
            pass
    assert caught_by <= failed


def test_every_check_catches_some_broken_backend() -> None:
    assert {check.__name__ for check in CHECKS} == set().union(*BROKEN.values())


@pytest.mark.parametrize("name", CLASSES)
def test_share_of_rows_reached_by_a_future_nan_value_is_a_share(
    name: str, record_property: Callable[..., None]
) -> None:
    share = nan_from_values(Candidate(CLASSES[name], SETTINGS.get(name, [{}])[0]))
    record_property("nan_from_values", share)
    print(f"{name}: a NaN value reaches {share:.0%} of the rows before it")
    assert 0 <= share <= 1


def test_command_line_reports_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tests.attentions.broken:Offset"]) == 1
    assert "agrees_with_naive                FAILS: 1 queries of 1 keys: relative error" in capsys.readouterr().out


def test_command_line_offers_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flsh"]) == 2
    assert "did you mean flash" in capsys.readouterr().err
