from __future__ import annotations

import pytest

from harness.results.series import group_series
from tests.harness.planted import row


def test_a_series_is_all_that_shares_an_identity_except_n_and_round():
    rows = [row(128, turn=0), row(128, turn=1), row(256), row(128, label="other"), row(128, dtype="float16")]
    series = group_series(rows)
    assert [(one.label, one.case.dtype, len(one.rows)) for one in series] == [
        ("planted", "float32", 3),
        ("other", "float32", 1),
        ("planted", "float16", 1),
    ]
    assert series[0].case.n == 0
    assert len({one.key for one in series}) == 3


def test_times_are_raw_samples_by_size_and_round():
    rows = [row(256, samples_s=[3.0, 4.0]), row(128, turn=1, samples_s=[2.0]), row(128, turn=0, samples_s=[1.0])]
    assert group_series(rows)[0].times() == {128: [[1.0], [2.0]], 256: [[3.0, 4.0]]}


def test_a_row_with_a_time_but_no_samples_counts_as_one_sample():
    assert group_series([row(128, time_s=0.5)])[0].times() == {128: [[0.5]]}


def test_the_later_row_of_one_size_and_round_counts():
    rows = [row(128, samples_s=[9.0]), row(128, samples_s=[1.0])]
    assert group_series(rows)[0].times() == {128: [[1.0]]}


def test_a_quantity_is_a_field_or_a_metric():
    (series,) = group_series([row(128, flops=7.0, metrics={"error": 0.25}), row(256, metrics={"error": 0.5})])
    assert series.quantity("flops") == {128: [[7.0]]}
    assert series.quantity("error") == {128: [[0.25]], 256: [[0.5]]}
    assert series.quantity("no_such_metric") == {}


def test_a_field_that_is_no_number_is_refused():
    (series,) = group_series([row(128)])
    with pytest.raises(ValueError, match="quantity 'device': must be a numeric field"):
        series.quantity("device")


def test_cells_without_any_answer_are_censored_with_their_reason():
    rows = [row(128, samples_s=[1.0]), row(256, status="oom", reason="512 GB wanted"), row(512, status="skipped")]
    (series,) = group_series(rows)
    assert series.censored() == {256: ("oom", "512 GB wanted"), 512: ("skipped", "")}
    assert series.times() == {128: [[1.0]]}
    assert series.measured()


def test_a_round_that_was_skipped_leaves_the_others():
    (series,) = group_series([row(128, samples_s=[1.0]), row(128, turn=1, status="skipped")])
    assert series.censored() == {}
    assert series.times() == {128: [[1.0]]}


def test_an_answer_that_was_wrong_once_gives_no_time_at_all():
    (series,) = group_series([row(128, samples_s=[1.0]), row(128, turn=1, status="wrong", reason="off by 1e-2")])
    assert series.times() == {}
    assert series.censored() == {128: ("wrong", "off by 1e-2")}
    assert not series.measured()
