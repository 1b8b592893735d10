"""verl: `<trainer.rollout_data_dir>/<step>.jsonl` of both trainers and of validation (verl/trainer/ppo/ray_trainer.py, v1/trainer_base.py).

Keys: input, output (decoded without special tokens), gts, score, step, every reward extra (text where numpy's numbers became text),
`request_id` (one a response), and in the v1 trainer `uid` = "<prompt>_<rollout>_<output>". Without uid groups are equal inputs; rows
need not be adjacent. A rollout of several outputs has its score on each of them.
"""

import re
from collections import Counter

from analysis.study.external.plain import cut
from analysis.study.external.record import Record, RewardChoice, Table, text_of, whole

NAME = "verl rollouts"


def matches(columns: set[str]) -> bool:
    return {"input", "output", "score"} <= columns


def records(table: Table, choice: RewardChoice) -> list[Record]:
    """One record a rollout; rollouts in several outputs are left out, since each has the score of all."""
    parts = [_uid(row.get("uid")) for row in table.rows]
    outputs = Counter(_uid(uid) for uid in {str(row.get("uid")) for row in table.rows})
    return [
        Record(
            where=table.where(n),
            group=part[0] if (part := parts[n]) else None,
            prompt=row.get("input"),
            response=row.get("output"),
            reward=row.get("score"),
            numbers=row,
            answer=text_of(row.get("gts")),
            truncated=cut(row, table.where(n)),
            step=whole(row.get("step"), table.where(n), "step"),
            left_out="of rollouts in several outputs" if parts[n] and outputs[parts[n]] > 1 else None,
        )
        for n, row in enumerate(table.rows)
    ]


def _uid(uid: object) -> tuple[str, str] | None:
    """(prompt, rollout) of a v1 uid; None for the uid that a data set brought."""
    match = re.fullmatch(r"(.*)_(\d+)_\d+", uid) if isinstance(uid, str) else None
    return (match[1], match[2]) if match else None
