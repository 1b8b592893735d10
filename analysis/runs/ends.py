"""Where a training ended: one number a run, at a number of generated tokens that the runs compared all have."""

import polars as pl

LAST_TENTH = 0.1  # the part of the steps that "at equal tokens" looks at


def common_tokens(metrics: pl.DataFrame) -> float:
    """Generated tokens that every run has; 0 where there is no step."""
    return float(metrics.group_by("run").agg(pl.col("train/tokens").max())["train/tokens"].min() or 0.0)  # pyright: ignore


def final_values(metrics: pl.DataFrame, metric: str, tokens: float, by: str = "seed") -> dict:
    """By seed, or another column: the metric's mean over the last tenth of the steps (at least one) within that number of generated tokens."""
    ends = {}
    for (key,), run in metrics.filter(pl.col("train/tokens") <= tokens).group_by(by, maintain_order=True):
        values = run.sort("step").tail(max(1, round(LAST_TENTH * len(run))))[metric].drop_nulls()
        if len(values):
            ends[key] = float(values.mean())  # pyright: ignore[reportArgumentType]
    return ends
