"""How much is there of what a sample shows? The estimators, and q of equation (4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ._clusters import rows_of


class Quantity(NamedTuple):
    """What an estimator returns."""

    a: Tensor  # [n] float64: headness, on the scale of a log number of samples
    log_sizes: Tensor | None  # [m] float64: of the non-empty clusters, the log size they stand for; None: no clusters


def by_size(h: Float[Tensor, "n d"], p: Float[Tensor, "n k"], centres: Float[Tensor, "k d"], **_: Any) -> Quantity:
    """Equation (4): the expected log size of a sample's clusters."""
    sizes = sizes_of(p)
    return Quantity(_expected(p, _log(sizes, len(p))), _log(_not_empty(sizes, len(p)), len(p)))


def by_merged_size(
    h: Tensor, p: Tensor, centres: Tensor, merge_to: int = 0, linkage: str = "single", **_: Any
) -> Quantity:
    """Equation (4) with the sizes of groups of clusters: the centres are joined by linkage (single or average).

    k-means likes clusters of equal size and so cuts a large class into many; joining them puts it together again.
    `merge_to` groups, or 0: the mean log size over all numbers of groups from a sixth to half of the clusters, since
    no single number is right for all data and one alone hangs on chance. Fewer than 12 clusters stay as they are then.
    """
    k, sizes = len(centres), sizes_of(p)
    levels = [merge_to] if merge_to else range(k // 6, k // 2 + 1) if k >= 12 else [k]
    joined = h.new_zeros(k, dtype=torch.float64)
    for group in _linked(centres, levels, linkage):
        joined += _log(torch.zeros_like(joined).index_add_(0, group, sizes), len(p))[group]
    joined /= len(levels)
    return Quantity(_expected(p, joined), joined[sizes > 1e-9 * len(p)])


def by_density(
    h: Tensor, p: Tensor, centres: Tensor, bandwidth: float = 0.1, references: int = 4096, **_: Any
) -> Quantity:
    """Log of the soft number of neighbours, itself included: 1 + sum_{j != i} exp((h_i . h_j - 1) / bandwidth).

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


ESTIMATORS: dict[str, Callable[..., Quantity]] = {"size": by_size, "merged": by_merged_size, "density": by_density}


def sizes_of(p: Float[Tensor, "n k"]) -> Float64[Tensor, "k"]:
    return p.sum(0, dtype=torch.float64)


def _not_empty(sizes: Float64[Tensor, "k"], n: int) -> Float64[Tensor, "m"]:
    return sizes[sizes > 1e-9 * n]


def _log(sizes: Float64[Tensor, "k"], n: int) -> Float64[Tensor, "k"]:
    return sizes.clamp_min(1e-9 * n).log()


def _expected(p: Float[Tensor, "n k"], values: Float64[Tensor, "k"]) -> Float64[Tensor, "n"]:
    """sum_k p_ik values_k in float64, without a float64 copy of p."""
    return torch.cat([part.double() @ values for part in p.split(rows_of(p.shape[1]))])


def _linked(centres: Float[Tensor, "k d"], levels: Iterable[int], method: str) -> Iterator[Int64[Tensor, "k"]]:
    """The group of each centre, joined into each number of groups of `levels`."""
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
    """q_i in [0, 1], by log size (equation (4)) or by rank, and hi - lo; where hi - lo < 0.1, q_i is 0.5.

    Then the groups are all about as large, and say nothing about quantity.
    """
    a, log_sizes = quantity
    low, high = _percentiles(a if log_sizes is None else log_sizes)
    if high - low < 0.1:
        return torch.full_like(a, 0.5), high - low
    return (midrank(a) if how == "rank" else ((a - low) / (high - low)).clamp(0, 1)), high - low


def _percentiles(x: Float64[Tensor, "m"]) -> tuple[float, float]:
    """5th and 95th percentile by the inverted CDF: values that occur, not changed by repeating every sample."""
    x, m = x.sort().values, len(x)
    return x[-(-5 * m // 100) - 1].item(), x[-(-95 * m // 100) - 1].item()


def midrank(x: Tensor) -> Float64[Tensor, "n"]:
    """Share of the values below, ties half."""
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    counts = counts.double()
    return ((counts.cumsum(0) - counts / 2) / len(x))[inverse]
