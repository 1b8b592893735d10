"""REINFORCE++: returns to go, whitened over all tokens of the whole batch, with PPO's clip.

    R_it = sum_{s >= t} r_is        A_it = (R_it - mean) / (std + std_eps)        over the tokens of the batch
    loss = -(1/sum L) sum_it min(rho_it A_it, clip(rho_it, 1 - clip_low, 1 + clip_high) A_it)

The reward stands on the last token, a KL reward (`kl_placement: reward`, estimate k1) on every token; without the
latter a response has one return on all of its tokens, and the batch mean is sum L r / sum L: the length-weighted
baseline of the whole batch. std has ddof = 0. Needs no group: one response per prompt is enough.

Biased for grad E[r] by O(1/(P G)), its response being in the mean, and rescaled by the batch's 1/std. How easy or
hard a prompt is stays in the advantage. All rewards of the batch equal: zero gradient.
Source: Hu, arXiv 2501.03262.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Aggregation, Fraction, NonNegative
from opo.losses import clipped_loss, whiten


@algorithm(couples_prompts=True, aggregation="aggregation", unbiased_for="no: O(1/(P G)) and 1/std")
def reinforce_pp(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    std_eps: NonNegative = 1e-8,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    to_go_NT = rollouts.token_rewards_NT.flip(1).cumsum(1).flip(1)
    advantages_NT = whiten(to_go_NT, rollouts.mask_NT & rollouts.scored_N[:, None], std_eps)
    return clipped_loss(logprobs_NT, advantages_NT, rollouts, clip_low, clip_high, aggregation)
