"""The contrastive loss with a temperature and a weight per sample: equations (1) and (2).

    l_a = - s_ap / tau_i + log sum_{b != a} exp(s_ab / tau_i)          anchor a of image i, positive p, cosine s
    L   = sum_a w_i l_a / sum_a w_i

    out = nt_xent(z1, z2, tau=tau[index], weight=weight[index])
    out.loss.backward()

With one constant temperature this is SimCLR's NT-Xent (arXiv 2002.05709). Temperatures and weights are constants for
the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .distributed import gather, share, total, world


class NTXent(NamedTuple):
    """The loss and its parts; anchors are the first views, then the second views. Fields marked (d) are detached."""

    loss: Tensor  # scalar, equation (2)
    per_anchor: Tensor  # [2b] l_a, without weight and scale
    attraction: Tensor  # scalar, weighted mean of -s_ap / tau; attraction + repulsion = loss
    repulsion: Tensor  # scalar, weighted mean of the log-sum-exp
    logsumexp: Tensor  # [2b] (d) log sum_{b != a} exp(s_ab / tau)
    mean_similarity: Tensor  # [2b] (d) E_p[s_ab], p the softmax of s_ab / tau over b != a
    positive_similarity: Tensor  # [2b] (d) s_ap
    others: int  # terms in each log-sum-exp


def nt_xent(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    tau: float | Float[Tensor, "b"] = 0.2,
    weight: float | Float[Tensor, "b"] | None = None,
    chunk: int | None = None,
    scale: float | Float[Tensor, "b"] | None = None,
    batch: int | None = None,
) -> NTXent:
    """Equations (1) and (2) for two views of b images; projections of any length, they are normalised here.

    With `batch`, the images are this process's `distributed.share` of so many: each anchor is held against the views
    of them all, and the losses of the processes add up to that of the whole batch (`whole` puts the parts together).

    `tau`, `weight` and `scale` are one number or one per image; `scale` multiplies l_a but not the sum of the weights.
    With `chunk`, that many rows of similarities exist at a time, recomputed in the backward pass: memory 2b x chunk
    instead of 2b x 2b, same result. Computed in float32 at least, whatever the autocast type.
    Raises ValueError for shapes that do not fit and for values that are not possible (tau <= 0, negative or all-zero
    weights). Tensors on an accelerator are not looked at, as each step would wait for the device: there, all-zero
    weights show as a NaN loss.
    """
    if z1.ndim != 2 or z1.shape != z2.shape or len(z1) == 0:
        raise ValueError(
            f"z1 and z2 must be two views [b, d] of the same images, not {list(z1.shape)} and {list(z2.shape)}"
        )
    if chunk is not None and chunk < 0:
        raise ValueError(f"chunk = {chunk} is not possible: it must be a number of rows, or None for all")
    b = len(z1)
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.cat([z1, z2])
        z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
        tau, weight, scale = (
            per_anchor(v, name, z, b, (batch or b) > b)
            for v, name in ((tau, "tau"), (weight, "weight"), (scale, "scale"))
        )
        itself, columns, n = torch.arange(2 * b, device=z.device), z, batch or b
        if n > b:  # the columns in the order of one process: all first views, then all second views
            columns = gather(z.unflatten(0, (2, b)).transpose(0, 1), n)
            columns, itself = columns.transpose(0, 1).flatten(0, 1), itself % b + share(n).start + itself // b * n
        parts = contrast(z, columns, (itself + n) % (2 * n), itself, tau, chunk)
        return reduce(*parts, tau, weight, scale, others=2 * n - 1, total=total(weight.sum()) if n > b else None)


def whole(out: NTXent, batch: int) -> NTXent:
    """The loss and its parts, detached, of the whole batch, in every process, from each one's part of `nt_xent`."""
    if world() == 1:
        return out
    rows = torch.stack([out.per_anchor.detach(), *out[4:7]], dim=1).unflatten(0, (2, -1)).transpose(0, 1)
    rows = gather(rows.contiguous(), batch).transpose(0, 1).flatten(0, 1)
    loss, attraction, repulsion = total(torch.stack([out.loss, out.attraction, out.repulsion]).detach())
    return NTXent(loss, rows[:, 0], attraction, repulsion, *rows[:, 1:].unbind(1), out.others)


