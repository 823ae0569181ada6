"""What a run takes to be rare and what common, with file names; near-duplicates, blank images, typical images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..files import RunError
from ..pseudo_labels import centred
from ..runs import Run

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
    `typical_of` (the cluster whose mean it is nearest to, else -1). Raises RunError where there is no snapshot.
    """
    import pandas

    run = run if isinstance(run, Run) else Run(run)
    h, last = run.history, len(run.history) - 1
    if last < 0:
        raise RunError(f"{run.path} has no snapshot yet: the first comes when its training starts")
    headness, n = h.headness[last], h.tau.shape[1]
    small, paths = small_images(run)
    order = np.argsort(headness, kind="stable")
    some = max(1, round(SHARE * n))
    kind = np.full(n, "", dtype=object)
    kind[order[:some]], kind[order[-some:]] = "rare", "common"
    near, cosine, difference = _duplicates(run, small)
    names = np.array(h.classes)
    table = pandas.DataFrame(
        {
            "image": np.arange(n),
            "file": list(paths) if paths is not None else [""] * n,
            "class": names[h.labels] if h.labels is not None else [""] * n,
            "headness": headness.round(3),
            "tau": h.tau[last].round(4),
            "weight": h.weight[last].round(4),
            "cluster": h.pseudo_label[last],
            "is": kind,
            "duplicate_of": near,
            "cosine": cosine.round(3),
            "difference": difference.round(4),
            "blank": np.zeros(n, bool) if small is None else (small.std(1) < 0.004).numpy(),
            "typical_of": _typical(run),
        }
    )
    return table.iloc[order].reset_index(drop=True)


def listed(run: Run, most: int = 48) -> dict[str, Any]:
    """The same in short, as image numbers for the front end: at most `most` of each."""
    table = rare(run)
    twins = table[table["duplicate_of"] >= 0].sort_values("difference", kind="stable")
    pairs = {tuple(sorted(pair)): None for pair in zip(twins["image"].tolist(), twins["duplicate_of"].tolist())}
    typical = table[table["typical_of"] >= 0].groupby("typical_of")["image"].apply(list)
    sizes = table.groupby("cluster").size()
    clusters = [{"cluster": int(k), "size": int(sizes[k]), "images": typical[k]} for k in typical.index]
    return {
        "rare": table["image"][:most].tolist(),
        "common": table["image"][::-1][:most].tolist(),
        "duplicates": [list(pair) for pair in list(pairs)[:most]],
        "blank": table["image"][table["blank"]][:most].tolist(),
        "clusters": sorted(clusters, key=lambda c: c["size"]),
    }


def picture_of(image: Tensor, side: int) -> Any:
    """A uint8 image [c, h, w] as a Pillow image in colour of side x side pixels."""
    from PIL import Image

    array = np.asarray(image)
    array = np.repeat(array[:1], 3, 0) if array.shape[0] < 3 else array[:3]
    picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(array, 0, -1)))
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.LANCZOS)


def small_images(run: Run) -> tuple[Float[Tensor, "n p"] | None, tuple[str, ...] | None]:
    """All images in grey and small, from 0 to 1, and their files; None where the images are gone or others."""
    from torch.nn import functional as F

    try:
        images = run.images
    except Exception:  # a source may fail in ways of its own; features and temperatures can still be listed
        return None, None
    if len(images) != run.history.tau.shape[1]:
        return None, None
    side = min(SMALL, *images.images.shape[2:])
    parts = []
    for start in range(0, len(images), 2048):
        part = images.images[start : min(start + 2048, len(images))]
        part = torch.as_tensor(np.asarray(part)).float().mean(1, keepdim=True) / 255
        parts.append(F.adaptive_avg_pool2d(part, side).flatten(1))
    return torch.cat(parts), images.paths


def _unit_features(run: Run) -> tuple[Float[Tensor, "m d"] | None, Int64[np.ndarray, " m"]]:
    """Unit features of the last snapshot and the images they are of; None in a slim copy."""
    h, last = run.history, len(run.history) - 1
    index = h.feature_index(last)
    try:
        return (centred(torch.from_numpy(h.features(last))), index) if len(index) > 1 else (None, index)
    except RunError:
        return None, index


