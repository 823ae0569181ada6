"""Which temperature and which weight has each sample now? That is a method, and all that training asks of it.

    guide = TASE(n=len(images))
    guide.update(features, epoch=10)            # backbone features of all images, without augmentation [n, d]
    guide.tau[index], guide.weight[index]       # for the loss of a batch

A method of your own is a subclass that sets `tau` and `weight` in any of the hooks. Here, the closer a sample is to its
centre, the lower its temperature, and samples whose loss stays high count more:

    class Centred(Guidance):
        SAVED = (*Guidance.SAVED, "loss")                               # restored on resume, beside tau and weight
        USES_FEATURES = True                                            # tau or weight depend on update

        def __init__(self, n, low=0.1, high=0.4, **common):             # common: pseudo, device
            super().__init__(n, **common)
            self.low, self.high = low, high
            self.loss = torch.ones(n, device=self.device)

        def update(self, features, epoch):                              # every few epochs
            super().update(features, epoch)                             # the pseudo-labels
            certainty = self.pseudo.p.amax(1)
            self.tau = self.high - (self.high - self.low) * certainty

        def after_step(self, index, out):                               # every step; out is the loss's NTXent
            now = out.per_anchor.detach().reshape(2, -1).mean(0)
            self.loss[index] = 0.9 * self.loss[index] + 0.1 * now
            self.weight[index] = self.loss[index] / self.loss.mean()

    guide = Centred(n, pseudo=PseudoLabels(n, clusters=20))

To choose it by name, add a builder to GUIDANCES here and a line to METHODS in config.py.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .config import METHODS, Config, GuidanceConfig, check, unknown
from .losses import NTXent
from .pseudo_labels import PseudoLabels


class Guidance:
    """Temperatures and weights of n samples: constant ones; the base of all methods.

    `tau` [n] and `weight` [n] are float32 on `device`; `pseudo` (or None) is clustered at each update for every method,
    so that all have the same snapshots. The attributes named in SAVED (tensors or numbers) are its state.
    """

    SAVED: tuple[str, ...] = ("tau", "weight")
    USES_FEATURES = False  # whether tau or weight depend on `update`; else it is called for the snapshots only

    def __init__(
        self, n: int, pseudo: PseudoLabels | None = None, tau: float = 0.2, device: str | torch.device = "cpu"
    ):
        check(n >= 1, "n", n, "the number of images, at least 1")
        check(tau > 0, "guidance.tau_0", tau, "above 0")
        self.n, self.pseudo, self.device = n, pseudo, torch.device(device)
        self.tau: Float[Tensor, "n"] = torch.full((n,), float(tau), device=self.device)
        self.weight: Float[Tensor, "n"] = torch.ones(n, device=self.device)

    @property
    def pseudo_label(self) -> Int64[Tensor, "n"]:
        """Cluster of each sample; -1 before the first update."""
        return torch.full((self.n,), -1, device=self.device) if self.pseudo is None else self.pseudo.labels

    @property
    def headness(self) -> Float[Tensor, "n"]:
        """a of equation (4); 0 before the first update."""
        return torch.zeros(self.n, device=self.device) if self.pseudo is None else self.pseudo.headness.float()

    @property
    def cluster_sizes(self) -> Float[Tensor, "k"]:
        """n_k of equation (3); empty before the first update."""
        return torch.zeros(0, device=self.device) if self.pseudo is None else self.pseudo.sizes.float()

    @property
    def log_sizes(self) -> Float[Tensor, "m"]:
        """Log sizes between which q of equation (4) goes from 0 to 1; empty: the headness takes their place."""
        sizes = None if self.pseudo is None else self.pseudo.log_sizes
        return torch.zeros(0, device=self.device) if sizes is None else sizes.float()

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0."""

    def update(self, features: Float[Tensor, "n d"], epoch: int) -> None:
        """Called at each refresh with the backbone features of all images, before `epoch` is trained."""
        if self.pseudo is not None:
            self.pseudo.update(features)

    def after_step(self, index: Int64[Tensor, "b"], out: NTXent) -> None:
        """Called after each step with the batch's image indices and its loss, the anchors in that order, twice."""

    def scale(self, index: Int64[Tensor, "b"]) -> Float[Tensor, "b"] | None:
        """Factors of the losses l_a of a batch, or None for 1."""
        return None

    def steer(self, settings: GuidanceConfig) -> None:
        """Take new settings from the next update on; only where a method can."""
        raise NotImplementedError(f"{type(self).__name__} cannot be steered")

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that changes during training; loadable with weights_only."""
        state = {name: _copied(getattr(self, name)) for name in self.SAVED}
        return state if self.pseudo is None else {**state, "pseudo": self.pseudo.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue bit for bit where `state_dict` was taken; raises ValueError if that is of another guidance."""
        names = {*self.SAVED} if self.pseudo is None else {*self.SAVED, "pseudo"}
        if set(state) != names or len(state["tau"]) != self.n:
            raise ValueError(f"this is not the state of a {type(self).__name__} of {self.n} images")
        for name in self.SAVED:
            setattr(self, name, _copied(state[name], self.device))
        if self.pseudo is not None:
            self.pseudo.load_state_dict(state["pseudo"])


