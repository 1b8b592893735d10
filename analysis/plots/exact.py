"""Figures of enumerable policies: exact values, so there are no intervals."""

import numpy as np
from matplotlib.axes import Axes

from analysis.plots.style import FAINT, INK, PALETTE, axes, styled
from analysis.variance.exact import Population


@styled()
def parabola(population: Population, ax: Axes | None = None) -> Axes:
    """Variance of one response's gradient estimate (r - b) z against its baseline b, with the baselines that have a name."""
    named = {
        "no baseline": 0.0,
        "mean reward": population.mean_reward,
        "length-weighted (OPO)": population.length_baseline,
        "score-norm-weighted: the best": population.best_baseline,
    }
    low, high = min(named.values()), max(named.values())
    room = 0.25 * (high - low or 1.0)
    places = np.linspace(low - room, high + room, 200)
    ax = axes(ax)
    ax.plot(places, [population.variance(b) for b in places], color=INK, linewidth=1.2)
    for (name, b), colour, marker in zip(
        named.items(), (FAINT, PALETTE[1], PALETTE[0], PALETTE[2]), "sD^o", strict=True
    ):
        ax.plot(
            [b],
            [population.variance(b)],
            marker=marker,
            linestyle="",
            markersize=8,
            color=colour,
            label=f"{name}: b = {b:.3f}",
        )
    ax.set(xlabel="baseline b", ylabel="tr Cov((r − b) z)")
    ax.grid(axis="y")
    ax.legend(loc="best")
    return ax
