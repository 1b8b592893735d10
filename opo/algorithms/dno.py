"""DNO: logistic regression of a pair's log-ratio to the sampling policy onto its difference of win rates.

With v_i the share of its group that response i beats in reward, averaged over the pairs of a group:

    m = eta ((log pi - log pi_old)(y_i) - (log pi - log pi_old)(y_j))        p = sigma(v_i - v_j)
    loss = -p log sigma(m) - (1 - p) log sigma(-m)

The win rate in the group stands in for the source's preference oracle. Ties pull a pair together.

At the first update the weight of a pair is +-eta (sigma(v_i - v_j) - 1/2): zero-sum, bounded, a function of the order
of the rewards alone, and not an estimate of grad E[r]. Equal rewards: zero gradient.
Source: Rosset et al., arXiv 2404.03715.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Positive
from opo.losses import log_ratio, pair_differences, pair_mean, sequence_sum, win_rates


@algorithm(unbiased_for="not a policy gradient")
def dno(logprobs_NT: Tensor, rollouts: Rollouts, *, eta: Positive = 0.1) -> Tensor:
    log_ratio_PG = sequence_sum(log_ratio(logprobs_NT, rollouts), rollouts).view_as(rollouts.rewards_PG)
    margin_PGG = eta * pair_differences(log_ratio_PG)
    target_PGG = torch.sigmoid(pair_differences(win_rates(rollouts)))
    # the ordered pairs (i, j) and (j, i) hold the two halves of the loss of one pair
    return -pair_mean(target_PGG * logsigmoid(margin_PGG), rollouts)