def _copied(value: Any, device: torch.device | None = None) -> Any:
    return value.detach().clone().to(device or value.device) if isinstance(value, Tensor) else value


class Constant(Guidance):
    """SimCLR (Chen et al. 2020, arXiv 2002.05709): one temperature for all samples and the whole run."""


class TemperatureSchedule(Guidance):
    """One temperature for all, a cosine over time (Kukleva et al. 2023, arXiv 2303.13664).

    tau(e) = low + (high - low)(1 + cos(2 pi e / P)) / 2, P = `epochs` / `periods` epochs.
    """

    def __init__(self, n: int, epochs: int, periods: int = 5, low: float = 0.1, high: float = 1.0, **common: Any):
        super().__init__(n, tau=high, **common)
        self.period, self.low, self.high = epochs / periods, low, high

    def start_epoch(self, epoch: int) -> None:
        wave = math.cos(2 * math.pi * epoch / self.period)
        self.tau = torch.full_like(self.tau, self.low + (self.high - self.low) * (1 + wave) / 2)


class MMTS(Guidance):
    """A cosine over time plus a share by the size n_i of the sample's cluster (MM-TS, WACV 2026, arXiv 2603.08202).

    tau_i(e) = (alpha / 2) cos(2 pi e / P) + low + (high - low)(n_i - min n) / (max n - min n), with n_i the number of
    samples whose pseudo-label is the sample's; the middle of low and high where all are equal, and before any update.
    """

    USES_FEATURES = True

    SAVED = ("tau", "weight", "share", "epoch")

    def __init__(
        self,
        n: int,
        epochs: int,
        pseudo: PseudoLabels,
        periods: int = 5,
        low: float = 0.17,
        high: float = 0.30,
        alpha: float = 0.2,
        **common: Any,
    ):
        super().__init__(n, pseudo, **common)
        check(0 <= alpha < 2 * low, "guidance.mm_alpha", alpha, f"below 2 u_min = {2 * low}, so that tau stays above 0")
        self.period, self.low, self.high, self.alpha = epochs / periods, low, high, alpha
        self.share, self.epoch = torch.full_like(self.tau, 0.5), 0
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        wave = self.alpha / 2 * math.cos(2 * math.pi * epoch / self.period)
        self.tau = wave + self.low + (self.high - self.low) * self.share

    def update(self, features: Float[Tensor, "n d"], epoch: int) -> None:
        super().update(features, epoch)
        size = self.pseudo.labels.bincount()[self.pseudo.labels].float().to(self.device)
        low, high = size.min(), size.max()
        self.share = ((size - low) / (high - low)).nan_to_num(0.5)
        self.start_epoch(epoch)


