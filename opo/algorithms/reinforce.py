"""REINFORCE: the reward itself is the weight of the score.

    A_i = r_i        loss = -(1/N) sum_i A_i sum_t log pi(y_it)

Unbiased for grad E[r], without any reduction of variance: what every baseline is compared with. A constant added to
the reward does not change the mean of the gradient but does change its variance; equal rewards do not give a zero
gradient.
Source: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import none
from opo.batch import Rollouts
from opo.losses import advantages, policy_gradient_loss


@algorithm(on_policy_only=True, unbiased_for="grad E[r]")
def reinforce(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, none(rollouts.returns_PG)), rollouts)
