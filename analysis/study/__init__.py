"""The variance study: its config, the policies it evaluates, rollouts in external formats, pools, audits and results."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.study.run import load_pools, run_study

__all__ = ["load_pools", "run_study"]


def __getattr__(name: str) -> Any:
    """`run` is imported when first asked for: it loads torch, which a config that is refused does not need."""
    if name in __all__:
        return getattr(import_module("analysis.study.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
