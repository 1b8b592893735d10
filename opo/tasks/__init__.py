"""Tasks: numbered prompts with verifiable rewards. `TASKS` names them, `make_task` builds one from its config."""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from opo.errors import UserError, near
from opo.system.terminal import say
from opo.tasks.arithmetic import Arithmetic, ArithmeticConfig
from opo.tasks.base import Prompt, Task, render
from opo.tasks.file import File, FileConfig
from opo.tasks.math import Math, MathConfig
from opo.tasks.own import config_kind, is_reference, make_own_task
from opo.tasks.reasoning_gym import ReasoningGym, ReasoningGymConfig

TASKS: dict[str, tuple[type, type]] = {
    "arithmetic": (ArithmeticConfig, Arithmetic),
    "reasoning_gym": (ReasoningGymConfig, ReasoningGym),
    "math": (MathConfig, Math),
    "file": (FileConfig, File),
}

__all__ = ["TASKS", "Prompt", "Task", "kind_of", "make_task", "render"]


def kind_of(values: Any) -> type:
    """The dataclass that a task's keys are read into: of `TASKS` by its name, or of a class of the user's, `module:MyTask`.

    Raises UserError where the name is neither.
    """
    name = values.get("name") if isinstance(values, Mapping) else values
    if is_reference(name):
        return config_kind(name)
    if not isinstance(values, Mapping) or not isinstance(name, str) or name not in TASKS:
        raise UserError(
            f"task={'null' if name is None else str(name)[:200]}: not one of {', '.join(TASKS)}{near(str(name), TASKS)}; a task of your own is module:MyTask"
        )
    return TASKS[name][0]


def make_task(config: Any, reward_functions: Mapping[str, float] | None = None) -> Task:
    """The task whose config this is, with its own reward or the weighted sum of `reward_functions` (`module:function`).

    What a user must know about its rewards is said once, on standard error. Raises UserError where its values contradict.
    """
    task = make_own_task(config) if is_reference(config.name) else TASKS[config.name][1](config)
    if reward_functions is not None:
        from opo.rewards.function import Rewarded

        return Rewarded(task, reward_functions)
    if config.name == "file":
        raise UserError("task=file: has no reward of its own; give reward.function=my_module:score")
    for warning in getattr(task, "warnings", ()):
        _say_once(warning)
    return task


@cache
def _say_once(warning: str) -> None:
    say(f"warning: {warning}", sys.stderr)
