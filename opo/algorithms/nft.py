"""NFT: supervised learning on correct answers, and on wrong ones through the implicit policy that makes them.

With c_i = 1 for a correct response, q = mean of c in its group (held within [0.02, 0.98]), rho_it = pi(y_it) /
pi_old(y_it):

    correct: l_it = -log rho_it        wrong: l_it = -log max((1 - q rho_it) / (1 - q), floor)
    loss = (1/N) sum_i omega(q) sum_t l_it

The sampling policy is a mixture of the policy of right answers and that of wrong ones; the second is what (1 - q
rho)/(1 - q) is the ratio of. The maximum bounds the value; its gradient is passed through unchanged (straight-through).
`prompt_weight` omega: one, error_rate = 1 - q, odds = sqrt((1 - q)/q). `negative_weight` 0 learns from correct answers
only (rejection sampling).

At the first update the weights are omega / (1 - q) (c_i - q): Dr. GRPO under error_rate, GRPO with the population's
standard deviation under odds. NFT differs from them only at later updates. Biased for grad E[c] by the factor 1 - 1/G, later by
the ratios of single tokens. Groups that are
all right or all wrong are left out. ValueError where floor is not positive. Rewards above `correct_above` count as
correct.
Source: Chen et al., arXiv 2505.18116.
"""

from typing import Literal

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import NonNegative, Positive, Real
from opo.losses import aggregate, constant_groups, log_ratio, per_token


@algorithm(kl_reward=False, unbiased_for="(1 - 1/G) grad E[c]")
def nft(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    correct_above: Real = 0.5,
    prompt_weight: Literal["one", "error_rate", "odds"] = "error_rate",
    negative_weight: NonNegative = 1.0,
    floor: Positive = 1.0,
) -> Tensor:
    if floor <= 0:
        raise ValueError(f"nft: floor must be positive, got {floor}: it stands in a logarithm")
    correct_PG = torch.where(rollouts.rewards_PG.isnan(), torch.nan, (rollouts.rewards_PG > correct_above).double())
    rate_P = correct_PG.nanmean(1).nan_to_num(0.0).clamp(0.02, 0.98)
    omega_P = {"one": torch.ones_like(rate_P), "error_rate": 1 - rate_P, "odds": ((1 - rate_P) / rate_P).sqrt()}
    weight_P = omega_P[prompt_weight].masked_fill(constant_groups(correct_PG), 0.0)
    rate_N1, weight_N1 = (per_token(x_P.repeat_interleave(rollouts.group_size)) for x_P in (rate_P, weight_P))

    log_ratio_NT = log_ratio(logprobs_NT, rollouts)
    wrong_ratio_NT = (1 - rate_N1 * log_ratio_NT.exp()) / (1 - rate_N1)
    held_NT = wrong_ratio_NT + (wrong_ratio_NT.clamp(min=floor) - wrong_ratio_NT).detach()
    loss_NT = torch.where(correct_PG.view(-1, 1) == 1, -log_ratio_NT, -negative_weight * held_NT.log())
    return aggregate(weight_N1 * loss_NT, rollouts, "sequence_sum")
