"""Rewards, computed in worker processes that can be killed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opo.rewards.runner import RewardRunner

__all__ = ["RewardRunner"]


def __getattr__(name: str) -> Any:
    """RewardRunner, imported when it is asked for: a worker imports this package, and torch takes seconds."""
    if name != "RewardRunner":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from opo.rewards.runner import RewardRunner

    return RewardRunner
