"""How every figure looks: sizes, colours, the ground, the footer that says where the numbers come from, saving."""

from __future__ import annotations

import base64
import copy
import dataclasses
import html
import io
import sys
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
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
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
    # For a notebook, whose page may be white or nearly black and can change: 3:1 to both.
    "screen": Theme("#767676", "#858585", "#85858566", "#8585852E", "none", ("#3D4DEA", "#F21807", "#1CA779")),
}
GROUP_COLOURS = THEMES["light"].groups
INK = THEMES["light"].ink
# Values from low to high: as viridis, but every colour keeps 3:1 to white and to #111.
VALUES = LinearSegmentedColormap.from_list("values", ("#7548BE", "#3A6FC4", "#1C86A8", "#2F9A72", "#8F9A1E"))
_current: ContextVar[Theme] = ContextVar("theme", default=THEMES["light"])

# Ten classes told apart: 3:1 to white and to nearly black, and 33 from each other in CIELAB (19 for colour-blind
# readers, by Machado's matrices). The explorers have the same ten.
CLASS_COLOURS = (
    *("#6184FF", "#D67951", "#35721A", "#8943BA", "#AA9004"),
    *("#F9447A", "#0BA48A", "#9A4785", "#6A664D", "#848EC4"),
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
_BOX_PARTS = ("box", "whisker", "cap", "flier")


@contextmanager
def theme(name: str) -> Iterator[None]:
    """Draw figures for a `light` or a `dark` background, or for either (`screen`), within the context.

    All but light ones are transparent.

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


def shades(look: Theme | None = None) -> Colormap:
    """Return the shades from nothing to ink of the given theme, or of the current one."""
    ink = to_rgba((look or colours()).ink)
    return LinearSegmentedColormap.from_list("shades", [(*ink[:3], 0.0), ink])


def run_marks() -> tuple[tuple[str, str], ...]:
    """Return colour and marker of each run or line in one panel."""
    return ((colours().ink, "o"), *_MARKS)


@contextmanager
def style(look: Theme | None = None) -> Iterator[None]:
    """Apply the figures' matplotlib settings, not the user's own, in a context or to a function (`@style()`)."""
    look = look or colours()
    inks = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    softs = ("axes.edgecolor", "xtick.color", "ytick.color", *(f"boxplot.{part}props.color" for part in _BOX_PARTS))
    papers = ("figure.facecolor", "axes.facecolor")
    own = {**dict.fromkeys(inks, look.ink), **dict.fromkeys(softs, look.soft), **dict.fromkeys(papers, look.paper)}
    with mpl.style.context(["default", {**_RC, **own}]):
        yield


class Figure(mpl.figure.Figure):
    """A matplotlib figure that keeps its style wherever it is drawn, and shows in a notebook without pyplot.

    There it has no ground of its own and colours that can be read on a light and on a dark page, and says in words what
    it shows: `alt`, or what `described` finds. What is saved stays as it was drawn.
    """

    look: Theme = THEMES["light"]
    alt: str = ""

    def draw(self, renderer) -> None:
        with style(self.look):  # ticks are made when first drawn, with the settings of that moment
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return _bytes(self, "png", self.dpi)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """Return the picture as HTML (JupyterLab gives a PNG no alt text), and as PNG for what shows no HTML."""
        if shell := sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None:
            # Once pyplot is there it has made a PNG of its own for every figure, which would come before this one.
            shell.display_formatter.formatters["image/png"].for_type(Figure, lambda figure: None)
        png = base64.b64encode(_bytes(on_any_ground(self), "png", self.dpi)).decode()
        alt = self.alt or described(self)
        shown = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{png}" style="max-width: 100%">'
        return {"text/html": shown, "image/png": png, "text/plain": repr(self)}, {"image/png": {"alt": alt}}


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


# ----------------------------------------------------------------------------------------------------- in a notebook


def on_any_ground(figure: Figure) -> Figure:
    """Return a copy of a figure of the light theme in the colours of `screen`; others as they are."""
    if figure.look is not THEMES["light"]:
        return figure
    figure, screen = copy.deepcopy(figure), THEMES["screen"]
    figure.look = screen
    flat = ((*dataclasses.astuple(look)[:-1], *look.groups) for look in (THEMES["light"], screen))
    other = {to_rgba(old)[:3]: to_rgba(new) for old, new in zip(*flat, strict=True)}
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    # findobj leaves out the ticks that the present limits do not need; when it is drawn, they may.
    ticks = [tick for axis in axes for tick in (*axis.majorTicks, *axis.minorTicks)]
    for artist in (*figure.findobj(), *(part for tick in ticks for part in tick.findobj())):
        if isinstance(artist, Text):
            _exchange(artist, other, "color")
            if getattr(artist, "arrow_patch", None):
                _exchange(artist.arrow_patch, other, "facecolor", "edgecolor")
        elif isinstance(artist, Line2D):
            _exchange(artist, other, "markerfacecolor", "markeredgecolor", "color")  # the first may follow the last
        elif isinstance(artist, Patch):
            _exchange(artist, other, "facecolor", "edgecolor")
        elif isinstance(artist, Collection) and artist.get_array() is None:
            _exchange(artist, other, "edgecolor", "facecolor")
        elif isinstance(artist, Collection) and artist.get_cmap().name == "shades":
            artist.set_cmap(shades(screen))
    return figure


def _exchange(artist: Artist, other: dict[tuple, tuple], *names: str) -> None:
    """Exchange colours of an artist for the `other` ones; the paper's is exchanged in what is no text."""
    for name in names:
        value = getattr(artist, f"get_{name}")()
        many = isinstance(value, np.ndarray) and value.ndim == 2
        new = [_exchanged(one, other, not isinstance(artist, Text)) for one in (value if many else [value])]
        getattr(artist, f"set_{name}")(new if many else new[0])


def _exchanged(colour: Any, other: dict[tuple, tuple], paper: bool) -> Any:
    """Return the other colour where there is one, as transparent as before; the paper's only if `paper`."""
    if isinstance(colour, str) and colour == "none":
        return colour
    rgba = to_rgba(colour)
    new = other.get(rgba[:3])
    if new is None or rgba[3] == 0 or (rgba[:3] == (1, 1, 1) and not paper):
        return colour
    return (*new[:3], new[3] * rgba[3])


def described(figure: mpl.figure.Figure) -> str:
    """Say in words what a figure shows: titles, what lies along the axes, the legends, and captions of pictures."""
    parts = [figure.get_suptitle()]
    captions = [ax.get_xlabel() for ax in figure.axes if ax.images]
    if captions:
        told = ", ".join(dict.fromkeys(filter(None, captions)))
        parts.append(f"{len(captions)} image{'s' if len(captions) > 1 else ''}{': ' if told else ''}{told}")
    for ax in figure.axes:
        if not ax.images and (ax.has_data() or ax.texts):
            parts += [ax.get_title(at) for at in ("left", "center", "right")]
            along = [text for text in (ax.get_ylabel(), ax.get_xlabel()) if text]
            parts.append(" against ".join(along))
            points = sum(len(dots.get_offsets()) for dots in ax.collections if isinstance(dots, PathCollection))
            parts.append(f"{points:,} points" if points > 20 else "")
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    entries = dict.fromkeys(text.get_text() for legend in legends for text in legend.get_texts())
    parts.append(", ".join(filter(None, entries)))
    lines = (" ".join(part.split()) for part in parts)
    return textwrap.shorten("; ".join(dict.fromkeys(filter(None, lines))) or "a figure", 700, placeholder=" ...")


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
