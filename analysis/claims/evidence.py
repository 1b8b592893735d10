"""What data says on one claim: an effect, its interval at any level, and what was replicated.

The functions here make measurements, `fn(material) -> Evidence | None`, for the records of `analysis.claims.records`: from a study of
one policy, whose replicates are prompts, or from runs, whose replicates are seeds. None: the material does not speak to the claim.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import t as student

from analysis.evaluation.diversity import distinct_n, repetition_n, self_bleu
from analysis.runs.ends import common_tokens, final_values
from analysis.study.audits import audit_interval, audit_value
from analysis.study.result import Study
from analysis.variance.intervals import FEWEST, if_enough
from analysis.variance.moments import Moments, bias_interval
from analysis.variance.table import comparison_terms, ratio_value, terms_interval
from opo.errors import UserError
from opo.system.records import read_table

MIN_REPLICATES = {"prompts": FEWEST, "seeds": 3}  # fewer replicates give no verdict, whatever their interval says
SENSIBLE = {"prompts": 5_000, "seeds": 100}  # more replicates than that is no plan


@dataclass(frozen=True)
class Evidence:
    """An effect, its interval at any level, how often it was replicated, and about how many replicates clear a distance."""

    effect: float
    interval: Callable[[float], tuple[float, float]]  # level -> (low, high)
    unit: str  # "prompts" or "seeds"
    replicates: int
    note: str = ""
    policy: str | None = None  # the policy of a study that was measured
    step: int | None = None
    group_size: int | None = None
    about: str = ""  # what was measured, in words

    def needed(self, borders: Sequence[float], level: float) -> int | None:
        """Replicates at which the interval would clear the nearest border, its width shrinking as one over the square root.

        None where that cannot be said, inf where it is more than `SENSIBLE`.
        """
        distance, border = min((abs(self.effect - b), b) for b in borders)
        low, high = self.interval(level)
        width = self.effect - low if border < self.effect else high - self.effect
        if distance == 0 or not math.isfinite(width):
            return None
        return max(self.replicates + 1, math.ceil(self.replicates * (width / distance) ** 2))


def _exp(x: float) -> float:
    """e^x, inf where that is beyond float64, as the end of an interval over two values that differ may be."""
    return math.exp(x) if x < 709 else math.inf


@dataclass(frozen=True)
class MeanEvidence(Evidence):
    """Evidence from independent values, one a replicate, by Student's t; `back` maps the scale of the mean to the effect's."""

    values: tuple[float, ...] = ()
    back: Callable[[float], float] = float
    forth: Callable[[float], float] = float

    @classmethod
    def of(cls, values: Sequence[float], unit: str, note: str = "", log: bool = False) -> "MeanEvidence":
        """`log`: the values are logarithms of a ratio, which is the effect."""
        back, forth = (_exp, math.log) if log else (float, float)
        count, mean = len(values), float(np.mean(values))

        def interval(level: float) -> tuple[float, float]:
            if count < 2:
                return -math.inf, math.inf
            half = float(student.ppf((1 + level) / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
            return back(mean - half), back(mean + half)

        return cls(back(mean), interval, unit, count, note, values=tuple(values), back=back, forth=forth)

    def needed(self, borders: Sequence[float], level: float) -> int | None:
        """The least n whose Student interval, with the spread seen, is narrower than the way to the nearest border."""
        if len(self.values) < 2:
            return MIN_REPLICATES[self.unit]
        distance = min(abs(float(np.mean(self.values)) - self.forth(b)) for b in borders)
        spread = float(np.std(self.values, ddof=1))
        if distance == 0:
            return None
        counts = np.arange(max(MIN_REPLICATES[self.unit], len(self.values) + 1), SENSIBLE[self.unit] + 1)
        enough = student.ppf((1 + level) / 2, counts - 1) * spread / np.sqrt(counts) < distance
        return int(counts[enough.argmax()]) if enough.any() else SENSIBLE[self.unit] + 1


@dataclass(frozen=True)
class Material:
    """What claims are judged on: the last policy of a study, runs with the columns of `analysis.runs.groups.with_groups`, and their folder."""

    study: Study | None = None
    group_size: int | None = None
    runs: pl.DataFrame | None = None
    folder: Path | None = None

    @cached_property
    def size(self) -> int:
        assert self.study is not None
        return self.group_size or self.study.default_group_size

    def moments(self, estimator: str) -> Moments | None:
        """Each prompt's moments; None where the study lacks the estimator or every gradient is zero."""
        if self.study is None or estimator not in self.study.estimators or self.study.all_rewards_equal():
            return None
        return self.study.prompt_moments(estimator, self.size)

    def of_policy(self, evidence: Evidence, with_group_size: bool = True) -> Evidence:
        """The evidence, with the policy that it is about."""
        assert self.study is not None
        policy = self.study.policy(self.study.last_policy)
        size = f", G = {self.size}" if with_group_size else ""
        return replace(
            evidence,
            interval=lambda level: if_enough(evidence.interval(level), evidence.replicates),
            policy=policy["name"],
            step=policy["step"],
            group_size=self.size if with_group_size else None,
            about=f"{averaged(policy)}{size}",
        )

    @cached_property
    def tokens(self) -> float:
        """Generated tokens that every compared run has."""
        assert self.runs is not None
        compared = self.runs.filter(pl.col("role").is_not_null())
        return float(compared.group_by("run").agg(pl.col("train/tokens").max())["train/tokens"].min())  # pyright: ignore

    def of_role(self, role: str) -> pl.DataFrame:
        """Rows of the runs that play a part in the ledger."""
        return pl.DataFrame() if self.runs is None else self.runs.filter(role=role)

    @cached_property
    def diversity(self) -> dict[str, dict[int, dict[str, float]]]:
        """role -> seed -> measures of the last batch that the run sampled."""
        by_role: dict[str, dict[int, dict[str, float]]] = {}
        for role in ("opo", "off_policy") if self.folder else ():
            mine = self.of_role(role)
            pairs = mine.select("run", "seed").unique().iter_rows() if len(mine) else ()
            by_role[role] = {int(seed): last_batch_diversity(self.folder / run) for run, seed in pairs}  # pyright: ignore
        return by_role


