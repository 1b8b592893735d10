"""What happens at the edges, for every algorithm: all right, all wrong, ties up to rounding, two responses, equal lengths; and that its file says so."""

import re

import pytest
import torch
from batches import close
from every_algorithm import NOT_ZERO_AT_EQUAL_REWARDS, every_algorithm, random_batch, weights

from opo.accounts import accounts
from opo.algorithms import ALGORITHMS
from opo.batch import Rollouts
from opo.losses import MAX_LOG_RATIO

TIES = [0.1 + 0.2, 0.3, 0.3 * (1 + 2**-52), 0.3]  # one number, summed in different orders


def with_rewards(rewards_PG: list[list[float]]) -> tuple[Rollouts, torch.Tensor]:
    return random_batch(rewards_PG=rewards_PG)


@every_algorithm
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_wrong_and_all_right(name, value):
    weights_NT = weights(name, *with_rewards([[value] * 4] * 3))
    assert bool(weights_NT.isfinite().all())
    if name not in NOT_ZERO_AT_EQUAL_REWARDS:
        assert not weights_NT.any()


@every_algorithm
def test_one_group_all_right_and_one_all_wrong_beside_one_that_varies(name):
    weights_NT = weights(name, *with_rewards([[1.0] * 4, [0.0] * 4, [0.5, 1.0, 0.75, 0.0]]))
    assert bool(weights_NT.isfinite().all())
    assert weights_NT[8:].any()


@every_algorithm
def test_ties_up_to_rounding_are_ties(name):
    """Rewards that are equal but for the order in which they were summed weigh as equal ones do, to the last bit."""
    rows = [TIES, [0.0, 1.0, 1.0, 0.5], [0.3 * 3 - 0.6, *TIES[1:]]]
    exact = [[min(TIES)] * 4, rows[1], [min(rows[2])] * 4]
    close(weights(name, *with_rewards(rows)), weights(name, *with_rewards(exact)), 0.0)


@every_algorithm
@pytest.mark.parametrize("rewards", [[1.0, 0.0], [1.0, 1.0], [1.0, float("nan")]])
def test_a_group_of_two(name, rewards):
    rollouts, logprobs_NT = random_batch()
    index_PG = torch.tensor([[0, 1]] * 3)
    pair = rollouts.pick(index_PG).with_(rewards_PG=torch.tensor([rewards] * 3, dtype=torch.float64))
    rows = (torch.arange(3)[:, None] * 4 + index_PG).view(-1)
    weights_NT = weights(name, pair, logprobs_NT[rows])
    assert bool(weights_NT.isfinite().all())
    if rewards == [1.0, 0.0]:
        assert weights_NT.any()
    assert not weights_NT[pair.rewards_PG.view(-1).isnan()].any()


@every_algorithm
def test_equal_lengths(name):
    """Responses of one length: what depends on length loses its grip, and nothing else happens."""
    rollouts, logprobs_NT = random_batch()
    whole = {
        field: torch.where(rollouts.mask_NT, value, value[rollouts.mask_NT].mean())
        for field in rollouts.__dataclass_fields__
        if field.endswith("_NT") and (value := getattr(rollouts, field)) is not None and value.dtype == torch.float64
    }
    even = rollouts.with_(
        **whole, mask_NT=torch.ones_like(rollouts.mask_NT), tokens_NT=torch.full_like(rollouts.tokens_NT, 7)
    )
    weights_NT = weights(name, even, torch.where(rollouts.mask_NT, logprobs_NT, -1.0))
    assert bool(weights_NT.isfinite().all())
    assert weights_NT.any()


def test_at_equal_lengths_opo_is_the_group_mean():
    rollouts, logprobs_NT = random_batch()
    even = rollouts.with_(mask_NT=torch.ones_like(rollouts.mask_NT))
    close(weights("opo", even, logprobs_NT), weights("group_mean", even, logprobs_NT), 1e-12)


@every_algorithm
def test_a_policy_far_from_the_one_that_sampled(name):
    """Log-ratios beyond `MAX_LOG_RATIO` on every token: bounded, not infinite."""
    rollouts, logprobs_NT = random_batch()
    for shift in (5 * MAX_LOG_RATIO, -5 * MAX_LOG_RATIO):
        assert bool(weights(name, rollouts, logprobs_NT + shift * rollouts.mask_NT).isfinite().all())


BIAS = re.compile(r"[Bb]ias|grad E|[Nn]ot a policy gradient|gradient of")
EDGE = re.compile(
    r"[Ee]qual rewards|rewards (are )?(all )?equal|[Ww]ithout a pair|no pair|zero (gradient|advantage)|all right|gives? nothing|alone"
)


@every_algorithm
def test_its_file_says_what_it_is_biased_for_and_what_happens_at_the_edges(name):
    account = accounts()[name]
    text = " ".join(account.text.split())
    assert BIAS.search(text), "what it is biased for"
    assert EDGE.search(text), "what happens where all rewards are equal"
    assert ALGORITHMS[name].unbiased_for == account.entry.unbiased_for != ""


# statements in words, tried by enumeration in test_bias.py and test_baseline_algorithms.py
def test_what_is_called_unbiased_is_what_the_tests_enumerate():
    unbiased = {name for name, algorithm in ALGORITHMS.items() if algorithm.unbiased_for == "grad E[r]"}
    assert unbiased == {"reinforce", "rloo", "remax", "pit", "p3o", "shrinkage"}
