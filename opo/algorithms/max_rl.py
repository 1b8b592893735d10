"""MaxRL: REINFORCE minus the group mean, divided by the group mean.

    A_i = (r_i - mean) / mean, zero where mean <= 0        loss = -(1/N) sum_i A_i sum_t log pi(y_it)

For rewards of 0 and 1 and large groups its mean is the gradient of log p(x), p the probability of a correct response,
instead of that of p(x): log p = -sum_k (1 - p)^k / k, and a group of G estimates the first G - 1 terms. So hard prompts
have the largest weight and nearly solved ones the smallest. Biased for grad E[r] by design. A group with equal rewards:
zero gradient. ValueError where a reward is negative. Source: arXiv 2602.02710.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.baselines import group_mean
from opo.batch import Rollouts
from opo.losses import advantages, policy_gradient_loss


@algorithm(on_policy_only=True, kl_reward=False, unbiased_for="grad log E[r] to G - 1 terms (0/1 rewards)")
def max_rl(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    if (rollouts.rewards_PG < 0).any():
        prompt = int((rollouts.rewards_PG < 0).any(1).nonzero()[0])
        raise ValueError(f"max_rl: prompt {prompt} has a negative reward, allowed are rewards >= 0")
    mean_PG = group_mean(rollouts.returns_PG)
    centred_N, mean_N = advantages(rollouts, mean_PG), mean_PG.view(-1)
    return policy_gradient_loss(logprobs_NT, (centred_N / mean_N).where(mean_N > 0, 0.0), rollouts)
