"""How far can a run's headness be trusted, without labels? What independent clusterings share, held against a level.

    walk_im = log perplexity, in samples, of a walk over the clusters of clustering m that overlap; m = 1..M
    c       = mean_{m < l} cov_i(walk_im, walk_il)          variance that the clusterings share, in squared log units
    s       = clip((c - C0) / (C1 - C0), 0, 1)              trust: C0 is what balanced data reach, C1 a clear tail
    tau_i   = tau_0 (tau_i / tau_0)^s,   w_i = w_i^s        with guidance.trust; s = 0 is SimCLR (`shrunken`)

The clusterings differ in their start and in the random half of the dimensions that they see. That they agree is not
enough: they also agree on how crowded a neighbourhood is. C0 and C1 were set on digits-lt, seeds 0 to 5, balanced and
long-tailed (figures/README.md has what they are worth on other data); features of fewer than 32 dimensions can pass
them by chance. Two classes of 40 that look alike and one of 80 have the same features: no number without labels can
tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .clustering import directions, spherical_kmeans
from .pseudo_labels import Quantity, highest_temperature, responsibilities

CLUSTERINGS = 4
MOST_CLUSTERS = 40  # fixed, as the level of c grows with the number of clusters
BALANCED_LEVEL, TAIL_LEVEL = 0.20, 0.25  # C0: 95th percentile on balanced digits; C1: median on long-tailed ones


class Trust(NamedTuple):
    """What independent clusterings say about quantity."""

    trust: float  # s
    shared: float  # c
    agreement: float  # mean correlation of two clusterings
    quantity: Quantity  # mean headness [n] of the clusterings, and the log sizes of all of them


def walk_log_sizes(p: Float[Tensor, "n k"], steps: int = 2) -> Float[Tensor, "n"]:
    """Return the log perplexity, in samples, of where a walk from each sample over overlapping clusters ends.

    A large class is many clusters linked by the samples that they share, P'P, and the walk gets about in it; unlike
    single linkage it does not chain through one weak link.
    """
    sizes, overlap = p.sum(0), p.T @ p
    reached = p @ torch.matrix_power(overlap / overlap.sum(1, keepdim=True), steps)  # [n, k]
    return -(reached * (reached.clamp_min(1e-300) / sizes.clamp_min(1e-9)).log()).sum(1)


@torch.no_grad()
def feature_trust(
    features: Float[Tensor, "n d"],
    rng: torch.Generator,
    space: str = "auto",
    estimate: Callable[..., Quantity] | None = None,
    clusterings: int = CLUSTERINGS,
) -> Trust:
    """Estimate from features how far independent clusterings see more of some looks than balanced data usually show.

    Headness is that of `estimate(h, p, centres)`, an entry of ESTIMATORS (None: the walk's), averaged over clusterings.
    Raises ValueError for values that are not finite.
    """
    h = directions(features, space)
    n, d = h.shape
    k = max(1, min(MOST_CLUSTERS, n // 10))
    walks, found = [], []
    for _ in range(clusterings):
        half = torch.randperm(d, generator=rng, device=rng.device)[: max(1, d // 2)].to(h.device)
        own = F.normalize(h[:, half], dim=1)
        _, centres = spherical_kmeans(own, k, restarts=1, generator=rng, moves=0)
        p = responsibilities(own, centres, 0.8, highest_temperature(centres))
        walks.append(walk_log_sizes(p.double()))
        found.append(estimate(own, p, centres) if estimate else Quantity(walks[-1], None))
    each = torch.stack(walks)  # [M, n]
    covariance = torch.cov(each).cpu()  # M x M
    first, second = torch.triu_indices(len(each), len(each), 1)
    scale = covariance.diagonal().clamp_min(1e-12).sqrt()
    shared = covariance[first, second].mean().item()
    agreement = (covariance / (scale[:, None] * scale))[first, second].mean().item()
    trust = min(1.0, max(0.0, (shared - BALANCED_LEVEL) / (TAIL_LEVEL - BALANCED_LEVEL)))
    sizes = [quantity.log_sizes for quantity in found if quantity.log_sizes is not None]
    mean = Quantity(torch.stack([quantity.a for quantity in found]).mean(0), torch.cat(sizes) if sizes else None)
    return Trust(trust, shared, agreement, mean)


def trust_words(trust: float, last: float) -> str:
    """Return the plain sentence for a run's trust s at the end of the warm-up and at its last snapshot."""
    if trust == 0:
        return (
            "clusters show no more of one look than balanced data usually do: no imbalance is seen. Treat this ranking "
            "as unknown, and check it with labels (--labels)"
        )
    if last == 0:
        return (
            "clusters showed more of some looks than balanced data usually do when the warm-up ended, but not at the "
            "last snapshot. Treat this ranking as unknown, and check it with labels (--labels)"
        )
    strength = "clearly" if trust == 1 else "somewhat"
    return (
        f"some looks are {strength} more common here than balanced data usually show; whether a look is a class of "
        "yours, only labels can tell (--labels)"
    )
