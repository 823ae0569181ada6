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

# Elements of a block of rows: large enough for matrix products to be fast, small enough to stay near the processor.
BLOCK = 2**20


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
    times and keeps the best. An empty cluster takes the sample farthest from its centre. Stops when no assignment
    changes, then moves single centres to where they serve better, `moves` times at most (0: Lloyd's algorithm alone,
    about ten times as fast, a little worse). Draws from `generator`, on any device (None: a fixed one). Raises
    ConfigError if there are more clusters than rows.
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
    results = [_lloyd(h, F.normalize(start.to(h), dim=1), iterations) for start in starts]
    best = max(results, key=_total)
    for _ in range(moves if clusters > 1 else 0):
        trials = (_lloyd(h, start, iterations) for start in _moves(h, best))
        better = next((trial for trial in trials if _total(trial) > _total(best) * (1 + 1e-5)), None)
        if better is None:
            break
        best = better
    return best.labels, best.centres


def _seed(h: Float[Tensor, "n d"], k: int, restarts: int, generator: torch.Generator) -> Float[Tensor, "r k d"]:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007) for all restarts at once, by the distance 1 - cosine.

    Of a few candidates the one that brings all samples nearest is taken: else a small cluster is easily missed.
    """
    run, tries = torch.arange(restarts, device=h.device), 5 + int(math.log(k))
    draws = torch.rand(k, restarts, tries, dtype=torch.float64, generator=generator, device=generator.device).to(
        h.device
    )
    index = [(draws[0, :, 0] * len(h)).long()]
    distance = (1 - h @ h[index[0]].T).clamp_min_(0)
    for draw in draws[1:]:
        mass = distance.T.double().cumsum(1)
        drawn = torch.searchsorted(mass, draw * mass[:, -1:], right=True).clamp_max_(len(h) - 1)
        nearer = (1 - h @ h[drawn.flatten()].T).clamp_min_(0).unflatten(1, (restarts, tries))
        nearer = torch.minimum(nearer, distance[:, :, None])
        best = nearer.sum(0).argmin(1)
        distance = nearer[:, run, best]
        index.append(drawn[run, best])
    return h[torch.stack(index, dim=1)]


class _Clusters(NamedTuple):
    labels: Tensor  # [n]
    similarity: Tensor  # [n] cosine to the own centre
    centres: Tensor  # [k, d]


def _total(found: _Clusters) -> float:
    return found.similarity.sum(dtype=torch.float64).item()


def _lloyd(h: Tensor, centres: Tensor, iterations: int) -> _Clusters:
    """Assign and average until no label changes."""
    labels = None
    for _ in range(iterations):
        before, (labels, similarity) = labels, _assign(h, centres)
        if before is not None and torch.equal(before, labels):
            return _Clusters(labels, similarity, centres)
        centres = mean_directions(h, labels, len(centres), similarity)
    return _Clusters(*_assign(h, centres), centres)


def _moves(h: Tensor, found: _Clusters, tries: int = 3) -> Iterator[Float[Tensor, "k d"]]:
    """Centres with the one that is missed least put on a far sample: each of those farthest in their clusters.

    Lloyd's algorithm cannot do that: a large class cut in two, a small one lost in a neighbour, would stay so.
    """
    labels, similarity, centres = found
    second = torch.cat([(part @ centres.T).topk(2).values[:, 1] for part in h.split(rows_of(len(centres)))])
    missed = h.new_zeros(len(centres)).index_add_(0, labels, similarity - second).argmin()
    lowest = h.new_ones(len(centres)).scatter_reduce_(0, labels, similarity, "amin")
    for cluster in lowest.argsort()[:tries]:
        start = centres.clone()
        start[missed] = h[similarity.masked_fill(labels != cluster, 2.0).argmin()]
        yield start


def _assign(h: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> tuple[Int64[Tensor, "n"], Float[Tensor, "n"]]:
    """The nearest centre of each row and the cosine to it, a block of rows at a time."""
    nearest = [(part @ centres.T).max(1) for part in h.split(rows_of(len(centres)))]
    return torch.cat([m.indices for m in nearest]), torch.cat([m.values for m in nearest])


def mean_directions(h: Tensor, labels: Tensor, k: int, similarity: Tensor | None = None) -> Float[Tensor, "k d"]:
    """Mean directions of the clusters; with `similarity`, empty ones get the samples least like their own centre."""
    empty = (labels.bincount(minlength=k) == 0).nonzero()[:, 0]
    if similarity is not None and len(empty):
        labels = labels.scatter(0, similarity.topk(len(empty), largest=False).indices, empty)
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
    low, high = math.log(1e-4), math.log(warmest)
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
