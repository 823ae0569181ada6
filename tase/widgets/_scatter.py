"""A cloud of points with selection: by jupyter-scatter (WebGL), or as a picture where that is not installed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from ..figures.style import FAINT, INK, style
from ._course import Colouring
from ._parts import Picture

EDGE = 2.0  # from the middle to the picture's edge; a layout has a root mean square radius of 1
WIDTH, HEIGHT = 530, 430
PAUSE = 0.9  # seconds from one movement to the next: longer than it takes


def has_webgl_scatter() -> bool:
    """Whether jupyter-scatter is installed."""
    from importlib.util import find_spec

    return find_spec("jscatter") is not None


class WebGLScatter:
    """jupyter-scatter: thousands of points stay fluid; lasso with the mouse."""

    def __init__(self, xy: np.ndarray, colouring: Colouring, name: str, on_select: Callable[[np.ndarray], None]):
        import jscatter

        self.scatter = jscatter.Scatter(
            x=xy[:, 0].astype(np.float64),
            y=xy[:, 1].astype(np.float64),
            x_scale=(-EDGE, EDGE),
            y_scale=(-EDGE, EDGE),
            height=HEIGHT,
            axes=False,
            background_color="white",
            transition_points_duration=350,
        )
        self.scatter.size(float(np.clip(240 / np.sqrt(len(xy)), 3, 9)))
        self._colour(colouring)  # before there is a view: one that starts without colours misses the first of them
        self.scatter.opacity(default=0.9, unselected=0.2, by=None)
        self.scatter.mouse("lasso")
        self.widget = self.scatter.show(["pan_zoom", "lasso", "divider", "reset"])
        self.scatter.widget.opacity = 0.9  # it keeps the ramp of its density mode otherwise: points of 0.4 %
        self.widget.layout.width = f"{WIDTH}px"
        self.widget.add_class("tase-embedding"), self.widget.add_class(f"tase-embedding-{name}")
        self.on_select, self._quiet = on_select, False
        self._lock, self._timer, self._free_at = threading.Lock(), None, time.monotonic() + PAUSE
        self._wish = self._sent = (xy, colouring)
        self.scatter.widget.observe(self._selected, "selection")

    def _selected(self, change) -> None:
        if not self._quiet:
            self.on_select(np.asarray(change["new"], dtype=np.int64))

    def show(self, xy: np.ndarray, colouring: Colouring) -> None:
        """Move and colour the points. While they move the view drops what it is sent: the last wish is sent then."""
        with self._lock:
            self._wish = (xy, colouring)
            if self._timer is None and time.monotonic() > self._free_at:
                self._send()
            elif self._timer is None:
                self._later()

    def _later(self) -> None:
        self._timer = threading.Timer(PAUSE, self._send_late)
        self._timer.daemon = True
        self._timer.start()

    def _send_late(self) -> None:
        """What was wished for meanwhile; or the same once more, in case a slow browser dropped it."""
        with self._lock:
            self._timer = None
            self._send(again=self._wish is self._sent)

    def _send(self, again: bool = False) -> None:
        (xy, colouring) = self._sent = self._wish
        x, y = xy.astype(np.float64).T
        self._free_at = time.monotonic() + PAUSE
        with self.scatter.widget.hold_sync():  # one message: of two, the second would come too early
            self._colour(colouring)
            self.scatter.xy(x=x, y=y, x_scale=(-EDGE, EDGE), y_scale=(-EDGE, EDGE), animate=not again)
        if not again:
            self._later()

    def _colour(self, colouring: Colouring) -> None:
        import pandas

        if colouring.continuous:
            norm = (colouring.low, colouring.high)
            self.scatter.color(by=colouring.values, map="viridis", norm=norm)
            return
        codes = pandas.Categorical.from_codes(colouring.values, range(len(colouring.palette)))
        self.scatter.color(by=codes, map=list(colouring.palette))

    def select(self, rows: np.ndarray) -> None:
        """Show these rows as selected, without telling `on_select`."""
        self._quiet = True
        try:
            self.scatter.selection(rows)
        finally:
            self._quiet = False


class PictureScatter:
    """The same as a picture: points are selected by the list of selections."""

    def __init__(self, xy: np.ndarray, colouring: Colouring, name: str, on_select: Callable[[np.ndarray], None]):
        with style():
            self.picture = Picture(WIDTH, HEIGHT, f"embedding {name}")
            ax = self.picture.figure.add_axes((0.005, 0.005, 0.99, 0.99))
            ax.set(xticks=[], yticks=[], xlim=(-EDGE * WIDTH / HEIGHT, EDGE * WIDTH / HEIGHT))
            ax.set(ylim=(-EDGE, EDGE))
            ax.spines[:].set_visible(True)
            ax.spines[:].set_color(FAINT)
            area = float(np.clip(9000 / len(xy), 4, 24))
            self.dots = ax.scatter(*xy.T, s=area, lw=0, c=colouring.rgba())
            self.rings = ax.scatter([], [], s=3 * area, facecolor="none", edgecolor=INK, lw=0.9)
            self.picture.moves(self.dots, self.rings)
        self.xy, self.rows = xy, np.zeros(0, dtype=np.int64)
        self.widget = self.picture.image
        self.widget.add_class("tase-embedding"), self.widget.add_class(f"tase-embedding-{name}")

    def show(self, xy: np.ndarray, colouring: Colouring) -> None:
        """Move and colour the points."""
        self.xy = xy
        self.dots.set_offsets(xy)
        self.dots.set_facecolor(colouring.rgba())
        self.select(self.rows)

    def select(self, rows: np.ndarray) -> None:
        """Ring these rows."""
        self.rows = rows
        self.rings.set_offsets(self.xy[rows] if len(rows) < len(self.xy) else np.zeros((0, 2)))
        self.picture.show()
