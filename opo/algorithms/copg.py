"""CoPG: the contrastive policy gradient, right for samples from any policy without an importance ratio.

With d_i = log pi(y_i) - log ref(y_i), over whole responses, averaged over all pairs i, j of the group and maximised:

    ((r_i - r_j) - beta/2 (d_i - d_j)) (d_i - d_j)

Its gradient is (R_i - R_j)(grad log pi(y_i) - grad log pi(y_j)) with the regularised return R = r - beta d: the
gradient of a pair is zero once d_i - d_j = (r_i - r_j) / beta, and the policy ref exp(r / beta), normalised, is the
only maximum, whichever policy sampled. Minimising the squared differences of R, as its k-sample form has it, is the
same up to the factor 2 beta.

At the first update it is leave-one-out of R, unbiased for grad E[r] - beta grad KL(pi || ref). Always needs a
reference. Equal rewards: away from its optimum the reference still pulls; at the reference zero gradient.
Source: Flet-Berliac et al., arXiv 2406.19185.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import NonNegative
from opo.losses import needed, pair_differences, pair_mean, sequence_sum


@algorithm(needs=("reference_logprobs_NT",), unbiased_for="grad (E[r] - beta KL)")
def copg(logprobs_NT: Tensor, rollouts: Rollouts, *, beta: NonNegative = 0.06) -> Tensor:
    log_ratio_NT = logprobs_NT - needed(rollouts, "reference_logprobs_NT")
    drift_PGG = pair_differences(sequence_sum(log_ratio_NT, rollouts).view_as(rollouts.rewards_PG))
    gaps_PGG = pair_differences(rollouts.returns_PG.nan_to_num(0.0))
    return -pair_mean((gaps_PGG - beta / 2 * drift_PGG) * drift_PGG, rollouts) / 2  # the mean counts every pair twice
