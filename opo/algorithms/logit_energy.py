"""REINFORCE with a mean reward weighted by logit energy: a proxy for the squared score norm that needs no backward pass.

    w_i = sum_t (1 - 2 pi_it + sum_v pi_v^2)        b = sum_j w_j r_j / sum_j w_j        A_i = r_i - b
    loss = -(1/N) sum_i A_i sum_t log pi(y_it)

The bracket is the squared norm of d log pi(y_it) / d logits. OPO's length is the case where it is the same for every token; the
proxy leaves out what the network does with that gradient, and the products between tokens. `leave_one_out` takes response i
out of its own baseline.

Biased for grad E[r], O(1/G) and not along it; with leave_one_out unbiased. All rewards equal: zero gradient. A group of two with
leave_one_out is RLOO.
Source: the sequence form of arXiv 2602.07078.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import weighted_mean, weighted_mean_loo
from opo.batch import Rollouts
from opo.losses import advantages, needed, policy_gradient_loss, sequence_sum


@algorithm(needs=("logit_energy_NT",), on_policy_only=True, unbiased_for="no: O(1/G); grad E[r] with leave_one_out")
def logit_energy(logprobs_NT: Tensor, rollouts: Rollouts, *, leave_one_out: bool = False) -> Tensor:
    energy_PG = sequence_sum(needed(rollouts, "logit_energy_NT"), rollouts).view_as(rollouts.rewards_PG)
    baseline = weighted_mean_loo if leave_one_out else weighted_mean
    return policy_gradient_loss(logprobs_NT, advantages(rollouts, baseline(rollouts.returns_PG, energy_PG)), rollouts)
