"""RLOO: REINFORCE minus the mean reward of the other responses to the prompt.

    A_i = r_i - (1/(G-1)) sum_{j != i} r_j = G/(G-1) (r_i - mean)        loss = -(1/N) sum_i A_i sum_t log pi(y_it)

Unbiased for grad E[r], since the baseline does not contain response i. It is G/(G-1) times the group-mean estimate, so
its relative variance and cosine are the same. No ratio and no clip, as in its source (TRL clips the ratio of
whole responses: the same at the first update, not after it). All rewards equal: zero gradient.
Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al., arXiv 2402.14740.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import leave_one_out
from opo.batch import Rollouts
from opo.losses import advantages, policy_gradient_loss


@algorithm(on_policy_only=True, unbiased_for="grad E[r]")
def rloo(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, leave_one_out(rollouts.returns_PG)), rollouts)
