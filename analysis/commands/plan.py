"""`opo plan`: what a training or a study costs before it is started."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from analysis.config.plan import PlanVariance, load_config
from analysis.plan.variance import plan_study
from opo.plan.machine import GIB
from opo.plan.report import plan_training
from opo.plan.training import Phase
from opo.system.console import wide_console
from opo.system.terminal import say

SMALLEST_PART = 0.0005  # GiB; below it a part is not worth a row


def main(values: dict[str, Any], folder: Path) -> None:
    """`opo plan train` and `opo plan variance`: print tables and sentences, or with `json` one object that holds the same."""
    config = load_config(values)
    plan = plan_study(config) if isinstance(config, PlanVariance) else plan_training(config)
    if config.json:
        print(json.dumps(plan.to_dict(), indent=1))
        return
    wide_console().print(memory_table(plan.title, plan.phases))
    for sentence in plan.conclusions:
        say(f"- {sentence}")


def memory_table(title: str, phases: Sequence[Phase]) -> Table:
    """Parts as rows, phases as columns, GiB of one rank."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("GiB of one rank")
    for phase in phases:
        table.add_column(phase.name, justify="right")
    names = dict.fromkeys(name for phase in phases for name in phase.parts)
    for name in names:
        sizes = [phase.parts.get(name, 0.0) / GIB for phase in phases]
        if max(sizes) >= SMALLEST_PART:
            table.add_row(name, *(f"{size:.3f}" if size >= SMALLEST_PART else "-" for size in sizes))
    table.add_section()
    table.add_row("together", *(f"{phase.total / GIB:.2f}" for phase in phases))
    return table
