"""TRPA: preference between levels of reward, in a trust region around the sampling policy.

With s_i the mean over tokens of log pi - log ref, for every pair of a group with r_i > r_j:

    h_ij = beta kappa_i (s_i - s_j)        kappa_i = solved_boost where r_i >= solved_reward, else 1
    loss = mean over all pairs of -log sigma(h_ij) + old_kl_coef k3(pi || pi_old)

The levels are the distinct rewards. Where no group of the batch has a pair, solved responses are pulled up and the
others pushed down alone: mean of -log sigma(+-s_i).

At pi = ref a pair has the weights beta kappa_i / (2 L_i) and -beta kappa_i / (2 L_j): they sum to zero only for equal
lengths, and it is not an estimate of grad E[r]. The mean runs over the pairs of the batch, so mixed groups weigh more
than one-sided ones.
Source: Su et al., arXiv 2504.04524.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import NonNegative, Real
from opo.kl import kl_estimate
from opo.losses import aggregate, log_ratio, needed, pair_differences, response_mean, scored_pairs, sequence_sum


@algorithm(
    needs=("reference_logprobs_NT",),
    couples_prompts=True,
    aggregation="sequence_mean",
    kl_reward=False,
    unbiased_for="not a policy gradient",
)
def trpa(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    beta: NonNegative = 0.1,
    solved_reward: Real = 1.0,
    solved_boost: NonNegative = 2.5,
    old_kl_coef: NonNegative = 0.001,
) -> Tensor:
    drift_N = sequence_sum(logprobs_NT - needed(rollouts, "reference_logprobs_NT"), rollouts) / rollouts.lengths_N
    drift_PG = drift_N.view_as(rollouts.rewards_PG)
    solved_PG = rollouts.rewards_PG >= solved_reward
    better_PGG = scored_pairs(rollouts) & (pair_differences(rollouts.rewards_PG.nan_to_num(0.0)) > 0)
    if better_PGG.any():
        slope_PG1 = beta * torch.where(solved_PG, solved_boost, 1.0)[:, :, None]
        preference = -logsigmoid(slope_PG1 * pair_differences(drift_PG))[better_PGG].mean()
    else:
        preference = response_mean(-logsigmoid(torch.where(solved_PG.view(-1), drift_N, -drift_N)), rollouts)
    old_log_ratio_NT = log_ratio(logprobs_NT, rollouts)
    old_kl_NT = kl_estimate(old_log_ratio_NT, torch.zeros_like(old_log_ratio_NT), "k3")
    return preference + old_kl_coef * aggregate(old_kl_NT, rollouts, "token_mean")
