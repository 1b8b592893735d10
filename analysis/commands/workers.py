"""Processes of one thread each that train and measure side by side."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes of one thread each: a training changes its process, and a fork would copy this one's threads."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _leave_with_parent) as pool:
        yield pool


def _leave_with_parent() -> None:
    """In a worker: exit when the parent process is gone. Runs resume from their checkpoints."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def finish(console: Console, what: str, jobs: dict[Future[Any], str]) -> None:
    """Wait for all, saying which is done; the first failure cancels those that have not begun and is raised."""
    for number, job in enumerate(as_completed(jobs), 1):
        if job.exception() is not None:
            for other in jobs:
                other.cancel()
        job.result()
        console.print(f"{what} {number}/{len(jobs)}: {jobs[job]}", highlight=False)


def train_in(path: Path, overrides: list[str]) -> None:
    """In a worker: compose as `opo train` would and run."""
    from opo.cli.compose import composed
    from opo.config.load import load_config
    from opo.train.loop import train

    train(load_config(composed("train", overrides)), path)
