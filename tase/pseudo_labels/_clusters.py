"""Clusters of unit features, how sure each assignment is, and their names over the refreshes: equation (3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ..config import check
from ..distributed import gather, share, total

# Elements of a block of rows: large enough for matrix products to be fast, small enough to stay near the processor.
BLOCK = 2**20
# k-means stops when no more than this share of the labels changes: none, of fewer than 10,000.
SETTLED = 1e-4


def rows_of(columns: int) -> int:
    return max(1, BLOCK // max(1, columns))


def centred(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Features with their mean removed, each then of unit length (0 for a sample at the mean); float32 at least.

    Raises ValueError for values that are not finite.
    """
    x = features.to(torch.promote_types(features.dtype, torch.float32))
    h = x - x.mean(0)
    length = torch.linalg.vector_norm(h, dim=1, keepdim=True)
    if not torch.isfinite(length.sum()):
        raise ValueError("features must be finite: some are NaN or infinite")
    # Differences to the mean that are rounding errors would otherwise become directions.
    noise = 1e-5 * torch.linalg.vector_norm(x, dim=1).max()
    return h.div_(length.clamp_min(1e-30)).mul_(length > noise)


def directions(features: Float[Tensor, "n d"], space: str = "auto") -> Float[Tensor, "n d"]:
    """Features as unit vectors: `centred`, `sqrt` (the root of each, its sign kept), `plain`, or `auto`.

    `auto` is the root where no feature is negative, as after a ReLU, else centred. The root damps the few channels that
    dominate such features; the cosine is then Bhattacharyya's coefficient. Raises ValueError for values that are not
    finite.
    """
    x = features.to(torch.promote_types(features.dtype, torch.float32))
    low = x.min()
    if space == "centred" or (space == "auto" and low < 0):
        return centred(x)
    if not torch.isfinite(low + x.max()):
        raise ValueError("features must be finite: some are NaN or infinite")
    return F.normalize(x if space == "plain" else x.sign() * x.abs().sqrt(), dim=1)


@torch.no_grad()
def spherical_kmeans(
    features: Float[Tensor, "n d"],
    clusters: int,
    centres: Float[Tensor, "k d"] | None = None,
    restarts: int = 3,
    iterations: int = 50,
    generator: torch.Generator | None = None,
    moves: int = 20,
) -> tuple[Int64[Tensor, "n"], Float[Tensor, "k d"]]:
    """Clusters of directions: k-means under cosine similarity with k-means++ seeding (Dhillon & Modha 2001).

    Only the direction of a row counts; the centres are of unit length. Starts from `centres`, or is seeded `restarts`
    times and keeps the best. An empty cluster takes the sample farthest from its centre. Stops when not one in 10,000
    changes its cluster, then moves single centres to where they serve better, `moves` times at most (0: Lloyd's
    algorithm alone, two to seven times as fast, a little worse). Several processes share the samples: each gives all of
    them and works on its part, sums are summed over all. Draws from `generator`, on any device (None: a fixed one).
    Raises ConfigError if there are more clusters than rows.
    """
    check(
        1 <= clusters <= len(features),
        "guidance.clusters",
        clusters,
        f"from 1 to the number of images, {len(features)}",
    )
    h = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
    starts = (
        _seed(h, clusters, restarts, generator or torch.Generator().manual_seed(0))
        if centres is None
        else centres[None]
    )
    starts = (F.normalize(start.to(h), dim=1) for start in starts)
    best = max((_lloyd(h, _first(h, start), iterations) for start in starts), key=lambda found: found.total)
    for _ in range(moves if clusters > 1 else 0):
        trials = (_lloyd(h, start, iterations) for start in _moves(h, best))
        better = next((trial for trial in trials if trial.total > best.total * (1 + 1e-5)), None)
        if better is None:
            break
        best = better
    return gather(best.labels, len(h)), best.centres


