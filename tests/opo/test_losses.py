"""Aggregation, ratios and whitening; KL estimates by enumeration; GAE and the value loss against slow twins."""

import math
from typing import Any

import pytest
import torch
from batches import batch, close, f64
from hypothesis import given, settings
from hypothesis import strategies as st

from opo.gae import gae, value_loss
from opo.kl import KLEstimator, kl_estimate, kl_penalty
from opo.losses import aggregate, clipped, constant_groups, log_ratio, pair_mean, whiten, win_rates, z_scores

NAN = math.nan


def test_three_aggregations():
    rollouts = batch([[1.0, 0.0], [NAN, 0.0]], [[1, 2], [2, 3]])
    values_NT = f64([[6.0, 9, 9], [1.0, 2, 9], [50.0, 50, 9], [3.0, 3, 3]])  # the third is unscored, 9 is padding
    close(aggregate(values_NT, rollouts, "sequence_sum"), (6 + 3 + 9) / 3)
    close(aggregate(values_NT, rollouts, "sequence_mean"), (6 + 1.5 + 3) / 3)
    close(aggregate(values_NT, rollouts, "token_mean"), (6 + 3 + 9) / 6)
    only_first = torch.tensor([True, False, False, False])
    close(aggregate(values_NT, rollouts, "token_mean", only_first), 6.0)
    nobody = torch.zeros(4, dtype=torch.bool)
    assert [float(aggregate(values_NT, rollouts, how, nobody)) for how in ("sequence_sum", "token_mean")] == [0, 0]
    unknown: Any = "tokens"
    with pytest.raises(ValueError, match="sequence_sum, sequence_mean, token_mean"):
        aggregate(values_NT, rollouts, unknown)


def test_z_scores_leave_out_what_cannot_be_scored():
    scores = z_scores(f64([[1.0, NAN, 3.0], [NAN, NAN, 2.0], [0.1, 0.1, 0.1]]), 0.0)
    close(scores, f64([[-1, 0, 1], [0, 0, 0], [0, 0, 0]]) / math.sqrt(2))
    assert constant_groups(f64([[1.0, NAN, 3.0], [NAN, NAN, 2.0], [NAN] * 3])).tolist() == [False, True, True]


def test_whiten_is_over_the_mask():
    values = f64([1.0, 3.0, 100.0])
    mask = torch.tensor([True, True, False])
    close(whiten(values, mask, 0.0), [-1.0, 1.0, 0.0])
    close(whiten(values, mask, 1.0), [-0.5, 0.5, 0.0])
    close(whiten(f64([-2.0, 2.0, 5.0]), mask, 0.0, center=False), [-1.0, 1.0, 0.0])
    close(whiten(f64([0.1] * 3), mask, 0.0), 0.0)
    close(whiten(values, torch.zeros(3, dtype=torch.bool), 0.0), 0.0)


def test_ratios_survive_absurd_differences():
    rollouts = batch([[1.0, 0.0]], [[1, 2]], logprobs=[[[-800.0], [-1.0, -1.0]]])
    ratio_NT = log_ratio(f64([[-1.0, 900.0], [-1.0, -900.0]]), rollouts).exp()
    assert ratio_NT.isfinite().all()
    close(ratio_NT[1], [1.0, 0.0])
    close(ratio_NT[0, 1], 1.0)
    with pytest.raises(ValueError, match="logprobs_NT"):
        log_ratio(ratio_NT, rollouts.with_(logprobs_NT=None))


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 5), st.floats(-3, 3), st.floats(0, 0.9), st.floats(0, 2))
def test_clipped_is_the_worse_of_two(ratio, advantage, low, high):
    held = min(max(ratio, 1 - low), 1 + high)
    close(clipped(f64(ratio), f64(advantage), low, high), min(ratio * advantage, held * advantage))


def test_pairs_are_of_scored_responses():
    rollouts = batch([[2.0, NAN, 1.0, 1.0]], [[1, 1, 1, 1]])
    close(win_rates(rollouts)[0], [1.0, 0.0, 0.25, 0.25])
    values_PGG = f64([[[9, 9, 1, 2], [9, 9, 9, 9], [3, 9, 9, 4], [5, 9, 6, 9]]])
    close(pair_mean(values_PGG, rollouts), (1 + 2 + 3 + 4 + 5 + 6) / 6)
    alone = batch([[2.0, NAN]], [[1, 1]])
    close(pair_mean(f64([[[9, 9], [9, 9]]]), alone), 0.0)


# KL on a policy of one token, where every expectation is a sum


ESTIMATORS: list[KLEstimator] = ["k1", "k2", "k3"]
LOGITS, REFERENCE = f64([0.5, -1.0, 0.2, 0.9]), f64([0.1, 0.4, -0.3, -0.6]).log_softmax(0)


def gradient(of):
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(of(logits.log_softmax(0)), logits)[0]


def reverse_kl(logprobs_V):
    return (logprobs_V.exp() * (logprobs_V - REFERENCE)).sum()


def forward_kl(logprobs_V):
    return (REFERENCE.exp() * (REFERENCE - logprobs_V)).sum()