def averaged(policy: Mapping[str, Any]) -> str:
    """Which policy, and what it averages over: prompts may have been dealt to the weights of several runs."""
    count = len(set(policy["paths"]))
    return policy["label"] if count == 1 else f"{policy['label']}, prompts dealt to the weights of {count} runs"


Measure = Callable[[Material], Evidence | None]


def variance_ratio(name: str, reference: str, measure: str = "relative_variance") -> Measure:
    """A measure of one estimator over that of another, paired over prompts; exact where one is a multiple of the other."""

    def evidence(material: Material) -> Evidence | None:
        own, base = material.moments(name), material.moments(reference)
        if own is None or base is None or material.study is None:
            return None
        terms, counts_BP = comparison_terms(own, base, measure), material.study.resamples(len(own.second))
        interval = partial(terms_interval, *terms, counts_BP)
        return material.of_policy(Evidence(ratio_value(*terms), interval, "prompts", len(own.second)))

    return evidence


def bias(name: str) -> Measure:
    """|E g - grad J| over |grad J|."""

    def evidence(material: Material) -> Evidence | None:
        own = material.moments(name)
        if own is None or material.study is None:
            return None
        reference = float(own.reference.mean())
        effect = math.sqrt(max(float(own.error.mean()) / reference, 0.0)) if reference > 0 else math.inf
        interval = partial(bias_interval, own, material.study.resamples(len(own.second)))
        return material.of_policy(Evidence(effect, interval, "prompts", len(own.second)))

    return evidence


def audit(measure: str, needs_rewards: bool = False) -> Measure:
    """An audit of the whole score."""

    def evidence(material: Material) -> Evidence | None:
        study = material.study
        if study is None or (needs_rewards and study.all_rewards_equal()):
            return None
        terms_P3 = (
            study.audit_terms.filter(policy=study.last_policy, scope="all", measure=measure)
            .select("a", "b", "c")
            .to_numpy()
        )
        interval = partial(audit_interval, measure, terms_P3, study.resamples(len(terms_P3)))
        audited = Evidence(audit_value(measure, terms_P3), interval, "prompts", len(terms_P3))
        return material.of_policy(audited, with_group_size=False)

    return evidence


