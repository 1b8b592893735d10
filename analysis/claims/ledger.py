"""The ledger: what OPO and its rivals claim, each with a threshold that was fixed before any data was seen, and a verdict.

A claim says that an effect lies in a region (below 0.95, above 1.05, between 0.9 and 1.1). Its verdict is `supported` where the
interval of the effect lies inside the region, `refuted` where it lies outside, `not resolved` otherwise; the interval is taken at
the level that Holm's correction over all claims of the ledger asks for. The interval that is printed is the plain 95 % one.

`claims.json`: {"schema", "level", "correction", "family", "claims": [...]}, each claim with

    id, claim, whose, measure, reason    text; the last says why the threshold is what it is
    low_threshold, high_threshold        the region; null: open to that side
    effect, low, high                    float or null (not known, or an open end)
    unit, replicates                     what was replicated ("prompts", "seeds") and how often
    p_value, p_holm                      of the verdict: the smallest error rate at which the interval clears a threshold; null: none
    verdict                              "supported", "refuted", "not resolved"
    would_resolve                        about how many replicates would, if the effect is what it seems; null: cannot be said
    note                                 what to know before quoting it
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from analysis.variance.intervals import holm
from opo.system.atomic import write_text

SCHEMA = "opo.claims/1"
ALPHA = 0.05
LEAST = {"prompts": 8, "seeds": 3}  # fewer replicates give no verdict, whatever their interval says
MOST = 1_000_000  # replicates; more than that is no plan
SMALLEST, LARGEST = 1e-4, 0.999  # error rates between which a verdict's is looked for

FEWER = 0.95  # a twentieth less noise is a twentieth fewer responses: less would not pay for changing an estimator
SAME = 1.05  # and less than a twentieth more is no loss that anyone would notice


@dataclass(frozen=True)
class Claim:
    """One sentence that data can decide, and where its effect must lie."""

    id: str
    claim: str
    whose: str
    measure: str
    low_threshold: float | None
    high_threshold: float | None
    reason: str


def _lower_variance(reference: str, words: str, raw: bool) -> Claim:
    kind = "tr Cov(g)" if raw else "tr Cov(g) / |E g|²"
    return Claim(
        f"variance_below_{reference}{'_raw' if raw else ''}",
        f"OPO's gradient has lower {'raw' if raw else 'relative'} variance than {words}.",
        "OPO paper",
        f"{kind} of length_weighted over that of {reference}",
        None,
        FEWER,
        "5 % less variance saves 5 % of the responses"
        if not raw
        else "the same 5 % as the scale-free measure, so that the two can be compared",
    )


CLAIMS: tuple[Claim, ...] = (
    *(_lower_variance(name, words, raw) for name, words in (("none", "no baseline"), ("group_mean", "the group mean"), ("leave_one_out", "leave-one-out (RLOO)")) for raw in (False, True)),
    Claim("unbiased_opo_variance", "With the response left out of its own baseline, length weighting still has lower relative variance than leave-one-out.", "this project", "tr Cov(g) / |E g|² of length_weighted_loo over that of leave_one_out", None, FEWER, "what remains of the gain when no bias pays for it"),
    Claim("best_baseline_gain", "Weighting a baseline by scores has something to gain.", "OPO paper", "Cov(r, |z|²)² / S over E[(r − mean)²|z|²], the gain of the optimal baseline, were it known", 0.05, None, "the same 5 % of variance"),
    Claim("small_bias", "OPO's in-sample baseline biases the gradient by less than a tenth.", "OPO paper", "|E g − ∇J| / |∇J| of length_weighted", None, 0.1, "about what group_mean loses at G = 10 by its factor 1 − 1/G"),
    Claim("rloo_below_mean", "Leave-one-out has lower relative variance than the group mean.", "RLOO implementations", "tr Cov(g) / |E g|² of leave_one_out over that of group_mean", None, FEWER, "5 % less variance saves 5 % of the responses"),
    Claim("standardization_free", "Dividing by the group's standard deviation (GRPO) costs no relative variance.", "GRPO paper", "tr Cov(g) / |E g|² of group_standardized over that of group_mean", None, SAME, "5 % more would cost 5 % more responses"),
    Claim("norm_proportional_to_length", "The squared score norm is proportional to response length.", "OPO paper, (A1) and (A2)", "exponent a of |z|² ∝ lengthᵃ within prompts", 0.9, 1.1, "at ±0.1, responses that differ tenfold in length get weights that are wrong by at most a quarter"),
    Claim("length_explains_norm", "Length explains most of what makes squared score norms differ.", "OPO paper, (A2)", "share of the variance of log |z|² within prompts that log length explains", 0.5, None, "most means more than half"),
    Claim("tokens_orthogonal", "Scores of different tokens of a response are close to orthogonal.", "OPO paper, (A1)", "|Σ z_t|² / Σ|z_t|²", 0.9, 1.1, "cross terms of a tenth, the same tolerance as for the exponent"),
    Claim("on_policy_kl", "Exact on-policy training stays closer to the start than several updates per rollout.", "OPO paper", "KL to the start, GRPO with 1 update over GRPO with several, at equal tokens", None, 0.9, "a tenth less drift; run-to-run differences of a few per cent are usual"),
    Claim("on_policy_entropy", "Exact on-policy training keeps entropy higher than several updates per rollout.", "OPO paper", "entropy, GRPO with 1 update over GRPO with several, at equal tokens", SAME, None, "a twentieth more"),
    Claim("reward_above_grpo", "OPO earns more reward than GRPO for the same tokens.", "OPO paper", "mean reward of OPO minus that of on-policy GRPO, at equal tokens", 0.02, None, "two more right answers in a hundred"),
    Claim("reward_above_ppo", "OPO earns more reward than PPO for the same tokens.", "OPO paper", "mean reward of OPO minus that of PPO, at equal tokens", 0.02, None, "two more right answers in a hundred"),
    Claim("distinct_above_grpo", "OPO's answers are more diverse than GRPO's: more distinct n-grams.", "OPO paper", "distinct-2 of OPO over that of GRPO with several updates", SAME, None, "a twentieth more"),
    Claim("self_bleu_below_grpo", "OPO's answers are more diverse than GRPO's: they resemble one another less.", "OPO paper", "self-BLEU of OPO over that of GRPO with several updates", None, FEWER, "a twentieth less"),
    Claim("repetition_below_grpo", "OPO's answers repeat themselves less than GRPO's.", "OPO paper", "repetition of OPO minus that of GRPO with several updates", None, -0.01, "one n-gram in a hundred"),
)  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """An effect, its interval at any level, how often it was replicated, and about how many replicates clear a distance."""

    effect: float
    interval: Callable[[float], tuple[float, float]]  # level -> (low, high)
    unit: str  # "prompts" or "seeds"
    replicates: int
    note: str = ""

    def needed(self, claim: Claim, level: float) -> int | None:
        """Replicates at which the interval would clear the nearest threshold, its width shrinking as one over the square root."""
        borders = [b for b in (claim.low_threshold, claim.high_threshold) if b is not None]
        distance, border = min((abs(self.effect - b), b) for b in borders)
        low, high = self.interval(level)
        width = self.effect - low if border < self.effect else high - self.effect
        if distance == 0 or not math.isfinite(width):
            return None
        number = self.replicates * (width / distance) ** 2
        return max(self.replicates + 1, math.ceil(number)) if number < MOST else None


@dataclass(frozen=True)
class MeanEvidence(Evidence):
    """Evidence from independent values, one a replicate, by Student's t; `back` maps the scale of the mean to the effect's."""

    values: tuple[float, ...] = ()
    back: Callable[[float], float] = float
    forth: Callable[[float], float] = float

    @classmethod
    def of(cls, values: Sequence[float], unit: str, note: str = "", log: bool = False) -> "MeanEvidence":
        """`log`: the values are logarithms of a ratio, which is the effect."""
        back, forth = (math.exp, math.log) if log else (float, float)
        count, mean = len(values), float(np.mean(values))

        def interval(level: float) -> tuple[float, float]:
            if count < 2:
                return -math.inf, math.inf
            half = student.ppf((1 + level) / 2, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
            return back(mean - half), back(mean + half)

        return cls(back(mean), interval, unit, count, note, tuple(values), back, forth)

    def needed(self, claim: Claim, level: float) -> int | None:
        """The least n whose Student interval, with the spread seen, is narrower than the way to the nearest threshold."""
        if len(self.values) < 2:
            return LEAST[self.unit]
        borders = [self.forth(b) for b in (claim.low_threshold, claim.high_threshold) if b is not None]
        distance = min(abs(float(np.mean(self.values)) - b) for b in borders)
        spread = float(np.std(self.values, ddof=1))
        counts = np.unique(np.geomspace(max(LEAST[self.unit], len(self.values) + 1), MOST, 2000).astype(int))
        enough = student.ppf((1 + level) / 2, counts - 1) * spread / np.sqrt(counts) < distance
        return int(counts[enough.argmax()]) if enough.any() else None


def judge(evidence: Mapping[str, Evidence], claims: Sequence[Claim] = CLAIMS) -> list[dict[str, Any]]:
    """One row for every claim that has evidence, in the order of the ledger."""
    present = [claim for claim in claims if claim.id in evidence]
    decisions = [_decision(claim, evidence[claim.id]) for claim in present]
    able = [i for i, claim in enumerate(present) if evidence[claim.id].replicates >= LEAST[evidence[claim.id].unit]]
    corrected = dict(zip(able, holm([decisions[i][1] for i in able]).tolist(), strict=True)) if able else {}
    return [
        _row(claim, evidence[claim.id], *decisions[i], corrected.get(i), len(able)) for i, claim in enumerate(present)
    ]


def _row(claim: Claim, seen: Evidence, side: str, p_value: float, p_holm: float | None, family: int) -> dict[str, Any]:
    verdict = side if p_holm is not None and p_holm <= ALPHA else "not resolved"
    enough = p_holm is not None
    low, high = (_finite(bound) for bound in seen.interval(1 - ALPHA)) if seen.replicates > 1 else (None, None)
    note = (
        seen.note
        if enough
        else f"{seen.replicates} {seen.unit}: a verdict needs at least {LEAST[seen.unit]}. {seen.note}".strip()
    )
    needed = None
    if verdict == "not resolved":
        needed = (
            max(seen.needed(claim, 1 - ALPHA / max(1, family)) or 0, LEAST[seen.unit])
            if math.isfinite(seen.effect)
            else None
        )
        needed = needed if needed and needed > seen.replicates else None
    return asdict(claim) | {
        "effect": _finite(seen.effect),
        "low": low,
        "high": high,
        "unit": seen.unit,
        "replicates": seen.replicates,
        "p_value": p_value if enough else None,
        "p_holm": p_holm,
        "verdict": verdict,
        "would_resolve": needed,
        "note": note,
    }


def _decision(claim: Claim, seen: Evidence) -> tuple[str, float]:
    """Which verdict the interval reaches first as it narrows, and the smallest error rate at which it does (1: at none)."""
    low_border = -math.inf if claim.low_threshold is None else claim.low_threshold
    high_border = math.inf if claim.high_threshold is None else claim.high_threshold

    def verdict(alpha: float) -> str | None:
        low, high = seen.interval(1 - alpha)
        if low > low_border and high < high_border:
            return "supported"
        return "refuted" if high <= low_border or low >= high_border else None

    open_alpha, reached = SMALLEST, None
    for alpha in np.geomspace(SMALLEST, LARGEST, 40).tolist():
        if (reached := verdict(alpha)) is not None:
            break
        open_alpha = alpha
    if reached is None:
        return "not resolved", 1.0
    while alpha - open_alpha > 1e-3 * alpha:
        middle = math.sqrt(alpha * open_alpha)
        alpha, open_alpha = (middle, open_alpha) if verdict(middle) is not None else (alpha, middle)
    return verdict(alpha) or reached, alpha


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def save(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write claims.json, whole or not at all."""
    content = {
        "schema": SCHEMA,
        "level": 1 - ALPHA,
        "correction": "holm",
        "family": sum(row["p_holm"] is not None for row in rows),
        "claims": list(rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "claims.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return folder / "claims.json"
