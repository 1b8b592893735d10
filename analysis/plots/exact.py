"""Figures of enumerable policies: exact values, so there are no intervals."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.plots.style import INK, axes, colour, marker, styled
from analysis.variance.exact import Population


@styled()
def parabola(population: Population, ax: Axes | None = None) -> Axes:
    """Variance of one response's gradient estimate (r - b) z against its baseline b, with the baselines that have a name."""
    named = {
        "none": ("no baseline", 0.0),
        "group_mean": ("mean reward", population.mean_reward),
        "length_weighted": ("length-weighted (OPO)", population.length_baseline),
        "score_norm_weighted": ("score-norm-weighted: the best", population.best_baseline),
    }
    low, high = min(b for _, b in named.values()), max(b for _, b in named.values())
    room = 0.25 * (high - low or 1.0)
    places = np.linspace(low - room, high + room, 200)
    ax = axes(ax)
    ax.plot(places, [population.variance(b) for b in places], color=INK, linewidth=1.2)
    for estimator, (name, b) in named.items():
        style: dict[str, Any] = {"color": colour(estimator, [estimator]), "marker": marker(estimator, [estimator])}
        ax.plot([b], [population.variance(b)], linestyle="", markersize=8, label=f"{name}: b = {b:.3f}", **style)
    ax.set(xlabel="baseline b", ylabel="tr Cov((r − b) z)")
    ax.grid(axis="y")
    ax.legend(loc="best")
    return ax
