"""The gallery's figure: a row for each algorithm, its gradient's noise on the left, what the noise is about on the right."""

from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.intervals import draw_intervals, plain_log_ticks
from analysis.plots.style import FAINT, INK, PALETTE, styled

NOISE = (0.25, 16.0)  # shown; what lies beyond is an arrow at the edge
COLOURS = {
    "unbiased": PALETTE[2],
    "bias of order 1/G": PALETTE[1],
    "of another objective": PALETTE[3],
    "biased": PALETTE[0],
}


@styled()
def gallery(
    table: pl.DataFrame, names: Sequence[str], kinds: Sequence[str], policy: str, reward: tuple[float, float] | None
) -> Axes:
    """Noise over the leave-one-out baseline's, what is missed of the true gradient, and the reward after training, a row an algorithm.

    `kinds` says of each name which of `COLOURS` it has; `reward` is the range of rewards shown, None where nothing was trained.
    """
    figure = Figure(figsize=(5.6, 1.1 + 0.235 * len(names)), layout="constrained")
    panels = figure.subplots(
        1, 2 if reward is None else 3, sharey=True, width_ratios=[1.25, 1] if reward is None else [1.25, 1, 1]
    )
    shades = [COLOURS[kind] for kind in kinds]
    noise, misses, trained = panels[0], panels[1], panels[-1]

    def of(measure: str, where: str | None) -> pl.DataFrame:
        chosen = table.filter(pl.col("measure") == measure, pl.col("policy").eq_missing(pl.lit(where)))
        empty = {"value": None, "low": None, "high": None}
        by_name = {row["row"]: row for row in chosen.iter_rows(named=True)}
        rows = [{"estimator": name} | {k: by_name.get(name, empty)[k] for k in empty} for name in names]
        for row in rows:
            if row["low"] is None and row["high"] is None:  # a point without an interval
                row |= {"low": row["value"], "high": row["value"]}
        schema = {"estimator": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64}
        return pl.DataFrame(rows, schema=schema)

    noise.set_xscale("log")
    draw_intervals(noise, of("noise_ratio", policy), colours=shades, span=NOISE)
    noise.axvline(1.0, color=INK, linewidth=0.8)
    noise.set_xlim(*NOISE)
    plain_log_ticks(noise, "x")
    noise.set_xlabel("noise, RLOO = 1\\n← less".replace("\\n", "\n"))
    draw_intervals(misses, of("misses", policy), colours=shades, span=(0.0, 1.0))
    misses.set_xlim(-0.03, 1.03)
    misses.set_xlabel("gradient missed\n← less")
    if reward is not None:
        draw_intervals(trained, of("reward", None), colours=shades, span=reward)
        trained.set_xlim(*reward)
        for words in trained.texts:
            words.set_text("not trained")
        trained.set_xlabel("reward reached\nmore →")
    noise.set_yticks(range(len(names)), names, fontsize=9)
    for panel in panels:
        panel.grid(axis="x")
        panel.tick_params(axis="y", length=0)
        for place in range(1, len(names), 2):
            panel.axhspan(place - 0.5, place + 0.5, color=FAINT, alpha=0.08, linewidth=0)
    noise.set_ylim(len(names) - 0.4, -0.6)
    handles = [noise.plot([], [], "o-", color=shade, label=kind)[0] for kind, shade in COLOURS.items() if kind in kinds]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=2,
        title="as an estimate of the gradient of expected reward",
        alignment="left",
    )
    return noise
