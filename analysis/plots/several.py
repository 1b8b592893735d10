"""Several studies in one figure: a row for every policy, a marker for every estimator."""

from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.plots.intervals import WIDEST, draw_intervals, ratio_axis
from analysis.plots.style import axes, colour, is_hollow, marker, styled
from analysis.study.several import Looked, ratio


@styled()
def ratio_across(looked: Sequence[Looked], estimators: Sequence[str], ax: Axes | None = None) -> Axes:
    """Relative variance over the reference's, paired over the same responses, at each study's default group size; the first policy on top."""
    ax = axes(ax, 6.4, 1.3 + (0.16 + 0.12 * len(estimators)) * len(looked))
    apart = 0.72 / len(estimators)
    names = list(estimators)
    for turn, name in enumerate(names):
        rows = pl.DataFrame([ratio(each, name) for each in reversed(looked)], infer_schema_length=None)
        offset = (turn - (len(names) - 1) / 2) * apart
        colours = [colour(name, names)] * len(looked)
        draw_intervals(ax, rows, colours=colours, span=(1 / WIDEST, WIDEST), lower=offset, shape=marker(name, names))
    ax.set_yticks(range(len(looked)), [each.label for each in reversed(looked)])
    ax.set_ylim(-0.6, len(looked) - 0.4)
    ratio_axis(ax, f"relative gradient variance over {looked[0].study.settings['reference']}'s, below 1: less noise")
    keys = [
        Line2D(
            [],
            [],
            color=colour(name, names),
            marker=marker(name, names),
            label=name,
            markerfacecolor="none" if is_hollow(name) else colour(name, names),
        )
        for name in names
    ]
    ax.legend(handles=keys, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(keys)))
    return ax
