"""How every figure looks: sizes, colours, light or dark, the footer that says where the numbers come from, saving."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import matplotlib.style
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from ..config import check_choice
from ..data import GROUPS
from ..files import write_atomic
from ..lazy import LazyModule

seaborn = LazyModule("seaborn")  # it takes a second

COLUMN, TEXT = 3.25, 5.5  # inches: a single column, the text's width


@dataclass(frozen=True)
class Theme:
    """Colours of one background: text, axes, grid, shaded areas, the paper itself, and head, mid, tail."""

    ink: str
    soft: str
    faint: str
    shade: str
    paper: str
    groups: tuple[str, str, str]


# Head, mid, tail keep 3:1 to their background (WCAG) and stay apart in lightness, and for colour-blind readers.
THEMES = {
    "light": Theme("#222222", "#666666", "#D9D9D9", "#F1F1F1", "white", ("#204789", "#C53723", "#3CA27F")),
    "dark": Theme("#EAEAEA", "#A6A6A6", "#4A4A4A", "#2E2E2E", "none", ("#266CBC", "#EF5940", "#8DEECC")),
}
GROUP_COLOURS = THEMES["light"].groups
INK = THEMES["light"].ink
_current: ContextVar[Theme] = ContextVar("theme", default=THEMES["light"])

# Ten classes told apart (seaborn's "colorblind" order), and as many runs in one panel.
CLASS_COLOURS = (
    *("#0173B2", "#DE8F05", "#029E73", "#D55E00", "#CC78BC"),
    *("#7A4B1E", "#F5A3D7", "#8C8C8C", "#D8C900", "#56B4E9"),
)
_MARKS = (("#B8860B", "s"), ("#A259B5", "D"), ("#0E8C9C", "^"), ("#B5653F", "v"), ("#5B6BD6", "P"))

_RC = {
    "figure.dpi": 150,
    "pdf.fonttype": 42,
    "font.size": 8,
    **dict.fromkeys(("axes.titlesize", "axes.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize"), 7),
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    "lines.linewidth": 1.2,
}


@contextmanager
def theme(name: str) -> Iterator[None]:
    """Draw figures for a `light` or a `dark` background within the context; dark ones are transparent.

    Raises ConfigError for another name.
    """
    check_choice("theme", name, THEMES)
    token = _current.set(THEMES[name])
    try:
        yield
    finally:
        _current.reset(token)


def colours() -> Theme:
    """Return the colours of the current theme."""
    return _current.get()


def run_marks() -> tuple[tuple[str, str], ...]:
    """Return colour and marker of each run or line in one panel."""
    return ((colours().ink, "o"), *_MARKS)


@contextmanager
def style(look: Theme | None = None) -> Iterator[None]:
    """Apply the figures' matplotlib settings, not the user's own, in a context or to a function (`@style()`)."""
    look = look or colours()
    inks = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    softs = ("axes.edgecolor", "xtick.color", "ytick.color")
    papers = ("figure.facecolor", "axes.facecolor")
    own = {**dict.fromkeys(inks, look.ink), **dict.fromkeys(softs, look.soft), **dict.fromkeys(papers, look.paper)}
    with mpl.style.context(["default", {**_RC, **own}]):
        yield


class Figure(mpl.figure.Figure):
    """A matplotlib figure that keeps its style wherever it is drawn, and shows in a notebook without pyplot."""

    look: Theme = THEMES["light"]

    def draw(self, renderer) -> None:
        with style(self.look):  # ticks are made when first drawn, with the settings of that moment
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return _bytes(self, "png", self.dpi)


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of `width` x `height` inches that lays itself out."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.look = colours()
    return figure


def _bytes(figure: mpl.figure.Figure, kind: str, dpi: float, source: str | None = None) -> bytes:
    buffer = io.BytesIO()
    # No dates, no versions: the same results give the same file.
    png = {"Software": None, **({"Source": source} if source else {})}
    metadata = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": png}[kind]
    with style(getattr(figure, "look", None)):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def save(figure: mpl.figure.Figure, path: str | Path, source: str | None = None) -> tuple[Path, Path]:
    """Write `figure` as PDF (TrueType fonts) and PNG (300 dpi) side by side; returns both paths.

    `path` may end in .pdf, .png or neither; folders are made. `source` is kept in the PNG (`kept_source`).
    """
    path = Path(path)
    stem = path.name.removesuffix(".pdf").removesuffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = (path.with_name(f"{stem}.pdf"), path.with_name(f"{stem}.png"))
    for kind, target in zip(("pdf", "png"), paths, strict=True):
        write_atomic(target, _bytes(figure, kind, 300, source))
    return paths


def kept_source(png: Path) -> str | None:
    """Read the `source` that a figure was saved with; None without one, and for what is no picture."""
    try:
        with Image.open(png) as picture:
            return picture.info.get("Source")
    except OSError:
        return None


def footer(figure: mpl.figure.Figure, text: str) -> None:
    """Write a small line at the bottom right, broken between its parts; an inch holds about 16 characters."""
    whole = text.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}", " · ")
    lines = [
        line.strip(" ·") for line in textwrap.wrap(whole, int(figure.get_figwidth() * 16.5), break_on_hyphens=False)
    ]
    text = "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
    figure.supxlabel(text, x=0.995, ha="right", fontsize=7, color=colours().soft)


def dot(colour: str, label: str, **options: Any) -> Line2D:
    """Return a legend entry: a dot, with a line where `lw` is given."""
    return Line2D([], [], **{"lw": 0, "marker": "o", "ms": 4, "color": colour, "label": label, **options})


def plain_log(*axes: Axis, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """Label log axes, each x or y, with plain numbers (1,000 and 0.5) at `steps` of each decade."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def group_handles() -> list[Line2D]:
    """Return legend entries of head, mid and tail."""
    return [dot(colour, group) for group, colour in zip(GROUPS, colours().groups, strict=True)]


def colours_of(groups) -> list[str]:
    """Return one colour per entry of `groups` (0 head, 1 mid, 2 tail; anything else: grey)."""
    own = colours().groups
    return [own[int(g)] if 0 <= int(g) < 3 else "#9A9A9A" for g in groups]