def trained(ours: str, theirs: str, metric: str, ratio: bool = False) -> Measure:
    """A training metric of one role minus (or over) that of another at equal tokens, paired by seed."""

    def evidence(material: Material) -> Evidence | None:
        pair = [material.of_role(role) for role in (ours, theirs)]
        if any(metric not in rows.columns or rows.is_empty() for rows in pair):
            return None
        note = f"Mean over the last tenth of the steps that fit into {material.tokens:,.0f} generated tokens; seeds are paired."
        a, b = (final_values(rows, metric, material.tokens) for rows in pair)
        paired = paired_evidence(a, b, ratio, note)
        return paired and replace(paired, about=_groups(pair))

    return evidence


def diversity(measure: str, ratio: bool) -> Measure:
    """Similarity of answers within a group, OPO against GRPO with several updates, in the last batch of each run, paired by seed."""

    def evidence(material: Material) -> Evidence | None:
        a, b = (
            {seed: v[measure] for seed, v in material.diversity.get(role, {}).items() if measure in v}
            for role in ("opo", "off_policy")
        )
        note = "Characters of the responses to each prompt of the last training batch."
        paired = paired_evidence(a, b, ratio, note)
        return paired and replace(paired, about=_groups([material.of_role(role) for role in ("opo", "off_policy")]))

    return evidence


def _groups(pair: Sequence[pl.DataFrame]) -> str:
    return " and ".join(str(rows["group"][0]) for rows in pair)


def between_groups(runs: pl.DataFrame, first: str, second: str, metric: str, ratio: bool = False) -> Evidence:
    """A training metric of one group of `analysis.runs.groups.with_groups` minus (or over) that of another, as in `trained`.

    Raises UserError where a group is not there, or no seed is in both.
    """
    for name in (first, second):
        if name not in (known := runs["group"].unique(maintain_order=True).to_list()):
            raise UserError(f"group {name!r}: these runs have {', '.join(known)}")
    tokens = common_tokens(runs)
    ours, theirs = (final_values(runs.filter(group=name), metric, tokens) for name in (first, second))
    found = paired_evidence(ours, theirs, ratio, f"Last tenth of the steps within {tokens:,.0f} generated tokens.")
    if found is None:
        raise UserError(f"{first} and {second}: no seed in both has {metric}{' above zero' if ratio else ''}")
    return replace(found, about=f"{first} and {second}")


def paired_evidence(ours: Mapping[int, float], theirs: Mapping[int, float], ratio: bool, note: str) -> Evidence | None:
    """Difference (or ratio) over the seeds that both have; nothing without such a seed, or for a ratio of what is not positive."""
    seeds = sorted(set(ours) & set(theirs))
    pairs: Iterable[tuple[float, float]] = [(ours[seed], theirs[seed]) for seed in seeds]
    if not seeds or (ratio and min(min(pair) for pair in pairs) <= 0):
        return None
    contrast: Callable[[float, float], float] = (lambda a, b: math.log(a / b)) if ratio else (lambda a, b: a - b)
    return MeanEvidence.of([contrast(a, b) for a, b in pairs], "seeds", note, log=ratio)


def last_batch_diversity(run: Path) -> dict[str, float]:
    """Means over prompts of distinct-2, self-BLEU and repetition-4, by characters; a measure that no prompt defines is absent."""
    files = sorted((run / "rollouts").glob("step-*.parquet"))
    if not files:
        return {}
    groups = read_table(files[-1]).group_by("prompt_index").agg(pl.col("response"))["response"].to_list()
    measures: dict[str, Callable[[Any], float | None]] = {
        "distinct_2": partial(distinct_n, n=2),
        "self_bleu": self_bleu,
        "repetition_4": partial(repetition_n, n=4),
    }
    by_measure: dict[str, float] = {}
    for name, measure in measures.items():
        values = [value for group in groups if (value := measure(group)) is not None]
        if values:
            by_measure[name] = sum(values) / len(values)
    return by_measure
