"""Figures: an interval for every number, open ends as arrows, no text over other text, files that are the same for the same data."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from studies import bandit_study, write_run

from analysis.claims.evidence import Material
from analysis.claims.ledger import judge
from analysis.claims.records import evidence_of
from analysis.examples import wordy_bandit
from analysis.plots import runs as figures_runs
from analysis.plots import variance as figures
from analysis.plots.answer import ratio_by_policy
from analysis.plots.audits import audit_by_part, audits_over_training
from analysis.plots.exact import parabola
from analysis.plots.intervals import WIDEST
from analysis.plots.style import colour, figure_of, inline_svg, is_hollow, marker, save
from analysis.runs.groups import with_groups
from analysis.runs.load import load
from analysis.study.result import Study

STUDY = {
    "forest": figures.forest,
    "ratio_forest": figures.ratio_forest,
    "against_group_size": figures.against_group_size,
    "equal_variance": figures.equal_variance,
    "over_training": figures.over_training,
    "within_between": figures.within_between,
    "norm_against_length": figures.norm_against_length,
    "audits_over_training": audits_over_training,
    "audit_by_part": audit_by_part,
}


@pytest.fixture(scope="module")
def study() -> Study:
    return bandit_study()


@pytest.mark.parametrize("name", STUDY)
def test_no_text_overlaps(name: str, study: Study) -> None:
    draw: Callable[..., Axes] = STUDY[name]
    clashes(draw(study))


def test_audits_are_drawn_where_the_table_has_them(study: Study) -> None:
    """Each estimate's interval is a line from its low to its high end."""
    for ax, scopes, axis in ((audits_over_training(study), {"all"}, 1), (audit_by_part(study), {"layer 0", "head"}, 0)):
        rows = study.audits.filter(pl.col("scope").is_in(scopes), measure="norm_length_exponent").drop_nulls()
        drawn = [np.asarray(line.get_data()[axis]) for line in ax.get_lines()]
        assert len(rows) >= 2
        for low, high in rows.select("low", "high").iter_rows():
            assert any(len(ends) == 2 and np.allclose(ends, (low, high)) for ends in drawn)


def test_training_curves_and_ledger_do_not_overlap(study: Study, tmp_path: Path) -> None:
    for seed in range(3):
        for algo in ("opo", "grpo"):
            write_run(tmp_path / f"{algo}-{seed}", algo, seed, 0.01)
    runs = with_groups(load(tmp_path))
    for metric in figures_runs.CURVES:
        clashes(figures_runs.training_curves(runs, metric, by="group"))
    clashes(figures_runs.ledger(judge(evidence_of(Material(study)))))
    clashes(parabola(wordy_bandit()))


def clashes(ax: Axes) -> None:
    """Fail where two texts that are drawn share more than a sliver."""
    figure = figure_of(ax)
    figure.draw_without_rendering()
    shown = [(t.get_text(), t.get_window_extent()) for t in drawn_texts(ax) if t.get_visible() and t.get_text().strip()]
    assert len(shown) > 5
    for i, (one, a) in enumerate(shown):
        for other, b in shown[i + 1 :]:
            width = min(a.x1, b.x1) - max(a.x0, b.x0)
            height = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert width < 1 or height < 1, f"{one!r} over {other!r}"


def drawn_texts(ax: Axes) -> list[Text]:
    """Titles, labels, annotations, legend, and the labels of ticks that lie within the limits, of the axes and those inside it."""
    legend = ax.get_legend()
    texts = [*ax.texts, ax.title, getattr(ax, "_left_title"), ax.xaxis.label, ax.yaxis.label]  # noqa: B009
    texts += legend.get_texts() if legend else []
    for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
        low, high = sorted(axis.get_view_interval())
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return texts + [text for child in ax.child_axes if isinstance(child, Axes) for text in drawn_texts(child)]


def across(line: Any) -> list[float]:
    """Where a line's points stand on the horizontal axis."""
    return list(line.get_xdata())


def test_forest_draws_every_interval(study: Study) -> None:
    """One line from low to high and one point per row, in the order of relative variance, the same for bias beside it."""
    ax = figures.forest(study)
    rows = study.select("relative_variance").sort("value", descending=True)
    ends = {tuple(across(line)) for line in ax.lines if len(across(line)) == 2}
    points = [across(line)[0] for line in ax.lines if len(across(line)) == 1 and line.get_marker() == "o"]
    known = rows.drop_nulls()
    assert ends >= {(row["low"], row["high"]) for row in known.iter_rows(named=True)}
    assert points == rows["value"].to_list()
    beside = ax.child_axes[0]
    bias = {row["estimator"]: 100 * row["value"] for row in study.select("bias").iter_rows(named=True)}
    drawn = [across(line)[0] for line in beside.lines if len(across(line)) == 1 and line.get_marker() == "o"]
    assert drawn == pytest.approx([bias[name] for name in rows["estimator"]])


