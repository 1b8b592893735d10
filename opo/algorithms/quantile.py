"""A quantile of the group's rewards as baseline: at 1/2 the median.

    b = inf {x : share of rewards <= x is at least q}        A_i = r_i - b        loss = -(1/N) sum_i A_i sum_t log pi(y_it)

With rewards 0 and 1 the baseline is 0 where at most 1 - q of the responses are right and 1 otherwise: hard prompts reinforce
their right answers alone, easy ones push down their wrong answers alone, and most responses have advantage zero. It is meant
against collapse and explosion of entropy, not against variance.

A response sits in its own baseline: biased for grad E[r], O(1/G), and not along it. All rewards equal: zero gradient. The paper
puts this baseline into GRPO and DAPO, with their standard deviation and clipping; here it stands alone.
Source: QAE, arXiv 2509.22611 (its default q: unverified).
"""

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Fraction
from opo.losses import advantages, policy_gradient_loss


@algorithm(on_policy_only=True, unbiased_for="no: O(1/G), not along the gradient")
def quantile(logprobs_NT: Tensor, rollouts: Rollouts, *, q: Fraction = 0.4) -> Tensor:
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, group_quantile(rollouts.returns_PG, q)), rollouts)


def group_quantile(rewards_PG: Tensor, q: float) -> Tensor:
    """The smallest reward that a share q of the group's scored rewards does not exceed, (P, 1); infinite where none is scored."""
    count_P1 = (~rewards_PG.isnan()).sum(1, keepdim=True)
    place_P1 = torch.ceil(q * count_P1 - 1e-9).long() - 1  # q n may miss a whole number by rounding
    return rewards_PG.nan_to_num(torch.inf).sort(1).values.gather(1, place_P1.clamp(min=0))
