"""Several studies on one page: every policy in one figure, what each study found by itself, and the shipped evidence on SmolLM2."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from studies import bandit_study, write_run

from analysis.plots.several import ratio_across
from analysis.report.page import write_report
from analysis.report.several import sentence
from analysis.study.result import Study
from analysis.study.several import length_spread, looked_at, shared_estimators, study_folders
from opo.errors import UserError

EVIDENCE = Path(__file__).parents[3] / "notebooks" / "evidence" / "smollm2"


def with_interval(study: Study, estimator: str, low: float | None, high: float | None) -> Study:
    """The same study with this interval for every ratio of the estimator."""
    mine = pl.col("estimator") == estimator
    ends = [
        pl.when(mine).then(pl.lit(end, dtype=pl.Float64)).otherwise(pl.col(name)).alias(name)
        for name, end in (("low", low), ("high", high))
    ]
    return replace(study, comparisons=study.comparisons.with_columns(*ends))


def test_a_page_of_several_studies(tmp_path: Path) -> None:
    for name, sizes in (("sums", [2, 8]), ("deep/products", [2])):
        bandit_study(group_sizes=sizes).save(tmp_path / name)
    assert list(study_folders(tmp_path)) == ["deep/products", "sums"]
    html = write_report(tmp_path).read_text(encoding="utf-8")
    for label in ("sums, start", "sums, step 20", "deep/products, start", "deep/products, step 20"):
        assert html.count(label) >= 3  # in the figure and in both tables
    assert "at each study’s default group size" in html
    assert html.count("<summary>sums</summary>") == 2  # its results, and what to cite


def test_a_folder_of_runs_is_reported_on_whatever_studies_lie_below(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one", "opo", 0, 0.01)
    (tmp_path / "runs" / "study").mkdir()
    (tmp_path / "runs" / "study" / "result.json").write_text("{cut")
    assert "one seed has no interval" in write_report(tmp_path / "runs").read_text(encoding="utf-8")


def test_the_sentence_counts_intervals_that_leave_out_one() -> None:
    study = bandit_study(group_sizes=[2])
    less, more = (with_interval(study, "length_weighted", *ends) for ends in ((0.5, 0.9), (1.1, None)))
    looked = looked_at(
        {"less": less, "more": more.only("start"), "open": with_interval(study, "length_weighted", 0.9, None)}
    )
    assert [each.label for each in looked] == ["less, start", "less, step 20", "more", "open, start", "open, step 20"]
    kept = sum(
        each.study.ratio("length_weighted", each.policy["name"])["p_holm"] < 0.05
        for each in looked
        if each.label.startswith("less")
    )
    found = sentence(looked, ["length_weighted"])
    assert f"less noise than leave_one_out at 2 of 5 policies ({kept} with Holm’s correction) and more at 1" in found
    assert found.endswith("at the others the 95 % interval contains 1.")


def test_what_cannot_stand_side_by_side() -> None:
    study, other = bandit_study(group_sizes=[2]), bandit_study(group_sizes=[2], reference="group_mean")
    with pytest.raises(UserError, match=r"different references \(group_mean, leave_one_out\)"):
        looked_at({"a": study, "b": other})
    assert looked_at({"equal": bandit_study(reward=1.0, group_sizes=[2])}) == []
    fewer = bandit_study(group_sizes=[2], estimators=["none", "leave_one_out"])
    assert shared_estimators(looked_at({"a": study, "b": fewer})) == ["none"]


def test_the_spread_of_lengths_is_that_within_prompts() -> None:
    study = bandit_study(group_sizes=[2])
    spread = []
    for prompt in study.responses.filter(policy="step-000000")["prompt_id"].unique():
        lengths = study.responses.filter(policy="step-000000", prompt_id=prompt)["length"].to_numpy().astype(float)
        spread.append(lengths.var(ddof=1) / lengths.mean() ** 2)
    assert length_spread(looked_at({"one": study})[0]) == pytest.approx(np.mean(spread), rel=1e-12)


def test_every_policy_has_its_row() -> None:
    looked = looked_at({"one": bandit_study(group_sizes=[2])})
    ax = ratio_across(looked, ["none", "length_weighted"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one, step 20", "one, start"]  # the first is on top
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["none", "length_weighted"]


def test_the_shipped_evidence_says_what_the_readme_says() -> None:
    from analysis.study.result import load

    studies = {name: load(folder) for name, folder in study_folders(EVIDENCE).items()}
    looked = looked_at(studies)
    assert len(looked) == 8
    assert (
        "length_weighted has less noise than leave_one_out at 4 of 8 policies (2 with Holm’s correction)"
        in sentence(looked, ["length_weighted"])
    )
    assert "length_weighted_loo has less noise than leave_one_out at 0 of 8 policies" in sentence(
        looked, ["length_weighted_loo"]
    )
