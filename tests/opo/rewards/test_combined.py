"""Rewards made of functions."""

import math

import own_task
import pytest

from opo.errors import UserError
from opo.rewards.combined import hindsight, weighted
from opo.tasks.base import Prompt

PROMPT = Prompt(0, "1+1=", "2", {"target": 2})


def test_a_weighted_sum_of_functions_of_any_signature():
    reward = weighted((own_task.plain, 0.5), (own_task.trl, 2.0), (own_task.verl, -1.0))
    assert reward(PROMPT, "2") == 0.5 + 2.0 - 1.0
    assert reward(PROMPT, "3") == 0.0


def test_a_part_that_is_not_known_leaves_the_response_unscored():
    assert math.isnan(weighted((own_task.plain, 1.0), (lambda prompt, response: float("nan"), 1.0))(PROMPT, "2"))


def test_wrong_parts_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        weighted()
    with pytest.raises(UserError, match="takes"):
        weighted((own_task.alone, 1.0))


def test_hindsight_judges_the_outcome():
    reward = hindsight(
        lambda prompt, response: int(response) * 10, lambda prompt, response, outcome: float(outcome > 15)
    )
    assert [reward(PROMPT, response) for response in ("1", "2")] == [0.0, 1.0]
