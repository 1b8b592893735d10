"""Estimators of one's own in a finished study: measured on its pools, over the groups and resamples of its own rows. No model is needed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from analysis.study.result import TABLES, Study, estimate, load
from analysis.study.run import load_pools
from analysis.study.tables import comparison_rows
from analysis.variance.compare import compare
from analysis.variance.estimators import WeightFunction
from opo.errors import UserError
from opo.system.seeding import rng_for


def with_estimators(
    folder: Path,
    functions: Mapping[str, str | WeightFunction],
    policy: str | None = None,
    group_size: int | None = None,
) -> Study:
    """The study in `folder` at one policy (the last) and one group size (the default), with these estimators beside its own.

    `functions`: by name, `fn(rewards_MG, lengths_MG) -> weights_MG` of M independent groups, or a name that `analysis.variance.compare` knows.
    Raises UserError where a name is taken, or the folder has no pools of this policy.
    """
    study = load(folder)
    if taken := set(functions) & set(study.estimators):
        raise UserError(f"{', '.join(sorted(taken))}: the study has an estimator of that name; choose another")
    name, size = study.named(policy), group_size or study.default_group_size
    pools = [pool for pool in load_pools(folder, name) if len(pool) >= 2 * size]
    settings = study.settings | {"estimators": [*study.estimators, *functions], "group_sizes": [size]}
    table = compare(
        pools,
        size,
        {estimator: estimator for estimator in study.estimators} | dict(functions),
        rng_for(study.settings["seed"], "partitions", size),
        num_partitions=study.settings["num_partitions"],
        prompts_per_batch=study.settings["prompts_per_batch"],
        counts_BP=study.resamples(len(pools)),
    )
    where = {"policy": name, "step": study.policy(name)["step"]}
    moments = [where | row | estimate(row["value"], row["low"], row["high"]) for row in table.to_dicts()]
    compared = [where | row for row in comparison_rows(table, study.settings["reference"])]
    return replace(
        study.only(name),
        settings=settings,
        moments=pl.DataFrame(moments, schema=TABLES["moments"]),
        comparisons=pl.DataFrame(compared, schema=TABLES["comparisons"]),
    )
