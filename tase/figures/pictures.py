"""Images themselves: a sheet of thumbnails with captions and frames in the colour of a group, and a row per cluster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.axes import Axes
from torch import Tensor

from ..pseudo_labels import centred
from ..runs import Run
from .style import FAINT, Figure, new_figure, style


def thumbnails(
    images: UInt8[Tensor, "m c h w"],
    captions: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    columns: int = 10,
    title: str = "",
    width: float = 7.0,
) -> Figure:
    """Images row by row, `columns` to a row, each with a caption below and a frame in its colour; `width` in inches.

    Float images in [0, 1], such as views, are shown as well. Raises ValueError where captions or colours are not one
    for each image, and for no image at all.
    """
    for name, given in (("captions", captions), ("colours", colours)):
        if given is not None and len(given) != len(images):
            raise ValueError(f"{len(images)} images but {len(given)} {name}")
    if len(images) == 0:
        raise ValueError("there is no image to show")
    rows = -(-len(images) // columns)
    lines = max((text.count("\n") + 1 for text in captions or ()), default=0)
    with style():
        figure = new_figure(width, rows * (width / columns + 0.15 * lines) + (0.25 if title else 0))
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for i, ax in enumerate(axes):
            if i >= len(images):
                ax.axis("off")
                continue
            _show(ax, images[i], *((colours[i], 1.8) if colours else ()))
            ax.set_xlabel(captions[i] if captions else "")
            ax.xaxis.labelpad = 1.5
            ax.xaxis.label.set_fontsize(7)
        figure.suptitle(title, x=0.005, ha="left", fontsize=8)
    return figure


def _pixels(image: Tensor) -> np.ndarray:
    """[h, w] or [h, w, 3], uint8."""
    pixels = image.detach().cpu()
    pixels = pixels if not pixels.is_floating_point() else (pixels.clamp(0, 1) * 255).round().byte()
    return pixels[0].numpy() if len(pixels) != 3 else pixels.permute(1, 2, 0).numpy()


def cluster_sheet(
    run: Run, chosen: Sequence[int] | None = None, columns: int = 12, title: str = "", width: float = 7.0
) -> Figure:
    """One row per pseudo-label of a finished run: the images nearest its centre, and how many it has in all.

    `chosen` are pseudo-labels; by default the three with the most images and the five with the fewest. Raises
    ValueError for one that has no image, and RunError where the run has not kept the features of all images.
    """
    labels, h = run.history.pseudo_label[-1], centred(torch.from_numpy(run.features()))
    chosen = _largest_and_smallest(labels) if chosen is None else chosen
    images = run.images.images
    with style():
        figure = new_figure(width, len(chosen) * (width - 0.6) / columns + (0.25 if title else 0))
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        rows = figure.subplots(len(chosen), columns, squeeze=False)
        for k, axes in zip(chosen, rows, strict=True):
            near = _by_nearness(labels, h, k)
            for ax, i in zip(axes, near, strict=False):
                _show(ax, images[i])
            for ax in axes[len(near) :]:
                ax.axis("off")
            text = f"{len(near)} image{'s' if len(near) > 1 else ''}"
            axes[0].set_ylabel(text, fontsize=7, rotation=0, ha="right", va="center")
        figure.suptitle(title, x=0.005, ha="left", fontsize=8)
    return figure


def _largest_and_smallest(labels: Int64[np.ndarray, " n"]) -> list[int]:
    sizes = np.bincount(labels)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)].tolist()
    return order if len(order) <= 8 else [*order[:3], *order[-5:]]


def _by_nearness(labels: Int64[np.ndarray, " n"], h: Float[Tensor, "n d"], k: int) -> list[int]:
    """The images of cluster k, the nearest to its centre first."""
    own = torch.from_numpy(labels == k).nonzero()[:, 0]
    if len(own) == 0:
        raise ValueError(f"cluster {k} has no image")
    return own[(h[own] @ h[own].mean(0)).argsort(descending=True, stable=True)].tolist()


def _show(ax: Axes, image: Tensor, colour: str = FAINT, linewidth: float = 0.6) -> None:
    grey = len(image) == 1
    ax.imshow(_pixels(image), cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=colour, linewidth=linewidth)
