"""The jobs of a sweep in processes of this machine (`hydra/launcher=joblib`), where the end of a process costs its own job alone.

joblib hands all jobs to one pool, and when one worker dies the pool ends the others and starts no more. Here each of the `n_jobs`
workers stands alone: the others go on, and a new one takes the next job. SIGTERM is passed on: every training saves and ends, no job
begins any more, and the sweep says so. Workers end with this process, however it ends.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra_plugins.hydra_joblib_launcher import _core
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from joblib import effective_n_jobs
from omegaconf import OmegaConf, open_dict

from opo.cli.jobs import Job, Record, Stopped

WATCH_EVERY_S = 0.5
END_WITHIN_S = 10.0  # of a worker that has nothing to do any more


def use() -> None:
    """Have Hydra's plugin launch jobs this way."""
    _core.launch = launch


def launch(
    launcher: JoblibLauncher, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> Sequence[JobReturn]:
    """In place of the plugin's function; of joblib's options `n_jobs` counts, the others are about handing out small tasks."""
    assert launcher.config is not None
    setup_globals()
    Path(str(launcher.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    record = Record(Path(launcher.config.hydra.callbacks.announce.record))
    count = min(effective_n_jobs(launcher.joblib["n_jobs"]), len(job_overrides))
    workers, state = _Workers(count, record), Singleton.get_state()

    def run(number: int, overrides: Sequence[str]) -> JobReturn:
        job = number, overrides, launcher.hydra_context, launcher.config, launcher.task_function, state
        try:
            return workers.run(_core.execute_job, *job) or JobReturn(status=JobStatus.COMPLETED)
        except _Lost as lost:
            record.fail(_job(launcher, number, overrides), lost.reason, lost.details, resumes=workers.stopped)
        return JobReturn(status=JobStatus.COMPLETED)

    numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
    with workers.heeding_sigterm(), ThreadPoolExecutor(count) as threads:
        try:
            returned = list(threads.map(run, numbers, job_overrides))
        except BaseException:
            workers.stop(signal.SIGKILL)
            raise
    workers.close()
    if workers.stopped:
        raise Stopped("stopped by SIGTERM")
    return returned


def _job(launcher: JoblibLauncher, number: int, overrides: Sequence[str]) -> Job:
    assert launcher.hydra_context is not None
    config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))  # pyright: ignore
    with open_dict(config):
        config.hydra.job.num = number
        folder = Path(*(OmegaConf.select(config, f"hydra.sweep.{key}") for key in ("dir", "subdir")))
        config.hydra.runtime.output_dir = str(folder.absolute())
    return Job.of(config.hydra)


class _Lost(Exception):
    """A job of which nothing came back."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.reason, self.details = reason, details


class _Workers:
    """So many processes; a job takes one that is free, and one that has died is replaced."""

    def __init__(self, count: int, record: Record) -> None:
        self.stopped = False
        self._all = [_Worker(record) for _ in range(count)]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._free.put(worker)

    def run(self, call: Any, *arguments: Any) -> Any:
        """The call's result; None where the sweep was stopped before. Raises _Lost where it gives none."""
        worker = self._free.get()
        try:
            return None if self.stopped else worker.run(cloudpickle.dumps((call, arguments)))
        finally:
            self._free.put(worker)

    def stop(self, number: int) -> None:
        """Send a signal to every worker, and begin no job any more."""
        self.stopped = True
        for worker in self._all:
            worker.signal(number)

    def close(self) -> None:
        for worker in self._all:
            worker.close()

    @contextmanager
    def heeding_sigterm(self) -> Iterator[None]:
        """Pass SIGTERM on to the workers, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda number, _: self.stop(number))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


class _Worker:
    """A fresh interpreter (no fork: this process has threads) that does one call after another; started when it is first needed."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._started: tuple[SpawnProcess, Connection] | None = None
        self._signal: int | None = None

    def run(self, call: bytes) -> Any:
        if self._started is None or not self._started[0].is_alive():  # the first call, or it died with nothing to do
            self._started = self._start()
        process, connection = self._started
        try:
            connection.send_bytes(call)
            if connection not in wait([connection, process.sentinel]):
                raise EOFError
            result, failure = cloudpickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            process.join()
            raise _Lost(_death(process.exitcode or 0)) from None
        if failure is not None:
            raise _Lost(*failure)
        return result

    def _start(self) -> tuple[SpawnProcess, Connection]:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, os.getpid(), self._record))
        process.start()
        theirs.close()
        if self._signal is not None:  # it came while the process was started
            process.terminate()
        return process, ours

    def signal(self, number: int) -> None:
        self._signal = number
        if self._started is not None and self._started[0].is_alive():
            with suppress(ProcessLookupError):
                os.kill(self._started[0].pid, number)  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        if self._started is not None:
            process, connection = self._started
            connection.close()
            process.join(END_WITHIN_S)
            process.kill()
            process.join()


def _serve(connection: Connection, parent: int, record: Record) -> None:
    """What a worker does, until nobody asks any more."""
    _leave_with(parent, record)
    while True:
        try:
            call, arguments = cloudpickle.loads(connection.recv_bytes())
            try:
                answer = call(*arguments), None
            except Exception as error:  # before or after what Hydra watches over
                answer = None, (f"{type(error).__name__}: {error}", traceback.format_exc())
            connection.send_bytes(cloudpickle.dumps(answer))
        except (EOFError, KeyboardInterrupt):
            return


def _leave_with(parent: int, record: Record) -> None:
    """In a worker: end at once when the process that started it is gone, however it went. Runs go on from their checkpoints."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_EVERY_S)
        record.file.unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _death(status: int) -> str:
    """How a process ended, in one line."""
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    why = ", by hand or by the system for want of memory" if -status == signal.SIGKILL else ""
    return f"its process ended ({how}{why}); the same command goes on from its last checkpoint"
