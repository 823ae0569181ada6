"""Pseudo-labels and how much there is of each: equations (3) and (4).

    h      = directions(features)                       the square root of each feature, then unit length
    m_k    = spherical_kmeans(h, k)                     centres
    p_ik   = softmax_k(h_i . m_k / T)                   T such that the mean of max_k p_ik is the confidence, 0.8;
                                                        but low enough that clear clusters are assigned surely
    a_i    = sum_k p_ik log n_k,  n_k = sum_i p_ik      headness; n_k of the groups that clusters are joined to
    a_i    = (1 - memory) a_i + memory a_i before       one refresh alone hangs on chance
    q_i    = clip((a_i - lo) / (hi - lo), 0, 1)         lo, hi: 5th and 95th percentile of log n_k

`PseudoLabels` does all of it at each refresh and keeps the clusters' identities from one to the next.

A new estimator of quantity is one function (h, p, centres, **options) -> Quantity and one entry in ESTIMATORS:

    def own_cluster(h, p, centres, **options):
        sizes = p.argmax(1).bincount(minlength=p.shape[1]).double()
        return Quantity(sizes.log()[p.argmax(1)], sizes[sizes > 0].log())

    ESTIMATORS["own-cluster"] = own_cluster             # and its name in config.ESTIMATORS, to choose it in a run
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ..config import check, unknown
from ._clusters import aligned, centred, directions, mean_directions, responsibilities, spherical_kmeans
from ._quality import quality
from ._quantity import ESTIMATORS, Quantity, by_density, by_merged_size, by_size, clipped_rank, sizes_of

__all__ = [
    "ESTIMATORS",
    "PseudoLabels",
    "Quantity",
    "aligned",
    "by_density",
    "by_merged_size",
    "by_size",
    "centred",
    "clipped_rank",
    "directions",
    "quality",
    "responsibilities",
    "spherical_kmeans",
]

# Highest temperature of an assignment, as a share of the mean distance (1 - cosine) of two centres. Clear clusters
# would need a higher one to be as unsure as the confidence asks for; a large one then lends the small ones more than
# their own size, and the order of sizes is lost.
WARMEST = 0.1


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
        if estimator not in ESTIMATORS:
            raise unknown("guidance.estimator", estimator, ESTIMATORS)
        check(
            0 <= clusters <= n, "guidance.clusters", clusters, f"from 1 to the number of images, {n}; 0: chosen by it"
        )
        self.n, self.device, self.options = n, torch.device(device), options
        self.clusters, self.estimator = clusters or max(1, min(100, n // 10)), estimator
        self.confidence, self.restarts = confidence, restarts
        self.headness_map, self.label_noise, self.space, self.memory = headness_map, label_noise, space, memory
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.truth = None if labels is None else _checked(labels, n).to(self.device)
        self.p: Tensor | None = None  # not saved: only the next update needs it, and makes its own
        self.labels = self.assigned = torch.full((n,), -1, device=self.device)
        self.headness = torch.zeros(n, dtype=torch.float64, device=self.device)
        self.q = torch.full_like(self.headness, 0.5)
        self.sizes, self.centres = self.headness[:0], torch.zeros(0, 0, device=self.device)
        self.spread, self.log_sizes = 0.0, None  # the latter, as p, of the last update only

    @torch.no_grad()
    def update(self, features: Float[Tensor, "n d"]) -> None:
        """New clusters, headness and q from fresh features; raises ValueError if there are not n of them."""
        if features.ndim != 2 or len(features) != self.n:
            raise ValueError(f"features must be [{self.n}, d], one row per image, not {list(features.shape)}")
        memory = self.memory if len(self.centres) else 0.0
        h = directions(features.to(self.device), self.space)
        self._cluster(h)
        self.p, self.labels = self._soft(h) if self.truth is None else self._true(h)
        self._add_noise()
        self.sizes = sizes_of(self.p)
        estimate = ESTIMATORS[self.estimator if self.truth is None else "size"]
        quantity = estimate(h, self.p, self.centres, **self.options)
        self.headness = torch.lerp(quantity.a.double(), self.headness, memory)
        self.log_sizes = quantity.log_sizes
        self.q, self.spread = clipped_rank(quantity._replace(a=self.headness), self.headness_map)

    def _cluster(self, h: Tensor) -> None:
        """Set `assigned` and `centres`: from the true labels, or by k-means from where the old clusters are now."""
        if self.truth is not None:
            self.assigned, self.centres = self.truth, mean_directions(h, self.truth, int(self.truth.max()) + 1)
            return
        before = self.assigned
        # The network has moved on, and the old centres with it: they are the means of the old clusters in new features.
        start = mean_directions(h, before, self.clusters) if len(self.centres) else None
        now, centres = spherical_kmeans(h, self.clusters, start, self.restarts, generator=self.generator)
        if start is not None:
            names = aligned(before, now, self.clusters)
            now, centres = names[now], torch.empty_like(centres).index_copy_(0, names, centres)
        self.assigned, self.centres = now, centres

    def _soft(self, h: Tensor) -> tuple[Tensor, Tensor]:
        k = len(self.centres)
        apart = (1 - self.centres @ self.centres.T).sum().item() / max(1, k * (k - 1))
        p = responsibilities(h, self.centres, self.confidence, max(1e-6, WARMEST * apart))
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
