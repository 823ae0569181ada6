"""Pseudo-labels and how much there is of each: equations (3) and (4).

    h      = centred(features)                          the data-set mean removed, then unit length
    m_k    = spherical_kmeans(h, k)                     centres
    p_ik   = softmax_k(h_i . m_k / T)                   T such that the mean of max_k p_ik is the confidence, 0.8;
                                                        at most 0.1, so clear clusters are assigned more surely
    a_i    = sum_k p_ik log n_k,  n_k = sum_i p_ik      headness; its estimator can be exchanged
    q_i    = clip((a_i - lo) / (hi - lo), 0, 1)         lo, hi: 5th and 95th percentile of log n_k

`PseudoLabels` does all of it at each refresh and keeps the clusters' identities from one to the next.

A new estimator of quantity is one function (h, p, centres, **options) -> Quantity and one entry in ESTIMATORS:

    def own_cluster(h, p, centres, **options):
        sizes = p.argmax(1).bincount(minlength=p.shape[1]).double()
        return Quantity(sizes.log()[p.argmax(1)], sizes[sizes > 0].log())

    ESTIMATORS["own-cluster"] = own_cluster             # and its name in config.ESTIMATORS, to choose it in a run
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from .config import check, unknown

# Elements of a block of rows: large enough for matrix products to be fast, small enough to stay near the processor.
BLOCK = 2**20

# Highest temperature of an assignment, in cosine. Clear clusters would need a higher one to be as unsure as the
# confidence asks for; a large one then lends the small ones more than their own size, and the order of sizes is lost.
WARMEST = 0.1


def _rows(columns: int) -> int:
    return max(1, BLOCK // max(1, columns))


# --- clusters ---------------------------------------------------------------------------------------------------------


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
) -> tuple[Int64[Tensor, "n"], Float[Tensor, "k d"]]:
    """Clusters of directions: k-means under cosine similarity with k-means++ seeding (Dhillon & Modha 2001).

    Only the direction of a row counts; the centres are of unit length. Starts from `centres`, or is seeded `restarts`
    times and keeps the best. An empty cluster takes the sample farthest from its centre. Stops when no assignment
    changes. Draws from `generator`, on any device (None: a fixed one). Raises ConfigError if there are more clusters
    than rows.
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
    for _ in range(20 if clusters > 1 else 0):
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
        centres = _means(h, labels, len(centres), similarity)
    return _Clusters(*_assign(h, centres), centres)


def _moves(h: Tensor, found: _Clusters, tries: int = 3) -> Iterator[Float[Tensor, "k d"]]:
    """Centres with the one that is missed least put on a far sample: each of those farthest in their clusters.

    Lloyd's algorithm cannot do that: a large class cut in two, a small one lost in a neighbour, would stay so.
    """
    labels, similarity, centres = found
    second = torch.cat([(part @ centres.T).topk(2).values[:, 1] for part in h.split(_rows(len(centres)))])
    missed = h.new_zeros(len(centres)).index_add_(0, labels, similarity - second).argmin()
    lowest = h.new_ones(len(centres)).scatter_reduce_(0, labels, similarity, "amin")
    for cluster in lowest.argsort()[:tries]:
        start = centres.clone()
        start[missed] = h[similarity.masked_fill(labels != cluster, 2.0).argmin()]
        yield start


