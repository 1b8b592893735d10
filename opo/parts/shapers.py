"""Reward shapers: from the rewards of a batch to those that the algorithm sees."""

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.config import parts as options


class RunningMoments(options.RunningMoments):
    """PPO-max: rewards less their running mean, over their running standard deviation, clipped.

        r <- clip((r - mean) / (std + 1e-8), -clip, clip)

    over all scored rewards so far, this batch included. A group baseline takes out the mean again, and the standard deviation is
    then a factor of the learning rate: with those the clip is what is left.
    Source: Zheng et al., arXiv 2307.04964, section 4.3 and its code.
    """

    count = mean = squares = 0.0  # of the rewards so far; squares: sum of squared deviations from the mean

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """The new rewards_PG."""
        rewards_PG = rollouts.rewards_PG
        scored_M = rewards_PG[~rewards_PG.isnan()]
        if len(scored_M):
            total, shift = self.count + len(scored_M), float(scored_M.mean()) - self.mean
            self.squares += float((scored_M - scored_M.mean()).square().sum())
            self.squares += shift**2 * self.count * len(scored_M) / total
            self.mean += shift * len(scored_M) / total
            self.count = total
        std = (self.squares / max(self.count - 1, 1)) ** 0.5
        if std <= 1e-9 * abs(self.mean):  # all equal up to rounding
            return torch.where(rewards_PG.isnan(), torch.nan, 0.0)
        return ((rewards_PG - self.mean) / (std + 1e-8)).clamp(-self.clip, self.clip)

    def state(self) -> dict[str, Tensor]:
        return {"moments": torch.tensor([self.count, self.mean, self.squares], dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.count, self.mean, self.squares = state["moments"].tolist()


class Verified(options.Verified):
    """Tulu 3: `value` for a full reward, and `unfinished` for a response that the token limit cut, whatever it said.

    Source: arXiv 2411.15124 and its code (10 and -10; scores in the paper were not read again).
    """

    def __call__(self, rollouts: Rollouts) -> Tensor:
        rewards_PG = self.value * rollouts.rewards_PG
        if rollouts.finished_PG is None:
            return rewards_PG
        cut_PG = ~rollouts.finished_PG & ~rewards_PG.isnan()
        return rewards_PG.masked_fill(cut_PG, self.unfinished)
