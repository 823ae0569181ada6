"""Figures 2 and 3: the space the images are embedded in, measured and seen."""

from __future__ import annotations

import itertools
import textwrap
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from ..config import check_choice
from ..runs import Run, load_kept, save_npz
from .sources import (
    Missing,
    Ranked,
    as_runs,
    classes_of,
    labels_of,
    methods,
    order_of,
    ranked,
    results_of,
    seeds_of,
    sign,
)
from .style import (
    CLASS_COLOURS,
    COLUMN,
    FAINT,
    GROUP_COLOURS,
    INK,
    SOFT,
    TEXT,
    Figure,
    colours_of,
    group_handles,
    new_figure,
    style,
)

MEASURES = {
    "spread": "space of a class:\nangle within it, °",
    "centre_angle": "distance of classes:\nangle to other centres, °",
}


def geometry(runs: Run | Sequence[Run], footer: bool = True) -> Figure:
    """Figure 2: the space aimed for, as a drawing, beside what was measured in the given runs.

    Measured: per class the mean pairwise angle within it and the mean angle of its centre to the others', in degrees of
    the backbone's test features; in each band head at the top, tail at the bottom, the mean as a line. CV is the
    standard deviation over classes divided by the mean (0: all equal), averaged over the runs of a method. Raises
    Missing where a run has not been evaluated.
    """
    runs = as_runs(runs)
    with style():
        groups = methods(runs)
        data = {key: [ranked(m, runs, _taker(key)) for m in groups] for key in MEASURES}
        figure = new_figure(TEXT, max(2.3, 0.95 + 0.45 * len(groups)))
        drawing, *axes = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
        _draw_aim(drawing)
        for ax, (key, label) in zip(axes, MEASURES.items(), strict=True):
            _bands(ax, data[key])
            ax.set_xlabel(label)
        labels = [textwrap.fill(m.label.replace("long tail", "long\N{NO-BREAK SPACE}tail"), 15) for m in groups]
        axes[0].set_yticks(range(len(groups)), labels)
        axes[1].set_yticks(range(len(groups)), [""] * len(groups))
        axes[0].set_title("Measured", fontweight="bold")
        handles = group_handles(bars=False)
        axes[1].legend(handles=handles, loc="lower right", bbox_to_anchor=(1.03, 1), ncols=3, handletextpad=0.1)
        if footer:
            sign(figure, runs, "test features")
    return figure


def _taker(key: str):
    return lambda run: results_of(run, "geometry", key)


