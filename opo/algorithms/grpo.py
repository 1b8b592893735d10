"""GRPO: the reward's z-score in its group, PPO's clip, and the mean over each response's own tokens.

    A_i = (r_i - mean) / (std + std_eps)        std with ddof = 1
    loss = -(1/N) sum_i (1/L_i) sum_t min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)

Biased for grad E[r] in three ways. Division by the group's own standard deviation weights prompts by about 1 / sqrt(p
(1 - p)); the mean over tokens weights a response by 1 / L_i, and since E[z / L] is not zero no baseline corrects
that; the response is part of its own baseline, a factor 1 - 1/G. `aggregation` = sequence_sum removes the second;
libraries differ here (token_mean in verl and, as its `dapo`, in TRL, which adds 1e-4 to the deviation). Groups with
equal rewards have zero advantage.

Source: Shao et al., DeepSeekMath, arXiv 2402.03300, equation 3. The KL term is the trainer's (`kl_coef`, estimate k3,
in the loss).
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Aggregation, Fraction, NonNegative
from opo.losses import clipped_loss, standardized_advantages


@algorithm(aggregation="aggregation", unbiased_for="no")
def grpo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    std_eps: NonNegative = 1e-6,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
    aggregation: Aggregation = "sequence_mean",
) -> Tensor:
    advantages_N = standardized_advantages(rollouts, std_eps)
    return clipped_loss(logprobs_NT, advantages_N, rollouts, clip_low, clip_high, aggregation)
