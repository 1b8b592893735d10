"""Equality up to rounding: the function by hand, and that nothing that compares rewards hangs on the last place."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from batches import close, f64

from analysis.study.external.audit import Answers
from analysis.variance.compare import compare
from analysis.variance.pool import Pool
from opo.losses import constant_groups, whiten
from opo.rounding import all_equal, levelled

NAN = float("nan")
SUM, PART = 0.1 + 0.2, 0.3


def test_numbers_of_one_sum_become_one_number_and_others_stay():
    rows = [
        [PART, SUM, NAN, 1.0],
        [NAN] * 4,
        [-SUM, -PART, 0.0, -0.7],
        [1e12, 1e12 + 1, 2.0, 3.0],
        [1.0, 1 + 1e-9, 0.0, 5e-17],
    ]
    expected = [
        [PART, PART, NAN, 1.0],
        [NAN] * 4,
        [-SUM, -SUM, 0.0, -0.7],
        [1e12, 1e12 + 1, 2.0, 3.0],
        [1.0, 1 + 1e-9, 0.0, 5e-17],
    ]
    assert torch.equal(levelled(f64(rows)).nan_to_num(-9.0), f64(expected).nan_to_num(-9.0))
    assert all_equal(f64([[PART, SUM, NAN], [NAN] * 3, [PART, SUM, 0.31], [0.0, 1e-300, 0.0]])).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert torch.equal(levelled(f64([[SUM], [NAN]])).nan_to_num(-9.0), f64([[SUM], [-9.0]]))


def test_sums_of_many_parts_are_equal_in_any_order():
    parts = np.random.default_rng(0).random((50, 300))
    sums = [float(np.add.reduce(parts[order], axis=0)[0]) for order in (slice(None), slice(None, None, -1))]
    sums.append(math.fsum(parts[:, 0]))
    assert bool(all_equal(sums))
    assert len(set(levelled(sums).tolist())) == 1


def test_order_scale_and_a_second_pass_do_not_matter():
    rewards_PG = torch.randint(0, 4, (50, 8), generator=torch.Generator().manual_seed(0)).double() / 7
    noise_PG = 1 + torch.randn(50, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1e-16
    once_PG = levelled(rewards_PG * noise_PG)
    assert torch.equal(levelled(once_PG), once_PG)
    assert torch.equal(levelled((rewards_PG * noise_PG).flip(1)), once_PG.flip(1))
    assert torch.equal(levelled(-1e8 * rewards_PG * noise_PG).sign(), -rewards_PG.sign())
    for a, b in ((0, 1), (2, 5)):
        assert torch.equal(once_PG[:, a] == once_PG[:, b], rewards_PG[:, a] == rewards_PG[:, b])


def test_what_asks_whether_rewards_are_equal_asks_it_up_to_rounding():
    assert constant_groups(f64([[PART, SUM], [PART, 0.4]])).tolist() == [True, False]
    close(whiten(f64([PART, SUM, PART]), torch.ones(3, dtype=torch.bool), 0.0), 0.0)
    assert Answers("p", np.array([PART, SUM]), np.ones(2)).silent


@pytest.mark.parametrize("name", ["leave_one_out", "group_standardized", "gpg", "quantile"])
def test_a_pool_is_measured_as_if_nothing_had_been_rounded(name):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(12, 16, 5))
    exact = [np.full(16, PART) if p < 4 else PART * rng.integers(0, 2, 16) for p in range(12)]
    rounded = [np.where((r == PART) & (rng.random(16) < 0.5), SUM, r) for r in exact]
    options: dict[str, Any] = {"prompts_per_batch": 4} if name == "gpg" else {}
    tables = [
        compare(
            [Pool(s @ s.T, r, np.arange(1, 17)) for s, r in zip(z, rewards, strict=True)],
            4,
            [name],
            np.random.default_rng(0),
            num_bootstrap=10,
            **options,
        )
        for rewards in (exact, rounded)
    ]
    assert tables[1][name].relative_variance == pytest.approx(tables[0][name].relative_variance, rel=1e-9)
