"""How often the 95 % intervals of a variance study hold the truth, when every replicate draws 24 fresh prompts.

Prompts are enumerable policies whose exact moments are known: a bank of them, one pool of 64 responses each, measured
once. A replicate draws 24 from the bank and multiplies all scores of a prompt by a factor of its own, exp(s N(0, 1)),
which multiplies its moments by the factor's square; so the truth is known for any s: the bank's exact mean times
E exp(2 s N) = exp(2 s^2). At s = 1 the largest of 24 factors is two fifths of their sum on average.

    python tests/benchmarks/bench_coverage.py [prompts in the bank] [replicates]
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from analysis.variance.compare import compare
from analysis.variance.exact import Population, exact_moments, softmax_bandit
from analysis.variance.intervals import Array, resample_counts
from analysis.variance.moments import Moments, Row
from analysis.variance.partition import Index
from analysis.variance.table import ratio_between

ESTIMATORS = ("leave_one_out", "length_weighted", "score_norm_weighted")
MEASURES = ("trace_cov", "signal", "relative_variance", "cosine", "bias", "mse", "mse_rescaled")
POOL_SIZE, PROMPTS, RESAMPLES = 64, 24, 600
SCALES = (0.0, 0.25, 0.5, 1.0, 1.5)
ROUNDING = 1e-9  # of an exact bias of zero


def prompt(rng: np.random.Generator) -> Population:
    """A bandit of six arms, of which one to five earn a reward, with long and short ones."""
    rewards = rng.permutation(np.arange(6) < rng.integers(1, 6)).astype(np.float64)
    return softmax_bandit(rng.normal(size=6), rewards, lengths=rng.integers(1, 12, 6))


def scaled(moments: Moments, prompts: Sequence[int] | Index, factor: Array) -> Moments:
    """The moments of some prompts after their scores were multiplied by sqrt(factor)."""
    return Moments(*(getattr(moments, field.name)[prompts] * factor for field in fields(Moments)))


def bank(size: int, group_size: int, rng: np.random.Generator) -> tuple[dict[str, Moments], dict[str, Moments]]:
    """Estimated and exact moments of every prompt, by estimator."""
    prompts = [prompt(rng) for _ in range(size)]
    table = compare([p.sample(POOL_SIZE, rng) for p in prompts], group_size, ESTIMATORS, rng, num_bootstrap=1)
    return {e: table[e].moments for e in ESTIMATORS}, {e: exact_moments(prompts, e, group_size) for e in ESTIMATORS}


def coverage(
    found: dict[str, Moments],
    exact: dict[str, Moments],
    group_size: int,
    scale: float,
    replicates: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Share of replicates whose interval holds the truth; `ratio` is relative variance over that of leave-one-out."""
    size = len(exact["leave_one_out"].second)
    mean_factor = np.full(size, np.exp(2 * scale**2))
    truth = {e: Row(e, group_size, scaled(exact[e], range(size), mean_factor), np.ones((1, size))) for e in ESTIMATORS}
    counts = resample_counts(PROMPTS, RESAMPLES, rng)
    held: dict[str, list[bool]] = {}
    for _ in range(replicates):
        chosen, factor = rng.integers(0, size, PROMPTS), np.exp(2 * scale * rng.normal(size=PROMPTS))
        rows = {e: Row(e, group_size, scaled(found[e], chosen, factor), counts) for e in ESTIMATORS}
        intervals = {(e, m): (rows[e].interval(m), getattr(truth[e], m)) for e in ESTIMATORS for m in MEASURES}
        base = truth["leave_one_out"].relative_variance
        for e in ESTIMATORS[1:]:
            interval = ratio_between(rows[e], rows["leave_one_out"], "relative_variance")[1]
            intervals[e, "ratio"] = interval, truth[e].relative_variance / base
        for (e, measure), ((low, high), value) in intervals.items():
            held.setdefault(f"{e:20s}{measure:20s}", []).append(low - ROUNDING <= value <= high + ROUNDING)
    return {name: float(np.mean(values)) for name, values in held.items()}


def main() -> None:
    size, replicates = (int(x) for x in (sys.argv[1:] + ["3000", "1000"][len(sys.argv) - 1 :]))
    for group_size in (2, 8):
        start, rng = time.process_time(), np.random.default_rng(0)
        found, exact = bank(size, group_size, rng)
        bias = found["leave_one_out"].trace.mean() / exact["leave_one_out"].trace.mean() - 1
        shares = [coverage(found, exact, group_size, scale, replicates, rng) for scale in SCALES]
        print(f"G = {group_size}: mean trace over exact trace - 1 = {bias:+.4f} ({time.process_time() - start:.0f} s)")
        print(f"    {'standard deviation of the log of the scale':40s}" + "".join(f"{s:8.2f}" for s in SCALES))
        for name in shares[0]:
            print(f"    {name:40s}" + "".join(f"{share[name]:8.3f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
