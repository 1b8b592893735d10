"""EMPG: steps taken with confidence get more of the advantage, and a bonus for leading to a confident next step.

With H_ik the mean entropy of the tokens of step k, brought to [0, 1] by the smallest and largest of the batch:

    g_ik = exp(-scale H_ik) / mean of exp(-scale H)        f_ik = exp(-bonus_scale H_ik)
    A_ik = A_i g_ik + bonus f_i,k+1        minus the mean over the tokens of the batch; no bonus on the last step

A_i is GRPO's z-score, the loss PPO's clip with the mean over tokens. Steps are an agent's turns in the source; here,
where a response is one text, windows of `step_tokens` tokens stand in for them (ours). Entropies are those of the
sampling policy.

Biased by design: the weights depend on the tokens they multiply, the bonus goes to failed responses too, and the
extremes of the batch set the scale. Equal rewards do not give a zero gradient, because of the bonus.
Source: arXiv 2509.09265.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Aggregation, Count, Fraction, NonNegative
from opo.losses import clipped_loss, needed, standardized_advantages


@algorithm(
    needs=("entropies_NT",),
    couples_prompts=True,
    token_level=True,
    aggregation="aggregation",
    unbiased_for="no, by design",
)
def empg(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    step_tokens: Count = 16,
    scale: NonNegative = 1.0,
    bonus_scale: NonNegative = 1.0,
    bonus: NonNegative = 0.05,
    std_eps: NonNegative = 1e-6,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    tokens_NT = rollouts.mask_NT & rollouts.scored_N[:, None]
    if not tokens_NT.any():
        return torch.zeros_like(logprobs_NT).sum()
    count_NK = _by_step(tokens_NT.double(), step_tokens)
    total_NK = _by_step(torch.where(tokens_NT, needed(rollouts, "entropies_NT"), 0.0), step_tokens)
    steps_NK, entropy_NK = count_NK > 0, total_NK / count_NK.clamp(min=1)
    low, high = entropy_NK[steps_NK].min(), entropy_NK[steps_NK].max()
    level_NK = (entropy_NK - low) / (high - low + 1e-8)
    gain_NK = (-scale * level_NK).exp()
    gain_NK = gain_NK / gain_NK[steps_NK].mean()
    next_NK = pad((steps_NK * (-bonus_scale * level_NK).exp())[:, 1:], (0, 1))
    shaped_NK = standardized_advantages(rollouts, std_eps)[:, None] * gain_NK + bonus * next_NK
    shaped_NT = shaped_NK.repeat_interleave(step_tokens, 1)[:, : tokens_NT.shape[1]]
    return clipped_loss(
        logprobs_NT, shaped_NT - shaped_NT[tokens_NT].mean(), rollouts, clip_low, clip_high, aggregation
    )


def _by_step(values_NT: Tensor, step_tokens: int) -> Tensor:
    """Sums over windows of `step_tokens` tokens, (N, K)."""
    if step_tokens < 1:
        raise ValueError(f"empg: step_tokens must be at least 1, got {step_tokens}")
    return pad(values_NT, (0, -values_NT.shape[1] % step_tokens)).unflatten(1, (-1, step_tokens)).sum(2)
