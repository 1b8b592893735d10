"""Variance, bias and error of every gradient estimator, from a Gram matrix, with intervals over prompts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.variance.compare import compare
    from analysis.variance.pool import Pool

__all__ = ["Pool", "compare"]
HOME = {"Pool": "pool", "compare": "compare"}  # imported when first asked for: names alone need no torch


def __getattr__(name: str) -> Any:
    if name in HOME:
        return getattr(import_module(f"{__name__}.{HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
