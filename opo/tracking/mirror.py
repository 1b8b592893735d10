"""The process that copies a run folder to W&B: `python -m opo.tracking.mirror SETUP`, woken through its standard input."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from opo.run.folder import CERTIFICATE
from opo.tracking import AWAKE, CLEAN, COMPLETIONS, METRICS, completions_file
from opo.tracking.lineage import checkpoints_of, log_artifact, start_of
from opo.tracking.start import AGAIN_S, CALL_S, ignore_stop_signals, open_run, time_limit
from opo.tracking.uploaded import uploaded_steps

if TYPE_CHECKING:
    import wandb

# what a leaderboard of runs ranks by: besides the last value, the best
LEADERBOARD = {"train/reward_mean": "last,max", "eval/reward_mean": "last,max"}


def mirror(setup: dict[str, Any]) -> None:
    """Copy a run folder to W&B until the trainer, at the other end of standard input, says how it ended or dies."""
    folder, ended, clean = Path(setup["folder"]), False, False
    with time_limit():
        has = uploaded_steps(folder, setup["id"]) if setup["mode"] == "offline" else 0
        run, table = _start_run(folder, setup)
        has = max(has, run.starting_step - 1)  # where a run goes on, the server has those before
    latest, best, logged = dict[str, float](), dict[str, float](), set[str]()
    with (folder / "metrics.jsonl").open("rb") as stream:
        while True:
            for row in _complete_rows(stream):
                with time_limit():
                    _repeat(run, table, folder, row, row["train/step"] > has)
                latest |= row
                best |= {name: max(row[name], best.get(name, row[name])) for name in LEADERBOARD if name in row}
            with time_limit():
                for checkpoint in checkpoints_of(setup["id"], folder, logged):
                    log_artifact(run, checkpoint)
                    logged |= {*checkpoint.aliases}
            if ended:
                break
            message = os.read(sys.stdin.fileno(), 4096)
            ended, clean = not message.endswith(AWAKE), message.endswith(CLEAN)
    with time_limit(AGAIN_S if setup.get("again") else CALL_S):
        if has > 0:  # W&B makes the summary of the rows it is given, and those before are not among them
            run.summary.update(latest | {name: {"last": latest[name], "max": value} for name, value in best.items()})
        if (folder / CERTIFICATE).is_file():
            run.summary["certificate"] = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
        run.finish(exit_code=0 if clean else 1)


def _start_run(folder: Path, setup: dict[str, Any]) -> tuple["wandb.Run", "wandb.Table"]:
    """The folder's W&B run and its growing table of completions."""
    import wandb

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    run = open_run(folder, setup, "train", config)
    run.define_metric("train/step")
    for namespace in sorted({name.partition("/")[0] for name in METRICS}):
        run.define_metric(f"{namespace}/*", step_metric="train/step")
    for name, summary in LEADERBOARD.items():
        run.define_metric(name, step_metric="train/step", summary=summary)
    run.log_artifact(_code(folder, setup["id"], with_sources=not setup.get("again")))
    log_artifact(run, start_of(setup["id"], config.get("model") or {}))
    return run, wandb.Table(columns=["train/step", *COMPLETIONS], log_mode="INCREMENTAL")


def _code(folder: Path, run_id: str, with_sources: bool) -> "wandb.Artifact":
    """What replays the run: the resolved config, run.json, uncommitted changes, and the project's sources where they are the run's."""
    import wandb

    artifact = wandb.Artifact(f"code-{run_id}", type="code")
    artifact.add_file(str(folder / "config.yaml"))
    artifact.add_file(str(folder / "run.json"))
    for place, state in json.loads((folder / "run.json").read_text(encoding="utf-8"))["code"].items():
        if state is not None and state["diff"]:
            with artifact.new_file(f"{place}.diff", encoding="utf-8") as diff:
                diff.write(state["diff"])
    package = Path(__file__).resolve().parents[1]
    for file in sorted(package.rglob("*.py")) if with_sources else ():
        artifact.add_file(str(file), name=str(file.relative_to(package.parent)))
    return artifact


def _complete_rows(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The rows that came since the last call; a line still being written is left for the next."""
    while line := stream.readline():
        if not line.endswith(b"\n"):
            stream.seek(-len(line), os.SEEK_CUR)
            return
        yield json.loads(line)


def _repeat(run: "wandb.Run", table: "wandb.Table", folder: Path, row: dict[str, Any], is_new: bool) -> None:
    """One log call: the row as it is, and the table where this step has completions; of what W&B has, the table's rows alone."""
    step = row["train/step"]
    file = completions_file(folder, step)
    if file.exists():
        import pyarrow.parquet as pq

        for response in pq.read_table(file).to_pylist():
            table.add_data(step, *(response[name] for name in COMPLETIONS))
        row = row | {"completions": table}
    if is_new:
        run.log(row, step=step, commit=True)


if __name__ == "__main__":
    ignore_stop_signals()  # the trainer's end is the mirror's
    mirror(json.loads(sys.argv[1]))
