"""What becomes of the jobs of a multirun, wherever they run: announced at once, noted in a file, listed at the end."""

import copy
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from opo.cli.commands import OTHERS_SPEAK_S
from opo.errors import StoppedRun, UserError
from opo.run.folder import note_failure
from opo.run.hold import is_held
from opo.system.ranks import rank_and_size, take_ranks_of_submitit
from opo.system.terminal import say


@dataclass(frozen=True)
class Failure:
    """A job of a multirun that failed."""

    name: str  # its folder's
    reason: str  # one line


class Stopped(BaseException):
    """SIGTERM ended a multirun: what to say of it. No Exception: Hydra would go on with the next job."""


class Announce(Callback):
    """Prints at once that a job of a multirun failed, notes in the file `record` what began and ended, and lets Hydra go on without a word.

    It runs where the job does, which may be another process, or several that are the ranks of one run; the file brings all together.
    The folder of a refused job is taken away, unless something is in it or it was there before the command.
    """

    def __init__(self, record: str) -> None:
        self.record = Record(Path(record))
        self.there: set[Path] | None = None  # folders that were there before the command; None: it is not known

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        folder = _folder(config, "run.dir")
        self.there = {path for path in (folder, *folder.parents) if path.exists()}

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = _folder(config, "sweep.dir")
        self.there = {folder, *(Path(path) for path, *_ in os.walk(folder))}  # a job's folder may lie deep

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        take_ranks_of_submitit()
        own = HydraConfig.get()
        if own.mode == RunMode.MULTIRUN:
            self.record.note("began", Job.of(own), str(own.job.num))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        assert job_return.hydra_cfg is not None
        own = job_return.hydra_cfg.hydra
        folder = Path(own.runtime.output_dir)
        if own.mode != RunMode.MULTIRUN:
            if job_return._return_value is True:
                remove_made((folder, *folder.parents), self.there)
            return
        job = Job.of(own)
        if job_return.status is not JobStatus.FAILED:
            self.record.note("ended", job)
            return
        error = job_return._return_value  # the property would raise it here
        if isinstance(error, UserError):
            remove_made([folder], self.there)  # the folders above are for other jobs too
        known = isinstance(error, UserError | StoppedRun)
        details = "" if known else "".join(traceback.format_exception(error))
        (rank, size), speaks, reason = rank_and_size(), getattr(error, "speaks", None), _reason(error)
        if speaks is None and rank > 0:
            time.sleep(OTHERS_SPEAK_S)  # the first rank may have met the same
            reason = f"rank {rank} of {size}: {reason}"
        from opo.train.interrupt import Interrupt  # torch, which has been loaded where a training stops

        if speaks is not False:
            self.record.fail(job, reason, details, resumes=isinstance(error, StoppedRun) and Interrupt.any_heard)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None


def _folder(config: DictConfig, key: str) -> Path:
    """A folder of Hydra's own part, before Hydra makes it."""
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(copy.deepcopy(config))  # the names of folders ask it
        return Path(str(OmegaConf.select(config, f"hydra.{key}"))).absolute()
    finally:
        HydraConfig.instance().cfg = before


def remove_made(folders: Iterable[Path], there: set[Path] | None) -> None:
    """Remove empty folders, the inner ones first, up to one that was `there` before or that holds something."""
    for folder in folders:
        if there is None or folder in there:
            return
        try:
            folder.rmdir()
        except FileNotFoundError:  # whoever was refused has removed it
            continue
        except OSError:
            return


class Job(NamedTuple):
    """A job of a multirun: its folder, and which shard of what is made there."""

    folder: str
    shard: str = ""

    @classmethod
    def of(cls, hydra: Any) -> Self:
        return cls(hydra.runtime.output_dir, " ".join(o for o in hydra.overrides.task if o.startswith("shard=")))

    @property
    def name(self) -> str:
        return " ".join(filter(None, (Path(self.folder).name, self.shard)))


@dataclass(frozen=True)
class Record:
    """The file in which every job notes that it began (with its number), and that it ended or why it failed."""

    file: Path

    def note(self, what: str, job: Job, more: str = "") -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([what, job, more]) + "\n")

    def fail(self, job: Job, reason: str, details: str = "", resumes: bool = False) -> None:
        """Say and note that a job failed, once: of several ranks the first that comes says why.

        It is noted in the job's folder too, unless it `resumes`: it was stopped and has saved.
        """
        if job in self._jobs("failed"):
            return
        if not resumes:
            note_failure(Path(job.folder), reason)
        say(f"{'STOPPED' if resumes else 'FAILED'} {job.name}: {reason}\n{details}".rstrip(), sys.stderr)
        self.note("failed", job, reason)

    def fail_lost(self, error: Exception) -> bool:
        """Fail the jobs that began and whose process is gone without a word; whether there are any."""
        over = {*self._jobs("ended"), *self._jobs("failed")}
        lost = [job for job in self._jobs("began") if job not in over and not is_held(Path(job.folder))]
        for job in lost:
            self.fail(
                job, f"its process died, or that of a job beside it ({type(error).__name__}); the same command goes on"
            )
        return bool(lost)

    def failures(self) -> list[Failure]:
        return [Failure(job.name, reason) for what, job, reason in self._notes() if what == "failed"]

    def folders(self) -> list[Path]:
        """The folders of all jobs that began, in the order of the sweep."""
        numbers = {job.folder: int(number) for what, job, number in self._notes() if what == "began"}
        return [Path(folder) for folder in sorted(numbers, key=lambda folder: numbers[folder])]

    def _jobs(self, what: str) -> list[Job]:
        return list(dict.fromkeys(job for noted, job, _ in self._notes() if noted == what))

    def _notes(self) -> list[tuple[str, Job, str]]:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return [(what, Job(*job), reason) for what, job, reason in map(json.loads, lines)]


def _reason(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, UserError | StoppedRun) else f"{type(error).__name__}: {text}"
