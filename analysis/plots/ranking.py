"""The figure of a ranking of runs."""

import polars as pl
from matplotlib.axes import Axes

from analysis.plots.intervals import draw_intervals
from analysis.plots.style import INK, axes, colour, styled
from analysis.runs.ranking import Ranking


@styled()
def ranking_forest(ranked: Ranking, ax: Axes | None = None) -> Axes:
    """Interquartile mean reward of every algorithm with its interval; beside it the paired difference to the first."""
    rows = ranked.rows[::-1]
    names = [row.name for row in rows]
    shades = [colour(name, names) for name in names]
    ax = axes(ax, 6.4, 1.2 + 0.34 * len(names))
    draw_intervals(ax, _estimates(names, [(row.score, row.interval) for row in rows]), colours=shades)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("mean reward")
    ax.set_title(f"at {ranked.tokens:,.0f} generated tokens")
    ax.grid(axis="x")
    beside = ax.inset_axes((1.05, 0, 0.6, 1))
    shown = [
        (0.0, (0.0, 0.0)) if row.name == ranked.first else (row.difference, row.difference_interval) for row in rows
    ]
    draw_intervals(beside, _estimates(names, shown), colours=shades)
    beside.set(yticks=range(len(names)), yticklabels=[], ylim=ax.get_ylim(), xlabel=f"minus {ranked.first}, same seeds")
    beside.axvline(0, color=INK, linewidth=0.8)
    beside.grid(axis="x")
    return ax


def _estimates(names: list[str], found: list[tuple[float | None, tuple[float, float] | None]]) -> pl.DataFrame:
    """Rows as `draw_intervals` takes them; a point alone where there is no interval."""
    ends = [interval or (value, value) for value, interval in found]
    columns = {
        "value": [value for value, _ in found],
        "low": [low for low, _ in ends],
        "high": [high for _, high in ends],
    }
    return pl.DataFrame({"estimator": names} | columns, schema_overrides=dict.fromkeys(columns, pl.Float64))
