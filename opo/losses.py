"""The parts that losses are made of: advantages from baselines, importance ratios, clipping, aggregation over tokens."""

from typing import Literal

import torch
from torch import Tensor

from opo.batch import Rollouts

Aggregation = Literal["sequence_sum", "sequence_mean", "token_mean"]


def advantages(rollouts: Rollouts, baseline_PG: Tensor) -> Tensor:
    """A_i = R_i - b_i, (N,) float64; zero where the reward is unscorable."""
    return (rollouts.returns_PG - baseline_PG).nan_to_num(0.0).view(-1)


def aggregate(values_NT: Tensor, rollouts: Rollouts, how: Aggregation) -> Tensor:
    """One number from per-token values, unscorable responses left out of sum and count.

    sequence_sum: (1/N) sum_n sum_t v_nt, the only one of the three whose gradient is that of expected reward;
    sequence_mean: (1/N) sum_n (1/L_n) sum_t v_nt; token_mean: sum_nt v_nt / sum_n L_n.
    """
    mask_NT = rollouts.mask_NT & rollouts.scorable_N[:, None]
    sums_N = torch.where(mask_NT, values_NT, 0.0).sum(1)
    responses = mask_NT.any(1).sum().clamp(min=1)
    if how == "sequence_sum":
        return sums_N.sum() / responses
    if how == "sequence_mean":
        return (sums_N / rollouts.lengths_N).sum() / responses
    if how == "token_mean":
        return sums_N.sum() / mask_NT.sum().clamp(min=1)
    raise ValueError(f"aggregation {how!r} is unknown: choose one of sequence_sum, sequence_mean, token_mean")


def policy_gradient_loss(logprobs_NT: Tensor, advantages_N: Tensor, rollouts: Rollouts, how: Aggregation = "sequence_sum") -> Tensor:
    """-A_n log pi(y_nt), aggregated: REINFORCE with the advantage as given."""
    return -aggregate(advantages_N.detach()[:, None] * logprobs_NT, rollouts, how)
