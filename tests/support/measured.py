"""Pools whose numbers are known."""

from functools import cache

import numpy as np

from analysis.variance.compare import Pool
from analysis.variance.moments import MEASURES, Row

CONTRACT = [
    "none",
    "group_mean",
    "leave_one_out",
    "length_weighted",
    "length_weighted_loo",
    "score_norm_weighted",
    "score_norm_weighted_loo",
    "logit_energy_weighted",
    "logit_energy_weighted_loo",
    "group_standardized",
]


def scored_pool(rng, size=24, dimension=30, pull=0.6):
    """A pool with its scores (N, D): long responses have long scores, and rewarded ones lean one way."""
    lengths = rng.integers(2, 30, size)
    rewards = (rng.random(size) < 0.4).astype(float)
    scores = rng.normal(size=(size, dimension)) * np.sqrt(lengths)[:, None] / 4
    scores += pull * (rewards - 0.4)[:, None]
    energy = lengths * rng.uniform(0.5, 1.5, size)
    return Pool(scores @ scores.T, rewards, lengths, energy, greedy_reward=1.0), scores


@cache
def study_pools(prompts=12, size=24):
    rng = np.random.default_rng(0)
    return [scored_pool(rng, size)[0] for _ in range(prompts)]


def values(row: Row) -> dict[str, float]:
    return {measure: getattr(row, measure) for measure in MEASURES}
