"""P3O: pairwise PPO, in which the difference of two rewards weights the difference of two log-probabilities.

For two responses i, j to one prompt with sequence ratios rho = pi(y) / pi_old(y), averaged over all pairs of the group:

    separate: min(a_i rho_i, a_i clip(rho_i, 1 - eps, 1 + eps)), a_i = stop((r_i - r_j) rho_j), and the same for j
    joint:    min(b u, b clip(u, -eps, eps)), b = stop((r_i - r_j) rho_i rho_j), u = log rho_i - log rho_j

Both are maximised. A constant added to all rewards of a prompt changes nothing, at every update, without a baseline.

At the first update it is leave-one-out, unbiased for grad E[r]. The gradient and the two kinds of clipping are the
source's; the exact form of the clipped losses is ours, since the source's could not be checked. All rewards equal, or one
scored response: zero gradient.
Source: Wu et al., arXiv 2310.00212.
"""

from typing import Literal

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import NonNegative
from opo.losses import MAX_LOG_RATIO, clipped, log_ratio, pair_differences, pair_mean, sequence_sum


@algorithm(unbiased_for="grad E[r]")
def p3o(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    clip: Literal["separate", "joint"] = "separate",
    clip_range: NonNegative = 0.2,
) -> Tensor:
    gaps_PGG = pair_differences(rollouts.returns_PG.nan_to_num(0.0))
    log_ratio_PG = sequence_sum(log_ratio(logprobs_NT, rollouts), rollouts).view_as(rollouts.rewards_PG)
    ratio_PG = log_ratio_PG.clamp(max=MAX_LOG_RATIO).exp()
    pull_PGG = (gaps_PGG * ratio_PG[:, None, :]).detach()
    if clip == "separate":
        return -pair_mean(clipped(ratio_PG[:, :, None], pull_PGG, clip_range, clip_range), rollouts)
    pull_PGG = pull_PGG * ratio_PG[:, :, None].detach()
    change_PGG = pair_differences(log_ratio_PG)
    bounded_PGG = torch.minimum(pull_PGG * change_PGG, pull_PGG * change_PGG.clamp(-clip_range, clip_range))
    return -pair_mean(bounded_PGG, rollouts) / 2  # the mean counts every pair twice
