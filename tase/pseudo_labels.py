"""Pseudo-labels and how much there is of each: equations (3) and (4).

    h      = directions(features)                       the square root of each feature, then unit length
    m_k    = spherical_kmeans(h, k)                     centres
    p_ik   = softmax_k(h_i . m_k / T)                   T such that the mean of max_k p_ik is the confidence, 0.8;
                                                        but low enough that clear clusters are assigned surely
    a_i    = sum_k p_ik log n_k,  n_k = sum_i p_ik      headness; n_k of the groups that clusters are joined to
    a_i    = (1 - memory) a_i + memory a_i before       one refresh alone depends on chance
    q_i    = clip((a_i - lo) / (hi - lo), 0, 1)         lo, hi: 5th and 95th percentile of log n_k

`PseudoLabels` does all of it at each refresh and keeps the clusters' identities from one to the next.

A new estimator of quantity is one function (h, p, centres, **options) -> Quantity and one entry in ESTIMATORS, by
which guidance.estimator then finds it:

    def own_cluster(h, p, centres, **options):
        sizes = p.argmax(1).bincount(minlength=p.shape[1]).double()
        return Quantity(sizes.log()[p.argmax(1)], sizes[sizes > 0].log())

    ESTIMATORS["own-cluster"] = own_cluster
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from .clustering import aligned, directions, directions_as_of, mean_directions, rows_of, spherical_kmeans
from .config import ESTIMATORS, check
from .streams import generator

LEAST_SPREAD = 0.1  # of the log sizes; below it the clusters say nothing about quantity
STREAMED = 2**14  # rows at a time of the pass that assigns more images than are clustered
# Highest temperature of an assignment, as a share of the mean distance (1 - cosine) of two centres. Clear clusters
# would need a higher one to be as unsure as the confidence asks for; a large one then lends the small ones more than
# their own size, and the order of sizes is lost.
WARMEST = 0.1


# --- responsibilities: equation (3) -----------------------------------------------------------------------------------


def responsibilities(
    h: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], confidence: float = 0.8, warmest: float = 1e3
) -> Float[Tensor, "n k"]:
    """Compute p_ik of equation (3): a softmax over the centres, such that the mean of max_k p_ik is the confidence.

    1 is the hard assignment. A confidence that no temperature up to `warmest` gives is met as nearly as possible.
    """
    gap = gaps(h, centres)
    return tempered(gap, assignment_temperature(gap, confidence, warmest))


def gaps(h: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    """Return each sample's cosines to the centres, less the largest of them."""
    gap = h @ centres.T
    return gap.sub_(gap.amax(1, keepdim=True))