def test_an_open_end_is_an_arrow_and_an_unknown_value_is_said_to_be(study: Study) -> None:
    moments = study.moments.to_dicts()
    for row in moments:
        if row["measure"] == "relative_variance" and row["estimator"] == "none":
            row.update(high=None, resolved=False)
        if row["measure"] == "relative_variance" and row["estimator"] == "group_mean":
            row.update(value=None, low=None, high=None, resolved=False)
    changed = replace(study, moments=pl.DataFrame(moments, schema=study.moments.schema))
    ax = figures.forest(changed)
    assert [line.get_marker() for line in ax.lines].count(">") == 1
    assert [text.get_text() for text in ax.texts] == ["not resolved"]


def test_curves_show_the_mean_over_seeds_with_students_interval(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / str(seed), "opo", seed, 0.01)
    runs = with_groups(load(tmp_path))
    ax = figures_runs.training_curves(runs, by="group")
    mean = runs.group_by("step").agg(pl.col("train/reward_mean").mean())
    drawn = next(line for line in ax.lines if str(line.get_label()).startswith("opo"))
    assert np.asarray(drawn.get_ydata()).tolist() == pytest.approx(mean.sort("step")["train/reward_mean"].to_list())
    assert drawn.get_label() == "opo (3 seeds)"
    assert len(ax.collections) == 1, "the band"
    assert len(ax.lines) == 4, "three seeds and their mean"


def test_curves_against_tokens_stop_where_the_shortest_seed_does(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "opo", 0, 0.01, steps=10)
    write_run(tmp_path / "1", "opo", 1, 0.01, steps=20)
    places, values = figures_runs.curves(with_groups(load(tmp_path)), "train/reward_mean", "train/tokens", 1)
    assert (places[0], places[-1]) == (100, 1000)
    assert values.shape == (2, len(places))


def test_files_are_reproducible_and_have_both_forms(study: Study, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save(figures.forest(study), tmp_path / folder, "forest")
    for name in ("forest.svg", "forest.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_inline_svg_stands_alone(study: Study) -> None:
    """Ids of two figures never clash, nothing is fetched, the ink is the page's, and a screen reader is told what it shows."""
    svgs = [
        inline_svg(figures.forest(study), 'a "forest" <of> points & lines'),
        inline_svg(figures.ratio_forest(study), "ratios"),
    ]
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in svgs]
    assert not set(ids[0]) & set(ids[1])
    for svg, own in zip(svgs, ids, strict=True):
        used = {a or b for a, b in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg)}
        assert used <= set(own)
        assert not re.search(r'(src|href)="https?:', svg)
        assert "<script" not in svg
        assert "currentColor" in svg
    assert 'aria-label="a &quot;forest&quot; &lt;of> points &amp; lines"' in svgs[0]


def test_axes_of_ones_own_are_used(study: Study) -> None:
    ax = Figure().add_subplot()
    assert figures.forest(study, ax=ax) is ax


def test_a_name_has_one_colour_in_every_figure() -> None:
    """Whatever else is shown; variants of an algorithm do not take the place of the plain one, and no two names share a look."""
    alone, among = (
        colour("length_weighted", ["length_weighted"]),
        colour("length_weighted", ["start", "none", "length_weighted"]),
    )
    assert alone == among == colour("opo", ["grpo", "opo"]) == colour("length_weighted_loo", [])
    assert is_hollow("length_weighted_loo")
    assert not is_hollow("rloo")
    groups = ["grpo (4 updates)", "grpo", "opo", "ppo (4 updates)"]
    assert colour("grpo", groups) == colour("grpo", ["grpo"])
    assert colour("ppo (4 updates)", groups) == colour("ppo", ["ppo"])
    assert len({colour(name, groups) for name in groups}) == len(groups)
    assert len({marker(name, groups) for name in groups}) == len(groups)


def test_the_opening_figure_draws_each_policy_of_each_estimator(study: Study) -> None:
    ax = ratio_by_policy(study, ["none", "length_weighted"])
    assert sorted(label.get_text() for label in ax.get_yticklabels()) == ["length_weighted", "none"]
    drawn = [across(line) for line in ax.lines if len(across(line)) == 2]
    for policy in study.policies:
        row = study.compare(policy["name"]).filter(estimator="none").row(0, named=True)
        low, high = row["low"] or 0.0, np.inf if row["high"] is None else row["high"]
        ends = np.clip([low, high], 1 / WIDEST, WIDEST)
        assert any(np.allclose(line, ends) for line in drawn)
    clashes(ax)


def test_many_unknown_names_differ_in_colour_and_marker() -> None:
    names = [f"step {step}" for step in range(12)]
    assert len({colour(name, names) for name in names}) == len({marker(name, names) for name in names}) == 12
    known = ["opo", *names[:11]]
    assert len({colour(name, known) for name in known}) == 12
