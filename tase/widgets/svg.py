"""Pictures that follow the page's theme: SVG whose text and colours are the page's, groups of samples, numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..data import GROUPS


def plain_number(value: float) -> str:
    """Write a number as people do, to three digits: 1,420 and 0.031, never 1.42e+03."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return np.format_float_positional(value, 3, fractional=False, trim="-")


def groups_present(group: Int64[np.ndarray, " n"]) -> list[tuple[int, str]]:
    """List number and name of the groups that occur; one, "all images", where none is known."""
    return [(g, GROUPS[g]) for g in range(3) if (group == g).any()] or [(-1, "all images")]


def group_colour(group: int) -> str:
    return str(group) if 0 <= group < 3 else "rest"


class Plot:
    """Draw one panel as SVG: its text and colours are the page's, so that it follows a dark theme, and it is quick.

    `x` and `y` are the ends of the axes in data units; `rows` names horizontal bands in place of the y axis's numbers.
    Colours are names of the variables `--tase-NAME` in widget.css.
    """

    LEFT, RIGHT, TOP, BOTTOM = 40, 8, 24, 34  # pixels around the axes

    def __init__(
        self,
        title: str,
        xlabel: str,
        *,
        x: tuple[float, float],
        y: tuple[float, float],
        log: bool = False,
        rows: Sequence[str] = (),
        size: tuple[int, int] = (240, 250),
    ):
        self.title, self.x, self.y, self.log, self.size = title, x, y, log, size
        width, height = size
        self.parts = [f'<text class="tase-title" x="2" y="13">{escape(title)}</text>']
        self.parts.append(f'<text x="{(self.LEFT + width) / 2}" y="{height - 4}" text-anchor="middle">{xlabel}</text>')
        for tick in _round_ticks(*x, log):
            self.line([tick, tick], y, "grid", 1)
            self.text(tick, y[0], plain_number(tick), "middle", dy=14)
        heights = enumerate(rows) if rows else [(tick, plain_number(tick)) for tick in _round_ticks(*y)]
        for tick, name in heights:
            self.line(x, [tick, tick], "grid", 1)
            self.text(x[0], tick + 0.45 * bool(rows), name, "end", dx=-5, dy=4 * (not rows))

    def _at(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of points in data units; those beyond the axes lie on their edge."""
        scale = np.log10 if self.log else np.asarray
        (left, right), (low, high), (width, height) = scale(self.x), self.y, self.size
        across = (scale(np.asarray(x, dtype=np.float64)) - left) / (right - left)
        up = (np.asarray(y, dtype=np.float64) - low) / (high - low)
        bottom = height - self.BOTTOM
        inside = np.clip(across, 0, 1) * (width - self.LEFT - self.RIGHT)
        return self.LEFT + inside, bottom - np.clip(up, 0, 1) * (bottom - self.TOP)

    def text(self, x: float, y: float, text: str, anchor: str = "start", dx: float = 0, dy: float = 0) -> None:
        """Write lines of text at a point in data units, moved by some pixels."""
        px, py = self._at(x, y)
        for k, line in enumerate(text.split("\n")):
            place = f'x="{px + dx:.1f}" y="{py + dy + 14 * k:.1f}" text-anchor="{anchor}"'
            self.parts.append(f"<text {place}>{escape(line)}</text>")

    def note(self, text: str) -> None:
        """Write lines of text in the upper left corner."""
        self.text(self.x[0], self.y[1], text, dx=6, dy=17)

    def line(self, x: Any, y: Any, colour: str, width: float = 1.5, dash: str = "none", name: str = "") -> None:
        """Draw a line; `name` is shown when the mouse rests on it. Points that are no numbers are left out."""
        pen = f"fill:none;stroke:var(--tase-{colour});stroke-width:{width};stroke-dasharray:{dash}"
        self._path(*self._at(x, y), "", pen, name)

    def area(self, x: Any, low: Any, high: Any, colour: str, opacity: float = 0.75, name: str = "") -> None:
        """Fill between two lines."""
        around = np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])
        self._path(*self._at(*around), "Z", f"fill:var(--tase-{colour});fill-opacity:{opacity}", name)

    def dots(self, x: Any, y: Any, colours: Sequence[str], radius: float = 2.5, hollow: bool = False) -> None:
        for px, py, colour in zip(*self._at(x, y), colours):
            paint = f"fill:none;stroke:var(--tase-{colour})" if hollow else f"fill:var(--tase-{colour})"
            self.parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius}" style="{paint}"/>')

    def _path(self, x: np.ndarray, y: np.ndarray, end: str, style: str, name: str) -> None:
        points = [f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist()) if math.isfinite(a + b)]
        if points:
            shape = f"M{'L'.join(points)}{end}"
            self.parts.append(f'<path d="{shape}" style="{style}"><title>{escape(name)}</title></path>')

    def svg(self, alt: str) -> str:
        """Return the panel; `alt` says what it shows to those who do not see it."""
        width, height = self.size
        box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        label = escape(f"{self.title}: {alt}", quote=True)
        return f'<svg {box} role="img" aria-label="{label}">{"".join(self.parts)}</svg>'


def _round_ticks(low: float, high: float, log: bool = False) -> list[float]:
    """A few round numbers between the ends of an axis."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    parts = (1, 2, 5) if high < 200 * low else (1,)  # of a decade
    locator = LogLocator(subs=parts, numticks=9) if log else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]


def at_least(low: float, high: float, span: float) -> tuple[float, float]:
    """Widen an axis to `span` at least, so that a small change does not look like a large one; else by a margin."""
    more = max(0.05 * (high - low), (span - (high - low)) / 2)
    return low - more, high + more


def figure_html(panels: Iterable[str], entries: Iterable[tuple[str, str, bool]], note: str = "") -> str:
    """Put panels in a row that shrinks with the page, under a legend: name, colour, and whether it is drawn dashed."""
    cells = []
    for name, colour, dashed in entries:
        mark = "2px dashed" if dashed else "9px solid"
        cells.append(f'<span><i style="border-top:{mark} var(--tase-{colour})"></i>{escape(name)}</span>')
    legend, below = "".join(cells), f'<div class="tase-message">{escape(note)}</div>' if note else ""
    return f'<div class="tase-legend">{legend}</div><div class="tase-picture">{"".join(panels)}</div>{below}'
