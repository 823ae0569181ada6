"""How every figure looks: sizes, colours, the footer that says where the numbers come from, and how it is saved."""

from __future__ import annotations

import io
import textwrap
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
import matplotlib.figure
import matplotlib.style
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..data import GROUPS
from ..runs import write_atomic

COLUMN, TEXT = 3.25, 5.5  # inches: a single column, the text's width

# Head, mid, tail: lightness 34, 49, 71 (CIELAB), so they stay apart without colour, and for colour-blind readers.
GROUP_COLOURS = ("#27509A", "#CE4A36", "#63BF8A")
INK, SOFT, FAINT = "#222222", "#666666", "#D9D9D9"

# Ten classes told apart (seaborn's "colorblind" order), and as many runs in one panel.
CLASS_COLOURS = (
    *("#0173B2", "#DE8F05", "#029E73", "#D55E00", "#CC78BC"),
    *("#7A4B1E", "#F5A3D7", "#8C8C8C", "#D8C900", "#56B4E9"),
)
RUN_MARKS = (("#222222", "o"), ("#B8860B", "s"), ("#8E3B9E", "D"), ("#0E8C9C", "^"), ("#A0522D", "v"), ("#5B6BD6", "P"))

_RC = {
    "figure.facecolor": "white",
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "axes.titlelocation": "left",
}


def style() -> AbstractContextManager[None]:
    """The figures' matplotlib settings as a context, whatever style the user has set outside."""
    return mpl.style.context(["default", _RC])


class Figure(mpl.figure.Figure):
    """A matplotlib figure that keeps its style wherever it is drawn, and shows in a notebook without pyplot."""

    def draw(self, renderer) -> None:
        with style():  # ticks are made when first drawn, with the settings of that moment
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return _bytes(self, "png", self.dpi)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches that lays itself out."""
    return Figure(figsize=(width, height), layout="constrained")


def _bytes(figure: mpl.figure.Figure, kind: str, dpi: float) -> bytes:
    buffer = io.BytesIO()
    # No dates, no versions: the same results give the same file.
    metadata = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}[kind]
    with style():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def save(figure: mpl.figure.Figure, path: str | Path) -> tuple[Path, Path]:
    """Write `figure` as PDF (TrueType fonts) and PNG (300 dpi) side by side; returns both paths.

    `path` may end in .pdf, .png or neither; folders are made.
    """
    path = Path(path)
    stem = path.name.removesuffix(".pdf").removesuffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = (path.with_name(f"{stem}.pdf"), path.with_name(f"{stem}.png"))
    for kind, target in zip(("pdf", "png"), paths, strict=True):
        write_atomic(target, _bytes(figure, kind, 300))
    return paths


def footer(figure: mpl.figure.Figure, text: str) -> None:
    """A small line at the bottom right, broken between its parts; there is room for about 17 characters an inch."""
    whole = text.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}", " · ")
    lines = [line.strip(" ·") for line in textwrap.wrap(whole, int(figure.get_figwidth() * 17))]
    figure.supxlabel("\n".join(lines).replace("\N{NO-BREAK SPACE}", " "), x=0.995, ha="right", fontsize=7, color=SOFT)


def group_handles(bars: bool = True) -> list:
    """Legend entries of head, mid and tail."""
    if bars:
        return [Patch(color=c, label=g) for g, c in zip(GROUPS, GROUP_COLOURS, strict=True)]
    return [
        Line2D([], [], ls="", marker="o", ms=4, color=c, label=g) for g, c in zip(GROUPS, GROUP_COLOURS, strict=True)
    ]


def colours_of(groups) -> list[str]:
    """One colour per entry of `groups` (0 head, 1 mid, 2 tail; anything else: grey)."""
    return [GROUP_COLOURS[int(g)] if 0 <= int(g) < 3 else "#9A9A9A" for g in groups]
