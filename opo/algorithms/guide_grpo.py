"""Guide-GRPO: GRPO that also learns from responses which were drawn with a hint, as if there had been none.

    rho_it = pi(y_it | x) / mu(y_it)        mu: the policy at x, or at x with a hint
    drawn without a hint:  min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)
    drawn with a hint:     A rho / (rho + g),   g the 90th percentile of these ratios in the batch, at least 1e-4, held fixed
    loss = -(1/sum L) sum over tokens        A_i = (r_i - mean)/(std + std_eps), groups of equal rewards left out of sum and count

The sampler `hinted` draws: a group that failed altogether is asked again with the beginning of a reference solution, and answered
responses stand under the bare prompt (`behaviour_logprobs_NT` keeps mu). Without that field no response had a hint, and it is GRPO with a
token mean over groups that vary. The ratio has heavy tails, which g flattens.

Biased for grad E[r]: the z-score, and tokens of another distribution whose prefix no ratio corrects. All rewards equal: zero gradient.
Source: arXiv 2506.13923 and its code (hints there are written by a larger model).
"""

import math

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Fraction, NonNegative
from opo.losses import MAX_LOG_RATIO, aggregate, clipped, constant_groups, log_ratio, standardized_advantages

PERCENTILE, SMALLEST = 0.9, 1e-4  # of the ratios that shape the others


@algorithm(couples_prompts=True, token_level=True, aggregation="token_mean", unbiased_for="no")
def guide_grpo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    std_eps: NonNegative = 1e-6,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
) -> Tensor:
    advantages_N1 = standardized_advantages(rollouts, std_eps).detach()[:, None]
    varied_P = ~constant_groups(rollouts.returns_PG)
    keep_N = varied_P.repeat_interleave(rollouts.group_size) & rollouts.scored_N
    terms_NT = clipped(log_ratio(logprobs_NT, rollouts).exp(), advantages_N1, clip_low, clip_high)
    if rollouts.behaviour_logprobs_NT is not None:
        assert rollouts.logprobs_NT is not None
        mask_NT, mu_NT = rollouts.mask_NT, rollouts.behaviour_logprobs_NT
        hinted_N = torch.where(mask_NT, mu_NT != rollouts.logprobs_NT, False).any(1)
        inside_NT = mask_NT & (hinted_N & keep_N)[:, None]
        ratio_NT = torch.where(mask_NT, logprobs_NT - mu_NT, 0.0).clamp(max=MAX_LOG_RATIO).exp()
        if inside_NT.any():
            ratios = ratio_NT.detach()[inside_NT]
            gamma = ratios.kthvalue(math.ceil(PERCENTILE * len(ratios))).values.clamp(min=SMALLEST)
            terms_NT = torch.where(hinted_N[:, None], advantages_N1 * ratio_NT / (ratio_NT + gamma), terms_NT)
    return -aggregate(terms_NT, rollouts, "token_mean", keep_N)
