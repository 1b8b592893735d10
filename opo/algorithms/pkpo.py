"""PKPO: the gradient of the expected best of k responses, from all subsets of size k of a group.

    max@k = E[max of k rewards]        s_i = (1 / C(n, k)) sum over subsets S of size k with i in S of (max S - b)
    A_i = n s_i                        loss = -(1/N) sum_i A_i sum_t log pi(y_it)

`baseline` b: none = 0; leave_one_out = mean of max S' over the subsets of size k without i; leave_one_out_minus_one = max of
S without i. With rewards 0 and 1 it is pass@k; k = 1 with leave_one_out is RLOO.

All three are unbiased for the gradient of max@k (not of E[r], unless k = 1): a baseline holds nothing of response i. In this
order their variance falls. All rewards equal: zero gradient, except for none. A group with fewer scored responses than the
baseline needs has weight zero; ValueError where the group size itself is too small, or k too small for the baseline.
Source: Walder and Karkhanis, arXiv 2505.15201 (estimators s, s^loo and s^loo-1).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from opo.algorithms import algorithm
from opo.batch import Rollouts
from opo.keys import Count
from opo.losses import policy_gradient_loss

Baseline = Literal["none", "leave_one_out", "leave_one_out_minus_one"]


@algorithm(on_policy_only=True, unbiased_for="grad E[max of k rewards]")
def pkpo(
    logprobs_NT: Tensor,
    rollouts: Rollouts,
    *,
    k: Count = 2,
    baseline: Literal["none", "leave_one_out", "leave_one_out_minus_one"] = "leave_one_out_minus_one",
) -> Tensor:
    least_k = 2 if baseline == "leave_one_out_minus_one" else 1
    least_size = k + 1 if baseline == "leave_one_out" else k
    if k < least_k or rollouts.group_size < max(least_size, 2):
        raise ValueError(
            f"pkpo: k={k} with baseline {baseline} needs k of at least {least_k} and groups of at least {max(least_size, 2)}, "
            f"these have {rollouts.group_size}"
        )
    return policy_gradient_loss(logprobs_NT, subset_advantages(rollouts.returns_PG, k, baseline).view(-1), rollouts)


def subset_advantages(rewards_PG: Tensor, k: int, baseline: Baseline) -> Tensor:
    """A_i = n s_i of each response, (P, G); zero where unscored. Rewards are sorted, so that a subset's maximum is its last."""
    scored_PG = ~rewards_PG.isnan()
    if baseline != "none":  # equal rewards then cancel exactly
        lowest_P1 = rewards_PG.nan_to_num(torch.inf).amin(1, keepdim=True)
        rewards_PG = rewards_PG - lowest_P1.nan_to_num(posinf=0.0)
    sorted_PG, order_PG = rewards_PG.nan_to_num(torch.inf).sort(1)
    sorted_PG = sorted_PG.nan_to_num(posinf=0.0)  # unscored ones come last and weigh nothing
    count_P1 = scored_PG.sum(1, keepdim=True)
    places = range(rewards_PG.shape[1])

    def subsets(size: int, shift: int) -> Tensor:
        """Subsets of `size` of the rewards below place j (from 0) less `shift` of them, (G,)."""
        return rewards_PG.new_tensor([_choose(j - shift, size) for j in places])

    as_maximum_PG = subsets(k - 1, 0) * sorted_PG  # i is the largest
    below_PG = subsets(k - 2, 1) * sorted_PG  # i is below the largest, j
    with_i_PG = as_maximum_PG + _after(below_PG)
    size = {"none": 0, "leave_one_out": k, "leave_one_out_minus_one": k - 1}[baseline]
    without_i_PG = torch.zeros_like(with_i_PG)
    if size:  # mean over the subsets of that size without i, for each of the subsets with i
        sums_PG = _before(subsets(size - 1, 0) * sorted_PG) + _after(subsets(size - 1, 1) * sorted_PG)
        share_P1 = _choose_each(count_P1 - 1, k - 1) / _choose_each(count_P1 - 1, size).clamp(min=1)
        without_i_PG = share_P1 * sums_PG
    possible_P1 = (count_P1 >= k) & (count_P1 - 1 >= size)
    value_PG = count_P1 * (with_i_PG - without_i_PG) / _choose_each(count_P1, k).clamp(min=1)
    value_PG = torch.where(possible_P1, value_PG, 0.0)
    return torch.zeros_like(value_PG).scatter(1, order_PG, value_PG).masked_fill(~scored_PG, 0.0)


def _choose(n: int, k: int) -> float:
    return float(math.comb(n, k)) if n >= 0 and k >= 0 else 0.0


def _choose_each(counts_P1: Tensor, k: int) -> Tensor:
    return torch.tensor([[_choose(int(n), k)] for n in counts_P1[:, 0]], dtype=torch.float64, device=counts_P1.device)


def _before(values_PG: Tensor) -> Tensor:
    """Sum over the places before each, (P, G)."""
    return torch.nn.functional.pad(values_PG.cumsum(1)[:, :-1], (1, 0))


def _after(values_PG: Tensor) -> Tensor:
    """Sum over the places after each, (P, G)."""
    return _before(values_PG.flip(1)).flip(1)
