"""T-PPO: PPO that learns from responses which are cut before their end, by extended advantage estimation.

    a response cut after l tokens has no reward yet; its value goes on:  V(s_l) = V(s_{l-1})
    delta_t = r_t + gamma V_{t+1} - V_t        A_t = sum_{k=t}^{l-1} (gamma lam)^{k-t} delta_k
    loss = -(1/sum L) sum_it min(rho_it A_it, clip(rho_it, 1 - clip_low, 1 + clip_high) A_it)

The critic is fitted on finished responses alone, to their whole returns (`value_lam` = 1). Here a response is cut where the token limit
ended it, and whatever reward the task gave the fragment is left out. Stand-in of this workbench: the published method goes on with a
fragment in the next batch, and refills the slots of finished ones; here every batch begins anew.

Biased for grad E[r] as PPO is, and by what the critic expects of the fragments. Nothing cut: PPO exactly (with its critic on whole returns).
All cut: no reward enters, and the critic is not fitted. Equal rewards do not give zero advantages. With values of zero a cut response has
no advantage before whitening.
Source: arXiv 2506.15050 (extended GAE from reviews of it; window, lambda and rates are unverified).
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.gae import gae
from opo.keys import Aggregation, Fraction, NonNegative, Positive
from opo.losses import clipped_loss, needed
from opo.losses import whiten as whitened


@algorithm(
    needs=("values_NT",),
    couples_prompts=True,
    token_level=True,
    aggregation="aggregation",
    critic=("gamma", "value_lam", "value_clip"),
    critic_on_finished=True,
    unbiased_for="no: the critic stands for what was cut",
)
def t_ppo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    gamma: Fraction = 1.0,
    lam: Fraction = 0.95,
    value_lam: Fraction = 1.0,
    whiten: bool = True,
    std_eps: NonNegative = 1e-8,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
    value_clip: Positive | None = 0.2,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    cut_N = rollouts.cut_N
    rewards_NT = rollouts.with_(rewards_PG=rollouts.rewards_PG.masked_fill(cut_N.view_as(rollouts.rewards_PG), 0.0))
    values_NT = needed(rollouts, "values_NT")
    advantages_NT, _ = gae(rewards_NT.token_rewards_NT, values_NT, rollouts.mask_NT, gamma, lam, cut_N)
    advantages_NT = advantages_NT * rollouts.scored_N[:, None]
    if whiten:
        advantages_NT = whitened(advantages_NT, rollouts.mask_NT & rollouts.scored_N[:, None], std_eps)
    return clipped_loss(logprobs_NT, advantages_NT, rollouts, clip_low, clip_high, aggregation)
