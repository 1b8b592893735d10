"""A reward that judges what a response leads to.

In a module of your own, for `reward.function=my:reward`:

    reward = hindsight(simulate, judge)        RLHS: arXiv 2501.08617
"""

from collections.abc import Callable
from typing import Any

from opo.rewards.function import Scorer
from opo.tasks.base import Prompt


def hindsight(simulate: Callable[[Prompt, str], Any], judge: Callable[[Prompt, str, Any], Any]) -> Scorer:
    """judge(prompt, response, outcome) with outcome = simulate(prompt, response): feedback is given once the outcome is known.

    What sounds good and ends badly is then no longer rewarded. The simulator and the judge are the user's: here is no world model.
    """

    def reward(prompt: Prompt, response: str) -> Any:
        return judge(prompt, response, simulate(prompt, response))

    return reward
