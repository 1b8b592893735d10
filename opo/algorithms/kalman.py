"""A one-dimensional Kalman filter over the group's rewards as baseline, and its uncertainty as scale.

    P <- P + process_noise;   K = P / (P + reward_noise);   x <- x + K (r_i - x);   P <- (1 - K) P
    A_i = (r_i - x_i) / (sqrt(P_i) + std_eps)                starting from x = 0, P = 1

over the responses of a group in the order in which they were sampled. x_i has seen r_i and everything before it.

Biased for grad E[r]: a response sits in its own baseline, the first one with nearly all the weight, so that its advantage is
close to zero. Weights depend on the order of the responses, which says nothing: one more source of variance. Equal rewards
do not give zero: the filter starts at zero. A response that was not scored is passed over.
Source: KRPO, arXiv 2505.07527 and its code.
"""

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import NonNegative, Positive
from opo.losses import policy_gradient_loss


@algorithm(on_policy_only=True, unbiased_for="no")
def kalman(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    process_noise: NonNegative = 1e-5,
    reward_noise: Positive = 1e-2,
    std_eps: NonNegative = 1e-8,
) -> Tensor:
    estimate_P = torch.zeros_like(rollouts.rewards_PG[:, 0])
    spread_P = torch.ones_like(estimate_P)
    columns = []
    for reward_P in rollouts.returns_PG.unbind(1):
        scored_P = ~reward_P.isnan()
        predicted_P = spread_P + process_noise
        gain_P = predicted_P / (predicted_P + reward_noise)
        error_P = torch.where(scored_P, reward_P - estimate_P, 0.0)
        estimate_P = estimate_P + gain_P * error_P
        spread_P = torch.where(scored_P, (1 - gain_P) * predicted_P, spread_P)
        columns.append(torch.where(scored_P, (1 - gain_P) * error_P / (spread_P.sqrt() + std_eps), 0.0))
    return policy_gradient_loss(logprobs_NT, torch.stack(columns, 1).view(-1), rollouts)
