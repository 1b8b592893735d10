"""REINFORCE with the optimal baseline itself: a mean reward weighted by the squared norm of each response's score.

    w_i = |grad log pi(y_i)|^2        b = sum_j w_j r_j / sum_j w_j        A_i = r_i - b
    loss = -(1/N) sum_i A_i sum_t log pi(y_it)

E[w r] / E[w] is the constant that minimises the variance of the gradient; OPO replaces w by length. The norms cost one
backward pass a distinct response. `leave_one_out` takes response i out of its own baseline.

Estimated from the group, it is biased for grad E[r], O(1/G) and not along it; with leave_one_out it is unbiased, and at small G
noisier than RLOO's plain mean. All rewards equal: zero gradient. A group of two with leave_one_out is RLOO.
Source: Weaver and Tao 2001; Greensmith, Bartlett and Baxter 2004, theorem 13.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import weighted_mean, weighted_mean_loo
from opo.batch import Rollouts
from opo.losses import advantages, needed, policy_gradient_loss


@algorithm(needs=("score_norm2_PG",), on_policy_only=True, unbiased_for="no: O(1/G); grad E[r] with leave_one_out")
def score_norm(logprobs_NT: Tensor, rollouts: Rollouts, *, leave_one_out: bool = False) -> Tensor:
    baseline = weighted_mean_loo if leave_one_out else weighted_mean
    baseline_PG = baseline(rollouts.returns_PG, needed(rollouts, "score_norm2_PG"))
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, baseline_PG), rollouts)
