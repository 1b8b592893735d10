"""The process that writes the W&B record of a result: `python -m opo.tracking.recorder SETUP`, told through its standard input when to."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opo.tracking import CLEAN
from opo.tracking.lineage import Files, log_artifact, use_artifact
from opo.tracking.result import DESCRIPTION
from opo.tracking.start import AGAIN_S, ignore_stop_signals, open_run, time_limit

if TYPE_CHECKING:
    pass


def record(folder: Path) -> None:
    """Load wandb, wait for the word, and write what `wandb/description.json` describes; nothing where the command failed."""
    import wandb  # noqa: F401  half a second, while the command still works

    if os.read(sys.stdin.fileno(), 4096) != CLEAN:
        return
    with time_limit(AGAIN_S):
        described = json.loads((folder / "wandb" / DESCRIPTION).read_text(encoding="utf-8"))
        write(folder, described)


def write(folder: Path, described: dict[str, Any]) -> None:
    """One run from its description (`opo.tracking.result.Result` as plain data)."""
    import wandb

    run = open_run(folder, described, described["job_type"], described["config"])
    axis, best = described["axis"], described["best"]
    for name in dict.fromkeys(name for row in described["rows"] for name in row if name != axis):
        run.define_metric(name, step_metric=axis, summary=f"last,{best[name]}" if name in best else "last")
    for files in described["measured_on"]:
        use_artifact(run, Files(**files))
    for row in described["rows"]:
        run.log(row)
    tables = {name: wandb.Table(**_cells(table)) for name, table in described["tables"].items()}
    images = {name: wandb.Image(file) for name, file in described["images"].items()}
    charts = {name: _chart(chart) for name, chart in described["charts"].items()}
    run.log({**tables, **images, **charts})
    for files in described["made"]:
        log_artifact(run, Files(**files))
    run.finish(exit_code=0)


def _cells(table: dict[str, Any]) -> dict[str, Any]:
    return {"columns": table["columns"], "data": table["rows"], "allow_mixed_types": True}


def _chart(chart: dict[str, Any]) -> Any:
    """A chart of W&B's own; rows without a number at either place are left out."""
    import wandb.plot

    columns = chart["table"]["columns"]
    places = [columns.index(name) for name in (chart["x"], chart["y"])]
    rows = [row for row in chart["table"]["rows"] if all(row[place] is not None for place in places)]
    table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
    if chart["kind"] == "bar":
        return wandb.plot.bar(table, chart["x"], chart["y"], chart["title"])
    if chart["kind"] == "line":
        return wandb.plot.line(table, chart["x"], chart["y"], chart["stroke"], chart["title"])
    return wandb.plot.scatter(table, chart["x"], chart["y"], chart["title"])


if __name__ == "__main__":
    ignore_stop_signals()
    record(Path(json.loads(sys.argv[1])["folder"]))
