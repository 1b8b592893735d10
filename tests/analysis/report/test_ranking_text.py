"""The table of a ranking as Markdown and LaTeX, its notes and its figure."""

from pathlib import Path

import numpy as np
import pytest

from analysis.commands.ranking import rank
from analysis.plots.ranking import ranking_forest
from analysis.report.ranking import latex, markdown, notes
from analysis.runs.ranking import Rank, Ranking

EXAMPLE = Path(__file__).parents[3] / "notebooks" / "example"


def test_the_example_as_tables() -> None:
    ranked = rank(EXAMPLE)
    assert ranked is not None
    head, rule, first, *_, last = markdown(ranked).splitlines()
    assert head == "| algorithm | seeds | reward | minus grpo [95 %] | shared seeds |"
    assert rule == "| --- | ---: | ---: | ---: | ---: |"
    assert first == "| opo | 3 | 0.894 [0.852, 0.922] | +0.064 [+0.036, +0.104] | 3 |"
    assert last == "| grpo | 3 | 0.830 [0.815, 0.857] |  |  |"
    assert r"opo & 3 & 0.894 [0.852, 0.922] & +0.064 [+0.036, +0.104] & 3 \\" in latex(ranked).splitlines()
    assert r"minus grpo [95 \%]" in latex(ranked)
    assert notes(ranked) == [
        "intervals over 3 seeds are too short: of 3 seeds they hold the truth in 74 % of all cases, of 5 in 90 %, of 8 in 93 %"
    ]


def test_the_figure_shows_what_the_table_says() -> None:
    ranked = rank(EXAMPLE)
    assert ranked is not None
    ax = ranking_forest(ranked)
    assert [label.get_text() for label in ax.get_yticklabels()] == [row.name for row in ranked.rows[::-1]]
    points = [float(np.asarray(line.get_xdata())[0]) for line in ax.lines if line.get_marker() == "o"]
    assert points == pytest.approx([row.score for row in ranked.rows[::-1]])


def test_one_seed_is_marked_as_such_and_names_are_escaped() -> None:
    rows = [Rank("a_b", 1, 0.5, None, 1, 0.25, None), Rank("first", 1, 0.25, None, 0, None, None)]
    ranked = Ranking(100.0, ["sums"], "first", rows, {"lost": "stopped"})
    assert r"a\_b & 1 & 0.500 [one seed] & +0.250 [one seed] & 1 \\" in latex(ranked)
    assert notes(ranked) == [
        "one seed: no interval, and nothing can be concluded from the difference",
        "left out (stopped): lost",
    ]
    ranking_forest(ranked)
