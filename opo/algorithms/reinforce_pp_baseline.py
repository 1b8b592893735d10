"""REINFORCE++ with a group baseline: centred in the group, scaled by the whole batch, with PPO's clip.

    A_i = (r_i - group mean) / (std of all r - group mean + std_eps)
    loss = -(1/sum L) sum_it min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)

One scale for all prompts: unlike GRPO's it does not favour prompts that are nearly solved or nearly hopeless.
Statistics are over responses, where the mean of what is centred is zero; some libraries whiten over tokens and so
subtract a second, length-weighted mean.

Unbiased at the first update for grad E[r] times (1 - 1/G), up to the batch's 1/std and the token mean, both ratios with
a bias of O(1/(P G)). All rewards equal: zero gradient.
Source: Hu et al., arXiv 2501.03262, the variant with a baseline; its KL is k2 in the loss (`kl_coef`).
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import group_mean
from opo.batch import Rollouts
from opo.keys import Aggregation, Fraction, NonNegative
from opo.losses import advantages, clipped_loss, whiten


@algorithm(couples_prompts=True, aggregation="aggregation", unbiased_for="no: O(1/(P G)) and 1/std")
def reinforce_pp_baseline(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    std_eps: NonNegative = 1e-8,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    centred_N = advantages(rollouts, group_mean(rollouts.returns_PG))
    advantages_N = whiten(centred_N, rollouts.scored_N, std_eps, center=False)
    return clipped_loss(logprobs_NT, advantages_N, rollouts, clip_low, clip_high, aggregation)
