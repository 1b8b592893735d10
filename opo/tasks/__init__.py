"""Tasks: numbered prompts with verifiable rewards. `TASKS` names them, `make_task` builds one from its config."""

import sys
from functools import cache
from typing import Any

from opo.system.terminal import say
from opo.tasks.arithmetic import Arithmetic, ArithmeticConfig
from opo.tasks.base import Prompt, Task, render
from opo.tasks.math import Math, MathConfig
from opo.tasks.reasoning_gym import ReasoningGym, ReasoningGymConfig

TASKS: dict[str, tuple[type, type]] = {
    "arithmetic": (ArithmeticConfig, Arithmetic),
    "reasoning_gym": (ReasoningGymConfig, ReasoningGym),
    "math": (MathConfig, Math),
}

__all__ = ["TASKS", "Prompt", "Task", "make_task", "render"]


def make_task(config: Any) -> Task:
    """The task whose config this is, a dataclass of `TASKS`. Raises UserError where its values contradict.

    What a user must know about its rewards is said once, on standard error.
    """
    task = TASKS[config.name][1](config)
    for warning in getattr(task, "warnings", ()):
        _say_once(warning)
    return task


@cache
def _say_once(warning: str) -> None:
    say(f"warning: {warning}", sys.stderr)
