"""What reaches the terminal: text as it is, never a command to the terminal or to rich.

Responses, names of folders and values of files may hold escape sequences (`ESC ]0;...`) and rich's markup (`[/bold]`).
"""

import sys
from typing import TextIO


def printable(text: str) -> str:
    """The text with every character that a terminal would obey shown as an escape (\\x1b); line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def say(text: object, file: TextIO | None = None) -> None:
    """Print text that may come from a user's files."""
    print(printable(str(text)), file=file or sys.stdout, flush=True)
