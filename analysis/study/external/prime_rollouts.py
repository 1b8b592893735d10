"""prime-rl, April to June 2026: `rollouts/step_<n>/train_rollouts.jsonl`, one RolloutOutput of verifiers a line.

A group is (env_name, example_id). Prompt and completion are messages. A rollout that failed has `error`, often no completion and
reward 0.0, which says nothing about the answer.
"""

import re
from pathlib import Path

from analysis.study.external.plain import OWN, cut
from analysis.study.external.record import Record, RewardChoice, Table, part_of, text_of

NAME = "prime-rl rollouts"


def matches(columns: set[str]) -> bool:
    return {"example_id", "prompt", "completion", "reward"} <= columns and not columns & {*OWN, "step"}


def records(table: Table, choice: RewardChoice) -> list[Record]:
    step = step_of(table.file)
    return [
        Record(
            where=table.where(n),
            group=(row.get("env_name"), row.get("example_id")),
            prompt=row.get("prompt"),
            response=row.get("completion"),
            reward=row.get("reward"),
            numbers={**part_of(row.get("metrics"), table.where(n), "metrics"), **row},
            answer=text_of(row.get("answer")),
            truncated=cut(row, table.where(n)),
            step=step,
            tools=row.get("tool_defs"),
            left_out="of rollouts that failed (error)" if row.get("error") else None,
        )
        for n, row in enumerate(table.rows)
    ]


def step_of(file: Path) -> int | None:
    """The training step in a folder's name, `step_12/train_rollouts.jsonl`."""
    match = re.search(r"(?:^|/)step_(\d+)/", file.as_posix())
    return int(match[1]) if match else None
