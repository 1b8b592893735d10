"""Stopping before the last step: SIGTERM ends a run after the current step is saved."""

import signal
from pathlib import Path
from types import FrameType
from typing import Self

from opo.errors import StoppedRun
from opo.system.world import World


class Interrupt:
    """Notes a SIGTERM; the loop stops at the end of the step. It has no effect outside the main thread."""

    any_heard = False  # by this process: a multirun ends with the job that heard it

    def __init__(self, world: World | None = None) -> None:
        self.world, self.asked = world or World(), False

    def __enter__(self) -> Self:
        try:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        except ValueError:  # signals reach the main thread alone; a joblib thread is stopped by its parent
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = Interrupt.any_heard = True

    def heard(self) -> bool:
        """Whether SIGTERM has come to any rank; every rank asks at the same place, once a step."""
        self.asked = self.world.any(self.asked)
        return self.asked

    def leave(self, path: Path, step: int) -> None:
        """Raise StoppedRun if `heard`; call it after the state was saved."""
        if self.asked:
            why = f"{path}: stopped by SIGTERM after step {step} and saved; the same command resumes from there"
            raise self.world.everyones(StoppedRun(why))