def _seed(h: Float[Tensor, "n d"], k: int, restarts: int, generator: torch.Generator) -> Float[Tensor, "r k d"]:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007) for all restarts at once, by the distance 1 - cosine.

    Of a few candidates the one that brings all samples nearest is taken: else a small cluster is easily missed.
    """
    run, tries, own = torch.arange(restarts, device=h.device), 5 + int(math.log(k)), h[share(len(h))]
    draws = torch.rand(k, restarts, tries, dtype=torch.float64, generator=generator, device=generator.device).to(
        h.device
    )
    index = [(draws[0, :, 0] * len(h)).long()]
    distance = (1 - own @ h[index[0]].T).clamp_min_(0)
    for draw in draws[1:]:
        mass = gather(distance, len(h)).T.double().cumsum(1)
        drawn = torch.searchsorted(mass, draw * mass[:, -1:], right=True).clamp_max_(len(h) - 1)
        nearer = (1 - own @ h[drawn.flatten()].T).clamp_min_(0).unflatten(1, (restarts, tries))
        nearer = torch.minimum(nearer, distance[:, :, None])
        best = total(nearer.sum(0)).argmin(1)
        distance = nearer[:, run, best]
        index.append(drawn[run, best])
    return h[torch.stack(index, dim=1)]


class _Clusters(NamedTuple):
    """One state of the clustering; r: this process's share of the n samples."""

    labels: Tensor  # [r] the nearest centre
    similarity: Tensor  # [r] cosine to it
    near: Tensor  # [r, k] cosine of each sample to each centre
    centres: Tensor  # [k, d]
    members: Tensor  # [r] the cluster in whose sum the sample is
    sums: Tensor  # [k, d] float64, of all processes
    total: float = 0.0  # sum of all samples' similarities


def _first(h: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> _Clusters:
    """All samples assigned to the given centres, which then move to the means."""
    own = h[share(len(h))]
    near = own.new_empty(len(own), len(centres))
    members = _filled(*_nearest(own, centres, near), len(centres), len(h))
    sums = total(torch.zeros_like(centres).index_add_(0, members, own))
    centres = F.normalize(sums, dim=1)
    return _Clusters(*_nearest(own, centres, near), near, centres, members, sums.double())


def _nearest(
    own: Float[Tensor, "r d"], centres: Float[Tensor, "k d"], near: Float[Tensor, "r k"], touched: Tensor | None = None
) -> tuple[Int64[Tensor, "r"], Float[Tensor, "r"]]:
    """The nearest centre of each row and the cosine to it; `near` gets the cosines to the centres `touched` (all).

    In blocks of rows: what was just multiplied is still near the processor when its maximum is sought.
    """
    some = touched is not None and 2 * len(touched) < len(centres)
    few = centres[touched] if some else centres
    found = []
    for rows, cosines in zip(*(x.split(len(x) if x.is_cuda else rows_of(own.shape[1])) for x in (own, near))):
        if some:
            cosines.index_copy_(1, touched, rows @ few.T)
        else:
            torch.mm(rows, few.T, out=cosines)
        found.append(cosines.max(1))
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found])


def _lloyd(h: Float[Tensor, "n d"], found: _Clusters, iterations: int) -> _Clusters:
    """Average and assign until no more labels change than the share `SETTLED` of them.

    Only what changed is computed again: the sums of the clusters that samples left or joined, and the cosines to them.
    Writes into `near` and `centres` of what it is given.
    """
    own, k = h[share(len(h))], len(found.centres)
    labels, similarity, near, centres, members, sums, _ = found._replace(sums=found.sums.clone())
    for _ in range(iterations):
        now = _filled(labels, similarity, k, len(h))
        moved = (now != members).nonzero()[:, 0]
        left, joined, rows = members[moved], now[moved], own[moved]
        crossed = total(torch.cat([left, joined]).bincount(minlength=k))
        if int(crossed.sum()) <= 2 * SETTLED * len(h):
            break
        sums += total(torch.zeros_like(centres).index_add_(0, joined, rows).index_add_(0, left, rows, alpha=-1))
        members, touched = now, crossed.nonzero()[:, 0]
        centres[touched] = F.normalize(sums[touched], dim=1).to(h)
        labels, similarity = _nearest(own, centres, near, touched)
    reached = total(similarity.sum(dtype=torch.float64)).item()
    return _Clusters(labels, similarity, near, centres, members, sums, reached)


