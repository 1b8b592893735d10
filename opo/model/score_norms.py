"""Squared norms of response scores over all trained parameters, by one backward pass a distinct response."""

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.model.gradient import accumulate, gradient_norm
from opo.model.policy import Policy


def squared_score_norms(policy: Policy, rollouts: Rollouts) -> Tensor:
    """|grad log pi(y_n)|^2 of each response, (P, G) float64. Leaves no gradient behind.

    Exact, and as slow as that many updates of one response: what `analysis.score_gram` takes from one pass is a matrix for
    studies, this is for training a small policy with the optimal baseline itself.
    """
    norms_N = torch.zeros(len(rollouts.mask_NT), dtype=torch.float64)
    for n in sorted(set(rollouts.first_N.tolist())):
        weights_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
        weights_NT[n] = rollouts.mask_NT[n].double()
        accumulate(policy, rollouts, [n // rollouts.group_size], weights_NT)
        norms_N[n] = gradient_norm(policy.parameters()) ** 2
        for parameter in policy.parameters():
            parameter.grad = None
    return norms_N[rollouts.first_N].view_as(rollouts.rewards_PG)
