"""What becomes of the jobs of a multirun, wherever they run: announced at once, noted in a file, listed at the end."""

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from opo.errors import StoppedRun, UserError
from opo.run.folder import is_held, note_failure
from opo.system.terminal import say

WATCH_EVERY_S = 0.5


@dataclass(frozen=True)
class Failure:
    """A job of a multirun that failed."""

    name: str  # its folder's
    reason: str  # one line


class Stopped(BaseException):
    """SIGTERM ended a multirun whose jobs run one after another in this process. No Exception: Hydra would go on with the next job."""


class Announce(Callback):
    """Prints at once that a job of a multirun failed, notes in the file `record` what began and ended, and lets Hydra go on without a word.

    It runs where the job does, which may be another process; the file brings all together.
    """

    def __init__(self, record: str) -> None:
        self.record = Record(Path(record))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        own = HydraConfig.get()
        if own.mode == RunMode.MULTIRUN:
            self.record.note("began", Path(own.runtime.output_dir))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        assert job_return.hydra_cfg is not None
        own = job_return.hydra_cfg.hydra
        if own.mode != RunMode.MULTIRUN:
            return
        folder = Path(own.runtime.output_dir)
        if job_return.status is not JobStatus.FAILED:
            self.record.note("ended", folder)
            return
        error = job_return._return_value  # the property would raise it here
        known = isinstance(error, UserError | StoppedRun)
        details = "" if known else "".join(traceback.format_exception(error))
        self.record.fail(folder, _reason(error), details)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None


@dataclass(frozen=True)
class Record:
    """The file in which every job notes that it began, and that it ended or why it failed."""

    file: Path

    def note(self, what: str, folder: Path, reason: str = "") -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([what, str(folder), reason]) + "\n")

    def fail(self, folder: Path, reason: str, details: str = "") -> None:
        """Say and note that a job failed."""
        note_failure(folder, reason)
        say(f"FAILED {folder.name}: {reason}\n{details}".rstrip(), sys.stderr)
        self.note("failed", folder, reason)

    def fail_lost(self, error: Exception) -> bool:
        """Fail the jobs that began and whose process is gone without a word; whether there are any."""
        notes = self._notes()
        over = {folder for what, folder, _ in notes if what != "began"}
        begun = dict.fromkeys(folder for what, folder, _ in notes if what == "began")
        lost = [Path(folder) for folder in begun if folder not in over and not is_held(Path(folder))]
        for folder in lost:
            self.fail(
                folder,
                f"its process died, or that of a job beside it ({type(error).__name__}); the same command goes on",
            )
        return bool(lost)

    def failures(self) -> list[Failure]:
        return [Failure(Path(folder).name, reason) for what, folder, reason in self._notes() if what == "failed"]

    def folders(self) -> list[Path]:
        """The folders of all jobs that began, in that order."""
        return [
            Path(folder) for folder in dict.fromkeys(folder for what, folder, _ in self._notes() if what == "began")
        ]

    def _notes(self) -> list[list[str]]:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return [json.loads(line) for line in lines]


def leave_with(parent: int, record: Record) -> None:
    """In a worker that `parent` started: end at once when it is gone, however it went. Runs go on from their checkpoints."""
    if os.getppid() != parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_EVERY_S)
        record.file.unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _reason(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, UserError | StoppedRun) else f"{type(error).__name__}: {text}"