def _bands(ax: Axes, rows: list[Ranked]) -> None:
    """A horizontal band per method, a dot per class: x its angle, y its rank, head on top."""
    for y, row in enumerate(rows):
        x = row.mean
        place = y + np.linspace(-0.32, 0.32, len(x))
        size = 16 if len(x) <= 25 else 5
        ax.scatter(x, place, s=size, c=colours_of(row.groups), lw=0, zorder=3, clip_on=False)
        mean = np.mean(x)
        ax.plot([mean, mean], [y - 0.4, y + 0.4], color=INK, lw=0.9)
        ax.annotate(
            f"CV {(row.values.std(1) / row.values.mean(1)).mean():.2f}",
            (1, y),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize=7,
        )
        ax.axhspan(y - 0.45, y + 0.45, color="#F4F4F4", lw=0, zorder=0)
    low, high = min(r.mean.min() for r in rows), max(r.mean.max() for r in rows)
    room = max(high - low, 1.0)
    ax.set(xlim=(low - 0.06 * room, high + 0.7 * room), ylim=(len(rows) - 0.5, -0.5))
    ticks = MaxNLocator(3, steps=(1, 2, 5, 10)).tick_values(low, high)
    ax.set_xticks([t for t in ticks if low - 0.06 * room <= t <= high + 0.06 * room])
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _draw_aim(ax: Axes) -> None:
    """Seven clusters, each as far from its neighbours as any, each in as much space, whatever its number of samples."""
    angles = np.deg2rad(np.arange(0, 360, 60))
    centres = np.vstack([[0, 0], np.stack([np.cos(angles), np.sin(angles)], 1)])
    for a, b in itertools.combinations(centres, 2):
        if np.linalg.norm(a - b) < 1.1:
            ax.plot(*np.stack([a, b], 1), color=SOFT, lw=0.6, ls=(0, (2, 2)), zorder=0)
    for at, group, count in zip(centres, (0, 0, 1, 2, 0, 1, 2), (70, 70, 24, 7, 70, 24, 7)):
        ax.add_patch(Circle(at, 0.36, fc="white", lw=0))
        ax.add_patch(Circle(at, 0.36, fc=GROUP_COLOURS[group], alpha=0.15, lw=0))
        ax.scatter(*(_sunflower(count) * 0.32 + at).T, s=2.5, color=GROUP_COLOURS[group], lw=0, zorder=3)
    arrow = {"arrowstyle": "<->", "lw": 0.8, "color": INK, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
    for left, right, y in ((-0.5, 0.5, 1.36), (-0.86, -0.14, -1.36), (0.14, 0.86, -1.36)):
        ax.annotate("", (right, y), (left, y), arrowprops=arrow)
    ax.text(0, 1.44, "even distance", ha="center", va="bottom", fontsize=7)
    ax.text(0, -1.46, "equal space", ha="center", va="top", fontsize=7)
    ax.set(xlim=(-1.4, 1.4), ylim=(-1.75, 1.75), aspect="equal")
    ax.axis("off")
    ax.set_title("Aimed for (a drawing)", fontweight="bold")


def _sunflower(count: int) -> Float[np.ndarray, "m 2"]:
    """`count` points spread evenly over the unit disc."""
    k = np.arange(count) + 0.5
    angle = k * np.pi * (3 - 5**0.5)
    return np.sqrt(k / count)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


# -------------------------------------------------------------------------------------------------------------- layouts


def layout(
    run: Run, kind: str = "tsne", points: int = 3000
) -> tuple[Float[np.ndarray, "m 2"], Int64[np.ndarray, " m"], str]:
    """A two-dimensional layout of a run's test features (of its training images where there are none), from a cache.

    Returns xy [m, 2], classes [m] (-1 without labels), and "test" or "training". At most `points` images, drawn once;
    the random state is fixed. Kept in `layouts/<kind>.npz` in the run's folder, made anew when the features have
    changed; a slim copy has no features and uses what is kept. Raises Missing where there is neither.
    """
    check_choice("kind", kind, ("tsne", "umap"))
    path = Path(run.path) / "layouts" / f"{kind}.npz"
    kept = load_kept(path) or None
    features, labels, what = _features(run)
    if features is None:
        if kept is None:
            raise Missing(f"{run.path} keeps no features: evaluate it (python -m tase evaluate {run.path})", run)
        return kept["xy"], kept["labels"], str(kept["what"])
    source = zlib.crc32(features.tobytes(), points)
    if kept is None or int(kept["source"]) != source:
        pick = np.sort(np.random.default_rng(0).permutation(len(features))[:points])
        xy = _embed(features[pick], kind)
        path.parent.mkdir(exist_ok=True)
        kept = {"xy": xy, "labels": labels[pick], "what": np.array(what), "source": np.array(source)}
        save_npz(path, **kept)
    return kept["xy"], kept["labels"], str(kept["what"])


def _features(run: Run) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    if run.test_features is not None:
        return *run.test_features, "test"
    try:
        features = run.features()
    except (RuntimeError, OSError):  # no snapshot of all images yet, or a slim copy
        return None, None, ""
    labels = run.history.labels
    return features, np.full(len(features), -1, dtype=np.int64) if labels is None else labels, "training"


def _embed(features: Float[np.ndarray, "m d"], kind: str) -> Float[np.ndarray, "m 2"]:
    """Unit-length features in two dimensions, so that distances are those of the cosine."""
    if len(features) < 10:
        raise Missing(f"{len(features)} images are too few for a layout: it needs at least 10")
    x = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    if kind == "tsne":
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        model = TSNE(init="pca", perplexity=min(30.0, (len(x) - 1) / 3), random_state=0)
        with threadpool_limits(1):  # sums in one order: the same layout on any number of cores
            return model.fit_transform(x).astype(np.float32)
    return umap_layout(x, n_neighbors=min(15, len(x) - 1))


def umap_layout(x: Float[np.ndarray, "m d"], **options: Any) -> Float[np.ndarray, "m 2"]:
    """umap-learn's layout of x, always the same; torch keeps its number of threads."""
    import torch

    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap's remarks on its own dependencies
        from umap import UMAP

        try:
            return UMAP(random_state=0, n_jobs=1, **options).fit_transform(x).astype(np.float32)
        finally:
            torch.set_num_threads(threads)  # numba sets it for the whole process; a resumed training would differ


def tsne(runs: Run | Sequence[Run], kind: str = "tsne", points: int = 3000, footer: bool = True) -> Figure:
    """Figure 3: a t-SNE or UMAP layout per run, coloured by class, or by head, mid and tail (over 10 classes).

    Layouts are kept in the runs' folders (see `layout`). Raises Missing where a run keeps no features.
    """
    runs = as_runs(runs)
    layouts = [layout(run, kind, points) for run in runs]
    with style():
        columns = min(3, len(runs))
        rows = -(-len(runs) // columns)
        handles = _class_handles(runs)
        above = 1.0 if handles else 0.55
        figure = new_figure(TEXT if columns > 1 else COLUMN, above + (TEXT / max(columns, 2)) * rows)
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax, run, label, (xy, classes, _) in zip(axes.flat, runs, _titles(runs), layouts, strict=False):
            _scatter(ax, run, runs, xy, classes)
            ax.set_title(textwrap.fill(label, 26))
        for ax in axes.flat[len(runs) :]:
            ax.remove()
        if handles:
            figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5 if columns > 1 else 3))
        if footer:
            name = {"tsne": "t-SNE", "umap": "UMAP"}[kind]
            sign(figure, runs, f"{name} of {len(layouts[0][0]):,} {layouts[0][2]} images")
    return figure


