"""The table of a study: effective sample sizes, paired differences, records and text."""

from typing import Any

import numpy as np
import pytest
from measured import CONTRACT, study_pools

from analysis.variance.compare import Pool, compare
from analysis.variance.moments import MEASURES
from analysis.variance.partition import partitions


def measured(names, pools=None, group_size=4, **options):
    settings: dict[str, Any] = {"num_bootstrap": 200, "num_partitions": 3} | options
    return compare(pools or study_pools(), group_size, names, np.random.default_rng(0), **settings)


def test_effective_sample_size_counts_the_responses_that_the_baseline_averages():
    names = ["none", "group_mean", "length_weighted", "score_norm_weighted_loo", "opo", "batch_mean"]
    table = measured(names, prompts_per_batch=3)
    assert table["none"].effective_sample_size is table["batch_mean"].effective_sample_size is None
    assert table["opo"].effective_sample_size is None
    assert table["group_mean"].effective_sample_size == 4
    lengths = np.array([1.0, 1.0, 2.0, 4.0])
    pool = Pool(np.eye(4), [0, 1, 0, 1], lengths)
    row = measured(["length_weighted"], [pool], group_size=2, num_partitions=1)["length_weighted"]
    (index_BG,) = partitions(4, 2, 1, np.random.default_rng(0))
    expected = np.mean([lengths[g].sum() ** 2 / (lengths[g] ** 2).sum() for g in index_BG])
    assert row.effective_sample_size == pytest.approx(expected)
    assert 1 < (table["score_norm_weighted_loo"].effective_sample_size or 0) < 4


def test_differences_are_paired_and_corrected_together():
    table = measured(CONTRACT, num_bootstrap=500)
    found = {d.name: d for d in table.against("leave_one_out")}
    assert set(found) == set(CONTRACT) - {"leave_one_out"}
    assert (found["group_mean"].ratio, found["group_mean"].p_value) == (pytest.approx(1), 1)
    assert not found["group_mean"].resolved
    for name, difference in found.items():
        expected = table[name].relative_variance / table["leave_one_out"].relative_variance
        assert difference.ratio == pytest.approx(expected, rel=1e-12)
        assert difference.interval[0] <= difference.ratio <= difference.interval[1]
        assert difference.p_holm >= difference.p_value
    none = found["none"]
    width = np.log(none.interval[1] / none.interval[0])
    low, high = table["none"].interval("relative_variance")
    assert width < 0.7 * np.log(high / low)  # pairing takes out what the prompts have in common
    traces = {d.name: d.ratio for d in table.against("none", "trace_cov")}
    assert traces["group_mean"] == pytest.approx(table["group_mean"].trace_cov / table["none"].trace_cov)


def test_records_and_text_show_every_estimator():
    table = measured(["none", "opo"])
    found = {(r["estimator"], r["measure"]) for r in table.to_dicts()}
    assert found == {(name, measure) for name in ("none", "opo") for measure in MEASURES}
    assert str(table).count("\n") == len(table) == 2
