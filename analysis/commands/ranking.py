"""The ranking of a study on the terminal: at the end of a sweep, and of `opo runs rank=true`."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from analysis.report.terminal import wide_console
from analysis.runs.load import load, run_folders
from analysis.runs.ranking import Rank, Ranking, ranking
from analysis.runs.states import run_states
from opo.system.terminal import say

FEW_SEEDS = 8  # fewer make intervals that are clearly too short


def after_sweep(folders: Sequence[Path]) -> None:
    """Print the ranking of a sweep's runs, and the command that makes the page, where there are at least two runs."""
    runs = [folder for folder in folders if any(run_folders(folder))]
    if len(runs) > 1:
        study = Path(os.path.relpath(os.path.commonpath(runs)))
        show(rank(*runs, in_order=True), study)
        say(f"the page: opo report path={study}")


def rank(*paths: Path, in_order: bool = False) -> Ranking | None:
    """The ranking of the finished runs at or below these folders, also while others go on; None where none has a score.

    `in_order`: differences are to the algorithm of the first run given, else to that which was started first.
    """
    states = [state for path in paths for state in run_states(path)]
    done = [state.folder for state in states if state.state == "done"]
    ranked = ranking(load(*done), in_order) if done else None
    return ranked and replace(ranked, left_out={s.run: s.state for s in states if s.state != "done"} | ranked.left_out)


def show(ranked: Ranking | None, path: Path) -> None:
    """Print a ranking with what a reader must know of it."""
    if ranked is None:
        say(f"{path}: no finished run with a reward yet, so there is no ranking")
        return
    wide_console().print(_table(ranked, path))
    for note in _notes(ranked):
        say(note)


def _table(ranked: Ranking, path: Path) -> Table:
    where = f" over {len(ranked.tasks)} tasks" if len(ranked.tasks) > 1 else ""
    title = f"{path}: reward at {ranked.tokens:,.0f} generated tokens, interquartile mean over seeds{where} [95 %]"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("algorithm", overflow="fold")
    for name in ("seeds", "reward", f"minus {ranked.first} [95 %]", "shared seeds"):
        table.add_column(name, justify="right", overflow="fold")
    for row in ranked.rows:
        reward = f"{row.score:.3f} {_interval(row.interval)}"
        table.add_row(row.name, str(row.seeds), reward, *_difference(row, ranked.first))
    return table


def _difference(row: Rank, first: str) -> tuple[str, str]:
    if row.name == first:
        return "", ""
    if row.difference is None:
        return "no seed in common", "0"
    return f"{row.difference:+.3f} {_interval(row.difference_interval, '+')}", str(row.shared)


def _interval(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "[one seed]" if interval is None else f"[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def _notes(ranked: Ranking) -> list[str]:
    notes = []
    if any(row.interval is None for row in ranked.rows):
        notes.append("one seed: no interval, and nothing can be concluded from the difference")
    few = [row.seeds for row in ranked.rows if row.interval is not None and row.seeds < FEW_SEEDS]
    if few:
        notes.append(
            f"intervals over {min(few)} seeds are too short: of 3 seeds they hold the truth in 74 % of all cases, of 5 in 90 %, of 8 in 93 %"
        )
    notes += [f"left out ({why}): {run}" for run, why in ranked.left_out.items()]
    return notes
