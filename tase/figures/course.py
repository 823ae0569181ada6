"""Figure 4 and the training curves: quantities over the epochs of one run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..data import GROUPS
from ..runs import Run
from .sources import Missing, as_runs, has_tail, sign, title
from .style import FAINT, GROUP_COLOURS, INK, SOFT, TEXT, Figure, new_figure, style

QUALITY = {  # name in the history (or "moved", from two snapshots) -> label, colour, line
    "nmi": ("NMI with the classes", "#222222", "-"),
    "moved": ("share of images that changed cluster", "#9A9A9A", ":"),
    "spearman_samples": ("headness ~ class size, samples (Spearman)", "#8E3B9E", "--"),
    "spearman_classes": ("headness ~ class size, classes (Spearman)", "#B8860B", "-."),
}


def dynamics(run: Run, samples: int = 2, footer: bool = True) -> Figure:
    """Figure 4: temperature and weight over the epochs, and how good the pseudo-labels were.

    Per group of the true classes the median and the band from the 25th to the 75th percentile; `samples` single images
    of each group as thin lines. Weights are scaled to mean 1. Below: NMI and rank correlations of each refresh, and the
    share of images that changed their cluster. Without labels all images are one group. Raises Missing where the run
    has no snapshot.
    """
    (run,) = as_runs(run)
    h = run.history
    if len(h) == 0:
        raise Missing(f"{run.path} has no snapshot yet: the first comes after {run.config.refresh} epochs", run)
    epoch, weight = h.epoch, h.weight
    members = _members(h.labels, h.groups, h.counts, weight.shape[1])
    with style():
        figure = new_figure(TEXT, 3.9)
        axes = figure.subplot_mosaic("ab;cc", height_ratios=(1.25, 1))
        scaled = weight / weight.mean(1, keepdims=True)
        for key, values, label in (("a", h.tau, "temperature τ"), ("b", scaled, "weight w (mean 1)")):
            _distribution(axes[key], epoch, values, members, samples)
            axes[key].set(ylabel=label, xlabel="epoch")
        _quality(axes["c"], epoch, h.quality, h.pseudo_label)
        for ax in axes.values():
            _mark_warmup(ax, run, named=ax is axes["c"])
        figure.legend(handles=_handles(members), loc="outside upper center", ncols=6)
        if footer:
            note = "" if h.labels is not None else "no labels: not by group"
            sign(figure, [run], title(run.config), note)
    return figure


def _members(
    labels: Int64[np.ndarray, " n"] | None, groups: np.ndarray | None, counts: np.ndarray | None, n: int
) -> list[tuple[str, str, np.ndarray]]:
    """Name, colour and indices of the images that are drawn together."""
    if labels is None or groups is None or not has_tail(counts):
        return [("all images", "#555555", np.arange(n))]
    own = groups[labels]
    found = [(GROUPS[g], GROUP_COLOURS[g], np.flatnonzero(own == g)) for g in range(3)]
    return [entry for entry in found if len(entry[2])]


def _distribution(ax: Axes, epoch: np.ndarray, values: Float[np.ndarray, "s n"], members: list, samples: int) -> None:
    for _, colour, index in members:
        own = values[:, index]
        low, middle, high = np.quantile(own, (0.25, 0.5, 0.75), axis=1)
        ax.fill_between(epoch, low, high, color=colour, alpha=0.18, lw=0)
        chosen = np.random.default_rng(0).permutation(len(index))[:samples]
        ax.plot(epoch, own[:, chosen], color=colour, lw=0.5, alpha=0.8)
        ax.plot(epoch, middle, color=colour, lw=1.6, marker="o" if len(epoch) == 1 else None, ms=3)


def _quality(ax: Axes, epoch: np.ndarray, quality: list[dict], pseudo_label: Int64[np.ndarray, "s n"]) -> None:
    marks = {"marker": "o", "ms": 2.5, "lw": 1.1}
    moved = np.full(len(epoch), np.nan)
    moved[1:] = (pseudo_label[1:] != pseudo_label[:-1]).mean(1)
    for key, (label, colour, line) in QUALITY.items():
        values = moved if key == "moved" else np.array([q.get(key) for q in quality], dtype=np.float64)
        if np.isfinite(values).any():
            ax.plot(epoch, values, color=colour, ls=line, label=label, **marks)
    ax.axhline(0, color=FAINT, lw=0.6, zorder=0)
    ax.set(ylim=(min(ax.dataLim.y0, 0) - 0.05, 1.05), xlabel="epoch", ylabel="pseudo-labels")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _mark_warmup(ax: Axes, run: Run, named: bool) -> None:
    """Shade the epochs before the guidance begins."""
    end = run.config.guidance.warmup * run.config.optim.epochs
    if run.config.guidance_class.steerable and end > 0:
        ax.axvspan(0, end, color="#F1F1F1", lw=0, zorder=-1)
        if named:
            ax.text(end / 2, 0.97, "warm-up", ha="center", va="top", color=SOFT, transform=ax.get_xaxis_transform())
    last = max(run.config.optim.epochs, int(run.history.epoch[-1]))
    ax.set_xlim(-0.015 * last, 1.015 * last)


def _handles(members: list) -> list:
    groups = [Line2D([], [], color=colour, lw=1.6, label=f"{name} (median)") for name, colour, _ in members]
    return [
        *groups,
        Patch(color=SOFT, alpha=0.25, lw=0, label="25-75 %"),
        Line2D([], [], color=SOFT, lw=0.5, label="single images"),
    ]


def training_curves(runs: Run | Sequence[Run], footer: bool = True) -> Figure:
    """Loss and its two parts, learning rate, and k-NN accuracy over the epochs of one run, also while it trains.

    Raises Missing where no epoch has been written yet.
    """
    (run,) = as_runs(runs)
    metrics = run.metrics
    if len(metrics) == 0:
        raise Missing(f"{run.path} has no epoch in its metrics yet", run)
    with style():
        figure = new_figure(TEXT, 1.9)
        parts, lr, knn = figure.subplots(1, 3)
        for name, colour, line in (("loss", INK, "-"), ("attraction", "#0173B2", "--"), ("repulsion", "#D55E00", "-.")):
            parts.plot(metrics["epoch"], metrics[name], color=colour, ls=line)
            end = (metrics["epoch"].iloc[-1], metrics[name].iloc[-1])
            offset = {"xytext": (0, 4), "textcoords": "offset points", "ha": "right", "fontsize": 7}
            parts.annotate(name, end, color=colour, **offset)
        parts.margins(y=0.12)
        parts.set(xlabel="epoch", title="loss = attraction + repulsion")
        lr.plot(metrics["epoch"], metrics["lr"], color=INK)
        lr.set(xlabel="epoch", title="learning rate", ylim=(0, None))
        _knn(knn, metrics)
        if footer:
            sign(figure, [run], title(run.config))
    return figure


def _knn(ax: Axes, metrics) -> None:
    ax.set(xlabel="epoch", title="k-NN accuracy in %")
    if "knn" not in metrics or metrics["knn"].isna().all():
        ax.text(0.5, 0.5, "not measured\n(needs labels)", ha="center", va="center", transform=ax.transAxes, color=SOFT)
        ax.set(xticks=[], yticks=[])
        return
    seen = metrics.dropna(subset=["knn"])
    ax.plot(seen["epoch"], seen["knn"], color=INK, marker="o", ms=2.5)
