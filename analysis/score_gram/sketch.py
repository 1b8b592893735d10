"""Gram matrix of scores by random projection, where the exact one costs too much: time and memory linear in N.

s_n = S z_n is a count sketch of the score (`analysis.score_gram.count_sketch`), so <s_n, s_m> is an unbiased estimate of <z_n, z_m> with

    Var <s_n, s_m> <= (|z_n|^2 |z_m|^2 + <z_n, z_m>^2) / d,

that is a relative standard error of at most sqrt(2 / d) for squared norms. Blocks of responses are projected independently of
each other with the same S, so no two of them need to be in memory at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.score_gram.core import accumulate_scores, metric_scales, trainable_parameters, verify_norms
from analysis.score_gram.count_sketch import count_sketch
from analysis.score_gram.inputs import Batch
from analysis.score_gram.layers import Contribution, as_matrix, row_blocks

BLOCK = 2**16  # coordinates that are projected at once


@dataclass(frozen=True)
class Sketch:
    """An estimated Gram matrix (N, N) in float64 with its errors."""

    gram_NN: Tensor
    standard_error_NN: Tensor  # sqrt((|z_n|^2 |z_m|^2 + <z_n, z_m>^2) / d)
    squared_norms_N: Tensor  # exact
    relative_error: float  # measured: root mean square over responses of estimated over exact squared norm, minus one
    dim: int


class SketchAccumulator:
    """Projects the per-response gradients of each parameter and adds them to an (N, d) matrix; squared norms stay exact."""

    def __init__(
        self, num_responses: int, dim: int, seed: int, scales: Mapping[str, Tensor], device: torch.device
    ) -> None:
        self.dim, self.seed, self.scales = dim, seed, scales
        self.sketch_ND = torch.zeros(num_responses, dim, dtype=torch.float64, device=device)
        self.squared_norms: dict[str, Tensor] = {}

    def take(self, name: str, shape: torch.Size, contributions: Sequence[Contribution], dtype: torch.dtype) -> None:
        rows, columns = as_matrix(shape)
        scale = self.scales[name].reshape(rows, columns) if name in self.scales else None
        n, device = len(self.sketch_ND), self.sketch_ND.device
        step = max(1, min(rows, BLOCK // columns))
        buffer = torch.empty(n * step * columns, dtype=dtype, device=device)
        norms_N = torch.zeros(n, dtype=torch.float64, device=device)
        for low, block_NC in row_blocks(contributions, buffer, (n, rows, columns), step, scale):
            norms_N += block_NC.square().sum(1, dtype=torch.float64)
            self.sketch_ND += count_sketch(block_NC, self.dim, self.seed, name, low)
        self.squared_norms[name] = norms_N


def sketch_gram(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    response_mask: Tensor,
    token_weights: Tensor | None = None,
    *,
    temperature: float = 1.0,
    dim: int = 4096,
    seed: int = 0,
    metric: Mapping[str, Tensor] | None = None,
    metric_eps: float = 1e-8,
    responses_per_pass: int | None = None,
    recompute: bool = False,
    verify: bool = True,
) -> Sketch:
    """Estimate of `score_gram` from a random projection to `dim` dimensions; arguments and errors as there.

    Peak memory grows with responses_per_pass, time with N; the same seed gives the same projection whatever the blocks.
    """
    batch, of_N, factor_N = (
        Batch.of(input_ids, attention_mask, response_mask, token_weights, temperature).on(model).distinct()
    )
    parameters = trainable_parameters(model)
    scales = metric_scales(parameters, metric, metric_eps)
    step = len(batch) if responses_per_pass is None else responses_per_pass
    if dim < 1 or step < 1:
        raise ValueError(f"dim={dim} and responses_per_pass={responses_per_pass}: both must be at least 1")
    sketches, norms = [], []
    for low in range(0, len(batch), step):
        part = batch.select(range(low, min(low + step, len(batch))))
        accumulator = SketchAccumulator(len(part), dim, seed, scales, part.input_ids.device)
        accumulate_scores(model, part, parameters, accumulator, recompute)
        if verify and low == 0:
            verify_norms(model, part, parameters, scales, accumulator)
        sketches.append(accumulator.sketch_ND)
        norms.append(sum(accumulator.squared_norms.values(), torch.zeros_like(accumulator.sketch_ND[:, 0])))
    return summary(torch.cat(sketches)[of_N] * factor_N[:, None], torch.cat(norms)[of_N] * factor_N**2)


def summary(sketch_ND: Tensor, squared_norms_N: Tensor) -> Sketch:
    """Inner products of the projected scores with their standard errors."""
    if not squared_norms_N.isfinite().all():
        raise ValueError(f"response {int((~squared_norms_N.isfinite()).nonzero()[0])}: its score is not finite")
    gram_NN, dim = sketch_ND @ sketch_ND.T, sketch_ND.shape[1]
    variance_NN = (squared_norms_N[:, None] * squared_norms_N + gram_NN.square()) / dim
    nonzero_N = squared_norms_N > 0
    ratio = gram_NN.diagonal()[nonzero_N] / squared_norms_N[nonzero_N] - 1
    error = float(ratio.square().mean().sqrt()) if nonzero_N.any() else 0.0
    return Sketch(gram_NN, variance_NN.sqrt(), squared_norms_N, error, dim)
