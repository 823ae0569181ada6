"""Methods that decide temperatures and weights: SimCLR, TS, MM-TS, iSogCLR's rule, and TASE."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import check, option
from ..lazy import torch
from .base import Guidance

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from ..losses import NTXent


class Constant(Guidance):
    """SimCLR (Chen et al. 2020, arXiv 2002.05709): one temperature for all samples and the whole run."""

    title = "SimCLR"

    @dataclass(frozen=True)
    class Options(Guidance.Options):
        tau_0: float = option(
            0.2,
            "constant temperature: of simclr, and of tase before its warm-up ends; tase multiplies losses by tau/tau_0",
            above=0,
        )

    def __init__(self, n: int, **common: Any):
        super().__init__(n, **common)
        self.tau.fill_(self.options.tau_0)


class TemperatureSchedule(Guidance):
    """One temperature for all, a cosine over time (Kukleva et al. 2023, arXiv 2303.13664).

    tau(e) = low + (high - low)(1 + cos(2 pi e / P)) / 2, P = epochs / periods, (low, high) = ts_range.
    """

    title = "TS"

    @dataclass(frozen=True)
    class Options(Guidance.Options):
        periods: int = option(5, "cosine periods in the run", low=1)
        ts_range: tuple[float, float] = option((0.1, 1.0), "smallest and largest temperature", above=0, ordered=True)

    def __init__(self, n: int, **common: Any):
        super().__init__(n, **common)
        self.tau.fill_(self.options.ts_range[1])

    def start_epoch(self, epoch: int) -> None:
        low, high = self.options.ts_range
        wave = cosine(epoch, self.epochs, self.options.periods)
        self.tau = torch.full_like(self.tau, low + (high - low) * (1 + wave) / 2)


def cosine(epoch: int, epochs: int, periods: int) -> float:
    """Return cos(2 pi e / P) of a run of `epochs` with P = epochs / periods; raises ConfigError for no epochs."""
    check(epochs >= 1, "epochs", epochs, "the length of the run, at least 1")
    return math.cos(2 * math.pi * epoch / (epochs / periods))


class MMTS(Guidance):
    """A cosine over time plus a share by the size n_i of the sample's cluster (MM-TS, WACV 2026, arXiv 2603.08202).

    tau_i(e) = (alpha / 2) cos(2 pi e / P) + low + (high - low)(n_i - min n) / (max n - min n), with n_i the number of
    samples whose pseudo-label is the sample's; the middle of low and high where all are equal, and before any update.
    """

    title, per_sample, uses_features = "MM-TS", True, True
    SAVED = ("tau", "weight", "share", "epoch")

    @dataclass(frozen=True)
    class Options(Guidance.Options):
        periods: int = option(5, "cosine periods in the run", low=1)
        mm_range: tuple[float, float] = option(
            (0.17, 0.30), "u_min and u_max, by the size of the sample's cluster", above=0, ordered=True
        )
        mm_alpha: float = option(0.2, "twice the swing of the cosine", low=0)

        def check_together(self) -> None:
            super().check_together()
            low = self.mm_range[0]
            positive = self.mm_alpha < 2 * low  # tau stays above 0
            check(positive, "guidance.mm_alpha", self.mm_alpha, f"below 2 u_min = {2 * low}, so that tau is above 0")

    def __init__(self, n: int, **common: Any):
        super().__init__(n, **common)
        self.share, self.epoch = torch.full_like(self.tau, 0.5), 0
        MMTS.start_epoch(self, 0)  # its own only, not that of parts

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        (low, high), alpha = self.options.mm_range, self.options.mm_alpha
        wave = alpha / 2 * cosine(epoch, self.epochs, self.options.periods)
        self.tau = wave + low + (high - low) * self.share

    def update(self, features: Float[Tensor, "n d"], epoch: int) -> None:
        super().update(features, epoch)
        size = self.pseudo.labels.bincount()[self.pseudo.labels].float().to(self.device)
        low, high = size.min(), size.max()
        self.share = ((size - low) / (high - low)).nan_to_num(0.5)
        MMTS.start_epoch(self, epoch)


class ISogCLRTau(Guidance):
    """A temperature learned for each sample: the rule of iSogCLR (Qiu et al. 2023, arXiv 2305.11965) on our loss.

    The gradient of tau_i is log E[exp(h / tau_i)] + r - E_p[h] / tau_i with h_uv = s_uv - s_up, E over the v != u and p
    their softmax, mean of the image's two anchors. It equals r - KL(p || uniform), so tau settles where the softmax is
    that uneven. `iso_momentum` is the share of the old gradient that is kept.
    """

    title, per_sample = "iSogCLR-τ", True
    SAVED = ("tau", "weight", "gradient")

    @dataclass(frozen=True)
    class Options(Guidance.Options):
        iso_start: float = option(0.1, "temperature at the start", above=0)
        iso_range: tuple[float, float] = option((0.05, 1.0), "temperatures are clamped to this", above=0, ordered=True)
        iso_r: float = option(0.4, "the constant r of the rule")
        iso_step: float = option(0.03, "step size of a temperature")
        iso_momentum: float = option(0.9, "momentum of a temperature's gradient")

    def __init__(self, n: int, **common: Any):
        super().__init__(n, **common)
        self.tau.fill_(self.options.iso_start)
        self.gradient = torch.zeros_like(self.tau)

    def after_step(self, index: Int64[Tensor, "b"], out: NTXent) -> None:
        c, (tau, gradient) = self.options, (self.tau[index], self.gradient[index])
        with torch.no_grad():
            log_mean = out.logsumexp - math.log(out.others) - out.positive_similarity / tau.repeat(2)
            mean = (out.mean_similarity - out.positive_similarity) / tau.repeat(2)
            new = (log_mean + c.iso_r - mean).reshape(2, -1).mean(0).to(gradient.dtype)
            gradient = c.iso_momentum * gradient + (1 - c.iso_momentum) * new
            self.gradient[index] = gradient
            self.tau[index] = (tau - c.iso_step * gradient).clamp(*c.iso_range)


class TASE(Constant):
    """Our reading of TASE (arXiv 2410.22883): temperature (5) and weight (6) of each sample by its headness.

    tau_i = tau_min + (tau_max - tau_min) q_i,    w_i = clip(exp(-gamma (a_i - mean a)), 1/w_max, w_max)

    With `scale_by_tau`, the default, an anchor's loss is multiplied by c_i = tau_i / tau_0: its temperature then says
    only how its push is shared out, and its weight how strong it is.
    With `trust`, log tau_i - log tau_0 and log w_i are multiplied by the trust s that independent clusterings give at
    the end of the warm-up (trust.py), and which is held, since guidance itself raises it; 0 is SimCLR.
    With `group_tau` (head, mid, tail) tau_i is that of the image's group in `groups`. Until epoch `warmup`,
    tau_i = tau_0 and w_i = 1; over the next `ramp` epochs both move in linearly (None: the options' shares of the run's
    `epochs`). True `labels` make it the oracle.
    """

    title, per_sample, uses_features = "TASE", True, True
    steerable = ("tau_min", "tau_max", "gamma", "w_max", "headness_map", "reversed")
    SAVED = ("tau", "weight", "target_tau", "target_weight", "order")

    @dataclass(frozen=True)
    class Options(Constant.Options):
        tau_min: float = option(0.1, "temperature of the samples of the lowest headness, equation (5)", above=0)
        tau_max: float = option(0.5, "temperature of the samples of the highest headness, equation (5)", above=0)
        gamma: float = option(0.5, "strength of the weight, equation (6); 0: all weights 1", low=0)
        w_max: float = option(5.0, "weights are clipped to 1/w_max .. w_max", low=1)
        reversed: bool = option(False, "turn the temperatures round: head low, tail high (a control)")
        scale_by_tau: bool = option(
            True, "multiply an anchor's loss by tau/tau_0: takes out the factor 1/tau of its gradient"
        )
        shuffled: bool = option(
            False, "permute the pairs (tau, w) among the samples: the control with the same distribution"
        )
        group_tau: tuple[float, ...] = option(
            (),
            "with labels=oracle: temperatures of head, mid and tail by true class, in place of tau_min to tau_max",
            above=0,
            before=(),
        )
        trust: bool = option(
            False,
            "pull tau to tau_0 and w to 1 as far as independent clusterings, at the end of the warm-up, see no more of "
            "some looks than balanced data show",
            before=False,
        )
        ramp: float = option(0.05, "share of the run over which tau and w move in after the warm-up", low=0, high=1)

        def check_together(self) -> None:
            super().check_together()
            allowed = f"at least guidance.tau_min = {self.tau_min}"
            check(self.tau_max >= self.tau_min, "guidance.tau_max", self.tau_max, allowed)
            count = len(self.group_tau)
            check(count in (0, 3), "guidance.group_tau", self.group_tau, "empty, or three: head, mid, tail")
            allowed = "empty unless guidance.labels = oracle: groups are known from true labels only"
            check(not count or self.labels == "oracle", "guidance.group_tau", self.group_tau, allowed)

    def __init__(self, n: int, *, warmup: int | None = None, ramp: int | None = None, **common: Any):
        super().__init__(n, **common)
        c = self.options
        known = self.groups is not None or not c.group_tau
        check(known, "guidance.group_tau", c.group_tau, "empty where the images' groups are not given")
        self.warmup = round(c.warmup * self.epochs) if warmup is None else warmup
        self.ramp = round(c.ramp * self.epochs) if ramp is None else ramp
        check(min(self.warmup, self.ramp) >= 0, "warmup, ramp", (warmup, ramp), "numbers of epochs, at least 0")
        self.target_tau, self.target_weight = self.tau.clone(), self.weight.clone()
        self.order = torch.arange(n, device=self.device)
        self.trusted = math.nan  # trust s, once the warm-up has ended
        if c.trust:
            self.SAVED = (*self.SAVED, "trusted")
        if c.shuffled:
            # A generator of its own: the control has the same clusters as the method it is compared with.
            own = torch.Generator().manual_seed(self.pseudo.generator.initial_seed())
            self.order = torch.randperm(n, generator=own).to(self.device)

    def start_epoch(self, epoch: int) -> None:
        done = min(1.0, (epoch - self.warmup) / self.ramp) if self.ramp else float(epoch >= self.warmup)
        done = max(0.0, done)
        self.tau = torch.lerp(torch.full_like(self.tau, self.options.tau_0), self.target_tau, done)
        self.weight = torch.lerp(torch.ones_like(self.weight), self.target_weight, done)

    def update(self, features: Float[Tensor, "n d"], epoch: int) -> None:
        super().update(features, epoch)
        q, a = self.pseudo.q.to(self.device), self.pseudo.headness.to(self.device)
        if says_nothing(self.pseudo.spread, self.options):
            message = "The clusters are all about as large and say nothing about quantity: no guidance from them."
            warnings.warn(message, stacklevel=2)
        groups = None if self.groups is None else self.groups.to(self.device)
        share = self._trusted_share(epoch)
        tau, weight = guided(q, a, self.pseudo.spread, self.options, share, groups)
        self.target_tau, self.target_weight = tau[self.order].float(), weight[self.order].float()
        TASE.start_epoch(self, epoch)

    def _trusted_share(self, epoch: int) -> float:
        """Return the share of the guidance that acts: 1 without `trust`, and for true labels, which need none."""
        if not self.options.trust or self.pseudo.truth is not None:
            return 1.0
        if math.isnan(self.trusted) and epoch >= self.warmup:
            self.trusted = self.found["trust"]
        return 0.0 if math.isnan(self.trusted) else self.trusted

    @staticmethod
    def loss_scale(options: Options, tau: Float[Tensor, "b"]) -> Float[Tensor, "b"] | None:
        return tau / options.tau_0 if options.scale_by_tau else None


def temperature_and_weight(
    q: Float[Tensor, "n"], a: Float[Tensor, "n"], options: TASE.Options
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Compute equations (5) and (6): tau and w of samples with q in [0, 1] and headness a, after the ramp."""
    c = options
    tau = c.tau_min + (c.tau_max - c.tau_min) * (1 - q if c.reversed else q)  # (5)
    weight = (-c.gamma * (a - a.mean())).exp().clamp(1 / c.w_max, c.w_max)  # (6)
    return tau, weight


