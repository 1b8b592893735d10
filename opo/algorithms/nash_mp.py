"""Nash-MP as a policy gradient: each response's reward is how often it beats the group's other responses.

    w_i = share of the other responses that i beats in reward, ties counting one half        A_i = w_i - 1/2
    loss = -(1/N) sum_i A_i sum_t log pi(y_it)

The policy plays against its present self; rewards stand in for the preference oracle, and the anchor is the reference policy of
`kl_coef`. The published mirror-prox scheme takes a half step against the present policy and the full step against the policy of the
half step; the half step, and the slow copy that its language-model version was described with, are left out (unverified). With
rewards 0 and 1 it is the leave-one-out advantage over two.

Unbiased for half the gradient of the expected win rate against the policy's own samples held fixed, which is not grad E[r]. All
rewards equal: zero gradient. Weights of a group sum to zero.
Source: arXiv 2505.19731; the form for sampled groups is ours.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.losses import policy_gradient_loss, win_rates


@algorithm(on_policy_only=True, unbiased_for="half the gradient of the win rate, opponents fixed")
def nash_mp(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    advantages_PG = (win_rates(rollouts) - 0.5).masked_fill(rollouts.rewards_PG.isnan(), 0.0)
    return policy_gradient_loss(logprobs_NT, advantages_PG.view(-1), rollouts)
