"""Tables of a study from its pools: every estimator at every group size, comparisons, audits, and their figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from rich import box
from rich.table import Table as RichTable

from analysis.study.audits import audit_interval, audit_terms, audit_value
from analysis.study.config import VarianceConfig
from analysis.study.pools import PromptPool
from analysis.study.result import Study, default_group_size, estimate, prompt_resamples
from analysis.variance.between_prompts import batch_measures
from analysis.variance.compare import compare
from analysis.variance.equal_variance import equal_variance_group_size
from analysis.variance.estimators import resolve
from analysis.variance.intervals import Array, if_enough
from analysis.variance.pool import Pool
from analysis.variance.table import COMPARABLE, Table
from analysis.variance.text import interval_text
from opo.rounding import all_equal
from opo.run.policies import EvaluatedPolicy
from opo.run.provenance import versions
from opo.system.seeding import rng_for


def analyse(config: VarianceConfig, planned: Sequence[EvaluatedPolicy], pools: Mapping[str, list[PromptPool]]) -> Study:
    """All tables of a study. The same partitions and resamples for every estimator, so that comparisons are paired."""
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("moments", "comparisons", "equal_variance", "audits")
    }
    rows |= {name: [] for name in ("prompts", "audit_terms", "responses")}
    for evaluated in planned:
        mine, where = pools[evaluated.name], {"policy": evaluated.name, "step": evaluated.step}
        for size in config.group_sizes:
            able = [
                pool for pool in mine if len(pool.rewards_R) >= 2 * size
            ]  # rollouts from elsewhere differ in number
            table = _compare(config, able, size)
            estimates = table.to_dicts() + _batch_rows(table, able)
            rows["moments"] += [where | row | estimate(row["value"], row["low"], row["high"]) for row in estimates]
            rows["moments"] += [where | row for row in _sample_size_rows(table)]
            rows["comparisons"] += [where | row for row in comparison_rows(table, config.reference)]
            rows["prompts"] += [
                {"policy": evaluated.name} | row for row in _prompt_rows(table, [pool.prompt_id for pool in able])
            ]
        rows["equal_variance"] += [where | row for row in _equal_variance(config, mine)]
        terms = audit_terms(mine)
        rows["audit_terms"] += [{"policy": evaluated.name} | row for row in terms]
        rows["audits"] += [where | row for row in _audits(config, terms)]
        rows["responses"] += [row for pool in mine for row in _responses(evaluated.name, pool)]
    return Study.of(
        rows,
        settings=_settings(config),
        policies=[_policy(config, s, pools[s.name]) for s in planned],
        versions=versions(),
    )


def meter_pools(pools: Sequence[PromptPool]) -> list[Pool]:
    """The pools as `analysis.variance.compare` takes them."""
    return [Pool(p.gram_RR, p.rewards_R, p.lengths_R, p.logit_energy_R) for p in pools]


def _compare(config: VarianceConfig, pools: Sequence[PromptPool], group_size: int) -> Table:
    rng = rng_for(config.seed, "partitions", group_size)
    return compare(
        meter_pools(pools),
        group_size,
        config.estimators,
        rng,
        num_partitions=config.num_partitions,
        prompts_per_batch=config.prompts_per_batch,
        counts_BP=_resamples(config, len(pools)),
    )


def _resamples(config: VarianceConfig, num_prompts: int) -> Array:
    return prompt_resamples(config.seed, config.num_bootstrap, num_prompts)


def _equal_variance(config: VarianceConfig, pools: Sequence[PromptPool]) -> list[dict[str, Any]]:
    """The reference's group size of equal relative variance; open where that lies outside the sizes measured."""
    size = default_group_size(config.group_sizes)
    meter = meter_pools([pool for pool in pools if len(pool.rewards_R) >= 2 * size])
    coupled = {e.name for e in resolve(config.estimators) if e.couples_prompts}
    rows = []
    for name in config.estimators:
        if name in coupled or name == config.reference or min(len(pool) for pool in meter) < 6:
            continue
        rng, counts_BP = rng_for(config.seed, "equal variance", size), _resamples(config, len(meter))
        equal = equal_variance_group_size(meter, size, name, config.reference, rng, counts_BP=counts_BP)
        low, high = equal.interval
        value = equal.size if equal.size > 0 else np.inf
        rows.append(
            {"estimator": name, "reference": config.reference, "group_size": size}
            | estimate(value, low or np.inf, high)
        )
    return rows


def _batch_rows(table: Table, pools: Sequence[PromptPool]) -> list[dict[str, Any]]:
    """Measures of a batch of prompts, whose gradients differ."""
    gradients_PD = np.stack([pool.gradient_D for pool in pools])
    return [
        {
            "estimator": row.name,
            "group_size": row.group_size,
            "measure": measure,
            "value": value,
            "low": if_enough((low, high), len(pools))[0],
            "high": if_enough((low, high), len(pools))[1],
        }
        for row in table
        for measure, (value, low, high) in batch_measures(row.moments, gradients_PD, row.counts_BP).items()
    ]


