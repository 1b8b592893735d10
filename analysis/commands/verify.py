"""`opo verify`: the main job from end to end, short enough to wait for.

OPO, GRPO, GRPO with several updates per rollout and PPO are trained on the built-in policy, three seeds each; gradient variance is
measured on frozen responses of OPO's start, middle and end; every claim of the ledger that this can decide is judged; a page says
the results and what they do not show. Finished parts are recognised, so the same command resumes after an interruption.
"""

from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from analysis.claims.evidence import Material
from analysis.claims.files import write_findings
from analysis.claims.ledger import judge, save
from analysis.claims.records import evidence_of
from analysis.commands.workers import finish, train_in, workers
from analysis.config.verify import VerifyConfig, load_config, study_values
from analysis.plots import runs as figures_runs
from analysis.plots.style import save as save_figure
from analysis.report.page import write_report
from analysis.report.runs import WINDOW, ends
from analysis.report.terminal import ledger_table, wide_console
from analysis.runs.groups import with_groups
from analysis.runs.load import load as load_runs
from analysis.study import run as study
from analysis.study.config import VarianceConfig
from analysis.study.config import load_config as load_study_config
from analysis.study.result import Study
from analysis.study.tables import moments_table
from analysis.tracking.record import record
from opo.cli import quoted
from opo.cli.compose import run_name

TRAININGS: dict[str, list[str]] = {
    "opo": [],
    "grpo": [],
    "grpo off-policy": ["algo.updates_per_rollout=4", "algo.minibatches=4"],
    "ppo": [],
}
EARLY = ("opo", "ppo")  # OPO's checkpoints are what is measured, and PPO's runs are the longest


@dataclass(frozen=True)
class Training:
    """One run: its folder's name, what it is in `TRAININGS`, and the overrides of `opo train` that make it."""

    name: str
    kind: str
    overrides: list[str]

    @property
    def command(self) -> str:
        return " ".join(["opo train", *self.overrides])


def main(values: dict[str, Any], folder: Path) -> None:
    """Train, measure, judge, and write the page."""
    config, console = load_config(values), wide_console()
    plans = trainings(config)
    page, tables = conclude(work(config, plans, folder, console), folder)
    console.print(*tables)
    for result in (folder / "variance", folder):
        record(result, config.tracking)
    print(
        f"{page}: what was found, and what it does not say. Beside it: claims.json, figures/, variance/ and the run folders."
    )


def work(config: VerifyConfig, plans: list[Training], folder: Path, console: Console) -> Study:
    """The trainings, and as soon as OPO's are there its variance study, so that no process waits for another at the end."""

    def submit(kinds: Collection[str]) -> dict[Future[Any], str]:
        chosen = [plan for kind in kinds for plan in plans if plan.kind == kind]
        return {pool.submit(train_in, folder / plan.name, plan.overrides): plan.name for plan in chosen}

    with workers(config.jobs) as pool:
        opo, ppo = (submit([kind]) for kind in EARLY)
        finish(console, "training OPO", opo)
        chosen = load_study_config(study_values(config, [str(folder / name) for name in opo.values()]))
        shards = [replace(chosen, shard=f"{which}/{config.jobs}") for which in range(config.jobs)]
        pools = {pool.submit(study.measure, s, folder / "variance"): f"shard {s.shard}" for s in shards}
        others = ppo | submit([kind for kind in TRAININGS if kind not in EARLY])
        finish(console, "measuring", pools)
        findings = pool.submit(find, chosen, folder / "variance")
        finish(console, "training", others)
        return findings.result()


def find(chosen: VarianceConfig, folder: Path) -> Study:
    """In a worker: the study's tables, figures and ledgers, from the pools on disk."""
    measured = study.conclude(chosen, folder)
    write_findings(measured, folder)
    return measured


def conclude(measured: Study, folder: Path) -> tuple[Path, list[RichTable]]:
    """Tables, figures, ledger and page from what is on disk.

    Claims about variance are judged at the last policy; variance/ledger/ has those of every policy.
    """
    runs = with_groups(load_runs(folder))
    ledger = judge(evidence_of(Material(measured.only(measured.last_policy), runs=runs, folder=folder)))
    save(ledger, folder)
    for metric in figures_runs.CURVES:
        curves = figures_runs.training_curves(runs, metric, by="group", window=WINDOW)
        save_figure(curves, folder / "figures", metric.replace("/", "-"))
    by_tokens = figures_runs.training_curves(runs, "train/reward_mean", x="train/tokens", by="group", window=WINDOW)
    save_figure(by_tokens, folder / "figures", "reward-against-tokens")
    save_figure(figures_runs.ledger(ledger), folder / "figures", "ledger")
    return write_report(folder), [runs_table(runs), moments_table(measured), ledger_table(ledger)]


def trainings(config: VerifyConfig) -> list[Training]:
    """The runs, seed by seed."""
    plans = []
    for seed in config.seeds:
        for name, changes in TRAININGS.items():
            algo = name.split()[0]
            middle = (config.steps + 1) // 2
            shared = [
                f"steps={config.steps}",
                "study=verify",
                "threads=1",
                f"checkpoint.every={middle}",
                f"tracking={config.tracking.mode}",
                *([f"tracking.project={quoted(config.tracking.project)}"] if config.tracking.project != "opo" else []),
                *([f"tracking.entity={quoted(config.tracking.entity)}"] if config.tracking.entity else []),
                "tracking.completions=128",
                "tracking.samples_every=0",
            ]
            overrides = [f"algo={algo}", f"seed={seed}", *changes, *shared]
            label = run_name({"algo": algo, "task": "arithmetic"}, seed, changes)
            plans.append(Training(label, name, overrides))
    return plans


def runs_table(runs: pl.DataFrame) -> RichTable:
    """What the trainings came to."""
    block = ends(runs)
    table = RichTable(title=block.caption, title_justify="left", box=box.SIMPLE_HEAD)
    for name in block.columns:
        table.add_column(name, justify="left" if name == "algorithm" else "right")
    for row in block.rows:
        table.add_row(*row)
    return table
