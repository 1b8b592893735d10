"""Weights away from ratio one: what each clip does, against closed forms."""

import math

import pytest
import torch
from batches import batch, close, f64, known_logprobs

from opo.algorithms import ALGORITHMS, score_weights, token_weights


def at_ratio(name, ratio, **overrides):
    """Weights for one group of two with rewards 1 and 0, one token each, when both ratios are `ratio`."""
    fields = {k: overrides.pop(k) for k in ("answers",) if k in overrides}
    rollouts = batch([[1.0, 0.0]], [[1, 1]], logprobs=[[[-1.0], [-1.0]]], **fields)
    current_NT = known_logprobs(rollouts) + math.log(ratio)
    return token_weights(lambda x_NT: ALGORITHMS[name].loss(x_NT, rollouts, **overrides), current_NT)[:, 0]


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "reinforce_pp", "reinforce_pp_baseline", "dr_grpo"])
def test_the_clip_stops_what_has_gone_far_enough(name):
    overrides = {"clip_low": 0.2, "clip_high": 0.3}
    up, down = at_ratio(name, 1.0, **overrides)
    close(at_ratio(name, 1.25, **overrides), torch.stack([1.25 * up, 1.25 * down]))
    close(at_ratio(name, 1.35, **overrides), torch.stack([0 * up, 1.35 * down]))
    close(at_ratio(name, 0.85, **overrides), torch.stack([0.85 * up, 0.85 * down]))
    close(at_ratio(name, 0.75, **overrides), torch.stack([0.75 * up, 0 * down]))


def test_gspo_clips_the_geometric_mean():
    rollouts = batch([[1.0, 0.0]], [[2, 2]], logprobs=[[[-1.0, -1.0], [-1.0, -1.0]]])
    current_NT = known_logprobs(rollouts) + f64([[0.4, -0.2], [0.0, 0.0]])  # mean log-ratio 0.1 and 0

    def weights(high):
        loss = ALGORITHMS["gspo"].loss
        return token_weights(lambda x_NT: loss(x_NT, rollouts, std_eps=0.0, clip_high=high), current_NT)

    inside, outside = weights(0.2), weights(0.05)
    close(inside[0], math.exp(0.1) * math.sqrt(0.5) / 4)
    close(outside[0], 0.0)
    close(outside[1], inside[1])


def test_cispo_keeps_a_bounded_weight():
    up, down = at_ratio("cispo", 1.0)
    close(at_ratio("cispo", 3.0), torch.stack([3 * up, 3 * down]))
    close(at_ratio("cispo", 9.0), torch.stack([5 * up, 5 * down]))
    close(at_ratio("cispo", 0.1, ratio_min=0.5), torch.stack([0.5 * up, 0.5 * down]))


def test_dual_clip_bounds_negative_advantages():
    rollouts = batch(
        [[1.0, 0.0], [0.0, 0.0]],
        [[1, 1], [1, 1]],
        logprobs=[[[-1.0], [-1.0]], [[-1.0], [-1.0]]],
        answers=[["a", "b"], ["c", "c"]],
    )

    def weights(ratio):
        current_NT = known_logprobs(rollouts) + math.log(ratio)
        return token_weights(lambda x_NT: ALGORITHMS["copo"].loss(x_NT, rollouts, threshold=-9.0), current_NT)[:2, 0]

    close(weights(2.0), torch.stack([0 * weights(1.0)[0], 2 * weights(1.0)[1]]))
    close(weights(3.5), 0.0)


def test_p3o_clips_each_response_or_the_pair():
    # separate: the pull on one response carries the other's ratio
    close(at_ratio("p3o", 1.1), f64([0.5, -0.5]) * 1.1**2)
    close(at_ratio("p3o", 1.3), f64([0.0, -0.5]) * 1.3**2)
    # joint: the pair's log-ratio is what is clipped, and it is zero here
    close(at_ratio("p3o", 1.3, clip="joint"), f64([0.5, -0.5]) * 1.3**2)
    rollouts = batch([[1.0, 0.0]], [[1, 1]], logprobs=[[[-1.0], [-1.0]]])
    apart_NT = known_logprobs(rollouts) + f64([[0.15], [-0.15]])
    joint = token_weights(lambda x_NT: ALGORITHMS["p3o"].loss(x_NT, rollouts, clip="joint"), apart_NT)
    close(joint, 0.0)


def test_nft_away_from_ratio_one():
    # q = 1/2: right ones always 1 - q; wrong ones q rho / max((1 - q rho)/(1 - q), floor), times 1 - q
    right, wrong = at_ratio("nft", 1.5)
    close(torch.stack([right, wrong]), f64([0.5, -0.5 * 1.5]) / 2)
    right, wrong = at_ratio("nft", 0.5)
    close(torch.stack([right, wrong]), f64([0.5, -0.5 * 0.5 / 1.5]) / 2)
    _, wrong = at_ratio("nft", 1.5, floor=0.25)
    close(wrong, -0.5 * 1.5 / 0.5 / 2)


def test_copg_has_no_force_left_at_its_optimum():
    # d_i - d_j = (r_i - r_j) / beta for every pair
    rollouts = batch([[1.0, 0.5, 0.0]], [[2, 1, 3]])
    reference_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
    optimum_NT = (rollouts.rewards_PG.view(-1, 1) / 0.5 / rollouts.lengths_N[:, None]).expand_as(reference_NT)
    scored = rollouts.with_(reference_logprobs_NT=reference_NT)
    close(token_weights(lambda x_NT: ALGORITHMS["copg"].loss(x_NT, scored, beta=0.5), optimum_NT), 0.0)


def test_soft_overlong_penalty():
    # limit 6, buffer 4: nothing up to 2 tokens, then a quarter a token; all answers wrong but one
    rollouts = batch([[1.0, 0.0, 0.0, 0.0]], [[2, 2, 4, 6]])
    penalised = batch([[1.0, 0.0, -0.5, -1.0]], [[2, 2, 4, 6]])
    weights_NT = score_weights("dapo", rollouts, overlong_buffer=4, token_limit=6)
    close(weights_NT, score_weights("dapo", penalised))
    with pytest.raises(ValueError, match="token_limit"):
        score_weights("dapo", rollouts, overlong_buffer=4)
