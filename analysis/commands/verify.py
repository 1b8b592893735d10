"""`opo verify`: the main job from end to end, short enough to wait for.

OPO, GRPO, GRPO with several updates per rollout and PPO are trained on the built-in policy, three seeds each; gradient variance is
measured on frozen responses of OPO's start, middle and end; every claim of the ledger that this can decide is judged; a page says
the results and what they do not show. Finished parts are recognised, so the same command resumes after an interruption.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from analysis.commands.workers import call, finish, train_in, workers
from analysis.config.verify import VerifyConfig, load_config, study_values
from analysis.study.config import load_config as load_study_config
from opo.cli import quoted
from opo.cli.compose import run_name
from opo.system.console import wide_console

TRAININGS: dict[str, list[str]] = {
    "opo": [],
    "grpo": [],
    "grpo off-policy": ["algo.updates_per_rollout=4", "algo.minibatches=4"],
    "ppo": [],
}


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
    config = load_config(values)
    page, tables = work(config, trainings(config), folder)
    wide_console().print(*tables)
    print(
        f"{page}: what was found, and what it does not say. Beside it: claims.json, figures/, variance/ and the run folders."
    )


def work(config: VerifyConfig, plans: list[Training], folder: Path) -> tuple[Path, list[RichTable]]:
    """All of it in workers: OPO's policies are measured as soon as they are there, so that none waits for another at the end."""
    console, study = wide_console(), folder / "variance"
    with workers(config.jobs) as pool:

        def train(kind: str) -> dict[Future[Any], str]:
            chosen = [plan for plan in plans if plan.kind == kind]
            return {pool.submit(train_in, folder / plan.name, plan.overrides): plan.name for plan in chosen}

        def find(what: str, *arguments: Any) -> Future[Any]:
            return pool.submit(call, f"analysis.commands.findings:{what}", *arguments)

        opo, ppo = train("opo"), train("ppo")  # PPO's runs are the longest
        finish(console, "training OPO", opo)
        config_of_study = load_study_config(study_values(config, [str(folder / name) for name in opo.values()]))
        shards = [f"{which}/{config.jobs}" for which in range(config.jobs)]
        pools = {find("measure_shard", config_of_study, shard, study): f"shard {shard}" for shard in shards}
        others = ppo | train("grpo")
        finish(console, "measuring", pools)
        measured = find("conclude_study", config_of_study, study)
        others |= train("grpo off-policy")
        measured.result()
        shown = [find(what, study) for what in ("study_figures", "study_ledgers")]  # short work to end with
        finish(console, "training", others)
        for job in shown:
            job.result()
        beside = [find("write_curves", folder), find("record", study, config.tracking)]
        found = find("conclude", folder).result()
        for job in beside:
            job.result()
        find("record", folder, config.tracking).result()
        return found


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
