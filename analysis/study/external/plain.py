"""The plain table: prompt and response as text, token ids or messages, reward, and optionally prompt_id, logprobs, answer, step,
and whether it was cut: finish_reason, stop_reason, truncated, is_truncated.

A response in token ids that holds what tools answered says which tokens the policy produced in `response_mask` (as verl calls it) or
`tool_mask` (as TRL does), a list of 0 and 1.
"""

import math
from collections.abc import Mapping
from typing import Any

from analysis.study.external.record import Record, RewardChoice, Table, flag, hashable, numeric_columns, text_of, whole
from opo.errors import UserError

NAME = "plain table"
RESPONSES = ("response", "completion")
REWARDS = ("reward", "score")
MASKS = ("response_mask", "tool_mask", "env_mask")
STEPS = ("step", "policy_version")
IDS = ("prompt_id", "group_id", "example_id")
OWN = {"prompt_id", "group_id", "logprobs", "finish_reason"}  # which no trainer writes beside its own columns
FLAGS = ("truncated", "is_truncated")
CUT = ("length", "max_tokens", "max_length", "abort", "aborted", "cancelled", "timeout", "error")


def matches(columns: set[str]) -> bool:
    return "prompt" in columns and bool(columns & {*RESPONSES})


def records(table: Table, choice: RewardChoice) -> list[Record]:
    """Raises UserError where no column is the reward."""
    columns = table.columns
    response = next(name for name in RESPONSES if name in columns)
    reward = next((name for name in REWARDS if name in columns), None)
    if reward is None and not choice.weights:
        some = numeric_columns(table, (*IDS, *STEPS, *FLAGS))
        hint = f"; reward.column=NAME takes another (numbers are in {', '.join(some)})" if some else ""
        raise UserError(f"rollouts={table.file}: column reward is missing{hint}")
    identity = next((name for name in IDS if name in columns), None)
    step = next((name for name in STEPS if name in columns), None)
    mask = next((name for name in MASKS if name in columns), None)

    def record(n: int, row: dict[str, Any]) -> Record:
        where = table.where(n)
        if identity is not None and row.get(identity) is None:
            raise UserError(
                f"{where} has no {identity}; give every row one, or none (equal prompts are then one group)"
            )
        return Record(
            where=where,
            group=None if identity is None else hashable(row[identity]),
            prompt=row.get("prompt"),
            response=row.get(response),
            reward=row.get(reward) if reward else None,
            numbers=row,
            logprobs=row.get("logprobs"),
            produced=row.get(mask) if mask else None,
            answer=text_of(row.get("answer")),
            truncated=cut(row, where),
            step=whole(row.get(step), where, step) if step else None,
            temperature=row.get("temperature"),
        )

    return [record(n, row) for n, row in enumerate(table.rows)]


def cut(row: Mapping[str, Any], where: str) -> bool | None:
    """Whether a response was cut: true where any column says so, for the others may mean its last turn; None where none says."""
    stop = row.get("stop_reason")
    if isinstance(stop, int | float) and not math.isnan(stop):
        stop = "stop"  # of vLLM: the id of the token that stopped it
    said = [_finish(row.get("finish_reason"), where, "finish_reason"), _finish(stop, where, "stop_reason")]
    said += [flag(row.get(name), where, name) for name in FLAGS]
    return None if all(one is None for one in said) else any(said)


def _finish(reason: Any, where: str, name: str) -> bool | None:
    """Text as vLLM writes it, or an object with a `type` as SGLang does."""
    if isinstance(reason, float) and math.isnan(reason):
        return None
    if isinstance(reason, Mapping):
        reason = reason.get("type")
    if reason is not None and not isinstance(reason, str):
        raise UserError(f"{where} has {name} {str(reason)[:40]}; stop, length or another word is needed, or null")
    return reason.lower() in CUT if reason else None
