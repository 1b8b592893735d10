"""How much of a batch gradient's variance is that prompts differ, which no baseline can lower.

A batch of P prompts has the gradient (1/P) sum_p g_p, and by the law of total variance

    P tr Cov = E_p tr Cov(g_p) + tr Var_p(grad J_p) = within + between,     between = E|grad J_p|^2 - |E grad J_p|^2.

The last term needs inner products across prompts. For each prompt the unbiased gradient of its whole pool, u_p = (1/N) sum_i A_i z_i
with leave-one-out A, is kept as a random projection; <u_p, u_q> over p != q is then unbiased for <grad J_p, grad J_q>, and the relative
error that the projection to d dimensions adds to |sum_p u_p|^2 is at most sqrt(2 / d).
"""

import numpy as np
import torch
from torch import Tensor

from analysis.score_gram.count_sketch import count_sketch
from analysis.variance.intervals import Array, product_of_means, ratio_interval
from analysis.variance.moments import Moments

DIM = 16384
BLOCK = 2**22  # coordinates whose bins and signs are drawn at once


def pool_coefficients(rewards_R: Tensor) -> Tensor:
    """Weights of the scores in u_p, A_i / R = (r_i - mean r) / (R - 1), (R,) float64, for R >= 2 scored responses."""
    rewards_R = rewards_R.double()
    return (rewards_R - rewards_R.mean()) / (len(rewards_R) - 1)


class Projection:
    """The random projection of a vector that comes parameter by parameter."""

    def __init__(self, dim: int = DIM) -> None:
        self.sum_D = torch.zeros(dim, dtype=torch.float64)

    def add(self, name: str, part: Tensor) -> None:
        """Of the parameter of this name; parts of the same parameter add up."""
        self.sum_D += project(part.flatten(), name, len(self.sum_D)).cpu()

    def numpy(self) -> Array:
        """(dim,) float32."""
        return self.sum_D.float().numpy()


def project(vector: Tensor, name: str, dim: int) -> Tensor:
    """The count sketch of a parameter's coordinates, the same signs and bins for the same name, (dim,) float64."""
    blocks = range(0, len(vector), BLOCK)
    sketches = (count_sketch(vector[None, low : low + BLOCK], dim, name, low)[0] for low in blocks)
    return sum(sketches, torch.zeros(dim, dtype=torch.float64, device=vector.device))


def mean_gradient_values(gradients_PD: Array) -> Array:
    """Pseudo-values, one a prompt, whose mean is M = mean over p != q of <u_p, u_q>, unbiased for |E grad J_p|^2."""
    num_prompts = len(gradients_PD)
    products_PP = gradients_PD.astype(np.float64) @ gradients_PD.T.astype(np.float64)
    np.fill_diagonal(products_PP, 0.0)
    mean = products_PP.sum() / (num_prompts * (num_prompts - 1))
    return 2 * products_PP.sum(1) / (num_prompts - 1) - mean


def batch_measures(moments: Moments, gradients_PD: Array, counts_BP: Array) -> dict[str, tuple[float, float, float]]:
    """Value and interval of two measures of a batch gradient made of this estimator's groups.

    `within_share` = within / (within + between), and `critical_prompts` = (within + between) / |E grad J_p|^2, the number of prompts at
    which noise equals signal. An estimator's scale is taken out first: within = T (R / X)^2 (see `analysis.variance.moments`), so that the
    group mean and leave-one-out agree.
    """
    mean_P = mean_gradient_values(gradients_PD)
    t, r, x = moments.trace, moments.reference, moments.cross
    within_P = product_of_means(t, r, r)
    between_P = product_of_means(r - mean_P, x, x)
    total_P = within_P + between_P
    pairs = {"within_share": (within_P, total_P), "critical_prompts": (total_P, product_of_means(mean_P, x, x))}
    measures = {}
    for measure, (numerator_P, denominator_P) in pairs.items():
        mean = float(denominator_P.mean())
        value = float(numerator_P.mean()) / mean if mean > 0 else np.inf
        low, high = ratio_interval(numerator_P, denominator_P, counts_BP)
        measures[measure] = (value, low, min(high, 1.0) if measure == "within_share" else high)
    return measures
