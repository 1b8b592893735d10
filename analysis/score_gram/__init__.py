"""The exact Gram matrix of per-response scores, from one forward and one backward pass."""

from analysis.score_gram.core import score_gram

__all__ = ["score_gram"]
