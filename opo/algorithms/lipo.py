"""LiPO-lambda: learning to rank the responses of a group, with the largest weight on errors at the top of the ranking.

With s_i = beta (log pi(y_i) - log ref(y_i)) over whole responses, label psi_i the share of the group that response i
beats in reward, gain 2^psi - 1, and rank k_i by the current s, highest first:

    loss = (1/P) sum over pairs psi_i > psi_j of Delta_ij log(1 + exp(-(s_i - s_j)))
    Delta_ij = |gain_i - gain_j| |1/log(1 + k_i) - 1/log(1 + k_j)|

Only the order of the rewards counts. Its weights sum to zero in a group, but it is not an estimate of grad E[r]. Equal
s (pi = ref, as at the very start) are ranked in sampling order, which is a random order. Equal rewards: zero
gradient.
Source: Liu et al., arXiv 2402.01878; the labels are its pairwise win probabilities with the reward as judge.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import NonNegative
from opo.losses import needed, pair_differences, prompt_mean, scored_pairs, sequence_sum, win_rates


@algorithm(needs=("reference_logprobs_NT",), unbiased_for="not a policy gradient")
def lipo(logprobs_NT: Tensor, rollouts: Rollouts, *, beta: NonNegative = 0.05) -> Tensor:
    log_ratio_NT = logprobs_NT - needed(rollouts, "reference_logprobs_NT")
    score_PG = beta * sequence_sum(log_ratio_NT, rollouts).view_as(rollouts.rewards_PG)
    label_PG = win_rates(rollouts)
    listed_PG = score_PG.detach().masked_fill(rollouts.rewards_PG.isnan(), -torch.inf)
    rank_PG = torch.argsort(listed_PG, dim=1, descending=True, stable=True).argsort(1) + 1
    weight_PGG = pair_differences(2**label_PG).abs() * pair_differences(1 / (1 + rank_PG).double().log()).abs()
    better_PGG = scored_pairs(rollouts) & (pair_differences(label_PG) > 0)
    loss_PGG = -weight_PGG * logsigmoid(pair_differences(score_PG))
    return prompt_mean(torch.where(better_PGG, loss_PGG, 0.0).sum((1, 2)), rollouts)
