"""Tables on the terminal: wide enough for an interval in a cell, also where the output is a file."""

from rich.console import Console

WIDTH = 118


def wide_console() -> Console:
    """A console at least `WIDTH` columns wide."""
    console = Console()
    return console if console.width >= WIDTH else Console(width=WIDTH)
