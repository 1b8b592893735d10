"""A reward function of the user's own in place of a task's: `reward.function=my_module:score`, run in the workers like any scorer.

Four signatures are known by the names of their arguments, each called with one response at a time:

    score(prompt: Prompt, response: str) -> float                               # prompt.answer, prompt.metadata: the row's columns
    reward(prompts, completions, **columns) -> list[float | None]               # TRL: lists, here of length one
    compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict with "score"      # verl
    compute_score(data_sources, solution_strs, ground_truths, extra_infos) -> list                        # verl, batched

As in TRL, prompts and completions are lists of messages where the prompt goes through the chat template. None, or an exception, leaves
the response unscored; a function that compares the responses of a group with one another cannot be used, since a reward must not
depend on what is scored beside it. Where it fails for every response of a training's batch the run stops (opo/train/prepare.py).
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from opo.errors import UserError
from opo.tasks.base import Prompt, Task
from opo.tasks.own import load_object

Scorer = Callable[[Prompt, str], Any]


class Rewarded:
    """A task with its prompts as they are and another reward."""

    def __init__(self, task: Task, reference: str):
        self._task, self._reference = task, reference
        self.name, self.stop, self.scored_by = task.name, task.stop, f"reward.function={reference}"
        self.prompt, self.extract = task.prompt, task.extract
        self._score = scorer(load_object(reference, "reward.function"), reference, task.prompt(0))

    def __reduce__(self):
        return _in_worker, (self.name, self._reference)

    def score(self, prompt: Prompt, response: str) -> float:
        return value_of(self._score(prompt, response))


class _Scorer:
    """What a worker needs of it."""

    def __init__(self, name: str, reference: str):
        self.name = name
        self._score = scorer(load_object(reference, "reward.function"), reference)

    def score(self, prompt: Prompt, response: str) -> float:
        return value_of(self._score(prompt, response))


def _in_worker(name: str, reference: str) -> _Scorer:
    return _Scorer(name, reference)


def scorer(function: Any, reference: str, example: Prompt | None = None) -> Scorer:
    """The function under one signature. Raises UserError where it has none of the four, or wants a column that `example` lacks."""
    wrong = f"reward.function={reference}: "
    if not callable(function):
        raise UserError(f"{wrong}is no function")
    parameters = inspect.signature(function).parameters
    required = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "completions" in parameters:
        made = _trl
    elif "solution_str" in parameters:
        made = _verl
    elif "solution_strs" in parameters:
        made = _verl_batched
    elif len(required) == 2:
        return function
    else:
        raise UserError(
            f"{wrong}takes ({', '.join(parameters)}); allowed are (prompt, response), TRL's (prompts, completions, **columns) and "
            "verl's (data_source, solution_str, ground_truth, extra_info)"
        )
    if example is not None and (missing := set(required) - set(made(example, ""))):
        columns = ", ".join(columns_of(example)) or "none"
        raise UserError(
            f"{wrong}wants {', '.join(sorted(missing))}, which the prompts do not bring; their columns are {columns}"
        )

    def score(prompt: Prompt, response: str) -> Any:
        arguments = made(prompt, response)
        return function(
            **(arguments if takes_all else {name: arguments[name] for name in arguments if name in parameters})
        )

    return score


def columns_of(prompt: Prompt) -> dict[str, Any]:
    """What a row brings beside its prompt."""
    return {"answer": prompt.answer, **prompt.metadata} if prompt.answer else dict(prompt.metadata)


def _trl(prompt: Prompt, response: str) -> dict[str, Any]:
    asked: Any = (list(prompt.messages) or [{"role": "user", "content": prompt.text}]) if prompt.chat else prompt.text
    said: Any = [{"role": "assistant", "content": response}] if prompt.chat else response
    return {name: [value] for name, value in columns_of(prompt).items()} | {"prompts": [asked], "completions": [said]}


def _verl(prompt: Prompt, response: str) -> dict[str, Any]:
    columns = columns_of(prompt)
    model = columns.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else columns.get("ground_truth", prompt.answer)
    return {
        "data_source": columns.get("data_source", ""), "solution_str": response, "ground_truth": truth,
        "extra_info": columns.get("extra_info") or {},
    }  # fmt: skip


def _verl_batched(prompt: Prompt, response: str) -> dict[str, Any]:
    one = _verl(prompt, response)
    return {
        "data_sources": [one["data_source"]], "solution_strs": [response], "ground_truths": [one["ground_truth"]],
        "extra_infos": [one["extra_info"]],
    }  # fmt: skip


def value_of(result: Any) -> Any:
    """The number in what a reward function returned: out of a coroutine, a list of one, a dict with `score`, a scalar of numpy or torch."""
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    if isinstance(result, list | tuple) and len(result) == 1:
        result = result[0]
    if isinstance(result, Mapping) and "score" in result:
        result = result["score"]
    item = getattr(result, "item", None)
    return item() if callable(item) else result
