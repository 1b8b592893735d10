"""Evidence for the ledger: from a study's material (prompts as replicates) and from runs (seeds as replicates).

A study of several policies counts each prompt once: its moments are averaged over the policies first, so that the claim is about
the policies of the study together, and prompts stay independent.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import polars as pl

from analysis.claims.ledger import Evidence, MeanEvidence
from analysis.evaluation.diversity import distinct_n, repetition_n, self_bleu
from analysis.runs.groups import roles
from analysis.study.audits import audit_interval, audit_value
from analysis.study.result import Study
from analysis.variance.intervals import Array, proportionality, ratio_interval, resample_counts
from analysis.variance.moments import Moments
from analysis.variance.table import comparison_terms
from opo.system.seeding import rng_for

NUM_BOOTSTRAP = 4000
LAST = 0.1  # the part of the steps that "at equal tokens" looks at

RAW = "Raw traces of estimators with different means cannot be compared: the in-sample mean is (1 - 1/G) leave-one-out exactly."
VARIANCE_IDS = {  # claim -> (estimator, reference, measure, note)
    f"variance_below_{reference}{'_raw' if measure == 'trace_cov' else ''}": (
        "length_weighted",
        reference,
        measure,
        RAW if measure == "trace_cov" else "",
    )
    for reference in ("none", "group_mean", "leave_one_out")
    for measure in ("relative_variance", "trace_cov")
} | {
    "unbiased_opo_variance": ("length_weighted_loo", "leave_one_out", "relative_variance", ""),
    "rloo_below_mean": (
        "leave_one_out",
        "group_mean",
        "relative_variance",
        "Known without data: one is a multiple of the other, so their relative variances are equal.",
    ),
    "standardization_free": (
        "group_standardized",
        "group_mean",
        "relative_variance",
        "Prompts are weighted by 1 / std as well.",
    ),
}
AUDIT_IDS = {
    "best_baseline_gain": "best_gain",
    "norm_proportional_to_length": "norm_length_exponent",
    "length_explains_norm": "norm_length_r2",
    "tokens_orthogonal": "token_orthogonality",
}


def study_evidence(study: Study, group_size: int | None = None) -> dict[str, Evidence]:
    """What a study says about variance, bias and OPO's assumptions, at one group size."""
    size = group_size or study.default_group_size
    found: dict[str, Evidence] = {}
    for claim, (name, reference, measure, note) in VARIANCE_IDS.items():
        if {name, reference} <= set(study.estimators):
            found[claim] = ratio_evidence(
                _moments(study, name, size), _moments(study, reference, size), measure, f"G = {size}. {note}".strip()
            )
    if "length_weighted" in study.estimators:
        found["small_bias"] = bias_evidence(_moments(study, "length_weighted", size), f"G = {size}.")
    for claim, measure in AUDIT_IDS.items():
        found[claim] = audit_evidence(study, measure)
    return found


def _moments(study: Study, estimator: str, group_size: int) -> Moments:
    """Each prompt's moments, averaged over the policies of the study."""
    rows = study.prompts.filter(estimator=estimator, group_size=group_size)
    rows = rows.group_by("prompt_id", maintain_order=True).agg(
        pl.col("second", "signal", "reference", "cross", "error").mean()
    )
    return Moments(*(rows[name].to_numpy() for name in ("second", "signal", "reference", "cross", "error")))


def _counts(num_prompts: int) -> Array:
    return resample_counts(num_prompts, NUM_BOOTSTRAP, rng_for(0, "claims"))


def ratio_evidence(own: Moments, base: Moments, measure: str, note: str = "") -> Evidence:
    """A measure of one estimator over that of another, paired over prompts; exact where one is a multiple of the other."""
    numerator_P, denominator_P = comparison_terms(own, base, measure)
    mean = float(denominator_P.mean())
    constant = proportionality(numerator_P, denominator_P) if mean else None
    effect = constant if constant is not None else float(numerator_P.mean()) / mean if mean > 0 else math.inf
    counts_BP = _counts(len(own.second))
    return Evidence(
        effect,
        lambda level: ratio_interval(numerator_P, denominator_P, counts_BP, level),
        "prompts",
        len(own.second),
        note,
    )


def bias_evidence(own: Moments, note: str = "") -> Evidence:
    """|E g - grad J| over |grad J|."""
    counts_BP = _counts(len(own.second))
    reference = float(own.reference.mean())
    effect = math.sqrt(max(float(own.error.mean()) / reference, 0.0)) if reference > 0 else math.inf

    def interval(level: float) -> tuple[float, float]:
        low, high = ratio_interval(own.error, own.reference, counts_BP, level)
        return math.sqrt(low), math.sqrt(high)

    return Evidence(effect, interval, "prompts", len(own.second), note)


