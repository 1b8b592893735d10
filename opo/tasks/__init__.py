"""Tasks: numbered prompts with verifiable rewards. `TASKS` names them, `make_task` builds one from its config."""

from typing import Any

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
    """The task whose config this is, a dataclass of `TASKS`. Raises UserError where its values contradict."""
    return TASKS[config.name][1](config)
