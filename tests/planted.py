"""A run's folder made up without training, of any size: to test widgets, and to measure them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import tase
from tase.data import ImageSet, Splits
from tase.files import save_json, save_npz
from tase.runs import Run


def planted_run(folder: Path, n: int, clusters: int = 100, classes: int = 10, kept: int = 2000) -> Run:
    """A run's folder with one snapshot of n made-up samples of long-tailed classes, to measure and test widgets."""
    rng = np.random.default_rng(0)
    share = 0.6 ** np.arange(classes)
    labels = np.sort(rng.choice(classes, n, p=share / share.sum()))
    labels[:classes] = np.arange(classes)
    cluster = np.minimum((labels + rng.random(n)) * clusters / classes, clusters - 1).astype(np.int64)
    sizes = np.bincount(cluster, minlength=clusters).astype(np.float32)
    headness = (np.log(np.maximum(sizes, 1))[cluster] + 0.1 * rng.standard_normal(n)).astype(np.float32)
    counts = np.bincount(labels, minlength=classes)
    groups = np.repeat([0, 1, 2], [classes - 2 * (classes // 3), classes // 3, classes // 3])
    (folder / "history").mkdir(parents=True)
    config = tase.preset("digits-lt")
    save_json(folder / "config.json", {"format": 1, "identity": config.identity, "config": config.to_dict()})
    names = np.array([str(c) for c in range(classes)])
    save_npz(folder / "history" / "labels.npz", labels=labels, counts=counts, groups=groups, classes=names)
    index = np.sort(rng.permutation(n)[:kept])
    centres = rng.standard_normal((clusters, 64))
    features = (centres[cluster[index]] + 0.5 * rng.standard_normal((len(index), 64))).astype(np.float16)
    arrays = {"tau": np.full(n, 0.2, np.float32), "weight": np.ones(n, np.float32), "loss": np.ones(n, np.float32)}
    arrays |= {"pseudo_label": cluster.astype(np.int32), "headness": headness, "cluster_sizes": sizes}
    arrays |= {"feature_index": index, "features": features, "quality": np.array("{}"), "epoch": np.array(0)}
    save_npz(folder / "history" / "epoch_000000.npz", **arrays)
    run = Run(folder)
    images = torch.from_numpy(rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8))
    run.__dict__["splits"] = Splits(
        ImageSet(images, torch.from_numpy(labels), tuple(names.tolist()), torch.from_numpy(counts), name="made up")
    )
    return run
