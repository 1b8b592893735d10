"""Figures of training runs and of the ledger: fn(table, ..., ax=None) -> Axes, the spread over seeds always drawn.

`runs` is a tidy table with one row per run and step: a column that names the group, `seed`, `step` and the logged
metrics.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student

from analysis.plots.style import FAINT, INK, axes, colour, figure_of, styled
from analysis.variance.text import interval_text

AXIS_LABELS = {
    "step": "rollout batches",
    "train/tokens": "generated tokens",
    "train/reward_mean": "mean reward",
    "eval/reward_mean": "mean reward on held-out prompts",
    "train/kl_init_nats": "KL to the start, nats per token",
    "train/entropy_mean_nats": "entropy, nats per token",
    "length/tokens_mean": "mean response length, tokens",
    "train/grad_norm": "gradient norm",
    "train/clip_fraction": "share of tokens that are clipped",
    "train/ratio_max": "largest importance ratio",
}
CURVES = ("train/reward_mean", "train/kl_init_nats", "train/entropy_mean_nats", "length/tokens_mean")
VERDICT_COLOURS = {"supported": "#009e73", "refuted": "#d55e00", "not resolved": FAINT}


@styled()
def training_curves(
    runs: pl.DataFrame,
    metric: str = "train/reward_mean",
    *,
    x: str = "step",
    by: str = "algo",
    window: int = 1,
    order: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean over seeds with the 95 % Student interval of that mean as a band; each seed as a thin line.

    `window` averages each seed over so many neighbouring steps first. Against tokens, each seed is interpolated onto
    common places, as far as its shortest run goes.
    """
    names = list(order or runs[by].unique(maintain_order=True))
    ax = axes(ax)
    for name in names:
        shade = colour(name, names)
        at, values_SX = curves(runs.filter(pl.col(by) == name), metric, x, window)
        if not len(at):
            continue
        mean = values_SX.mean(0)
        for row in values_SX:
            ax.plot(at, row, color=shade, linewidth=0.6, alpha=0.35)
        ax.plot(at, mean, color=shade, label=f"{name} ({len(values_SX)} seed{'s' if len(values_SX) > 1 else ''})")
        if len(values_SX) > 1:
            half = student.ppf(0.975, len(values_SX) - 1) * values_SX.std(0, ddof=1) / np.sqrt(len(values_SX))
            ax.fill_between(at, mean - half, mean + half, color=shade, alpha=0.15, linewidth=0)
    smooth = f", mean of {window} steps" if window > 1 else ""
    ax.set(xlabel=AXIS_LABELS.get(x, x), ylabel=AXIS_LABELS.get(metric, metric) + smooth)
    low, high = _span(ax)
    ax.set_ylim(low, high)
    if x == "train/tokens":
        ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.grid(axis="y")
    ax.legend(loc="best")
    return ax


@styled()
def training_panels(
    runs: pl.DataFrame, metrics: Sequence[str] = CURVES[1:], *, x: str = "step", by: str = "algo", window: int = 1
) -> Axes:
    """Several metrics side by side, as `training_curves` draws them, with one legend; those that no run has are left out. Returns the first."""
    present = [metric for metric in metrics if metric in runs.columns and runs[metric].count()]
    row = Figure(figsize=(3.4 * len(present), 3.3), layout="constrained").subplots(1, len(present), squeeze=False)[0]
    for metric, ax in zip(present, row, strict=True):
        training_curves(runs, metric, x=x, by=by, window=window, ax=ax)
        ax.set_ylabel(AXIS_LABELS.get(metric, metric))
        ax.set_xlabel(AXIS_LABELS.get(x, x) + (f" (mean of {window})" if window > 1 else ""))
    handles, labels = row[0].get_legend_handles_labels()
    for ax in row:
        ax.get_legend().remove()
    figure_of(row[0]).legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return row[0]


def curves(runs: pl.DataFrame, metric: str, x: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (X,) and one row of values per seed (S, X), over the range that all seeds cover."""
    series = []
    for _, run in runs.group_by("seed", maintain_order=True):
        run = run.sort("step").filter(pl.col(metric).is_not_null())
        values = run[metric].to_numpy()
        width = min(window, len(values))
        if width:
            kernel = np.ones(width) / width
            series.append((np.convolve(run[x].to_numpy(), kernel, "valid"), np.convolve(values, kernel, "valid")))
    if not series:
        return np.empty(0), np.empty((0, 0))
    low, high = max(at[0] for at, _ in series), min(at[-1] for at, _ in series)
    same = all(np.array_equal(at, series[0][0]) for at, _ in series)
    places = series[0][0] if same else np.linspace(low, high, 100)
    return places, np.stack([values if same else np.interp(places, at, values) for at, values in series])


def _span(ax: Axes) -> tuple[float, float]:
    """Limits from the lines alone, so that a very wide band does not flatten them."""
    values = (
        np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines])
        if ax.lines
        else np.array([0.0, 1.0])
    )
    low, high = float(values.min()), float(values.max())
    room = 0.15 * ((high - low) or abs(high) or 1.0)
    return low - room, high + room


@styled()
def ledger(claims: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """The ledger as a picture: each claim, what it was measured on, its effect with interval, its threshold, its verdict."""
    rows = [(c["claim"], about_text(c), effect_text(c), threshold_text(c), c["verdict"]) for c in claims]
    columns, widths = ("claim", "measured on", "effect [95 %]", "claimed", "verdict"), (50, 24, 21, 13, 14)
    wrapped = [[textwrap.fill(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    heights = [max(cell.count("\n") + 1 for cell in row) + 0.7 for row in wrapped]
    total = sum(heights) + 1.5
    ax = axes(ax, 10.4, 0.21 * total)
    ax.set(xlim=(0, sum(widths)), ylim=(total, 0))
    ax.axis("off")
    starts = np.cumsum([0, *widths[:-1]])
    for start, name in zip(starts, columns, strict=True):
        ax.text(start, 0.6, name, fontweight="bold", va="center", fontsize=9)
    y = 1.5
    for row, height in zip(wrapped, heights, strict=True):
        ax.plot([0, sum(widths)], [y, y], color=FAINT, linewidth=0.5)
        for i, (start, cell) in enumerate(zip(starts, row, strict=True)):
            shade = VERDICT_COLOURS[row[-1].replace("\n", " ")] if i == len(row) - 1 else INK
            ax.text(
                start,
                y + height / 2,
                cell,
                va="center",
                fontsize=8.5,
                color=shade,
                fontweight="bold" if i == len(row) - 1 else "normal",
            )
        y += height
    return ax


def effect_text(claim: Mapping[str, Any]) -> str:
    """The effect and its interval to three digits; an unbounded end is written `open`."""
    return interval_text(claim["effect"], claim["low"], claim["high"])


def about_text(claim: Mapping[str, Any]) -> str:
    """What the verdict is about: a policy and group size, or groups of runs, and how many replicates."""
    return f"{claim['about']}, {claim['replicates']} {claim['unit']}".removeprefix(", ")


def threshold_text(claim: Mapping[str, Any]) -> str:
    """The region that the effect must lie in."""
    low, high = claim["low_threshold"], claim["high_threshold"]
    if low is None:
        return f"below {high:g}"
    return f"above {low:g}" if high is None else f"{low:g} to {high:g}"
