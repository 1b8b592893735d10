"""The page of a folder that holds several studies: all policies side by side, then each study by itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.claims.ledger import ALPHA
from analysis.plots.several import ratio_across
from analysis.report import answer, cite
from analysis.report import study as report_study
from analysis.report.blocks import Block, Section, figure, fold, lead, listing, table, text
from analysis.report.sources import Sources
from analysis.study.several import Looked, length_spread, looked_at, ratio, shared_estimators
from analysis.study.tables import estimate_text

DRAWN = ("none", "opo", "length_weighted", "length_weighted_loo", "score_norm_weighted_loo", "shrinkage")
AUDITED = {  # what a gain could come from
    "norm_length_r2": "share of the variance of log |z|² that length explains",
    "reward_norm_rank": "rank correlation of reward and |z|²",
    "best_gain": "most that a known baseline could gain over the mean",
    "length_gain": "gain of the length-weighted baseline, were it known",
}


def sections(several: dict[str, Sources]) -> list[Section]:
    """The answer over all policies, the studies one by one, the limits, and what to cite of each."""
    studies = {name: sources.study for name, sources in several.items() if sources.study is not None}
    looked = looked_at(studies)
    folded = [fold(name, _alone(sources)) for name, sources in several.items()]
    limits = list(dict.fromkeys(line for study in studies.values() for line in report_study.limits(study)))
    cited = [fold(name, cite.section(sources).blocks) for name, sources in several.items()]
    return [
        Section(
            "answer", "The answer", [*_across(looked)] if looked else [text("No study here has a gradient to compare.")]
        ),
        Section("studies", "Each study", folded),
        Section("limits", "What this does not say", [listing(limits, limits=True)]),
        Section("cite", "To cite and to repeat", cited),
    ]


def _alone(sources: Sources) -> list[Block]:
    assert sources.study is not None
    return [*answer.section(sources).blocks, *report_study.variance(sources.study).blocks]


def _across(looked: Sequence[Looked]) -> list[Block]:
    shared = shared_estimators(looked)
    names = [name for name in answer.FIGURE if name in shared] or shared
    if not names:
        return [text("The studies have no estimator in common beside the reference.")]
    reference, sizes = looked[0].study.settings["reference"], {each.study.default_group_size for each in looked}
    size = f"groups of {sizes.pop()}" if len(sizes) == 1 else "at each study’s default group size"
    caption = (
        f"Relative gradient variance over that of {reference} ({size}), with 95 % intervals over prompts; below 1 is less noise for the "
        "same signal."
    )
    return [
        lead(sentence(looked, [name for name in answer.SUBJECTS if name in names] or names[:1])),
        figure(ratio_across(looked, [name for name in DRAWN if name in names] or names), caption),
        *([text(answer.NONE_WINS)] if "none" in names else []),
        *([text(answer.IDEAL)] if "score_norm_weighted" in names else []),
        table(
            "The same in numbers, for every estimator that the studies share",
            ["policy", "prompts", *names],
            _ratios(looked, names),
        ),
        text(
            "What could be gained, and by what: a weighting by scores helps only where reward and squared score norm are correlated, and "
            "length can stand for the norm only as far as it explains it. A baseline that holds the response itself also shrinks the weight of "
            "each response by its share of the group’s lengths, which lowers noise where long responses have large scores."
        ),
        table(
            "Audits: value [95 % interval over prompts]",
            ["policy", "mean reward", "mean length", "Var L / (E L)² within prompts", *AUDITED.values()],
            _audits(looked),
        ),
    ]


def sentence(looked: Sequence[Looked], names: Sequence[str]) -> str:
    """At how many policies each estimator has less noise than the reference, more, or is not told from it."""
    reference, found = looked[0].study.settings["reference"], []
    for name in names:
        rows = [ratio(each, name) for each in looked]
        less = [row for row in rows if row["high"] is not None and row["high"] < 1]
        more = [row for row in rows if row["low"] is not None and row["low"] > 1]
        found.append(
            f"{name} has less noise than {reference} at {len(less)} of {len(rows)} policies{_corrected(less)} and more at "
            f"{len(more)}{_corrected(more)}"
        )
    return f"By relative gradient variance, {'; '.join(found)}; at the others the 95 % interval contains 1."


def _corrected(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of these differences stay with Holm's correction over the comparisons of their study."""
    kept = sum(row["p_holm"] is not None and row["p_holm"] < ALPHA for row in rows)
    return f" ({kept} with Holm’s correction)" if rows else ""


def _ratios(looked: Sequence[Looked], names: Sequence[str]) -> list[list[str]]:
    return [
        [each.label, str(each.policy["prompts"]), *(estimate_text(ratio(each, name)) for name in names)]
        for each in looked
    ]


def _audits(looked: Sequence[Looked]) -> list[list[str]]:
    return [
        [
            each.label,
            f"{each.policy['reward_mean']:.3f}",
            f"{each.policy['length_mean']:.1f}",
            f"{length_spread(each):.2f}",
            *(estimate_text(each.study.audit(name, each.policy["name"])) for name in AUDITED),
        ]
        for each in looked
    ]