def _titles(runs: list[Run]) -> list[str]:
    labels = labels_of([run.config for run in runs])
    if seeds_of(runs) == 1:
        return labels
    return [f"{label}, seed {run.config.seed}" for label, run in zip(labels, runs, strict=True)]


def _class_names(run: Run) -> tuple[str, ...]:
    known = classes_of(run)
    return known[0] if known else ()


def _by_group(run: Run) -> bool:
    return len(_class_names(run)) > len(CLASS_COLOURS)


def _labelled(run: Run) -> bool:
    """Whether the classes' names are short enough to be written into the picture."""
    names = _class_names(run)
    return bool(names) and not _by_group(run) and max(map(len, names)) <= 3


def _scatter(ax: Axes, run: Run, among: list[Run], xy: np.ndarray, classes: np.ndarray) -> None:
    if (classes < 0).all():
        colours = colours_of(classes)
    elif _by_group(run):
        colours = colours_of(order_of(run, among)[1][classes])
    else:
        colours = [CLASS_COLOURS[c] for c in classes]
    size = np.clip(3000 / len(xy), 1.2, 8)
    # In an order of its own, so that no class lies on top of the others.
    order = np.random.default_rng(0).permutation(len(xy))
    ax.scatter(*xy[order].T, s=size, c=np.asarray(colours)[order], lw=0, rasterized=True)
    # A layout has no scale of its own: each fills its panel.
    middle, half = (xy.max(0) + xy.min(0)) / 2, 0.53 * float(np.ptp(xy, axis=0).max()) or 1.0
    ax.set(xlim=middle[0] + half * np.array([-1, 1]), ylim=middle[1] + half * np.array([-1, 1]))
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(FAINT)
    if _labelled(run):
        _direct_labels(ax, _class_names(run), xy, classes)


def _direct_labels(ax: Axes, names: Sequence[str], xy: np.ndarray, classes: np.ndarray) -> None:
    """Each class's name at its medoid: the middle of a class may lie outside it."""
    from matplotlib.patheffects import withStroke

    for c in np.unique(classes):
        own = xy[classes == c]
        at = own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()]
        halo = [withStroke(linewidth=2.2, foreground="white")]
        ax.text(*at, names[c], ha="center", va="center", fontsize=8, fontweight="bold", color=INK, path_effects=halo)


def _class_handles(runs: list[Run]) -> list[Line2D]:
    if all(_labelled(run) for run in runs):
        return []
    names = _class_names(runs[0])
    if not names:
        return [Line2D([], [], ls="", marker="o", ms=4, color=SOFT, label="images (no labels)")]
    if _by_group(runs[0]):
        return group_handles(bars=False)
    return [
        Line2D([], [], ls="", marker="o", ms=4, color=colour, label=name)
        for name, colour in zip(names, CLASS_COLOURS, strict=False)
    ]
