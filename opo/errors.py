"""Exceptions that are not bugs: a user's mistake, and a run that had to stop."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A wrong configuration or input: one line that names the key or file and says what is allowed.

    The command line prints it without a traceback and exits with status 2; a notebook shows the line alone.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows."""
        return [str(self)]


class StoppedRun(Exception):
    """A run that ended before its last step: one line that says where, and what is on disk. Exit status 1."""


def near(name: str, allowed: Iterable[str]) -> str:
    """` (did you mean X?)` where something is near, else nothing."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
