"""open-instruct: `<run>_rollouts_<shard>.jsonl` of --save_traces (open_instruct/rl_utils.py, RolloutRecord), as token ids.

`prompt_idx` starts again at every step. Rewards are 0 or 10 by default; the end of text stands among the ids where it was sampled.
"""

from analysis.study.external.plain import cut
from analysis.study.external.record import Record, RewardChoice, Table, text_of, whole

NAME = "open-instruct records"


def matches(columns: set[str]) -> bool:
    return {"prompt_tokens", "response_tokens", "reward"} <= columns


def records(table: Table, choice: RewardChoice) -> list[Record]:
    return [
        Record(
            where=table.where(n),
            group=row.get("prompt_idx"),
            prompt=row.get("prompt_tokens"),
            response=row.get("response_tokens"),
            reward=row.get("reward"),
            numbers=row,
            logprobs=row.get("logprobs"),
            answer=text_of(row.get("ground_truth")),
            truncated=cut(row, table.where(n)),
            step=whole(row.get("step"), table.where(n), "step"),
        )
        for n, row in enumerate(table.rows)
    ]
