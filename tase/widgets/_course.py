"""A run over training time for the run explorer: quantities of the images laid out, colours for them, selections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from ..figures.style import CLASS_COLOURS
from ..runs import Run
from ._layouts import Layouts
from ._panels import colour_of
from ._pure import members, sample_groups

CONTINUOUS = {"tau": "temperature τ", "weight": "weight w", "loss": "loss since the snapshot before"}
QUANTITIES = {"class": "true class", "group": "group", "pseudo_label": "pseudo-label (cluster)", **CONTINUOUS}


@dataclass(frozen=True)
class Colouring:
    """Colours of m points: codes into `palette`, or values between `low` and `high` on a continuous map."""

    values: np.ndarray  # [m] int64 codes, or float values
    palette: tuple[str, ...]  # () for a continuous map
    names: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0

    @property
    def continuous(self) -> bool:
        return not self.palette

    def rgba(self) -> Float[np.ndarray, "m 4"]:
        """Colours for matplotlib."""
        from matplotlib import colormaps
        from matplotlib.colors import to_rgba_array

        if self.continuous:
            return colormaps["viridis"]((self.values - self.low) / max(self.high - self.low, 1e-12))
        return to_rgba_array(self.palette)[self.values]


class Course:
    """The images of a layout, m of them, over the s snapshots of a run."""

    def __init__(self, run: Run, layouts: Layouts):
        h = run.history
        self.run, self.layouts, self.index = run, layouts, layouts.index
        self.epoch = h.epoch
        self.tau, self.weight, self.loss = h.tau[:, self.index], h.weight[:, self.index], h.loss[:, self.index]
        self.pseudo_label = h.pseudo_label[:, self.index]
        self.n = h.tau.shape[1]
        self.classes = h.classes
        self.label = None if h.labels is None else h.labels[self.index].astype(np.int64)
        self.group = sample_groups(h, self.n)[self.index]
        self.scale: dict[str, tuple[float, float]] = {}

    @property
    def quantities(self) -> list[str]:
        """What the points can be coloured by."""
        out = [] if self.label is not None else ["class"]
        out += [] if (self.group >= 0).any() else ["group"]
        return [name for name in QUANTITIES if name not in out]

    def colouring(self, what: str, t: int) -> Colouring:
        """Colours of the points at snapshot t."""
        if what == "group":
            named = members(self.group)
            code = np.searchsorted([g for g, _ in named], self.group)
            return Colouring(code, tuple(colour_of(g) for g, _ in named), tuple(name for _, name in named))
        if what == "class":
            return Colouring(self.label, _cycle(len(self.classes)), self.classes)
        if what == "pseudo_label":
            code = np.maximum(self.pseudo_label[t], 0)
            count = int(self.pseudo_label.max()) + 1
            return Colouring(code, _cycle(max(count, 1)), tuple(f"cluster {k}" for k in range(max(count, 1))))
        low, high = self.scale.get(what) or self.limits(what)
        values = np.clip(getattr(self, what)[t], low, high).astype(np.float64)
        return Colouring(np.nan_to_num(values, nan=low), (), (), low, high)

    def limits(self, what: str) -> tuple[float, float]:
        """1st and 99th percentile of a quantity over all epochs."""
        rows = getattr(self, what)
        known = rows[np.isfinite(rows)]
        low, high = (float(x) for x in np.quantile(known, (0.01, 0.99))) if len(known) else (0.0, 1.0)
        return (low, high) if high - low > 1e-6 else (low - 0.05, high + 0.05)

    def choices(self) -> list[tuple[str, str]]:
        """Selections that need no mouse: (name, key)."""
        found = [("choose …", ""), ("nothing", "none"), ("everything", "all")]
        if (self.group >= 0).any():
            found += [(f"group {name}", f"group:{g}") for g, name in members(self.group)]
            found += [("mid and tail with the highest τ", "mistaken"), ("head with the lowest τ", "missed")]
        if len(self.epoch) > 1:
            found += [("moved to another cluster just now", "moved"), ("stay in their cluster from now on", "stay")]
        if self.label is not None:
            found += [(f"class {name}", f"class:{c}") for c, name in enumerate(self.classes)]
        return found

    def choose(self, key: str, t: int) -> Int64[np.ndarray, " r"]:
        """Rows of a selection at snapshot t."""
        kind, _, value = key.partition(":")
        if kind in ("group", "class"):
            return np.flatnonzero((self.group if kind == "group" else self.label) == int(value))
        if kind == "moved":
            return np.flatnonzero(self.pseudo_label[t] != self.pseudo_label[max(t - 1, 0)])
        if kind == "stay":
            return np.flatnonzero((self.pseudo_label[t:] == self.pseudo_label[t]).all(0))
        if kind in ("mistaken", "missed"):
            return self._extreme(t, kind == "mistaken")
        return np.arange(len(self.index) if kind == "all" else 0)

    def _extreme(self, t: int, high: bool, count: int = 20) -> Int64[np.ndarray, " r"]:
        rows = np.flatnonzero(self.group > 0) if high else np.flatnonzero(self.group == 0)
        tau = self.tau[t, rows]
        return rows[np.argsort(-tau if high else tau, kind="stable")[:count]]


def share_scales(courses: Sequence[Course]) -> None:
    """The same colour for the same value in all runs."""
    for what in CONTINUOUS:
        lows, highs = zip(*(course.limits(what) for course in courses))
        for course in courses:
            course.scale[what] = (min(lows), max(highs))


def _cycle(count: int) -> tuple[str, ...]:
    return tuple(CLASS_COLOURS[i % len(CLASS_COLOURS)] for i in range(count))
