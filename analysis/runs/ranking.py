"""The runs of a study, ranked: interquartile means over seeds with bootstrap intervals, and paired differences to the first algorithm.

A run's score is its mean reward over the last tenth of the steps that fit into the generated tokens which every finished run has. The
interquartile mean of n scores leaves out the floor(n/4) lowest and as many highest and averages the rest (of fewer than four runs it is
the mean). Runs on several tasks are pooled; the bootstrap is stratified: it draws the seeds of each task separately. A difference is
that of two interquartile means over the (task, seed) that both have, and each resample draws the same seeds for both.

Intervals are percentile intervals. They are too short for few seeds; of normal scores they hold the truth in

    2 seeds 48 %, 3 seeds 74 %, 4 seeds 88 %, 5 seeds 90 %, 8 seeds 93 %, 20 seeds 94.5 %      (`tests/analysis/runs/test_ranking.py`)

Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, arXiv 2108.13264 (rliable).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis.runs.ends import common_tokens, final_values
from analysis.runs.groups import with_groups
from analysis.runs.load import Runs
from analysis.variance.intervals import resample_counts
from opo.system.records import read_json

Array = NDArray[np.float64]
Scores = Mapping[tuple[str, int], float]  # (task, seed) -> score
METRIC = "train/reward_mean"
RESAMPLES = 20_000
LEVEL = 0.95


@dataclass(frozen=True)
class Rank:
    """One algorithm, or one setting of it. An interval is None where every task has one seed alone."""

    name: str
    seeds: int  # the fewest of a task
    score: float
    interval: tuple[float, float] | None
    shared: int  # seeds that the difference is over, the fewest of a task; 0: none
    difference: float | None  # to the first algorithm; None for that itself
    difference_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Ranking:
    """`rows` from the highest score to the lowest; `first` is what the differences are to; `left_out` says of a run why it does not count."""

    tokens: float
    tasks: list[str]
    first: str
    rows: list[Rank]
    left_out: dict[str, str]


def ranking(runs: Runs, in_order: bool = False, resamples: int = RESAMPLES) -> Ranking | None:
    """Rank finished runs; None where none has a score. The first algorithm is that of the run that was started first, or with `in_order`
    that of the first run given.
    """
    metrics, done = runs.metrics, runs.runs
    if METRIC not in metrics.columns or metrics.is_empty():
        return None
    tokens = common_tokens(metrics)
    ends = final_values(metrics, METRIC, tokens, by="run")
    names, tasks = _names(runs), _tasks(done)
    left_out = dict.fromkeys(done["run"], "no reward")
    scores: dict[str, dict[tuple[str, int], float]] = {}
    for row in sorted(done.iter_rows(named=True), key=lambda row: "" if in_order else _started(row)):
        run, key = row["run"], (tasks[row["run"]], row["seed"])
        mine = scores.setdefault(names[run], {}) if run in ends else {}
        if key in mine:
            left_out[run] = "the settings and seed of another"
        elif run in ends:
            mine[key] = ends[run]
            del left_out[run]
    if not scores:
        return None
    first = next(iter(scores))
    rows = [_rank(name, mine, scores[first] if name != first else None, resamples) for name, mine in scores.items()]
    return Ranking(tokens, sorted(set(tasks.values())), first, sorted(rows, key=lambda r: -r.score), left_out)


def interquartile_mean(scores_N: Array, counts_BN: Array) -> Array:
    """The interquartile mean of each resample, (B,), with counts how often it holds each score; rows of one sum n.

    Of the n sorted values those of rank floor(n/4) + 1 to n - floor(n/4) are averaged, as scipy.stats.trim_mean does with 0.25.
    """
    order = np.argsort(scores_N, kind="stable")
    upto_BN = np.cumsum(counts_BN[:, order], axis=1)
    size = round(float(upto_BN[0, -1]))
    cut = size // 4
    kept_BN = np.diff(np.clip(upto_BN, cut, size - cut), axis=1, prepend=cut)
    return kept_BN @ scores_N[order] / (size - 2 * cut)


def _rank(name: str, mine: Scores, first: Scores | None, resamples: int) -> Rank:
    seeds, interval = _seeds(mine), None
    keys = sorted(mine)
    counts_BN = _resampled(keys, resamples)
    values = np.array([mine[key] for key in keys])
    score = float(interquartile_mean(values, np.ones((1, len(keys))))[0])
    if counts_BN is not None:
        interval = _percentiles(interquartile_mean(values, counts_BN))
    shared = [key for key in keys if first is not None and key in first]
    if not shared or first is None:
        return Rank(name, seeds, score, interval, 0, None, None)
    pair = [np.array([scores[key] for key in shared]) for scores in (mine, first)]
    whole_BN, counts_BN = np.ones((1, len(shared))), _resampled(shared, resamples)
    own, base = (float(interquartile_mean(values, whole_BN)[0]) for values in pair)
    between = None
    if counts_BN is not None:
        between = _percentiles(interquartile_mean(pair[0], counts_BN) - interquartile_mean(pair[1], counts_BN))
    return Rank(name, seeds, score, interval, _seeds(dict.fromkeys(shared, 0.0)), own - base, between)


def _resampled(keys: Sequence[tuple[str, int]], resamples: int) -> Array | None:
    """How often each (task, seed) is drawn, (B, N): the seeds of each task among themselves; None where no task has two."""
    rng, parts = np.random.default_rng(0), []
    sizes = [sum(task == other for other, _ in keys) for task in dict.fromkeys(task for task, _ in keys)]
    for size in sizes:
        parts.append(resample_counts(size, resamples, rng))
    return np.concatenate(parts, axis=1) if max(sizes) > 1 else None


def _percentiles(values_B: Array) -> tuple[float, float]:
    low, high = np.quantile(values_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _seeds(scores: Scores) -> int:
    counts: dict[str, int] = {}
    for task, _ in scores:
        counts[task] = counts.get(task, 0) + 1
    return min(counts.values())


def _names(runs: Runs) -> dict[str, str]:
    """By run, its algorithm and what else tells it from the others, the task apart."""
    same = runs.runs.with_columns(pl.lit("").alias("task")).drop(
        [column for column in runs.runs.columns if column.startswith("task.")]
    )
    named = with_groups(Runs(runs.metrics, same)).select("run", "group").unique()
    return dict(zip(named["run"], named["group"], strict=True))


def _tasks(table: pl.DataFrame) -> dict[str, str]:
    """By run, its task and the options in which tasks differ."""
    keys = [column for column in table.columns if column.startswith("task.") and table[column].n_unique() > 1]
    return {
        row["run"]: " ".join([row["task"], *(f"{key.removeprefix('task.')}={row[key]}" for key in keys)])
        for row in table.iter_rows(named=True)
    }


def _started(row: Mapping[str, str]) -> str:
    return str(read_json(Path(row["path"]) / "run.json").get("started", ""))
