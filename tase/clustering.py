"""Clusters of features: directions, and k-means of unit vectors under cosine similarity.

labels, centres = spherical_kmeans(directions(features), clusters=100)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from .config import check

# Elements of a block of rows: large enough for matrix products to be fast, small enough for a processor's cache.
BLOCK = 2**20
# k-means stops when no more than this share of the labels changes: none, of fewer than 10,000.
SETTLED = 1e-4


def rows_of(columns: int) -> int:
    """Return how many rows of so many columns make a block."""
    return max(1, BLOCK // max(1, columns))


# --- directions -------------------------------------------------------------------------------------------------------


def centred(features: Float[Tensor, "n d"], mean: Float[Tensor, "d"] | None = None) -> Float[Tensor, "n d"]:
    """Remove the mean (by default: theirs), then scale each to unit length (0 for a sample at it); float32 at least.

    Raises ValueError for values that are not finite.
    """
    x = features.to(torch.promote_types(features.dtype, torch.float32))
    h = x - (x.mean(0) if mean is None else mean)
    length = torch.linalg.vector_norm(h, dim=1, keepdim=True)
    if not torch.isfinite(length.sum()):
        raise ValueError("features must be finite: some are NaN or infinite")
    # Differences to the mean that are rounding errors would otherwise become directions.
    noise = 1e-5 * torch.linalg.vector_norm(x, dim=1).max()
    return h.div_(length.clamp_min(1e-30)).mul_(length > noise)


def directions(features: Float[Tensor, "n d"], space: str = "auto") -> Float[Tensor, "n d"]:
    """Turn features into unit vectors: `centred`, `sqrt` (the root of each, its sign kept), `plain`, or `auto`.

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


def directions_as_of(sample: Float[Tensor, "m d"], space: str) -> Callable[[Tensor], Tensor]:
    """Return the function that makes `directions` of any rows as the sample decides: its signs, its mean."""
    if space == "centred" or (space == "auto" and sample.min() < 0):
        mean = sample.float().mean(0)
        return lambda rows: centred(rows, mean)
    return lambda rows: directions(rows, "plain" if space == "plain" else "sqrt")


def mean_directions(h: Float[Tensor, "n d"], labels: Int64[Tensor, "n"], k: int) -> Float[Tensor, "k d"]:
    """Return the clusters' mean directions; 0 for an empty one."""
    return F.normalize(h.new_zeros(k, h.shape[1]).index_add_(0, labels, h), dim=1)


# --- k-means ----------------------------------------------------------------------------------------------------------


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
    """Cluster directions: k-means under cosine similarity with k-means++ seeding (Dhillon & Modha 2001).

    Only the direction of a row counts; the centres are of unit length. Starts from `centres`, or is seeded `restarts`
    times and keeps the best. An empty cluster takes the sample farthest from its centre. Stops when not one in 10,000
    changes its cluster, then moves single centres to where they serve better, `moves` times at most (0: Lloyd's
    algorithm alone, two to seven times as fast, a little worse). Draws from `generator`, on any device (None: a fixed
    one). Raises ConfigError if there are more clusters than rows.
    """
    n = len(features)
    check(1 <= clusters <= n, "guidance.clusters", clusters, f"from 1 to the number of images, {n}")
    h = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
    if centres is None:
        starts = _seeds(h, clusters, restarts, generator or torch.Generator().manual_seed(0))  # [restarts, k, d]
    else:
        starts = centres[None]
    found = (_lloyd(h, _assigned(h, F.normalize(start.to(h), dim=1)), iterations) for start in starts)
    best = max(found, key=lambda each: each.total)
    for _ in range(moves if clusters > 1 else 0):
        trials = (_lloyd(h, moved, iterations) for moved in _moved_centres(h, best))
        better = next((trial for trial in trials if trial.total > best.total * (1 + 1e-5)), None)
        if better is None:
            break
        best = better
    return best.labels, best.centres


def _seeds(h: Float[Tensor, "n d"], k: int, restarts: int, generator: torch.Generator) -> Float[Tensor, "r k d"]:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007) for all restarts together, by the distance 1 - cosine.

    Of a few candidates the one that brings all samples nearest is taken: else a small cluster is easily missed.
    """
    n, tries = len(h), 5 + int(math.log(k))
    draws = torch.rand(k, restarts, tries, dtype=torch.float64, generator=generator, device=generator.device)
    draws = draws.to(h.device)
    index = torch.empty(k, restarts, dtype=torch.int64, device=h.device)
    index[0] = (draws[0, :, 0] * n).long()
    distance = (1 - h @ h[index[0]].T).clamp_min_(0)  # to the nearest centre so far, [n, r]
    # Made once: a hundred times as many, with small tensors in between, would leave holes of 0.2 GiB in the heap.
    mass, nearer = draws.new_empty(restarts, n), h.new_empty(n, restarts, tries)
    for i, draw in enumerate(draws[1:], 1):
        # Candidates with a probability that is proportional to their distance: inversion of its cumulative sum.
        mass.copy_(distance.T).cumsum_(1)
        drawn = torch.searchsorted(mass, draw * mass[:, -1:], right=True).clamp_max_(n - 1)  # [r, tries]
        torch.mm(h, h[drawn.flatten()].T, out=nearer.flatten(1))
        torch.minimum(nearer.neg_().add_(1).clamp_min_(0), distance[:, :, None], out=nearer)
        best = nearer.sum(0).argmin(1)
        torch.gather(nearer, 2, best[None, :, None].expand(n, -1, 1), out=distance[:, :, None])
        index[i] = drawn.gather(1, best[:, None])[:, 0]
    return h[index.T]


class _Clustering(NamedTuple):
    """A state of Lloyd's algorithm."""

    labels: Tensor  # [n] the nearest centre
    similarity: Tensor  # [n] cosine to it
    near: Tensor  # [n, k] cosine of each sample to each centre
    centres: Tensor  # [k, d]
    members: Tensor  # [n] the cluster in whose sum the sample is
    sums: Tensor  # [k, d] float64
    total: float = 0.0  # sum of the samples' similarities


