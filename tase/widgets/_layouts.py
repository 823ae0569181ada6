"""Two-dimensional layouts of a run's snapshots, aligned from one to the next: points move, they do not jump."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64

from ..config import check_choice
from ..layouts import umap_layout
from ..pseudo_labels import centred
from ..runs import Run, RunError, load_kept, save_npz

KINDS = ("pca", "tsne", "umap")


@dataclass(frozen=True)
class Layouts:
    """Places of the same m images at s epochs; each layout is centred, with a root mean square radius of 1."""

    epoch: Int64[np.ndarray, " s"]
    index: Int64[np.ndarray, " m"]
    xy: Float[np.ndarray, "s m 2"]

    def at(self, epoch: int) -> Float[np.ndarray, "m 2"]:
        """The layout of the last epoch that is not later."""
        return self.xy[max(0, int(np.searchsorted(self.epoch, epoch, side="right")) - 1)]


def normalised(xy: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m 2"]:
    """Centred, with a root mean square radius of 1."""
    xy = xy - xy.mean(0)
    return (xy / max(np.sqrt((xy**2).sum(1).mean()), 1e-12)).astype(np.float32)


def rotation(xy: Float[np.ndarray, "m 2"], target: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "2 2"]:
    """The rotation or reflection that brings xy nearest to target, both centred (orthogonal Procrustes)."""
    u, _, v = np.linalg.svd(xy.T @ target)
    return (u @ v).astype(np.float32)


def aligned(xy: Float[np.ndarray, "m 2"], target: Float[np.ndarray, "m 2"] | None) -> Float[np.ndarray, "m 2"]:
    """`xy` normalised and turned to lie as near to `target` as it can."""
    xy = normalised(xy)
    return xy if target is None else xy @ rotation(xy, target)


def embed(
    h: Float[np.ndarray, "m d"], kind: str, before: Float[np.ndarray, "m 2"] | None = None
) -> Float[np.ndarray, "m 2"]:
    """Unit features in two dimensions, from where they were `before`; too few images are laid out by PCA."""
    start = _pca(h) if before is None else before
    if kind == "pca" or len(h) < 10:
        return _pca(h)
    return _tsne(h, start, before is None) if kind == "tsne" else _umap(h, start, before is None)


def _pca(h: np.ndarray) -> np.ndarray:
    x = h - h.mean(0)
    _, axes = np.linalg.eigh(x.T.astype(np.float64) @ x)
    flat = x @ axes[:, -2:][:, ::-1]
    return flat if flat.shape[1] == 2 else np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))


def _tsne(h: np.ndarray, start: np.ndarray, first: bool) -> np.ndarray:
    from sklearn.manifold import TSNE

    # A layout that is nearly right needs fewer steps, and no exaggeration, which would pull it apart.
    steps = {"max_iter": 500} if first else {"max_iter": 300, "early_exaggeration": 1.5}
    scale = 1e-4 if first else 10.0
    init = (start / max(start.std(), 1e-12) * scale).astype(np.float32)
    perplexity = min(30.0, (len(h) - 1) / 3)
    return TSNE(init=init, perplexity=perplexity, random_state=0, **steps).fit_transform(h.astype(np.float32))


def _umap(h: np.ndarray, start: np.ndarray, first: bool) -> np.ndarray:
    return umap_layout(h, start, 0, warm=not first)


def kept_images(run: Run, points: int) -> tuple[Int64[np.ndarray, " m"], list[int]]:
    """Images of which every usable snapshot keeps features (at most `points`, drawn once), and those snapshots."""
    h = run.history
    kept = [h.feature_index(t) for t in range(len(h))]
    with_some = [t for t, index in enumerate(kept) if len(index)]
    if not with_some:
        raise RunError(f"{run.path} keeps no features (record.features): there is no embedding to show")
    index = kept[with_some[0]]
    for t in with_some[1:]:
        index = np.intersect1d(index, kept[t])
    if len(index) > points:
        index = np.sort(np.random.default_rng(0).permutation(index)[:points])
    return index, with_some


def _path(run: Run, kind: str) -> Path:
    return run.path / "layouts" / f"epochs-{kind}.npz"


def _load(run: Run, kind: str) -> dict[str, np.ndarray]:
    return load_kept(_path(run, kind))


def layouts(
    run: Run,
    kind: str = "tsne",
    points: int = 2000,
    progress: Callable[[int, int], None] | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> Layouts:
    """A layout for each snapshot of the run, each started from the one before and turned to it (Procrustes).

    pca, or from it tsne or umap. Kept in `layouts/epochs-<kind>.npz` in the run's folder: snapshots that are new are
    added, and a slim copy shows what is kept. `progress(done, all)` is told of each; `wanted()` False ends it early.
    Raises RunError where the run keeps neither features nor layouts.
    """
    check_choice("kind", kind, KINDS)
    old = _load(run, kind)
    index, snapshots = kept_images(run, points)
    try:
        run.history.features(snapshots[0])
    except RunError:
        if not old:
            raise
        return Layouts(old["epoch"], old["index"], old["xy"])
    found, sources = _grow(run, kind, index, snapshots, old, progress, wanted)
    result = Layouts(run.history.epoch[snapshots[: len(found)]], index, np.stack(found))
    if kind != "pca" and len(sources) > len(old.get("source", ())):
        _path(run, kind).parent.mkdir(exist_ok=True)
        save_npz(_path(run, kind), epoch=result.epoch, index=index, xy=result.xy, source=np.array(sources))
    return result


def _grow(run, kind, index, snapshots, old, progress, wanted) -> tuple[list[np.ndarray], list[int]]:
    """Layouts and check sums of the features they were made from; those kept are taken as long as the sums agree."""
    same = len(old.get("index", ())) == len(index) and bool((old["index"] == index).all()) if old else False
    found: list[np.ndarray] = []
    sources: list[int] = []
    for i, t in enumerate(snapshots):
        if found and not wanted():
            break
        x = run.history.features(t)[np.searchsorted(run.history.feature_index(t), index)]
        source = zlib.crc32(x.tobytes())
        same = same and i < len(old["source"]) and int(old["source"][i]) == source
        before = found[-1] if found else None
        found.append(
            old["xy"][i] if same else aligned(embed(centred(torch.from_numpy(x)).numpy(), kind, before), before)
        )
        sources.append(source)
        if progress:
            progress(i + 1, len(snapshots))
    return found, sources
