"""`opo zoo`: every algorithm trained alike, measured on the same rollouts, and shown in one gallery.

Trainings of equal generated tokens, several seeds; then the gradient of every row at the policy that training began with and at one in
mid-training (OPO's, after half of the tokens). Finished parts are recognised: the same command goes on after an interruption, and
`opo zoo 'algorithms=[NAME]'` adds the row of one algorithm to the gallery of those that are there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable

from analysis.commands.workers import finish, train_in, workers
from analysis.report.gallery import write_gallery
from analysis.study.tables import estimate_text
from analysis.zoo.config import ZooConfig, load_config
from analysis.zoo.measure import POLICIES, measure
from analysis.zoo.results import results
from analysis.zoo.rows import Row, all_rows, row_of
from opo.cli.compose import run_name
from opo.cli.readme import MEASURED, to_measured
from opo.system.atomic import write_text
from opo.system.console import wide_console
from opo.system.records import read_sealed, sealed

MIDDLE = "middle"  # folder of the run that ends in mid-training


def main(values: dict[str, Any], folder: Path) -> None:
    """Train, measure, and write the gallery."""
    config, console = load_config(values), wide_console()
    rows = remembered(config, folder)
    with workers(config.jobs) as pool:
        middle = row_of(["opo"]).training(config.overrides, config.seeds[0], max(1, config.tokens // 2))
        jobs = {pool.submit(train_in, folder / MIDDLE, middle): "OPO, half of the way"}
        for seed in config.seeds:
            for row in config.rows:
                path = run_folder(folder, config, row, seed)
                jobs[pool.submit(train_in, path, row.training(config.overrides, seed, config.tokens))] = path.name
        finish(console, "training", jobs)
        shards = [(policy, which) for policy in POLICIES for which in range(config.jobs)]
        finish(
            console,
            "measuring",
            {
                pool.submit(
                    measure, config, folder, policy, folder / MIDDLE, which, config.jobs
                ): f"{policy}, part {which + 1} of {config.jobs}"
                for policy, which in shards
            },
        )
    page = conclude(config, folder, rows)
    print(f"{page}: every row that is there. Beside it: zoo.parquet, measured/ and the run folders.")


def conclude(config: ZooConfig, folder: Path, rows: list[Row]) -> Path:
    """Table and page from what is on disk."""
    runs = {row.name: [run_folder(folder, config, row, seed) for seed in config.seeds] for row in rows}
    table = results(config, folder, rows, runs)
    table.write_parquet(folder / "zoo.parquet")
    record = to_measured(table.sort("row").iter_rows(named=True), summary(config))
    write_text(folder / MEASURED, json.dumps(record, indent=1) + "\n")
    own = [row.name for row in config.rows]
    console = wide_console()
    if config.algorithms is not None:
        shown = RichTable(box=box.SIMPLE_HEAD)
        for column in ("algorithm", "policy", "measure", "value [95 % interval]"):
            shown.add_column(column)
        for line in table.iter_rows(named=True):
            if line["row"] in own:
                shown.add_row(line["row"], line["policy"] or "trained", line["measure"], estimate_text(line))
        console.print(shown)
    return write_gallery(config, folder, rows, table)


def summary(config: ZooConfig) -> str:
    """How the numbers were made, for the table of the README."""
    return (
        f"Measured by `opo zoo`: reward, entropy and KL to the first policy (nats a token) after {config.tokens:,} generated tokens, mean over "
        f"{len(config.seeds)} seeds [95 % interval]; noise, tr Cov(g) over |E g|², over that of RLOO on the same rollouts, and missed, √(1 − cos²) between E g "
        f"and the gradient of expected reward, over {config.batches} batches of {config.prompts} prompts with {config.group_size} responses each. "
        "The built-in policy, one learning rate for all, none tuned."
    )


def run_folder(folder: Path, config: ZooConfig, row: Row, seed: int) -> Path:
    """Where `opo train` would put the run of a row."""
    choices: Mapping[str, Any] = {"algo": row.algorithm, "task": "arithmetic"}
    chosen = [line.partition("=")[2] for line in (*row.changes, *config.overrides) if line.startswith("task=")]
    return folder / run_name(
        dict(choices) | ({"task": chosen[-1]} if chosen else {}), seed, row.overrides(config.overrides)
    )


def remembered(config: ZooConfig, folder: Path) -> list[Row]:
    """The rows of this command and of those before it in the same folder, which are kept in zoo.json."""
    file = folder / "zoo.json"
    entries = read_sealed(file)["rows"] if file.exists() else []
    there = all_rows()  # a file of conf/algo may be gone by now
    known = [Row(entry["algorithm"], tuple(entry["changes"])) for entry in entries if entry["algorithm"] in there]
    rows = list(dict.fromkeys([*known, *config.rows]))
    record = {
        "config": asdict(replace(config, algorithms=None, combinations=[])),
        "rows": [asdict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(sealed(record), indent=1) + "\n")
    return rows
