"""Regularisers: terms on the entropy of the tokens' distributions, beside the loss of any algorithm."""

import math

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.config import parts as options


class EntropyBand(options.EntropyBand):
    """EPO: an entropy bonus, and a penalty on entropies that leave a band around the mean of past batches.

        bonus = coef (mean_t H_t - b_k mean_t alpha ([low Hbar - H_t]_+ + [H_t - high Hbar]_+))
        b_k = 1 + exp(-decay k / (K/2))

    H_t is the entropy of the distribution that token t was drawn from (nats), Hbar the mean over past batches of their mean entropy,
    k the step of K. The first batch has no past and no penalty. The published code has an indicator in place of the hinge; its
    gradient is zero, which is alpha = 0 here.
    Source: arXiv 2509.22576, equations of its section 3; defaults of its code.
    """

    needs = ("entropies_NT",)
    total = 0.0  # sum of the mean entropies of past batches
    batches = 0

    def slopes(self, rollouts: Rollouts, step: int, steps: int) -> Tensor:
        """d bonus / d H_t times the number of tokens, (N, T); an algorithm's own average turns it into weights. Remembers the batch."""
        entropies_NT, mask_NT = rollouts.entropies_NT, rollouts.mask_NT & rollouts.scored_N[:, None]
        assert entropies_NT is not None
        slopes_NT = torch.ones_like(entropies_NT)
        if self.batches:
            past = self.total / self.batches
            strength = self.alpha * (1 + math.exp(-self.decay * step / max(1, steps // 2)))
            below_NT, above_NT = entropies_NT < self.low * past, entropies_NT > self.high * past
            slopes_NT = slopes_NT + strength * (below_NT.double() - above_NT.double())
        if mask_NT.any():
            self.total += float(entropies_NT[mask_NT].mean())
            self.batches += 1
        return self.coef * slopes_NT * mask_NT

    def state(self) -> dict[str, Tensor]:
        return {"history": torch.tensor([self.total, self.batches], dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.total, self.batches = float(state["history"][0]), int(state["history"][1])
