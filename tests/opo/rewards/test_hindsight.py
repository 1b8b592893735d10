"""A reward that judges what a response leads to."""

from opo.rewards.hindsight import hindsight
from opo.tasks.base import Prompt

PROMPT = Prompt(0, "1+1=", "2", {"target": 2})


def test_hindsight_judges_the_outcome():
    reward = hindsight(
        lambda prompt, response: int(response) * 10, lambda prompt, response, outcome: float(outcome > 15)
    )
    assert [reward(PROMPT, response) for response in ("1", "2")] == [0.0, 1.0]
