"""The ranking of a study on the terminal: at the end of a sweep, and of `opo runs rank=true`."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.report.ranking import notes, ranking_table
from analysis.runs.load import load, run_folders
from analysis.runs.ranking import Ranking, ranking
from analysis.runs.states import run_states
from opo.system.console import wide_console
from opo.system.terminal import say


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
    wide_console().print(ranking_table(ranked, str(path)))
    for note in notes(ranked):
        say(note)
