"""The ledger: verdicts on the claims of `analysis.claims.records`, by the evidence that a study or runs give.

A claim says that an effect lies in a region (below 0.95, above 1.05, between 0.9 and 1.1). Its verdict is `supported` where the
interval of the effect lies inside the region, `refuted` where it lies outside, `not resolved` otherwise; the interval is taken at
the level that Holm's correction over all claims of the ledger asks for. The interval that is printed is the plain 95 % one.

`claims.json`: {"schema", "level", "correction", "family", "claims": [...]}, each claim with

    id, claim, whose, measure, reason    text; the last says why the threshold is what it is
    low_threshold, high_threshold        the region; null: open to that side
    policy, step, group_size             the policy of the study that the verdict is about; null where it is about trainings
    about                                the same in words: which policy, or which groups of runs, and what it averages over
    effect, low, high                    float or null (not known, or an open end)
    unit, replicates                     what was replicated ("prompts", "seeds") and how often
    p_value, p_holm                      of the verdict: the smallest error rate at which the interval clears a threshold; null: none
    verdict                              "supported", "refuted", "not resolved"
    would_resolve                        about how many replicates would, if the effect is what it seems; null: cannot be said, or
                                         more than is sensible
    outlook                              the same in words
    note                                 what to know before quoting it
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.claims.evidence import MIN_REPLICATES, SENSIBLE, Evidence
from analysis.claims.records import CLAIMS, Claim
from analysis.variance.intervals import holm
from opo.system.atomic import write_text
from opo.system.records import sealed

SCHEMA = "opo.claims/1"
ALPHA = 0.05
SMALLEST, LARGEST = 1e-4, 0.999  # error rates between which a verdict's is looked for
_OF_CLAIM = ("id", "claim", "whose", "measure", "low_threshold", "high_threshold", "reason")


def judge(evidence: Mapping[str, Evidence], claims: Sequence[Claim] = CLAIMS) -> list[dict[str, Any]]:
    """One row for every claim that has evidence, in the order of the ledger."""
    present = [claim for claim in claims if claim.id in evidence]
    decisions = [_decision(claim, evidence[claim.id]) for claim in present]
    able = [
        i for i, claim in enumerate(present) if evidence[claim.id].replicates >= MIN_REPLICATES[evidence[claim.id].unit]
    ]
    corrected = dict(zip(able, holm([decisions[i][1] for i in able]).tolist(), strict=True)) if able else {}
    return [
        _row(claim, evidence[claim.id], *decisions[i], corrected.get(i), len(able)) for i, claim in enumerate(present)
    ]


def _row(
    claim: Claim, evidence: Evidence, side: str, p_value: float, p_holm: float | None, family: int
) -> dict[str, Any]:
    verdict = side if p_holm is not None and p_holm <= ALPHA else "not resolved"
    enough, least = p_holm is not None, MIN_REPLICATES[evidence.unit]
    low, high = (_finite(bound) for bound in evidence.interval(1 - ALPHA)) if evidence.replicates > 1 else (None, None)
    notes = (
        [claim.note, evidence.note]
        if enough
        else [f"{evidence.replicates} {evidence.unit}: a verdict needs at least {least}."]
    )
    needed = _needed(claim, evidence, 1 - ALPHA / max(1, family)) if verdict == "not resolved" else None
    return {name: getattr(claim, name) for name in _OF_CLAIM} | {
        "policy": evidence.policy,
        "step": evidence.step,
        "group_size": evidence.group_size,
        "about": evidence.about,
        "effect": _finite(evidence.effect),
        "low": low,
        "high": high,
        "unit": evidence.unit,
        "replicates": evidence.replicates,
        "p_value": p_value if enough else None,
        "p_holm": p_holm,
        "verdict": verdict,
        "would_resolve": needed if needed and needed <= SENSIBLE[evidence.unit] else None,
        "outlook": _outlook(needed, evidence.unit),
        "note": " ".join(note for note in notes if note),
    }


def _needed(claim: Claim, evidence: Evidence, level: float) -> int | None:
    """Replicates that would give a verdict; None where the effect is not known or as many as there are should do."""
    if not math.isfinite(evidence.effect):
        return None
    needed = max(evidence.needed(claim.borders, level) or 0, MIN_REPLICATES[evidence.unit])
    return needed if needed > evidence.replicates else None


def _outlook(needed: int | None, unit: str) -> str:
    if needed is None:
        return ""
    most = SENSIBLE[unit]
    return f"about {needed:,} {unit}" if needed <= most else f"not at any sensible size (more than {most:,} {unit})"


def _decision(claim: Claim, evidence: Evidence) -> tuple[str, float]:
    """Which verdict the interval reaches first as it narrows, and the smallest error rate at which it does (1: at none)."""
    low_border = -math.inf if claim.low_threshold is None else claim.low_threshold
    high_border = math.inf if claim.high_threshold is None else claim.high_threshold

    def verdict(alpha: float) -> str | None:
        low, high = evidence.interval(1 - alpha)
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
    write_text(
        folder / "claims.json", json.dumps(sealed(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return folder / "claims.json"
