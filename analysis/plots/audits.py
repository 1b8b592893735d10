"""Figures of OPO's assumptions over training and in each part of the model, with intervals."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from matplotlib.axes import Axes

from analysis.plots.style import FAINT, INK, MARKERS, axes, styled
from analysis.study.result import Study

# all of these are one where OPO's assumptions hold exactly
ASSUMED_ONE = {
    "norm_length_exponent": "exponent of length in |z|²",
    "norm_length_r2": "share of log |z|² that length explains",
    "token_orthogonality": "|Σ z_t|² over Σ|z_t|²",
}
LABELS = ASSUMED_ONE | {
    "norm2_share": "share of |z|² in this part of the model",
    "best_gain": "most that a weighted baseline could gain",
}

SHADES = (INK, "#7d6bb3", FAINT)  # what is no estimator and no algorithm has none of their colours


@styled()
def audits_over_training(study: Study, measures: Sequence[str] = tuple(ASSUMED_ONE), ax: Axes | None = None) -> Axes:
    """Audits of the whole score at every checkpoint of a study, against the training step."""
    ax, names = axes(ax), list(measures)
    rows = study.audits.filter(pl.col("step").is_not_null(), scope="all")
    steps = sorted(rows["step"].unique())
    apart = 0.012 * max(1, steps[-1] - steps[0])
    for i, name in enumerate(names):
        mine = rows.filter(measure=name).drop_nulls("value").sort("step")
        at = [step + (i - (len(names) - 1) / 2) * apart for step in mine["step"]]
        shade = SHADES[i % len(SHADES)]
        ax.plot(at, mine["value"], color=shade, marker=MARKERS[i % len(MARKERS)], label=LABELS.get(name, name))
        for x, row in zip(at, mine.iter_rows(named=True), strict=True):
            _interval(ax, x, row, shade, vertical=True)
    ax.axhline(1, color=FAINT, linestyle="--", linewidth=1, zorder=0)
    ax.set_xticks(steps)
    ax.set(xlabel="training step of the checkpoint", ylabel="1 where OPO's assumptions hold")
    ax.grid(axis="y")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


@styled()
def audit_by_part(study: Study, measure: str = "norm_length_exponent", ax: Axes | None = None) -> Axes:
    """An audit of each part of the model, at the first and the last policy of a study."""
    policies = list(dict.fromkeys([study.policies[0]["name"], study.last_policy]))
    rows = study.audits.filter(pl.col("scope") != "all", measure=measure)
    parts = rows["scope"].unique(maintain_order=True).to_list()
    ax = axes(ax, height=1.6 + 0.28 * len(parts))
    for i, policy in enumerate(policies):
        mine = rows.filter(policy=policy).drop_nulls("value")
        at = [parts.index(part) + (i - (len(policies) - 1) / 2) * 0.3 for part in mine["scope"]]
        style: dict[str, Any] = {"color": SHADES[-1 - i], "marker": MARKERS[i]}
        ax.plot(mine["value"], at, linestyle="", label=study.policy(policy)["label"], **style)
        for y, row in zip(at, mine.iter_rows(named=True), strict=True):
            _interval(ax, y, row, SHADES[-1 - i], vertical=False)
    if measure in ASSUMED_ONE:
        ax.axvline(1, color=FAINT, linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(range(len(parts)), parts)
    ax.invert_yaxis()
    ax.set_xlabel(LABELS.get(measure, measure))
    ax.grid(axis="x")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def _interval(ax: Axes, at: float, row: dict[str, Any], shade: str, vertical: bool) -> None:
    """The interval as a line; an arrow where an end is unbounded."""
    ends = [row["value"] if row[end] is None else row[end] for end in ("low", "high")]
    ax.plot(*(([at, at], ends) if vertical else (ends, [at, at])), color=shade, linewidth=1, solid_capstyle="butt")
    for end, points in (("low", -24), ("high", 24)):
        if row[end] is None:
            place, offset = ((at, row["value"]), (0, points)) if vertical else ((row["value"], at), (points, 0))
            arrow = {"arrowstyle": "<-", "color": shade, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", place, offset, textcoords="offset points", arrowprops=arrow)
