"""PIT with a gap reward: REINFORCE on how much better a response is than one of the reference policy to the same prompt.

    gap(x, y) = r(x, y) - r(x, y_ref)        y_ref ~ reference policy        loss = -(1/N) sum_i gap_i sum_t log pi(y_it)

Implicit self-improvement rewards the gap to a reference response. The published gap comes from a model trained on ordered pairs, and
the policy reads y_ref beside the prompt; stand-in of this workbench: the gap is the difference of two rewards, and the prompt stands alone.
Such a gap is a constant of the prompt, so every baseline over the group takes it out again: it only matters where there is none, as here.

Unbiased for grad E[r]: y_ref does not depend on the responses. One response more a prompt. Equal rewards give a gradient where the reference's
reward is another. A prompt whose reference response could not be scored has zero advantages; works with a group of one.
Source: arXiv 2310.00898 (the relations that train its gap model are unverified).
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.losses import advantages, needed, policy_gradient_loss


@algorithm(needs=("reference_rewards_P",), on_policy_only=True, unbiased_for="grad E[r]")
def pit(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    reference_P1 = needed(rollouts, "reference_rewards_P")[:, None]
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, reference_P1), rollouts)
