"""Rewards made of functions: several weighted, or one that judges what a response leads to.

In a module of your own, for `reward.function=my:reward`:

    reward = weighted((liked, 0.6), (helpful, 0.3), (safe, 0.1))        RLUF: arXiv 2505.14946 (its weights are unverified)
    reward = hindsight(simulate, judge)                                 RLHS: arXiv 2501.08617
"""

from collections.abc import Callable
from typing import Any

from opo.rewards.function import Scorer, scorer, value_of
from opo.tasks.base import Prompt


def weighted(*parts: tuple[Any, float]) -> Scorer:
    """sum_k w_k r_k(prompt, response). A part that gives NaN or raises leaves the response unscored.

    Parts have any signature that `reward.function` takes. Raises ValueError without a part.
    """
    if not parts:
        raise ValueError("weighted: at least one (function, weight) is needed")
    scorers = [(scorer(function, getattr(function, "__name__", "a part")), weight) for function, weight in parts]

    def reward(prompt: Prompt, response: str) -> float:
        return sum(weight * float(value_of(score(prompt, response))) for score, weight in scorers)

    return reward


def hindsight(simulate: Callable[[Prompt, str], Any], judge: Callable[[Prompt, str, Any], Any]) -> Scorer:
    """judge(prompt, response, outcome) with outcome = simulate(prompt, response): feedback is given once the outcome is known.

    What sounds good and ends badly is then no longer rewarded. The simulator and the judge are the user's: here is no world model.
    """

    def reward(prompt: Prompt, response: str) -> Any:
        return judge(prompt, response, simulate(prompt, response))

    return reward
