"""Figures of a variance study: fn(study, ..., ax=None) -> Axes, an interval wherever there is a number.

`study` is what `analysis.study.result.load` returns: tidy tables with one estimate and its 95 % interval in a row. A
bound that the data does not give (null) is drawn as an arrow to the edge, never left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from analysis.plots.intervals import WIDEST, draw_intervals, log_span, log_when_wide, plain_log_ticks, ratio_axis
from analysis.plots.style import FAINT, INK, axes, colour, is_hollow, marker, styled
from analysis.study.result import Study
from analysis.variance.text import interval_text

LABELS = {
    "relative_variance": "relative variance  tr Cov(g) / |E g|²",
    "trace_cov": "trace of covariance  tr Cov(g)",
    "cosine": "cosine of E g with the true gradient",
    "bias": "bias |E g − ∇J| / |∇J|",
    "snr": "signal-to-noise ratio |E g|² / tr Cov(g)",
}

# in figures of lines; group_mean is leave_one_out there, and more would hide one another
MAIN = (
    "length_weighted",
    "leave_one_out",
    "none",
    "length_weighted_loo",
    "score_norm_weighted",
    "score_norm_weighted_loo",
    "group_standardized",
)
WITHIN, FITTED = "#8fa8bf", "#7d6bb3"  # no estimator's colours


@styled()
def forest(study: Study, policy: str | None = None, group_size: int | None = None, ax: Axes | None = None) -> Axes:
    """Relative variance of every estimator, with its bias beside it: one group's estimate of one prompt's gradient."""
    rows = study.select("relative_variance", policy, group_size)
    rows = rows.sort("value", descending=True, nulls_last=False)
    names = rows["estimator"].to_list()
    ax = axes(ax, 7.4, 1.1 + 0.34 * len(names))
    draw_intervals(ax, rows, span=log_span(rows))
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel(LABELS["relative_variance"])
    log_when_wide(ax, rows, "x")
    ax.grid(axis="x")
    beside = ax.inset_axes((1.05, 0, 0.42, 1))
    bias = _in_order(study.select("bias", policy, group_size), names)
    draw_intervals(beside, bias, scale=100)
    beside.set(yticks=range(len(names)), yticklabels=[], ylim=ax.get_ylim(), xlabel="bias, % of |∇J|")
    beside.axvline(0, color=INK, linewidth=0.8)
    beside.grid(axis="x")
    info = study.policy(rows["policy"][0])
    ax.set_title(
        f"{info['label']}: groups of {rows['group_size'][0]}, {info['prompts']} prompts × {info['responses']} responses"
    )
    return ax


@styled()
def ratio_forest(
    study: Study, policy: str | None = None, group_size: int | None = None, ax: Axes | None = None
) -> Axes:
    """Relative variance over the reference's, paired over the same rollouts: left of one is less noise for the same signal."""
    rows = study.compare(policy, group_size).sort("value", descending=True, nulls_last=False)
    names = rows["estimator"].to_list()
    ax = axes(ax, 6.4, 1.1 + 0.34 * len(names))
    draw_intervals(ax, rows, span=(1 / WIDEST, WIDEST))
    ax.set_yticks(range(len(names)), names)
    ratio_axis(ax, f"relative variance, as a multiple of {rows['reference'][0]}'s")
    ax.set_title(f"{study.policy(rows['policy'][0])['label']}: groups of {rows['group_size'][0]}")
    return ax


@styled()
def against_group_size(
    study: Study,
    policy: str | None = None,
    measure: str = "relative_variance",
    estimators: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A measure against the group size, one line an estimator, side by side so that intervals do not hide one another."""
    rows = study.moments.filter(measure=measure, policy=study.named(policy))
    rows = _only(rows, estimators)
    ax = axes(ax)
    _lines(ax, rows, "group_size")
    sizes = sorted(rows["group_size"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set(xlabel="group size G", ylabel=LABELS.get(measure, measure))
    log_when_wide(ax, rows, "y")
    ax.grid(axis="y")
    _legend(ax)
    return ax


@styled()
def equal_variance(
    study: Study, policy: str | None = None, group_size: int | None = None, ax: Axes | None = None
) -> Axes:
    """How many responses the reference needs for the relative variance that each estimator has with G."""
    size = group_size or study.default_group_size
    rows = study.equal_variance.filter(policy=study.named(policy), group_size=size).sort("value", nulls_last=True)
    names = rows["estimator"].to_list()
    ax = axes(ax, 6.4, 1.1 + 0.34 * len(names))
    draw_intervals(ax, rows, span=(0, 4 * size))
    ax.axvline(size, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel(f"group size at which {rows['reference'][0]} has the same relative variance")
    ax.set_title(f"each at G = {size}")
    ax.grid(axis="x")
    return ax


@styled()
def over_training(
    study: Study,
    group_size: int | None = None,
    measure: str = "relative_variance",
    estimators: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A measure at every checkpoint of a study, against the training step."""
    rows = study.moments.filter(measure=measure, group_size=group_size or study.default_group_size)
    rows = _only(rows, estimators).filter(pl.col("step").is_not_null())
    ax = axes(ax)
    _lines(ax, rows, "step")
    ax.set_xticks(sorted(rows["step"].unique()))
    ax.set(xlabel="training step of the checkpoint", ylabel=LABELS.get(measure, measure))
    log_when_wide(ax, rows, "y")
    ax.grid(axis="y")
    _legend(ax)
    return ax


@styled()
def within_between(
    study: Study, policy: str | None = None, group_size: int | None = None, ax: Axes | None = None
) -> Axes:
    """Share of a batch gradient's variance that comes from sampling responses; the rest is that prompts differ.

    A baseline can lower the first part alone.
    """
    rows = study.select("within_share", policy, group_size).sort("value", nulls_last=True)
    names = rows["estimator"].to_list()
    ax = axes(ax, 6.4, 1.1 + 0.34 * len(names))
    shares = [100 * (value or 0.0) for value in rows["value"]]
    ax.barh(range(len(names)), shares, color=WITHIN, height=0.6, label="within a prompt (a baseline can lower it)")
    rest = [100 - share for share in shares]
    ax.barh(range(len(names)), rest, left=shares, color=FAINT, alpha=0.35, height=0.6, label="between prompts")
    draw_intervals(ax, rows, scale=100, colours=[INK] * len(names), points=False)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="share of the variance of a batch gradient, %", xlim=(0, 100))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


