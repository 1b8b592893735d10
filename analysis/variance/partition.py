"""Disjoint groups of responses and batches of prompts, drawn at random without replacement."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.variance.estimators import Estimator, Groups
from analysis.variance.intervals import Array
from analysis.variance.pool import Pool

Index = NDArray[np.int64]


def partitions(size: int, group_size: int, num_partitions: int, rng: np.random.Generator) -> Index:
    """M random partitions of a pool into B = floor(N / G) disjoint groups, (M, B, G) indices; N mod G responses are left out."""
    num_groups = size // group_size
    order_MN = rng.permuted(np.tile(np.arange(size), (num_partitions, 1)), axis=1)
    return order_MN[:, : num_groups * group_size].reshape(num_partitions, num_groups, group_size)


def groups_of(pools: Sequence[Pool], indices: Sequence[Index]) -> Groups:
    """All groups of all partitions of all pools, one after another."""
    places = [index.reshape(-1, index.shape[-1]) for index in indices]

    def gather(values: Sequence[Any]) -> Any:
        if any(value is None for value in values):
            return None
        return np.concatenate([np.asarray(value)[place] for value, place in zip(values, places, strict=True)])

    greedy = [pool.greedy_reward for pool in pools]
    return Groups(
        rewards=gather([pool.rewards for pool in pools]),
        lengths=gather([pool.lengths for pool in pools]),
        score_norms=gather([np.diag(pool.gram) for pool in pools]),
        logit_energy=gather([pool.logit_energy for pool in pools]),
        greedy_rewards=None if None in greedy else np.repeat(np.array(greedy), [len(place) for place in places]),
        answers=gather([None if pool.answers is None else np.array(pool.answers, dtype=object) for pool in pools]),
    )


def compositions(num_prompts: int, prompts_per_batch: int, num_partitions: int, rng: np.random.Generator) -> Index:
    """For each partition, the prompts in random batches, (M, batches, P).

    The last batch is filled up with prompts of the first one, whose own results are not taken from it.
    """
    num_batches = -(-num_prompts // prompts_per_batch)
    order_MP = rng.permuted(np.tile(np.arange(num_prompts), (num_partitions, 1)), axis=1)
    missing = num_batches * prompts_per_batch - num_prompts
    filled = np.concatenate([order_MP, order_MP[:, :missing]], axis=1)
    return filled.reshape(num_partitions, num_batches, prompts_per_batch)


def coupled_weights(
    estimator: Estimator, pools: Sequence[Pool], indices: Sequence[Index], batches_MbP: Index
) -> list[Array]:
    """Weights of an estimator that couples prompts, (M, B, G) for each pool, B the fewest groups of any pool.

    In partition m, the groups number k of the prompts of one batch are one replicate of that batch, for every k: no
    response is in two replicates, so the estimates of two groups are independent given the prompts of the batch.
    """
    num_partitions, num_batches, batch_size = batches_MbP.shape
    num_groups = min(index.shape[1] for index in indices)
    shared = [index[:, :num_groups] for index in indices]
    every = groups_of(pools, shared)
    group_size = shared[0].shape[2]
    grid = (len(pools), num_partitions, num_groups)
    partition_M11 = np.arange(num_partitions)[:, None, None]

    def in_batches(values: Any) -> Any:
        """(P M B, ...) -> (M b B, P', ...), P' the prompts of a batch."""
        if values is None:
            return None
        picked = values.reshape(*grid, *values.shape[1:])[batches_MbP, partition_M11]  # (M, b, P', B, ...)
        return np.moveaxis(picked, 3, 2).reshape(-1, batch_size, *values.shape[1:])

    weights = estimator.weights(
        Groups(**{field.name: in_batches(getattr(every, field.name)) for field in fields(Groups)})
    )
    weights = weights.reshape(num_partitions, num_batches, num_groups, batch_size, group_size)
    weights_P = np.empty((*grid, group_size))
    # In reverse, so that a prompt's result comes from its own batch, not from one that it fills up.
    for b in reversed(range(num_batches)):
        weights_P[batches_MbP[:, b], partition_M11[:, 0]] = np.moveaxis(weights[:, b], 2, 1)
    return list(weights_P)
