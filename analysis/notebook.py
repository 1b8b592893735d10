"""What a notebook starts from: studies, runs and rollouts by the paths that people type; figures and tables as it shows them.

A path is relative to the project, wherever the kernel runs: to the nearest folder above it that has a pyproject.toml.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from matplotlib.axes import Axes
from rich import box
from rich.table import Table

from analysis.plots.style import figure_of, styled
from analysis.runs.load import Runs, run_folders
from analysis.runs.load import load as load_runs
from analysis.study.result import Study
from analysis.study.result import load as load_study
from analysis.variance.text import interval_text
from opo.cli import quoted, rewritten
from opo.cli.compose import composed
from opo.errors import UserError

if TYPE_CHECKING:
    from IPython.display import Image

    from analysis.runs.ranking import Ranking
    from analysis.variance.estimators import WeightFunction

# progress bars of transformers fall back to text where ipywidgets is missing, and nothing of theirs is shown here
warnings.filterwarnings("ignore", message="IProgress not found")

WIDEST_TEXT = 60  # characters of a column of text
RESOLUTION = 200  # pixels an inch, shown at half the size: sharp on any screen


def project() -> Path:
    """The nearest folder at or above the current one with a pyproject.toml, else the current one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)


def find(path: str) -> Path:
    """The file or folder. Raises UserError where there is none."""
    found = project() / Path(path).expanduser()
    if not found.exists():
        raise UserError(f"{path}: not found in {project()}")
    return found


def study(path: str) -> Study:
    """The variance study in a folder of `opo variance` or `opo verify`."""
    return load_study(study_folder(path))


def study_folder(path: str) -> Path:
    """The folder itself, or its `variance/`. Raises UserError where neither holds a result."""
    folder = find(path)
    for place in (folder, folder / "variance"):
        if (place / "result.json").is_file():
            return place
    raise UserError(f"{path}: no variance study here (no result.json); `opo variance` and `opo verify` make one")


def runs(path: str) -> Runs:
    """All runs at or below a folder, or of any other place that `analysis.runs.load` knows."""
    return load_runs(path if _is_remote(path) else find(path))


def ranking(path: str) -> "Ranking":
    """The finished runs of a place, ranked as after a sweep. Raises UserError where none has a reward."""
    from analysis.commands import ranking as command
    from analysis.runs.ranking import ranking

    if not _is_remote(path) and any(run_folders(find(path))):
        ranked = command.rank(find(path))
    else:
        found = runs(path)
        done = found.runs.filter("done")
        ranked = ranking(Runs(found.metrics.join(done.select("run"), on="run", how="semi"), done), in_order=True)
    if ranked is None:
        raise UserError(f"{path}: no finished run with a reward yet, so there is no ranking")
    return ranked


def with_estimators(
    path: str,
    functions: "Mapping[str, str | WeightFunction]",
    policy: str | None = None,
    group_size: int | None = None,
) -> Study:
    """See `analysis.study.own.with_estimators`."""
    from analysis.study.own import with_estimators  # which loads torch

    return with_estimators(study_folder(path), functions, policy, group_size)


def _is_remote(path: str) -> bool:
    return path.startswith("wandb:")


def audit(rollouts: str | Sequence[str], options: Sequence[str] = ()) -> dict[str, Any]:
    """What `opo audit rollouts=...` finds; of the options, keys of `opo variance`, those that it shares: `reward.*` and `step`."""
    from analysis.commands.audit import audited, load_config

    shared = [option for option in options if option.startswith(("reward.", "step="))]
    return audited(load_config(composed("audit", [_rollouts(rollouts), *shared])))[0]


def measure(rollouts: str | Sequence[str], model: str, *options: str) -> Study:
    """The study of `opo variance rollouts=... model=... OPTIONS`, in the folder that the command writes; what is there is not measured again."""
    from analysis.claims.files import write_findings
    from analysis.study.config import load_config, study_name
    from analysis.study.run import run_study

    path = project() / Path(model).expanduser()
    chosen = rewritten(f"model={quoted(str(path))}" if path.exists() else f"model={model}")
    overrides = [_rollouts(rollouts), *chosen, *options]
    folder = project() / "runs/variance" / study_name(overrides)
    made = run_study(load_config(composed("variance", overrides)), folder)
    assert made is not None  # without shards the result is there at the end
    write_findings(made, folder)
    return made


def _rollouts(files: str | Sequence[str]) -> str:
    paths = [quoted(str(find(file))) for file in ([files] if isinstance(files, str) else files)]
    return f"rollouts=[{','.join(paths)}]"


def show(ax: Axes) -> "Image":
    """The figure, whole and in the report's style."""
    from IPython.display import Image

    buffer = io.BytesIO()
    with styled():
        figure_of(ax).savefig(buffer, format="png", dpi=RESOLUTION, bbox_inches="tight", facecolor="white")
    return Image(buffer.getvalue(), format="png", retina=True)


def policies(study: Study) -> Table:
    """The policies of a study: what `POLICY` can be."""
    columns = ("label", "step", "prompts", "responses", "reward_mean", "length_mean", "constant_prompts")
    rows = pl.DataFrame([{column: policy.get(column) for column in columns} for policy in study.policies])
    return table(rows.rename({"label": "policy", "constant_prompts": "equal rewards"}))


def table(frame: pl.DataFrame) -> Table:
    """A table with numbers to three digits, and the columns `value`, `low` and `high` as one: the estimate with its 95 % interval."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    merged = {"value", "low", "high"} <= set(frame.columns)
    columns = [column for column in frame.columns if not (merged and column in ("low", "high"))]
    for column in columns:
        right = frame[column].dtype.is_numeric()
        shown.add_column(
            "value [95 %]" if merged and column == "value" else column.replace("_", " "),
            justify="right" if right else "left",
            max_width=None if right else WIDEST_TEXT,
        )
    for row in frame.iter_rows(named=True):
        estimate = interval_text(row["value"], row["low"], row["high"]) if merged else ""
        shown.add_row(*(estimate if merged and column == "value" else _cell(row[column]) for column in columns))
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)
