"""Time of a variance study without the model: every group estimator over 20,000 groups from pools of 64 responses.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_variance.py

Seconds are of the processor, the least of three runs; the budget of one second is at the default group size of 8. The
last line is the default study of 24 prompts, intervals of all measures included.
"""

import time
from collections.abc import Callable

import numpy as np

from analysis.study.config import ESTIMATORS
from analysis.variance.compare import Pool, compare

GROUPS, SIZE = 20_000, 64


def random_pool(rng: np.random.Generator) -> Pool:
    lengths, rewards = rng.integers(5, 60, SIZE), (rng.random(SIZE) < 0.4).astype(float)
    scores = rng.normal(size=(SIZE, 200)) * np.sqrt(lengths)[:, None] + 2 * (rewards - 0.4)[:, None]
    return Pool(scores @ scores.T, rewards, lengths, logit_energy=lengths * rng.uniform(0.8, 1.2, SIZE))


def least_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    rng = np.random.default_rng(0)
    pools = [random_pool(rng) for _ in range(24)]
    for group_size in (2, 4, 8, 16, 32):
        partitions = GROUPS // (SIZE // group_size)

        def one_pool(group_size: int = group_size, partitions: int = partitions) -> None:
            compare(pools[:1], group_size, ESTIMATORS, rng, num_bootstrap=1, num_partitions=partitions)

        print(f"{GROUPS} groups of {group_size:2d}, {len(ESTIMATORS)} estimators: {least_seconds(one_pool):.2f} s")

    def study() -> None:
        compare(pools, 8, ESTIMATORS, rng).to_dicts()

    print(
        f"24 prompts, G = 8, 20 partitions, 2000 resamples, {len(ESTIMATORS)} estimators: {least_seconds(study):.2f} s"
    )


if __name__ == "__main__":
    main()
