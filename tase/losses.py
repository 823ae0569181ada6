"""The contrastive loss with a temperature and a weight per sample: equations (1) and (2).

    l_u = - s_up / tau_i + log sum_{v != u} exp(s_uv / tau_i)          anchor u of image i, positive p, cosine s
    L   = sum_u w_i c_i l_u / sum_u w_i                                c_i = tau_i / tau_0 in TASE, 1 in the others

or, for two views z1, z2 [n, d] of n images, written plainly:

    z = F.normalize(torch.cat([z1, z2]), dim=1)                         # [2n, d]
    s = (z @ z.T).fill_diagonal_(-inf) / tau.repeat(2)[:, None]         # [2n, 2n], s_uv / tau_i
    positive = torch.arange(2 * n).roll(n)                              # the other view of the same image
    l = -s[torch.arange(2 * n), positive] + s.logsumexp(1)              # (1)
    loss = ((weight * scale).repeat(2) * l).sum() / weight.repeat(2).sum()                # (2), c the scale

`nt_xent` is this without a square matrix in memory:

    out = nt_xent(z1, z2, tau=tau[index], weight=weight[index], scale=guide.scale(index))
    out.loss.backward()

With one constant temperature it is SimCLR's NT-Xent (arXiv 2002.05709). Temperatures and weights are constants for the
gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class NTXent(NamedTuple):
    """The loss and its parts; anchors are the first views, then the second views. Fields marked (d) are detached."""

    loss: Tensor  # scalar, equation (2)
    per_anchor: Tensor  # [2b] l_u, without weight and scale
    attraction: Tensor  # scalar, the part of -s_up / tau in it; attraction + repulsion = loss
    repulsion: Tensor  # scalar, the part of the log-sum-exp in it
    logsumexp: Tensor  # [2b] (d) log sum_{v != u} exp(s_uv / tau)
    mean_similarity: Tensor  # [2b] (d) E_p[s_uv], p the softmax of s_uv / tau over v != u
    positive_similarity: Tensor  # [2b] (d) s_up
    others: int  # terms in each log-sum-exp


def nt_xent(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    tau: float | Float[Tensor, "n"] = 0.2,
    weight: float | Float[Tensor, "n"] | None = None,
    chunk: int | None = None,
    scale: float | Float[Tensor, "n"] | None = None,
    columns: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]] | None = None,
    offset: int = 0,
) -> NTXent:
    """Compute equations (1) and (2) for two views of b images; projections of any length, they are normalised here.

    `tau`, `weight` and `scale` are one number or one per image; `scale` multiplies l_u but not the sum of the weights.
    With `chunk`, that many rows of similarities exist at a time, recomputed in the backward pass: memory 2b x chunk
    instead of 2b x 2b, same result. Computed in float32 at least, in autocast too.

    With `columns`, the b images are those from `offset` on of a batch of n, whose views the columns are. Each anchor is
    held against all 2n of them, `tau`, `weight` and `scale` are those of the batch [n], and the losses of all its
    parts add up to that of the batch.

    Raises ValueError for shapes that do not fit and for invalid values (tau <= 0, negative or all-zero weights).
    Tensors on an accelerator are not checked, as each step would wait for the device: there, all-zero weights show as
    a NaN loss.
    """
    _check_shapes(z1, z2, chunk)
    with torch.autocast(z1.device.type, enabled=False):
        z = _unit(z1, z2)  # [2b, d]
        others = z if columns is None else _unit(*columns)  # [2n, d]
        b, n = len(z1), len(others) // 2
        tau, weight, scale = _per_image(tau, weight, scale, n, z)  # [n] each
        # The column of each anchor: first views, then second views. The positive is the same image in the other half.
        image = torch.arange(offset, offset + b, device=z.device)
        itself, positive = torch.cat([image, image + n]), torch.cat([image + n, image])
        total = weight.repeat(2).sum()
        tau, weight, scale = (v.repeat(2)[itself] for v in (tau, weight, scale))  # [2b] each

        similarity = (z * others[positive]).sum(1)  # s_up
        lse, mean = _LogSumExp.apply(z, others, itself, tau.reciprocal(), chunk or len(z))
        pull = -similarity / tau
        losses = pull + lse  # (1)
        share = weight * scale / total
        loss, attraction, repulsion = ((share * part).sum() for part in (losses, pull, lse))  # (2)
    parts = (lse.detach(), mean.detach(), similarity.detach())
    return NTXent(loss, losses, attraction, repulsion, *parts, 2 * n - 1)


def _check_shapes(z1: Tensor, z2: Tensor, chunk: int | None) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape or len(z1) == 0:
        raise ValueError(
            f"z1 and z2 must be two views [b, d] of the same images, not {list(z1.shape)} and {list(z2.shape)}"
        )
    if chunk is not None and chunk < 0:
        raise ValueError(f"invalid chunk = {chunk}: must be a number of rows, or None for all")


def _unit(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"]) -> Float[Tensor, "2n d"]:
    z = torch.cat([z1, z2])
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)


def _per_image(tau, weight, scale, n: int, like: Tensor) -> list[Float[Tensor, "n"]]:
    """Expand one number, one per image, or None for 1, to [n] constants; checks what needs no wait for the device."""
    found = []
    for name, value in (("tau", tau), ("weight", weight), ("scale", scale)):
        value = torch.as_tensor(1.0 if value is None else value, dtype=like.dtype).detach()
        if value.shape not in ((), (n,)):
            raise ValueError(f"{name} must be one number or one per image [{n}], not of shape {list(value.shape)}")
        if value.device.type == "cpu":
            if name == "tau" and not (value > 0).all():
                raise ValueError("tau must be above 0")
            if name == "weight" and not ((value >= 0).all() and value.sum() > 0):
                raise ValueError("weight must be at least 0, and not 0 for the whole batch")
            if value.ndim == 0:
                value = like.new_full((n,), value.item())  # filled on the device: nothing to copy there
        found.append(value.to(like.device).expand(n))
    return found


class _LogSumExp(torch.autograd.Function):
    """log sum_{v != u} exp(s_uv / tau_u) and E_p[s_uv] (not differentiable) of unit rows, a chunk of rows at a time.

    `itself` is the column of each row that is the row itself. Written out because the backward pass needs nothing but
    the softmax p: it is kept where the whole matrix is one chunk, else computed again, a chunk at a time (checkpointing
    took 1.5 to 2 times as long).
    """

    @staticmethod
    def forward(ctx, rows, columns, itself, inverse_tau, chunk):
        lse, mean = torch.empty_like(inverse_tau), torch.empty_like(inverse_tau)
        for i in range(0, len(rows), chunk):
            s = slice(i, i + chunk)
            similarity = rows[s] @ columns.T  # [chunk, 2n]
            logits = similarity * inverse_tau[s, None]
            logits.scatter_(1, itself[s, None], -torch.inf)  # v != u
            lse[s] = logits.logsumexp(1)
            p = logits.sub_(lse[s, None]).exp_()  # in place: the logits are not needed again
            mean[s] = torch.linalg.vecdot(p, similarity)
        ctx.save_for_backward(rows, columns, itself, inverse_tau, lse, *([p] if chunk >= len(rows) else []))
        ctx.chunk = chunk
        ctx.mark_non_differentiable(mean)
        return lse, mean

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, _):
        # d lse_u / d s_uv = p_uv / tau_u, and s_uv = row_u . column_v
        rows, columns, itself, inverse_tau, lse, *kept = ctx.saved_tensors
        by_row, by_column = torch.empty_like(rows), torch.zeros_like(columns)
        with torch.autocast(rows.device.type, enabled=False):
            for i in range(0, len(rows), ctx.chunk):
                s = slice(i, i + ctx.chunk)
                if kept:
                    p = kept[0] * (gradient * inverse_tau)[:, None]
                else:
                    p = (rows[s] @ columns.T).mul_(inverse_tau[s, None]).sub_(lse[s, None]).exp_()
                    p.mul_((gradient * inverse_tau)[s, None]).scatter_(1, itself[s, None], 0.0)
                by_row[s] = p @ columns
                by_column.addmm_(p.T, rows[s])
        return by_row, by_column, None, None, None
