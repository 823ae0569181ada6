"""Rivals that change views, network or loss, as parts that compose with any guidance: SDCLR, BCL, GH.

A part overrides some hooks and leaves the rest to the class after it: `compose(SDCLR, TASE)` is TASE whose second view
goes through SDCLR's pruned network. Written from the papers and the facts of the released code; where that code has a
quirk, the class says so and does without it.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import ConfigError, check, option
from ..lazy import torch
from .base import Guidance

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor, nn

    from ..losses import NTXent
    from .base import Views


class SDCLR(Guidance):
    """Self-damaging contrast (Jiang et al. 2021, arXiv 2106.02990): the second view goes through a pruned network.

    At the start of each epoch one threshold over the magnitudes of all convolution weights decides which are 0 for the
    second view. Weights are shared, the pruned branch has norms of its own; features are those of the full network.
    The released step makes three passes, for the sake of DDP; its gradient is that of these two. Its head has three
    layers where its baseline has two; here all methods have the same head, schedule and weight decay.
    """

    title = "SDCLR"
    SAVED = (*Guidance.SAVED, "masks")

    @dataclass(frozen=True)
    class Options(Guidance.Options):
        sdclr_pruned: float = option(0.9, "sdclr: share of the convolution weights that are pruned", low=0, below=1)
        sdclr_random: bool = option(False, "sdclr: prune at random, not by magnitude (a control)")

    def __init__(self, n: int, **common: Any):
        self.weights, self.masks = {}, {}
        super().__init__(n, **common)

    def modules(self, network: nn.Module) -> nn.Module:
        layers, norm = dict(network.named_modules()), torch.nn.modules.batchnorm._BatchNorm
        norms = {name: copy.deepcopy(m) for name, m in layers.items() if isinstance(m, norm)}
        self.norms = torch.nn.ModuleDict({name.replace(".", "/"): m for name, m in norms.items()})  # no dots there
        self.weights = {f"{name}.weight": m.weight for name, m in layers.items() if isinstance(m, torch.nn.Conv2d)}
        if not self.weights:
            raise ConfigError("method 'sdclr' prunes convolutions, and this network has none: choose another backbone")
        self.masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self.weights.items()}
        return torch.nn.ModuleList(m for m in (self.norms, super().modules(network)) if m is not None)

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        scores = {name: w.detach().abs() for name, w in self.weights.items()}
        if self.options.sdclr_random:
            rng = self.own_generator(f"masks of epoch {epoch}")
            scores = {name: torch.rand(w.shape, generator=rng).to(w.device) for name, w in self.weights.items()}
        if scores:
            every = torch.cat([score.flatten() for score in scores.values()])
            pruned = min(math.ceil(self.options.sdclr_pruned * len(every)), len(every) - 1)
            threshold = every.kthvalue(pruned + 1).values
            self.masks = {name: score >= threshold for name, score in scores.items()}
        empty = [name for name, mask in self.masks.items() if not mask.any()] if epoch == 0 else []
        if empty:
            message = f"All of {empty[0]} is pruned: the second view says nothing of its image. Lower sdclr_pruned."
            warnings.warn(message, stacklevel=2)

    def embed(self, network: nn.Module, view1: Views, view2: Views) -> tuple[Tensor, Tensor]:
        plain = getattr(network, "_orig_mod", network)  # what torch.compile wraps
        replaced = {name: w * self.masks[name] for name, w in self.weights.items()}
        for name, norm in self.norms.items():
            tensors = (*norm.named_parameters(), *norm.named_buffers())
            replaced |= {f"{name.replace('/', '.')}.{leaf}": tensor for leaf, tensor in tensors}
        return network(view1), torch.func.functional_call(plain, replaced, (view2,))


class BCL(Guidance):
    """Boosted contrastive learning (Zhou et al. 2022, arXiv 2205.12693): what is hard to learn is augmented more.

    m_i <- beta m_i + (1 - beta) l_i at each visit (the first: l_i). At the start of each epoch but the first,
    z_i = m_i - mean m and the strength M_i = (z_i / max |z| + 1) / 2; in the first, 0. (The paper also divides z by its
    deviation, which cancels.) After the usual changes each view gets `bcl_operations` of RandAugment, each with
    probability M_i, of magnitude low + (30 - low) M_i, for BCL-D times u uniform per view (released: per image).
    The mean of M is 0.5, so half of the views get an operation that the baseline lacks: hence bcl-constant.
    Released runs have weight decay 5e-4 for SimCLR and BCL-I but 1e-4 for SDCLR and BCL-D, so that their differences
    hold both, and SDCLR prunes by the magnitudes that decay sets; here all have the preset's.
    """

    title = "BCL-I"
    SAVED = (*Guidance.SAVED, "loss_memory", "strength")
    SHOWN = ("loss_memory", "strength")

    @dataclass(frozen=True)
    class Options(Guidance.Options):
        bcl_beta: float = option(0.97, "bcl: share of a sample's remembered loss that is kept", low=0, below=1)
        bcl_operations: int = option(1, "bcl: operations of RandAugment on each view", low=1)
        bcl_low: float = option(10.0, "bcl: magnitude at strength 0, of 30", low=0, high=30)
        bcl_random: bool = option(False, "bcl: magnitudes times a uniform draw per view (BCL-D)")
        bcl_constant: float = option(
            -1.0, "bcl: the same strength for all (-1: from the losses; a control)", low=-1, high=1
        )
        bcl_shuffled: bool = option(False, "bcl: permute the strengths among the samples (a control)")

    def __init__(self, n: int, **common: Any):
        super().__init__(n, **common)
        self.loss_memory = torch.full_like(self.tau, math.nan)  # nan: not seen yet
        self.strength = torch.zeros_like(self.tau)

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        z = (self.loss_memory - self.loss_memory.nanmean()).nan_to_num(0.0)  # not seen: as the mean
        strength = (z / z.abs().max().clamp_min(1e-12) + 1) / 2
        if self.options.bcl_constant >= 0:
            strength = torch.full_like(strength, self.options.bcl_constant)
        elif epoch == 0:
            strength = torch.zeros_like(strength)
        if self.options.bcl_shuffled:
            order = torch.randperm(self.n, generator=self.own_generator("order of the strengths"))
            strength = strength[order.to(self.device)]
        self.strength = strength

    def views(self, index, view1, view2, generator, offset=0, total=None) -> tuple[Views, Views]:
        from ..views import rand_augment

        c, both = self.options, super().views(index, view1, view2, generator, offset, total)
        how = (self.strength[index], c.bcl_low, c.bcl_operations, c.bcl_random, generator, offset, total)
        view1, view2 = (rand_augment(view, *how) for view in both)
        return view1, view2

    def after_step(self, index: Int64[Tensor, "b"], out: NTXent) -> None:
        super().after_step(index, out)
        loss, before = out.per_anchor.detach().reshape(2, -1).mean(0).float(), self.loss_memory[index]
        mixed = torch.lerp(loss, before, self.options.bcl_beta)
        self.loss_memory[index] = torch.where(before.isnan(), loss, mixed)


class GH(Guidance):
    """Geometric harmonization (Zhou et al. 2023, arXiv 2310.18298): views agree on evenly placed surrogate classes.

    W [K, d] is a simplex ETF, t_v = normalise(z_v W'); the loss grows by v times `harmonization` of t_1, t_2. Its
    marginals are the shares of the argmax of a momentum memory of t_1, counted when the warm-up ends and every
    `gh_refresh`; v grows to 1 over `gh_ramp` from there. Published for 1,000 epochs as 500, 20 and 10 epochs: here
    shares of the run. The released memory starts from uninitialised numbers; here from the first t_1. The released
    learning rate has two stages; here all methods have the preset's.
    """

    title, SHOWN = "GH", ("surrogate",)
    SAVED = (*Guidance.SAVED, "class_memory", "marginal", "amount")

    @dataclass(frozen=True)
    class Options(Guidance.Options):
        gh_classes: int = option(0, "gh: surrogate classes K, at most d + 1 (0: 100 or d + 1, what is less)", low=0)
        gh_warmup: float = option(0.5, "gh: share of the run before its loss joins", low=0, high=1)
        gh_ramp: float = option(0.01, "gh: share of the run over which its loss then grows in", low=0, high=1)
        gh_refresh: float = option(0.02, "gh: share of the run between two counts of the marginals", above=0, high=1)
        gh_uniform: bool = option(False, "gh: uniform marginals (a control)")
        gh_iterations: int = option(20, "gh: Sinkhorn iterations", low=1)

    def __init__(self, n: int, **common: Any):
        self.amount = 0.0  # v
        self.class_memory, self.marginal = torch.full((n, 1), math.nan), torch.ones(1)  # K is known in `modules`
        super().__init__(n, **common)

    def modules(self, network: nn.Module) -> nn.Module | None:
        d = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1].out_features
        k = self.options.gh_classes or min(100, d + 1)
        check(2 <= k <= d + 1, "guidance.gh_classes", k, f"from 2 to model.head_dim + 1 = {d + 1}")
        self.etf = simplex_etf(k, d, self.own_generator("classes")).to(self.device)
        self.class_memory = torch.full((self.n, k), math.nan, device=self.device)  # nan: not seen yet
        self.marginal = torch.full((k,), 1 / k, device=self.device)
        return super().modules(network)

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        c, k = self.options, self.class_memory.shape[1]
        late = epoch - round(c.gh_warmup * self.epochs)
        self.amount = min(1.0, max(0.0, (late + 1) / max(1.0, c.gh_ramp * self.epochs)))
        seen = self.surrogate[self.surrogate >= 0]
        if late >= 0 and late % max(1, round(c.gh_refresh * self.epochs)) == 0 and len(seen) and not c.gh_uniform:
            self.marginal = seen.bincount(minlength=k) / len(seen)

    @property
    def surrogate(self) -> Int64[Tensor, "n"]:
        return self.class_memory.argmax(1).masked_fill(self.class_memory[:, 0].isnan(), -1)

    def extra(self, index: Int64[Tensor, "b"], z1: Tensor, z2: Tensor) -> Tensor | None:
        others = super().extra(index, z1, z2)
        with torch.autocast(z1.device.type, enabled=False):
            t1, t2 = (torch.nn.functional.normalize(z.float() @ self.etf.T, dim=1) for z in (z1, z2))  # [b, K]
            before, now = self.class_memory[index], t1.detach()
            mixed = torch.lerp(now, before, 0.999 if self.amount else 0.9)  # nearly frozen once the loss has joined
            self.class_memory[index] = torch.where(before.isnan(), now, mixed)
            if self.amount == 0:
                return others
            loss = harmonization(t1, t2, self.marginal, self.options.gh_iterations)
        return self.amount * loss if others is None else others + self.amount * loss


def harmonization(
    t1: Float[Tensor, "b k"], t2: Float[Tensor, "b k"], marginal: Float[Tensor, "k"], iterations: int
) -> Float[Tensor, ""]:
    """Compute -mean q_1 . log softmax(t_2 / 0.1) - mean q_2 . log softmax(t_1 / 0.1), q_v = sinkhorn(t_v / 0.05)."""
    q1, q2 = (sinkhorn(t.detach() / 0.05, marginal, iterations) for t in (t1, t2))
    return -(q1 * (t2 / 0.1).log_softmax(1) + q2 * (t1 / 0.1).log_softmax(1)).sum(1).mean()


def simplex_etf(k: int, d: int, generator: torch.Generator) -> Float[Tensor, "k d"]:
    """Make k unit vectors in d >= k - 1 dimensions whose cosines are all -1 / (k - 1), in a random orientation."""
    centred = torch.eye(k, dtype=torch.float64) - 1 / k
    basis = torch.linalg.svd(centred).U[:, : k - 1]  # [k, k - 1] of the complement of (1, ..., 1)
    turned = torch.linalg.qr(torch.randn(d, k - 1, generator=generator, dtype=torch.float64)).Q  # [d, k - 1]
    return (math.sqrt(k / (k - 1)) * basis @ turned.T).float()


def sinkhorn(logits: Float[Tensor, "b k"], marginal: Float[Tensor, "k"], iterations: int) -> Float[Tensor, "b k"]:
    """Balance exp(logits): each row sums to 1 exactly, the mean of the rows to `marginal` up to convergence."""
    q = (logits - logits.max()).exp()
    for _ in range(iterations):
        q = q * (marginal / q.mean(0).clamp_min(1e-30))
        q = q / q.sum(1, keepdim=True).clamp_min(1e-30)
    return q
