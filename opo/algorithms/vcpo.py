"""VCPO: the optimal baseline off-policy, and truncated sequence importance weights.

    rho_i = pi(y_i) / pi_old(y_i)        b = sum_j rho_j^2 w_j r_j / sum_j rho_j^2 w_j        w_j = |grad log pi(y_j)|^2
    loss = -(1/N) sum_i min(rho_i, cap) (r_i - b) sum_t log pi(y_it)

rho and b are held fixed in the gradient. Off-policy the variance of rho (r - b) z is least at this b. The published method also
scales the learning rate by the square root of the effective sample size, which here is the optimizer's business: the metric
mismatch/ess_fraction says what it would be.

At the first update rho = 1 and it is the in-sample score-norm baseline: biased for grad E[r], O(1/G). Later it has the bias of the
truncation besides; without one, sequence weights are exact at every lag, and their variance grows with length. All rewards equal:
zero gradient.
Source: arXiv 2602.17616 and its code (baseline over the group, capped sequence weights).
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import weighted_mean
from opo.batch import Rollouts
from opo.keys import Positive
from opo.losses import MAX_LOG_RATIO, advantages, log_ratio, needed, policy_gradient_loss, sequence_sum


@algorithm(needs=("score_norm2_PG",), unbiased_for="no: O(1/G) and the truncation")
def vcpo(logprobs_NT: Tensor, rollouts: Rollouts, *, cap: Positive = 8.0) -> Tensor:
    log_ratio_N = sequence_sum(log_ratio(logprobs_NT.detach(), rollouts), rollouts).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_N = log_ratio_N.exp()
    weight_PG = ratio_N.square().view_as(rollouts.rewards_PG) * needed(rollouts, "score_norm2_PG")
    advantages_N = advantages(rollouts, weighted_mean(rollouts.returns_PG, weight_PG))
    return policy_gradient_loss(logprobs_NT, ratio_N.clamp(max=cap) * advantages_N, rollouts)
