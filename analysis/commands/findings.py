"""What `opo verify` makes of the pools and runs on disk: the study's tables and figures, the curves, the ledger, the page and their records in W&B.

Its workers call these, so that the command itself starts and waits without torch.
"""

from dataclasses import replace
from pathlib import Path

import polars as pl
from rich import box
from rich.table import Table as RichTable

from analysis.claims.evidence import Material
from analysis.claims.files import write_ledgers
from analysis.claims.ledger import judge, save
from analysis.claims.records import evidence_of
from analysis.plots import runs as figures_runs
from analysis.plots.study import write_figures
from analysis.plots.style import save as save_figure
from analysis.report.page import write_report
from analysis.report.runs import WINDOW, ends
from analysis.report.terminal import ledger_table
from analysis.runs.groups import with_groups
from analysis.runs.load import load as load_runs
from analysis.study import run as study
from analysis.study.config import VarianceConfig
from analysis.study.result import load as load_study
from analysis.study.tables import moments_table
from analysis.tracking.record import record

__all__ = ["conclude", "conclude_study", "measure_shard", "record", "study_figures", "study_ledgers", "write_curves"]


def measure_shard(chosen: VarianceConfig, shard: str, folder: Path) -> None:
    """One shard of the study's pools."""
    study.measure(replace(chosen, shard=shard), folder)


def conclude_study(chosen: VarianceConfig, folder: Path) -> None:
    """The study's tables, from its pools."""
    study.conclude(chosen, folder)


def study_figures(folder: Path) -> None:
    """The figures of the study in this folder."""
    write_figures(load_study(folder), folder / "figures")


def study_ledgers(folder: Path) -> None:
    """The ledgers of its policies."""
    write_ledgers(load_study(folder), folder)


def write_curves(folder: Path) -> None:
    """The figures of the trainings."""
    runs = with_groups(load_runs(folder))
    for metric in figures_runs.CURVES:
        curves = figures_runs.training_curves(runs, metric, by="group", window=WINDOW)
        save_figure(curves, folder / "figures", metric.replace("/", "-"))
    by_tokens = figures_runs.training_curves(runs, "train/reward_mean", x="train/tokens", by="group", window=WINDOW)
    save_figure(by_tokens, folder / "figures", "reward-against-tokens")


def conclude(folder: Path) -> tuple[Path, list[RichTable]]:
    """Ledger and page from what is on disk, and the tables for the terminal.

    Claims about variance are judged at the last policy; variance/ledger/ has those of every policy.
    """
    runs, measured = with_groups(load_runs(folder)), load_study(folder / "variance")
    ledger = judge(evidence_of(Material(measured.only(measured.last_policy), runs=runs, folder=folder)))
    save(ledger, folder)
    save_figure(figures_runs.ledger(ledger), folder / "figures", "ledger")
    return write_report(folder), [runs_table(runs), moments_table(measured), ledger_table(ledger)]


def runs_table(runs: pl.DataFrame) -> RichTable:
    """What the trainings came to."""
    block = ends(runs)
    table = RichTable(title=block.caption, title_justify="left", box=box.SIMPLE_HEAD)
    for name in block.columns:
        table.add_column(name, justify="left" if name == "algorithm" else "right")
    for row in block.rows:
        table.add_row(*row)
    return table
