"""Two-dimensional layouts of features: PCA, t-SNE, UMAP; over the snapshots of runs so aligned that points move.

    xy = layout(features, "tsne")                             # [n, d] -> [n, 2]
    film = snapshot_layouts(run, "tsne", points=2000)         # every snapshot, cached in the run's folder
    other = snapshot_layouts(run2, "tsne", points=2000).turned_to(film)

A layout has no orientation and no scale of its own. A sequence is therefore started from the layout before (so that
points keep their places), scaled to a root mean square radius of 1, and rotated (orthogonal Procrustes).
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.linalg import orthogonal_procrustes

from .clustering import centred
from .config import check_choice
from .files import RunError, load_optional_npz, save_npz
from .runs import Run

LAYOUTS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}  # kind -> its name in titles


def layout(
    features: Float[np.ndarray, "n d"],
    kind: str = "tsne",
    seed: int = 0,
    start: Float[np.ndarray, "n 2"] | None = None,
) -> Float[np.ndarray, "n 2"]:
    """Lay out features in the plane by the cosine between them; the same features and seed give the same layout.

    t-SNE and UMAP begin at PCA, or at `start`, where the same images were a snapshot before: they then take fewer
    steps. Fewer than 10 images are laid out by PCA. Raises ConfigError for an unknown kind.
    """
    check_choice("kind", kind, LAYOUTS)
    x = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)  # [n, d], unit length
    if kind == "pca" or len(x) < 10:
        return pca_layout(x)
    return {"tsne": tsne_layout, "umap": umap_layout}[kind](x, start, seed)


def pca_layout(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    """Project on the two directions of largest variance."""
    x = x - x.mean(0)
    _, axes = np.linalg.eigh(x.T.astype(np.float64) @ x)  # ascending: the last two are the largest
    xy = x @ axes[:, :-3:-1]
    return np.pad(xy, ((0, 0), (0, 2 - xy.shape[1]))).astype(np.float32)  # features of one dimension lie on a line


def tsne_layout(x: Float[np.ndarray, "n d"], start: Float[np.ndarray, "n 2"] | None, seed: int):
    """Run scikit-learn's t-SNE from `start`, else from PCA."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    # A layout that is nearly right needs fewer steps, and no exaggeration, which would pull it apart.
    steps = {} if start is None else {"max_iter": 300, "early_exaggeration": 1.5}
    init = scaled_to(pca_layout(x), 1e-4) if start is None else scaled_to(start, 10.0)
    model = TSNE(init=init, perplexity=min(30.0, (len(x) - 1) / 3), random_state=seed, **steps)
    with threadpool_limits(1):  # sums in one order: the same layout on any number of cores
        return model.fit_transform(x.astype(np.float32)).astype(np.float32)


def umap_layout(x: Float[np.ndarray, "n d"], start: Float[np.ndarray, "n 2"] | None, seed: int):
    """Run umap-learn from `start`, else from PCA; torch keeps its number of threads."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap's remarks on its own dependencies
        from umap import UMAP

        steps = {"n_epochs": 300 if start is None else 100, "n_neighbors": min(15, len(x) - 1)}
        init = scaled_to(pca_layout(x) if start is None else start, 4.0)
        try:
            return UMAP(init=init, random_state=seed, n_jobs=1, **steps).fit_transform(x).astype(np.float32)
        finally:
            torch.set_num_threads(threads)  # numba sets it for the whole process; a resumed training would differ


def scaled_to(xy: Float[np.ndarray, "n 2"], deviation: float) -> Float[np.ndarray, "n 2"]:
    """Scale `xy` to a standard deviation."""
    return (xy / max(float(xy.std()), 1e-12) * deviation).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ alignment


def normalised(xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Centre `xy` and scale it to a root mean square radius of 1."""
    xy = xy - xy.mean(0)
    return (xy / max(np.sqrt((xy**2).sum(1).mean()), 1e-12)).astype(np.float32)


def turned(xy: Float[np.ndarray, "n 2"], target: Float[np.ndarray, "n 2"] | None) -> Float[np.ndarray, "n 2"]:
    """Normalise `xy` and turn or mirror it as near to `target` (normalised) as it can be."""
    xy = normalised(xy)
    return xy if target is None else xy @ orthogonal_procrustes(xy, target)[0]


def aligned_layouts(
    features: Iterable[Float[np.ndarray, "n d"]],
    kind: str = "tsne",
    seed: int = 0,
    cached: Mapping[int, Float[np.ndarray, "n 2"]] | None = None,
) -> Iterator[tuple[int, Float[np.ndarray, "n 2"]]]:
    """Lay out the same n images in each of `features`, each started from the one before and turned to it.

    Yields the layouts, each under the checksum of all features so far, on which it depends; those `cached` are taken.
    """
    key, xy = 0, None
    for x in features:
        key = zlib.crc32(np.ascontiguousarray(x), key)
        xy = cached[key] if cached and key in cached else turned(layout(x, kind, seed, xy), xy)
        yield key, xy


# ------------------------------------------------------------------------------------------------------ layouts of runs


