"""`opo variance`: gradient variance of every estimator on frozen rollouts."""

from pathlib import Path
from typing import Any

import yaml

from analysis.claims.files import read_ledger, write_findings
from analysis.report.terminal import ledger_table
from analysis.study.config import load_config
from analysis.study.run import run_study
from analysis.study.tables import moments_table
from analysis.tracking.record import record
from opo.system.atomic import write_text
from opo.system.console import wide_console
from opo.system.terminal import say
from opo.system.world import World

__all__ = ["load_config", "main"]


def main(values: dict[str, Any], folder: Path) -> None:
    """`opo variance`: run the study in `folder` and print tables and ledgers of its first and last policy."""
    config = load_config(values)
    with World.join() as world:
        world.same(values)
        kept = {key: value for key, value in values.items() if key != "shard"}
        text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
        study = run_study(config, folder, world, started=lambda: write_text(folder / "config.yaml", text))
    if study is None:
        return
    write_findings(study, folder)
    if study.imported is not None:
        say(study.imported["text"])
    for policy in dict.fromkeys((study.policies[0]["name"], study.last_policy)):
        for notice in study.notices(policy):
            say(notice)
        if not study.all_rewards_equal(policy):
            wide_console().print(moments_table(study, policy))
        if (ledger := read_ledger(folder, policy)) and ledger["claims"]:
            wide_console().print(ledger_table(ledger["claims"]))
    say(f"{folder}/result.json, variance.parquet, ledger/ and figures/ are written")
    record(folder, config.tracking)
