"""The sections of a report that training runs fill."""

import polars as pl

from analysis.claims.evidence import final_values
from analysis.plots import runs as figures_runs
from analysis.report.blocks import Block, Section, code, figure, table, text
from analysis.runs.groups import with_groups
from analysis.runs.load import Runs

COLUMNS = ("train/reward_mean", "train/kl_init_nats", "train/entropy_mean_nats", "length/tokens_mean")
WINDOW = 3  # steps that a curve averages over


def sections(runs: Runs) -> list[Section]:
    """Curves over steps and tokens, a table of the ends, and the runs themselves."""
    frame = with_groups(runs)
    seeds = frame.group_by("group").agg(pl.col("seed").n_unique())["seed"]
    intro = "Mean over seeds; the band is the 95 % Student interval of that mean, thin lines are single seeds."
    if seeds.min() == 1:
        intro += " A group with one seed has no interval, and nothing is concluded from it."
    blocks: list[Block] = [text(intro)]
    if frame["train/reward_mean"].is_not_null().any():
        caption = "Mean reward against generated tokens: the price of a rollout is the same for every algorithm."
        blocks.append(figure(figures_runs.training_curves(frame, x="train/tokens", by="group", window=WINDOW), caption))
    for metric in figures_runs.CURVES:
        if metric in frame.columns and frame[metric].is_not_null().any():
            caption = f"{figures_runs.AXIS_LABELS[metric].capitalize()} against rollout batches."
            blocks.append(figure(figures_runs.training_curves(frame, metric, by="group", window=WINDOW), caption))
    blocks.append(ends(frame))
    return [Section("training", "Trainings", blocks), _list(runs)]


def ends(frame: pl.DataFrame) -> Block:
    """Where the runs started and ended, at equal tokens."""
    tokens = float(frame.group_by("run").agg(pl.col("train/tokens").max())["train/tokens"].min())  # pyright: ignore
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


def _list(runs: Runs) -> Section:
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
    blocks = [text(words), table(f"{len(rows)} runs", columns, rows)]
    if unfinished := [row["run"] for row in table_of_runs.iter_rows(named=True) if not row["done"]]:
        blocks += [text("Not finished:"), code("\n".join(unfinished))]
    return Section("runs", "The runs", blocks)


def limits(runs: Runs) -> list[str]:
    """What a reader cannot conclude from these runs."""
    seeds, steps = runs.runs["seed"].n_unique(), runs.runs["steps"].max()
    return [
        f"{seeds} seed{'s' if seeds != 1 else ''} of {steps} rollout batches: differences between algorithms smaller than the bands are not differences, "
        "and what happens later in training is not seen.",
        "Every algorithm ran with one learning rate, the same for all; none was tuned, and another rate may change their order.",
        f"The policy was {', '.join(sorted(set(runs.runs['model'])))} on {', '.join(sorted(set(runs.runs['task'])))}; large models and long answers may behave otherwise.",
    ]
