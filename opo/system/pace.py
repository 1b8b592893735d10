"""How fast a job of many parts goes, and when a line about it is due."""

import math
import time

LINE_EVERY_S = 10.0  # where the output is no terminal


class Pace:
    """Times a job of `total` parts from now on; the first part that is reported is the first that it has timed."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.first: int | None = None  # the part that was being done when this began
        self.start, self.shown = time.monotonic(), -math.inf

    def line(self, done: int, part: str) -> str:
        """Seconds for each part, and the time left, when `done` of all are done."""
        if self.first is None:
            self.first = done
        each = (time.monotonic() - self.start) / (done - self.first + 1)
        return f"{each:.2f} s/{part}  {_duration(each * (self.total - done))} left"

    def due(self, done: int) -> bool:
        """Whether there was no line for a while, or all is done; the next is then due a while from now."""
        now = time.monotonic()
        if now - self.shown < LINE_EVERY_S and done < self.total:
            return False
        self.shown = now
        return True


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
