"""Baselines: what is subtracted from a response's reward, one formula each.

Every entry of BASELINES is `fn(rewards_PG, weights_PG=None) -> baseline_PG` in float64; axes in front of (P, G) are
batches of independent replicates. The advantage is A = r - b, and the gradient estimate of one group
g = (1/G) sum_i A_i z_i with z_i the score of response i.

b_i that does not depend on response i leaves E[g] = grad E[r], because E[z_i | others] = 0: those are the leave-one-out
forms and `none`. A response inside its own baseline costs a bias of O(1/G): for the plain mean exactly the factor
1 - 1/G, for a weighted mean about -E[w (r - b) z] / (G E w), which does not point along the gradient.

Edge cases are the same for all. A NaN reward (an unscored response) enters no baseline, and the baseline at its place
is finite. Where only one response of a group is scored, its group baseline equals its own reward, so its advantage is
zero. Weights that are all zero are taken as equal. Equal rewards give exactly zero advantages. ValueError names the
prompt whose group has one response, whose reward is infinite, or whose weight is negative or not finite.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

Baseline = Callable[..., Tensor]


def none(rewards_PG: Tensor, weights_PG: Tensor | None = None) -> Tensor:
    """b = 0: REINFORCE (Williams 1992). Unbiased."""
    return torch.zeros_like(_checked(rewards_PG, smallest_group=1))


def group_mean(rewards_PG: Tensor, weights_PG: Tensor | None = None) -> Tensor:
    """b = (1/G) sum_j r_j: Dr. GRPO (arXiv 2503.20783). Its g is exactly (1 - 1/G) times that of `leave_one_out`."""
    return weighted_mean(rewards_PG, torch.ones_like(_checked(rewards_PG)))


def leave_one_out(rewards_PG: Tensor, weights_PG: Tensor | None = None) -> Tensor:
    """b_i = (1/(G-1)) sum_{j != i} r_j: RLOO (Kool et al. 2019; arXiv 2402.14740). Unbiased."""
    return weighted_mean_loo(rewards_PG, torch.ones_like(_checked(rewards_PG)))


def weighted_mean(rewards_PG: Tensor, weights_PG: Tensor | None = None) -> Tensor:
    """b = sum_j w_j r_j / sum_j w_j, so that sum_j w_j A_j = 0. Biased, O(1/G).

    With w = length it is OPO (arXiv 2505.23585), with w = |z|^2 the estimate of the variance-minimising constant
    b* = E[|z|^2 r] / E[|z|^2] (Greensmith et al. 2004), with w = sum_t (1 - 2 pi_t + sum_v pi_v^2) the logit-energy
    proxy of |z|^2 (arXiv 2602.07078, one number per response).
    """
    excess_PG, floor_P1, weights_PG, _ = _above_floor(_checked(rewards_PG), weights_PG)
    baseline_P1 = floor_P1 + (weights_PG * excess_PG).sum(-1, keepdim=True) / weights_PG.sum(-1, keepdim=True)
    return baseline_P1.expand_as(excess_PG).contiguous()


def weighted_mean_loo(rewards_PG: Tensor, weights_PG: Tensor | None = None) -> Tensor:
    """b_i = sum_{j != i} w_j r_j / sum_{j != i} w_j. Unbiased; at G = 2 the same for any w."""
    excess_PG, floor_P1, weights_PG, scored_PG = _above_floor(_checked(rewards_PG), weights_PG)
    # Summed over the others directly: total minus own would cancel where one weight dominates.
    others_GG = 1 - torch.eye(excess_PG.shape[-1], dtype=torch.float64, device=excess_PG.device)
    weight_of_others_PG = weights_PG @ others_GG
    plain_weight_PG = scored_PG @ others_GG
    plain_mean_PG = (scored_PG * excess_PG) @ others_GG / plain_weight_PG.clamp(min=1)
    weighted_PG = (weights_PG * excess_PG) @ others_GG / torch.where(weight_of_others_PG > 0, weight_of_others_PG, 1.0)
    baseline_PG = torch.where(weight_of_others_PG > 0, weighted_PG, plain_mean_PG)
    return floor_P1 + torch.where(plain_weight_PG > 0, baseline_PG, excess_PG)


def shrinkage(rewards_PG: Tensor, weights_PG: Tensor | None = None) -> Tensor:
    """b_ij = (1 - a_i) m_i^(-j) + a_i M_(-i): James-Stein across prompts, leave-one-out twice (arXiv 2511.03710).

    m_i^(-j) is the group's mean without response j, M_(-i) the mean of the other prompts' means m_k, and
    a_i = (1 - 1/P) v / (v + s) over the P prompts with two scored responses or more, with v the mean of var(r_k) / G_k and s the mean of (m_k - M_(-i))^2, both over k != i.
    Nothing of response j enters b_ij: unbiased. Couples the prompts of a batch. Prompts with fewer than two scored
    responses tell nothing about v and are left out of it and of s and M; a lone response takes M_(-i). ValueError
    where P = 1.
    """
    rewards_PG = _checked(rewards_PG)
    num_prompts = rewards_PG.shape[-2]
    if num_prompts < 2:
        raise ValueError("shrinkage needs at least two prompts: it borrows from the other prompts of the batch")
    scored_PG = ~rewards_PG.isnan()
    floor = rewards_PG[scored_PG].min() if scored_PG.any() else 0.0  # equal rewards then cancel exactly
    rewards_PG = rewards_PG - floor
    count_P = scored_PG.double().sum(-1)
    known_P = (count_P >= 2).double()
    mean_P = rewards_PG.nan_to_num(0.0).sum(-1) / count_P.clamp(min=1)
    deviation_PG = (rewards_PG - mean_P[..., None]).nan_to_num(0.0)
    noise_P = deviation_PG.square().sum(-1) / ((count_P - 1) * count_P).clamp(min=1)  # variance of a prompt's mean
    others_PP = (1 - torch.eye(num_prompts, dtype=torch.float64, device=rewards_PG.device)) * known_P[..., None, :]
    num_others_P = others_PP.sum(-1)
    share_PP = others_PP / num_others_P.clamp(min=1)[..., None]
    grand_mean_P = (share_PP * mean_P[..., None, :]).sum(-1)
    within_P = (share_PP * noise_P[..., None, :]).sum(-1)
    between_P = (share_PP * (mean_P[..., None, :] - grand_mean_P[..., :, None]).square()).sum(-1)
    total_P = within_P + between_P
    shrink_P = num_others_P / (num_others_P + 1) * within_P / torch.where(total_P > 0, total_P, 1.0)
    # A lone response has no group to lean on; a prompt alone among unscored ones has no batch to lean on.
    shrink_P = torch.where(count_P < 2, 1.0, shrink_P)
    shrink_P1 = torch.where(num_others_P > 0, shrink_P, 0.0)[..., None]
    own_PG = leave_one_out(rewards_PG)
    return floor + own_PG + shrink_P1 * (grand_mean_P[..., None] - own_PG)


def batch_mean(rewards_PG: Tensor, weights_PG: Tensor | None = None) -> Tensor:
    """b = mean reward of the whole batch: REINFORCE++ (arXiv 2501.03262). Bias O(1/(P G)). Couples the prompts."""
    return batch_weighted_mean(rewards_PG, torch.ones_like(_checked(rewards_PG, smallest_group=1)))


def batch_weighted_mean(rewards_PG: Tensor, weights_PG: Tensor | None = None) -> Tensor:
    """b = sum w r / sum w over the whole batch: OPO's form for REINFORCE++. Biased, O(1/(P G)). Couples the prompts."""
    rewards_PG = _checked(rewards_PG, smallest_group=1)
    flat = (*rewards_PG.shape[:-2], 1, rewards_PG.shape[-2] * rewards_PG.shape[-1])
    weights_PG = _checked_weights(rewards_PG, weights_PG)
    return weighted_mean(rewards_PG.reshape(flat), weights_PG.reshape(flat)).reshape(rewards_PG.shape)


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "none": none,
        "group_mean": group_mean,
        "leave_one_out": leave_one_out,
        "length_weighted": weighted_mean,
        "length_weighted_loo": weighted_mean_loo,
        "score_norm_weighted": weighted_mean,
        "score_norm_weighted_loo": weighted_mean_loo,
        "logit_energy_weighted": weighted_mean,
        "logit_energy_weighted_loo": weighted_mean_loo,
        "shrinkage": shrinkage,
        "batch_mean": batch_mean,
        "batch_length_weighted": batch_weighted_mean,
    }
)