def _assign(h: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> tuple[Int64[Tensor, "n"], Float[Tensor, "n"]]:
    """The nearest centre of each row and the cosine to it, a block of rows at a time."""
    nearest = [(part @ centres.T).max(1) for part in h.split(_rows(len(centres)))]
    return torch.cat([m.indices for m in nearest]), torch.cat([m.values for m in nearest])


def _means(h: Tensor, labels: Tensor, k: int, similarity: Tensor | None = None) -> Float[Tensor, "k d"]:
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
    parts = gap.split(_rows(gap.shape[1]))
    return sum((part / temperature).exp_().sum(1).reciprocal_().sum() for part in parts).item() / len(gap)


def aligned(before: Int64[Tensor, "n"], now: Int64[Tensor, "n"], k: int) -> Int64[Tensor, "k"]:
    """New names for the clusters `now`, so that as many samples as possible keep theirs (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    overlap = (now * k + before).bincount(minlength=k * k).reshape(k, k)
    return torch.from_numpy(linear_sum_assignment(overlap.cpu().numpy(), maximize=True)[1]).to(now.device)


# --- quantity: how much is there of what a sample shows? --------------------------------------------------------------


class Quantity(NamedTuple):
    """What an estimator returns."""

    a: Tensor  # [n] float64: headness, on the scale of a log number of samples
    log_sizes: Tensor | None  # [m] float64: log sizes of the non-empty groups; None where there are none


def by_size(h: Float[Tensor, "n d"], p: Float[Tensor, "n k"], centres: Float[Tensor, "k d"], **_: Any) -> Quantity:
    """Equation (4): the expected log size of a sample's clusters."""
    sizes = _sizes(p)
    return Quantity(_expected(p, _log(sizes, len(p))), _log(_not_empty(sizes, len(p)), len(p)))


def by_merged_size(
    h: Tensor, p: Tensor, centres: Tensor, merge_to: int = 0, linkage: str = "single", **_: Any
) -> Quantity:
    """Equation (4) after joining the centres by linkage (single or average) into `merge_to` groups (0: a third of k).

    k-means likes clusters of equal size and so cuts a large class into many; joining them puts it together again.
    """
    group = _linked(centres, merge_to or max(1, math.ceil(len(centres) / 3)), linkage)
    sizes = h.new_zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, _sizes(p))
    return Quantity(_expected(p, _log(sizes, len(p))[group]), _log(_not_empty(sizes, len(p)), len(p)))


def by_density(
    h: Tensor, p: Tensor, centres: Tensor, bandwidth: float = 0.1, references: int = 4096, **_: Any
) -> Quantity:
    """Log of the soft number of neighbours, itself included: 1 + sum_{j != i} exp((h_i . h_j - 1) / bandwidth).

    Summed over at most `references` evenly spaced samples and scaled up to all; needs no clusters.
    """
    n = len(h)
    index = torch.arange(min(n, references), device=h.device) * n // min(n, references)
    chosen, itself = h[index], torch.zeros(n, dtype=torch.float64, device=h.device).index_fill_(0, index, 1.0)
    near = [((part @ chosen.T - 1) / bandwidth).exp_().sum(1) for part in h.split(_rows(len(index)))]
    # A reference counts itself with exp(0); of the others it has one fewer to stand for all n - 1.
    own = itself * ((h * h).sum(1) - 1).div(bandwidth).exp().double()
    others = (torch.cat(near).double() - own).clamp_min(0) * (n - 1) / (len(index) - itself).clamp_min(1)
    return Quantity(torch.log1p(others), None)


ESTIMATORS: dict[str, Callable[..., Quantity]] = {"size": by_size, "merged": by_merged_size, "density": by_density}


def _sizes(p: Float[Tensor, "n k"]) -> Float64[Tensor, "k"]:
    return p.sum(0, dtype=torch.float64)


def _not_empty(sizes: Float64[Tensor, "k"], n: int) -> Float64[Tensor, "m"]:
    return sizes[sizes > 1e-9 * n]


def _log(sizes: Float64[Tensor, "k"], n: int) -> Float64[Tensor, "k"]:
    return sizes.clamp_min(1e-9 * n).log()


def _expected(p: Float[Tensor, "n k"], values: Float64[Tensor, "k"]) -> Float64[Tensor, "n"]:
    """sum_k p_ik values_k in float64, without a float64 copy of p."""
    return torch.cat([part.double() @ values for part in p.split(_rows(p.shape[1]))])


