"""PPO: token-level advantages from a critic, and a clipped ratio that allows several updates per rollout batch.

    delta_t = r_t + gamma V_{t+1} - V_t        A_t = sum_k (gamma lam)^k delta_{t+k}
    loss = -(1/sum L) sum_it min(rho_it A_it, clip(rho_it, 1 - clip_low, 1 + clip_high) A_it)

`whiten` makes the advantages mean zero and variance one over the tokens of the batch. `values_NT` are the critic's at
sampling time; the trainer fits it to A + V with the loss of `opo.gae.value_loss` and the hyperparameters `gamma`, `lam`
and `value_clip` (null = no clip).

With lam = 1 and without whitening the first update is unbiased for grad E[r], whatever the critic; below one it has the
critic's bias. Whitening shifts and scales by statistics of the batch. With a critic of zeros, lam = 1 is REINFORCE.
Equal rewards do not give zero advantages, since the critic's values differ from them.
Source: Schulman et al., arXiv 1707.06347, equation 7; GAE, arXiv 1506.02438, equation 16; for language models arXiv
2203.02155.
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
    critic=("gamma", "lam", "value_clip"),
    unbiased_for="grad E[r] if lam=1, whiten=false, sequence_sum",
)
def ppo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    gamma: Fraction = 1.0,
    lam: Fraction = 0.95,
    whiten: bool = True,
    std_eps: NonNegative = 1e-8,
    clip_low: Fraction = 0.2,
    clip_high: NonNegative = 0.2,
    value_clip: Positive | None = 0.2,
    aggregation: Aggregation = "token_mean",
) -> Tensor:
    values_NT = needed(rollouts, "values_NT")
    advantages_NT, _ = gae(rollouts.token_rewards_NT, values_NT, rollouts.mask_NT, gamma, lam)
    if whiten:
        advantages_NT = whitened(advantages_NT, rollouts.mask_NT & rollouts.scored_N[:, None], std_eps)
    return clipped_loss(logprobs_NT, advantages_NT, rollouts, clip_low, clip_high, aggregation)
