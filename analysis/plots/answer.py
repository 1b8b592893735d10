"""The figure that a page opens with: every estimator's noise against the reference's, at each policy that was looked at."""

from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.plots.intervals import WIDEST, draw_intervals, ratio_axis
from analysis.plots.style import INK, MARKERS, axes, styled
from analysis.study.result import Study

MOST_POLICIES = 3


@styled()
def ratio_by_policy(study: Study, estimators: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Relative variance over the reference's, paired over the same responses; one row an estimator, one marker a policy.

    `estimators`: which; all but the reference otherwise. Of many policies the first, the middle one and the last are drawn.
    """
    policies = chosen_policies(study)
    ranked = study.compare(policies[-1]).sort("value", descending=True, nulls_last=False)
    names = [name for name in ranked["estimator"] if estimators is None or name in estimators]
    ax = axes(ax, 5.6, 1.2 + (0.18 + 0.14 * len(policies)) * len(names))
    apart = 0.62 / len(policies)
    for turn, policy in enumerate(policies):
        rows = pl.DataFrame({"estimator": names}).join(study.compare(policy), on="estimator", maintain_order="left")
        offset = (turn - (len(policies) - 1) / 2) * apart
        draw_intervals(ax, rows, span=(1 / WIDEST, WIDEST), lower=offset, shape=MARKERS[turn])
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ratio_axis(ax, f"relative gradient variance over {study.settings['reference']}'s, below 1: less noise")
    if len(policies) > 1:
        keys = [
            Line2D([], [], color=INK, linestyle="", marker=MARKERS[turn], label=study.policy(policy)["label"])
            for turn, policy in enumerate(policies)
        ]
        ax.legend(handles=keys, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(keys))
    return ax


def chosen_policies(study: Study) -> list[str]:
    """All policies, or the first, the middle one and the last; those without a gradient are left out."""
    names = [policy["name"] for policy in study.policies if not study.all_rewards_equal(policy["name"])]
    if len(names) <= MOST_POLICIES:
        return names
    return [names[0], names[len(names) // 2], names[-1]]