def _linked(centres: Float[Tensor, "k d"], groups: int, method: str) -> Int64[Tensor, "k"]:
    """The group, 0 to groups - 1, of each centre."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(centres) <= groups:
        return torch.arange(len(centres), device=centres.device)
    distance = (1 - centres @ centres.T).double().clamp_min(0)
    tree = linkage(squareform(distance.cpu().numpy(), checks=False), method)
    return torch.from_numpy(fcluster(tree, groups, "maxclust")).to(centres.device).long() - 1


def clipped_rank(quantity: Quantity, how: str = "log") -> tuple[Float64[Tensor, "n"], float]:
    """q_i in [0, 1], by log size (equation (4)) or by rank, and hi - lo; where hi - lo < 0.1, q_i is 0.5.

    Then the groups are all about as large, and say nothing about quantity.
    """
    a, log_sizes = quantity
    low, high = _percentiles(a if log_sizes is None else log_sizes)
    if high - low < 0.1:
        return torch.full_like(a, 0.5), high - low
    return (_midrank(a) if how == "rank" else ((a - low) / (high - low)).clamp(0, 1)), high - low


def _percentiles(x: Float64[Tensor, "m"]) -> tuple[float, float]:
    """5th and 95th percentile by the inverted CDF: values that occur, not changed by repeating every sample."""
    x, m = x.sort().values, len(x)
    return x[-(-5 * m // 100) - 1].item(), x[-(-95 * m // 100) - 1].item()


def _midrank(x: Tensor) -> Float64[Tensor, "n"]:
    """Share of the values below, ties half."""
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    counts = counts.double()
    return ((counts.cumsum(0) - counts / 2) / len(x))[inverse]


# --- quality ----------------------------------------------------------------------------------------------------------


def quality(
    labels: Int64[Tensor, "n"],
    headness: Float[Tensor, "n"],
    true_labels: Int64[Tensor, "n"],
    counts: Int64[Tensor, "C"] | None = None,
) -> dict[str, float]:
    """Pseudo-labels against true ones: nmi, purity, and Spearman's correlation of headness with true class size.

    The latter over samples, and over classes (mean headness of each); NaN where all class sizes are equal.
    """
    true_labels, headness = true_labels.to(labels.device), headness.double()
    own = true_labels.bincount(minlength=0 if counts is None else len(counts)).double()
    counts = own if counts is None else counts.to(labels.device).double()
    table = (labels * len(own) + true_labels).bincount(minlength=(int(labels.max()) + 1) * len(own))
    table = table.reshape(-1, len(own)).double()
    means = torch.zeros_like(own).index_add_(0, true_labels, headness) / own.clamp_min(1)
    return {
        "nmi": _nmi(table),
        "purity": (table.amax(1).sum() / table.sum()).item(),
        "spearman_samples": _spearman(headness, counts[true_labels]),
        "spearman_classes": _spearman(means[own > 0], counts[own > 0]),
    }


def _nmi(table: Float64[Tensor, "k C"]) -> float:
    """Mutual information over the mean of both entropies; 1 where both are constant."""
    p = table / table.sum()
    rows, columns, joint = (-torch.special.xlogy(x, x).sum() for x in (p.sum(1), p.sum(0), p))
    if rows + columns < 1e-12:
        return 1.0
    return ((rows + columns - joint).clamp_min(0) * 2 / (rows + columns)).item()


def _spearman(x: Tensor, y: Tensor) -> float:
    """Correlation of the ranks (ties: their mean); NaN where one of the two is constant."""
    x, y = (r - r.mean() for r in (_midrank(x), _midrank(y)))
    return (x @ y / (x.norm() * y.norm())).item()


# --- all together -----------------------------------------------------------------------------------------------------


class PseudoLabels:
    """Clusters of all n images and their quantity, refreshed by `update`, identities kept.

    After an update: `labels` [n], `p` [n, k], `centres` [k, d], `sizes` n_k [k], and of equation (4) `headness` a [n],
    `q` [n] and `spread` hi - lo. Before: labels -1, headness 0, q 0.5, no sizes. True `labels`, where given, take the
    clusters' place (the oracle, hard). `clusters` 0 means 100, at most a tenth of the images; other `options` go to the
    estimator. Raises ConfigError for an unknown estimator and for more clusters than images.
    """

    SAVED = ("assigned", "labels", "headness", "q", "sizes", "centres", "spread")

    def __init__(
        self,
        n: int,
        clusters: int = 0,
        estimator: str = "size",
        confidence: float = 0.8,
        restarts: int = 3,
        headness_map: str = "log",
        label_noise: float = 0.0,
        labels: Int64[Tensor, "n"] | None = None,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
        **options: Any,
    ):
        if estimator not in ESTIMATORS:
            raise unknown("guidance.estimator", estimator, ESTIMATORS)
        check(
            0 <= clusters <= n, "guidance.clusters", clusters, f"from 1 to the number of images, {n}; 0: chosen by it"
        )
        self.n, self.device, self.options = n, torch.device(device), options
        self.clusters, self.estimator = clusters or max(1, min(100, n // 10)), estimator
        self.confidence, self.restarts = confidence, restarts
        self.headness_map, self.label_noise = headness_map, label_noise
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.truth = None if labels is None else _checked(labels, n).to(self.device)
        self.p: Tensor | None = None  # not saved: only the next update needs it, and makes its own
        self.labels = self.assigned = torch.full((n,), -1, device=self.device)
        self.headness = torch.zeros(n, dtype=torch.float64, device=self.device)
        self.q = torch.full_like(self.headness, 0.5)
        self.sizes, self.centres = self.headness[:0], torch.zeros(0, 0, device=self.device)
        self.spread = 0.0

    @torch.no_grad()
    def update(self, features: Float[Tensor, "n d"]) -> None:
        """New clusters, headness and q from fresh features; raises ValueError if there are not n of them."""
        if features.ndim != 2 or len(features) != self.n:
            raise ValueError(f"features must be [{self.n}, d], one row per image, not {list(features.shape)}")
        h = centred(features.to(self.device))
        self._cluster(h)
        self.p, self.labels = self._soft(h) if self.truth is None else self._true(h)
        self._add_noise()
        self.sizes = _sizes(self.p)
        estimate = ESTIMATORS[self.estimator if self.truth is None else "size"]
        quantity = estimate(h, self.p, self.centres, **self.options)
        self.headness = quantity.a.double()
        self.q, self.spread = clipped_rank(quantity, self.headness_map)

    def _cluster(self, h: Tensor) -> None:
        """Set `assigned` and `centres`: from the true labels, or by k-means from where the old clusters are now."""
        if self.truth is not None:
            self.assigned, self.centres = self.truth, _means(h, self.truth, int(self.truth.max()) + 1)
            return
        before = self.assigned
        # The network has moved on, and the old centres with it: they are the means of the old clusters in new features.
        start = _means(h, before, self.clusters) if len(self.centres) else None
        now, centres = spherical_kmeans(h, self.clusters, start, self.restarts, generator=self.generator)
        if start is not None:
            names = aligned(before, now, self.clusters)
            now, centres = names[now], torch.empty_like(centres).index_copy_(0, names, centres)
        self.assigned, self.centres = now, centres

    def _soft(self, h: Tensor) -> tuple[Tensor, Tensor]:
        p = responsibilities(h, self.centres, self.confidence, WARMEST)
        return p, p.argmax(1)

    def _true(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return F.one_hot(self.truth, len(self.centres)).to(h.dtype), self.truth

    def _add_noise(self) -> None:
        """Permute the responsibilities of a share of the samples among each other."""
        some = round(self.label_noise * self.n)
        if some < 2:
            return
        order = torch.randperm(self.n, generator=self.generator, device=self.generator.device)[:some].to(self.device)
        sources = torch.arange(self.n, device=self.device).index_copy_(0, order, order.roll(1))
        self.p, self.labels = self.p[sources], self.labels[sources]

    def state_dict(self) -> dict[str, Any]:
        """All that the next update and a snapshot need, as tensors and numbers."""
        return {**{name: getattr(self, name) for name in self.SAVED}, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue bit for bit from `state_dict`; raises ValueError if that was for another number of images."""
        if len(state["labels"]) != self.n:
            raise ValueError(f"these pseudo-labels are of {len(state['labels'])} images, not of {self.n}")
        for name in self.SAVED:
            value = state[name]
            setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)
        self.generator.set_state(state["generator"].cpu())
        self.p = None


def _checked(labels: Tensor, n: int) -> Tensor:
    ok = labels.shape == (n,) and not labels.is_floating_point() and int(labels.min()) >= 0
    if not ok:
        raise ValueError(f"labels must be {n} whole numbers from 0, one per image")
    return labels.long()