def test_value_of_kl_estimates():
    logprobs_V = LOGITS.log_softmax(0)
    expected = {k: (logprobs_V.exp() * kl_estimate(logprobs_V, REFERENCE, k)).sum() for k in ESTIMATORS}
    close(expected["k1"], reverse_kl(logprobs_V))
    close(expected["k3"], reverse_kl(logprobs_V))
    assert abs(float(expected["k2"] - reverse_kl(logprobs_V))) > 0.01
    assert (kl_estimate(logprobs_V, REFERENCE, "k3") >= 0).all()
    # near the reference k3 must not cancel: it is d^2 / 2 to leading order
    close(kl_estimate(f64([1e-7]), f64([0.0]), "k3"), 0.5e-14, 1e-20)
    unknown: Any = "k4"
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(logprobs_V, REFERENCE, unknown)


def test_gradient_of_kl_estimates_in_the_loss():
    probabilities_V = LOGITS.softmax(0)

    def in_loss(estimator: KLEstimator):
        return gradient(lambda lp_V: (probabilities_V * kl_estimate(lp_V, REFERENCE, estimator)).sum())

    close(in_loss("k1"), 0.0)
    close(in_loss("k2"), gradient(reverse_kl))
    close(in_loss("k3"), gradient(forward_kl))


def test_gradient_of_kl_estimates_in_the_reward():
    def in_reward(estimator: KLEstimator):
        weights_V = LOGITS.softmax(0) * kl_estimate(LOGITS.log_softmax(0), REFERENCE, estimator)
        return gradient(lambda lp_V: (weights_V * lp_V).sum())

    close(in_reward("k1"), gradient(reverse_kl))
    close(in_reward("k3"), gradient(reverse_kl) - gradient(forward_kl))


def test_kl_penalty_ignores_padding():
    rollouts = batch([[1.0, 0.0]], [[1, 2]], reference_logprobs_NT=f64([[-1.0, -900.0], [-2.0, -1.0]]))
    penalty_NT = kl_penalty(f64([[-1.5, 900.0], [-2.0, 0.0]]), rollouts, "k2")
    close(penalty_NT, f64([[0.125, 0.0], [0.0, 0.5]]))
    with pytest.raises(ValueError, match="reference_logprobs_NT"):
        kl_penalty(f64([[0.0, 0], [0, 0]]), rollouts.with_(reference_logprobs_NT=None), "k2")


# The critic


def slow_gae(rewards, values, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_{t+k}, as it is written."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * b - v for r, v, b in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


number = st.floats(-2, 2)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.tuples(number, number), min_size=1, max_size=6), min_size=1, max_size=3),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_gae_against_the_double_sum(responses, gamma, lam):
    shape = len(responses), max(map(len, responses))
    rewards_NT, values_NT = torch.full(shape, 7.0).double(), torch.full(shape, NAN).double()  # junk in the padding
    mask_NT = torch.zeros(shape, dtype=torch.bool)
    expected_NT = torch.zeros(shape, dtype=torch.float64)
    for n, response in enumerate(responses):
        length = len(response)
        rewards, values = map(list, zip(*response, strict=True))
        mask_NT[n, :length] = True
        rewards_NT[n, :length], values_NT[n, :length] = f64(rewards), f64(values)
        expected_NT[n, :length] = f64(slow_gae(rewards, values, gamma, lam))
    advantages_NT, targets_NT = gae(rewards_NT, values_NT, mask_NT, gamma, lam)
    close(advantages_NT, expected_NT)
    close(targets_NT, torch.where(mask_NT, expected_NT + values_NT, 0.0))


def test_gae_at_its_ends():
    rewards_NT, values_NT = f64([[1.0, 2.0, 4.0]]), f64([[0.5, 0.25, 3.0]])
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    close(gae(rewards_NT, values_NT, everywhere, 1.0, 1.0)[0], f64([[7.0, 6.0, 4.0]]) - values_NT)
    close(gae(rewards_NT, values_NT, everywhere, 1.0, 1.0)[1], [[7.0, 6.0, 4.0]])
    close(gae(rewards_NT, values_NT, everywhere, 1.0, 0.0)[0], [[1 + 0.25 - 0.5, 2 + 3 - 0.25, 4 - 3.0]])


def test_value_loss_is_pessimistic():
    targets_NT, old_NT = f64([[1.0, 1.0, 1.0]]), f64([[0.0, 0.0, 5.0]])
    mask_NT = torch.tensor([[True, True, False]])
    values_NT = f64([[0.5, -0.5, 9.0]])
    close(value_loss(values_NT, old_NT, targets_NT, mask_NT, clip=None), (0.25 + 2.25) / 4)
    # moved by more than 0.2 towards the target: still judged from 0.2; away from it: judged where it is
    close(value_loss(values_NT, old_NT, targets_NT, mask_NT, clip=0.2), (0.64 + 2.25) / 4)
    leaf_NT = values_NT.requires_grad_()
    (slope_NT,) = torch.autograd.grad(value_loss(leaf_NT, old_NT, targets_NT, mask_NT, clip=0.2), leaf_NT)
    close(slope_NT, [[0.0, -0.75, 0.0]])