def _duplicates(run: Run, small: Float[Tensor, "n p"] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest image of each by its pixels, where features agree too: image or -1, cosine, difference (NaN)."""
    n = run.history.tau.shape[1]
    near, cosine, difference = np.full(n, -1), np.full(n, np.nan), np.full(n, np.nan)
    features, index = _unit_features(run)
    if small is None or features is None:
        return near, cosine, difference
    small = small[torch.from_numpy(index)]
    # All pairs of many images take minutes; images that nearly agree are in one cluster.
    cluster = run.history.pseudo_label[-1][index] if len(index) > MANY_IMAGES else np.zeros(len(index))
    for k in np.unique(cluster):
        rows = torch.from_numpy(np.flatnonzero(cluster == k))
        if len(rows) < 2:
            continue
        found, similar, gap = _nearest_twin(features[rows], small[rows])
        twin = (gap < 0.02) & (similar > 0.9)
        here = index[rows[twin].numpy()]
        near[here] = index[rows[found[twin]].numpy()]
        cosine[here], difference[here] = similar[twin].numpy(), gap[twin].numpy()
    return near, cosine, difference


def _nearest_twin(features: Float[Tensor, "m d"], small: Float[Tensor, "m p"]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the five nearest by features, the one nearest by pixels: row, cosine, mean absolute difference, [m] each."""
    found = []
    for rows in torch.arange(len(features)).split(1024):
        similar = features[rows] @ features.T
        similar[torch.arange(len(rows)), rows] = -2  # not itself
        top = similar.topk(min(5, len(features) - 1))  # [r, 5]
        apart = (small[rows, None] - small[top.indices]).abs().mean(2)
        best = apart.argmin(1, keepdim=True)
        found.append([x.gather(1, best)[:, 0] for x in (top.indices, top.values, apart)])
    return tuple(torch.cat(parts) for parts in zip(*found))


def _typical(run: Run) -> Int64[np.ndarray, " n"]:
    """The cluster of the few images that are nearest to its mean, -1 for all others."""
    h, last = run.history, len(run.history) - 1
    out = np.full(h.tau.shape[1], -1)
    features, index = _unit_features(run)
    if features is None:
        return out
    cluster = h.pseudo_label[last][index]
    for k in np.unique(cluster[cluster >= 0]):
        rows = np.flatnonzero(cluster == k)
        unit = features[torch.from_numpy(rows)]
        order = (unit @ unit.mean(0)).argsort(descending=True, stable=True)[:TYPICAL]
        out[index[rows[order.numpy()]]] = k
    return out


def trust_of(run: Run) -> Float[np.ndarray, "s n"] | None:
    """Trust of each image at each snapshot, or None where the run does not know it."""
    try:
        return getattr(run.history, "trust", None)
    except RunError:
        return None


def sentences(run: Run) -> list[str]:
    """Say plainly how far to believe what this run calls rare: only what is known of it."""
    h, config = run.history, run.config
    tau, said = h.tau[-1], []
    trust = trust_of(run)
    if trust is not None:
        said.append(
            f"Trust {float(np.mean(trust[-1])):.2f}: how far a second clustering would say the same (1: entirely)."
        )
    if float(tau.std()) < 1e-4:
        said.append("This method gives every image the same τ: headness only shows what its clusters would say.")
    elif (tau > tau.max() - 1e-3).mean() > 0.5:
        said.append("Half of all images have the largest τ: the order among them says nothing.")
    if h.headness[-1].std() < 1e-6:
        said.append("There are no clusters yet: nothing is known about what is rare.")
    known = h.quality[-1].get("spearman_samples")
    if known is not None:
        warning = "Do not take the rarest images here for those of rare classes. " if known < 0.2 else ""
        said.append(
            f"{warning}Rank correlation of headness with the true class sizes: {known:.2f} (1: perfect, 0: chance)."
        )
    if config.optim.epochs < 50:
        said.append(f"Trained for {config.optim.epochs} epochs only: features of so short a training say little.")
    return said
