"""How much is there of what a sample shows? The estimators, and q of equation (4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ._clusters import rows_of


class Quantity(NamedTuple):
    """What an estimator returns."""

    a: Tensor  # [n] float64: headness, on the scale of a log number of samples
    log_sizes: Tensor | None  # [m] float64: log sizes of the non-empty groups; None where there are none


def by_size(h: Float[Tensor, "n d"], p: Float[Tensor, "n k"], centres: Float[Tensor, "k d"], **_: Any) -> Quantity:
    """Equation (4): the expected log size of a sample's clusters."""
    sizes = sizes_of(p)
    return Quantity(_expected(p, _log(sizes, len(p))), _log(_not_empty(sizes, len(p)), len(p)))


def by_merged_size(
    h: Tensor, p: Tensor, centres: Tensor, merge_to: int = 0, linkage: str = "single", **_: Any
) -> Quantity:
    """Equation (4) after joining the centres by linkage (single or average) into `merge_to` groups (0: a third of k).

    k-means likes clusters of equal size and so cuts a large class into many; joining them puts it together again.
    """
    group = _linked(centres, merge_to or max(1, math.ceil(len(centres) / 3)), linkage)
    sizes = h.new_zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, sizes_of(p))
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
