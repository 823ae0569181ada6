"""How far can a run's headness be trusted, without labels? What independent clusterings share, held against a level.

    walk_im = log perplexity, in samples, of a walk over the clusters of clustering m that overlap; m = 1..M
    c       = mean_{m < l} cov_i(walk_im, walk_il)          variance that the clusterings share, in squared log units
    s       = clip((c - C0) / (C1 - C0), 0, 1)              trust: C0 is what balanced data reach, C1 a clear tail

The clusterings differ in their start and in the random half of the dimensions that they see. That they agree is not
enough: they also agree on how crowded a neighbourhood is. C0 and C1 were set on digits-lt, seeds 0 to 5, balanced and
long-tailed (figures/README.md has what they are worth on other data). Two classes of 40 that look alike and one of 80
have the same features: no number without labels can tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .pseudo_labels import WARMEST, directions, responsibilities, spherical_kmeans
from .streams import generator

if TYPE_CHECKING:
    from .runs import Run

CLUSTERINGS = 4
MOST_CLUSTERS = 40  # fixed, as the level of c grows with the number of clusters
BALANCED_LEVEL, TAIL_LEVEL = 0.20, 0.25  # C0: 95th percentile on balanced digits; C1: median on long-tailed ones


class Trust(NamedTuple):
    """What independent clusterings say about quantity."""

    trust: float  # s
    shared: float  # c
    agreement: float  # mean correlation of two clusterings
    headness: Tensor  # [n] their mean, on the scale of a log number of samples


def walk_log_sizes(p: Float[Tensor, "n k"], steps: int = 2) -> Float[Tensor, "n"]:
    """Return the log perplexity, in samples, of where a walk from each sample over overlapping clusters ends.

    A large class is many clusters linked by the samples that they share, P'P, and the walk gets about in it; unlike
    single linkage it does not chain through one weak link.
    """
    sizes, overlap = p.sum(0), p.T @ p
    reached = p @ torch.matrix_power(overlap / overlap.sum(1, keepdim=True), steps)  # [n, k]
    return -(reached * (reached.clamp_min(1e-300) / sizes.clamp_min(1e-9)).log()).sum(1)


@torch.no_grad()
def feature_trust(features: Float[Tensor, "n d"], rng: torch.Generator, space: str = "auto") -> Trust:
    """Estimate from features how far independent clusterings see more of some looks than balanced data usually show.

    Raises ValueError for values that are not finite.
    """
    h = directions(features, space)
    n, d = h.shape
    k = max(1, min(MOST_CLUSTERS, n // 10))
    walks = []
    for _ in range(CLUSTERINGS):
        half = torch.randperm(d, generator=rng)[: max(1, d // 2)].to(h.device)
        own = F.normalize(h[:, half], dim=1)
        _, centres = spherical_kmeans(own, k, restarts=1, generator=rng, moves=0)
        apart = (1 - centres @ centres.T).sum().item() / max(1, k * (k - 1))
        p = responsibilities(own, centres, 0.8, max(1e-6, WARMEST * apart)).double()
        walks.append(walk_log_sizes(p))
    each = torch.stack(walks)  # [M, n]
    covariance = torch.cov(each)
    first, second = torch.triu_indices(len(each), len(each), 1)
    scale = covariance.diagonal().clamp_min(1e-12).sqrt()
    shared = covariance[first, second].mean().item()
    agreement = (covariance / (scale[:, None] * scale))[first, second].mean().item()
    trust = min(1.0, max(0.0, (shared - BALANCED_LEVEL) / (TAIL_LEVEL - BALANCED_LEVEL)))
    return Trust(trust, shared, agreement, each.mean(0))


def run_trust(run: Run, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Say how far to believe a run's ranking of its images, from common to rare.

    Without `labels`: trust s, shared variance c, agreement, and what they mean in words. With them (file name or number
    of an image -> class, of 50 to 200 images drawn at random) also the rank correlation of the run's headness with how
    often a class occurs among them, its 95 % interval (bootstrap over images), and advice. Raises RunError for a run
    without features, ValueError for labels of fewer than 20 of its images.
    """
    t = len(run.history) - 1
    features = torch.from_numpy(run.history.features(t))
    found = feature_trust(features, generator(run.config.seed, "trust"), run.config.guidance.space)
    facts = {"trust": round(found.trust, 3), "shared": round(found.shared, 3), "agreement": round(found.agreement, 3)}
    facts["verdict"] = _verdict(found.trust)
    return facts if labels is None else {**facts, **_with_labels(run.history.headness[t], _classes(run, labels))}


def _verdict(trust: float) -> str:
    if trust == 0:
        return (
            "clusters show no more of one look than balanced data usually do: treat this ranking as unknown, and "
            "check it with labels (--labels)"
        )
    strength = "clearly" if trust == 1 else "somewhat"
    return (
        f"some looks are {strength} more common here than balanced data usually show; whether a look is a class of "
        "yours, only labels can tell (--labels)"
    )


def _classes(run: Run, labels: Mapping[str, str]) -> dict[int, str]:
    """Class by number of the image, from names or numbers of images."""
    paths = getattr(run.images, "paths", None) or []
    numbers = {str(path): i for i, path in enumerate(paths)}
    numbers |= {str(path).rpartition("/")[2]: i for i, path in enumerate(paths)}
    n = run.history.headness.shape[1]
    numbers |= {str(i): i for i in range(n)}
    known = {numbers[name]: label for name, label in labels.items() if name in numbers}
    if len(known) < 20:
        raise ValueError(f"labels of {len(known)} of the run's {n} images: 50 to 200 are needed to say anything")
    return known


def _with_labels(headness: Float[np.ndarray, " n"], classes: Mapping[int, str]) -> dict[str, Any]:
    from scipy.stats import spearmanr

    index = np.array(list(classes))
    _, inverse, counts = np.unique(list(classes.values()), return_inverse=True, return_counts=True)
    a, size = headness[index], counts[inverse]
    rng, m = np.random.default_rng(0), len(index)
    with np.errstate(invalid="ignore"):
        draws = [spearmanr(a[i], size[i]).statistic for i in rng.integers(m, size=(1000, m))]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    advice = (
        "headness follows the class sizes: its ranking can be used"
        if low > 0.2
        else "headness runs against the class sizes: do not use its ranking, nor TASE with these clusters"
        if high < 0
        else "headness does not surely follow the class sizes: do not rely on its ranking"
    )
    correlation = float(spearmanr(a, size).statistic)
    return {"labelled": m, "correlation": correlation, "interval": [float(low), float(high)], "advice": advice}
