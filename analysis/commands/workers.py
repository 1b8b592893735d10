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

from opo.cli import load


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes of one thread each: a training changes its process, and a fork would copy this one's threads.

    After a failure what has begun ends, and what has not is not begun.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _leave_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_with_parent() -> None:
    """In a worker: exit when the parent process is gone. Runs resume from their checkpoints."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def finish(console: Console, what: str, jobs: dict[Future[Any], str]) -> None:
    """Wait for all, saying which is done; the first failure is raised."""
    for number, job in enumerate(as_completed(jobs), 1):
        job.result()
        console.print(f"{what} {number}/{len(jobs)}: {jobs[job]}", highlight=False)


def call(what: str, *arguments: Any) -> Any:
    """In a worker: the function `module:name`, whose module is imported there alone."""
    return load(what)(*arguments)


def train_in(path: Path, overrides: list[str]) -> None:
    """In a worker: compose as `opo train` would and run."""
    from opo.cli.compose import composed
    from opo.config.load import load_config
    from opo.train.loop import train

    train(load_config(composed("train", overrides)), path)
