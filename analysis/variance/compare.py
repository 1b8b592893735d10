"""Gradient variance and bias of every estimator, from the Gram matrices of scores alone.

One group's estimate for one prompt is g = (1/G) sum_i A_i z_i, with z_i the score of response i and A_i the estimator's
weight. Let c hold A_i / G at the group's places in the pool and zero elsewhere; then <g, g'> = c^T K c' with K the
pool's Gram matrix, and no gradient is ever needed.

A pool of N responses is cut at random into B = floor(N / G) disjoint groups, `num_partitions` times, never with
replacement: a response that occurs twice would enter its own leave-one-out baseline. Let g_a, a = 1..B be the
estimates of one partition and u_a the leave-one-out estimates (RLOO) of the same groups, for which
E[u] = grad E[r] exactly (the plain r_i z_i where G = 1). Groups are independent, so E<g_a, g_b> = <E g_a, E g_b>, hence

    second     mean_a |g_a|^2                        is unbiased for  E|g|^2
    signal     mean_{a != b} <g_a, g_b>                               |E g|^2, which |g_a|^2 overstates by tr Cov(g)
    trace      second - signal                                        tr Cov(g); it is the mean of |g_a - g_b|^2 / 2
    reference  mean_{a != b} <u_a, u_b>                               |grad E[r]|^2
    cross      mean_{a != b} <g_a, u_b>                               <E g, grad E[r]>
    error      mean_{a != b} <g_a - u_a, g_b - u_b>                   |E g - grad E[r]|^2

The error is exactly zero for leave-one-out itself and exactly reference / G^2 for the in-sample mean, because the
difference is taken group by group before anything is averaged. The partitions of one pool depend on each other, but
each is unbiased, so their mean is; and as no group holds a response twice and no two groups share one, there is no
finite-pool factor to correct. `analysis.variance.moments` turns means of these over prompts into ratios with intervals.

Estimators that couple prompts have a batch of prompts as their replicate. Their g is the part of the batch's gradient
that comes from one prompt, divided by its share: its mean and covariance are over all responses of the batch, the
prompts of the batch given, and the moments are averaged over random compositions of batches. Within a composition two
replicates share no response, so the formulas above hold as they stand. What this leaves out is the covariance between
the parts of two prompts in one batch, which needs inner products across prompts (order 1 / (P G)^2 for shrinkage).
Their intervals take a prompt's moments as its own, although they also depend on the other prompts of the batch.
`moments_from_gram` takes estimates of any kind, whole batches included.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.variance.estimators import Array, Estimator, WeightFunction, resolve
from analysis.variance.intervals import resample_counts
from analysis.variance.moments import Moments
from analysis.variance.partition import Index, compositions, coupled_weights, groups_of, partitions
from analysis.variance.pool import Pool, gram_matrix
from analysis.variance.table import Table, table_of

__all__ = ["Pool", "Table", "compare", "moments_from_gram"]

_BLOCK_ELEMENTS = 2_000_000


def compare(
    pools: Sequence[Pool],
    group_size: int,
    estimators: Sequence[str | Estimator] | Mapping[str, str | WeightFunction | Estimator],
    rng: np.random.Generator,
    *,
    num_bootstrap: int = 2000,
    num_partitions: int = 20,
    prompts_per_batch: int | None = None,
    counts_BP: Array | None = None,
) -> Table:
    """Variance, bias and cosine of each estimator at one group size, over the same groups of the same responses.

    `estimators` are names (`analysis.variance.estimators.known_names`), or a mapping from labels to names or functions
    `fn(rewards_MG, lengths_MG) -> weights_MG` of M independent groups. `prompts_per_batch` is the size of a batch for
    estimators that couple prompts. `counts_BP` are resamples of the prompts that other tables use too, in place of
    `num_bootstrap` of one's own. Raises ValueError where a pool holds fewer than two groups, or an estimator is unknown,
    lacks what it needs, or couples prompts while no batch is given.
    """
    chosen = resolve(estimators)
    _check(pools, group_size, num_bootstrap, num_partitions)
    _check_batch(pools, chosen, prompts_per_batch)
    indices = [partitions(len(pool), group_size, num_partitions, rng) for pool in pools]
    if counts_BP is None:
        counts_BP = resample_counts(len(pools), num_bootstrap, rng)
    every = groups_of(pools, indices)
    unbiased = resolve(["leave_one_out" if group_size > 1 else "none"])[0].weights(every)
    starts = np.cumsum([index.shape[0] * index.shape[1] for index in indices])[:-1]

    def by_pool(weights_MG: Array) -> list[Array]:
        parts = np.split(weights_MG, starts)
        return [part.reshape(index.shape) for part, index in zip(parts, indices, strict=True)]

    own = {e.name: by_pool(e.weights(every)) for e in chosen if not e.couples_prompts}
    moments = _measure(pools, indices, own, by_pool(unbiased))
    coupled = [e for e in chosen if e.couples_prompts]
    if coupled:
        batches_MbP = compositions(len(pools), prompts_per_batch or 0, num_partitions, rng)
        weights = {e.name: coupled_weights(e, pools, indices, batches_MbP) for e in coupled}
        shared = [index[:, : min(i.shape[1] for i in indices)] for index in indices]
        base = [u[:, : index.shape[1]] for u, index in zip(by_pool(unbiased), shared, strict=True)]
        moments |= _measure(pools, shared, weights, base)
    sizes = {e.name: e.effective_sample_size(every) for e in chosen}
    return table_of({e.name: moments[e.name] for e in chosen}, group_size, counts_BP, sizes)


def moments_from_gram(gram_RR: Any, estimates_BR: Any, references_BR: Any) -> Moments:
    """Moments of one prompt from any vectors that B independent estimates are combinations of.

    `gram_RR` are inner products of R vectors, `estimates_BR` the coefficients of the B estimates in them,
    `references_BR` those of an estimate from the same data whose mean is the true gradient. Independent means: no
    response in two of them.

    Token-level algorithms, whose weights differ within a response and depend on its group: fix one partition, let
    v_i = sum_t w_it grad log pi_it with the weights of its own group, and take the Gram matrix of the 2N vectors
    (v_1 .. v_N, z_1 .. z_N): `score_gram` over each response twice, with token weights w and with ones. A group's
    estimate has the coefficient 1/G at its v_i, its reference (r_i - b_i)/G at its z_i, b the leave-one-out baseline.
    Estimates that weigh no scores: the R = 2B gradients in full, with identity coefficients. `Moments.join` joins
    prompts, `analysis.variance.table.table_of` makes the table.
    """
    estimates_BR, references_BR = np.asarray(estimates_BR, np.float64), np.asarray(references_BR, np.float64)
    if estimates_BR.shape != references_BR.shape or len(estimates_BR) < 2:
        raise ValueError(
            f"estimates {estimates_BR.shape} and references {references_BR.shape} must have the same shape, of two rows or more"
        )
    gram_RR = gram_matrix(gram_RR, estimates_BR.shape[1])
    rows_KBR = np.stack([estimates_BR, estimates_BR - references_BR, references_BR])
    own_K = np.einsum("kbr,kbr->k", rows_KBR @ gram_RR, rows_KBR)
    mean_KR = rows_KBR.sum(1)
    total_K = np.einsum("kr,kr->k", mean_KR @ gram_RR, mean_KR)
    return _moments(own_K, total_K, len(estimates_BR))[0]


def _measure(
    pools: Sequence[Pool], indices: Sequence[Index], weights: Mapping[str, Sequence[Array]], unbiased: Sequence[Array]
) -> dict[str, Moments]:
    """Moments of each estimator over all pools."""
    moments: dict[str, list[Moments]] = {name: [] for name in weights}
    for p, (pool, index_MBG) in enumerate(zip(pools, indices, strict=True) if weights else ()):
        stacked_EMBG = np.stack([parts[p] for parts in weights.values()])
        moments_E = _pool_moments(pool.gram, index_MBG, stacked_EMBG, unbiased[p])
        for name, moments_of_pool in zip(weights, moments_E, strict=True):
            moments[name].append(moments_of_pool)
    return {name: Moments.join(parts) for name, parts in moments.items()}


def _pool_moments(gram_NN: Array, index_MBG: Index, weights_EMBG: Array, unbiased_MBG: Array) -> list[Moments]:
    """One prompt's moments of E estimators from its partitions.

    K = 2E + 1 kinds of estimates are carried together: g, then g - u, then u. The groups of a partition share no
    response, so the sum of its estimates is one vector of coefficients, and
    sum_{a != b} <g_a, g_b> = |sum_a g_a|^2 - sum_a |g_a|^2.
    """
    num_partitions, num_groups, group_size = index_MBG.shape
    kinds_KMBG = np.concatenate([weights_EMBG, weights_EMBG - unbiased_MBG, unbiased_MBG[None]]) / group_size
    own_K, total_K = np.zeros(len(kinds_KMBG)), np.zeros(len(kinds_KMBG))
    sum_KMN = np.zeros((len(kinds_KMBG), num_partitions, len(gram_NN)))
    flat_MN = index_MBG.reshape(num_partitions, -1)
    np.put_along_axis(sum_KMN, flat_MN[None], kinds_KMBG.reshape(len(kinds_KMBG), *flat_MN.shape), axis=2)
    step = max(1, _BLOCK_ELEMENTS // (num_groups * group_size**2))
    for m in range(0, num_partitions, step):
        part = np.s_[m : m + step]
        block_MBGG = gram_NN[index_MBG[part, :, :, None], index_MBG[part, :, None, :]]
        kinds_MBKG = np.moveaxis(kinds_KMBG[:, part], 0, 2)
        own_K += np.einsum("mbkg,mbkg->k", kinds_MBKG @ block_MBGG, kinds_MBKG)
        total_K += np.einsum("kmn,kmn->k", sum_KMN[:, part] @ gram_NN, sum_KMN[:, part])
    return _moments(own_K / num_partitions, total_K / num_partitions, num_groups)


def _moments(own_K: Array, total_K: Array, num_groups: int) -> list[Moments]:
    """The formulas at the top from sum_a |v_a|^2 and |sum_a v_a|^2 of each kind v of estimate."""
    off_K = (total_K - own_K) / (num_groups * (num_groups - 1))
    second_E, signal_E = own_K[: len(own_K) // 2] / num_groups, off_K[: len(off_K) // 2]
    error_E, reference = off_K[len(off_K) // 2 : -1], off_K[-1]
    cross_E = (signal_E + reference - error_E) / 2  # <g, u> from |g|^2, |u|^2 and |g - u|^2
    columns = zip(second_E, signal_E, np.full_like(signal_E, reference), cross_E, error_E, strict=True)
    return [Moments(*(np.array([value]) for value in column)) for column in columns]


def _check(pools: Sequence[Pool], group_size: int, num_bootstrap: int, num_partitions: int) -> None:
    if not pools:
        raise ValueError("no pools: give at least one")
    if group_size < 1 or num_bootstrap < 1 or num_partitions < 1:
        raise ValueError("group_size, num_bootstrap and num_partitions must be at least 1")
    for p, pool in enumerate(pools):
        if len(pool) < 2 * group_size:
            raise ValueError(f"pool {p}: {len(pool)} responses do not hold two disjoint groups of {group_size}")


def _check_batch(pools: Sequence[Pool], chosen: Sequence[Estimator], prompts_per_batch: int | None) -> None:
    coupled = [e.name for e in chosen if e.couples_prompts]
    if coupled and prompts_per_batch is None:
        raise ValueError(f"estimator {coupled[0]!r} couples the prompts of a batch: give prompts_per_batch=")
    if coupled and not 2 <= (prompts_per_batch or 0) <= len(pools):
        raise ValueError(f"prompts_per_batch={prompts_per_batch}: allowed is 2 to the number of pools, {len(pools)}")
