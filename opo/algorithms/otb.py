"""OTB: an optimal baseline for every token, weighted by the energy of the scores so far.

    W_it = sum_{s<=t} (1 - 2 pi_is + sum_v pi_v^2)        B_t = sum_i W_it G_it / sum_i W_it        A_it = G_it - B_t
    loss = -(1/N) sum_it A_it log pi(y_it)

over the responses of the group that have a token t; G_it is the return from token t on, the reward itself without KL
rewards. The term in brackets is the squared norm of the score with respect to the logits of one token: a proxy for the
squared norm of the gradient that costs no backward pass. OPO is the case of equal energies, with one
weight per response, its length.

A response is part of its own baseline at every token: bias O(1/G). A token that no other response reaches is its
own baseline and gets zero; with `zero_tail` it gets its full return instead. All rewards equal: zero gradient, but for
zero_tail.
Source: arXiv 2602.07078.
"""

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import weighted_mean
from opo.batch import Rollouts
from opo.losses import needed, policy_gradient_loss


@algorithm(needs=("logit_energy_NT",), on_policy_only=True, token_level=True, unbiased_for="no: O(1/G)")
def otb(logprobs_NT: Tensor, rollouts: Rollouts, *, zero_tail: bool = False) -> Tensor:
    shape = (rollouts.num_prompts, rollouts.group_size, -1)
    alive_PGT = (rollouts.mask_NT & rollouts.scored_N[:, None]).view(shape)
    to_go_PGT = rollouts.token_rewards_NT.flip(1).cumsum(1).flip(1).view(shape)
    energy_PGT = torch.where(alive_PGT, needed(rollouts, "logit_energy_NT").view(shape), 0.0).cumsum(2)
    # each token position is a batch of groups of its own; a response without a token there is like an unscored one
    returns_TPG = torch.where(alive_PGT, to_go_PGT, torch.nan).permute(2, 0, 1)
    baseline_TPG = weighted_mean(returns_TPG, energy_PGT.permute(2, 0, 1))
    if zero_tail:
        baseline_TPG = torch.where((~returns_TPG.isnan()).sum(2, keepdim=True) == 1, 0.0, baseline_TPG)
    advantages_PGT = (returns_TPG - baseline_TPG).nan_to_num(0.0).permute(1, 2, 0)
    return policy_gradient_loss(logprobs_NT, advantages_PGT.reshape(rollouts.mask_NT.shape), rollouts)
