"""Figures 1 to 5: accuracy per class, geometry and layout of the embedding, temperatures over time, quantity."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ..data import GROUPS
from ..layouts import LAYOUTS, run_layout
from ..options import some_of
from ..runs import Run, RunError, has_tail
from ..tables import summary, with_interval
from .sources import (
    ByRank,
    as_runs,
    by_method,
    classes_of,
    is_balanced,
    labels_of,
    order_of,
    ranked,
    results_of,
    seeds_of,
    setting_of,
    signed,
    snapshots_of,
    title,
)
from .style import (
    CLASS_COLOURS,
    COLUMN,
    TEXT,
    Figure,
    colours,
    colours_of,
    dot,
    group_handles,
    new_figure,
    plain_log,
    run_marks,
    style,
)

MANY = 25  # classes from which on bars get neither names nor error bars
DASHES = (0, (3, 1.5))


def panels(count: int, row_height: float, above: float, **options) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` axes, at most three to a row."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = new_figure(TEXT if columns > 1 else COLUMN, above + row_height * rows)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


# ------------------------------------------------------------------------------------------------------------- figure 1


@style()
def per_class_accuracy(runs: Run | Sequence[Run], protocol: str = "linear", footer: bool = True) -> Figure:
    """Draw figure 1: test accuracy in % of each class, one panel per method, classes by training count.

    Runs that differ in their seed only share a panel: bars are means by rank, error bars +-1 standard deviation. The
    mean over classes is a dashed line, the range a bracket. Raises RunError where a run lacks the protocol.
    """
    runs = as_runs(runs)
    take = lambda r: results_of(r, "protocols", protocol, "per_class")  # noqa: E731
    found = [(label, ranked(some, runs, take)) for label, some in by_method(runs)]
    names = max((len(name) for _, data in found for name in short_names(data.names)), default=0)
    figure, axes = panels(len(found), 1.6 + 0.055 * max(0, names - 2), 0.75, sharey=True)
    for ax, (label, data) in zip(axes, found):
        accuracy_bars(ax, textwrap.fill(label, 26), data)
    for ax in axes[::3]:
        ax.set(ylabel="accuracy in %", ylim=(0, 104))
    dashes = dot(colours().ink, "mean over classes", marker="", ls=DASHES, lw=0.9)
    bracket = dot(colours().ink, "range over classes", marker="|", ms=7)
    columns = 5 if len(axes) > 1 else 3
    figure.legend(handles=[*group_handles(), dashes, bracket], loc="outside upper center", ncols=columns)
    several = any(len(data.values) > 1 for _, data in found)
    spread = "error bars ±1 s.d. over seeds, range the mean over seeds" if several else ""
    order = "balanced: classes in the order of the long tail" if any(order_of(r, runs)[2] for r in runs) else ""
    return signed(figure, runs, f"protocol {protocol}", spread, order, shown=footer)


def accuracy_bars(ax: Axes, label: str, data: ByRank) -> None:
    """Draw one method's bars, their mean and range."""
    ink, classes = colours().ink, len(data.mean)
    x, few = np.arange(classes), classes <= MANY
    ax.bar(x, data.mean, width=0.8 if few else 1.0, color=colours_of(data.groups))
    if len(data.values) > 1 and few:
        deviation = data.values.std(0, ddof=1)
        ax.errorbar(x, data.mean, deviation, fmt="none", ecolor=ink, elinewidth=0.7, capsize=1.5, capthick=0.7)
    low, high = data.values.min(1).mean(), data.values.max(1).mean()
    mean, edge = data.mean.mean(), classes - 0.4
    ax.plot([-0.6, edge], [mean, mean], color=ink, ls=DASHES, lw=0.9)
    bracket = edge + 0.05 * classes
    ax.errorbar([bracket], [(low + high) / 2], (high - low) / 2, color=ink, elinewidth=0.9, capsize=2.5, capthick=0.9)
    ax.set_title(f"{label}\nmean {mean:.1f}, range {high - low:.1f}", linespacing=1.3)
    ax.set_xlim(-0.8, bracket + 0.05 * classes)
    name_classes(ax, data.names, classes)


