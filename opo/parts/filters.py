"""Filters: from which responses of a group, or from which tokens, a policy learns.

A filter of responses draws as many as the group has, with replacement, from weights over the ranks of its rewards; everything
after it (baselines, losses) sees the drawn group. A response that was not scored is never drawn; a group without a scored one
stays as it is. What is learnt is then biased for grad E[r], by design.
"""

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.config import parts as options


class Best(options.Best):
    """The best response alone (ties share): BoN of PF-PPO. Source: arXiv 2409.06957, section 3.2."""

    def weights(self, rewards_PG: Tensor) -> Tensor:
        return _shares(rewards_PG == _highest(rewards_PG))


class BestRandom(options.BestRandom):
    """Half of the draws the best response, half any of the others: BR of PF-PPO. Source: arXiv 2409.06957, section 3.2."""

    def weights(self, rewards_PG: Tensor) -> Tensor:
        best_PG = rewards_PG == _highest(rewards_PG)
        others_PG = ~best_PG & ~rewards_PG.isnan()
        return _mixed(_shares(best_PG), _shares(others_PG))


class BestWorst(options.BestWorst):
    """Half of the draws the best response, half the worst: BW of PF-PPO. Source: arXiv 2409.06957, section 3.2."""

    def weights(self, rewards_PG: Tensor) -> Tensor:
        return _mixed(_shares(rewards_PG == _highest(rewards_PG)), _shares(rewards_PG == -_highest(-rewards_PG)))


class Power(options.Power):
    """In proportion to |r|^exponent, for rewards between -1 and 1; all equal to zero: every response alike.

    Source: verl's resampling (`pf_ppo`, pow), here inside each group, so that groups stay groups.
    """

    def weights(self, rewards_PG: Tensor) -> Tensor:
        size_PG = rewards_PG.nan_to_num(0.0).abs() ** self.exponent
        total_P1 = size_PG.sum(1, keepdim=True)
        return torch.where(total_P1 > 0, size_PG / total_P1.clamp(min=1e-300), _shares(~rewards_PG.isnan()))


def drawn(rollouts: Rollouts, weights_PG: Tensor, generator: torch.Generator) -> Rollouts:
    """G responses of each group, drawn with replacement in proportion to `weights_PG`."""
    group = rollouts.group_size
    known_P1 = weights_PG.sum(1, keepdim=True) > 0
    own_PG = torch.arange(group).expand(rollouts.num_prompts, group)
    index_PG = torch.multinomial(torch.where(known_P1, weights_PG, 1.0), group, replacement=True, generator=generator)
    return rollouts.pick(torch.where(known_P1, index_PG, own_PG))


def _highest(rewards_PG: Tensor) -> Tensor:
    return rewards_PG.nan_to_num(-torch.inf).amax(1, keepdim=True)


def _shares(member_PG: Tensor) -> Tensor:
    """Equal weights of the members of each group, summing to one; zero where there is none."""
    return member_PG.double() / member_PG.sum(1, keepdim=True).clamp(min=1)


def _mixed(one_PG: Tensor, other_PG: Tensor) -> Tensor:
    """Half of each; where the second has no member, all of the first."""
    return torch.where(other_PG.sum(1, keepdim=True) > 0, (one_PG + other_PG) / 2, one_PG)
