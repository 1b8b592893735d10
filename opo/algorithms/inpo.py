"""INPO: regression of a pair's log-ratio onto a fixed margin, the Nash form of iterated preference optimisation.

With the best and the worst response of a group, and D the difference of log-probability between them:

    h = D log pi - (tau / eta) D log ref - ((eta - tau) / eta) D log pi_old        loss = (1/P) sum (h - 1/(2 eta))^2

pi_old is the sampling policy, tau = `tau_share` eta. The reward's order stands in for the source's preference oracle;
where several responses share the best or the worst reward, the mean over all such pairs is taken (ours).

At the first update the weight of the pair is +-2 (1/(2 eta) - h), about 1/eta = 200 at the default, so compare only
what is free of scale. Not an estimate of grad E[r]: only the extremes count. Equal rewards: zero gradient.
Source: Zhang et al., arXiv 2407.00617.
"""

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Fraction, Positive
from opo.losses import constant_groups, log_ratio, needed, pair_differences, prompt_mean, sequence_sum


@algorithm(needs=("reference_logprobs_NT",), kl_reward=False, unbiased_for="not a policy gradient")
def inpo(logprobs_NT: Tensor, rollouts: Rollouts, *, eta: Positive = 0.005, tau_share: Fraction = 0.3333) -> Tensor:
    rewards_PG = rollouts.rewards_PG
    best_PG = rewards_PG == rewards_PG.nan_to_num(-torch.inf).amax(1, keepdim=True)
    worst_PG = rewards_PG == rewards_PG.nan_to_num(torch.inf).amin(1, keepdim=True)
    pairs_PGG = best_PG[:, :, None] & worst_PG[:, None, :] & ~constant_groups(rewards_PG)[:, None, None]
    to_reference_NT = logprobs_NT - needed(rollouts, "reference_logprobs_NT")
    mixed_NT = tau_share * to_reference_NT + (1 - tau_share) * log_ratio(logprobs_NT, rollouts)
    margin_PGG = pair_differences(sequence_sum(mixed_NT, rollouts).view_as(rewards_PG))
    errors_P = torch.where(pairs_PGG, (margin_PGG - 1 / (2 * eta)).square(), 0.0).sum((1, 2))
    return prompt_mean(errors_P / pairs_PGG.sum((1, 2)).clamp(min=1), rollouts)
