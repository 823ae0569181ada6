"""What a run takes to be rare and what common, with file names; near-duplicates, blank images, typical images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ..clustering import centred
from ..data import ImageSet, unreadable_files
from ..files import RunError, printable
from ..runs import Run
from .base import images_of, opened

if TYPE_CHECKING:
    import pandas

SHARE = 0.05  # of the images: called rare, and common
TYPICAL = 6  # images of a cluster that are nearest to its mean
MANY_IMAGES = 20_000  # images: above it near-duplicates are looked for within clusters
SMALL = 16  # pixels: side of the small grey images that near-duplicates are compared by


def rare(run: Run | str | Path) -> pandas.DataFrame:
    """List every image of a run, the rarest first: what it is taken to be, and what to look at twice.

    Columns: image, file, class, headness, tau, weight, cluster; `is` ("rare", "common" for a twentieth of the images
    each, or ""); `duplicate_of` (the nearest image, where both their features and their pixels nearly agree, else -1)
    with `cosine` and `difference` (mean absolute difference of small grey images, 0 to 1); `blank` (all pixels alike);
    `typical_of` (the cluster whose mean it is nearest to, else -1); `broken` (why a file could not be read, else "").
    Broken files come last, as image -1. Raises RunError where there is no snapshot.
    """
    import pandas

    run = opened(run)
    h, headness, cluster = run.history, run.history.headness[-1], run.history.pseudo_label[-1]
    n, (images, _), (features, index) = len(headness), images_of(run), _unit_features(run)
    table = pandas.DataFrame(
        {
            "image": np.arange(n),
            "file": "" if images is None or images.paths is None else [*map(printable, images.paths)],
            "class": "" if h.labels is None else np.array(h.classes)[h.labels],
            "headness": headness.round(3),
            "tau": h.tau[-1].round(4),
            "weight": h.weight[-1].round(4),
            "cluster": cluster,
            "is": "",
            "duplicate_of": -1,
            "cosine": np.nan,
            "difference": np.nan,
            "blank": False,
            "typical_of": _typical(features, index, cluster),
            "broken": "",
        }
    )
    if images is not None:
        small = _small_grey(images)
        table["blank"] = (small.std(1) < 0.004).numpy()
        _note_duplicates(table, features, small[torch.from_numpy(index)], index)
    table = table.iloc[np.argsort(headness, kind="stable")].reset_index(drop=True)
    some = max(1, round(SHARE * n))
    table.loc[: some - 1, "is"], table.loc[n - some :, "is"] = "rare", "common"
    broken = {} if images is None or images.paths is None else unreadable_files(run.config.data)
    if not broken:
        return table
    unknown = dict.fromkeys(("image", "cluster", "duplicate_of", "typical_of"), -1)
    rows = [
        {"file": printable(file), "class": "", "is": "", "blank": False, "broken": why, **unknown}
        for file, why in broken.items()
    ]
    return pandas.concat([table, pandas.DataFrame(rows)], ignore_index=True)


def listed(run: Run, most: int = 48) -> dict[str, Any]:
    """The same in short, as image numbers for the front end: at most `most` of each, and how many there are."""
    whole = rare(run)
    table = whole[whole["broken"] == ""]
    twins = table[table["duplicate_of"] >= 0].sort_values("difference", kind="stable")
    pairs = {tuple(sorted(pair)): None for pair in twins[["image", "duplicate_of"]].to_numpy().tolist()}
    typical = table[table["typical_of"] >= 0].groupby("typical_of")["image"].apply(list)
    sizes = table.groupby("cluster").size()
    clusters = [{"cluster": int(k), "size": int(sizes[k]), "images": typical[k]} for k in typical.index]
    return {
        "rare": table["image"][:most].tolist(),
        "common": table["image"][::-1][:most].tolist(),
        "duplicates": [list(pair) for pair in list(pairs)[:most]],
        "blank": table["image"][table["blank"]][:most].tolist(),
        "clusters": sorted(clusters, key=lambda c: c["size"]),
        "broken": whole[["file", "broken"]][len(table) :][:most].to_numpy().tolist(),
        "remarks": remarks(whole),
    }


def remarks(table: pandas.DataFrame) -> list[str]:
    """Say what is to be mended in the folder, from the table of `rare`."""

    def names(rows: pandas.DataFrame) -> str:
        called = rows["file"].where(rows["file"] != "", "image " + rows["image"].astype(str))
        return ", ".join(called[:3]) + (", ..." if len(rows) > 3 else "")

    said = []
    twins, blank, broken = table[table["duplicate_of"] >= 0], table[table["blank"]], table[table["broken"] != ""]
    if len(twins):
        copies = " Copies of an image make it look common." if len(twins) > 9 else ""
        said.append(f"{len(twins):,} of {(table['image'] >= 0).sum():,} images have a near-duplicate.{copies}")
    if len(blank):
        said.append(f"{len(blank):,} blank (all pixels alike): {names(blank)}.")
    if len(broken):
        files = "1 file" if len(broken) == 1 else f"{len(broken):,} files"
        said.append(f"{files} could not be read, and left out: {names(broken)}.")
    return said


def _small_grey(images: ImageSet) -> Float[Tensor, "n p"]:
    """All images in grey and small, from 0 to 1."""
    side = min(SMALL, *images.images.shape[2:])
    parts = []
    for rows in torch.arange(len(images)).split(2048):
        grey = images.images[rows].float().mean(1, keepdim=True) / 255
        parts.append(F.adaptive_avg_pool2d(grey, side).flatten(1))
    return torch.cat(parts)


def _unit_features(run: Run) -> tuple[Float[Tensor, "m d"], Int64[np.ndarray, " m"]]:
    """Unit features of the last snapshot and the images they are of; none in a slim copy."""
    h, last = run.history, len(run.history) - 1
    try:
        return centred(torch.from_numpy(h.features(last))), h.feature_index(last)
    except RunError:
        return torch.zeros(0, 1), np.zeros(0, dtype=np.int64)


def _note_duplicates(table: pandas.DataFrame, features: Tensor, small: Tensor, index: np.ndarray) -> None:
    """Write in the table which image is the nearest by its pixels, where features agree too, and how near."""
    # All pairs of many images take minutes; images that nearly agree are in one cluster.
    part = table["cluster"].to_numpy()[index] if len(index) > MANY_IMAGES else np.zeros(len(index))
    for k in np.unique(part):
        rows = np.flatnonzero(part == k)
        if len(rows) < 2:
            continue
        found, cosine, difference = _nearest_twin(features[rows].numpy(), small[rows].numpy())
        twin = (difference < 0.02) & (cosine > 0.9)
        table.loc[index[rows[twin]], "duplicate_of"] = index[rows[found[twin]]]
        table.loc[index[rows[twin]], "cosine"] = cosine[twin].round(3)
        table.loc[index[rows[twin]], "difference"] = difference[twin].round(4)


def _nearest_twin(
    features: Float[np.ndarray, "m d"], small: Float[np.ndarray, "m p"]
) -> tuple[Int64[np.ndarray, " m"], Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Of the five nearest by features, the one nearest by pixels: row, cosine, mean absolute difference."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=min(5, len(features) - 1), metric="cosine").fit(features)
    distance, near = model.kneighbors()  # [m, 5] each, without the image itself
    apart = np.stack([np.abs(small - small[other]).mean(1) for other in near.T], 1)
    best = np.arange(len(near)), apart.argmin(1)
    return near[best], 1 - distance[best], apart[best].astype(np.float64)


def _typical(features: Tensor, index: np.ndarray, cluster: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The cluster of the few images that are nearest to its mean, -1 for all others."""
    out = np.full(len(cluster), -1)
    for k in np.unique(cluster[index]):
        own = index[cluster[index] == k]
        unit = features[torch.from_numpy(cluster[index] == k)]
        order = (unit @ unit.mean(0)).argsort(descending=True, stable=True)[:TYPICAL]
        out[own[order.numpy()]] = k  # -1, before there are clusters, stays -1
    return out


def sentences(run: Run) -> list[str]:
    """Say plainly how far to believe what this run calls rare: only what is known of it."""
    h, config = run.history, run.config
    tau, said = h.tau[-1], []
    said += [run.trust_line] if run.trust_line else []
    if float(tau.std()) < 1e-4:
        said.append("This method gives every image the same τ: headness only shows what its clusters would say.")
    elif (tau > tau.max() - 1e-3).mean() > 0.5:
        said.append("Half of all images have the largest τ: the order among them says nothing.")
    if h.headness[-1].std() < 1e-6:
        said.append("There are no clusters yet: nothing is known about what is rare.")
    known = h.quality[-1].get("spearman_samples")
    if known is not None and h.counts is not None and np.ptp(h.counts) > 1:  # classes as good as equal have no order
        warning = "Do not take the rarest images here for those of rare classes. " if known < 0.2 else ""
        said.append(
            f"{warning}Rank correlation of headness with the true class sizes: {known:.2f} (1: perfect, 0: chance)."
        )
    if config.optim.epochs < 50:
        said.append(f"Trained for {config.optim.epochs} epochs only: features of so short a training say little.")
    return said
