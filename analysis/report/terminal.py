"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table as RichTable

from analysis.plots import runs as figures_runs


def ledger_table(ledger: Sequence[Mapping[str, Any]]) -> RichTable:
    """The ledger for the terminal."""
    table = RichTable(title="Ledger", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("claim", ratio=5)
    for name in ("measured on", "effect [95 %]", "claimed", "verdict", "would resolve"):
        table.add_column(name, ratio=2)
    for claim in ledger:
        table.add_row(
            claim["claim"],
            figures_runs.about_text(claim),
            figures_runs.effect_text(claim),
            figures_runs.threshold_text(claim),
            claim["verdict"],
            claim["outlook"],
        )
    return table
