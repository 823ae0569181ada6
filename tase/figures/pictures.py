"""Images themselves: a sheet of thumbnails, each with its caption and a frame in the colour of its group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

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
            grey = images.shape[1] == 1
            ax.imshow(_pixels(images[i]), cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest")
            ax.set(xticks=[], yticks=[], xlabel=captions[i] if captions else "")
            ax.xaxis.labelpad = 1.5
            ax.xaxis.label.set_fontsize(7)
            ax.spines[:].set(visible=True, color=colours[i] if colours else FAINT, linewidth=1.8 if colours else 0.6)
        figure.suptitle(title, x=0.005, ha="left", fontsize=8)
    return figure


def _pixels(image: Tensor) -> np.ndarray:
    """[h, w] or [h, w, 3], uint8."""
    pixels = image.detach().cpu()
    pixels = pixels if not pixels.is_floating_point() else (pixels.clamp(0, 1) * 255).round().byte()
    return pixels[0].numpy() if len(pixels) != 3 else pixels.permute(1, 2, 0).numpy()
