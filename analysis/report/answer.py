"""What a page opens with: one sentence, the figure behind it, and at most six verdicts; the rest of the ledgers is folded."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from analysis.claims.evidence import averaged
from analysis.claims.ledger import ALPHA
from analysis.evaluation.text import sentence as evaluation_sentence
from analysis.plots.answer import chosen_policies, ratio_by_policy
from analysis.plots.runs import effect_text, threshold_text
from analysis.report.blocks import Block, Section, beside, figure, fold, lead, ledger, text
from analysis.report.runs import ends_text
from analysis.report.sources import Sources
from analysis.study.result import Study
from analysis.variance.text import number_text

# which verdicts a page opens with, fixed beforehand: what OPO's paper stands on, before what follows from it
OPENING = (
    "variance_below_leave_one_out",
    "unbiased_opo_variance",
    "norm_proportional_to_length",
    "variance_below_none",
    "on_policy_kl",
    "reward_above_grpo",
    "best_baseline_gain",
    "standardization_free",
    "small_bias",
)
MOST = 6
SUBJECTS = ("length_weighted", "opo", "length_weighted_loo")
FIGURE = (
    "none",
    "opo",
    "length_weighted",
    "length_weighted_loo",
    "score_norm_weighted",
    "score_norm_weighted_loo",
    "group_standardized",
    "shrinkage",
)  # the group mean is leave-one-out, scaled
NO_DIFFERENCE = 0.05  # a ratio within so much of one is called none

NONE_WINS = (
    "Why “none” can win: a baseline b turns the reward r into r − b, and the noise is least at b* = E[r |z|²] / E[|z|²], "
    "not at the mean reward. Where wrong responses (reward 0) are the surprising ones, with large |z|², b* lies near 0: without a baseline they "
    "add nothing to the gradient, and subtracting the mean reward brings their large scores in. A baseline that is estimated from "
    "the group adds noise of its own besides."
)
IDEAL = (
    "“score_norm_weighted” weighs by the true |z|² of each response, which costs a gradient for every response in training. Its "
    "in-sample form also uses the response that it judges, so it is an ideal to measure the others against, not an algorithm to run."
)


def section(sources: Sources) -> Section:
    """The answer."""
    blocks: list[Block] = [lead(sentence(sources))]
    study = sources.study
    if study is not None and (names := chosen_policies(study)):
        blocks += _ratio(study, names)
    judged = [(policy, claims) for policy, claims in sources.ledgers.items() if claims]
    if judged:
        blocks += _verdicts(sources, judged)
    return Section("answer", "The answer", blocks)


def sentence(sources: Sources) -> str:
    """The finding: the estimator in question against the reference at the last policy, or where the trainings ended."""
    study = sources.study
    where = f"On {_listed(sources.tasks)} with {_listed(sources.models)}, " if sources.tasks and sources.models else ""
    if study is None and sources.runs is None:
        assert sources.evaluation is not None
        return evaluation_sentence(sources.evaluation)
    if study is None:
        assert sources.runs is not None
        return where + ends_text(sources.runs)
    names = chosen_policies(study)
    if not names:
        return " ".join(study.notices())
    last, reference = study.policy(names[-1]), study.settings["reference"]
    rows = {row["estimator"]: row for row in study.compare(last["name"]).iter_rows(named=True)}
    name = next((name for name in (*SUBJECTS, *study.estimators) if name in rows), None)
    if name is None:
        return f"{where}{reference} alone was measured, so nothing is compared."
    words = "OPO’s length-weighted baseline" if name in ("length_weighted", "opo") else name
    count = last.get("prompts_at", {}).get(str(study.default_group_size), last["prompts"])
    found = (
        f"{where}{words} has {_times(rows[name])} the relative gradient variance of {reference} "
        f"at {averaged(last)} (groups of {study.default_group_size}, {count} prompts): {_meaning(rows[name])}"
    )
    if len(names) > 1:
        first = study.compare(names[0]).filter(estimator=name).row(0, named=True)
        found += f"; at {study.policy(names[0])['label']} it was {_times(first)}"
    found += "."
    return found[0].upper() + found[1:]


def _times(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "an unresolved multiple of"
    if row["low"] is None and row["high"] is None:
        return f"{number_text(row['value'])} times (no interval)"
    ends = " to ".join("unbounded" if row[end] is None else number_text(row[end]) for end in ("low", "high"))
    return f"{number_text(row['value'])} times (95 % interval {ends})"


def _meaning(row: Mapping[str, Any]) -> str:
    low, high = row["low"], row["high"]
    if low is not None and high is not None and low > 1 - NO_DIFFERENCE and high < 1 + NO_DIFFERENCE:
        return "no difference that matters"
    if high is not None and high < 1:
        return "less noise"
    if low is not None and low > 1:
        return "more noise, not less"
    return "so much data does not tell which has less noise"


def _ratio(study: Study, names: Sequence[str]) -> list[Block]:
    shown = [name for name in FIGURE if name in study.estimators]
    compared = [name for name in study.estimators if name != study.settings["reference"]]
    if not compared:
        return []
    picked = [name for name in shown if name in compared] or compared
    caption = (
        f"Relative gradient variance over that of {study.settings['reference']}, groups of {study.default_group_size}, paired over the same "
        "responses, with 95 % intervals for other prompts of the kind; below 1 is less noise for the same signal."
    )
    return [beside([figure(ratio_by_policy(study, picked), caption), *_explanations(study, names)])]


def _explanations(study: Study, names: Sequence[str]) -> list[Block]:
    """What a reader of the ratios may stumble over, where it is there to be seen."""
    found: list[Block] = []
    rows = pl.concat([study.compare(name) for name in names]).filter(pl.col("estimator").is_in(["none", "reinforce"]))
    if rows.filter(pl.col("value") < 1).height:
        found.append(text(NONE_WINS))
    if "score_norm_weighted" in study.estimators:
        found.append(text(IDEAL))
    return found


def _verdicts(sources: Sources, judged: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[Block]:
    policy, claims = judged[0]
    by_id = {claim["id"]: claim for claim in claims}
    first = [by_id[name] for name in OPENING if name in by_id][:MOST]
    rest = [claim for claim in claims if claim not in first]
    count = {verdict: sum(c["verdict"] == verdict for c in claims) for verdict in ("supported", "refuted")}
    caption = (
        f"{len(first)} of {len(claims)} claims, chosen beforehand; of all, {count['supported']} are supported, {count['refuted']} refuted "
        "and the others not resolved by this much data."
    )
    blocks = [ledger([_shown(sources, policy, claim) for claim in first], caption)]
    rule = (
        "Thresholds were fixed beforehand. A claim is supported where the interval of its effect lies inside the claimed region, refuted "
        f"where it lies outside, with Holm's correction at {100 * ALPHA:.0f} % over the claims of one ledger; the intervals shown are plain 95 % ones."
    )
    blocks.append(text(rule))
    if rest:
        shown = [_shown(sources, policy, claim) for claim in rest]
        blocks.append(fold(f"The other {len(rest)} claims", [ledger(shown, "Claims, effects and verdicts")]))
    for name, others in judged[1:]:
        label = sources.study.policy(name)["label"] if sources.study else name
        shown = [_shown(sources, name, claim) for claim in others]
        blocks.append(fold(f"The claims about variance at {label}", [ledger(shown, f"Verdicts at {label}")]))
    return blocks


def _shown(sources: Sources, policy: str, claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim with what the page says of it; ledgers of older versions do not name their policy."""
    about = claim.get("about") or ""
    if not about and claim["unit"] == "prompts" and sources.study is not None:
        about = averaged(sources.study.policy(policy))
    where = [about, f"task {_listed(sources.tasks)}" if sources.tasks else "", f"{claim['replicates']} {claim['unit']}"]
    return {
        "note": "",
        "outlook": "",
        **claim,
        "about": ", ".join(part for part in where if part),
        "effect_text": effect_text(claim),
        "threshold_text": threshold_text(claim),
    }


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
