"""Figure 1: accuracy per class; and the counts it is read against."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..data import GROUPS
from ..runs import Run
from .sources import Ranked, as_runs, methods, ranked, results_of, sign
from .style import COLUMN, INK, TEXT, Figure, colours_of, group_handles, new_figure, style

MANY = 25  # classes from which on bars get neither names nor error bars


def per_class_accuracy(runs: Run | Sequence[Run], protocol: str = "linear", footer: bool = True) -> Figure:
    """Figure 1: test accuracy in % of each class, one panel per method, classes by training count, largest first.

    Runs that differ in their seed only share a panel: bars are means by rank, error bars +-1 standard deviation. The
    mean over classes is a dashed line, the range a bracket. Raises Missing where a run lacks the protocol.
    """
    runs = as_runs(runs)
    with style():
        panels = [
            (m.label, ranked(m, runs, lambda r: results_of(r, "protocols", protocol, "per_class")))
            for m in methods(runs)
        ]
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        names = max((len(n) for _, data in panels for n in _short(data.names)), default=0)
        figure = new_figure(TEXT if columns > 1 else COLUMN, 0.75 + (1.6 + 0.055 * max(0, names - 2)) * rows)
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for ax, (label, data) in zip(axes.flat, panels, strict=False):
            _bars(ax, textwrap.fill(label, 26), data)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for ax in axes[:, 0]:
            ax.set(ylabel="accuracy in %", ylim=(0, 104))
        _legend(figure, columns)
        if footer:
            _note(figure, runs, protocol, [data for _, data in panels])
    return figure


def _bars(ax: Axes, label: str, data: Ranked) -> None:
    classes = len(data.mean)
    x = np.arange(classes)
    few = classes <= MANY
    ax.bar(x, data.mean, width=0.8 if few else 1.0, color=colours_of(data.groups))
    if len(data.values) > 1 and few:
        ax.errorbar(x, data.mean, data.deviation, fmt="none", ecolor=INK, elinewidth=0.7, capsize=1.5, capthick=0.7)
    low, high = data.values.min(1).mean(), data.values.max(1).mean()
    mean, edge = data.mean.mean(), classes - 0.4
    ax.plot([-0.6, edge], [mean, mean], color=INK, ls=(0, (3, 1.5)), lw=0.9)
    bracket = edge + 0.05 * classes
    ax.errorbar([bracket], [(low + high) / 2], (high - low) / 2, color=INK, elinewidth=0.9, capsize=2.5, capthick=0.9)
    ax.set_title(f"{label}\nmean {mean:.1f}, range {high - low:.1f}", linespacing=1.3)
    ax.set_xlim(-0.8, bracket + 0.05 * classes)
    _name_classes(ax, data.names, classes, "class (by training images)")


def _short(names: Sequence[str] | None) -> list[str]:
    return [name if len(name) <= 14 else f"{name[:13]}…" for name in names or ()]


def _name_classes(ax: Axes, names: Sequence[str] | None, classes: int, what: str) -> None:
    """Names under the bars where they fit, else ranks."""
    if names is not None and classes <= MANY:
        long = max(map(len, names)) > (2 if classes > 6 else 6)
        ax.set_xticks(range(classes), _short(names), rotation=90 if long else 0)
        ax.set_xlabel(what)
        return
    ticks = [0, *range(classes // 4 - 1, classes, max(1, classes // 4))] if classes > 12 else list(range(classes))
    ax.set_xticks(ticks, [str(t + 1) for t in ticks])
    ax.set_xlabel("class rank, head to tail")


def _legend(figure: Figure, columns: int) -> None:
    marks = [
        Line2D([], [], color=INK, ls=(0, (3, 1.5)), lw=0.9, label="mean over classes"),
        Line2D([], [], color=INK, ls="", marker="|", ms=7, label="range over classes"),
    ]
    figure.legend(handles=[*group_handles(), *marks], loc="outside upper center", ncols=5 if columns > 1 else 3)


def _note(figure: Figure, runs: list[Run], protocol: str, panels: list[Ranked]) -> None:
    several = any(len(p.values) > 1 for p in panels)
    notes = [f"protocol {protocol}"]
    notes += ["error bars ±1 s.d. over seeds, range the mean over seeds"] if several else []
    notes += ["balanced: classes in the order of the long tail"] if any(p.borrowed for p in panels) else []
    sign(figure, runs, *notes)


def class_counts(
    counts: Sequence[int], groups: Sequence[int | str] | None = None, names: Sequence[str] | None = None
) -> Figure:
    """Training images per class [C], largest first, in the colours of their `groups` (0..2, or head/mid/tail)."""
    counts = np.asarray(counts)
    order = np.argsort(-counts, kind="stable")
    ids = [-1] * len(counts) if groups is None else [GROUPS.index(g) if isinstance(g, str) else g for g in groups]
    with style():
        figure = new_figure(COLUMN, 2.1)
        ax = figure.subplots()
        bars = ax.bar(range(len(counts)), counts[order], width=0.8 if len(counts) <= MANY else 1.0)
        for bar, colour in zip(bars, colours_of(np.asarray(ids)[order]), strict=True):
            bar.set_color(colour)
        if len(counts) <= 12:
            ax.bar_label(bars, fontsize=7, padding=1)
            ax.margins(y=0.1)
        ratio = counts.max() / max(counts.min(), 1)
        ax.set(ylabel="training images", title=f"{counts.sum():,} images, largest to smallest {ratio:.3g} : 1")
        _name_classes(ax, [names[i] for i in order] if names else None, len(counts), "class (by training images)")
        if groups is not None:
            ax.legend(handles=group_handles(), loc="upper right")
    return figure
