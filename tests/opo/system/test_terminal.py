"""Text that reaches the terminal is text: no escape sequences, no markup."""

import io

from rich.table import Table

from opo.system.console import PlainConsole
from opo.system.terminal import printable, say

TITLE = "\x1b]0;owned\x07m[/bold] [red]x :smile:\u202e"
SHOWN = "\\x1b]0;owned\\x07m[/bold] [red]x :smile:\\u202e"


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert printable(TITLE) == SHOWN
    assert printable("7 − 3 = 4\n\tüber 研究 🙂") == "7 − 3 = 4\n\tüber 研究 🙂"
    assert printable("\r\udc80") == "\\r\\udc80"
    stream = io.StringIO()
    say(TITLE, stream)
    assert stream.getvalue() == SHOWN + "\n"


def test_tables_show_names_as_they_are() -> None:
    stream = io.StringIO()
    console = PlainConsole(file=stream, width=100, force_terminal=True, highlight=False)
    table = Table(title=TITLE)
    table.add_column("run")
    table.add_row(TITLE)
    console.print(table, TITLE)
    assert stream.getvalue().count(SHOWN) == 3
    assert "\x1b]" not in stream.getvalue()