def _filled(labels: Int64[Tensor, "r"], similarity: Float[Tensor, "r"], k: int, n: int) -> Int64[Tensor, "r"]:
    """The labels, but empty clusters get the samples, of all n, least like their own centre."""
    empty = (total(labels.bincount(minlength=k)) == 0).nonzero()[:, 0]
    if len(empty) == 0:
        return labels
    worst = gather(similarity, n).topk(len(empty), largest=False).indices
    return gather(labels, n).scatter(0, worst, empty)[share(n)]


def _moves(h: Float[Tensor, "n d"], found: _Clusters, tries: int = 3) -> Iterator[_Clusters]:
    """The clusters with the centre that is missed least put on a far sample: each of those farthest in their clusters.

    Lloyd's algorithm cannot do that: a large class cut in two, a small one lost in a neighbour, would stay so.
    """
    labels, similarity, near, centres = found[:4]
    second = near.scatter(1, labels[:, None], -2.0).amax(1)
    missed = total(h.new_zeros(len(centres)).index_add_(0, labels, similarity - second)).argmin()
    labels, similarity = gather(labels, len(h)), gather(similarity, len(h))
    lowest = h.new_ones(len(centres)).scatter_reduce_(0, labels, similarity, "amin")
    for cluster in lowest.argsort()[:tries]:
        moved = h[similarity.masked_fill(labels != cluster, 2.0).argmin()]
        now = near.index_copy(1, missed[None], (h[share(len(h))] @ moved)[:, None])
        best = now.max(1)
        there = centres.index_copy(0, missed[None], moved[None])
        yield found._replace(labels=best.indices, similarity=best.values, near=now, centres=there)


def mean_directions(h: Float[Tensor, "n d"], labels: Int64[Tensor, "n"], k: int) -> Float[Tensor, "k d"]:
    """Mean directions of the clusters; 0 for an empty one."""
    return F.normalize(h.new_zeros(k, h.shape[1]).index_add_(0, labels, h), dim=1)


def responsibilities(
    h: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], confidence: float = 0.8, warmest: float = 1e3
) -> Float[Tensor, "n k"]:
    """p_ik of equation (3): a softmax over the centres whose temperature gives the mean of max_k p_ik = `confidence`.

    1 is the hard assignment. A confidence that no temperature up to `warmest` gives is met as nearly as possible.
    """
    gap = h @ centres.T
    if confidence >= 1:
        return F.one_hot(gap.argmax(1), len(centres)).to(gap.dtype)
    gap -= gap.amax(1, keepdim=True)
    low, high = math.log(min(1e-4, 1e-3 * warmest)), math.log(warmest)
    for _ in range(30):  # the mean of the largest p falls with the temperature
        middle = (low + high) / 2
        if _mean_largest(gap, math.exp(middle)) > confidence:
            low = middle
        else:
            high = middle
    p = gap.div_(math.exp((low + high) / 2)).exp_()
    return p.div_(p.sum(1, keepdim=True))


def _mean_largest(gap: Float[Tensor, "n k"], temperature: float) -> float:
    """Mean over rows of the largest entry of softmax(gap / temperature), the largest gap of a row being 0."""
    parts = gap.split(rows_of(gap.shape[1]))
    return sum((part / temperature).exp_().sum(1).reciprocal_().sum() for part in parts).item() / len(gap)


def aligned(before: Int64[Tensor, "n"], now: Int64[Tensor, "n"], k: int) -> Int64[Tensor, "k"]:
    """New names for the clusters `now`, so that as many samples as possible keep theirs (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    overlap = (now * k + before).bincount(minlength=k * k).reshape(k, k)
    return torch.from_numpy(linear_sum_assignment(overlap.cpu().numpy(), maximize=True)[1]).to(now.device)