def _sample_size_rows(table: Table) -> list[dict[str, Any]]:
    """Effective sample size of each baseline: a mean over all groups, without an interval."""
    return [
        {"estimator": row.name, "group_size": row.group_size, "measure": "effective_sample_size"}
        | estimate(row.effective_sample_size, -np.inf, np.inf)
        for row in table
        if row.effective_sample_size is not None
    ]


def comparison_rows(table: Table, reference: str) -> list[dict[str, Any]]:
    """Relative variance and raw trace of every estimator over the reference's, Holm's correction within each."""
    size = table[reference].group_size
    return [
        {"estimator": d.name, "reference": reference, "group_size": size, "measure": measure}
        | estimate(d.ratio, *if_enough(d.interval, len(table[reference].moments.second)))
        | {"p_value": d.p_value, "p_holm": d.p_holm}
        for measure in COMPARABLE
        for d in table.against(reference, measure)
    ]


def _prompt_rows(table: Table, prompt_ids: list[str]) -> list[dict[str, Any]]:
    """Each prompt's own unbiased moments."""
    return [
        {"prompt_id": prompt_id, "estimator": row.name, "group_size": row.group_size}
        | {name: float(getattr(row.moments, name)[p]) for name in ("second", "signal", "reference", "cross", "error")}
        for row in table
        for p, prompt_id in enumerate(prompt_ids)
    ]


def _audits(config: VarianceConfig, terms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    frame = pl.DataFrame(terms)
    counts_BP = _resamples(config, frame["prompt_id"].n_unique())
    for (scope, measure), group in frame.group_by("scope", "measure", maintain_order=True):
        terms_P3 = group.select("a", "b", "c").to_numpy()
        interval = audit_interval(str(measure), terms_P3, counts_BP)
        rows.append(
            {"scope": scope, "measure": measure}
            | estimate(audit_value(str(measure), terms_P3), *if_enough(interval, len(terms_P3)))
        )
    return rows


def _responses(policy: str, pool: PromptPool) -> list[dict[str, Any]]:
    columns = {
        "reward": pool.rewards_R,
        "length": pool.lengths_R,
        "norm2": np.diag(pool.gram_RR),
        "logit_energy": pool.logit_energy_R,
        "head_norm2": pool.head_norm2_R,
    }
    values = {name: array.tolist() for name, array in columns.items()}
    place = {"policy": policy, "prompt_id": pool.prompt_id}
    return [place | {"response": n} | {k: v[n] for k, v in values.items()} for n in range(len(pool.rewards_R))]


def _settings(config: VarianceConfig) -> dict[str, Any]:
    keys = (
        "estimators",
        "reference",
        "group_sizes",
        "prompts_per_batch",
        "num_bootstrap",
        "num_partitions",
        "seed",
    )
    settings = {key: getattr(config, key) for key in keys}
    rollouts = [str(file) for file in config.rollout_files]
    return settings | {"split": None if rollouts else config.split or "eval", "rollouts": rollouts or None}


def _policy(config: VarianceConfig, evaluated: EvaluatedPolicy, pools: Sequence[PromptPool]) -> dict[str, Any]:
    def mean(arrays: Sequence[Array]) -> float:
        return float(np.concatenate(arrays).mean())

    sizes = [len(pool.rewards_R) for pool in pools]
    return {
        "name": evaluated.name,
        "label": evaluated.label,
        "step": evaluated.step,
        "paths": evaluated.paths,
        "prompts": len(pools),
        "responses": max(sizes),
        "unscorable": sum(pool.unscorable for pool in pools),
        "reward_mean": mean([pool.rewards_R for pool in pools]),
        "length_mean": mean([pool.lengths_R for pool in pools]),
        "entropy_like_nats": float(
            -np.concatenate([p.logprobs_R for p in pools]).sum() / sum(p.lengths_R.sum() for p in pools)
        ),
        "gap_nats": max((pool.gap_nats for pool in pools if not np.isnan(pool.gap_nats)), default=None),
        "prompts_at": {str(size): sum(count >= 2 * size for count in sizes) for size in config.group_sizes},
        "constant_prompts": sum(bool(all_equal(pool.rewards_R)) for pool in pools),
    }


def moments_table(study: Study, policy_name: str | None = None, group_size: int | None = None) -> RichTable:
    """One policy (the last) at one group size (the default), for the terminal."""
    policy, size = study.policy(policy_name), group_size or study.default_group_size
    shown = ("relative_variance", "bias")
    title = f"{policy['label']}: G = {size}, {policy.get('prompts_at', {}).get(str(size), policy['prompts'])} prompts x {policy['responses']} responses, 95 % intervals over prompts"
    table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    for column in ("estimator", "relative variance", "bias", f"ratio to {study.settings['reference']}"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    ratios = {row["estimator"]: row for row in study.compare(policy["name"], size).iter_rows(named=True)}
    cells = {
        m: {row["estimator"]: estimate_text(row) for row in study.select(m, policy["name"], size).iter_rows(named=True)}
        for m in shown
    }
    for name in study.estimators:
        ratio = estimate_text(ratios[name]) if name in ratios else "1"
        table.add_row(name, *(cells[measure][name] for measure in shown), ratio)
    return table


def estimate_text(row: Mapping[str, Any]) -> str:
    """The estimate of one row of a table."""
    return interval_text(row["value"], row["low"], row["high"])
