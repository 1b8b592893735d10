"""Style of every figure: palette, fonts, axes; SVG and PNG files, and SVG for a page with a light and a dark theme."""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#1b1f24", "#8c959f"

# Okabe and Ito (2008): distinguishable with any common colour vision; the sky blue and the yellow are too light for thin lines
PALETTE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a6761d", FAINT)
OTHERS = ("#8a63d2", "#999933", "#5f9ea0", "#b5651d")  # of names without a place below
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">", "p", "*")

# an estimator and the algorithm that uses it share a place in the palette; a `_loo` form is the same colour, drawn hollow and dashed
PLACES = (
    ("length_weighted", "opo"),
    ("leave_one_out", "rloo"),
    ("group_standardized", "grpo"),
    ("score_norm_weighted", "ppo"),
    ("shrinkage",),
    ("group_mean", "dr_grpo"),
    ("logit_energy_weighted",),
    ("none", "reinforce"),
)
PLACE_OF = {name: place for place, names in enumerate(PLACES) for name in names}

STYLE: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "opo",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this project's style without changing anyone else's; a context, and a decorator of a figure's function."""
    with matplotlib.rc_context(STYLE):
        yield


def axes(ax: Axes | None, width: float = 6.4, height: float = 3.8) -> Axes:
    """`ax`, or the axes of a new figure (not registered with pyplot, so it is freed with its last reference)."""
    if ax is not None:
        return ax
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def colour(name: str, names: Sequence[str]) -> str:
    """The colour of `name`: fixed for what is known by name, else one that no known name among `names` has."""
    return (*PALETTE, *OTHERS)[_place(name, names)]


def marker(name: str, names: Sequence[str]) -> str:
    """The marker of `name`, so that lines differ in a greyscale print too."""
    return MARKERS[_place(name, names)]


def is_known(name: str) -> bool:
    """Whether `name` has a colour of its own in every figure."""
    return name.removesuffix("_loo") in PLACE_OF


def is_hollow(name: str) -> bool:
    """Whether `name` is the form of an estimator that leaves each response out of its own baseline."""
    return is_known(name) and name.endswith("_loo")


def _place(name: str, names: Sequence[str]) -> int:
    """`ppo (4 updates)` stands where `ppo` would, unless another of `names` does."""
    places: dict[str, int] = {}
    for other in sorted(dict.fromkeys((*names, name)), key=lambda each: " (" in each):
        base = other.partition(" (")[0]
        place = PLACE_OF.get(base.removesuffix("_loo"))
        if place is not None and (other == base or place not in places.values()):
            places[other] = place
    # places of known names only where the others are taken
    ordered = (*range(len(PALETTE), len(MARKERS)), *range(len(PALETTE)))
    free = [place for place in ordered if place not in places.values()]
    unknown = [other for other in dict.fromkeys((*names, name)) if other not in places]
    return places[name] if name in places else free[unknown.index(name) % len(free)]


def figure_of(ax: Axes) -> Figure:
    """The figure that holds the axes."""
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    return figure


def save(ax: Axes, folder: Path, name: str) -> list[Path]:
    """Write `name.svg` and `name.png` (white background) into the folder; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    with styled():
        figure_of(ax).savefig(paths[0], bbox_inches="tight", facecolor="white", metadata={"Date": None})
        figure_of(ax).savefig(paths[1], bbox_inches="tight", facecolor="white", metadata={"Software": None})
    return paths


def inline_svg(ax: Axes, description: str) -> str:
    """SVG markup for a page: transparent, in the page's text colour, with ids of its own and a description for screen readers."""
    buffer = io.StringIO()
    with styled():
        figure_of(ax).savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    prefix = "f" + hashlib.sha256(svg.encode() + description.encode()).hexdigest()[:8] + "-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{prefix}", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 style="max-width:\2pt"', svg, count=1)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
