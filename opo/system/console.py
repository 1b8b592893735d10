"""rich's console for text that may come from a user's files."""

from typing import Any

from rich.console import Console
from rich.text import Text

from opo.system.terminal import printable

WIDTH = 118  # of a table with an interval in a cell, also where the output is a file


class PlainConsole(Console):
    """A console of rich on which strings, also those in tables, are text: no markup, no emoji names, no escape sequences."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]  # rich names every option
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


def wide_console() -> PlainConsole:
    """A console at least `WIDTH` columns wide."""
    console = PlainConsole()
    return console if console.width >= WIDTH else PlainConsole(width=WIDTH)