class ISogCLRTau(Guidance):
    """A temperature learned for each sample: the rule of iSogCLR (Qiu et al. 2023, arXiv 2305.11965) on our loss.

    The gradient of tau_i is log E[exp(h / tau_i)] + r - E_p[h] / tau_i with h_ab = s_ab - s_ap, E over the b != a and p
    their softmax, mean of the image's two anchors. It equals r - KL(p || uniform), so tau settles where the softmax is
    that uneven. `momentum` is the share of the old gradient that is kept.
    """

    SAVED = ("tau", "weight", "gradient")

    def __init__(
        self,
        n: int,
        start: float = 0.1,
        low: float = 0.05,
        high: float = 1.0,
        r: float = 0.4,
        step: float = 0.03,
        momentum: float = 0.9,
        **common: Any,
    ):
        super().__init__(n, tau=start, **common)
        self.low, self.high, self.r, self.step, self.momentum = low, high, r, step, momentum
        self.gradient = torch.zeros_like(self.tau)

    @torch.no_grad()
    def after_step(self, index: Int64[Tensor, "b"], out: NTXent) -> None:
        tau, gradient = self.tau[index], self.gradient[index]
        log_mean = out.logsumexp - math.log(out.others) - out.positive_similarity / tau.repeat(2)
        mean = (out.mean_similarity - out.positive_similarity) / tau.repeat(2)
        new = (log_mean + self.r - mean).reshape(2, -1).mean(0).to(gradient.dtype)
        gradient = self.momentum * gradient + (1 - self.momentum) * new
        self.gradient[index] = gradient
        self.tau[index] = (tau - self.step * gradient).clamp(self.low, self.high)


class TASE(Guidance):
    """Our reading of TASE (arXiv 2410.22883): temperature (5) and weight (6) of each sample by quantity.

    tau_i = tau_min + (tau_max - tau_min) q_i,    w_i = clip(exp(-gamma (a_i - mean a)), 1/w_max, w_max)

    With `group_tau` (head, mid, tail) tau_i is that of the image's group in `groups` (int64 [n], 0 to 2). Until epoch
    `warmup` tau_i = tau_0 and w_i = 1; over the next `ramp` epochs both move in linearly. True `labels` (int64 [n])
    make it the oracle. The other `options` are those of GuidanceConfig, with its defaults: clusters, tau_min, tau_max,
    tau_0, gamma, w_max, headness_map, reversed, shuffled, scale_by_tau, estimator, merge_to, space, memory,
    assignment_confidence, restarts, label_noise, group_tau. Raises ConfigError for unknown names and impossible values.
    """

    SAVED = ("tau", "weight", "target_tau", "target_weight", "order")
    USES_FEATURES = True

    def __init__(
        self,
        n: int,
        warmup: int = 0,
        ramp: int = 0,
        labels: Int64[Tensor, "n"] | None = None,
        pseudo: PseudoLabels | None = None,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
        groups: Int64[Tensor, "n"] | None = None,
        **options: Any,
    ):
        self.config = config = _settings(options)
        known = groups is not None or not config.group_tau
        check(known, "guidance.group_tau", config.group_tau, "empty where the images' groups are not given")
        self.groups = groups
        pseudo = pseudo or _pseudo_labels(config, n, labels, device, generator)
        super().__init__(n, pseudo, config.tau_0, device)
        check(warmup >= 0 and ramp >= 0, "warmup, ramp", (warmup, ramp), "numbers of epochs, at least 0")
        self.warmup, self.ramp = warmup, ramp
        self.target_tau, self.target_weight = self.tau.clone(), self.weight.clone()
        self.order = torch.arange(n, device=self.device)
        if config.shuffled:
            # A generator of its own: the control has the same clusters as the method it is compared with.
            own = torch.Generator().manual_seed(pseudo.generator.initial_seed())
            self.order = torch.randperm(n, generator=own).to(self.device)

    def start_epoch(self, epoch: int) -> None:
        done = min(1.0, (epoch - self.warmup) / self.ramp) if self.ramp else float(epoch >= self.warmup)
        done = max(0.0, done)
        self.tau = torch.lerp(torch.full_like(self.tau, self.config.tau_0), self.target_tau, done)
        self.weight = torch.lerp(torch.ones_like(self.weight), self.target_weight, done)

    def update(self, features: Float[Tensor, "n d"], epoch: int) -> None:
        super().update(features, epoch)
        q, a = self.pseudo.q.to(self.device), self.pseudo.headness.to(self.device)
        if self.pseudo.spread < 0.1:
            message = "The clusters are all about as large and say nothing about quantity: q is 0.5 for every sample."
            warnings.warn(message, stacklevel=2)
        tau, weight = temperature_and_weight(q, a, self.config)
        if self.config.group_tau:
            tau = tau.new_tensor(self.config.group_tau)[self.groups.to(self.device)]
        self.target_tau, self.target_weight = tau[self.order].float(), weight[self.order].float()
        self.start_epoch(epoch)

    def steer(self, settings: GuidanceConfig) -> None:
        self.config = settings

    def scale(self, index: Int64[Tensor, "b"]) -> Float[Tensor, "b"] | None:
        return self.tau[index] / self.config.tau_0 if self.config.scale_by_tau else None


