"""Which temperature and which weight has each sample now? That is a method, and all that training needs of it.

    guide = TASE(n=len(images), clusters=100)
    guide.update(features, epoch=10)            # backbone features of all images, without augmentation [n, d]
    guide.tau[index], guide.weight[index]       # for the loss of a batch

A method of your own is a subclass with its `Options`, which sets `tau` and `weight` in any of the hooks. Here, the
closer a sample is to its centre, the lower its temperature, and samples whose loss stays high count more:

    class Centred(Guidance):
        title, per_sample, uses_features = "Centred", True, True
        SAVED = (*Guidance.SAVED, "loss")                               # restored on resume, with tau and weight

        @dataclass(frozen=True)
        class Options(Guidance.Options):                                # guidance.low=0.05 on the command line
            low: float = option(0.1, "temperature of a sample at its centre", above=0)
            high: float = option(0.4, "temperature of a sample between centres", above=0)

        def __init__(self, n, **common):
            super().__init__(n, **common)
            self.loss = torch.ones(n, device=self.device)

        def update(self, features, epoch):                              # every few epochs
            super().update(features, epoch)                             # the pseudo-labels
            low, high = self.options.low, self.options.high
            self.tau = high - (high - low) * self.pseudo.p.amax(1)

        def after_step(self, index, out):                               # every step; out is the loss's NTXent
            now = out.per_anchor.detach().reshape(2, -1).mean(0)
            self.loss[index] = 0.9 * self.loss[index] + 0.1 * now
            self.weight[index] = self.loss[index] / self.loss.mean()

    METHODS["centred"] = Method(Centred)                                # tase.preset("digits-lt", method="centred")

Nothing else names a method: configuration, command line, figures and widgets ask its class.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from .config import ESTIMATORS, METHODS, Config, check, option, unknown
from .lazy import torch
from .options import Section

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor, nn

    from .losses import NTXent
    from .pseudo_labels import PseudoLabels

    Views = Float[Tensor, "b c s s"]


@dataclass(frozen=True)
class Method:
    """A guidance class, the fields in which a method differs from its defaults, and the method's title."""

    guidance: type[Guidance]
    title: str = ""  # in tables and figures; the class's by default
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "title", self.title or self.guidance.title)


