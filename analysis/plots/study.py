"""All figures of a study, as files."""

from pathlib import Path

from analysis.plots import variance as figures
from analysis.plots.audits import audit_by_part, audits_over_training
from analysis.plots.style import save
from analysis.study.result import Study


def write_figures(study: Study, folder: Path) -> None:
    """Every figure of a study as SVG and PNG."""
    several = len({policy["step"] for policy in study.policies if policy["step"] is not None}) > 1
    for policy in study.policies:
        name = policy["name"]
        save(figures.forest(study, name), folder, f"variance-{name}")
        save(figures.ratio_forest(study, name), folder, f"variance-ratio-{name}")
        save(figures.norm_against_length(study, name), folder, f"norm-length-{name}")
        if not study.equal_variance.filter(policy=name).is_empty():
            save(figures.equal_variance(study, name), folder, f"equal-variance-{name}")
        save(figures.within_between(study, name), folder, f"within-between-{name}")
        if len(study.settings["group_sizes"]) > 1:
            save(figures.against_group_size(study, name), folder, f"group-size-{name}")
    if several:
        save(figures.over_training(study), folder, "variance-over-training")
        save(audits_over_training(study), folder, "audits-over-training")
    for measure in ("norm_length_exponent", "norm2_share"):
        save(audit_by_part(study, measure), folder, f"{measure.replace('_', '-')}-by-part")
