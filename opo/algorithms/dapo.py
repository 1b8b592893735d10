"""DAPO: GRPO with a higher upper clip, the mean over all tokens, only groups that vary, and a soft length penalty.

    A_i = (R_i - mean) / (std + std_eps)
    R_i = r_i + min(0, max(-1, (token_limit - overlong_buffer - L_i) / overlong_buffer))
    loss = -(1/sum L) sum_it min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)

Four changes to GRPO. Clip-higher leaves room for unlikely tokens to grow. The token mean counts long responses in full.
Groups whose rewards are all equal are out of sum and count (`drop_constant_groups`); the source samples others in their
place, here the batch gets smaller. The penalty grows from 0 to -1 over the last `overlong_buffer` tokens before
`token_limit`; 0 turns it off.

Biased for grad E[r] as GRPO is by the standard deviation, by the token mean as a ratio of sums, and by conditioning on
groups that vary. No such group: zero gradient. ValueError where the penalty is on and token_limit is not given.
Source: Yu et al., arXiv 2503.14476, equations 8 to 13.
"""

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Aggregation, Count, Fraction, NonNegative, ZeroOrMore
from opo.losses import clipped_loss, constant_groups, standardized_advantages


@algorithm(couples_prompts=True, aggregation="aggregation", unbiased_for="no")
def dapo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    std_eps: NonNegative = 1e-6,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.28,
    drop_constant_groups: bool = True,
    overlong_buffer: ZeroOrMore = 0,
    token_limit: Count | None = None,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    keep_N = rollouts.scored_N
    if drop_constant_groups:
        keep_N = keep_N & ~constant_groups(rollouts.returns_PG).repeat_interleave(rollouts.group_size)
    if overlong_buffer:
        penalty_PG = overlong_penalty(rollouts.lengths_PG, overlong_buffer, token_limit)
        rollouts = rollouts.with_(rewards_PG=rollouts.rewards_PG + penalty_PG)
    advantages_N = standardized_advantages(rollouts, std_eps)
    return clipped_loss(logprobs_NT, advantages_N, rollouts, clip_low, clip_high, aggregation, keep_N=keep_N)


def overlong_penalty(lengths_PG: Tensor, buffer: int, limit: int | None) -> Tensor:
    """0 up to limit - buffer tokens, then falling to -1 at the limit."""
    if limit is None or not 0 < buffer <= limit:
        raise ValueError(f"dapo: overlong_buffer={buffer} needs a token_limit of at least as many tokens, got {limit}")
    return torch.clamp((limit - buffer - lengths_PG) / buffer, -1.0, 0.0)
