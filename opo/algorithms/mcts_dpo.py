"""MCTS-DPO's smoothed preference loss, on pairs of scored responses in place of the branches of a search tree.

    d_ij = log pi(y_i)/ref(y_i) - log pi(y_j)/ref(y_j)        for every pair with r_i > r_j
    confidence_ij = 1 / (1 + r_j / max(1, r_i))               a_ij = min(1 - confidence_ij, 1/2)
    loss = mean over pairs of -(1 - a_ij) log sigma(beta d_ij) - a_ij log sigma(-beta d_ij)

A worse response with a high value makes the label less certain. The search itself, which finds pairs that share a beginning and
estimates their values, is left out: values are the rewards, pairs are those of a group, and log-ratios are over whole
responses. With rewards 0 and 1, a = 0 and it is DPO on all pairs.

Not a policy gradient. Groups without a pair (all rewards equal) give nothing, and the mean is over the prompts that have one.
Rewards are at least zero: ValueError names the prompt where one is not.
Source: Xie et al., arXiv 2405.00451 and its code (`beta`); the stand-in for the tree is ours.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Positive
from opo.losses import needed, pair_differences, scored_pairs, sequence_sum


@algorithm(needs=("reference_logprobs_NT",), couples_prompts=True, unbiased_for="not a policy gradient")
def mcts_dpo(logprobs_NT: Tensor, rollouts: Rollouts, *, beta: Positive = 0.1) -> Tensor:
    rewards_PG = rollouts.returns_PG.nan_to_num(0.0)
    if (rewards_PG < 0).any():
        raise ValueError(
            f"mcts_dpo: prompt {int((rewards_PG < 0).any(1).nonzero()[0])} has a reward below zero, where the label's confidence is not defined"
        )
    log_ratio_NT = logprobs_NT - needed(rollouts, "reference_logprobs_NT")
    margin_PGG = beta * pair_differences(sequence_sum(log_ratio_NT, rollouts).view_as(rewards_PG))
    better_PGG = scored_pairs(rollouts) & (pair_differences(rewards_PG) > 0)
    confidence_PGG = 1 / (1 + rewards_PG[:, None, :] / rewards_PG[:, :, None].clamp(min=1))
    smoothing_PGG = (1 - confidence_PGG).clamp(max=0.5)
    loss_PGG = -(1 - smoothing_PGG) * logsigmoid(margin_PGG) - smoothing_PGG * logsigmoid(-margin_PGG)
    pairs_P = better_PGG.sum((1, 2))
    loss_P = torch.where(better_PGG, loss_PGG, 0.0).sum((1, 2)) / pairs_P.clamp(min=1)
    return loss_P.sum() / (pairs_P > 0).sum().clamp(min=1)
