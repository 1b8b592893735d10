"""What figures with intervals share: horizontal intervals with arrows for open ends, and log scales with plain numbers."""

import math

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.plots.style import FAINT, INK, colour, is_hollow

WIDEST = 8.0  # a ratio beyond this, or below its inverse, is drawn as an arrow


def draw_intervals(
    ax: Axes,
    rows: pl.DataFrame,
    *,
    scale: float = 1.0,
    colours: list[str] | None = None,
    points: bool = True,
    span: tuple[float, float] | None = None,
    lower: float = 0.0,
    shape: str = "o",
) -> None:
    """Horizontal points with their intervals, one row each; an end that is open, or beyond `span`, is an arrow at the edge.

    Rows are drawn `lower` below their places, with markers of one `shape`, so that several sets fit on the same rows.
    """
    finite = [x * scale for x in (*rows["value"], *rows["low"], *rows["high"]) if x is not None]
    left, right = span or (-np.inf, max(finite, default=1.0) * 1.25)
    for place, row in enumerate(rows.iter_rows(named=True)):
        y = place - lower
        shade = colours[place] if colours else colour(row["estimator"], rows["estimator"].to_list())
        hollow = is_hollow(row["estimator"])
        value, low, high = (None if row[k] is None else row[k] * scale for k in ("value", "low", "high"))
        if value is None and low is None:
            where = {
                "xycoords": ("axes fraction", "data"),
                "ha": "right",
                "va": "bottom",
                "fontsize": 8.5,
                "color": FAINT,
            }
            ax.annotate("not resolved", (0.98, y), **where)
            continue
        ends = [left if low is None else max(low, left), right if high is None else min(high, right)]
        if np.isfinite(ends).all():
            ax.plot(ends, [y, y], color=shade, solid_capstyle="butt")
        if high is None or high > right:
            ax.plot([right], [y], marker=">", color=shade, clip_on=False)
        if np.isfinite(left) and (low is None or low < left):
            ax.plot([left], [y], marker="<", color=shade, clip_on=False)
        if points and value is not None and value <= right:
            ax.plot([value], [y], marker=shape, color=shade, markerfacecolor="none" if hollow else shade)
    ax.set_ylim(-0.6, len(rows) - 0.4)


def log_span(rows: pl.DataFrame) -> tuple[float, float] | None:
    """Limits of a log scale, where estimates above zero span more than a factor of eight with their intervals; None: a linear one serves.

    An interval may reach down to zero, which such a scale does not show: `draw_intervals` ends it with an arrow.
    """
    points = [value for value in rows["value"] if value is not None]
    above = [v for column in ("value", "low", "high") for v in rows[column] if v is not None and v > 0]
    if not points or min(points) <= 0 or max(above) / min(above) <= 8:
        return None
    return max(min(above), min(points) / 8) / 1.2, max(above) * 1.2


def log_when_wide(ax: Axes, rows: pl.DataFrame, axis: str) -> None:
    """The log scale of `log_span`, with ticks written as numbers."""
    if (span := log_span(rows)) is not None:
        (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
        (ax.set_xlim if axis == "x" else ax.set_ylim)(*span)
        plain_log_ticks(ax, axis)


def ratio_axis(ax: Axes, label: str) -> None:
    """The horizontal axis of ratios: a line at one, a log scale that ends where ratios become arrows."""
    ax.axvline(1, color=INK, linewidth=0.8)
    ax.set_xscale("log")
    ax.set_xlim(max(ax.get_xlim()[0], 0.9 / WIDEST), min(ax.get_xlim()[1], 1.1 * WIDEST))
    plain_log_ticks(ax, "x")
    ax.set_xlabel(label)
    ax.grid(axis="x")


def plain_log_ticks(ax: Axes, axis: str) -> None:
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 300 else (1,)
    ticks = [m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in steps]
    target = ax.xaxis if axis == "x" else ax.yaxis
    target.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    target.set_minor_locator(NullLocator())
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
