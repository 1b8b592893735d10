"""From trainings and records to one table: what each row came to in training, and what its gradient is at two policies.

Of a gradient only what does not depend on its scale is reported:

    noise       tr Cov(g) / |E g|^2, and over that of the leave-one-out baseline on the same rollouts (paired)
    misses      sqrt(1 - cos^2), cos between E g and grad E[r]: the share of the true gradient that is not along E g, a bias that no
                step size removes; 0 for (1 - 1/G) grad E[r], 1 where nothing of it is along
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import t as student

from analysis.claims.evidence import final_values
from analysis.runs.load import load as load_runs
from analysis.study.result import estimate
from analysis.variance.intervals import if_enough, resample_counts
from analysis.variance.moments import Moments
from analysis.variance.table import table_of
from analysis.zoo.config import ZooConfig
from analysis.zoo.measure import FIELDS, POLICIES, REFERENCE, load_records
from analysis.zoo.rows import Row
from opo.system.seeding import rng_for

TRAINED = {"reward": "train/reward_mean", "entropy": "train/entropy_mean_nats", "kl": "train/kl_init_nats"}
ROUNDING = 1e-9  # of squared cosines, from gradients in float32
SCHEMA: dict[str, Any] = {
    "row": pl.String,
    "policy": pl.String,  # null: of the trainings
    "measure": pl.String,  # reward, entropy, kl; noise, noise_ratio, misses
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "resolved": pl.Boolean,
    "count": pl.Int64,  # seeds, or batches of prompts
}


def results(config: ZooConfig, folder: Path, rows: Sequence[Row], runs: Mapping[str, Sequence[Path]]) -> pl.DataFrame:
    """The table, one estimate a line, of these rows; `runs` are the run folders of each."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        done = [path for path in runs[row.name] if (path / "DONE").exists()]
        if done:
            lines += trained(row.name, load_runs(*done).metrics, config.tokens)
    for policy_name in POLICIES:
        lines += measured(config, policy_name, load_records(config, folder, policy_name, [row.name for row in rows]))
    return pl.DataFrame(lines, schema=SCHEMA)


def trained(name: str, metrics: pl.DataFrame, tokens: int) -> list[dict[str, Any]]:
    """Mean over seeds at the end, with Student's interval where there are several; the end is the last tenth of the steps within `tokens`."""
    lines = []
    for measure, metric in TRAINED.items():
        values = list(final_values(metrics, metric, tokens).values()) if metric in metrics.columns else []
        if values:
            half = math.inf
            if len(values) > 1:
                half = (
                    float(student.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
                )
            mean = float(np.mean(values))
            lines.append(
                {"row": name, "measure": measure, "count": len(values)} | estimate(mean, mean - half, mean + half)
            )
    return lines


def measured(
    config: ZooConfig, policy_name: str, records: Mapping[str, Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Noise and what is missed of every row at one policy; intervals over records."""
    if len(records) < 2:
        return []
    moments = {name: Moments(*(fields[field] for field in FIELDS)) for name, fields in records.items()}
    counts_BR = resample_counts(config.batches, 2000, rng_for(config.seed, "zoo resamples"))
    table = table_of(moments, config.group_size, counts_BR)
    ratios = {difference.name: difference for difference in table.against(REFERENCE)}
    lines = []
    for row in table:
        if row.name == REFERENCE:
            continue
        low, high = if_enough(row.interval("cosine"), config.batches)
        found = {
            "noise": (row.relative_variance, *if_enough(row.interval("relative_variance"), config.batches)),
            "noise_ratio": (ratios[row.name].ratio, *if_enough(ratios[row.name].interval, config.batches)),
            "misses": (missed(row.cosine), missed(high), missed(low)),
        }
        place = {"row": row.name, "policy": policy_name, "count": config.batches}
        lines += [place | {"measure": measure} | estimate(*values) for measure, values in found.items()]
    return lines


def missed(cosine: float) -> float:
    """sqrt(1 - cos^2), 1 where the cosine is not above zero; open where it is not known."""
    if not math.isfinite(cosine):
        return math.nan
    left = 1 - max(0.0, cosine) ** 2
    return math.sqrt(left) if left > ROUNDING else 0.0
