"""Groups of runs that differ only in their seed: their labels, and which of them the ledger compares."""

import polars as pl

from analysis.runs.load import Runs

OF_THE_MACHINE = (
    "tracking.",
    "checkpoint.",
    "threads",
    "device",
    "rollout.max_sequences",
    "optim.tokens_per_microbatch",
)


def with_groups(runs: Runs) -> pl.DataFrame:
    """`runs.metrics` with a column `group`: the algorithm, and every key in which runs of that algorithm differ."""
    table = runs.runs
    own = {"run", "study", "algo", "task", "model", "seed", "path", "steps", "steps_done", "done", "wandb_run_id"}
    keys = [key for key in table.columns if key not in own and not key.startswith(OF_THE_MACHINE)]
    labels = {}
    for row in table.iter_rows(named=True):
        peers = table.filter(algo=row["algo"])
        parts = [
            f"{key.rpartition('.')[2]}={row[key]}" for key in keys if row[key] is not None and peers[key].n_unique() > 1
        ]
        for key in ("task", "model"):
            if table[key].n_unique() > 1:
                parts.insert(0, row[key])
        labels[row["run"]] = _label(row["algo"], parts)
    return runs.metrics.with_columns(pl.col("run").replace_strict(labels).alias("group"))


def _label(algo: str, parts: list[str]) -> str:
    """`grpo (4 updates)` for several updates per rollout; the number of minibatches goes with them."""
    updates = next((part.partition("=")[2] for part in parts if part.startswith("updates_per_rollout=")), None)
    rest = [part for part in parts if not part.startswith(("updates_per_rollout=", "minibatches="))]
    if updates is not None and updates != "1":
        rest.insert(0, f"{updates} updates")
    return f"{algo} ({', '.join(rest)})" if rest else algo


def roles(groups: list[str]) -> dict[str, str]:
    """The groups that the ledger compares, by role, where exactly one group has that role."""
    several = [g for g in groups if g.startswith("grpo (") and g.endswith("updates)")]
    found = {name: name for name in ("opo", "grpo", "ppo") if name in groups}
    return found | ({"off_policy": several[0]} if len(several) == 1 else {})
