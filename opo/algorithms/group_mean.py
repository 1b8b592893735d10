"""Group mean: REINFORCE minus the mean reward of the group.

    A_i = r_i - (1/G) sum_j r_j        loss = -(1/N) sum_i A_i sum_t log pi(y_it)

Unbiased for (1 - 1/G) grad E[r]: a response is part of its own baseline, which scales the estimate by exactly that
factor; direction, cosine and relative variance are those of leave-one-out. No ratio, no clip, no division by the
standard deviation: what Dr. GRPO is at its first update. All rewards equal: zero gradient.
Source: the centred form of GRPO, arXiv 2503.20783 (Dr. GRPO), without its clip.
"""

from torch import Tensor

from opo import baselines
from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.losses import advantages, policy_gradient_loss


@algorithm(on_policy_only=True, unbiased_for="(1 - 1/G) grad E[r]")
def group_mean(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    baseline_PG = baselines.group_mean(rollouts.returns_PG)
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, baseline_PG), rollouts)