@styled()
def norm_against_length(study: Study, policy: str | None = None, ax: Axes | None = None) -> Axes:
    """Squared score norm of every response against its length, with the fitted power law and OPO's assumption (exponent 1)."""
    name = study.named(policy)
    points = study.responses.filter(policy=name)
    fit = study.audit("norm_length_exponent", name)
    length, norm2 = points["length"].to_numpy(), points["norm2"].to_numpy()
    keep = norm2 > 0
    length, norm2 = length[keep], norm2[keep]
    ax = axes(ax)
    places_M2, counts_M = np.unique(np.stack([length, norm2.round(12)], axis=1), axis=0, return_counts=True)
    sizes_M = 9 * np.sqrt(counts_M)  # a response that was drawn several times is one larger point
    ax.scatter(*places_M2.T, s=sizes_M, color=WITHIN, alpha=0.45, linewidths=0, rasterized=len(counts_M) > 3000)
    span = np.geomspace(length.min(), length.max(), 50)
    centre = (np.exp(np.log(length).mean()), np.exp(np.log(norm2).mean()))

    def power(exponent: float) -> np.ndarray:
        return centre[1] * (span / centre[0]) ** exponent

    if fit["value"] is not None:
        interval = interval_text(fit["value"], fit["low"], fit["high"])
        ax.plot(span, power(fit["value"]), color=FITTED, label=f"fitted within prompts: exponent {interval}")
        if fit["low"] is not None and fit["high"] is not None:
            ax.fill_between(span, power(fit["low"]), power(fit["high"]), color=FITTED, alpha=0.2, linewidth=0)
    ax.plot(span, power(1.0), color=INK, linestyle="--", linewidth=1.2, label="exponent 1 (norm² ∝ length)")
    ax.set(xscale="log", yscale="log", xlabel="response length, tokens", ylabel="squared score norm ‖z‖²")
    ax.set_ylim(norm2.min() / 2, norm2.max() * 2)  # the band may reach much further
    plain_log_ticks(ax, "x")
    ax.legend(loc="best")
    return ax


def _only(rows: pl.DataFrame, estimators: Sequence[str] | None) -> pl.DataFrame:
    """The estimators in `estimators`; by default those of `MAIN`, or all where none of them was measured."""
    main = rows.filter(pl.col("estimator").is_in(MAIN))
    if estimators is None:
        return rows if main.is_empty() else main
    return rows.filter(pl.col("estimator").is_in(list(estimators)))


def _in_order(rows: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"estimator": names}).join(rows, on="estimator", how="left", maintain_order="left")


def _lines(ax: Axes, rows: pl.DataFrame, x: str) -> None:
    """One line per estimator against `x` with vertical intervals, shifted slightly sideways so that none hides another."""
    shown = rows["estimator"].unique(maintain_order=True).to_list()
    values = sorted(rows[x].unique())
    log = x == "group_size"
    step = 0.05 if log else 0.012 * max(1e-9, (values[-1] - values[0]) or 1.0)
    finite = [v for v in (*rows["value"], *rows["high"]) if v is not None]
    top = max(finite, default=1.0)
    for i, name in enumerate(shown):
        mine = rows.filter(estimator=name).sort(x).filter(pl.col("value").is_not_null())
        shift = (i - (len(shown) - 1) / 2) * step
        at = [value * 2**shift if log else value + shift for value in mine[x]]
        y = np.array(mine["value"].to_list())
        low = np.array([v if v is not None else y[j] for j, v in enumerate(mine["low"])])
        high = np.array([v if v is not None else top for v in mine["high"]])
        style: dict[str, Any] = {"color": colour(name, shown), "marker": marker(name, shown)}
        if is_hollow(name):
            style |= {"markerfacecolor": "none", "linestyle": "--"}
        ax.errorbar(at, y, yerr=np.clip([y - low, high - y], 0, None), label=name, elinewidth=1, capsize=0, **style)


def _legend(ax: Axes) -> None:
    """The legend, to the right of the axes."""
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
