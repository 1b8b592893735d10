"""The parts that losses are made of: advantages, importance ratios, clipping, pairs, and aggregation over tokens.

Advantages are numbers, never differentiated; only `logprobs_NT` is. A response that could not be scored has advantage
zero, and is left out of every mean and count. Values outside the response mask are arbitrary and are replaced before
they are exponentiated.
"""

import torch
from torch import Tensor

from opo.baselines import group_mean
from opo.batch import Rollouts
from opo.keys import Aggregation
from opo.rounding import all_equal

# exp of more than this is beyond every clip in use; the bound keeps infinity times a zero advantage out of the sums
MAX_LOG_RATIO = 20.0


def advantages(rollouts: Rollouts, baseline_PG: Tensor) -> Tensor:
    """A_i = R_i - b_i, (N,) float64; zero where the reward is unscored."""
    return (rollouts.returns_PG - baseline_PG).nan_to_num(0.0).view(-1)


def z_scores(rewards_PG: Tensor, std_eps: float) -> Tensor:
    """(r_i - mean) / (s + std_eps) in each row, s with ddof = 1; zero where unscored and in a constant row."""
    centred_PG = rewards_PG - group_mean(rewards_PG)
    degrees_P = (~rewards_PG.isnan()).sum(1) - 1
    std_P = (centred_PG.square().nansum(1) / degrees_P.clamp(min=1)).sqrt()
    scaled_PG = centred_PG / (std_P + std_eps)[:, None]
    return scaled_PG.nan_to_num(0.0).masked_fill(constant_groups(rewards_PG)[:, None], 0.0)


def standardized_advantages(rollouts: Rollouts, std_eps: float) -> Tensor:
    """A_i, the z-score of R_i in its group, (N,)."""
    return z_scores(rollouts.returns_PG, std_eps).view(-1)


def constant_groups(rewards_PG: Tensor) -> Tensor:
    """Bool (P,): true where all scored rewards of the group are equal up to rounding, or none is scored."""
    return all_equal(rewards_PG)


def prompt_mean(values_P: Tensor, rollouts: Rollouts) -> Tensor:
    """Mean of one number per prompt over the prompts with a scored response."""
    known_P = ~rollouts.rewards_PG.isnan().all(1)
    return torch.where(known_P, values_P, 0.0).sum() / known_P.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, eps: float, center: bool = True) -> Tensor:
    """(v - mean) / (s + eps) over the entries of `mask`, zero elsewhere; s with ddof = 0.

    `center=False` only divides, for values of mean zero. Equal values give zeros, also where their mean is rounded.
    """
    kept = values[mask]
    if kept.numel() == 0 or all_equal(kept):
        return torch.zeros_like(values)
    shift = kept.mean() if center else 0.0
    return torch.where(mask, (values - shift) / (kept.std(correction=0) + eps), 0.0)


def response_mean(values_N: Tensor, rollouts: Rollouts, keep_N: Tensor | None = None) -> Tensor:
    """Mean of one number per response over the scored responses, or over those of `keep_N`."""
    keep_N = rollouts.scored_N if keep_N is None else keep_N
    return torch.where(keep_N, values_N, 0.0).sum() / keep_N.sum().clamp(min=1)


def sequence_sum(values_NT: Tensor, rollouts: Rollouts) -> Tensor:
    """Sum over each response's tokens, (N,)."""
    return torch.where(rollouts.mask_NT, values_NT, 0.0).sum(1)


def aggregate(values_NT: Tensor, rollouts: Rollouts, aggregation: Aggregation, keep_N: Tensor | None = None) -> Tensor:
    """One number from per-token values; responses outside `keep_N` (by default the unscored ones) enter neither sum nor count.

    sequence_sum: (1/N) sum_n sum_t v_nt, the only one of the three whose gradient is that of expected reward;
    sequence_mean: (1/N) sum_n (1/L_n) sum_t v_nt; token_mean: sum_nt v_nt / sum_n L_n, a ratio of two sums over the
    batch.
    """
    keep_N = rollouts.scored_N if keep_N is None else keep_N
    sums_N = sequence_sum(values_NT, rollouts)
    if aggregation == "sequence_sum":
        return response_mean(sums_N, rollouts, keep_N)
    if aggregation == "sequence_mean":
        return response_mean(sums_N / rollouts.lengths_N, rollouts, keep_N)
    if aggregation == "token_mean":
        return torch.where(keep_N, sums_N, 0.0).sum() / (rollouts.lengths_N * keep_N).sum().clamp(min=1)
    raise ValueError(f"aggregation {aggregation!r} is unknown: choose one of sequence_sum, sequence_mean, token_mean")


