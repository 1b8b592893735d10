"""IGPO: every step of a response is rewarded for how much likelier it made the reference answer.

    p_k = exp(mean over the answer's tokens of log pi(answer | prompt, steps up to k))        gain_k = p_k - p_{k-1}
    G_k = sum_{j >= k} gain_j + r        A_k = G_k - mean of G_k over the group's responses that reach step k
    loss = -(1/sum L) sum_it min(rho_it A_it, clip(rho_it, 1 - clip_low, 1 + clip_high) A_it)

Steps are the turns of an agent in the source; stand-in of this workbench: windows of `step_tokens` tokens of one response. The trainer takes the
gains with the present policy, one short forward pass a step, as constants (`answer_gains_NT`, at each step's last token).

The gains telescope: at the first step G is p at the end less p at the start, plus r, so the return is shifted towards answers that the
policy already finds likely. Biased for grad E[r] by that, by the in-sample mean and by the mean over tokens. All rewards equal: the gains are still compared.
A step that one response alone reaches has advantage zero. Unscored responses are left out of the means.
Source: arXiv 2510.14967 and its code (first version of its advantage: gamma 1, no standard deviation).
"""

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Aggregation, Count, Fraction, NonNegative
from opo.losses import clipped_loss, needed


@algorithm(
    needs=("answer_gains_NT",),
    couples_prompts=True,
    token_level=True,
    aggregation="aggregation",
    unbiased_for="no, by design",
)
def igpo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    step_tokens: Count = 8,
    strength: NonNegative = 1.0,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    gains_NT = torch.where(rollouts.mask_NT, needed(rollouts, "answer_gains_NT"), 0.0)
    returns_NT = strength * gains_NT.flip(1).cumsum(1).flip(1) + rollouts.returns_PG.nan_to_num(0.0).view(-1, 1)
    group, tokens = rollouts.group_size, gains_NT.shape[1]
    steps = torch.arange(0, tokens, step_tokens)  # the first token of each step speaks for it
    reach_PGK = (rollouts.mask_NT & rollouts.scored_N[:, None])[:, steps].view(-1, group, len(steps))
    returns_PGK = torch.where(reach_PGK, returns_NT[:, steps].view(-1, group, len(steps)), 0.0)
    mean_P1K = returns_PGK.sum(1, keepdim=True) / reach_PGK.sum(1, keepdim=True).clamp(min=1)
    advantages_NK = torch.where(reach_PGK, returns_PGK - mean_P1K, 0.0).view(-1, len(steps))
    advantages_NT = advantages_NK.repeat_interleave(step_tokens, 1)[:, :tokens]
    return clipped_loss(logprobs_NT, advantages_NT, rollouts, clip_low, clip_high, aggregation)
