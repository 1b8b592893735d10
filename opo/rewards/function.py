"""Reward functions of the user's own in place of a task's: `reward.function=my_module:score`, run in the workers like any scorer.

Several are summed: `reward.function=[my_module:accuracy,my_module:format] reward.weights=[1.0,0.2]`.

Four signatures are known by the names of their arguments, each called with one response at a time:

    score(prompt: Prompt, response: str) -> float                               # prompt.answer, prompt.metadata: the row's columns
    reward(prompts, completions, **columns) -> list[float | None]               # TRL: lists, here of length one
    compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict with "score"      # verl
    compute_score(data_sources, solution_strs, ground_truths, extra_infos) -> list                        # verl, batched

As in TRL, prompts and completions are lists of messages where the prompt goes through the chat template. verl's
ground truth is the row's `reward_model.ground_truth`, `ground_truth`, `answer` or `solution`, of whatever type. None, or an exception, leaves
the response unscored; a function that compares the responses of a group with one another cannot be used, since a reward must not
depend on what is scored beside it. Where it fails for every response of a training's batch the run stops (opo/train/prepare.py).
"""

import inspect
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from numbers import Real
from typing import Any

from opo.errors import UserError
from opo.tasks.base import Prompt, Task
from opo.tasks.data import column
from opo.tasks.own import brief, load_object, value_of

Scorer = Callable[[Prompt, str], Any]

KNOWN = (
    "allowed are (prompt, response), TRL's (prompts, completions, **columns) and verl's (data_source, solution_str, ground_truth, "
    "extra_info)"
)
# What a first argument, or a second, is called where it is not the prompt or the response.
NO_PROMPT = {"response", "completion", "output", "generation", "prediction", "answer", "solution", "ground_truth"}
NO_RESPONSE = {"answer", "solution", "ground_truth", "gold", "target", "reference", "label", "prompt", "question"}
TRUTHS = ("reward_model.ground_truth", "ground_truth", "answer", "solution")  # columns with verl's ground truth


class Rewarded:
    """A task with its prompts as they are and another reward: sum_k w_k r_k over the functions, each by its reference.

    A response that one of them cannot score has no reward.
    """

    def __init__(self, task: Task, weights: Mapping[str, float]):
        self._task, self._weights = task, weights
        self.name, self.stop, self.scored_by = task.name, task.stop, f"reward.function={','.join(weights)}"
        self.prompt, self.extract = task.prompt, task.extract
        self._reward = Reward(weights, task.prompt(0))
        self.parts = self._reward.names

    def __reduce__(self):
        return _in_worker, (self.name, dict(self._weights))

    def score(self, prompt: Prompt, response: str) -> float:
        return self._reward(prompt, response)


class Sum(float):
    """A reward of several parts, which it keeps, unweighted."""

    parts: tuple[float, ...] = ()


class Reward:
    """A function, or the weighted sum of several."""

    def __init__(self, weights: Mapping[str, float], example: Prompt | None = None):
        scorers = {
            reference: scorer(load_object(reference, "reward.function"), reference, example) for reference in weights
        }
        self._scorers, self._weights = list(scorers.values()), list(weights.values())
        short = [reference.partition(":")[2] for reference in weights]
        distinct = len(set(short)) == len(short)
        names = short if distinct else [reference.replace(":", ".") for reference in weights]
        self.names = tuple(names) if len(names) > 1 else ()

    def __call__(self, prompt: Prompt, response: str) -> Any:
        # each has a prompt of its own: what one changes is neither the next one's nor the next response's
        values = [value_of(score(deepcopy(prompt), response)) for score in self._scorers]
        if not self.names:
            return (
                values[0] if self._weights[0] == 1 or not isinstance(values[0], Real) else self._weights[0] * values[0]
            )
        if any(value is None for value in values):
            return None
        for name, value in zip(self.names, values, strict=True):
            if not isinstance(value, Real):
                raise TypeError(f"{name} gave {value!r:.50}, not a number")
        total = Sum(math.fsum(w * float(v) for w, v in zip(self._weights, values, strict=True)))
        total.parts = tuple(float(value) for value in values)
        return total


class _Scorer:
    """What a worker needs of it."""

    def __init__(self, name: str, weights: Mapping[str, float]):
        self.name, self.score = name, Reward(weights)


def _in_worker(name: str, weights: Mapping[str, float]) -> _Scorer:
    return _Scorer(name, weights)


def scorer(function: Any, reference: str, example: Prompt | None = None) -> Scorer:
    """The function under one signature. Raises UserError where it has none of the four, or wants a column that `example` lacks."""
    wrong = f"reward.function={reference}: "
    if not callable(function):
        raise UserError(f"{wrong}is no function")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{wrong}its arguments cannot be read ({brief(error)}); {KNOWN}") from error
    required = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    positional = all(parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY for name in required)
    named = all(parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY for name in required)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "completions" in parameters and named:
        made = _trl
    elif "solution_str" in parameters and named:
        made = _verl
    elif "solution_strs" in parameters and named:
        made = _verl_batched
    elif len(required) == 2 and positional and required[0] not in NO_PROMPT and required[1] not in NO_RESPONSE:
        return function
    else:
        bare = inspect.Signature([p.replace(annotation=p.empty, default=p.empty) for p in parameters.values()])
        raise UserError(f"{wrong}takes {bare}; {KNOWN}")
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


def truth_of(prompt: Prompt) -> Any:
    """verl's ground truth of a prompt, of whatever type its column has; "" where it has none."""
    columns = columns_of(prompt)
    return next((value for name in TRUTHS if (value := column(columns, name)) is not None), "")


def _trl(prompt: Prompt, response: str) -> dict[str, Any]:
    asked: Any = (list(prompt.messages) or [{"role": "user", "content": prompt.text}]) if prompt.chat else prompt.text
    said: Any = [{"role": "assistant", "content": response}] if prompt.chat else response
    return {name: [value] for name, value in columns_of(prompt).items()} | {"prompts": [asked], "completions": [said]}


def _verl(prompt: Prompt, response: str) -> dict[str, Any]:
    columns = columns_of(prompt)
    return {
        "data_source": columns.get("data_source", ""), "solution_str": response, "ground_truth": truth_of(prompt),
        "extra_info": columns.get("extra_info") or {},
    }  # fmt: skip


def _verl_batched(prompt: Prompt, response: str) -> dict[str, Any]:
    one = _verl(prompt, response)
    return {
        "data_sources": [one["data_source"]], "solution_strs": [response], "ground_truths": [one["ground_truth"]],
        "extra_infos": [one["extra_info"]],
    }  # fmt: skip
