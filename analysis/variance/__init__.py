"""Variance, bias and error of every gradient estimator, from a Gram matrix, with intervals over prompts."""

from analysis.variance.compare import compare
from analysis.variance.pool import Pool

__all__ = ["Pool", "compare"]
