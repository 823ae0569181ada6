"""Figure 5: the quantity argument. How hard a class as a whole pushes, against its number of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..data import GROUPS
from ..runs import Run
from .sources import Missing, Ranked, as_runs, has_tail, methods, ranked, results_of, sign
from .style import COLUMN, FAINT, GROUP_COLOURS, INK, RUN_MARKS, SOFT, Figure, new_figure, style


def push(runs: Run | Sequence[Run], footer: bool = True) -> Figure:
    """Figure 5: total push of each class on its negatives (share of all, in %) against its training images, both log.

    Mean over the runs of a method; the slope is that of a straight line through the logarithms: 1 where push grows as
    the number of images does, 0 where every class pushes alike. The push of an anchor is (w / sum w) (1 - p) / tau,
    p the share of its positive in the softmax of equation (1). Raises Missing where a run has not been evaluated.
    """
    runs = as_runs(runs)
    with style():
        found = methods(runs)
        rows = [ranked(m, runs, lambda r: results_of(r, "push", "per_class")) for m in found]
        figure = new_figure(COLUMN, 2.7 + 0.14 * len(rows))
        ax = figure.subplots()
        handles = [_points(ax, i, m.label, row) for i, (m, row) in enumerate(zip(found, rows, strict=True))]
        ax.set(xscale="log", yscale="log", xlabel="training images of the class", ylabel="share of all push in %")
        _plain_ticks(ax)
        _tint_groups(ax, rows)
        _slope_one(ax, rows)
        figure.legend(handles=handles, loc="outside upper left", ncols=1)
        if footer:
            sign(figure, runs)
    return figure


def slope(counts: np.ndarray, share: np.ndarray) -> float | None:
    """Exponent b of share ~ counts^b by least squares on the logarithms; None where all counts are (nearly) equal."""
    keep = (counts > 0) & (share > 0)
    x, y = np.log(counts[keep]), np.log(share[keep])
    if len(x) < 2 or np.ptp(x) < 0.1:
        return None
    return float(np.polyfit(x, y, 1)[0])


def _points(ax: Axes, i: int, label: str, row: Ranked) -> Line2D:
    """Dots per class, a fitted line; returns the legend's entry, which names the slope."""
    colour, marker = RUN_MARKS[i % len(RUN_MARKS)]
    counts = row.counts.mean(0)
    share = 100 * (row.values / row.values.sum(1, keepdims=True)).mean(0)
    if not (share > 0).any():
        raise Missing(f"'{label}' has no push above zero in its results: evaluate it again")
    size = 4.0 if len(share) <= 25 else 2.2
    ax.plot(counts, share, ls="", marker=marker, ms=size, color=colour, alpha=0.85, mew=0)
    b = slope(counts, share)
    if b is not None:
        middle = np.exp(np.log(share[share > 0]).mean() - b * np.log(counts[share > 0]).mean())
        ends = np.array([counts.min(), counts.max()])
        ax.plot(ends, middle * ends**b, color=colour, lw=0.9)
    text = label if b is None else f"{label}: slope {b:.2f}"
    return Line2D([], [], color=colour, marker=marker, ms=4, lw=0 if b is None else 0.9, label=text)


def _slope_one(ax: Axes, rows: list[Ranked]) -> None:
    """A dotted line of slope 1: push in proportion to size."""
    tailed = [row for row in rows if has_tail(row.counts)]
    if tailed:
        counts = tailed[0].counts.mean(0)
        ax.plot(counts, 100 * counts / counts.sum(), color=SOFT, ls=":", lw=0.9, zorder=1)
        ax.annotate(
            "in proportion to size",
            (counts[len(counts) // 2], 100 * counts[len(counts) // 2] / counts.sum()),
            xytext=(6, -9),
            textcoords="offset points",
            fontsize=7,
            color=SOFT,
        )


def _tint_groups(ax: Axes, rows: list[Ranked]) -> None:
    """The background in the colours of head, mid and tail, where all long-tailed runs agree on them."""
    tailed = [r for r in rows if has_tail(r.counts) and (r.groups >= 0).all()]
    if not tailed or any(not np.array_equal(r.groups, tailed[0].groups) for r in tailed):
        return
    counts = tailed[0].counts.mean(0)
    left, right = ax.get_xlim()
    edges = [right]
    for g in (0, 1):
        inside, outside = counts[tailed[0].groups <= g], counts[tailed[0].groups > g]
        edges.append(np.sqrt(inside.min() * outside.max()) if len(inside) and len(outside) else edges[-1])
    edges.append(left)
    for g in range(3):
        high, low = edges[g], edges[g + 1]
        if low < high:
            ax.axvspan(low, high, color=GROUP_COLOURS[g], alpha=0.1, lw=0, zorder=0)
            ax.text(np.sqrt(low * high), 0.98, GROUPS[g], ha="center", va="top", transform=ax.get_xaxis_transform())
    ax.set_xlim(left, right)


def _plain_ticks(ax: Axes) -> None:
    """Plain numbers at 1, 2, 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.grid(color=FAINT, lw=0.4)
    ax.set_axisbelow(True)
    ax.tick_params(which="minor", length=0)
    ax.tick_params(labelcolor=INK)
