"""The process that copies a run folder to W&B: `python -m opo.tracking.mirror SETUP`, woken through its standard input."""

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from opo.tracking import AWAKE, CLEAN, COMPLETIONS, FINISH_S, METRICS, completions_file

if TYPE_CHECKING:
    import wandb

CALL_S = 90.0  # how long one call of wandb may take before the mirror gives up
AGAIN_S = 1800.0  # the same for the end of a record that is made anew: all rows are sent there, and no training waits
FLUSH_S = 1.0  # wandb's own default loses up to fifteen seconds of rows when it is killed


def mirror(setup: dict[str, Any]) -> None:
    """Copy a run folder to W&B until the trainer, at the other end of standard input, says how it ended or dies."""
    folder = Path(setup["folder"])
    with _time_limit():
        run, table = _start_run(folder, setup)
    with (folder / "metrics.jsonl").open("rb") as stream:
        ended = clean = False
        while True:
            for row in _complete_rows(stream):
                if row["train/step"] >= run.starting_step:  # where a run goes on, the server has those before
                    with _time_limit():
                        _repeat(run, table, folder, row)
            if ended:
                break
            message = os.read(sys.stdin.fileno(), 4096)
            ended, clean = not message.endswith(AWAKE), message.endswith(CLEAN)
    with _time_limit(AGAIN_S if setup.get("again") else CALL_S):
        run.finish(exit_code=0 if clean else 1)


def _start_run(folder: Path, setup: dict[str, Any]) -> tuple["wandb.Run", "wandb.Table"]:
    """The folder's W&B run, of one id for the folder's life, and its growing table of completions."""
    import wandb

    if setup["mode"] == "offline":
        for old in [*(folder / "wandb").glob(f"offline-run-*-{setup['id']}"), *(folder / "wandb").glob("data")]:
            shutil.rmtree(old)  # a copy of what this process is about to write whole
    settings = wandb.Settings(
        x_transaction_log_flush_interval=FLUSH_S,
        init_timeout=CALL_S * 0.7,
        finish_timeout=(AGAIN_S if setup.get("again") else FINISH_S) * 0.7,
        console="off",  # this process prints nothing of interest
        x_stats_pid=os.getppid(),
        x_disable_stats=bool(setup.get("again")),  # this machine now says nothing of the run then
    )
    run = wandb.init(
        mode=setup["mode"],
        dir=folder,
        project=setup["project"],
        entity=setup["entity"],
        id=setup["id"],
        resume="allow" if setup["mode"] == "online" else None,  # without it a sync replaces what the server has
        reinit="finish_previous",
        group=setup["group"],
        job_type="train",
        name=setup["name"],
        tags=setup["tags"],
        config=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        settings=settings,
    )
    run.define_metric("train/step")
    for namespace in sorted({name.partition("/")[0] for name in METRICS}):
        run.define_metric(f"{namespace}/*", step_metric="train/step")
    run.log_artifact(_code(folder, setup["id"], with_sources=not setup.get("again")))
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


def _repeat(run: "wandb.Run", table: "wandb.Table", folder: Path, row: dict[str, Any]) -> None:
    """One log call: the row as it is, and the table where this step has completions."""
    step = row["train/step"]
    file = completions_file(folder, step)
    if file.exists():
        import pyarrow.parquet as pq

        for response in pq.read_table(file).to_pylist():
            table.add_data(step, *(response[name] for name in COMPLETIONS))
        row = row | {"completions": table}
    run.log(row, step=step, commit=True)


@contextlib.contextmanager
def _time_limit(seconds: float = CALL_S) -> Iterator[None]:
    """End this process, with a traceback in its log, if the block takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    for stop in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # a scheduler sends them to every process; the trainer's end is the mirror's
        signal.signal(stop, signal.SIG_IGN)
    mirror(json.loads(sys.argv[1]))
