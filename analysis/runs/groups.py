"""Runs of one configuration that differ in their seed form a group: its label, and its role in the ledger.

Groups are made from the keys of the config alone, never from labels or from the outcome of a run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from analysis.runs.load import Runs
from opo.errors import UserError

# keys of the config that do not change what is learned
OF_THE_MACHINE = (
    "tracking.",
    "checkpoint.",
    "evaluate.",
    "reward.timeout_s",
    "reward.workers",
    "rollout.max_sequences",
    "optim.tokens_per_microbatch",
)
COMPARED = ("opo", "grpo", "ppo")  # algorithms that the ledger compares


def with_groups(runs: Runs) -> pl.DataFrame:
    """`runs.metrics` with the columns `group` and `role`.

    A group's label is its algorithm and every key in which the groups of that algorithm differ. Its role is the name of one of
    `COMPARED` with exactly one update per rollout batch (PPO with any number), or `off_policy`: GRPO with several; null for any other group, and where
    several groups would play the same part.
    """
    table, keys = runs.runs, _keys(runs.runs)
    identity = {
        row["run"]: tuple(str(row[key]) for key in ("algo", "task", "model", *keys))
        for row in table.iter_rows(named=True)
    }
    labels, part = _labels(table, keys, identity), _roles(table, identity)
    return runs.metrics.with_columns(
        pl.col("run").replace_strict({run: labels[key] for run, key in identity.items()}).alias("group"),
        pl.col("run").replace_strict({run: part.get(key) for run, key in identity.items()}, return_dtype=pl.String).alias("role"),
    )  # fmt: skip


def _keys(table: pl.DataFrame) -> list[str]:
    """The keys of the config in which runs differ and which change what is learned."""
    # a key of the config has a dot; columns without one are labels and what came of the run
    return [key for key in table.columns if "." in key and not key.startswith(OF_THE_MACHINE)]


def configuration_keys(runs: Runs) -> list[str]:
    """The keys of the config that tell groups apart; the algorithm's name at least."""
    names = [f"{group}.name" for group in ("algo", "task", "model") if runs.runs[group].n_unique() > 1]
    return [*dict.fromkeys([*(names or ["algo.name"]), *_keys(runs.runs)])]


def pair_by_updates(runs: Runs) -> tuple[str, str]:
    """Two groups of one algorithm: that with the most updates per rollout batch, and that with one. Raises UserError where there are none."""
    labels = with_groups(runs).select("run", "group").unique()
    groups = runs.runs.join(labels, on="run").select("algo", "group", "updates_per_rollout").unique()
    for algo in runs.runs["algo"].unique(maintain_order=True):
        mine = groups.filter(algo=algo).sort("updates_per_rollout")
        if mine["updates_per_rollout"][0] == 1 < mine["updates_per_rollout"][-1]:
            return mine["group"][-1], mine["group"][0]
    raise UserError(
        "no algorithm here ran with one and with several updates per rollout batch (algo.updates_per_rollout)"
    )


def _roles(table: pl.DataFrame, identity: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """By group, its role where it is the only group with it."""
    groups_of_role: dict[str, set[tuple[str, ...]]] = {}
    for row in table.iter_rows(named=True):
        if row["algo"] == "grpo" and row["updates_per_rollout"] > 1:
            groups_of_role.setdefault("off_policy", set()).add(identity[row["run"]])
        elif row["algo"] in COMPARED and (row["updates_per_rollout"] == 1 or row["algo"] == "ppo"):
            groups_of_role.setdefault(row["algo"], set()).add(identity[row["run"]])
    return {next(iter(groups)): role for role, groups in groups_of_role.items() if len(groups) == 1}


def _labels(
    table: pl.DataFrame, keys: Sequence[str], identity: Mapping[str, tuple[str, ...]]
) -> dict[tuple[str, ...], str]:
    """A short label for each group; in full where two groups would have the same."""
    short: dict[tuple[str, ...], str] = {}
    full: dict[tuple[str, ...], str] = {}
    for row in table.iter_rows(named=True):
        peers = table.filter(algo=row["algo"])
        differing = [key for key in keys if row[key] is not None and peers[key].n_unique() > 1]
        where = [row[key] for key in ("model", "task") if table[key].n_unique() > 1]
        short[identity[row["run"]]] = _label(row, where, differing)
        full[identity[row["run"]]] = (
            f"{row['algo']} ({', '.join([*where, *(f'{key}={row[key]}' for key in differing)])})"
        )
    taken = list(short.values())
    return {key: label if taken.count(label) == 1 else full[key] for key, label in short.items()}


def _label(row: Mapping[str, Any], where: Sequence[str], differing: Sequence[str]) -> str:
    """`grpo (4 updates)` for several updates per rollout; the number of minibatches goes with them."""
    parts = [*where]
    for key in differing:
        if key not in ("algo.updates_per_rollout", "algo.minibatches"):
            parts.append(f"{key.rpartition('.')[2]}={row[key]}")
    if row["updates_per_rollout"] > 1:
        parts.insert(0, f"{row['updates_per_rollout']} updates")
    return f"{row['algo']} ({', '.join(parts)})" if parts else str(row["algo"])
