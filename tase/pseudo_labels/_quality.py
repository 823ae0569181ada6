"""Pseudo-labels against the true labels, where there are any."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ._quantity import midrank


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
    x, y = (r - r.mean() for r in (midrank(x), midrank(y)))
    return (x @ y / (x.norm() * y.norm())).item()