class Guidance:
    """Temperatures and weights of n samples: constant ones; the base of all methods.

    `tau` [n] and `weight` [n] are float32 on `device`; `pseudo` is clustered at each update for every method, so that
    all have the same snapshots. The attributes named in SAVED (tensors or numbers) are its state.

    `options`, or their fields as keywords, are those of the class's `Options`. True `labels` (int64 [n]) take the
    clusters' place; `groups` (int64 [n]: 0 head, 1 mid, 2 tail) and the run's `epochs` are for methods that need them.
    Raises ConfigError for unknown options and invalid values.
    """

    title: ClassVar[str] = ""
    per_sample: ClassVar[bool] = False  # tau or weight differ from sample to sample
    uses_features: ClassVar[bool] = False  # tau or weight depend on `update`; else it is called for the snapshots only
    steerable: ClassVar[tuple[str, ...]] = ()  # options that can change while a run trains
    SAVED: ClassVar[tuple[str, ...]] = ("tau", "weight")

    @dataclass(frozen=True)
    class Options(Section):
        """What every method has: how snapshots are clustered, and when."""

        NAME: ClassVar[str] = "guidance"

        labels: str = option(
            "kmeans",
            "where labels come from: kmeans, or oracle (the true ones: the upper bound)",
            choices=("kmeans", "oracle"),
        )
        clusters: int = option(0, "number of clusters k (0: 100, at most a tenth of the images)", low=0)
        space: str = option(
            "auto",
            "directions that are clustered: features centred, sqrt (their root), or plain; auto: sqrt after a ReLU",
            choices=("auto", "sqrt", "centred", "plain"),
            before="centred",
        )
        restarts: int = option(3, "k-means starts at the first refresh; later ones start from the old centres", low=1)
        estimator: str = option(
            "merged", f"how a sample's quantity is estimated: {', '.join(ESTIMATORS)}", choices=ESTIMATORS
        )
        merge_to: int = option(
            0, "estimator 'merged': clusters that remain after joining (0: the mean over k/6 to k/2)", low=0
        )
        memory: float = option(
            0.7, "share of a sample's headness that is kept from the refresh before", low=0, below=1, before=0.0
        )
        assignment_confidence: float = option(
            0.8, "mean of the largest responsibility, equation (3); 1: hard", above=0, high=1
        )
        headness_map: str = option(
            "log", "how headness becomes q: log (of sizes, equation (4)), or rank", choices=("log", "rank")
        )
        label_noise: float = option(
            0.0, "share of the samples whose responsibilities are permuted among each other", low=0, high=1
        )
        warmup: float = option(0.2, "share of the run before the first guidance", low=0, high=1)
        refresh: int = option(
            0, "epochs between two clusterings, each a snapshot (0: 10; 20 on runs of 1000 and more)", low=0
        )

    def __init__(
        self,
        n: int,
        *,
        options: Options | None = None,
        labels: Int64[Tensor, "n"] | None = None,
        groups: Int64[Tensor, "n"] | None = None,
        epochs: int = 0,
        pseudo: PseudoLabels | None = None,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
        **fields: Any,
    ):
        check(n >= 1, "n", n, "the number of images, at least 1")
        self.options = options or self._options(fields if labels is None else {**fields, "labels": "oracle"})
        self.n, self.epochs, self.groups, self.device = n, epochs, groups, torch.device(device)
        self.pseudo = pseudo or self._pseudo_labels(labels, generator)
        self.tau: Float[Tensor, "n"] = torch.full((n,), 0.2, device=self.device)
        self.weight: Float[Tensor, "n"] = torch.ones(n, device=self.device)

    @classmethod
    def _options(cls, fields: dict[str, Any]) -> Options:
        known = {f.name for f in dataclasses.fields(cls.Options)}
        for name in fields:
            if name not in known:
                raise unknown(f"option of {cls.__name__}", name, known)
        return cls.Options(**fields)

    def _pseudo_labels(self, labels: Tensor | None, generator: torch.Generator | None) -> PseudoLabels:
        from .pseudo_labels import PseudoLabels

        names = ("clusters", "estimator", "restarts", "merge_to", "headness_map", "label_noise", "space", "memory")
        settings = {name: getattr(self.options, name) for name in names}
        settings["confidence"] = self.options.assignment_confidence
        return PseudoLabels(self.n, labels=labels, device=self.device, generator=generator, **settings)

    @classmethod
    def snapshot_only(cls) -> list[str]:
        """Return the options that shape only the snapshots: those of the clusters, where the method ignores them."""
        return [] if cls.uses_features else [f.name for f in dataclasses.fields(Guidance.Options)]

    @property
    def pseudo_label(self) -> Int64[Tensor, "n"]:
        """Cluster of each sample; -1 before the first update."""
        return self.pseudo.labels

    @property
    def headness(self) -> Float[Tensor, "n"]:
        """a of equation (4); 0 before the first update."""
        return self.pseudo.headness.float()

    @property
    def cluster_sizes(self) -> Float[Tensor, "k"]:
        """n_k of equation (3); empty before the first update."""
        return self.pseudo.sizes.float()

    @property
    def log_sizes(self) -> Float[Tensor, "m"]:
        """Log sizes between which q of equation (4) goes from 0 to 1; empty: the headness takes their place."""
        sizes = self.pseudo.log_sizes
        return torch.zeros(0, device=self.device) if sizes is None else sizes.float()

    # Hooks, in the order in which training calls them.

    def modules(self) -> nn.Module | None:
        """Return what is trained, saved and summed over processes together with the network."""
        return None

    def start_epoch(self, epoch: int) -> None:
        """Prepare for `epoch`, counted from 0."""

    def update(self, features: Float[Tensor, "n d"], epoch: int) -> None:
        """Take the backbone features of all images, at each refresh, before `epoch` is trained."""
        self.pseudo.update(features)

    def views(
        self, index: Int64[Tensor, "b"], view1: Views, view2: Views, generator: torch.Generator
    ) -> tuple[Views, Views]:
        """Change the two views of the images `index`, with draws from the views' generator."""
        return view1, view2

    def embed(self, network: nn.Module, view1: Views, view2: Views) -> tuple[Tensor, Tensor]:
        """Return the projections z1, z2 [b, d] of the two views."""
        return network(view1), network(view2)

    def scale(self, index: Int64[Tensor, "b"]) -> Float[Tensor, "b"] | None:
        """Return factors of the losses l_a of a batch, or None for 1."""
        return self.loss_scale(self.options, self.tau[index])

    @staticmethod
    def loss_scale(options: Options, tau: Float[Tensor, "b"]) -> Float[Tensor, "b"] | None:
        """Return the factors of the losses of samples with these temperatures, or None for 1."""
        return None

    def extra(self, index: Int64[Tensor, "b"], z1: Tensor, z2: Tensor) -> Float[Tensor, ""] | None:
        """Return a scalar that is added to the loss, or None."""
        return None

    def after_step(self, index: Int64[Tensor, "b"], out: NTXent) -> None:
        """Take the loss of a step: the batch's image indices, and the anchors in that order, twice."""

    def steer(self, options: Options) -> None:
        """Take new options from the next update on."""
        self.options = options

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that changes during training; loadable with weights_only."""
        return {**{name: _copied(getattr(self, name)) for name in self.SAVED}, "pseudo": self.pseudo.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume bit for bit from `state_dict`; raises ValueError if that is of another guidance."""
        if set(state) != {*self.SAVED, "pseudo"} or len(state["tau"]) != self.n:
            raise ValueError(f"this is not the state of a {type(self).__name__} of {self.n} images")
        for name in self.SAVED:
            setattr(self, name, _copied(state[name], self.device))
        self.pseudo.load_state_dict(state["pseudo"])


def _copied(value: Any, device: torch.device | None = None) -> Any:
    return value.detach().clone().to(device or value.device) if isinstance(value, torch.Tensor) else value