def short_names(names: Sequence[str] | None) -> list[str]:
    """Cut names at 14 characters."""
    return [name if len(name) <= 14 else f"{name[:13]}…" for name in names or ()]


def name_classes(ax: Axes, names: Sequence[str] | None, classes: int) -> None:
    """Write the classes' names under the bars where they fit, else ranks."""
    if names is not None and classes <= MANY:
        long = max(map(len, names)) > (2 if classes > 6 else 6)
        ax.set_xticks(range(classes), short_names(names), rotation=90 if long else 0)
        ax.set_xlabel("class (by training images)")
        return
    ticks = [0, *range(classes // 4 - 1, classes, max(1, classes // 4))] if classes > 12 else list(range(classes))
    ax.set_xticks(ticks, [str(t + 1) for t in ticks])
    ax.set_xlabel("class rank, head to tail")


@style()
def paired_accuracy(runs: Run | Sequence[Run], protocol: str = "linear", footer: bool = True) -> Figure:
    """Draw figure 1 in pairs: accuracy of each class minus that of the same class under the balanced control.

    The control is the first method of the runs that was trained on a balanced set (SimCLR, balanced), with the same
    preset and settings, pairs are of one seed and split, and ranks those of each seed's long tail: which class is rare
    differs from seed to seed, and its difficulty cancels. Points are means over seeds with 95 % intervals; bands are
    those of the mean over head, mid and tail. Raises RunError where no long-tailed run has its control.
    """
    runs = as_runs(runs)
    pairs = control_pairs(runs)
    if not pairs:
        raise RunError("no long-tailed run has a balanced control of its preset, settings, seed and split among these")

    def difference(run: Run) -> np.ndarray:
        both = [results_of(r, "protocols", protocol, "per_class") for r in (run, pairs[run])]
        return np.subtract(*np.array(both, dtype=np.float64))

    found = [(label, ranked(some, runs, difference)) for label, some in by_method(list(pairs))]
    figure, axes = panels(len(found), 1.75, 0.85, sharey=True)
    for ax, (label, data) in zip(axes, found):
        difference_points(ax, textwrap.fill(label, 26), data)
    for ax in axes[::3]:
        ax.set_ylabel("accuracy minus\nbalanced, in points")
    figure.legend(handles=group_handles(), loc="outside upper center", ncols=3)
    control = some_of(title(run.config) for run in pairs.values())
    several = "intervals: 95 % over seeds" if any(len(data.values) > 1 for _, data in found) else ""
    return signed(figure, list(pairs), f"protocol {protocol}", f"minus {control}", several, shown=footer)


def control_pairs(runs: Sequence[Run]) -> dict[Run, Run]:
    """Map each long-tailed run to the balanced control of its preset, settings, seed and split, where there is one."""
    first: dict[str, list[Run]] = {}  # setting -> the runs of its first balanced method
    for _, some in by_method([run for run in runs if is_balanced(run.config)]):
        first.setdefault(setting_of(some[0].config, seeded=False), some)
    control = {setting_of(r.config): r for some in first.values() for r in some}
    tailed = [run for run in runs if not is_balanced(run.config)]
    return {r: control[key] for r in tailed if (key := setting_of(r.config)) in control}


def difference_points(ax: Axes, label: str, data: ByRank) -> None:
    """Draw one method's differences by rank: a point per class, a band per group."""
    classes = data.values.shape[1]
    few = classes <= MANY
    half = np.nan_to_num([summary(column).ci95 for column in data.values.T.tolist()]) * few
    for x, (mean, error, colour) in enumerate(zip(data.mean, half, colours_of(data.groups))):
        ax.errorbar(x, mean, error, fmt="o", ms=3 if few else 1.5, color=colour, elinewidth=0.9)
    for g in np.unique(data.groups[data.groups >= 0]):
        own = np.flatnonzero(data.groups == g)
        over = summary(data.values[:, own].mean(1).tolist())
        ends, half = [own[0] - 0.4, own[-1] + 0.4], np.nan_to_num(over.ci95)
        ax.plot(ends, [over.mean] * 2, color=colours().groups[g], lw=1.1)
        ax.fill_between(ends, over.mean - half, over.mean + half, color=colours().groups[g], alpha=0.18, lw=0)
    ax.axhline(0, color=colours().soft, lw=0.6, zorder=0)
    whole = summary(data.values.mean(1).tolist())
    ax.set_title(f"{label}\nmean {with_interval(whole.mean, whole.ci95, sign='+')}", linespacing=1.3)
    name_classes(ax, data.names, classes)


# ------------------------------------------------------------------------------------------------------------- figure 2


@style()
def geometry(runs: Run | Sequence[Run], footer: bool = True) -> Figure:
    """Draw figure 2: the space aimed for, as a drawing, next to what was measured in the given runs.

    Measured: per class the mean pairwise angle within it and the mean angle of its centre to the others', in degrees of
    the backbone's test features; in each band head at the top, tail at the bottom, the mean as a line. CV is the
    standard deviation over classes divided by the mean (0: all equal), averaged over the runs of a method. Raises
    RunError where a run has not been evaluated.
    """
    runs = as_runs(runs)
    methods = by_method(runs)
    figure = new_figure(TEXT, max(2.3, 0.95 + 0.45 * len(methods)))
    drawing, *axes = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    draw_aim(drawing)
    for ax, key in zip(axes, ("spread", "centre_angle")):
        angle_bands(ax, [ranked(some, runs, lambda r, key=key: results_of(r, "geometry", key)) for _, some in methods])
    axes[0].set_xlabel("space of a class:\nangle within it, °")
    axes[1].set_xlabel("distance of classes:\nangle to other centres, °")
    labels = [textwrap.fill(label.replace("long tail", "long\N{NO-BREAK SPACE}tail"), 15) for label, _ in methods]
    axes[0].set_yticks(range(len(methods)), labels)
    axes[1].set_yticks(range(len(methods)), [""] * len(methods))
    axes[0].set_title("Measured", fontweight="bold")
    axes[1].legend(handles=group_handles(), loc="lower right", bbox_to_anchor=(1.03, 1), ncols=3, handletextpad=0.1)
    return signed(figure, runs, "test features", shown=footer)


def angle_bands(ax: Axes, rows: list[ByRank]) -> None:
    """Draw a horizontal band per method, a dot per class: x its angle, y its rank, head on top."""
    for y, row in enumerate(rows):
        x = row.mean
        place = y + np.linspace(-0.32, 0.32, len(x))
        ax.scatter(x, place, s=16 if len(x) <= MANY else 5, c=colours_of(row.groups), lw=0, zorder=3, clip_on=False)
        ax.plot([np.mean(x)] * 2, [y - 0.4, y + 0.4], color=colours().ink, lw=0.9)
        variation = f"CV {(row.values.std(1) / row.values.mean(1)).mean():.2f}"
        at = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center", "fontsize": 7}
        ax.annotate(variation, (1, y), **at)
        ax.axhspan(y - 0.45, y + 0.45, color=colours().shade, lw=0, zorder=0)
    low, high = min(r.mean.min() for r in rows), max(r.mean.max() for r in rows)
    room = max(high - low, 1.0)
    ax.set(xlim=(low - 0.06 * room, high + 0.7 * room), ylim=(len(rows) - 0.5, -0.5))
    ticks = MaxNLocator(3, steps=(1, 2, 5, 10)).tick_values(low, high)
    ax.set_xticks([t for t in ticks if low - 0.06 * room <= t <= high + 0.06 * room])
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def draw_aim(ax: Axes) -> None:
    """Draw seven clusters at even distances, each in as much space however few samples it has."""
    look = colours()
    angles = np.deg2rad(np.arange(0, 360, 60))
    centres = np.vstack([[0, 0], np.stack([np.cos(angles), np.sin(angles)], 1)])
    for a, b in itertools.combinations(centres, 2):
        if np.linalg.norm(a - b) < 1.1:
            near, far = a + 0.36 * (b - a), b + 0.36 * (a - b)  # from rim to rim: the neighbours are 1 apart
            ax.plot(*np.stack([near, far], 1), color=look.soft, lw=0.6, ls=(0, (2, 2)), zorder=0)
    for at, group, count in zip(centres, (0, 0, 1, 2, 0, 1, 2), (70, 70, 24, 7, 70, 24, 7)):
        ax.add_patch(Circle(at, 0.36, fc=look.groups[group], alpha=0.15, lw=0))
        ax.scatter(*(sunflower(count) * 0.32 + at).T, s=2.5, color=look.groups[group], lw=0, zorder=3)
    arrow = {"arrowstyle": "<->", "lw": 0.8, "color": look.ink, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
    for left, right, y in ((-0.5, 0.5, 1.36), (-0.86, -0.14, -1.36), (0.14, 0.86, -1.36)):
        ax.annotate("", (right, y), (left, y), arrowprops=arrow)
    ax.text(0, 1.44, "even distance", ha="center", va="bottom", fontsize=7)
    ax.text(0, -1.46, "equal space", ha="center", va="top", fontsize=7)
    ax.set(xlim=(-1.4, 1.4), ylim=(-1.75, 1.75), aspect="equal")
    ax.axis("off")
    ax.set_title("Aimed for (a drawing)", fontweight="bold")


def sunflower(count: int) -> Float[np.ndarray, "m 2"]:
    """Spread `count` points evenly over the unit disc: each is a golden angle further, at a radius of equal areas."""
    k = np.arange(count) + 0.5
    angle = k * np.pi * (3 - 5**0.5)
    return np.sqrt(k / count)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


# ------------------------------------------------------------------------------------------------------------- figure 3


@style()
def tsne(runs: Run | Sequence[Run], kind: str = "tsne", points: int = 3000, footer: bool = True) -> Figure:
    """Draw figure 3: a layout (tsne, umap or pca) per run, coloured by class, or by group where classes are over 10.

    Layouts are cached in the runs' folders (see `run_layout`). Raises RunError where a run keeps no features.
    """
    runs = as_runs(runs)
    found = [run_layout(run, kind, points) for run in runs]
    look = [class_look(run, runs, classes) for run, (_, classes, _) in zip(runs, found)]
    handles = next((handles for _, handles, _ in look if handles), [])
    figure, axes = panels(len(runs), TEXT / max(min(3, len(runs)), 2), 1.0 if handles else 0.55)
    labels = labels_of([run.config for run in runs])
    for ax, run, label, (xy, classes, _), (paint, _, names) in zip(axes, runs, labels, found, look):
        class_scatter(ax, xy, paint)
        name_clusters(ax, xy, classes, names)
        seed = f", seed {run.config.seed}" if seeds_of(runs) > 1 else ""
        ax.set_title(textwrap.fill(label + seed, 26))
    if handles:
        columns = min(len(handles), 5 if len(axes) > 1 else 3)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    return signed(figure, runs, f"{LAYOUTS[kind]} of {len(found[0][0]):,} {found[0][2]} images", shown=footer)


def class_look(run: Run, among: list[Run], classes: Int64[np.ndarray, " m"]) -> tuple[list[str], list, tuple[str, ...]]:
    """Return the images' colours, the legend's entries, and the classes' names where they fit into the picture."""
    names, *_ = classes_of(run) or ((),)
    if not names or (classes < 0).all():
        return colours_of(classes), [dot(*colours_of([-1]), "images (no labels)")], ()
    if len(names) > len(CLASS_COLOURS):
        return colours_of(order_of(run, among)[1][classes]), group_handles(), ()
    paint = [CLASS_COLOURS[c] for c in classes]
    if max(map(len, names)) <= 3:
        return paint, [], names
    return paint, [dot(colour, name) for colour, name in zip(CLASS_COLOURS, names)], ()


def class_scatter(ax: Axes, xy: Float[np.ndarray, "m 2"], paint: list[str]) -> None:
    """Draw a layout's points, in a random order, so that no class lies on top of the others."""
    order = np.random.default_rng(0).permutation(len(xy))
    ax.scatter(*xy[order].T, s=np.clip(3000 / len(xy), 1.2, 8), c=np.asarray(paint)[order], lw=0, rasterized=True)
    fill_panel(ax, xy)


def name_clusters(
    ax: Axes, xy: Float[np.ndarray, "m 2"], classes: Int64[np.ndarray, " m"], names: Sequence[str]
) -> None:
    """Write each class's name at the point nearest to its median, which may itself lie outside the class."""
    halo = [withStroke(linewidth=2.2, foreground="white" if colours().paper == "white" else "black")]
    for c, name in enumerate(names):
        own = xy[classes == c]
        if len(own):
            at = own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()]
            ax.text(*at, name, ha="center", va="center", fontweight="bold", path_effects=halo)


def fill_panel(ax: Axes, xy: np.ndarray) -> None:
    """Let a layout, which has no scale of its own, fill its panel."""
    middle, half = (xy.max(0) + xy.min(0)) / 2, 0.53 * float(np.ptp(xy, axis=0).max()) or 1.0
    ax.set(xlim=middle[0] + half * np.array([-1, 1]), ylim=middle[1] + half * np.array([-1, 1]))
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set(visible=True, color=colours().faint)


# ------------------------------------------------------------------------------------------------------------- figure 4


@style()
def dynamics(run: Run, samples: int = 2, footer: bool = True) -> Figure:
    """Draw figure 4: temperature and weight at the snapshots of one run, and how good the pseudo-labels were.

    Per group of the true classes the median and the band from the 25th to the 75th percentile, held until the next
    snapshot; `samples` single images of each group as thin lines. Weights are scaled to mean 1. Below: NMI and rank
    correlations of each refresh, and the share of images that changed their cluster. Without labels all images are one
    group. Raises RunError where the run has no snapshot.
    """
    (run,) = as_runs(run)
    h, members = snapshots_of(run), groups_of_images(run)
    figure = new_figure(TEXT, 3.9)
    axes = figure.subplot_mosaic("ab;cc", height_ratios=(1.25, 1))
    draw_course(axes["a"], h.epoch, h.tau, members, samples)
    draw_course(axes["b"], h.epoch, h.weight / h.weight.mean(1, keepdims=True), members, samples)
    axes["a"].set(ylabel="temperature τ", xlabel="epoch")
    axes["b"].set(ylabel="weight w (mean 1)", xlabel="epoch")
    draw_quality(axes["c"], h.epoch, h.quality, h.pseudo_label)
    for ax in axes.values():
        mark_warmup(ax, run, named=ax is not axes["c"])
    figure.legend(handles=course_handles(members), loc="outside upper center", ncols=6)
    grouped = "" if h.labels is not None else "no labels: not by group"
    return signed(figure, [run], title(run.config), grouped, shown=footer)


Members = list[tuple[str, str, np.ndarray]]  # name, colour, indices of the images that are drawn together


def groups_of_images(run: Run) -> Members:
    """Split a run's images into head, mid and tail by their true classes; one group without labels or tail."""
    return members_of(run.history.sample_groups)


def members_of(groups: Int64[np.ndarray, " n"]) -> Members:
    """Split images by their group (0 head, 1 mid, 2 tail; -1 unknown)."""
    looks = [("all images", colours().soft), *zip(GROUPS, colours().groups)]
    return [(*looks[g + 1], np.flatnonzero(groups == g)) for g in np.unique(groups)]


def draw_course(
    ax: Axes, epoch: Sequence[int], values: Float[np.ndarray, "s n"], members: Members, samples: int = 2
) -> None:
    """Draw a quantity of n images at s snapshots as steps: median and quartiles of each group, some single images."""
    for _, colour, index in members:
        own = values[:, index]
        low, middle, high = np.quantile(own, (0.25, 0.5, 0.75), axis=1)
        ax.fill_between(epoch, low, high, step="post", color=colour, alpha=0.16, lw=0)
        chosen = np.random.default_rng(0).permutation(len(index))[:samples]
        ax.plot(epoch, own[:, chosen], color=colour, lw=0.5, alpha=0.8, drawstyle="steps-post")
        ax.plot(epoch, middle, color=colour, lw=1.4, marker="o", ms=2.2, drawstyle="steps-post")


def course_handles(members: Members) -> list:
    """Return the legend's entries of `draw_course`."""
    soft = colours().soft
    groups = [dot(colour, f"{name} (median)", lw=1.4, ms=2.2) for name, colour, _ in members]
    band = Patch(color=soft, alpha=0.25, lw=0, label="25-75 %")
    return [*groups, band, dot(soft, "single images", lw=0.5, marker="")]


def draw_quality(ax: Axes, epoch: np.ndarray, quality: list[dict], pseudo_label: Int64[np.ndarray, "s n"]) -> None:
    """Draw how well pseudo-labels and headness of each refresh agree with the true classes and their sizes."""
    moved = [np.nan, *(pseudo_label[1:] != pseudo_label[:-1]).mean(1)]
    found = {key: [q.get(key) for q in quality] for key in ("nmi", "spearman_samples", "spearman_classes")}
    for label, values, colour, line in (
        ("NMI with the classes", found["nmi"], colours().ink, "-"),
        ("share of images that changed cluster", moved, "#9A9A9A", ":"),
        ("headness ~ class size, samples (Spearman)", found["spearman_samples"], "#A259B5", "--"),
        ("headness ~ class size, classes (Spearman)", found["spearman_classes"], "#B8860B", "-."),
    ):
        values = np.array(values, dtype=np.float64)  # None: not measured
        if np.isfinite(values).any():
            ax.plot(epoch, values, color=colour, ls=line, label=label, marker="o", ms=2.5, lw=0.8)
    ax.axhline(0, color=colours().faint, lw=0.6, zorder=0)
    ax.set(ylim=(min(ax.dataLim.y0, 0) - 0.05, 1.05), xlabel="epoch", ylabel="pseudo-labels")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def mark_warmup(ax: Axes, run: Run, named: bool = True) -> None:
    """Shade the epochs before the guidance begins, and name their end; for methods that come in with a ramp."""
    end = run.config.warmup
    if hasattr(run.config.guidance, "ramp") and end > 0:
        ax.axvspan(0, end, color=colours().shade, lw=0, zorder=-1)
        ax.axvline(end, color=colours().soft, lw=0.6, ls=(0, (2, 2)), zorder=0)
        at = {"transform": ax.get_xaxis_transform(), "rotation": 90, "ha": "right", "va": "top", "fontsize": 7}
        ax.text(end, 0.98, "warm-up ends " if named else "", color=colours().soft, **at)
    last = max(run.config.optim.epochs, int(run.history.epoch[-1]))
    ax.set_xlim(-0.015 * last, 1.015 * last)


# ------------------------------------------------------------------------------------------------------------- figure 5


@style()
def push(runs: Run | Sequence[Run], footer: bool = True) -> Figure:
    """Draw figure 5: total push of each class on its negatives (share of all, in %) against its images, both log.

    Mean over the runs of a method; the slope is that of a straight line through the logarithms: 1 where push grows as
    the number of images does, 0 where every class pushes alike. The push of an anchor is (w / sum w) c (1 - p) / tau,
    p the share of its positive in the softmax of equation (1), c the factor of its loss.
    Raises RunError where a run has not been evaluated.
    """
    runs = as_runs(runs)
    found = [
        (label, ranked(some, runs, lambda r: results_of(r, "push", "per_class"))) for label, some in by_method(runs)
    ]
    figure = new_figure(COLUMN, 2.7 + 0.14 * len(found))
    ax = figure.subplots()
    handles = [push_points(ax, *one, *mark) for one, mark in zip(found, itertools.cycle(run_marks()))]
    ax.set(xscale="log", yscale="log", xlabel="training images of the class", ylabel="share of all push in %")
    plain_log(ax.xaxis, ax.yaxis)
    ax.grid(color=colours().faint, lw=0.4)
    ax.set_axisbelow(True)
    ax.tick_params(which="minor", length=0)
    tailed = [data for _, data in found if has_tail(data.counts)]
    if tailed:
        tint_groups(ax, tailed)
        line_of_slope_one(ax, tailed[0].counts.mean(0))
    figure.legend(handles=handles, loc="outside upper left", ncols=1)
    return signed(figure, runs, shown=footer)


def power_law(counts: np.ndarray, share: np.ndarray) -> tuple[float, float] | None:
    """Fit share ~ a counts^b by least squares on the logarithms: (b, a), or None where counts hardly differ."""
    keep = (counts > 0) & (share > 0)
    x, y = np.log(counts[keep]), np.log(share[keep])
    if len(x) < 2 or np.ptp(x) < 0.1:
        return None
    b, log_a = np.polyfit(x, y, 1)
    return float(b), float(np.exp(log_a))


def push_points(ax: Axes, label: str, data: ByRank, colour: str, marker: str) -> Line2D:
    """Draw a dot per class and a fitted line; returns the legend's entry, which names the slope."""
    counts = data.counts.mean(0)
    share = 100 * (data.values / data.values.sum(1, keepdims=True)).mean(0)
    size = 4.0 if len(share) <= MANY else 2.2
    ax.plot(counts, share, ls="", marker=marker, ms=size, color=colour, alpha=0.85, mew=0)
    fit = power_law(counts, share)
    if fit is None:
        return dot(colour, label, marker=marker)
    ends = np.array([counts.min(), counts.max()])
    ax.plot(ends, fit[1] * ends ** fit[0], color=colour, lw=0.9)
    return dot(colour, f"{label}: slope {fit[0]:.2f}", marker=marker, lw=0.9)


def line_of_slope_one(ax: Axes, counts: Float[np.ndarray, " c"]) -> None:
    """Draw a dotted line of slope 1: push in proportion to size."""
    share, middle = 100 * counts / counts.sum(), len(counts) // 2
    ax.plot(counts, share, color=colours().soft, ls=":", lw=0.9, zorder=1)
    at = {"xytext": (6, -9), "textcoords": "offset points", "fontsize": 7, "color": colours().soft}
    ax.annotate("in proportion to size", (counts[middle], share[middle]), **at)


def tint_groups(ax: Axes, tailed: list[ByRank]) -> None:
    """Tint the background in the colours of head, mid and tail, where all long-tailed runs agree on them."""
    groups = tailed[0].groups
    if any((r.groups < 0).any() or not np.array_equal(r.groups, groups) for r in tailed):
        return
    counts = tailed[0].counts.mean(0)
    left, right = ax.get_xlim()
    last = np.flatnonzero(np.diff(groups))  # of each group but the tail; the edge is the geometric mean of the sizes
    edges = [right, *np.sqrt(counts[last] * counts[last + 1]), left]
    for g, (high, low) in zip(np.unique(groups), itertools.pairwise(edges)):
        ax.axvspan(low, high, color=colours().groups[g], alpha=0.1, lw=0, zorder=0)
        ax.text(np.sqrt(low * high), 0.98, GROUPS[g], ha="center", va="top", transform=ax.get_xaxis_transform())
    ax.set_xlim(left, right)
