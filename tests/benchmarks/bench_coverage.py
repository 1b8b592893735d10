"""How often the 95 % intervals of a variance study hold the truth, when every replicate draws 24 fresh prompts.

Prompts are enumerable policies whose exact moments are known: a bank of them, one pool of 64 responses each, measured
once; a replicate is a sample of 24 from the bank, and the truth the mean of the exact moments over it. `scale` is the
standard deviation of the log of a factor on all scores of a prompt.

    python tests/benchmarks/bench_coverage.py [prompts in the bank] [replicates]
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from analysis.exact import Population, exact_moments, softmax_bandit
from analysis.moments import Moments, Row
from analysis.stats import resample_counts
from analysis.table import ratio_between
from analysis.variance import compare

ESTIMATORS = ("none", "leave_one_out", "length_weighted")
MEASURES = ("trace_cov", "signal", "relative_variance", "cosine", "bias", "mse", "mse_rescaled")
GROUP_SIZE, POOL_SIZE, PROMPTS = 8, 64, 24
ROUNDING = 1e-9  # of an exact bias of zero


def prompt(rng: np.random.Generator, scale: float) -> Population:
    """A bandit of six arms, of which one to five earn a reward, with long and short ones."""
    rewards = rng.permutation(np.arange(6) < rng.integers(1, 6)).astype(np.float64)
    bandit = softmax_bandit(rng.normal(size=6), rewards, lengths=rng.integers(1, 12, 6))
    return replace(bandit, scores=bandit.scores * np.exp(scale * rng.normal()))


def some(moments: Moments, prompts: Sequence[int] | np.ndarray) -> Moments:
    return Moments(*(getattr(moments, field.name)[prompts] for field in fields(Moments)))


def bank(size: int, scale: float, rng: np.random.Generator) -> tuple[dict[str, Moments], dict[str, Moments]]:
    """Estimated and exact moments of every prompt, by estimator."""
    prompts = [prompt(rng, scale) for _ in range(size)]
    table = compare([p.sample(POOL_SIZE, rng) for p in prompts], GROUP_SIZE, ESTIMATORS, rng, num_bootstrap=1)
    return {e: table[e].moments for e in ESTIMATORS}, {e: exact_moments(prompts, e, GROUP_SIZE) for e in ESTIMATORS}


def coverage(
    found: dict[str, Moments], exact: dict[str, Moments], replicates: int, rng: np.random.Generator
) -> dict[str, float]:
    """Share of replicates whose interval holds the truth; `ratio` is relative variance over that of leave-one-out."""
    size = len(exact["none"].second)
    truth = {e: Row(e, GROUP_SIZE, exact[e], np.ones((1, size))) for e in ESTIMATORS}
    held: dict[str, list[bool]] = {}
    for _ in range(replicates):
        chosen = rng.choice(size, PROMPTS, replace=False)
        counts = resample_counts(PROMPTS, 1000, rng)
        rows = {e: Row(e, GROUP_SIZE, some(found[e], chosen), counts) for e in ESTIMATORS}
        for e in ESTIMATORS:
            for measure in MEASURES:
                low, high = rows[e].interval(measure)
                value = getattr(truth[e], measure)
                held.setdefault(f"{e:16s}{measure}", []).append(low - ROUNDING <= value <= high + ROUNDING)
            trace_B, signal_B = (counts @ getattr(rows[e].moments, name) for name in ("trace", "signal"))
            resampled_B = np.divide(trace_B, signal_B, out=np.full(len(counts), np.inf), where=signal_B > 0)
            low, high = np.quantile(resampled_B, [0.025, 0.975], method="nearest")
            name = f"{e:16s}relative_variance, percentile"
            held.setdefault(name, []).append(bool(low <= truth[e].relative_variance <= high))
            ratio = truth[e].relative_variance / truth["leave_one_out"].relative_variance
            low, high = ratio_between(rows[e], rows["leave_one_out"], "relative_variance")[1]
            held.setdefault(f"{e:16s}ratio", []).append(low - ROUNDING <= ratio <= high + ROUNDING)
    return {name: float(np.mean(values)) for name, values in held.items()}


def main() -> None:
    size, replicates = (int(x) for x in (sys.argv[1:] + ["3000", "1000"][len(sys.argv) - 1 :]))
    for scale in (0.0, 0.5, 1.0):
        start, rng = time.perf_counter(), np.random.default_rng(0)
        found, exact = bank(size, scale, rng)
        shares = coverage(found, exact, replicates, rng)
        bias = found["leave_one_out"].trace.mean() / exact["leave_one_out"].trace.mean() - 1
        print(f"scale {scale}: mean trace over exact trace - 1 = {bias:+.4f} ({time.perf_counter() - start:.0f} s)")
        for name, share in shares.items():
            print(f"    {name:44s}{share:.3f}")


if __name__ == "__main__":
    main()
