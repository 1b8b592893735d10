"""The same report in W&B: its sections as blocks, its figures from the runs that W&B has. Needs the extra `report` and a login."""

from importlib import import_module
from pathlib import Path
from typing import Any

from analysis.plots.runs import CURVES, effect_text, threshold_text
from analysis.report.blocks import Block
from opo.errors import UserError

X_AXIS = "train/step"


def publish(folder: Path, project: str, entity: str | None) -> str:
    """Save the report of `folder` as a draft in W&B and return its address. Raises UserError where that is not possible."""
    import wandb

    if not wandb.api.api_key:
        raise UserError(
            "publish=wandb: not logged in to W&B; `wandb login`, or leave publish out for the HTML page alone"
        )
    try:
        wr: Any = import_module("wandb_workspaces.reports.v2")  # its names are untyped
    except ImportError as error:
        raise UserError("publish=wandb: the package wandb-workspaces is missing; install the extra `report`") from error
    from analysis.report.page import sections_of

    blocks: list[Any] = [wr.TableOfContents()]
    for section in sections_of(folder):
        blocks.append(wr.H1(section.title))
        for block in section.blocks:
            blocks += _blocks(wr, block)
        if section.id == "training":
            panels = [
                wr.LinePlot(x=X_AXIS, y=[metric], groupby="algo.name", groupby_rangefunc="stddev") for metric in CURVES
            ]
            blocks.append(wr.PanelGrid(runsets=[wr.Runset(entity=entity or "", project=project)], panels=panels))
    report = wr.Report(project=project, entity=entity or "", title=f"OPO: {folder.resolve().name}", blocks=blocks)
    try:
        report.save(draft=True)
    except (wandb.Error, OSError) as error:
        raise UserError(f"publish=wandb: {str(error).splitlines()[0]}") from error
    return report.url


def _blocks(wr: Any, block: Block) -> list[Any]:
    """One block of the page as W&B's blocks; a figure is its caption, since W&B draws runs itself."""
    if block.inner:
        title = [wr.H3(block.text)] if block.text else []
        return [*title, *(piece for inner in block.inner for piece in _blocks(wr, inner))]
    if block.kind == "heading":
        return [wr.H2(block.text)]
    if block.kind == "list":
        return [wr.UnorderedList(items=list(block.entries))]
    if block.kind == "code":
        return [wr.CodeBlock(code=block.text, language="markdown")]
    if block.kind == "table":
        return [wr.MarkdownBlock(text=f"{block.caption}\n\n{markdown_table(block.columns, block.rows)}")]
    if block.kind == "ledger":
        columns = ["claim", "effect [95 %]", "claimed", "verdict"]
        rows = [[c["claim"], effect_text(c), threshold_text(c), c["verdict"]] for c in block.claims]
        return [wr.MarkdownBlock(text=markdown_table(columns, rows))]
    return [wr.P(block.text or block.caption)]


def markdown_table(columns: Any, rows: Any) -> str:
    """A table in Markdown; bars inside cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
