"""GSPO: one importance ratio per response, the geometric mean of its tokens', clipped as a whole.

    s_i = exp((1/L_i) sum_t log pi(y_it) / pi_old(y_it))        A_i = (r_i - mean) / (std + std_eps)
    loss = -(1/N) sum_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

The reward belongs to the response, and so does the ratio: a single unlikely token is not clipped alone and cannot make
the weight large. The mean over tokens brings s close to one, hence the narrow clip.

The derivative of s_i carries 1 / L_i: at the first update this is GRPO with its mean over each response's own tokens,
biases included. Groups with equal rewards have zero advantage.
Source: Zheng et al., arXiv 2507.18071, equations 5 to 7.
"""

from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Fraction, NonNegative
from opo.losses import clipped, log_ratio, response_mean, sequence_sum, standardized_advantages


@algorithm(aggregation="sequence_mean", unbiased_for="no")
def gspo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    std_eps: NonNegative = 1e-6,
    clip_low: Fraction = 3e-4,
    clip_high: NonNegative = 4e-4,
) -> Tensor:
    ratio_N = (sequence_sum(log_ratio(logprobs_NT, rollouts), rollouts) / rollouts.lengths_N).exp()
    advantages_N = standardized_advantages(rollouts, std_eps)
    return -response_mean(clipped(ratio_N, advantages_N, clip_low, clip_high), rollouts)
