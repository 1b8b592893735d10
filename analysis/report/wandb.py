"""The same report in W&B: the sections of the page as blocks, its figures as pictures of a W&B run, training curves as charts.

A report can show pictures that a run holds. So publishing logs a run of job type `report` with the figures and with the training
curves as three lines a group (mean, and the ends of its interval), and the report shows these and the runs themselves. Needs the extra
`report` and a login.
"""

import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from analysis.plots.runs import AXIS_LABELS, CURVES, effect_text, threshold_text
from analysis.plots.style import colour, save
from analysis.report.bands import AXIS, ENDS, Band, bands
from analysis.report.blocks import Block, Section
from analysis.report.runs import WINDOW
from analysis.report.sources import Sources
from analysis.runs.groups import configuration_keys, with_groups
from analysis.runs.load import Runs
from opo.config.schema import WandbConfig
from opo.errors import StoppedRun, UserError
from opo.tracking.result import Result, ResultTracker

WIDTH, HEIGHT = 24, 16  # of a picture, in units of W&B's grid
EXTRA = "publish=wandb: the package wandb-workspaces is missing; install the extra `report`"


@dataclass(frozen=True)
class Place:
    """Where the report is, and the run that holds its pictures."""

    project: str
    entity: str
    run: str


def publish(folder: Path, project: str, entity: str | None) -> str:
    """Save the report of `folder` as a draft in W&B and return its address. Raises UserError where that is not possible."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # no wandb.Error, unlike its others

    wr = workspaces()
    from analysis.report.page import sections_of

    try:
        if not wandb.login(prompt=False):
            raise UserError(
                "publish=wandb: not logged in to W&B; `wandb login`, or publish=null (the default) for the HTML page alone"
            )
        place = Place(project, entity or str(wandb.Api().default_entity), secrets.token_hex(4))
        sections, sources = sections_of(folder), Sources.of(folder)
        with tempfile.TemporaryDirectory() as scratch:
            pictures = draw(sections, Path(scratch))
            _record(sources, place, {name: str(Path(scratch, f"{i}.png")) for i, name in enumerate(pictures.values())})
        report = build(wr, sections, sources.runs, pictures, place, f"OPO: {folder.resolve().name}")
        report.save(draft=True)
    except (wandb.Error, WandbApiFailedError, ValueError, OSError) as error:
        raise UserError(f"publish=wandb: {(str(error) or type(error).__name__).splitlines()[0]}") from error
    return report.url


def workspaces() -> Any:
    """The package that writes reports; its names are untyped. Raises UserError where it is not installed."""
    try:
        return import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise UserError(EXTRA) from error


def figures_in(blocks: Sequence[Block]) -> Iterator[Block]:
    """Every figure, also of inner blocks, in the order of the page."""
    for block in blocks:
        yield from figures_in(block.inner)
        if block.kind == "figure":
            yield block


def draw(sections: Sequence[Section], folder: Path) -> dict[int, str]:
    """The page's figures as 0.png, 1.png ... in `folder`; maps the figures (by identity) to their names in W&B, in the same order."""
    names: dict[int, str] = {}
    for section in sections:
        for block in figures_in(section.blocks):
            assert block.ax is not None
            save(block.ax, folder, str(len(names)))
            names[id(block)] = f"report/{len(names):02d}-{section.id}"
    return names


def _record(sources: Sources, place: Place, images: Mapping[str, str]) -> None:
    """The run with the pictures and the lines. Raises UserError where W&B does not take it."""
    curves = _bands(sources.runs)
    rows = [row for band in curves for row in _rows(band)]
    folder = sources.folder.resolve()
    studies = [] if sources.runs is None else sources.runs.runs["study"].unique().to_list()
    result = Result(
        job_type="report",
        group=str(studies[0]) if len(studies) == 1 else folder.name,
        name=f"report of {folder.name}",
        notes="the pictures of a report, and the curves of its trainings with their intervals",
        tags=[],
        config={},
        axis=AXIS if rows else None,
        rows=rows,
        images=images,
    )
    tracking = WandbConfig(mode="online", project=place.project, entity=place.entity)
    with ResultTracker(folder / "wandb" / "report", tracking, place.run) as tracker:
        try:
            tracker.write(result)
        except StoppedRun as stopped:
            raise UserError(f"publish=wandb: {stopped}") from stopped


def _bands(runs: Runs | None) -> list[Band]:
    return [] if runs is None else list(bands(with_groups(runs), CURVES, WINDOW))


def _rows(band: Band) -> Iterator[dict[str, float]]:
    values = {"mean": band.mean, "low": band.mean - band.half, "high": band.mean + band.half}
    for place, at in enumerate(band.at.tolist()):
        found = {line_name(band, end): float(values[end][place]) for end in ENDS}
        yield {AXIS: float(at)} | {name: value for name, value in found.items() if value == value}


def line_name(band: Band, end: str) -> str:
    """A metric of the report's run; W&B takes letters, digits and underscores."""
    return f"{band.metric}/{re.sub(r'[^A-Za-z0-9]+', '_', band.group).strip('_')}/{end}"