def per_token(values: Tensor) -> Tensor:
    """(N,) as (N, 1), to stand beside (N, T); (N, T) as it is."""
    return values[:, None] if values.ndim == 1 else values


def policy_gradient_loss(
    logprobs_NT: Tensor, advantages: Tensor, rollouts: Rollouts, aggregation: Aggregation = "sequence_sum"
) -> Tensor:
    """-A log pi(y_nt), aggregated: REINFORCE with the advantage as given, (N,) or (N, T)."""
    return -aggregate(per_token(advantages.detach()) * logprobs_NT, rollouts, aggregation)


def needed(rollouts: Rollouts, field: str) -> Tensor:
    """The tensor of that name. Raises ValueError if the rollouts lack it."""
    value = getattr(rollouts, field)
    if value is None:
        raise ValueError(f"this loss needs {field}, and the rollouts have none")
    return value


def log_ratio(logprobs_NT: Tensor, rollouts: Rollouts) -> Tensor:
    """log pi(y_nt) - log pi_old(y_nt), (N, T), zero outside responses, at most MAX_LOG_RATIO."""
    difference_NT = logprobs_NT - needed(rollouts, "logprobs_NT")
    return torch.where(rollouts.mask_NT, difference_NT, 0.0).clamp(max=MAX_LOG_RATIO)


def clipped(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), elementwise.

    Beyond the clip, moving the ratio further in the direction of the advantage gains nothing (Schulman et al., arXiv
    1707.06347, equation 7). At rho = 1 its gradient is that of rho A.
    """
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def clipped_loss(
    logprobs_NT: Tensor,
    advantages: Tensor,
    rollouts: Rollouts,
    clip_low: float,
    clip_high: float,
    aggregation: Aggregation,
    *,
    keep_N: Tensor | None = None,
    share_N: Tensor | None = None,
    clip_dual: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate with one ratio per token, aggregated, to be minimised; advantages are (N,) or (N, T).

    `share_N` weighs the responses. Where an advantage is negative, `clip_dual` A bounds the surrogate from below (Ye et al., arXiv
    1912.09729): a ratio above `clip_dual` gives no gradient.
    """
    advantages = per_token(advantages.detach())
    surrogate_NT = clipped(log_ratio(logprobs_NT, rollouts).exp(), advantages, clip_low, clip_high)
    if clip_dual is not None:
        surrogate_NT = torch.where(advantages < 0, torch.maximum(surrogate_NT, clip_dual * advantages), surrogate_NT)
    weighed_NT = surrogate_NT if share_N is None else per_token(share_N) * surrogate_NT
    return -aggregate(weighed_NT, rollouts, aggregation, keep_N)


def pair_differences(values_PG: Tensor) -> Tensor:
    """v_i - v_j for every ordered pair of responses to one prompt, (P, G, G)."""
    return values_PG[:, :, None] - values_PG[:, None, :]


def scored_pairs(rollouts: Rollouts) -> Tensor:
    """Bool (P, G, G): true where i != j and both responses are scored."""
    scored_PG = rollouts.scored_N.view_as(rollouts.rewards_PG)
    others_GG = ~torch.eye(rollouts.group_size, dtype=torch.bool, device=scored_PG.device)
    return scored_PG[:, :, None] & scored_PG[:, None, :] & others_GG


def pair_mean(values_PGG: Tensor, rollouts: Rollouts) -> Tensor:
    """Mean over scored responses i of the mean of v_ij over the scored responses j != i of the group."""
    pairs_PGG = scored_pairs(rollouts)
    sums_PG = torch.where(pairs_PGG, values_PGG, 0.0).sum(2)
    return response_mean((sums_PG / pairs_PGG.sum(2).clamp(min=1)).view(-1), rollouts)


def win_rates(rollouts: Rollouts) -> Tensor:
    """Share of the group's other scored responses that a response beats in reward, a tie counting half, (P, G)."""
    gaps_PGG = pair_differences(rollouts.returns_PG.nan_to_num(0.0))
    pairs_PGG = scored_pairs(rollouts)
    wins_PG = torch.where(pairs_PGG, (gaps_PGG.sign() + 1) / 2, 0.0).sum(2)
    return wins_PG / pairs_PGG.sum(2).clamp(min=1)