def per_anchor(
    value: float | Tensor | None, name: str, like: Float[Tensor, "a d"], b: int, part: bool = False
) -> Float[Tensor, "a"]:
    """`value` (one number, one per image, or None for 1) for each of the 2b anchors, checked if that needs no wait.

    `part`: others have more of the batch, and here all weights may be 0.
    """
    value = torch.as_tensor(1.0 if value is None else value, dtype=like.dtype).detach()
    if value.shape not in ((), (b,)):
        raise ValueError(f"{name} must be one number or one per image [{b}], not of shape {list(value.shape)}")
    if value.device.type == "cpu":
        weighs = bool((value >= 0).all() and (part or value.sum() > 0))
        if not {"tau": bool((value > 0).all()), "weight": weighs}.get(name, True):
            raise ValueError(
                {"tau": "tau must be above 0", "weight": "weight must be at least 0, and not 0 for the whole batch"}[
                    name
                ]
            )
    if value.ndim == 0 and value.device.type == "cpu":
        return like.new_full((2 * b,), value.item())  # filled on the device: nothing to copy there
    return value.to(like.device).expand(b).repeat(2)


def contrast(
    rows: Float[Tensor, "r d"],
    columns: Float[Tensor, "c d"],
    positive: Int64[Tensor, "r"],
    itself: Int64[Tensor, "r"],
    tau: Float[Tensor, "r"],
    chunk: int | None = None,
) -> tuple[Float[Tensor, "r"], Float[Tensor, "r"], Float[Tensor, "r"]]:
    """s_ap, the log-sum-exp over b != a, and E_p[s_ab] (not differentiable) of unit rows against unit columns.

    `positive` and `itself` are the columns of each row's positive and of the row itself, so that the rows may be one
    process's share of the columns.
    """
    similarity = (rows * columns[positive]).sum(1)
    lse, mean = _LogSumExp.apply(rows, columns, itself, tau.reciprocal(), chunk or len(rows))
    return similarity, lse, mean


def reduce(
    similarity: Float[Tensor, "r"],
    lse: Float[Tensor, "r"],
    mean: Float[Tensor, "r"],
    tau: Float[Tensor, "r"],
    weight: Float[Tensor, "r"],
    scale: Float[Tensor, "r"],
    others: int,
    total: Float[Tensor, ""] | None = None,
) -> NTXent:
    """Equation (2) from the parts of `contrast`; `total` is the sum of all processes' weights (None: of these rows)."""
    share = weight * scale / (weight.sum() if total is None else total)
    pull = -similarity / tau
    losses = pull + lse
    parts = (lse.detach(), mean.detach(), similarity.detach())
    return NTXent((share * losses).sum(), losses, (share * pull).sum(), (share * lse).sum(), *parts, others)


class _LogSumExp(torch.autograd.Function):
    """log sum_{b != a} exp(s_ab / tau_a) a chunk of rows at a time.

    Written out because the softmax needed backward is cheaper to recompute than to keep: on one CPU core as fast
    as automatic differentiation of the whole matrix, at any chunk from 128 rows on; checkpointing took 1.5 to 2 times
    as long.
    """

    @staticmethod
    def forward(ctx, rows, columns, itself, inverse_tau, chunk):
        lse, mean = torch.empty_like(inverse_tau), torch.empty_like(inverse_tau)
        for i in range(0, len(rows), chunk):
            s = slice(i, i + chunk)
            similarity = rows[s] @ columns.T
            logits = similarity * inverse_tau[s, None]
            logits.scatter_(1, itself[s, None], -torch.inf)
            lse[s] = logits.logsumexp(1)
            p = logits.sub_(lse[s, None]).exp_()
            mean[s] = torch.linalg.vecdot(p, similarity)
        ctx.save_for_backward(rows, columns, itself, inverse_tau, lse)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(mean)
        return lse, mean

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, _):
        rows, columns, itself, inverse_tau, lse = ctx.saved_tensors
        by_row, by_column = torch.empty_like(rows), torch.zeros_like(columns)
        with torch.autocast(rows.device.type, enabled=False):
            for i in range(0, len(rows), ctx.chunk):
                s = slice(i, i + ctx.chunk)
                p = (rows[s] @ columns.T).mul_(inverse_tau[s, None]).sub_(lse[s, None]).exp_()
                p.mul_((gradient * inverse_tau)[s, None]).scatter_(1, itself[s, None], 0.0)
                by_row[s] = p @ columns
                by_column.addmm_(p.T, rows[s])
        return by_row, by_column, None, None, None
