"""Opening a W&B run and limiting its calls, for the two processes that write one: the mirror of a training, the recorder of a result."""

import contextlib
import faulthandler
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opo.tracking import FINISH_S

if TYPE_CHECKING:
    import wandb

CALL_S = 90.0  # how long one call of wandb may take before the process gives up
AGAIN_S = 1800.0  # the same for the end of a record that is made at once: all is sent there, and nothing waits
FLUSH_S = 1.0  # wandb's own default loses up to fifteen seconds of rows when it is killed


def open_run(folder: Path, setup: Mapping[str, Any], job_type: str, config: Any) -> "wandb.Run":
    """The folder's W&B run, of one id for the folder's life; offline, its record before is replaced.

    `setup`: mode, project, entity, id, group, name, tags; `notes`; `again` where all rows are sent at once.
    """
    import wandb

    if setup["mode"] == "offline":
        for old in [*(folder / "wandb").glob(f"offline-run-*-{setup['id']}"), *(folder / "wandb").glob("data")]:
            shutil.rmtree(old)  # a copy of what this process is about to write whole
    again = bool(setup.get("again"))
    settings = wandb.Settings(
        x_transaction_log_flush_interval=FLUSH_S,
        init_timeout=CALL_S * 0.7,
        finish_timeout=(AGAIN_S if again else FINISH_S) * 0.7,
        console="off",  # this process prints nothing of interest
        x_stats_pid=os.getppid(),
        x_disable_stats=again,  # this machine now says nothing of the run then
    )
    return wandb.init(
        mode=setup["mode"],
        dir=folder,
        project=setup["project"],
        entity=setup["entity"],
        id=setup["id"],
        resume="allow" if setup["mode"] == "online" else None,  # without it a sync replaces what the server has
        reinit="finish_previous",
        group=setup["group"],
        job_type=job_type,
        name=setup["name"],
        notes=setup.get("notes"),
        tags=setup["tags"],
        config=config,
        settings=settings,
    )


@contextlib.contextmanager
def time_limit(seconds: float = CALL_S) -> Iterator[None]:
    """End this process, with a traceback in its log, if the block takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def ignore_stop_signals() -> None:
    """A scheduler sends them to every process; this one ends when the command that it serves has ended."""
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_IGN)
