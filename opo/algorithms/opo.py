"""OPO: REINFORCE, exactly on-policy, with the length-weighted baseline.

    b = sum_i L_i r_i / sum_i L_i        A_i = r_i - b        loss = -(1/N) sum_i A_i sum_t log pi(y_it)

The variance-minimising constant baseline is E[|z|^2 r] / E[|z|^2] with z the score of a response; where token scores
are orthogonal and alike in size, |z|^2 is proportional to the length L and b follows. One update per rollout batch, no
ratio, no clip, no KL, no entropy bonus, no division by the standard deviation.

Bias: a response is part of its own baseline, so E[g] differs from the gradient by O(1/G) and not along it;
sum_i L_i A_i = 0 in every group. Equal lengths make it the group mean. All rewards equal: zero gradient.
Source: Hao et al., arXiv 2505.23585, equations for the optimal baseline and its length-weighted form.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import weighted_mean
from opo.batch import Rollouts
from opo.losses import advantages, policy_gradient_loss


@algorithm(on_policy_only=True, unbiased_for="no: O(1/G), not along the gradient")
def opo(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    baseline_PG = weighted_mean(rollouts.returns_PG, rollouts.lengths_PG)
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, baseline_PG), rollouts)