class Constant(Guidance):
    """SimCLR (Chen et al. 2020, arXiv 2002.05709): one temperature for all samples and the whole run."""

    title = "SimCLR"

    @dataclass(frozen=True)
    class Options(Guidance.Options):
        tau_0: float = option(0.2, "constant temperature: of simclr, and of tase before its warm-up ends", above=0)

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
        wave = math.cos(2 * math.pi * epoch / (self.epochs / self.options.periods))
        self.tau = torch.full_like(self.tau, low + (high - low) * (1 + wave) / 2)


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
            low = self.mm_range[0]
            positive = self.mm_alpha < 2 * low  # tau stays above 0
            check(positive, "guidance.mm_alpha", self.mm_alpha, f"below 2 u_min = {2 * low}, so that tau is above 0")

    def __init__(self, n: int, **common: Any):
        super().__init__(n, **common)
        self.share, self.epoch = torch.full_like(self.tau, 0.5), 0
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        (low, high), alpha = self.options.mm_range, self.options.mm_alpha
        wave = alpha / 2 * math.cos(2 * math.pi * epoch / (self.epochs / self.options.periods))
        self.tau = wave + low + (high - low) * self.share

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
    """Our reading of TASE (arXiv 2410.22883): temperature (5) and weight (6) of each sample by quantity.

    tau_i = tau_min + (tau_max - tau_min) q_i,    w_i = clip(exp(-gamma (a_i - mean a)), 1/w_max, w_max)

    With `group_tau` (head, mid, tail) tau_i is that of the image's group in `groups`. Until epoch `warmup`,
    tau_i = tau_0 and w_i = 1; over the next `ramp` epochs both move in linearly (None: the options' shares of the run's
    `epochs`). True `labels` make it the oracle.
    """

    title, per_sample, uses_features = "TASE", True, True
    steerable = ("tau_min", "tau_max", "gamma", "w_max", "headness_map", "reversed")
    SAVED = ("tau", "weight", "target_tau", "target_weight", "order")

    @dataclass(frozen=True)
    class Options(Constant.Options):
        tau_min: float = option(0.1, "temperature of the samples most in the tail, equation (5)", above=0)
        tau_max: float = option(0.5, "temperature of the samples most in the head, equation (5)", above=0)
        gamma: float = option(0.5, "strength of the weight, equation (6); 0: all weights 1", low=0)
        w_max: float = option(5.0, "weights are clipped to 1/w_max .. w_max", low=1)
        reversed: bool = option(False, "turn the temperatures round: head low, tail high (a control)")
        scale_by_tau: bool = option(
            False, "multiply an anchor's loss by tau/tau_0: takes out the factor 1/tau of its gradient"
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
        ramp: float = option(0.05, "share of the run over which tau and w move in after the warm-up", low=0, high=1)

        def check_together(self) -> None:
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
        if self.pseudo.spread < 0.1:
            message = "The clusters are all about as large and say nothing about quantity: q is 0.5 for every sample."
            warnings.warn(message, stacklevel=2)
        tau, weight = temperature_and_weight(q, a, self.options)
        if self.options.group_tau:
            tau = tau.new_tensor(self.options.group_tau)[self.groups.to(self.device)]
        self.target_tau, self.target_weight = tau[self.order].float(), weight[self.order].float()
        self.start_epoch(epoch)

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


METHODS.update(
    {
        "simclr": Method(Constant),
        "ts": Method(TemperatureSchedule),
        "mm-ts": Method(MMTS),
        "isogclr-tau": Method(ISogCLRTau),
        "tase": Method(TASE),
        "tase-tau": Method(TASE, "TASE, τ only", {"guidance.gamma": 0.0}),
        "tase-weight": Method(TASE, "TASE, w only", {"guidance.tau_min": 0.2, "guidance.tau_max": 0.2}),
        "oracle": Method(TASE, "TASE, oracle", {"guidance.labels": "oracle"}),
        "shuffled": Method(TASE, "TASE, shuffled", {"guidance.shuffled": True}),
        "reversed": Method(TASE, "TASE, reversed", {"guidance.reversed": True}),
    }
)


def build_guidance(
    config: Config,
    n: int,
    labels: Int64[Tensor, "n"] | None = None,
    device: str | torch.device = "cpu",
    generator: torch.Generator | None = None,
    groups: Int64[Tensor, "n"] | None = None,
) -> Guidance:
    """Build the guidance of `config.method` for n images; true `labels` are used by guidance.labels=oracle only.

    `groups` [n]: 0 head, 1 mid, 2 tail, of the true classes. `generator` serves the clustering. Raises ConfigError for
    an oracle without labels and more clusters than images.
    """
    oracle = config.guidance.labels == "oracle"
    check(not oracle or labels is not None, "guidance.labels", "oracle", "kmeans, as these images have no labels")
    return config.guidance_class(
        n,
        options=config.guidance,
        labels=labels if oracle else None,
        groups=groups,
        epochs=config.optim.epochs,
        device=device,
        generator=generator,
    )
