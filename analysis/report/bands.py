"""Training curves with their intervals as numbers, for a place that can draw lines and no interval: three lines a group, over tokens."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from scipy.stats import t as student

from analysis.plots.runs import curves

PLACES = 60  # along the axis
AXIS = "train/tokens"
ENDS = ("mean", "low", "high")


@dataclass(frozen=True)
class Band:
    """One metric of one group: mean over seeds and the 95 % Student interval of that mean (NaN with one seed) at some places."""

    metric: str
    group: str
    at: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    half: np.ndarray = field(repr=False)


def bands(frame: pl.DataFrame, metrics: tuple[str, ...], window: int) -> Iterator[Band]:
    """Of every metric that the runs have and every group, as `analysis.plots.runs.training_curves` draws them."""
    for metric in (name for name in metrics if name in frame.columns and AXIS in frame.columns):
        for (group,), mine in frame.group_by("group", maintain_order=True):
            at, values_SX = curves(mine, metric, AXIS, window)
            if len(at):
                some = np.unique(np.linspace(0, len(at) - 1, PLACES).round().astype(int))
                count = len(values_SX)
                half = np.full(len(at), np.nan)
                if count > 1:
                    half = student.ppf(0.975, count - 1) * values_SX.std(0, ddof=1) / np.sqrt(count)
                yield Band(metric, str(group), at[some], values_SX.mean(0)[some], half[some])
