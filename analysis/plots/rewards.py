"""Figures of an audit of rewards and lengths."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from analysis.plots.style import INK, axes, colour, is_hollow, is_known, styled


@styled()
def effective_shares(found: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """How large a share of the responses each algorithm really uses, with intervals over prompts."""
    rows = {name: m["effective_share"] for name, m in found["algorithms"].items() if "effective_share" in m}
    names = sorted(rows, key=lambda name: rows[name]["value"] or 0.0)
    ax = axes(ax, 6.4, 1.1 + 0.3 * max(1, len(names)))
    for place, name in enumerate(names):
        row, shade = rows[name], colour(name, [name]) if is_known(name) else INK
        if row["low"] is not None and row["high"] is not None:
            ax.plot([row["low"], row["high"]], [place, place], color=shade)
        ax.plot([row["value"]], [place], "o", color=shade, markerfacecolor="none" if is_hollow(name) else shade)
    speaking = 1 - found["silent"]["value"]
    ax.axvline(speaking, color=INK, linewidth=0.8)
    ax.text(speaking, len(names) - 0.4, " groups that are not silent", fontsize=8, va="bottom")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("effective share of the responses  (Σ|A|)² / (n ΣA²)")
    ax.set_title(f"{found['prompts']} prompts, {found['responses']} responses")
    ax.grid(axis="x")
    return ax
