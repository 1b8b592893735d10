"""James-Stein shrinkage: the leave-one-out mean of the group, pulled towards the mean of the other prompts.

    b_ij = (1 - a_i) m_i^(-j) + a_i M_(-i)        A_ij = r_ij - b_ij        loss = -(1/N) sum_ij A_ij sum_t log pi(y_ijt)

m_i^(-j) is the mean reward of prompt i without response j, M_(-i) the mean over the other prompts, and a_i the share of
sampling noise in the spread of the prompts' means (`opo.baselines.shrinkage` has the formula). With few responses a
group's mean is noisy, and the other prompts know something about it.

Nothing of response j enters b_ij: unbiased for grad E[r]. Equal rewards in the whole batch: zero gradient. Groups that are
all right or all wrong still give a gradient, since the batch mean pulls their baseline away from their reward. The published
code leaves out the factor (P - 1)/P of a_i. ValueError where the batch has one prompt.
Source: arXiv 2511.03710.
"""

from torch import Tensor

from opo import baselines
from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.losses import advantages, policy_gradient_loss


@algorithm(on_policy_only=True, couples_prompts=True, unbiased_for="grad E[r]")
def shrinkage(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, baselines.shrinkage(rollouts.returns_PG)), rollouts)