def audit_evidence(study: Study, measure: str) -> Evidence:
    """An audit of the whole score."""
    rows = study.audit_terms.filter(scope="all", measure=measure)
    terms_P3 = (
        rows.group_by("prompt_id", maintain_order=True)
        .agg(pl.col("a", "b", "c").mean())
        .select("a", "b", "c")
        .to_numpy()
    )
    counts_BP = _counts(len(terms_P3))
    return Evidence(
        audit_value(measure, terms_P3),
        lambda level: audit_interval(measure, terms_P3, counts_BP, level),
        "prompts",
        len(terms_P3),
    )


def runs_evidence(runs: pl.DataFrame) -> dict[str, Evidence]:
    """What trainings say: reward at equal tokens, drift and entropy; `runs` has a column `group`, whose runs are paired by seed.

    A claim has no evidence where one of its two groups has no run.
    """
    part = roles(runs["group"].unique().to_list())
    chosen = runs.filter(pl.col("group").is_in(list(part.values())))
    if chosen.is_empty():
        return {}
    tokens = float(chosen.group_by("group", "seed").agg(pl.col("train/tokens").max())["train/tokens"].min())  # pyright: ignore
    note = f"Mean over the last tenth of the steps that fit into {tokens:,.0f} generated tokens; seeds are paired."
    plans: list[tuple[str, str, str, str, bool]] = [
        ("reward_above_grpo", "opo", "grpo", "train/reward_mean", False),
        ("reward_above_ppo", "opo", "ppo", "train/reward_mean", False),
        ("on_policy_kl", "grpo", "off_policy", "train/kl_init_nats", True),
        ("on_policy_entropy", "grpo", "off_policy", "train/entropy_mean_nats", True),
    ]
    found: dict[str, Evidence] = {}
    for claim, ours, theirs, metric, ratio in plans:
        if {ours, theirs} <= set(part) and metric in runs.columns:
            a, b = (final_values(runs.filter(group=part[role]), metric, tokens) for role in (ours, theirs))
            if evidence := paired_evidence(a, b, ratio, note):
                found[claim] = evidence
    return found


def final_values(runs: pl.DataFrame, metric: str, tokens: float) -> dict[int, float]:
    """By seed: the metric's mean over the last tenth of the steps (one at least) that fit into so many generated tokens."""
    found = {}
    for (seed,), run in runs.filter(pl.col("train/tokens") <= tokens).group_by("seed"):
        values = run.sort("step").tail(max(1, round(LAST * len(run))))[metric].drop_nulls()
        if len(values):
            found[int(seed)] = float(values.mean())  # pyright: ignore[reportArgumentType]
    return found


def paired_evidence(ours: Mapping[int, float], theirs: Mapping[int, float], ratio: bool, note: str) -> Evidence | None:
    """Difference (or ratio) over the seeds that both have; nothing without such a seed, or for a ratio of what is not positive."""
    seeds = sorted(set(ours) & set(theirs))
    pairs: Iterable[tuple[float, float]] = [(ours[seed], theirs[seed]) for seed in seeds]
    if not seeds or (ratio and min(min(pair) for pair in pairs) <= 0):
        return None
    contrast: Callable[[float, float], float] = (lambda a, b: math.log(a / b)) if ratio else (lambda a, b: a - b)
    return MeanEvidence.of([contrast(a, b) for a, b in pairs], "seeds", note, log=ratio)


def diversity_evidence(runs: pl.DataFrame, folder: Path) -> dict[str, Evidence]:
    """How alike the answers of OPO and of GRPO with several updates are in the last batch that each run sampled, paired by seed."""
    part = roles(runs["group"].unique().to_list())
    if not {"opo", "off_policy"} <= set(part):
        return {}
    measured: dict[str, dict[int, dict[str, float]]] = {}
    for role in ("opo", "off_policy"):
        mine = runs.filter(group=part[role]).select("run", "seed").unique()
        measured[role] = {int(seed): last_batch_diversity(folder / run) for run, seed in mine.iter_rows()}
    note = "Characters of the responses to each prompt of the last training batch."
    found: dict[str, Evidence] = {}
    for claim, measure, ratio in (
        ("distinct_above_grpo", "distinct_2", True),
        ("self_bleu_below_grpo", "self_bleu", True),
        ("repetition_below_grpo", "repetition_4", False),
    ):
        ours, theirs = ({s: v[measure] for s, v in measured[r].items() if measure in v} for r in ("opo", "off_policy"))
        if evidence := paired_evidence(ours, theirs, ratio, note):
            found[claim] = evidence
    return found


def last_batch_diversity(run: Path) -> dict[str, float]:
    """Means over prompts of distinct-2, self-BLEU and repetition-4, by characters; a measure that no prompt defines is absent."""
    files = sorted((run / "rollouts").glob("step-*.parquet"))
    if not files:
        return {}
    groups = pl.read_parquet(files[-1]).group_by("prompt_index").agg(pl.col("response"))["response"].to_list()
    measures = {
        "distinct_2": partial(distinct_n, n=2),
        "self_bleu": self_bleu,
        "repetition_4": partial(repetition_n, n=4),
    }
    found: dict[str, float] = {}
    for name, measure in measures.items():
        values = [value for group in groups if (value := measure(group)) is not None]
        if values:
            found[name] = sum(values) / len(values)
    return found