def guided(
    q: Float[Tensor, "n"],
    a: Float[Tensor, "n"],
    spread: float,
    options: TASE.Options,
    share: float = 1.0,
    groups: Int64[Tensor, "n"] | None = None,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Return the tau and w that samples are trained with after the ramp: `temperature_and_weight`, as far as it acts.

    `share` of it acts, and nothing where the `spread` of the log sizes is too small to say anything. With
    `options.group_tau` tau is that of the sample's group in `groups` (0, 1, 2), whatever the spread.
    """
    tau, weight = temperature_and_weight(q, a, options)
    if options.group_tau:
        tau = tau.new_tensor(options.group_tau)[groups]
    return shrunken(tau, weight, options.tau_0, 0.0 if says_nothing(spread, options) else share)


def says_nothing(spread: float, options: TASE.Options) -> bool:
    """Tell whether log sizes differ too little to guide by them; temperatures of true groups need no sizes."""
    from ..pseudo_labels import LEAST_SPREAD

    return spread < LEAST_SPREAD and not options.group_tau


def shrunken(
    tau: Float[Tensor, "n"], weight: Float[Tensor, "n"], tau_0: float, trust: float
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Pull the logs of tau toward log tau_0 and those of the weights toward 0; exact at trust 0 and 1."""
    if trust == 1:
        return tau, weight
    if trust == 0:
        return torch.full_like(tau, tau_0), torch.ones_like(weight)
    return tau_0 * (tau / tau_0) ** trust, weight**trust
