"""The sections of a report that a variance study fills."""

from collections.abc import Iterator, Sequence

import polars as pl

from analysis.plots import variance as figures
from analysis.plots.audits import audits_over_training
from analysis.report.blocks import Block, Section, figure, fold, heading, table, text
from analysis.study.audits import AUDITS
from analysis.study.result import Study
from analysis.study.tables import estimate_text

WIDE_SHARE = 0.9  # an interval of a share that is wider than this says nothing
MOST_COLUMNS = 4  # policies side by side: more do not fit on paper
FEWEST_STEPS = 3  # fewer checkpoints are no curve; the table has their numbers

READING = (
    "One group of G responses to one prompt gives one estimate g of the gradient. Relative variance is tr Cov(g) over |E g|²: how much "
    "noise there is for the signal, and blind to the scale of g, which an optimizer removes. Bias is how far the mean of g is from the "
    "true gradient, as a share of it; a scale factor (the group mean has 1 − 1/G) counts as bias here but costs nothing. All estimators "
    "are computed from the same responses, and the intervals are for other prompts of the same kind. Beside the first figure stands why no "
    "baseline at all can have less noise, and why score_norm_weighted, which uses true score norms, is an ideal."
)


def variance(study: Study) -> Section:
    """Variance and bias of every estimator, the last policy first; the others are folded."""
    blocks: list[Block] = [text(READING)]
    names = [policy["name"] for policy in reversed(study.policies)]
    for name in names:
        notices = [text(notice) for notice in study.notices(name)]
        mine = notices if study.all_rewards_equal(name) else [*notices, *_at(study, name)]
        label = study.policy(name)["label"]
        blocks += [heading(label[0].upper() + label[1:]), *mine] if name == names[0] else [fold(f"At {label}", mine)]
    blocks.append(fold("The responses that were measured", [_policies(study)]))
    return Section("variance", "Variance by estimator", blocks)


def _at(study: Study, name: str) -> Iterator[Block]:
    """One policy: table and figures; what would show nothing is a sentence."""
    size, reference, label = study.default_group_size, study.settings["reference"], study.policy(name)["label"]
    yield _estimates(study, name)
    if _tells(study.select("relative_variance", name)):
        caption = f"Relative variance of each estimator at {label}, G = {size}, and its bias, with 95 % intervals over prompts."
        yield figure(figures.forest(study, name), caption)
    else:
        yield text("The relative variances have no bounded interval: the signal is too weak for so many prompts.")
    if len(study.settings["group_sizes"]) > 1:
        caption = f"Relative variance against group size at {label}."
        yield figure(figures.against_group_size(study, name), caption)
    shares = study.select("within_share", name)
    if _tells(shares.filter(pl.col("high") - pl.col("low") < WIDE_SHARE)):
        caption = (
            f"Share of a batch gradient's variance that comes from sampling responses at {label}, G = {size}: all that a baseline can "
            "lower. The rest is that prompts differ."
        )
        yield figure(figures.within_between(study, name), caption)
    else:
        yield text(
            "How much of a batch gradient's variance lies within prompts, which is all that a baseline can lower, and how much "
            f"between them, so many prompts do not tell: the intervals cover more than {100 * WIDE_SHARE:.0f} % of the range."
        )
    equal = study.equal_variance.filter(policy=name, group_size=size)
    if equal.filter("resolved").height:
        caption = f"Group size that {reference} needs for the relative variance which each estimator has with G = {size} at {label}."
        yield figure(figures.equal_variance(study, name), caption)
    elif not equal.is_empty():
        yield text(
            f"At which group size {reference} equals the others is not resolved within the group sizes measured."
        )


def _tells(rows: pl.DataFrame) -> bool:
    """Whether any estimate has a bounded interval."""
    return bool(rows.filter("resolved").height)


