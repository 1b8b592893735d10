"""The sections of a report that training runs fill."""

from collections.abc import Iterator

import polars as pl

from analysis.plots import runs as figures_runs
from analysis.report.blocks import Block, Section, code, figure, fold, table, text
from analysis.runs.ends import common_tokens, final_values
from analysis.runs.groups import with_groups
from analysis.runs.load import Runs

COLUMNS = ("train/reward_mean", "train/kl_init_nats", "train/entropy_mean_nats", "length/tokens_mean")
WINDOW = 3  # steps that a curve averages over
FEWEST_STEPS = 3  # fewer make no curve
MOST_GROUPS = 4  # that the opening sentence names


def section(runs: Runs) -> Section:
    """A table of the ends, curves over tokens and steps, and the runs themselves."""
    frame = with_groups(runs)
    seeds = frame.group_by("group").agg(pl.col("seed").n_unique())["seed"]
    intro = "Mean over seeds; the band is the 95 % Student interval of that mean, thin lines are single seeds."
    if seeds.min() == 1:
        intro += " A group with one seed has no interval, and nothing is concluded from it."
    blocks: list[Block] = [ends(frame), text(intro)]
    longest = frame.group_by("run").agg(pl.col("step").n_unique())["step"].max()
    if not isinstance(longest, int) or longest < FEWEST_STEPS:
        blocks.append(
            text(f"The longest training has {longest or 0} steps, too few for a curve: the table above says it all.")
        )
    else:
        blocks += _curves(frame)
    return Section("training", "Training", [*blocks, fold(f"The {len(runs.runs)} runs", _list(runs))])


def _curves(frame: pl.DataFrame) -> Iterator[Block]:
    known = [metric for metric in figures_runs.CURVES if metric in frame.columns and frame[metric].is_not_null().any()]
    folded = []
    for metric in known:
        label = figures_runs.AXIS_LABELS[metric]
        curve = figures_runs.training_curves(frame, metric, by="group", window=WINDOW)
        shown = figure(curve, f"{label[0].upper()}{label[1:]} against rollout batches.")
        if metric == "train/reward_mean":
            caption = "Mean reward against generated tokens: the price of a rollout is the same for every algorithm."
            curve = figures_runs.training_curves(frame, metric, x="train/tokens", by="group", window=WINDOW)
            yield figure(curve, caption)
            folded.append(shown)
        else:
            yield shown
    if folded:
        yield fold("Reward against rollout batches", folded)


def ends_text(runs: Runs) -> str:
    """Where the trainings ended, in half a sentence: reward by group at equal tokens."""
    frame = with_groups(runs)
    tokens = common_tokens(frame)
    found = []
    for (group,), mine in frame.group_by("group", maintain_order=True):
        values = list(final_values(mine, "train/reward_mean", tokens).values())
        seeds = f"{len(values)} seed{'s' if len(values) != 1 else ''}"
        found.append((sum(values) / len(values) if values else 0.0, f"{group} {spread(values)}, {seeds}"))
    if not found:
        return "the trainings have no step yet."
    ranked = [words for _, words in sorted(found, reverse=True)]
    more = f"; and {len(ranked) - MOST_GROUPS} more" if len(ranked) > MOST_GROUPS else ""
    return f"mean reward after {tokens:,.0f} generated tokens (lowest to highest over seeds) came to {'; '.join(ranked[:MOST_GROUPS])}{more}."


def ends(frame: pl.DataFrame) -> Block:
    """Where the runs started and ended, at equal tokens."""
    tokens = common_tokens(frame)
    present = [column for column in COLUMNS if column in frame.columns]
    rows = []
    for (group,), mine in frame.group_by("group", maintain_order=True):
        start = mine.filter(pl.col("step") <= max(1, int(mine["step"].max()) // 10))["train/reward_mean"].mean()  # pyright: ignore
        cells = [spread(list(final_values(mine, column, tokens).values())) for column in present]
        rows.append([str(group), str(mine["seed"].n_unique()), "-" if start is None else f"{start:.3f}", *cells])
    columns = ["algorithm", "seeds", "reward at first", *(figures_runs.AXIS_LABELS[column] for column in present)]
    caption = f"At {tokens:,.0f} generated tokens, which every run has (the last tenth of the steps up to there): mean over seeds (lowest to highest)"
    return table(caption, columns, rows)


def spread(values: list[float]) -> str:
    """`0.61 (0.58 to 0.63)`."""
    return f"{sum(values) / len(values):.3g} ({min(values):.3g} to {max(values):.3g})" if values else "-"


def _list(runs: Runs) -> list[Block]:
    table_of_runs = runs.runs
    rows = [
        [
            row["run"],
            row["algo"],
            row["task"],
            row["model"],
            str(row["seed"]),
            f"{row['steps_done']} of {row['steps']}",
            row["on_policy"],
        ]
        for row in table_of_runs.iter_rows(named=True)
    ]
    columns = ["run folder", "algorithm", "task", "model", "seed", "steps", "on-policy"]
    words = "Each folder's config.yaml replays its run; run.json has versions, code and device; metrics.jsonl has every step; certificate.json whether sampler and trainer agreed."
    blocks: list[Block] = [text(words), table(f"{len(rows)} runs", columns, rows)]
    if unfinished := [row["run"] for row in table_of_runs.iter_rows(named=True) if not row["done"]]:
        blocks += [text("Not finished:"), code("\n".join(unfinished))]
    return blocks


def limits(runs: Runs) -> list[str]:
    """What a reader cannot conclude from these runs."""
    seeds, steps = runs.runs["seed"].n_unique(), runs.runs["steps"].max()
    return [
        f"{seeds} seed{'s' if seeds != 1 else ''} of {steps} rollout batches: differences between algorithms smaller than the bands are not differences, "
        "and what happens later in training is not seen.",
        "Every algorithm ran with one learning rate, the same for all; none was tuned, and another rate may change their order.",
        f"The policy was {', '.join(sorted(set(runs.runs['model'])))} on {', '.join(sorted(set(runs.runs['task'])))}; large models and long answers may behave otherwise.",
    ]
