"""ReMax: REINFORCE minus the reward of the greedy response to the same prompt.

    A_i = r_i - r(greedy(x))        loss = -(1/N) sum_i A_i sum_t log pi(y_it)

Unbiased for grad E[r]: the greedy response does not depend on the sampled ones. It costs one more response per prompt,
and unlike the group baselines works with a group of one. A prompt whose greedy response could not be scored has zero
advantages. All rewards equal to the greedy one: zero gradient.
Source: Li et al., arXiv 2310.10505.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.losses import advantages, needed, policy_gradient_loss


@algorithm(needs=("greedy_rewards_P",), on_policy_only=True, unbiased_for="grad E[r]")
def remax(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    greedy_P1 = needed(rollouts, "greedy_rewards_P")[:, None]
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, greedy_P1), rollouts)
