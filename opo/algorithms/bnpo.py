"""BNPO: advantages divided by the density of a Beta distribution that is fitted to the prompts' success rates.

    A_i = (r_i - p) / f(p; alpha, beta)        p = mean reward of the group
    a = (m (1 - m) / v - 1) m,   b = (m (1 - m) / v - 1) (1 - m)        alpha = max(1, 1 + a/3),   beta = max(1, 1 + b/3)

m and v are mean and variance (ddof = 0) of p over the prompts of the batch, f the density of the Beta distribution, and 1/f
at most `weight_cap`. alpha = beta = 1 is the group mean; alpha = beta = 3/2 weighs prompts as GRPO's standard deviation
does. Where all prompts have one success rate, v = 0 and f = 1.

The group mean costs the factor 1 - 1/G; the weight of a prompt follows its own responses and those of the batch: biased for
grad E[r], by design. All rewards of a group equal: zero gradient. Rewards lie in [0, 1]: ValueError names the prompt where one does not.
Source: arXiv 2506.02864 and its code.
"""

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import group_mean
from opo.batch import Rollouts
from opo.keys import Positive
from opo.losses import advantages, policy_gradient_loss, prompt_mean


@algorithm(on_policy_only=True, couples_prompts=True, unbiased_for="no: prompts are reweighted")
def bnpo(logprobs_NT: Tensor, rollouts: Rollouts, *, weight_cap: Positive = 1e6) -> Tensor:
    outside_P = ((rollouts.rewards_PG < 0) | (rollouts.rewards_PG > 1)).any(1)
    if outside_P.any():
        raise ValueError(
            f"bnpo: prompt {int(outside_P.nonzero()[0])} has a reward outside [0, 1], where a Beta density is not defined"
        )
    rate_P = rollouts.rewards_PG.nanmean(1).nan_to_num(0.0)
    weight_P1 = (1 / beta_density(rate_P, rollouts)).clamp(max=weight_cap)[:, None]
    centred_N = advantages(rollouts, group_mean(rollouts.returns_PG))
    return policy_gradient_loss(logprobs_NT, (weight_P1 * centred_N.view_as(rollouts.rewards_PG)).view(-1), rollouts)


def beta_density(rate_P: Tensor, rollouts: Rollouts) -> Tensor:
    """f(p; alpha, beta) of each prompt's success rate, fitted by moments to the rates of the batch, (P,)."""
    mean = prompt_mean(rate_P, rollouts)
    variance = prompt_mean((rate_P - mean).square(), rollouts)
    spread = mean * (1 - mean)
    if variance <= 1e-12 * spread:  # equal up to rounding
        return torch.ones_like(rate_P)
    strength = spread / variance - 1
    alpha = (1 + strength * mean / 3).clamp(min=1)
    beta = (1 + strength * (1 - mean) / 3).clamp(min=1)
    log_norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    return (torch.xlogy(alpha - 1, rate_P) + torch.xlogy(beta - 1, 1 - rate_P) - log_norm).exp()