def build(
    wr: Any, sections: Sequence[Section], runs: Runs | None, pictures: Mapping[int, str], place: Place, title: str
) -> Any:
    """The report, not saved yet."""
    blocks: list[Any] = [wr.TableOfContents()]
    for section in sections:
        blocks.append(wr.H1(section.title))
        for block in section.blocks:
            blocks += _blocks(wr, block, pictures, place)
        if section.id == "training" and runs is not None:
            blocks += _trainings(wr, runs, place)
    return wr.Report(project=place.project, entity=place.entity, title=title, blocks=blocks)


def _blocks(wr: Any, block: Block, pictures: Mapping[int, str], place: Place) -> list[Any]:
    """One block of the page as W&B's blocks."""
    if block.inner:
        title = [wr.H3(block.text)] if block.text else []
        return [*title, *(piece for inner in block.inner for piece in _blocks(wr, inner, pictures, place))]
    if block.kind == "figure":
        picture = wr.MediaBrowser(
            media_keys=[pictures[id(block)]], num_columns=1, layout=wr.Layout(0, 0, WIDTH, HEIGHT)
        )
        return [_panels(wr, [picture], _own_run(wr, place)), wr.P(block.caption)]
    if block.kind == "heading":
        return [wr.H2(block.text)]
    if block.kind == "list":
        return [wr.UnorderedList(items=list(block.entries))]
    if block.kind == "code":
        return [wr.CodeBlock(code=block.text, language="markdown")]
    if block.kind == "table":
        return [wr.MarkdownBlock(text=f"{block.caption}\n\n{markdown_table(block.columns, block.rows)}")]
    if block.kind == "ledger":
        columns = ["claim", "verdict", "effect [95 %]", "claimed", "measured on"]
        rows = [[c["claim"], c["verdict"], effect_text(c), threshold_text(c), c["about"]] for c in block.claims]
        return [wr.MarkdownBlock(text=f"{block.caption}\n\n{markdown_table(columns, rows)}")]
    return [wr.P(block.text)]


def _own_run(wr: Any, place: Place) -> Any:
    """The run that holds the pictures and the lines, alone."""
    filters = f"ID == {place.run!r}"
    return wr.Runset(entity=place.entity, project=place.project, name="this report", filters=filters)


def _panels(wr: Any, panels: Sequence[Any], runset: Any, hide: bool = True) -> Any:
    return wr.PanelGrid(runsets=[runset], panels=list(panels), hide_run_sets=hide)


def _trainings(wr: Any, runs: Runs, place: Place) -> list[Any]:
    """Curves with their intervals from the report's run, then the study's runs, grouped by configuration."""
    found = _bands(runs)
    groups = list(dict.fromkeys(band.group for band in found))
    charts = [
        _chart(wr, [b for b in found if b.metric == metric], groups, place.run)
        for metric in dict.fromkeys(b.metric for b in found)
    ]
    studies = sorted(set(runs.runs["study"]))
    grouped = wr.Runset(
        entity=place.entity,
        project=place.project,
        name="trainings by configuration",
        filters=f"Group in {studies!r} and JobType == 'train'",
        groupby=[f"config.{key}" for key in configuration_keys(runs)],
    )
    lines = [
        wr.LinePlot(
            title=f"{AXIS_LABELS[metric]}: mean and range of the seeds",
            x=AXIS,
            y=[metric],
            aggregate=True,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for metric in dict.fromkeys(band.metric for band in found)
    ]
    said = "Solid: mean over seeds; dashed: the ends of the 95 % Student interval of that mean. Below, the runs themselves with the range of their seeds."
    return (
        [wr.P(said), _panels(wr, charts, _own_run(wr, place)), _panels(wr, lines, grouped, hide=False)]
        if charts
        else []
    )


def _chart(wr: Any, found: Sequence[Band], groups: Sequence[str], run: str) -> Any:
    """One metric: a solid line a group, and dashed ones at the ends of its interval."""
    lines = {
        line_name(band, end): (band.group, end)
        for band in found
        for end in ENDS
        if end == "mean" or band.half.max() >= 0
    }
    return wr.LinePlot(
        title=f"{AXIS_LABELS[found[0].metric]}, with 95 % intervals",
        x=AXIS,
        y=list(lines),
        title_x=AXIS_LABELS[AXIS],
        line_titles={
            f"{run}:{name}": group if end == "mean" else f"{group}, {end}" for name, (group, end) in lines.items()
        },
        line_colors={f"{run}:{name}": colour(group, groups) for name, (group, _) in lines.items()},
        line_marks={f"{run}:{name}": "solid" if end == "mean" else "dashed" for name, (_, end) in lines.items()},
    )


def markdown_table(columns: Any, rows: Any) -> str:
    """A table in Markdown; bars and line ends inside cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(cell: Any) -> str:
    return str(cell).replace("|", "\\|").replace("\r", "").replace("\n", "<br>")