def tempered(gap: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
    """Return softmax(gap / temperature), in place; 0 is the hard assignment."""
    if temperature == 0:
        return F.one_hot(gap.argmax(1), gap.shape[1]).to(gap.dtype)
    p = gap.div_(temperature).exp_()
    return p.div_(p.sum(1, keepdim=True))


def highest_temperature(centres: Float[Tensor, "k d"]) -> float:
    """Return the highest temperature of an assignment to these centres, by their mean distance."""
    k = len(centres)
    apart = (1 - centres @ centres.T).sum().item() / max(1, k * (k - 1))
    return max(1e-6, WARMEST * apart)


def assignment_temperature(gap: Float[Tensor, "n k"], confidence: float, warmest: float) -> float:
    """Find the temperature at which the mean of the largest p is the confidence, by bisection of its logarithm."""
    if confidence >= 1:
        return 0.0
    low, high = math.log(min(1e-4, 1e-3 * warmest)), math.log(warmest)
    for _ in range(30):
        middle = (low + high) / 2
        if _mean_largest(gap, math.exp(middle)) > confidence:  # it falls with the temperature
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _mean_largest(gap: Float[Tensor, "n k"], temperature: float) -> float:
    """Mean over rows of the largest entry of softmax(gap / temperature), the largest gap of a row being 0."""
    parts = gap.split(rows_of(gap.shape[1]))
    return sum((part / temperature).exp_().sum(1).reciprocal_().sum() for part in parts).item() / len(gap)


# --- quantity: equation (4) -------------------------------------------------------------------------------------------


class Quantity(NamedTuple):
    """What an estimator returns."""

    a: Tensor  # [n] float64: headness, on the scale of a log number of samples
    log_sizes: Tensor | None  # [m] float64: of the non-empty clusters, the log size they stand for; None: no clusters

    @property
    def ends(self) -> tuple[float, float]:
        """lo and hi of equation (4): the headness at which q is 0 and 1."""
        return _percentiles(self.a if self.log_sizes is None else self.log_sizes)


def by_size(h: Float[Tensor, "n d"], p: Float[Tensor, "n k"], centres: Float[Tensor, "k d"], **_: Any) -> Quantity:
    """Estimate quantity as in equation (4): the expected log size of a sample's clusters."""
    sizes = sizes_of(p)
    logs = sizes.clamp_min(1e-9 * len(p)).log()
    return Quantity(_expected(p, logs), logs[sizes > 1e-9 * len(p)])


def by_merged_size(
    h: Tensor, p: Tensor, centres: Tensor, merge_to: int = 0, linkage: str = "single", **_: Any
) -> Quantity:
    """Estimate quantity by the sizes of groups of clusters, whose centres are joined by linkage (single or average).

    k-means likes clusters of equal size and so cuts a large class into many; joining them puts it together again.
    `merge_to` groups, or 0: the mean log size over all numbers of groups from a sixth to half of the clusters, since
    no single number is right for all data and one alone depends on chance. Fewer than 12 clusters stay as they are.
    """
    k, sizes = len(centres), sizes_of(p)
    levels = [merge_to] if merge_to else range(k // 6, k // 2 + 1) if k >= 12 else [k]
    joined = h.new_zeros(k, dtype=torch.float64)
    for group in _linked(centres, levels, linkage):  # [k]
        of_group = torch.zeros_like(joined).index_add_(0, group, sizes)
        joined += of_group.clamp_min(1e-9 * len(p)).log()[group]
    joined /= len(levels)
    return Quantity(_expected(p, joined), joined[sizes > 1e-9 * len(p)])


def by_crowding(h: Tensor, p: Tensor, centres: Tensor, bandwidth: float = 0.1, **_: Any) -> Quantity:
    """Rank clusters by how close the others are, not by size: a control for what headness measures besides quantity.

    The most crowded one gets the log size of the largest, the others follow evenly, down to the smallest; equal sizes
    count as a ratio of 100. So tau and w have the range that sizes would give, on other samples.
    """
    sizes, k = sizes_of(p), len(centres)
    ratio = (sizes.max() / sizes.clamp_min(1).min()).item()
    near = (centres @ centres.T).double().fill_diagonal_(-torch.inf)  # [k, k] cosines
    place = (near / bandwidth).logsumexp(1).argsort().argsort()  # 0: the loneliest
    log_sizes = place.double() / max(1, k - 1) * math.log(ratio if ratio > 2 else 100.0)
    return Quantity(_expected(p, log_sizes), log_sizes)


def by_density(
    h: Tensor, p: Tensor, centres: Tensor, bandwidth: float = 0.1, references: int = 4096, **_: Any
) -> Quantity:
    """Estimate quantity by the soft number of neighbours: log(1 + sum_{j != i} exp((h_i . h_j - 1) / bandwidth)).

    Summed over at most `references` evenly spaced samples and scaled up to all; needs no clusters.
    """
    n = len(h)
    index = torch.arange(min(n, references), device=h.device) * n // min(n, references)
    chosen, itself = h[index], torch.zeros(n, dtype=torch.float64, device=h.device).index_fill_(0, index, 1.0)
    near = [((part @ chosen.T - 1) / bandwidth).exp_().sum(1) for part in h.split(rows_of(len(index)))]
    # A reference counts itself with exp(0); of the others it has one fewer to stand for all n - 1.
    own = itself * ((h * h).sum(1) - 1).div(bandwidth).exp().double()
    others = (torch.cat(near).double() - own).clamp_min(0) * (n - 1) / (len(index) - itself).clamp_min(1)
    return Quantity(torch.log1p(others), None)


def sizes_of(p: Float[Tensor, "n k"]) -> Float64[Tensor, "k"]:
    """Sum the responsibilities: n_k of equation (4)."""
    return p.sum(0, dtype=torch.float64)


def values_behind(a: Float64[Tensor, "n"], p: Float[Tensor, "n k"]) -> Float64[Tensor, "k"]:
    """Return the value of each cluster for which sum_k p_ik value_k is a_i, or nearest to it (least squares)."""
    square, moment = p.new_zeros(p.shape[1], p.shape[1], dtype=torch.float64), 0.0
    for rows, part in zip(a.split(rows_of(p.shape[1])), p.split(rows_of(p.shape[1]))):
        square += part.double().T @ part.double()
        moment = moment + part.double().T @ rows
    return torch.linalg.pinv(square, hermitian=True) @ moment  # a cluster without samples has no value


def _expected(p: Float[Tensor, "n k"], values: Float64[Tensor, "k"]) -> Float64[Tensor, "n"]:
    """sum_k p_ik values_k in float64, without a float64 copy of p."""
    return torch.cat([part.double() @ values for part in p.split(rows_of(p.shape[1]))])


def _linked(centres: Float[Tensor, "k d"], levels: Iterable[int], method: str) -> Iterator[Int64[Tensor, "k"]]:
    """Join the centres into each number of groups of `levels`, and give the group of each."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(centres) == 1:
        yield from (torch.zeros(1, dtype=torch.int64, device=centres.device) for _ in levels)
        return
    distance = (1 - centres @ centres.T).double().clamp_min(0)
    tree = linkage(squareform(distance.cpu().numpy(), checks=False), method)
    for groups in levels:
        yield torch.from_numpy(fcluster(tree, groups, "maxclust")).to(centres.device).long() - 1


def clipped_rank(quantity: Quantity, how: str = "log") -> tuple[Float64[Tensor, "n"], float]:
    """Map headness to q_i in [0, 1], by log size (equation (4)) or by rank; return also hi - lo.

    Where hi - lo < LEAST_SPREAD, q_i is 0.5: the groups are all about as large, and say nothing about quantity.
    """
    a, log_sizes = quantity
    low, high = quantity.ends
    if high - low < LEAST_SPREAD:
        return torch.full_like(a, 0.5), high - low
    return (_midrank(a) if how == "rank" else ((a - low) / (high - low)).clamp(0, 1)), high - low


def _percentiles(x: Float64[Tensor, "m"]) -> tuple[float, float]:
    """5th and 95th percentile by the inverted CDF: values that occur, not changed by repeating every sample."""
    x, m = x.sort().values, len(x)
    return x[-(-5 * m // 100) - 1].item(), x[-(-95 * m // 100) - 1].item()


def _midrank(x: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """Share of the values below, ties half."""
    from scipy.stats import rankdata

    return torch.from_numpy((rankdata(x.cpu().numpy()) - 0.5) / len(x)).to(x.device)


# --- all together -----------------------------------------------------------------------------------------------------


class PseudoLabels:
    """Clusters of all n images and their quantity, refreshed by `update`, identities kept.

    After an update: `labels` [n], `p` [n, k], `centres` [k, d], `sizes` n_k [k], and of equation (4) `headness` a [n],
    `q` [n] and `spread` hi - lo. Before: labels -1, headness 0, q 0.5, no sizes. True `labels`, where given, take the
    clusters' place (the oracle, hard). Of more than `sample` images so many, drawn at each update, are clustered, and
    all get their headness from the clusters; `p` is then None. `clusters` 0 means 100, at most a tenth of the images;
    other `options` go to the estimator. Raises ConfigError for an unknown estimator and for more clusters than images.
    """

    sample = 2**16  # a clustering of these holds about 0.2 GiB, and 0.5 at 512 features

    SAVED = ("assigned", "labels", "headness", "q", "sizes", "centres", "spread")

    def __init__(
        self,
        n: int,
        clusters: int = 0,
        estimator: str = "merged",
        confidence: float = 0.8,
        restarts: int = 3,
        headness_map: str = "log",
        label_noise: float = 0.0,
        space: str = "auto",
        memory: float = 0.7,
        labels: Int64[Tensor, "n"] | None = None,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
        **options: Any,
    ):
        allowed = f"from 1 to the number of images, {n}; 0: chosen by it"
        check(0 <= clusters <= n, "guidance.clusters", clusters, allowed)
        if labels is not None and (labels.shape != (n,) or labels.is_floating_point() or int(labels.min()) < 0):
            raise ValueError(f"labels must be {n} whole numbers from 0, one per image")
        self.n, self.device, self.options = n, torch.device(device), options
        self.clusters = clusters or max(1, min(100, n // 10))
        # True classes have sizes of their own, and are not joined.
        self.estimate = ESTIMATORS["size" if labels is not None and estimator != "crowding" else estimator]
        self.confidence, self.restarts = confidence, restarts
        self.headness_map, self.label_noise, self.space, self.memory = headness_map, label_noise, space, memory
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.truth = None if labels is None else labels.long().to(self.device)
        if labels is not None:
            self.clusters = int(labels.max()) + 1
        self.p: Tensor | None = None  # not saved: only the next update needs it, and makes its own
        self.labels = self.assigned = torch.full((n,), -1, device=self.device)
        self.headness = torch.zeros(n, dtype=torch.float64, device=self.device)
        self.q = torch.full_like(self.headness, 0.5)
        self.sizes, self.centres = self.headness[:0], torch.zeros(0, 0, device=self.device)
        self.spread, self.log_sizes = 0.0, None  # the latter, as p, of the last update only

    @torch.no_grad()
    def drawn(self, features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "m d"], Int64[Tensor, "m"] | None]:
        """Return the features that are clustered and whose they are: all (None), or of many a fresh draw."""
        if self.n <= self.sample:
            return features, None
        g = self.generator
        index = torch.randperm(self.n, generator=g, device=g.device)[: self.sample].sort().values
        return features[index].to(self.device), index.to(self.device)

    def update(
        self,
        features: Float[Tensor, "n d"],
        quantity: Quantity | None = None,
        drawn: tuple[Float[Tensor, "m d"], Int64[Tensor, "m"] | None] | None = None,
    ) -> None:
        """Cluster fresh features, then set headness and q; raises ValueError if there are not n of them.

        Of more than `sample`, features may be any object of that length that gives rows by index and by slice.
        `quantity`: where it has been estimated already, by other clusterings, of those `drawn` (None: draw now).
        """
        if len(features) != self.n or getattr(features, "ndim", 2) != 2:
            raise ValueError(f"features must be [{self.n}, d], one row per image, not {list(features.shape)}")
        memory = self.memory if len(self.centres) else 0.0  # nothing to remember at the first update
        x, index = drawn or self.drawn(features)
        quantity = self._of_all(x, quantity) if index is None else self._of_sample(features, x, index, quantity)
        self.headness = torch.lerp(quantity.a.double(), self.headness, memory)
        self.log_sizes = quantity.log_sizes
        self.q, self.spread = clipped_rank(quantity._replace(a=self.headness), self.headness_map)

    def _of_all(self, features: Float[Tensor, "n d"], quantity: Quantity | None) -> Quantity:
        h = directions(features.to(self.device), self.space)
        if self.truth is None:
            self._cluster(h)
            self.p = self._soft(h)
            self.labels = self.p.argmax(1)
        else:
            self.assigned, self.centres = self.truth, mean_directions(h, self.truth, self.clusters)
            self.p, self.labels = F.one_hot(self.truth, len(self.centres)).to(h.dtype), self.truth
        sources = self._permuted()
        if sources is not None:
            self.p, self.labels = self.p[sources], self.labels[sources]
            quantity = quantity and quantity._replace(a=quantity.a[sources])
        self.sizes = sizes_of(self.p)
        return quantity or self.estimate(h, self.p, self.centres, **self.options)

    def _of_sample(self, features: Any, x: Tensor, index: Tensor, quantity: Quantity | None) -> Quantity:
        """Cluster the drawn rows and estimate their quantity; one pass over all then assigns them, without keeping p.

        A cluster lends its members the log size that explains the headness of the drawn ones best.
        """
        part = copy.copy(self)
        part.n, part.label_noise, part.memory, part.headness = len(index), 0.0, 0.0, self.headness[index]
        part.truth, part.assigned = None if self.truth is None else self.truth[index], self.assigned[index]
        part.update(x, quantity)
        grown = math.log(self.n / len(index))
        value = values_behind(part.headness, part.p) + grown  # of each cluster
        self.centres, self.p, self.sizes = part.centres, None, torch.zeros_like(part.sizes)
        self.labels, a = torch.empty_like(self.labels), torch.empty_like(self.headness)
        as_directions = directions_as_of(x, self.space)
        for first in range(0, self.n, STREAMED):
            rows = slice(first, first + STREAMED)
            if self.truth is None:
                p = tempered(gaps(as_directions(features[rows].to(self.device)), self.centres), part.temperature)
            else:
                p = F.one_hot(self.truth[rows], len(value)).to(x.dtype)
            self.labels[rows], a[rows] = p.argmax(1), _expected(p, value)
            self.sizes += sizes_of(p)
        self.assigned, sources = self.labels, self._permuted()
        if sources is not None:
            self.labels, a = self.labels[sources], a[sources]
        return Quantity(a, None if part.log_sizes is None else part.log_sizes + grown)

    def _cluster(self, h: Float[Tensor, "n d"]) -> None:
        """Set `assigned` and `centres` by k-means from where the old clusters are now."""
        before = self.assigned
        # The network has moved on, and the old centres with it: they are the means of the old clusters in new features.
        start = mean_directions(h, before, self.clusters) if len(self.centres) else None
        now, centres = spherical_kmeans(h, self.clusters, start, self.restarts, generator=self.generator)
        if start is not None:
            names = aligned(before, now, self.clusters)
            now, centres = names[now], torch.empty_like(centres).index_copy_(0, names, centres)
        self.assigned, self.centres = now, centres

    def _soft(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        gap = gaps(h, self.centres)
        self.temperature = assignment_temperature(gap, self.confidence, highest_temperature(self.centres))
        return tempered(gap, self.temperature)

    def _permuted(self) -> Int64[Tensor, "n"] | None:
        """Return whose responsibilities each sample gets: a share of them swap; None where no two do.

        The same at each update: others each time would be averaged away by the memory.
        """
        some = round(self.label_noise * self.n)
        if some < 2:
            return None
        own = generator(self.generator.initial_seed(), "label noise")
        order = torch.randperm(self.n, generator=own)[:some].to(self.device)
        return torch.arange(self.n, device=self.device).index_copy_(0, order, order.roll(1))

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next update and a snapshot need, as tensors and numbers."""
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


# --- against true labels ----------------------------------------------------------------------------------------------


def quality(
    labels: Int64[Tensor, "n"],
    headness: Float[Tensor, "n"],
    true_labels: Int64[Tensor, "n"],
    counts: Int64[Tensor, "C"] | None = None,
) -> dict[str, float]:
    """Judge pseudo-labels by true ones: nmi, purity, and Spearman's correlation of headness with true class size.

    The latter over samples, and over classes (mean headness of each); NaN where all class sizes are equal.
    """
    from sklearn.metrics import normalized_mutual_info_score

    labels, headness, truth = labels.cpu(), headness.cpu().double(), true_labels.cpu()
    own = truth.bincount(minlength=0 if counts is None else len(counts)).double()  # [C]
    counts = own if counts is None else counts.cpu().double()
    table = (labels * len(own) + truth).bincount(minlength=(int(labels.max()) + 1) * len(own))
    means = torch.zeros_like(own).index_add_(0, truth, headness) / own.clamp_min(1)
    return {
        "nmi": float(normalized_mutual_info_score(truth, labels)),
        "purity": table.reshape(-1, len(own)).amax(1).sum().item() / len(labels),
        "spearman_samples": _spearman(headness, counts[truth]),
        "spearman_classes": _spearman(means[own > 0], counts[own > 0]),
    }


def _spearman(x: Tensor, y: Tensor) -> float:
    from scipy.stats import spearmanr

    constant = x.min() == x.max() or y.min() == y.max()
    return math.nan if constant else float(spearmanr(x, y).statistic)
