"""TRL: `<output_dir>/completions/completions_<step>.parquet` of GRPOTrainer (trl/trainer/grpo_trainer.py, `log`).

Columns: step, prompt, completion, one for each reward function (unweighted, null where it gave None), those of `log_extra`, advantage.
Text is decoded without special tokens; no group id. Generated groups stand in consecutive rows, `num_generations` of them; rows of
an evaluation share the file.
"""

from collections import Counter
from itertools import groupby

from analysis.study.external.plain import FLAGS, OWN, cut
from analysis.study.external.record import Record, RewardChoice, Table, numeric_columns, whole
from opo.errors import UserError

NAME = "TRL completions"


def matches(columns: set[str]) -> bool:
    return {"step", "prompt", "completion", "advantage"} <= columns and not columns & OWN


def records(table: Table, choice: RewardChoice) -> list[Record]:
    """Raises UserError where several columns could be the reward and none is chosen."""
    candidates = numeric_columns(table, ("step", "advantage", *FLAGS))
    if not choice.weights and len(candidates) != 1:
        some = ", ".join(candidates) or "none"
        weights = ", ".join(f"{name}: 1.0" for name in candidates) or "NAME: 1.0"
        raise UserError(
            f"rollouts={table.file}: columns that could be the reward: {some}; name it with reward.column=NAME or "
            f"reward.columns={{{weights}}} (weights as in reward_weights of the run)"
        )
    odd = _outside_groups(table)
    return [
        Record(
            where=table.where(n),
            group=None,
            prompt=row.get("prompt"),
            response=row.get("completion"),
            reward=row.get(candidates[0]) if candidates else None,
            numbers=row,
            truncated=cut(row, table.where(n)),
            step=whole(row.get("step"), table.where(n), "step"),
            left_out="outside the groups of training (rows of an evaluation?)" if n in odd else None,
        )
        for n, row in enumerate(table.rows)
    ]


def _outside_groups(table: Table) -> set[int]:
    """Rows of runs of equal prompts whose length is no multiple of the group size, the length that most rows stand in."""
    runs = [
        [n for n, _ in run]
        for _, run in groupby(enumerate(table.rows), key=lambda pair: (pair[1].get("step"), str(pair[1].get("prompt"))))
    ]
    rows = Counter[int]()
    for run in runs:
        rows[len(run)] += len(run)
    size = max(rows, key=lambda length: (rows[length], length))
    return {n for run in runs if len(run) % size for n in run}
