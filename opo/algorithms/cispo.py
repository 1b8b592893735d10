"""CISPO: REINFORCE with the importance ratio as a detached, truncated weight.

    A_i = (r_i - mean) / (std + std_eps)
    loss = -(1/sum L) sum_it stop(clip(rho_it, ratio_min, ratio_max)) A_i log pi(y_it)

PPO's clip takes a token out of the gradient once its ratio has left the interval; here it stays in with a bounded
weight, so rare but decisive tokens still contribute. The source bounds the ratio only from above.

At the first update every ratio is one: the z-score of GRPO with the mean over all tokens, biased as that is; later the
truncation adds its own. Groups with equal rewards have zero advantage.
Source: MiniMax-M1, arXiv 2506.13585, equations 4 and 5; the upper bound of 5 from ScaleRL, arXiv 2510.13786.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Aggregation, NonNegative, Positive
from opo.losses import log_ratio, policy_gradient_loss, standardized_advantages


@algorithm(couples_prompts=True, aggregation="aggregation", unbiased_for="no")
def cispo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    std_eps: NonNegative = 1e-6,
    ratio_min: NonNegative = 0.0,
    ratio_max: Positive = 5.0,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    weight_NT = log_ratio(logprobs_NT.detach(), rollouts).exp().clamp(ratio_min, ratio_max)
    advantages_NT = weight_NT * standardized_advantages(rollouts, std_eps)[:, None]
    return policy_gradient_loss(logprobs_NT, advantages_NT, rollouts, aggregation)
