"""Estimates of KL(pi || reference) from sampled tokens, and what each is good for.

With d = log pi(y_t) - log ref(y_t) and y_t sampled from pi (Schulman, "Approximating KL Divergence", 2020):

    k1 = d                       unbiased, noisy, either sign
    k2 = d^2 / 2                 biased (by third order in d), low variance
    k3 = exp(-d) - 1 + d         unbiased, never negative

A good estimate of the value need not give a good gradient. For the reverse KL that a penalty means, exactly on-policy:

| placed in | k1 | k2 | k3 |
|---|---|---|---|
| the loss (differentiated) | zero in expectation: no penalty at all | right | gradient of the forward KL(ref || pi) |
| the reward (a number) | right | biased | reverse minus forward KL |

"Right" in the loss is for each token's own conditional KL: the effect of a token on the KL of later tokens enters only
through returns, that is, with the KL in the reward. With several updates per rollout the tokens come from an older
policy, and none of these estimates is corrected for that.
"""

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.keys import KLEstimator
from opo.losses import needed


def kl_estimate(logprobs_NT: Tensor, reference_logprobs_NT: Tensor, estimator: KLEstimator) -> Tensor:
    """k1, k2 or k3 of each sampled token, (N, T), nats, differentiable in `logprobs_NT`."""
    difference_NT = logprobs_NT - reference_logprobs_NT
    if estimator == "k1":
        return difference_NT
    if estimator == "k2":
        return difference_NT.square() / 2
    if estimator == "k3":
        return torch.expm1(-difference_NT) + difference_NT
    raise ValueError(f"kl_estimator {estimator!r} is unknown: choose one of k1, k2, k3")


def kl_penalty(logprobs_NT: Tensor, rollouts: Rollouts, estimator: KLEstimator) -> Tensor:
    """The estimate for each token, (N, T), zero outside responses. Raises ValueError without a reference."""
    reference_NT = needed(rollouts, "reference_logprobs_NT")
    return kl_estimate(torch.where(rollouts.mask_NT, logprobs_NT, reference_NT), reference_NT, estimator)