def _estimates(study: Study, name: str) -> Block:
    size, reference = study.default_group_size, study.settings["reference"]
    ratios = {row["estimator"]: row for row in study.compare(name).iter_rows(named=True)}
    raw = {row["estimator"]: row for row in study.compare(name, measure="trace_cov").iter_rows(named=True)}
    shown = ("relative_variance", "bias", "cosine")
    cells = {m: {r["estimator"]: estimate_text(r) for r in study.select(m, name).iter_rows(named=True)} for m in shown}
    rows = [
        [
            estimator,
            *(estimate_text(found[estimator]) if estimator in found else "1" for found in (ratios,)),
            *(cells[measure][estimator] for measure in shown),
            *(estimate_text(found[estimator]) if estimator in found else "1" for found in (raw,)),
        ]
        for estimator in study.estimators
    ]
    columns = [
        "estimator",
        f"relative variance / {reference}’s",
        "relative variance",
        "bias",
        "cosine",
        f"raw trace / {reference}’s",
    ]
    caption = (
        f"{study.policy(name)['label']}, G = {size}: value [95 % interval]. Raw traces are shown because papers show them; between estimators "
        "of different mean they mean little."
    )
    return table(caption, columns, rows)


def assumptions(study: Study) -> Section:
    """The audits: what length weighting takes for granted."""
    intro = (
        "OPO weights its baseline by length. That is the optimal weighting where scores of different tokens are orthogonal and of equal "
        "norm, so that |z|² is proportional to length; and any weighting by scores helps only where reward and |z|² are correlated."
    )
    names = [policy["name"] for policy in study.policies]
    opened = names if len(names) <= MOST_COLUMNS else [names[0], names[len(names) // 2], names[-1]]
    last = study.policies[-1]["label"]
    caption = f"Squared score norm against length of every response at {last}; the fit is within prompts, drawn through the middle of all."
    blocks = [
        text(intro),
        _audits(study, opened),
        figure(figures.norm_against_length(study), caption),
    ]
    if len({policy["step"] for policy in study.policies if policy["step"] is not None}) >= FEWEST_STEPS:
        blocks.append(
            figure(audits_over_training(study), "The same audits at each checkpoint; 95 % intervals over prompts.")
        )
    if len(names) > len(opened):
        cut = [names[i : i + MOST_COLUMNS] for i in range(0, len(names), MOST_COLUMNS)]
        blocks.append(fold("The audits of every policy", [_audits(study, some) for some in cut]))
    blocks.append(fold(f"By part of the model, at {last}", [_parts(study)]))
    return Section("assumptions", "Audits: what length weighting takes for granted", blocks)


def _audits(study: Study, names: Sequence[str]) -> Block:
    """Every audit at these policies, a column each."""
    rows = []
    for measure, words in AUDITS.items():
        found = {row["policy"]: row for row in study.audits.filter(scope="all", measure=measure).iter_rows(named=True)}
        if found:
            rows.append([words, *(estimate_text(found[name]) for name in names)])
    columns = ["audit", *(study.policy(name)["label"] for name in names)]
    return table("Audits: value [95 % interval over prompts]", columns, rows)


def _parts(study: Study) -> Block:
    last = study.policies[-1]
    parts = study.audits.filter(policy=last["name"], measure="norm2_share")
    measures = ("norm2_share", "norm_length_exponent", "best_gain")
    rows = [
        [part, *(estimate_text(study.audit(measure, last["name"], part)) for measure in measures)]
        for part in parts["scope"].to_list()
    ]
    columns = ["part", "share of |z|²", "exponent of length", "most a baseline could gain"]
    return table(f"At {last['label']}", columns, rows)


def _policies(study: Study) -> Block:
    rows = [
        [
            policy["label"],
            f"{policy['prompts']} × {policy['responses']}",
            f"{policy['reward_mean']:.3f}",
            f"{policy['length_mean']:.1f}",
            str(policy["constant_prompts"]),
            str(policy["unscorable"]),
            "unknown" if policy["gap_nats"] is None else f"{policy['gap_nats']:.1e}",
        ]
        for policy in study.policies
    ]
    columns = [
        "policy",
        "prompts × responses",
        "mean reward",
        "mean length",
        "prompts of one reward",
        "unscored",
        "largest log-probability difference, nats",
    ]
    if study.imported is not None:
        return table(study.imported["text"], columns, rows)
    return table("Sampled at temperature as trained, untruncated", columns, rows)


def limits(study: Study) -> list[str]:
    """What a reader cannot conclude from a study."""
    policy = study.policies[-1]
    return [
        f"Intervals are for other prompts of this task, {policy['prompts']} of which were seen; they say nothing of other tasks, models or sizes.",
        "Lower gradient variance is not better training: step size, clipping and exploration decide as well.",
        "The gradients are of the raw reward objective, before Adam's preconditioning and gradient clipping.",
        "Estimators are compared on the responses of the policies listed; each would have trained to policies of its own.",
    ]
