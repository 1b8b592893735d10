"""Tasks: numbered prompts with verifiable rewards. `TASKS` names them, `make_task` builds one from its config."""

from opo.tasks.base import Prompt, Task, render

__all__ = ["Prompt", "Task", "render"]
