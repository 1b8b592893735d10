"""Dr. GRPO: GRPO without its two biases, the division by the standard deviation and by each response's own length.

    A_i = r_i - mean        loss = -(1/(N c)) sum_i sum_t min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)

with rho_it = pi(y_it) / pi_old(y_it). The constant c (`denominator`) stands where GRPO has the length of the response;
the source takes the token limit. It rescales the loss and nothing else: one leaves the loss on the scale of OPO's.

At the first update after sampling unbiased for (1 - 1/G) grad E[r]; later ones carry the bias of the clip. All rewards
equal: zero gradient.
Source: Liu et al., "Understanding R1-Zero-like training", arXiv 2503.20783.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import group_mean
from opo.batch import Rollouts
from opo.keys import Fraction, NonNegative, Positive
from opo.losses import advantages, clipped_loss


@algorithm(denominator="denominator", unbiased_for="(1 - 1/G) grad E[r]")
def dr_grpo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    denominator: Positive = 1.0,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
) -> Tensor:
    advantages_N = advantages(rollouts, group_mean(rollouts.returns_PG))
    return clipped_loss(logprobs_NT, advantages_N, rollouts, clip_low, clip_high, "sequence_sum") / denominator
