"""The picture linked with the run explorer's selection: how it is distributed, and its course."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from ..figures.style import FAINT, INK, SOFT, style
from ._course import CONTINUOUS, QUANTITIES, Course
from ._panels import colour_of
from ._parts import WIDTH, Picture
from ._pure import members, shares

LINES = 30  # samples drawn as single lines


class LinkedPicture:
    """Distribution of the quantity shown, group counts, courses of tau and w: of the selected points, or of all.

    Two pictures: the distribution is drawn for every epoch, the others for every selection; in them a line moves.
    """

    def __init__(self, name: str):
        import ipywidgets

        with style():
            self.now = Picture(340, 270, f"distribution {name}")
            self.over_time = Picture(WIDTH - 345, 270, f"courses {name}: groups, temperature and weight over time")
            self.distribution = self.now.figure.add_axes((0.17, 0.18, 0.8, 0.68))
            self.axes = self.over_time.figure.subplots(1, 3, width_ratios=(0.6, 1, 1))
            self.over_time.figure.subplots_adjust(left=0.07, right=0.98, bottom=0.18, top=0.86, wspace=0.36)
        self.box = ipywidgets.HBox([self.now.image, self.over_time.image])
        self._drawn: tuple | None = None

    def show(self, course: Course, t: int, what: str, rows: np.ndarray) -> None:
        """Draw for snapshot t, coloured by `what`, with `rows` selected (none: all)."""
        ax = self.distribution
        with style():
            ax.clear()
            if what in CONTINUOUS or what == "group":  # the groups themselves are counted beside it
                _histogram(ax, course, t, what if what in CONTINUOUS else "tau", rows)
            else:
                _counts(ax, course, t, what, rows)
        self.now.show(anew=True)
        self._show_courses(course, t, rows)

    def _show_courses(self, course: Course, t: int, rows: np.ndarray) -> None:
        anew = self._drawn is None or self._drawn[0] is not course or not np.array_equal(self._drawn[1], rows)
        if anew:
            self.over_time.moving.clear()
            with style():
                for ax in self.axes:
                    ax.clear()
                _groups(self.axes[0], course, rows)
                for ax, name in zip(self.axes[1:], ("tau", "weight")):
                    _courses(ax, course, name, rows)
                    self.over_time.moves(ax.axvline(0, color=INK, lw=0.9, ls=":"))
            self._drawn = (course, rows)
        for line in self.over_time.moving:
            line.set_xdata([course.epoch[t]] * 2)
        self.over_time.show(anew)


def _histogram(ax: Axes, course: Course, t: int, what: str, rows: np.ndarray) -> None:
    colouring = course.colouring(what, t)
    edges = np.linspace(colouring.low, colouring.high, 41)
    chosen = rows if len(rows) else np.arange(len(course.index))
    some = np.full(len(course.index), -1, dtype=np.int64)
    everything = shares(colouring.values, some, edges, [-1])[0]
    ax.stairs(everything, edges, color=SOFT, lw=1.0, ls="--", label="all points")
    group = course.group[chosen]
    named = members(group)
    parts = shares(colouring.values[chosen], group, edges, [g for g, _ in named])
    weights = np.array([(group == g).mean() for g, _ in named])
    below = np.zeros(len(edges) - 1)
    for (g, name), part in zip(named, parts * weights[:, None]):
        ax.stairs(below + part, edges, baseline=below, fill=True, color=colour_of(g), alpha=0.8, label=name)
        below = below + part
    ax.legend(loc="upper left" if everything.argmax() > 20 else "upper right")
    ax.set(xlabel=QUANTITIES[what], ylabel="% of the points", title=_title("Distribution", course, rows))


def _counts(ax: Axes, course: Course, t: int, what: str, rows: np.ndarray) -> None:
    """Bars of the most frequent classes or clusters among the selected."""
    colouring = course.colouring(what, t)
    chosen = rows if len(rows) else np.arange(len(course.index))
    count = np.bincount(colouring.values[chosen], minlength=len(colouring.palette))
    order = np.argsort(-count, kind="stable")[:10]
    order = order[count[order] > 0]
    ax.barh(np.arange(len(order)), count[order], color=[colouring.palette[i] for i in order])
    names = [colouring.names[i][:14] if i < len(colouring.names) else str(i) for i in order]
    ax.set(yticks=np.arange(len(order)), ylim=(9.6, -0.6), xlabel="points")
    ax.set_yticklabels([name.replace("$", r"\$") for name in names])
    ax.tick_params(axis="y", length=0)
    ax.set_title(_title("Classes" if what == "class" else "Largest clusters", course, rows))


def _groups(ax: Axes, course: Course, rows: np.ndarray) -> None:
    """Share of each group among the selected, beside its share among all."""
    named = members(course.group)
    chosen = course.group[rows] if len(rows) else course.group
    for i, (g, _) in enumerate(named):
        everywhere, here = 100 * (course.group == g).mean(), 100 * (chosen == g).mean()
        ax.bar(i, here, width=0.7, color=colour_of(g))
        ax.plot([i - 0.42, i + 0.42], [everywhere] * 2, color=INK, lw=1.2)
        ax.text(i, max(here, everywhere) + 2, f"{int((chosen == g).sum()):,}", ha="center", va="bottom", fontsize=7)
    ax.set(xticks=range(len(named)), xticklabels=[name for _, name in named], ylim=(0, 112), ylabel="% of the points")
    ax.set_title("Groups (line: all)")


def _courses(ax: Axes, course: Course, name: str, rows: np.ndarray) -> None:
    """Median and 10-90 % of the selected over the epochs, single ones as thin lines."""
    values = getattr(course, name)[:, rows] if len(rows) else getattr(course, name)
    group = course.group[rows] if len(rows) else course.group
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=1)
    ax.fill_between(course.epoch, low, high, color=FAINT, lw=0)
    single = np.random.default_rng(0).permutation(values.shape[1])[:LINES]
    for g, _ in members(group):
        ax.plot(course.epoch, values[:, single[group[single] == g]], color=colour_of(g), lw=0.6, alpha=0.7)
    ax.plot(course.epoch, middle, color=INK, lw=1.8, marker="o" if len(course.epoch) == 1 else None)
    room = max(0.05 - np.ptp(values), 0) / 2
    ax.set_ylim(ax.get_ylim()[0] - room, ax.get_ylim()[1] + room)
    ax.set_xlim(course.epoch[0], max(course.epoch[-1], course.epoch[0] + 1))
    ax.set(xlabel="epoch", ylabel=QUANTITIES[name])
    ax.set_title("median, 10-90 %, single samples" if name == "tau" else "the same for the weight")


def _title(text: str, course: Course, rows: np.ndarray) -> str:
    return f"{text}, {len(rows):,} selected" if len(rows) else f"{text}, all {len(course.index):,} points"
