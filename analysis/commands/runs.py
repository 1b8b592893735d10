"""`opo runs`: where the runs of a study stand."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from analysis.commands.ranking import rank, show
from analysis.config.runs import load_config
from analysis.runs.states import RunState, run_states
from opo.system.console import wide_console


def main(values: dict[str, Any], folder: Path) -> None:
    """`opo runs`: print a table, with `rank` the ranking of finished runs below it, or with `json` one object that holds the same."""
    config = load_config(values)
    states = run_states(Path(config.path))
    ranked = rank(Path(config.path)) if config.rank else None
    if config.json:
        found = {"path": config.path, "runs": [asdict(state) for state in states]}
        print(json.dumps(found | ({"ranking": ranked and asdict(ranked)} if config.rank else {}), indent=1))
        return
    wide_console().print(_table(config.path, states))
    if config.rank:
        show(ranked, Path(config.path))


def _table(path: str, states: list[RunState]) -> Table:
    counts = ", ".join(f"{count} {state}" for state, count in Counter(state.state for state in states).items())
    table = Table(title=f"{path}: {counts}", title_justify="left", box=None, pad_edge=False)
    for name, justify in (
        ("run", "left"),
        ("state", "left"),
        ("step", "right"),
        ("reward", "right"),
        ("time", "right"),
        ("why", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for s in states:
        minutes, seconds = divmod(round(s.seconds), 60)
        reward = "-" if s.reward is None else f"{s.reward:.3f}"
        why = "the same command goes on" if s.state == "stopped" else s.why
        table.add_row(s.run, s.state, f"{s.step}/{s.steps or '?'}", reward, f"{minutes}:{seconds:02d}", why)
    return table