def _assigned(h: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> _Clustering:
    """Assign all samples to the given centres, which then move to the means."""
    near = h.new_empty(len(h), len(centres))
    members = _without_empty(*_nearest(h, centres, near), len(centres))
    sums = torch.zeros_like(centres).index_add_(0, members, h)
    centres = F.normalize(sums, dim=1)
    return _Clustering(*_nearest(h, centres, near), near, centres, members, sums.double())


def _nearest(
    h: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], near: Float[Tensor, "n k"], touched: Tensor | None = None
) -> tuple[Int64[Tensor, "n"], Float[Tensor, "n"]]:
    """Find the nearest centre of each row and the cosine to it; write the cosines to the centres `touched` (all).

    In blocks of rows: what was just multiplied is still in the cache when its maximum is sought.
    """
    some = touched is not None and 2 * len(touched) < len(centres)
    few = centres[touched] if some else centres
    found = []
    for rows, cosines in zip(*(x.split(len(x) if x.is_cuda else rows_of(h.shape[1])) for x in (h, near))):
        if some:
            cosines.index_copy_(1, touched, rows @ few.T)
        else:
            torch.mm(rows, few.T, out=cosines)
        found.append(cosines.max(1))
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found])


def _lloyd(h: Float[Tensor, "n d"], found: _Clustering, iterations: int) -> _Clustering:
    """Average and assign until no more labels change than the share `SETTLED` of them.

    Only what changed is computed again: the sums of the clusters that samples left or joined, and the cosines to them.
    Writes into `near` and `centres` of what it is given.
    """
    k = len(found.centres)
    labels, similarity, near, centres, members, sums, _ = found._replace(sums=found.sums.clone())
    for _ in range(iterations):
        now = _without_empty(labels, similarity, k)
        moved = (now != members).nonzero()[:, 0]
        left, joined, rows = members[moved], now[moved], h[moved]
        if len(moved) <= SETTLED * len(h):
            break
        # Summed apart in float32, then added in float64: errors do not grow with the number of rounds.
        sums += torch.zeros_like(centres).index_add_(0, joined, rows).index_add_(0, left, rows, alpha=-1)
        members, touched = now, torch.cat([left, joined]).unique()
        centres[touched] = F.normalize(sums[touched], dim=1).to(h)
        labels, similarity = _nearest(h, centres, near, touched)
    reached = similarity.sum(dtype=torch.float64).item()
    return _Clustering(labels, similarity, near, centres, members, sums, reached)


def _without_empty(labels: Int64[Tensor, "n"], similarity: Float[Tensor, "n"], k: int) -> Int64[Tensor, "n"]:
    """Return the labels, but give each empty cluster the sample that is least like its own centre."""
    empty = (labels.bincount(minlength=k) == 0).nonzero()[:, 0]
    if len(empty) == 0:
        return labels
    return labels.scatter(0, similarity.topk(len(empty), largest=False).indices, empty)


def _moved_centres(h: Float[Tensor, "n d"], found: _Clustering, tries: int = 3) -> Iterator[_Clustering]:
    """Put the centre that is missed least on a far sample: on each of those farthest in their clusters, in turn.

    Lloyd's algorithm cannot do that: a large class cut in two, a small one lost in a neighbour, would stay so.
    """
    labels, similarity, near, centres = found[:4]
    second = near.scatter(1, labels[:, None], -2.0).amax(1)  # cosine to the centre that would take its place
    missed = h.new_zeros(len(centres)).index_add_(0, labels, similarity - second).argmin()
    lowest = h.new_ones(len(centres)).scatter_reduce_(0, labels, similarity, "amin")
    for cluster in lowest.argsort()[:tries]:
        moved = h[similarity.masked_fill(labels != cluster, 2.0).argmin()]  # [d]
        now = near.index_copy(1, missed[None], (h @ moved)[:, None])
        best = now.max(1)
        there = centres.index_copy(0, missed[None], moved[None])
        yield found._replace(labels=best.indices, similarity=best.values, near=now, centres=there)


def aligned(before: Int64[Tensor, "n"], now: Int64[Tensor, "n"], k: int) -> Int64[Tensor, "k"]:
    """Rename the clusters `now`, so that as many samples as possible keep their label (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    overlap = (now * k + before).bincount(minlength=k * k).reshape(k, k)
    return torch.from_numpy(linear_sum_assignment(overlap.cpu().numpy(), maximize=True)[1]).to(now.device)
