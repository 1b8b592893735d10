"""Runs as tidy tables: one row per step, one row per run; the same from run folders, W&B's offline files and the service."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from analysis.runs.places import OneRun, run_folders, runs_at
from opo.errors import UserError
from opo.run.folder import leaves

__all__ = ["LABELS", "Runs", "load", "run_folders"]

LABELS = ("run", "study", "algo", "task", "model", "seed")


@dataclass(frozen=True)
class Runs:
    """`metrics`: LABELS, `step`, then one Float64 column a metric, null where it is undefined. `runs`: LABELS, `path`, `steps`,
    `steps_done`, `done`, `updates_per_rollout`, `on_policy` (`certificate`), `wandb_run_id`, then one column for each
    key of the config in which the runs differ (text where its values are not all of one type). `run` is the folder's
    path below the one it was found in.
    """

    metrics: pl.DataFrame
    runs: pl.DataFrame


def load(*places: Path | str) -> Runs:
    """All runs of these places, in the order of their names: folders at or above run folders, W&B's offline files or folders with some,
    and `wandb:ENTITY/PROJECT` or `wandb:ENTITY/PROJECT/STUDY` for the service (`analysis.runs.places`).

    Raises UserError where a place holds no run, or a metrics.jsonl a line that is no row (a last one still being
    written is fine).
    """
    found: dict[str, OneRun] = {}
    for run in (run for place in places for run in runs_at(place)):
        taken = run.name in {other.name for other in found.values() if other.path != run.path}
        found[run.path] = replace(run, name=run.path) if taken else run
    if not found:
        raise UserError(f"{' and '.join(map(str, places))}: no training is here")
    metrics: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for run in found.values():
        labels = _labels(run)
        rows = [labels | {"step": int(row["train/step"])} | row for row in run.rows]
        metrics += rows
        runs.append(
            labels
            | {
                "path": run.path,
                "steps": run.config.get("steps"),
                "steps_done": rows[-1]["step"] if rows else 0,
                "done": run.done,
                "updates_per_rollout": int(run.config["algo"].get("updates_per_rollout", 1)),
                "on_policy": certificate(run.certificate),
                "wandb_run_id": run.wandb_id,
            }
        )
    configs = [leaves(run.config) for run in found.values()]
    return Runs(_metrics_table(metrics), pl.DataFrame(runs).hstack(_differing(configs)))


def _labels(run: OneRun) -> dict[str, Any]:
    """What a run is called by. Raises UserError where its config was cut."""
    config = run.config
    try:
        labels = {group: config[group]["name"] for group in ("algo", "task", "model")}
        return {"run": run.name, "study": config["study"]} | labels | {"seed": config["seed"]}
    except (KeyError, TypeError) as error:
        file = Path(run.path) / "config.yaml" if Path(run.path).is_dir() else run.path
        raise UserError(f"{file}: damaged, it lacks {error}; restore it from a copy") from error


def certificate(record: Mapping[str, Any] | None) -> str:
    """The result of a run's mismatch check: `exact`, `N updates per rollout` (sampled on-policy, then updated N times), `corrected in N of M
    steps` (by truncated importance sampling), `breached`, or `-`.
    """
    if record is None:
        return "-"
    if record["exactly_on_policy"]:
        return "exact"
    if record.get("sampled_on_policy"):
        return f"{record['updates_per_rollout']} updates per rollout"
    return (
        f"corrected in {len(record['breaches'])} of {record['steps_checked']} steps"
        if record["corrected"]
        else "breached"
    )


def _metrics_table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    names = sorted({name for row in rows for name in row} - {*LABELS, "step"})
    schema: dict[str, Any] = (
        dict.fromkeys(LABELS, pl.String) | {"seed": pl.Int64, "step": pl.Int64} | dict.fromkeys(names, pl.Float64)
    )
    return pl.DataFrame({name: [row.get(name) for row in rows] for name in schema}, schema=schema, strict=False)


def _differing(configs: list[dict[str, Any]]) -> pl.DataFrame:
    """The leaves in which configs differ, one row a config; labels and counts, which have columns of their own, are left out."""
    own = {"study", "algo.name", "task.name", "model.name", "seed", "steps"}
    keys = list(dict.fromkeys(key for config in configs for key in config if key not in own))
    columns: dict[str, list[Any]] = {}
    for key in keys:
        values = [config.get(key) for config in configs]
        if all(value == values[0] for value in values):
            continue
        plain = len({type(value) for value in values if value is not None}) == 1 and not isinstance(values[0], list)
        columns[key] = values if plain else [None if value is None else str(value) for value in values]
    return pl.DataFrame(columns)