@dataclass(frozen=True)
class Layouts:
    """Places `xy` [s, m, 2] of the same images `index` [m] at the epochs [s]; each centred, of root mean square 1."""

    epoch: Int64[np.ndarray, " s"]
    index: Int64[np.ndarray, " m"]
    xy: Float[np.ndarray, "s m 2"]

    def at(self, epoch: int) -> Float[np.ndarray, "m 2"]:
        """Return the layout of the last epoch that is not later."""
        return self.xy[max(0, int(np.searchsorted(self.epoch, epoch, side="right")) - 1)]

    def turned_to(self, other: Layouts) -> Layouts:
        """Turn all layouts by the one rotation that brings their last nearest to the other run's last."""
        common, here, there = np.intersect1d(self.index, other.index, return_indices=True)
        if len(common) < 2:
            return self
        turn, _ = orthogonal_procrustes(normalised(self.xy[-1][here]), normalised(other.xy[-1][there]))
        return dataclasses.replace(self, xy=self.xy @ turn)


def snapshot_layouts(
    run: Run,
    kind: str = "tsne",
    points: int = 2000,
    progress: Callable[[int, int], None] = lambda done, of: None,
    wanted: Callable[[], bool] = lambda: True,
) -> Layouts:
    """Lay out every snapshot of a run (its centred features, as clustering sees them), at most `points` images.

    Cached in `layouts/epochs-<kind>.npz` in the run's folder: new snapshots are added, and a slim copy shows what is
    cached. `progress(done, all)` hears of each snapshot; `wanted()` False ends it after the one at hand. Raises
    RunError where the run keeps neither features nor layouts.
    """
    check_choice("kind", kind, LAYOUTS)
    path = run.path / "layouts" / f"epochs-{kind}.npz"
    old = load_optional_npz(path)
    index, snapshots = common_images(run, points)
    try:
        run.history.features(snapshots[0])
    except RunError:
        if not old:
            raise
        return Layouts(old["epoch"], old["index"], old["xy"])
    cached = dict(zip(old["source"].tolist(), old["xy"])) if old else {}
    film: dict[int, np.ndarray] = {}
    for key, xy in aligned_layouts((centred_features(run, t, index) for t in snapshots), kind, 0, cached):
        film[key] = xy
        progress(len(film), len(snapshots))
        if not wanted():
            break
    result = Layouts(run.history.epoch[snapshots[: len(film)]], index, np.stack(list(film.values())))
    if kind != "pca" and not film.keys() <= cached.keys():  # PCA takes no longer than reading it
        path.parent.mkdir(exist_ok=True)
        save_npz(path, epoch=result.epoch, index=index, xy=result.xy, source=np.array(list(film)))
    return result


def common_images(run: Run, points: int) -> tuple[Int64[np.ndarray, " m"], list[int]]:
    """Return images whose features every usable snapshot keeps (at most `points`, drawn once), and those snapshots."""
    kept = [run.history.feature_index(t) for t in range(len(run.history))]
    usable = [t for t, index in enumerate(kept) if len(index)]
    if not usable:
        raise RunError(f"{run.path} keeps no features (record.features): there is no embedding to show")
    return drawn_once(functools.reduce(np.intersect1d, [kept[t] for t in usable]), points), usable


def centred_features(run: Run, t: int, index: Int64[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
    """Read the features of some images at snapshot t, as clustering sees them."""
    x = run.history.features(t)[np.searchsorted(run.history.feature_index(t), index)]
    return centred(torch.from_numpy(x)).numpy()


def drawn_once(index: Int64[np.ndarray, " n"], points: int) -> Int64[np.ndarray, " m"]:
    """Draw at most `points` of the images, always the same, in their order."""
    return np.sort(np.random.default_rng(0).permutation(index)[:points])


def run_layout(
    run: Run, kind: str = "tsne", points: int = 3000
) -> tuple[Float[np.ndarray, "m 2"], Int64[np.ndarray, " m"], str]:
    """Lay out a run's test features, or the training images' where there are none, from a cache in its folder.

    Returns xy [m, 2], classes [m] (-1 without labels), and "test" or "training". At most `points` images, drawn once.
    Cached in `layouts/<kind>.npz`, made again when the features have changed; a slim copy has no features and uses
    what is cached. Raises RunError where there is neither.
    """
    check_choice("kind", kind, LAYOUTS)
    path = run.path / "layouts" / f"{kind}.npz"
    cached = load_optional_npz(path)
    try:
        features, labels, what = last_features(run)
    except RunError as error:
        if not cached:
            raise RunError(f"{run.path} keeps no features: evaluate it (tase evaluate {run.path})") from error
        return cached["xy"], cached["labels"], str(cached["what"])
    source = zlib.crc32(features.tobytes(), points)
    if not cached or int(cached["source"]) != source:
        pick = drawn_once(np.arange(len(features)), points)
        xy = layout(features[pick], kind)
        cached = {"xy": xy, "labels": labels[pick], "what": np.array(what), "source": np.array(source)}
        path.parent.mkdir(exist_ok=True)
        save_npz(path, **cached)
    return cached["xy"], cached["labels"], what


def last_features(run: Run) -> tuple[Float[np.ndarray, "n d"], Int64[np.ndarray, " n"], str]:
    """Read the test features, else those of all training images, and their classes (-1 without labels)."""
    if run.test_features is not None:
        return *run.test_features, "test"
    features, labels = run.features(), run.history.labels
    return features, np.full(len(features), -1) if labels is None else labels, "training"
