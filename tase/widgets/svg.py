"""Pictures that follow the page's theme: SVG whose text and colours are the page's, groups of samples, numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..data import GROUPS
from ..figures.style import THEMES
from ..runs import History

# Every colour is a variable of the page, so that a picture changes with JupyterLab's theme without being drawn again.
_LIGHT, _DARK = (THEMES[name].groups for name in ("light", "dark"))
WIDGET_CSS = f"""<style>
.tase-box {{ --tase-0: {_LIGHT[0]}; --tase-1: {_LIGHT[1]}; --tase-2: {_LIGHT[2]};
  --tase-rest: #666; --tase-ink: var(--jp-ui-font-color1, #222); --tase-soft: var(--jp-ui-font-color2, #666);
  --tase-grid: rgba(128, 128, 128, 0.25); --tase-steer: #8E3B9E; max-width: 1090px; color: var(--tase-ink); }}
[data-jp-theme-light="false"] .tase-box, .vscode-dark .tase-box {{ --tase-0: {_DARK[0]}; --tase-1: {_DARK[1]};
  --tase-2: {_DARK[2]}; --tase-rest: #AAA; --tase-steer: #D58BE3; }}
.tase-box .widget-label {{ white-space: nowrap; }}
.tase-flow {{ display: flex; flex-flow: row wrap; align-items: center; column-gap: 14px; }}
.tase-flow .widget-slider {{ width: 390px; }}
.tase-flow .widget-dropdown, .tase-flow .widget-text {{ width: auto; min-width: 150px; }}
.tase-flow .widget-text input[type="number"] {{ max-width: 80px; }}
.tase-flow .widget-text input[type="text"] {{ width: 360px; }}
.tase-picture {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(196px, 1fr)); gap: 6px;
  line-height: 1.2; }}
.tase-picture svg {{ width: 100%; max-width: 350px; height: auto; overflow: visible; }}
.tase-picture text {{ font: 11.5px sans-serif; fill: var(--tase-ink); }}
.tase-picture .tase-title {{ font-weight: 600; font-size: 12px; }}
.tase-legend span {{ margin-right: 14px; white-space: nowrap; color: var(--tase-ink); }}
.tase-legend i {{ display: inline-block; width: 14px; vertical-align: middle; margin-right: 4px; }}
.tase-message {{ color: var(--tase-ink); min-height: 22px; line-height: 20px; }}
.tase-warning {{ border-left: 4px solid #DE8F05; padding-left: 8px; }}
.tase-thumbs {{ display: flex; flex-wrap: wrap; gap: 4px; align-items: flex-start; }}
.tase-thumbs figure {{ margin: 0; text-align: center; font-size: 11px; line-height: 14px; width: 60px;
  color: var(--tase-ink); overflow: hidden; }}
.tase-thumbs img {{ width: 44px; height: 44px; object-fit: contain; image-rendering: pixelated;
  border: 1px solid var(--tase-grid); }}
.tase-heading {{ font-weight: 600; line-height: 20px; color: var(--tase-ink); }}
.tase-command textarea {{ font-family: var(--jp-code-font-family, monospace); font-size: 12px; }}
</style>"""


def plain_number(value: float) -> str:
    """Write a number as people do, to three digits: 1,420 and 0.031, never 1.42e+03."""
    if not math.isfinite(value) or value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def group_of_samples(history: History, n: int) -> Int64[np.ndarray, " n"]:
    """Return the group of each of n images; -1 where there are no labels, or no tail among the classes."""
    labels, groups, counts = history.labels, history.groups, history.counts
    if labels is None or groups is None or counts.min() == counts.max():
        return np.full(n, -1, dtype=np.int64)
    return groups[labels].astype(np.int64)


def groups_present(group: Int64[np.ndarray, " n"]) -> list[tuple[int, str]]:
    """List number and name of the groups that occur; one, "all images", where none is known."""
    return [(g, GROUPS[g]) for g in range(3) if (group == g).any()] or [(-1, "all images")]


def group_colour(group: int) -> str:
    return str(group) if 0 <= group < 3 else "rest"


class Plot:
    """Draw one panel as SVG: its text and colours are the page's, so that it follows a dark theme, and it is quick.

    `x` and `y` are the ends of the axes in data units; `rows` names horizontal bands in place of the y axis's numbers.
    Colours are names of the WIDGET_CSS variables `--tase-NAME`.
    """

    LEFT, TOP, BOTTOM = 40, 24, 34  # pixels around the axes

    def __init__(
        self,
        title: str,
        xlabel: str,
        *,
        x: tuple[float, float],
        y: tuple[float, float],
        log: bool = False,
        ticks: Sequence[float] | None = None,
        rows: Sequence[str] = (),
        size: tuple[int, int] = (240, 250),
    ):
        self.title, self.x, self.y, self.log, self.size = title, x, y, log, size
        self.parts: list[str] = []
        self._frame(xlabel, _round_ticks(*x, log) if ticks is None else ticks, rows)

    def _at(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of points in data units; those beyond the axes lie on their edge."""
        scale = np.log10 if self.log else np.asarray
        (left, right), (low, high) = scale(self.x), self.y
        across = (scale(np.asarray(x, dtype=np.float64)) - left) / (right - left)
        up = (np.asarray(y, dtype=np.float64) - low) / (high - low)
        return self._pixels(np.clip(across, 0, 1), np.clip(up, 0, 1))

    def _pixels(self, across: Any, up: Any) -> tuple[Any, Any]:
        """Pixels of a place given in shares of the axes."""
        width, height = self.size
        bottom = height - self.BOTTOM
        return self.LEFT + across * (width - self.LEFT - 8), bottom - up * (bottom - self.TOP)

    def _frame(self, xlabel: str, ticks: Iterable[float], rows: Sequence[str]) -> None:
        width, height = self.size
        self.parts.append(f'<text class="tase-title" x="2" y="13">{escape(self.title)}</text>')
        self.parts.append(f'<text x="{(self.LEFT + width) / 2}" y="{height - 4}" text-anchor="middle">{xlabel}</text>')
        for tick in ticks:
            self.line([tick, tick], self.y, "grid", 1)
            self._words(tick, self.y[0], plain_number(tick), "middle", dy=14)
        if not rows:
            for tick in _round_ticks(*self.y):
                self.line(self.x, [tick, tick], "grid", 1)
                self._words(self.x[0], tick, plain_number(tick), "end", dx=-5, dy=4)
        for i, name in enumerate(rows):
            self.line(self.x, [i, i], "grid", 1)
            self._words(self.x[0], i + 0.45, name, "end", dx=-5)

    def _words(self, x: float, y: float, text: str, anchor: str = "start", dx: float = 0, dy: float = 0) -> None:
        """Write lines of text at a point in data units, moved by some pixels."""
        self._write(*self._at(x, y), text, anchor, dx, dy)

    def note(self, text: str, across: float = 0.03, up: float = 0.95, anchor: str = "start") -> None:
        """Write lines of text at a place given in shares of the axes."""
        self._write(*self._pixels(across, up), text, anchor, 0, 8)

    def _write(self, x: float, y: float, text: str, anchor: str, dx: float, dy: float) -> None:
        for k, line in enumerate(text.split("\n")):
            place = f'x="{x + dx:.1f}" y="{y + dy + 14 * k:.1f}" text-anchor="{anchor}"'
            self.parts.append(f"<text {place}>{escape(line)}</text>")

    def line(self, x: Any, y: Any, colour: str, width: float = 1.5, dash: str = "none", name: str = "") -> None:
        """Draw a line; `name` is shown when the mouse rests on it. Points that are no numbers are left out."""
        pen = f"fill:none;stroke:var(--tase-{colour});stroke-width:{width};stroke-dasharray:{dash}"
        self._path(*self._at(x, y), "", pen, name)

    def area(self, x: Any, low: Any, high: Any, colour: str, opacity: float = 0.75, name: str = "") -> None:
        """Fill between two lines."""
        right, up = self._at(x, high)
        left, down = self._at(np.asarray(x)[::-1], np.asarray(low)[::-1])
        paint = f"fill:var(--tase-{colour});fill-opacity:{opacity}"
        self._path(np.concatenate([right, left]), np.concatenate([up, down]), "Z", paint, name)

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

    locator = LogLocator(numticks=5) if log else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
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
