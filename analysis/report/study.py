"""The sections of a report that a variance study fills."""

from analysis.plots import variance as figures
from analysis.plots.audits import audits_over_training
from analysis.report.blocks import Block, Section, figure, heading, table, text
from analysis.study.audits import AUDITS
from analysis.study.result import Study
from analysis.study.tables import estimate_text

READING = (
    "One group of G responses to one prompt gives one estimate g of the gradient. Relative variance is tr Cov(g) over |E g|²: how much "
    "noise there is for the signal, and blind to the scale of g, which an optimizer removes. Bias is how far the mean of g is from the "
    "true gradient, as a share of it; a scale factor (the group mean has 1 − 1/G) counts as bias here but costs nothing. All estimators "
    "are computed from the same responses, and the intervals are for other prompts of the same kind."
)


def sections(study: Study) -> list[Section]:
    """Variance and bias, the assumptions behind length weighting, and the policies that were looked at."""
    return [_variance(study), _assumptions(study), _policies(study)]


def _variance(study: Study) -> Section:
    size, reference = study.default_group_size, study.settings["reference"]
    blocks: list[Block] = [text(READING)]
    for policy in study.policies:
        name, label = policy["name"], policy["label"]
        ratios = {row["estimator"]: row for row in study.compare(name).iter_rows(named=True)}
        raw = {row["estimator"]: row for row in study.compare(name, measure="trace_cov").iter_rows(named=True)}
        cells = {
            m: {r["estimator"]: estimate_text(r) for r in study.select(m, name).iter_rows(named=True)}
            for m in ("relative_variance", "bias", "cosine")
        }
        rows = [
            [
                estimator,
                *(cells[measure][estimator] for measure in ("relative_variance", "bias", "cosine")),
                *(estimate_text(found[estimator]) if estimator in found else "1" for found in (ratios, raw)),
            ]
            for estimator in study.estimators
        ]
        columns = [
            "estimator",
            "relative variance",
            "bias",
            "cosine",
            f"relative variance / {reference}'s",
            f"raw trace / {reference}'s",
        ]
        blocks += [
            heading(label),
            figure(figures.forest(study, name), f"Relative variance of each estimator at {label}, G = {size}, and its bias, with 95 % intervals over prompts."),
            figure(figures.ratio_forest(study, name), f"The same over that of {reference}, paired over the same responses, at {label}."),
            table(f"{label}, G = {size}: value [95 % interval]. Raw traces are shown because papers show them; between estimators of different mean they mean little.", columns, rows),
        ]  # fmt: skip
        if len(study.settings["group_sizes"]) > 1:
            blocks.append(
                figure(figures.against_group_size(study, name), f"Relative variance against group size at {label}.")
            )
        caption = (
            f"Share of a batch gradient's variance that comes from sampling responses at {label}, G = {size}: all that a baseline can "
            "lower. The rest is that prompts differ."
        )
        blocks.append(figure(figures.within_between(study, name), caption))
        if not study.equal_variance.filter(policy=name).is_empty():
            caption = f"How many responses {reference} needs for the relative variance that each estimator has with {size}, at {label}. An arrow: beyond the sizes measured."
            blocks.append(figure(figures.equal_variance(study, name), caption))
    if len({policy["step"] for policy in study.policies if policy["step"] is not None}) > 1:
        blocks += [
            heading("Over training"),
            figure(figures.over_training(study), f"Relative variance at G = {size} at each checkpoint."),
        ]
    return Section("variance", "Gradient variance and bias", blocks)


def _assumptions(study: Study) -> Section:
    intro = (
        "OPO weights its baseline by length. That is the optimal weighting where scores of different tokens are orthogonal and of equal "
        "norm, so that |z|² is proportional to length; and any weighting by scores helps only where reward and |z|² are correlated."
    )
    names = [policy["name"] for policy in study.policies]
    rows = []
    for measure, words in AUDITS.items():
        found = {row["policy"]: row for row in study.audits.filter(scope="all", measure=measure).iter_rows(named=True)}
        if found:
            rows.append([words, *(estimate_text(found[name]) for name in names)])
    blocks = [
        text(intro),
        table(
            "Audits: value [95 % interval over prompts]", ["", *(policy["label"] for policy in study.policies)], rows
        ),
        figure(
            figures.norm_against_length(study),
            f"Squared score norm against length of every response at {study.policies[-1]['label']}; the fit is within prompts, drawn through the middle of all.",
        ),
    ]
    if len({policy["step"] for policy in study.policies if policy["step"] is not None}) > 1:
        blocks.append(
            figure(audits_over_training(study), "The same audits at each checkpoint; 95 % intervals over prompts.")
        )
    parts = study.audits.filter(policy=names[-1]).filter(measure="norm2_share")
    measures = ("norm2_share", "norm_length_exponent", "best_gain")
    rows = [
        [part, *(estimate_text(study.audit(measure, names[-1], part)) for measure in measures)]
        for part in parts["scope"].to_list()
    ]
    blocks.append(
        table(
            f"By part of the model, at {study.policies[-1]['label']}",
            ["part", "share of |z|²", "exponent of length", "most a baseline could gain"],
            rows,
        )
    )
    return Section("assumptions", "What length weighting takes for granted", blocks)


def _policies(study: Study) -> Section:
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
        return Section("policies", "The frozen responses", [table(study.imported["text"], columns, rows)])
    return Section(
        "policies", "The frozen responses", [table("Sampled at temperature as trained, untruncated", columns, rows)]
    )


def limits(study: Study) -> list[str]:
    """What a reader cannot conclude from a study."""
    policy = study.policies[-1]
    return [
        f"Intervals are for other prompts of this task, {policy['prompts']} of which were seen; they say nothing of other tasks, models or sizes.",
        "Lower gradient variance is not better training: step size, clipping and exploration decide as well.",
        "The gradients are of the raw reward objective, before Adam's preconditioning and gradient clipping.",
        "Estimators are compared on the responses of the policies listed; each would have trained to policies of its own.",
    ]
