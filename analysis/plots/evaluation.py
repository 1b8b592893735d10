"""The figure of an evaluation: pass@k and maj@k against k, a line a policy, with intervals over prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from analysis.plots.style import axes, colour, marker, styled


@styled()
def rates_against_k(policies: Sequence[Mapping[str, Any]], kind: str = "pass", ax: Axes | None = None) -> Axes:
    """`kind`@k of every policy of an evaluation (`analysis.evaluation.result.Evaluation`)."""
    ax = axes(ax)
    names = [policy["policy"] for policy in policies]
    for turn, policy in enumerate(policies):
        rates = {int(n.partition("@")[2]): e for n, e in policy["measures"].items() if n.startswith(f"{kind}@")}
        ks = sorted(rates)
        apart = 1 + 0.04 * (turn - (len(policies) - 1) / 2)  # side by side, so that intervals do not cover each other
        values = [rates[k]["value"] for k in ks]
        below = [rates[k]["value"] - rates[k]["low"] for k in ks]
        above = [rates[k]["high"] - rates[k]["value"] for k in ks]
        shade, name = colour(policy["policy"], names), policy["policy"]
        places = [k * apart for k in ks]
        ax.errorbar(places, values, [below, above], color=shade, marker=marker(name, names), capsize=2, label=name)
    known = sorted({int(n.partition("@")[2]) for p in policies for n in p["measures"] if n.startswith(f"{kind}@")})
    ax.set_xscale("log", base=2)
    ax.set_xticks(known, [str(k) for k in known])
    ax.minorticks_off()
    ax.set(xlabel="responses k", ylabel=f"{kind}@k", ylim=(-0.03, 1.03))
    ax.grid(axis="y")
    ax.legend(loc="best")
    return ax
