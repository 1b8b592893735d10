"""ASPO: a bonus on the advantage of right answers for where something happens in them, held below the advantage itself.

    A_i = z-score of r_i in its group
    A_i <- A_i - clip(strength (p_i - mean p) / mean L, -bound A_i, bound A_i)        where A_i > 0

p_i is a position in the response (in the paper: of the first call of a tool), the means are the group's. Since the bonus stays
below A_i, right answers stay reinforced. Early positions are favoured. Stand-in of this workbench: p_i is
`Rollouts.position_PG` where it is given, else the length L_i, so that short right answers are favoured.

Biased for grad E[r] by the standard deviation, the in-sample mean and the bonus. All rewards equal: zero gradient.
Source: arXiv 2508.19201 (strength = -delta and bound as in its text, mild setting; the loss around it is DAPO's).
"""

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Aggregation, Fraction, NonNegative
from opo.losses import clipped_loss, standardized_advantages


@algorithm(couples_prompts=True, aggregation="aggregation", unbiased_for="no, by design")
def aspo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    strength: NonNegative = 2.0,
    bound: Fraction = 0.7,
    std_eps: NonNegative = 1e-6,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.28,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    plain_PG = standardized_advantages(rollouts, std_eps).view_as(rollouts.rewards_PG)
    scored_PG = ~rollouts.rewards_PG.isnan()
    position_PG = rollouts.lengths_PG if rollouts.position_PG is None else rollouts.position_PG
    mean_P1, length_P1 = (
        x_PG.masked_fill(~scored_PG, torch.nan).nanmean(1, keepdim=True).nan_to_num(1.0)
        for x_PG in (position_PG, rollouts.lengths_PG)
    )
    limit_PG = bound * plain_PG.clamp(min=0)  # zero for wrong answers: they keep their advantage
    malus_PG = torch.clamp(strength * (position_PG - mean_P1) / length_P1, -limit_PG, limit_PG)
    return clipped_loss(logprobs_NT, (plain_PG - malus_PG).view(-1), rollouts, clip_low, clip_high, aggregation)
