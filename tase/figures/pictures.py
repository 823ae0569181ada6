"""Pictures of images, samples and clusters: thumbnails, training curves, who has which temperature, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..clustering import centred
from ..data import GROUPS
from ..layouts import drawn_once, layout
from ..runs import Run, RunError
from .paper import (
    MANY,
    course_handles,
    draw_course,
    fill_panel,
    groups_of_images,
    mark_warmup,
    members_of,
    name_classes,
)
from .sources import as_runs, signed, snapshots_of, title
from .style import COLUMN, TEXT, VALUES, Figure, colours, colours_of, group_handles, new_figure, seaborn, shades, style

LOSSES = "losses at different τ do not compare"  # τ is part of the loss

# -------------------------------------------------------------------------------------------------------------- images


@style()
def thumbnails(
    images: UInt8[Tensor, "m c h w"],
    captions: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    columns: int = 10,
    title: str = "",
    width: float = 7.0,
) -> Figure:
    """Show images row by row, `columns` to a row, each with a caption below and a frame in its colour.

    `width` in inches. Float images in [0, 1], such as views, are shown as well. Raises ValueError where captions or
    colours are not one for each image, and for no image at all.
    """
    for name, given in (("captions", captions), ("colours", colours)):
        if given is not None and len(given) != len(images):
            raise ValueError(f"{len(images)} images but {len(given)} {name}")
    if len(images) == 0:
        raise ValueError("there is no image to show")
    rows = -(-len(images) // columns)
    lines = max((text.count("\n") + 1 for text in captions or ()), default=0)
    figure, axes = image_grid(rows, columns, width, rows * (width / columns + 0.15 * lines), title)
    for i, (ax, image) in enumerate(zip(axes.flat, images)):
        show_image(ax, image, colours[i] if colours else None)
        ax.set_xlabel(captions[i] if captions else "", fontsize=7, labelpad=1.5)
    return figure


def image_grid(rows: int, columns: int, width: float, height: float, title: str) -> tuple[Figure, np.ndarray]:
    """Make a figure of close axes [rows, columns] under a title; they are seen once they show an image."""
    figure = new_figure(width, height + (0.25 if title else 0))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure.suptitle(title, x=0.005, ha="left", fontsize=8)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    return figure, axes


def show_image(ax: Axes, image: Tensor, colour: str | None = None) -> None:
    """Draw one image [c, h, w], uint8 or float in [0, 1], with a frame."""
    pixels = image.detach().cpu()
    pixels = (pixels.clamp(0, 1) * 255).round().byte() if pixels.is_floating_point() else pixels
    pixels = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.axis("on")
    ax.set(xticks=[], yticks=[])
    frame = "#BDBDBD"  # on white and on dark
    ax.spines[:].set(visible=True, color=colour or frame, linewidth=1.8 if colour else 0.6)


@style()
def cluster_sheet(
    run: Run, chosen: Sequence[int] | None = None, columns: int = 12, title: str = "", width: float = 7.0
) -> Figure:
    """Show a row per pseudo-label of a finished run: the images nearest its centre, and how many it has in all.

    `chosen` are pseudo-labels; by default the three with the most images and the five with the fewest. Raises
    ValueError for one that has no image, and RunError where the run has not kept the features of all images.
    """
    labels, h = run.history.pseudo_label[-1], centred(torch.from_numpy(run.features()))
    chosen = largest_and_smallest(labels) if chosen is None else chosen
    images = run.images.images
    figure, rows = image_grid(len(chosen), columns, width, len(chosen) * (width - 0.6) / columns, title)
    for k, axes in zip(chosen, rows):
        near = nearest_to_centre(labels, h, k)
        for ax, i in zip(axes, near):
            show_image(ax, images[i])
        text = f"{len(near)} image{'s' if len(near) > 1 else ''}"
        axes[0].set_ylabel(text, fontsize=7, rotation=0, ha="right", va="center")
    return figure


def largest_and_smallest(labels: Int64[np.ndarray, " n"]) -> list[int]:
    """Return the clusters that have images, by size; of more than eight the first three and the last five."""
    sizes = np.bincount(labels)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)].tolist()
    return order if len(order) <= 8 else [*order[:3], *order[-5:]]


def nearest_to_centre(labels: Int64[np.ndarray, " n"], h: Float[Tensor, "n d"], k: int) -> list[int]:
    """Return the images of cluster k, the nearest to its centre first."""
    own = torch.from_numpy(labels == k).nonzero()[:, 0]
    if len(own) == 0:
        raise ValueError(f"cluster {k} has no image")
    return own[(h[own] @ h[own].mean(0)).argsort(descending=True, stable=True)].tolist()


def rarest(run: Run, count: int = 20, commonest: bool = False, columns: int = 10) -> Figure:
    """Show the images of the lowest headness at the last snapshot, the rarest first, with their temperatures.

    `commonest`: those of the highest. Frames are in the colours of the true groups, where there are labels.
    """
    h = snapshots_of(run)
    order = np.argsort(h.headness[-1], kind="stable")
    chosen = order[::-1][:count].copy() if commonest else order[:count]
    captions, frames = [f"τ {tau:.2f}" for tau in h.tau[-1, chosen]], None
    if h.labels is not None:
        captions = [f"{h.classes[c]}\n{caption}" for c, caption in zip(h.labels[chosen], captions)]
        frames = colours_of(h.groups[h.labels[chosen]])
    what = "Most common: the highest headness" if commonest else "Rarest: the lowest headness"
    return thumbnails(run.images.images[chosen], captions, frames, columns, what)


# -------------------------------------------------------------------------------------------------------------- classes


@style()
def class_sizes(
    counts: Sequence[int], groups: Sequence[int | str] | None = None, names: Sequence[str] | None = None
) -> Figure:
    """Draw training images per class [C], largest first, in the colours of their `groups` (0..2, or head/mid/tail)."""
    counts = np.asarray(counts)
    order = np.argsort(-counts, kind="stable")
    ids = [-1] * len(counts) if groups is None else [GROUPS.index(g) if isinstance(g, str) else g for g in groups]
    figure = new_figure(COLUMN, 2.1)
    ax = figure.subplots()
    colour = colours_of(np.asarray(ids)[order])
    bars = ax.bar(range(len(counts)), counts[order], width=0.8 if len(counts) <= MANY else 1.0, color=colour)
    if len(counts) <= 12:
        ax.bar_label(bars, fontsize=7, padding=1)
        ax.margins(y=0.1)
    ratio = counts.max() / max(counts.min(), 1)
    form = ",.0f" if ratio >= 10 else ".1f"
    ax.set(
        ylabel="training images",
        title=f"{counts.sum():,} images, largest to smallest {ratio:{form}} : 1",
    )
    name_classes(ax, [names[i] for i in order] if names else None, len(counts))
    if groups is not None:
        ax.legend(handles=group_handles(), loc="upper right")
    return figure


# ------------------------------------------------------------------------------------------------------------ over time


@style()
def training_curves(runs: Run | Sequence[Run], footer: bool = True) -> Figure:
    """Draw loss and its two parts, learning rate, and k-NN accuracy over the epochs of one run, also while it trains.

    Dotted lines are changes of the guidance while it trained, and the warm-up's end: losses before and after such a
    change do not compare. Raises RunError where no epoch has been written yet.
    """
    (run,) = as_runs(runs)
    metrics = run.metrics
    if len(metrics) == 0:
        raise RunError(f"{run.path} has no epoch in its metrics yet")
    ink = colours().ink
    figure = new_figure(TEXT, 1.9)
    parts, lr, knn = figure.subplots(1, 3)
    for name, colour, line in (("loss", ink, "-"), ("attraction", "#0173B2", "--"), ("repulsion", "#D55E00", "-.")):
        parts.plot(metrics["epoch"], metrics[name], color=colour, ls=line)
        end = (metrics["epoch"].iloc[-1], metrics[name].iloc[-1])
        offset = {"xytext": (0, 4), "textcoords": "offset points", "ha": "right", "fontsize": 7}
        parts.annotate(name, end, color=colour, **offset)
    parts.margins(y=0.12)
    parts.set(xlabel="epoch", title="loss = attraction + repulsion")
    lr.plot(metrics["epoch"], metrics["lr"], color=ink)
    lr.set(xlabel="epoch", title="learning rate", ylim=(0, None))
    draw_knn(knn, metrics)
    for epoch in run.loss_breaks:  # a change of temperatures changes the scale of the loss: it jumps there
        for ax in (parts, lr, knn):
            ax.axvline(epoch, color=colours().soft, ls=":", lw=0.8, zorder=0)
    marks = "dotted: " + ", ".join(dict.fromkeys(run.loss_breaks.values())) if run.loss_breaks else ""
    return signed(figure, [run], title(run.config), marks, LOSSES, shown=footer)


def draw_knn(ax: Axes, metrics) -> None:
    """Draw the k-NN accuracy over the epochs, over five points or more, so that noise looks like noise."""
    ax.set(xlabel="epoch", title="k-NN accuracy in %")
    if "knn" not in metrics or metrics["knn"].isna().all():
        text = {"ha": "center", "va": "center", "transform": ax.transAxes, "color": colours().soft}
        ax.text(0.5, 0.5, "not measured\n(needs labels)", **text)
        ax.set(xticks=[], yticks=[])
        return
    seen = metrics.dropna(subset=["knn"])
    ax.plot(seen["epoch"], seen["knn"], color=colours().ink, marker="o", ms=2.5)
    middle, half = (seen["knn"].max() + seen["knn"].min()) / 2, np.ptp(seen["knn"]) * 0.55
    ax.set_ylim(middle - max(half, 2.5), middle + max(half, 2.5))


@style()
def courses(
    epoch: Sequence[int],
    tau: Float[np.ndarray, "s n"],
    weight: Float[np.ndarray, "s n"],
    groups: Int64[np.ndarray, " n"] | None = None,
    samples: int = 2,
) -> Figure:
    """Draw temperatures and weights that a loop of your own has kept: median and quartiles of each group (0, 1, 2)."""
    members = members_of(np.full(np.shape(tau)[1], -1) if groups is None else np.asarray(groups))
    figure = new_figure(TEXT, 2.3)
    for ax, values, name in zip(figure.subplots(1, 2), (tau, weight), ("temperature τ", "weight w")):
        draw_course(ax, epoch, np.asarray(values, dtype=np.float64), members, samples)
        ax.set(xlabel="epoch", ylabel=name)
    figure.legend(handles=course_handles(members), loc="outside upper center", ncols=6)
    return figure


@style()
def sample_courses(run: Run, index: Sequence[int] | None = None) -> Figure:
    """Draw temperature, weight and loss of single images over the snapshots; by default two of each group."""
    h, members = snapshots_of(run), groups_of_images(run)
    rng = np.random.default_rng(0)
    chosen = np.concatenate([rng.permutation(own)[:2] for *_, own in members]) if index is None else index
    colour = {int(i): c for _, c, own in members for i in np.intersect1d(own, chosen)}
    figure = new_figure(TEXT, 2.0)
    what = {"temperature τ": (h.tau, "post"), "weight w": (h.weight, "post"), "mean loss": (h.loss, "pre")}
    for ax, (name, (values, where)) in zip(figure.subplots(1, 3), what.items()):
        for k, i in enumerate(chosen):  # tau holds until the next snapshot; the loss is the mean since the last one
            ax.step(h.epoch, values[:, i], where=where, color=colour[int(i)], ls=("-", "--")[k % 2], lw=1.0)
        ax.set(xlabel="epoch", title=name)
        mark_warmup(ax, run, named=name.startswith("temp"))
    return signed(figure, [run], title(run.config), "images " + ", ".join(str(int(i)) for i in chosen), LOSSES)


@style()
def cluster_changes(run: Run) -> Figure:
    """Draw how often images of each group change their cluster after the warm-up, and how much their tau varies then.

    Raises RunError where there are fewer than two snapshots after the warm-up.
    """
    h = snapshots_of(run)
    after = np.flatnonzero(h.epoch >= run.config.warmup)
    if len(after) < 2:
        raise RunError(f"{run.path} has fewer than two snapshots after the warm-up")
    moves = (np.diff(h.pseudo_label[after], axis=0) != 0).sum(0)  # [n]
    figure = new_figure(TEXT, 2.3)
    left, right = figure.subplots(1, 2)
    members = groups_of_images(run)
    for k, (name, colour, own) in enumerate(members):
        share = np.bincount(moves[own]) / len(own)
        left.bar(
            np.arange(len(share)) + 0.27 * (k - (len(members) - 1) / 2), 100 * share, 0.25, color=colour, label=name
        )
    left.set(xlabel=f"changes of cluster in {len(after) - 1} refreshes", ylabel="images of the group in %")
    left.legend()
    flicker, places = h.tau[after].std(0), np.unique(moves)
    look = {"medianprops": {"color": colours().ink}, "flierprops": {"ms": 1.5}, "widths": 0.6}
    right.boxplot([flicker[moves == m] for m in places], positions=places, **look)
    right.set(xlabel="changes of cluster", ylabel="s.d. of τ over time")
    return signed(figure, [run], title(run.config))


# ---------------------------------------------------------------------------------------------------- who has which tau


@style()
def tau_by_group(run: Run, epochs: Sequence[int] | None = None) -> Figure:
    """Draw how temperatures are distributed in each group, at three snapshots after the warm-up or at `epochs`."""
    h, members = snapshots_of(run), groups_of_images(run)
    after = np.flatnonzero(h.epoch > run.config.warmup)
    after = after if len(after) else np.arange(len(h))
    shown = sorted({int(after[0]), int(after[len(after) // 2]), len(h) - 1})
    shown = shown if epochs is None else [int(np.abs(h.epoch - e).argmin()) for e in epochs]
    low, high = float(h.tau[shown].min()), float(h.tau[shown].max())
    edges = np.linspace(low, max(high, low + 1e-3), 25)
    figure = new_figure(TEXT, 2.1)
    for ax, t in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False).flat, shown):
        for name, colour, own in members:
            look = {"element": "step", "fill": False, "stat": "percent", "linewidth": 1.1}
            seaborn.histplot(h.tau[t, own], bins=edges, color=colour, label=name, ax=ax, **look)
            ax.axvline(h.tau[t, own].mean(), color=colour, ls=":", lw=0.9)
        ax.set(xlabel="temperature τ", ylabel="images of the group in %", title=f"epoch {h.epoch[t]}")
        ax.label_outer()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return signed(figure, [run], title(run.config), "dotted: mean")


@style()
def tau_against_loss(run: Run) -> Figure:
    """Draw each image's mean loss, since the last snapshot but one, against its temperature, in its group's colour."""
    h = snapshots_of(run)
    tau, loss = h.tau[-1], h.loss[-1]
    figure = new_figure(COLUMN, 2.5)
    ax = figure.subplots()
    for name, colour, own in groups_of_images(run):
        ax.scatter(tau[own], loss[own], s=4, color=colour, alpha=0.5, lw=0, label=name, rasterized=True)
    ax.set(xlabel="temperature τ", ylabel="mean loss", title=f"epoch {h.epoch[-1]}, loss since the snapshot before")
    ax.yaxis.set_major_locator(MaxNLocator(4))  # as many ticks at any height, so that their labels keep their room
    figure.legend(loc="outside upper right", ncols=3, handletextpad=0.2, markerscale=2)
    return signed(figure, [run], title(run.config), LOSSES)


@style()
def tau_by_category(run: Run, categories: Sequence[str] | None = None) -> Figure:
    """Draw the temperature of each image by its category [n], the largest on top; by default the true classes.

    Raises ValueError where the categories are not one for each image, and RunError where there are none.
    """
    h = snapshots_of(run)
    tau = h.tau[-1]
    if categories is None:
        if h.labels is None:
            raise RunError(f"{run.path} has no labels: give the images' categories")
        categories = [h.classes[c] for c in h.labels]
    if len(categories) != len(tau):
        raise ValueError(f"{len(tau)} images but {len(categories)} categories")
    names, number, sizes = np.unique(categories, return_inverse=True, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    place = np.argsort(order)[number]  # [n] the row of each image
    figure = new_figure(TEXT, 0.8 + 0.2 * len(names))
    ax = figure.subplots()
    points = {"size": 2, "alpha": 0.5, "jitter": 0.25, "color": colours().groups[0]}
    seaborn.stripplot(x=tau, y=place, orient="h", ax=ax, **points)
    means = np.bincount(place, tau) / sizes[order]
    ax.vlines(means, np.arange(len(names)) - 0.4, np.arange(len(names)) + 0.4, color=colours().ink, zorder=3)
    ax.set_yticks(range(len(names)), [f"{names[k]} ({sizes[k]})" for k in order])
    ax.set(xlabel="temperature τ of each image; line: mean", ylabel="")
    return signed(figure, [run], title(run.config))


@style()
def temperature_map(run: Run, kind: str = "tsne", points: int = 3000) -> Figure:
    """Draw a layout of a finished run's training images, at most `points`, coloured by temperature and by weight.

    Raises RunError where the run has not kept the features of all images.
    """
    h, features = snapshots_of(run), run.features()
    index = drawn_once(np.arange(len(features)), points)
    xy = layout(features[index], kind)
    figure = new_figure(TEXT, 3.0)
    for ax, values, name in zip(figure.subplots(1, 2), (h.tau, h.weight), ("temperature τ", "weight w")):
        dots = ax.scatter(*xy.T, c=values[-1][index], s=4, cmap=VALUES, lw=0, rasterized=True)
        fill_panel(ax, xy)
        figure.colorbar(dots, ax=ax, label=name, location="top", shrink=0.8)
    return signed(figure, [run], title(run.config))


@style()
def cluster_confusion(run: Run) -> Figure:
    """Draw how many images of each class (head to tail) each cluster holds, and cluster sizes against class sizes.

    Raises RunError without labels.
    """
    h = snapshots_of(run)
    if h.labels is None:
        raise RunError(f"{run.path} has no labels to compare its clusters with")
    cluster, order = h.pseudo_label[-1], np.argsort(-h.counts, kind="stable")
    table = np.zeros((cluster.max() + 1, len(h.counts)), dtype=int)  # [k, C]
    np.add.at(table, (cluster, h.labels), 1)
    sizes = table.sum(1)
    figure = new_figure(TEXT, 2.9)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    by_size = table[np.argsort(-sizes, kind="stable")][:, order]
    names = [h.classes[c] for c in order] if len(order) <= 12 else False
    seaborn.heatmap(by_size, ax=left, cmap=shades(), xticklabels=names, yticklabels=False)
    clusters = f"{(sizes > 0).sum()} clusters, by size"
    left.set(xlabel="true class, head to tail", ylabel=clusters, title="images of a class in a cluster")
    jitter = np.exp(np.random.default_rng(0).normal(0, 0.04, len(cluster)))  # classes of one size apart
    for _, colour, own in groups_of_images(run):
        at = (h.counts[h.labels[own]] * jitter[own], sizes[cluster[own]])
        right.scatter(*at, s=4, alpha=0.5, lw=0, color=colour, rasterized=True)
    right.set(xscale="log", xlabel="size of the true class", ylabel="size of the image's cluster")
    right.xaxis.set_major_formatter("{x:g}")
    figure.legend(handles=group_handles(), loc="outside upper right", ncols=3)
    return signed(figure, [run], title(run.config), f"epoch {h.epoch[-1]}")
