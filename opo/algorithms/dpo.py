"""DPO on the scored pairs of a group, and its reading by tokens: from r to Q*.

    s_i = sum_t log pi(y_it)/ref(y_it)        loss = mean over pairs with r_i > r_j of -log sigma(beta (s_i - s_j))

Read by tokens, beta log pi(y_t)/ref(y_t) at the optimum of reward less beta KL is the advantage of token t: its reward and the change of
the optimal value (`token_credit`; the sum over a response is its reward less the value of the prompt). So the loss on whole responses learns a
credit for every token. Pairs here are those of a group, ordered by reward, in place of preferences.

Not a policy gradient. At the reference every pair pulls with weight beta / 2. Ties are no pair; groups without one (all right, all
wrong, a single response) give nothing, and the mean is over the prompts that have one.
Source: Rafailov et al., arXiv 2404.12358 (token reading; its formula is unverified beyond the abstract, and proved in the tests on a tree); loss: arXiv
2305.18290, equation 7.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Positive
from opo.losses import needed, pair_differences, scored_pairs, sequence_sum


@algorithm(needs=("reference_logprobs_NT",), couples_prompts=True, unbiased_for="not a policy gradient")
def dpo(logprobs_NT: Tensor, rollouts: Rollouts, *, beta: Positive = 0.1) -> Tensor:
    score_PG = sequence_sum(token_credit(logprobs_NT, rollouts, beta), rollouts).view_as(rollouts.rewards_PG)
    better_PGG = scored_pairs(rollouts) & (pair_differences(rollouts.returns_PG.nan_to_num(0.0)) > 0)
    loss_PGG = torch.where(better_PGG, -logsigmoid(pair_differences(score_PG)), 0.0)
    pairs_P = better_PGG.sum((1, 2))
    return (loss_PGG.sum((1, 2)) / pairs_P.clamp(min=1)).sum() / (pairs_P > 0).sum().clamp(min=1)


def token_credit(logprobs_NT: Tensor, rollouts: Rollouts, beta: float) -> Tensor:
    """beta log pi(y_t)/ref(y_t), (N, T), zero outside responses."""
    return beta * torch.where(rollouts.mask_NT, logprobs_NT - needed(rollouts, "reference_logprobs_NT"), 0.0)