def temperature_and_weight(
    q: Float[Tensor, "n"], a: Float[Tensor, "n"], settings: GuidanceConfig
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Equations (5) and (6): temperatures and weights of samples with q in [0, 1] and headness a, after the ramp."""
    c = settings
    tau = c.tau_min + (c.tau_max - c.tau_min) * (1 - q if c.reversed else q)
    return tau, (-c.gamma * (a - a.mean())).exp().clamp(1 / c.w_max, c.w_max)


def _settings(options: dict[str, Any]) -> GuidanceConfig:
    known = {field.name for field in dataclasses.fields(GuidanceConfig)} - {"labels", "warmup", "ramp"}
    for name in options:
        if name not in known:
            raise unknown("option of TASE", name, known)
    return GuidanceConfig(**options)


def _pseudo_labels(
    config: GuidanceConfig,
    n: int,
    labels: Tensor | None,
    device: str | torch.device,
    generator: torch.Generator | None,
) -> PseudoLabels:
    names = ("clusters", "estimator", "restarts", "merge_to", "headness_map", "label_noise", "space", "memory")
    settings = {name: getattr(config, name) for name in names}
    settings["confidence"] = config.assignment_confidence
    return PseudoLabels(n, labels=labels, device=device, generator=generator, **settings)


def _tase(config: Config, n: int, pseudo: PseudoLabels, device: str | torch.device, **groups: Tensor) -> TASE:
    g = config.guidance
    options = {field.name: getattr(g, field.name) for field in dataclasses.fields(g)}
    epochs = {name: round(options.pop(name) * config.optim.epochs) for name in ("warmup", "ramp")}
    del options["labels"]
    return TASE(n, **epochs, pseudo=pseudo, device=device, **groups, **options)


def _constant(config: Config, n: int, pseudo: PseudoLabels, device: str | torch.device) -> Constant:
    return Constant(n, pseudo, config.guidance.tau_0, device)


def _schedule(config: Config, n: int, pseudo: PseudoLabels, device: str | torch.device) -> TemperatureSchedule:
    g = config.guidance
    return TemperatureSchedule(n, config.optim.epochs, g.periods, *g.ts_range, pseudo=pseudo, device=device)


def _mm_ts(config: Config, n: int, pseudo: PseudoLabels, device: str | torch.device) -> MMTS:
    g = config.guidance
    return MMTS(n, config.optim.epochs, pseudo, g.periods, *g.mm_range, g.mm_alpha, device=device)


def _isogclr_tau(config: Config, n: int, pseudo: PseudoLabels, device: str | torch.device) -> ISogCLRTau:
    g = config.guidance
    return ISogCLRTau(n, g.iso_start, *g.iso_range, g.iso_r, g.iso_step, g.iso_momentum, pseudo=pseudo, device=device)


# Name in config.METHODS -> builder (config, n, pseudo, device) of the guidance.
GUIDANCES: dict[str, Callable[..., Guidance]] = {
    "constant": _constant,
    "ts": _schedule,
    "mm-ts": _mm_ts,
    "isogclr-tau": _isogclr_tau,
    "tase": _tase,
}


def build_guidance(
    config: Config,
    n: int,
    labels: Int64[Tensor, "n"] | None = None,
    device: str | torch.device = "cpu",
    generator: torch.Generator | None = None,
    groups: Int64[Tensor, "n"] | None = None,
) -> Guidance:
    """The guidance of `config.method` for n images; true `labels` are used by guidance.labels=oracle only.

    `groups` [n] (0 head, 1 mid, 2 tail) are used by guidance.group_tau only. `generator` serves the clustering. Raises
    ConfigError for an oracle without labels and more clusters than images.
    """
    oracle = config.guidance.labels == "oracle"
    check(not oracle or labels is not None, "guidance.labels", "oracle", "kmeans, as these images have no labels")
    pseudo = _pseudo_labels(config.guidance, n, labels if oracle else None, device, generator)
    more = {"groups": groups} if config.guidance.group_tau else {}
    return GUIDANCES[METHODS[config.method][0]](config, n, pseudo, device, **more)