def _checked(rewards_PG: Tensor, smallest_group: int = 2) -> Tensor:
    rewards_PG = torch.as_tensor(rewards_PG, dtype=torch.float64)
    if rewards_PG.ndim < 2 or rewards_PG.shape[-1] < smallest_group:
        where = "prompt 0: " if rewards_PG.ndim >= 2 else ""
        raise ValueError(
            f"{where}rewards have shape {tuple(rewards_PG.shape)}: a baseline needs (P, G) with G >= {smallest_group}"
        )
    if rewards_PG.isinf().any():
        raise ValueError(
            f"prompt {_prompt_of(rewards_PG.isinf())}: a reward is infinite (NaN marks an unscored response)"
        )
    return rewards_PG


def _checked_weights(rewards_PG: Tensor, weights_PG: Tensor | None) -> Tensor:
    """The weights in float64, zero where the reward is unscored."""
    if weights_PG is None:
        raise ValueError(
            "a weighted baseline needs weights_PG: one length, squared score norm or logit energy per response"
        )
    weights_PG = torch.as_tensor(weights_PG, dtype=torch.float64, device=rewards_PG.device)
    if weights_PG.shape != rewards_PG.shape:
        raise ValueError(
            f"weights have shape {tuple(weights_PG.shape)}, rewards {tuple(rewards_PG.shape)}: they must agree"
        )
    weights_PG = torch.where(rewards_PG.isnan(), 0.0, weights_PG)
    bad_PG = ~(weights_PG.isfinite() & (weights_PG >= 0))
    if bad_PG.any():
        raise ValueError(f"prompt {_prompt_of(bad_PG)}: a weight is negative or not finite, allowed is >= 0")
    return weights_PG


def _above_floor(rewards_PG: Tensor, weights_PG: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards minus the group's smallest (so that equal rewards cancel exactly), that smallest, weights, and 1 where scored."""
    weights_PG = _checked_weights(rewards_PG, weights_PG)
    scored_PG = ~rewards_PG.isnan()
    floor_P1 = torch.where(scored_PG, rewards_PG, torch.inf).amin(-1, keepdim=True)
    floor_P1 = torch.where(floor_P1.isfinite(), floor_P1, 0.0)
    excess_PG = torch.where(scored_PG, rewards_PG - floor_P1, 0.0)
    # weights that are all zero become equal; a group without a scored response gets ones, so that nothing divides by zero
    plain_PG = torch.where(scored_PG.any(-1, keepdim=True), scored_PG.double(), 1.0)
    weights_PG = torch.where(weights_PG.sum(-1, keepdim=True) > 0, weights_PG, plain_PG)
    return excess_PG, floor_P1, weights_PG, scored_PG.double()


def _prompt_of(bad_PG: Tensor) -> int:
    return int(bad_PG.nonzero()[0, -2])
