"""GPG: the policy gradient with the group mean, scaled up to make up for groups with equal rewards.

    A_i = alpha (r_i - mean)        alpha = groups / groups with different rewards
    loss = -(1/sum L) sum_it A_i log pi(y_it)

A group with equal rewards has no gradient but counts in the mean over the batch; alpha undoes the shrinkage, so that
the step does not fade as prompts get solved. No ratio, no clip, no standard deviation. (verl's alpha counts non-zero
rewards instead of groups.)

alpha depends on the rewards of the whole batch: the estimate is no longer unbiased for a multiple of grad E[r], its
target gives more weight to prompts whose rewards still vary. No group varies: zero gradient, alpha = 0.
Source: Chu et al., arXiv 2504.02546.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import group_mean
from opo.batch import Rollouts
from opo.keys import Aggregation
from opo.losses import advantages, constant_groups, policy_gradient_loss, prompt_mean


@algorithm(
    on_policy_only=True, couples_prompts=True, aggregation="aggregation", unbiased_for="no: alpha follows the batch"
)
def gpg(logprobs_NT: Tensor, rollouts: Rollouts, *, aggregation: Aggregation = "token_mean") -> Tensor:
    returns_PG = rollouts.returns_PG
    varied = float(prompt_mean((~constant_groups(returns_PG)).double(), rollouts))
    alpha = 1 / varied if varied else 0.0
    advantages_N = alpha * advantages(rollouts, group_mean(returns_PG))
    return policy_gradient_loss(logprobs_NT, advantages_N, rollouts, aggregation)
