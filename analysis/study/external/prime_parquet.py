"""prime-rl's parquet files: token ids of 2025 (zeroband/training/parquet.py), and samples of its platform (monitors/prime.py).

2025: input_tokens, output_tokens, output_logprobs, rewards, temperature; no id of the prompt. Platform: `prompt` is always empty,
`trajectory` and `completion` are messages as JSON text.
"""

import json
from typing import Any

from analysis.study.external.plain import cut
from analysis.study.external.record import Record, RewardChoice, Table, whole
from opo.errors import UserError

NAME = "prime-rl parquet"


def matches(columns: set[str]) -> bool:
    return {"input_tokens", "output_tokens", "rewards"} <= columns or {"problem_id", "trajectory"} <= columns


def records(table: Table, choice: RewardChoice) -> list[Record]:
    """Raises UserError on a trajectory of several steps."""
    return [
        _tokens(table.where(n), row) if "input_tokens" in row else _sample(table.where(n), row)
        for n, row in enumerate(table.rows)
    ]


def _tokens(where: str, row: dict[str, Any]) -> Record:
    return Record(
        where=where,
        group=None,
        prompt=row["input_tokens"],
        response=row.get("output_tokens"),
        reward=row.get("rewards"),
        numbers=row,
        logprobs=row.get("output_logprobs"),
        truncated=cut(row, where),
        step=whole(row.get("step"), where, "step"),
        temperature=row.get("temperature"),
    )


def _sample(where: str, row: dict[str, Any]) -> Record:
    try:
        steps = json.loads(row["trajectory"] or "null")
        messages = steps[0]["messages"] if steps and len(steps) == 1 else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{where} has a trajectory that cannot be read: {error}") from error
    if not isinstance(messages, list):
        raise UserError(f"{where} has a trajectory of {len(steps or [])} steps; rollouts of one turn are read")
    while messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    return Record(
        where=where,
        group=(row.get("env_name"), row.get("problem_id")),
        prompt=messages,
        response=row.get("completion"),
        reward=row.get("reward"),
        numbers=row,
        truncated=cut(row, where),
        step=whole(row.get("step"), where, "step"),
    )
