"""Rewards, computed in processes that can be killed."""

from opo.rewards.runner import RewardRunner

__all__ = ["RewardRunner"]
