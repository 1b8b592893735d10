"""Run folders as tidy tables: one row per step, one row per run. Reads only what is on disk; runs may still be training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from opo.errors import UserError
from opo.run.folder import leaves, steps_done
from opo.run.metrics import read_rows
from opo.system.records import read_json, read_yaml
from opo.train.mismatch import FILE

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


def load(*paths: Path | str) -> Runs:
    """All runs at or below these folders, in the order of their names.

    Raises UserError where a folder holds no run, or a metrics.jsonl a line that is no row (a last one still being
    written is fine).
    """
    folders_by_name: dict[Path, str] = {}
    for path in map(Path, paths):
        folders = sorted(run_folders(path))
        if not folders:
            raise UserError(f"{path}: no run is here (a folder with config.yaml and run.json)")
        for folder in folders:
            name = str(folder.relative_to(path)) if folder != path else path.resolve().name
            taken = name in folders_by_name.values() and folder not in folders_by_name
            folders_by_name[folder] = str(folder) if taken else name
    metrics: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    configs: list[dict[str, Any]] = []
    for folder, name in folders_by_name.items():
        config = read_yaml(folder / "config.yaml")
        labels = _labels(folder, name, config)
        rows = [labels | {"step": row["train/step"]} | row for row in read_rows(folder / "metrics.jsonl")]
        done = steps_done(folder)
        if done is not None and len(rows) < done:
            raise UserError(
                f"{folder / 'metrics.jsonl'}: holds {len(rows)} of the {done} steps that DONE says; restore it from a copy"
            )
        metrics += rows
        runs.append(
            labels
            | {
                "path": str(folder),
                "steps": config.get("steps"),
                "steps_done": rows[-1]["step"] if rows else 0,
                "done": done is not None,
                "updates_per_rollout": int(config["algo"].get("updates_per_rollout", 1)),
                "on_policy": certificate(folder),
                "wandb_run_id": read_json(folder / "run.json").get("wandb_run_id"),
            }
        )
        configs.append(leaves(config))
    return Runs(_metrics_table(metrics), pl.DataFrame(runs).hstack(_differing(configs)))


def _labels(folder: Path, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """What a run is called by. Raises UserError where its config was cut."""
    try:
        labels = {group: config[group]["name"] for group in ("algo", "task", "model")}
        return {"run": name, "study": config["study"]} | labels | {"seed": config["seed"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.yaml'}: damaged, it lacks {error}; restore it from a copy") from error


def certificate(folder: Path) -> str:
    """The result of the run's mismatch check: `exact`, `N updates per rollout` (sampled on-policy, then updated N times), `corrected in N of M
    steps` (by truncated importance sampling), `breached`, or `-`.
    """
    file = folder / FILE
    if not file.exists():
        return "-"
    record = read_json(file)
    if record["exactly_on_policy"]:
        return "exact"
    if record.get("sampled_on_policy"):
        return f"{record['updates_per_rollout']} updates per rollout"
    return (
        f"corrected in {len(record['breaches'])} of {record['steps_checked']} steps"
        if record["corrected"]
        else "breached"
    )


def run_folders(path: Path) -> Iterator[Path]:
    """`path` itself if it is a run folder, else those below it; nothing below a run folder is searched."""
    if (path / "config.yaml").is_file() and (path / "run.json").is_file():
        yield path
    elif path.is_dir():
        for child in path.iterdir():
            if child.is_dir() and not child.name.startswith("."):
                yield from run_folders(child)


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
