"""COPO: where a group agrees on its answer, compare it with other prompts; where it does not, compare inside.

    local:  A_i = (r_i - mean) / (std + std_eps) in the group
    global: A_q = (R_q - mean R) / (std R + std_eps), R_q the mean reward of prompt q, over the prompts of the batch
    loss = w_q L(A_i) + (1 - w_q) L(A_q)        w_q = sigma(sharpness (H_q - threshold))

H_q is the entropy in bits of the extracted answers of the group, L PPO's clipped loss with the mean over tokens and,
for negative advantages, a bound `clip_dual` on the ratio. Standard deviations have ddof = 1. An answer that could not
be extracted counts as one more answer.

Groups that are all right or all wrong still give a gradient, through the global part. That part is one number per
prompt, in which only a share of 1/G is the response's own reward: a valid direction of grad E[R], but noisy; the local
part is GRPO's, biases included. All rewards of the batch equal: zero gradient. ValueError where the batch has one
prompt. Source: arXiv 2508.04138.
"""

from collections import Counter

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Aggregation, Fraction, NonNegative
from opo.losses import clipped_loss, standardized_advantages, z_scores


@algorithm(needs=("answers",), couples_prompts=True, aggregation="aggregation", unbiased_for="no")
def copo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    sharpness: NonNegative = 20.0,
    threshold: NonNegative = 1.5,
    std_eps: NonNegative = 1e-6,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
    clip_dual: NonNegative = 3.0,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    if rollouts.num_prompts < 2:
        raise ValueError("copo needs at least two prompts: its global part compares prompts with each other")
    local_N = standardized_advantages(rollouts, std_eps)
    global_P = z_scores(rollouts.returns_PG.nanmean(1)[None], std_eps)[0]
    blend_P = torch.sigmoid(sharpness * (answer_entropy(rollouts) - threshold))
    global_N, blend_N = (x_P.repeat_interleave(rollouts.group_size) for x_P in (global_P, blend_P))
    inside, between = (
        clipped_loss(
            logprobs_NT, advantages_N, rollouts, clip_low, clip_high, aggregation, share_N=share_N, clip_dual=clip_dual
        )
        for advantages_N, share_N in ((local_N, blend_N), (global_N, 1 - blend_N))
    )
    return inside + between


def answer_entropy(rollouts: Rollouts) -> Tensor:
    """Entropy in bits of the answers of each group's scored responses, (P,) float64."""
    if rollouts.answers is None:
        raise ValueError("this loss needs answers, and the rollouts have none")
    entropies = []
    for group, scored in zip(rollouts.answers, (~rollouts.rewards_PG.isnan()).tolist(), strict=True):
        counts = Counter(answer for answer, kept in zip(group, scored, strict=True) if kept)
        shares = torch.tensor(list(counts.values()), dtype=torch.float64) / max(counts.total(), 1)
        entropies.append(-(shares * shares.log2()).sum())
    return torch.stack(entropies).to(rollouts.rewards_PG.device)
