"""What a report is made of: sections of blocks. The HTML template and the W&B report both read these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from analysis.plots.style import inline_svg


@dataclass(frozen=True)
class Block:
    """A piece of a page: "lead", "text", "heading", "list", "code", "figure", "table", "ledger", "fold" or "beside", with what it shows."""

    kind: str
    text: str = ""
    entries: Sequence[str] = ()
    limits: bool = False
    caption: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    claims: Sequence[Mapping[str, Any]] = ()
    ax: Axes | None = None
    inner: Sequence["Block"] = ()

    @property
    def svg(self) -> Markup:
        """The figure as markup of our own making."""
        assert self.ax is not None
        return Markup(inline_svg(self.ax, self.caption))


@dataclass(frozen=True)
class Section:
    """A heading with blocks below it; `id` is its anchor."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def lead(words: str) -> Block:
    """The sentence that a page opens with."""
    return Block("lead", words)


def text(words: str) -> Block:
    return Block("text", words)


def heading(words: str) -> Block:
    return Block("heading", words)


def listing(entries: Sequence[str], limits: bool = False) -> Block:
    return Block("list", entries=entries, limits=limits)


def code(words: str) -> Block:
    return Block("code", words)


def figure(ax: Axes, caption: str) -> Block:
    """A figure with its caption, which is also what a screen reader says."""
    return Block("figure", caption=caption, ax=ax)


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Block:
    """The first cell of a row is its name."""
    return Block("table", caption=caption, columns=columns, rows=rows)


def ledger(claims: Sequence[Mapping[str, Any]], caption: str) -> Block:
    return Block("ledger", claims=claims, caption=caption)


def fold(summary: str, inner: Sequence[Block]) -> Block:
    """Blocks behind one line that opens them; on paper they are open."""
    return Block("fold", summary, inner=inner)


def beside(inner: Sequence[Block]) -> Block:
    """A figure, and what to know of it, at its side where the page is wide enough."""
    return Block("beside", inner=inner)
