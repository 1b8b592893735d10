"""Intervals for means over prompts of what lies in [0, 1], rates most of all: accurate near 0 and 1 too, where errors are one-sided.

Wilson's interval solves |m - theta| = t sqrt(d theta (1 - theta) / P) for the true mean theta, so it leans away from the edge that
the sample mean m is near, and stays inside [0, 1]. d is the variance of a prompt's value over m (1 - m), the most that it can be: 1
where values are 0 or 1, less where each is itself a mean over responses, which makes the interval shorter. What a sample near an edge
has not seen is a prompt at the far end, so a quarter of one is counted into the variance. t is Student's with P - 1 degrees of freedom.

Coverage of 95 % intervals, 16 responses to each prompt whose chance p is Beta-distributed with mean mu and
concentration c, from 4,000 samples each (`tests/analysis/evaluation/test_rate_intervals.py` repeats a part):

    P = 24 and 64, mu of 0.01 to 0.995, c of 0.3 to 3          pass@1 96 to 99 %, pass@4 95 to 99 %, pass@16 93 to 98 %
    one dip below, common to Wilson's interval of a count      pass@16 at 0.992 and P = 64: 90.5 %
    prompts that are nearly alike (c = 30), near an edge        up to 99.9 %: a little wide

Sources: Wilson 1927; Newcombe 1998 (method 10, the paired difference); Korn and Graubard 1998 (design effect).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Array = NDArray[np.float64]

UNSEEN = 0.25  # prompts at the far end of the range that are counted into the variance


def rate_interval(values_P: Array, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of the mean of values in [0, 1], one a prompt; all of [0, 1] from a single one."""
    num_prompts, mean = len(values_P), float(values_P.mean())
    if num_prompts < 2:
        return 0.0, 1.0
    most = mean * (1 - mean)
    unseen = UNSEEN * max(mean, 1 - mean) ** 2
    variance = ((num_prompts - 1) * float(values_P.var(ddof=1)) + unseen) / (num_prompts - 1 + UNSEEN)
    share = min(variance / most, 1.0) if most > 0 else 1.0
    z2 = float(student.ppf((1 + level) / 2, num_prompts - 1)) ** 2 * share / num_prompts
    centre, half = (mean + z2 / 2) / (1 + z2), np.sqrt(z2 * most + z2**2 / 4) / (1 + z2)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def difference_interval(own_P: Array, base_P: Array, level: float = 0.95) -> tuple[float, float]:
    """Interval of mean(own) - mean(base) over the same prompts: Newcombe's, of two rate intervals and their correlation r.

    low = D - sqrt((m - l)^2 - 2 r (m - l)(u' - m') + (u' - m')^2), and high with the other ends, primes for the base.
    """
    m, m0 = float(own_P.mean()), float(base_P.mean())
    (low, high), (low0, high0) = rate_interval(own_P, level), rate_interval(base_P, level)
    spread = float(own_P.std() * base_P.std())
    r = float(((own_P - m) * (base_P - m0)).mean()) / spread if spread > 0 else 0.0
    r *= (len(own_P) - 1) / (len(own_P) - 1 + UNSEEN)  # equal values at every prompt seen prove no equality at others

    def reach(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * r * a * b + b * b, 0.0)))

    return max(m - m0 - reach(m - low, high0 - m0), -1.0), min(m - m0 + reach(high - m, m0 - low0), 1.0)


def p_value(interval: Callable[[float], tuple[float, float]], least: float = 1e-6) -> float:
    """The smallest error rate alpha at which the interval of level 1 - alpha leaves out 0, at least `least`; 1 where none does."""

    def apart(alpha: float) -> bool:
        low, high = interval(1 - alpha)
        return low > 0 or high < 0

    if apart(least):
        return least
    if not apart(1 - 1e-9):
        return 1.0
    low, high = np.log(least), 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if apart(float(np.exp(middle))) else (middle, high)
    return float(np.exp(high))
