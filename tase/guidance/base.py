"""What training needs of a method: temperatures, weights, and hooks that do nothing until a method overrides them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ..config import ESTIMATORS, check, option, pinned, unknown
from ..lazy import torch
from ..options import Section

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor, nn

    from ..losses import NTXent
    from ..pseudo_labels import PseudoLabels

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
    SHOWN: ClassVar[tuple[str, ...]] = ()  # what else snapshots keep of each sample: attributes [n]

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
        features: str = option(
            "",
            "a frozen encoder, or its run, whose features are clustered instead of the network's own",
            before="",
        )
        features_network: str = option(
            "",
            "the network, torchvision:NAME or timm:NAME, of which guidance.features is a state dict; empty: an encoder "
            "of this library",
            before="",
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
        clusterings: int = option(
            1,
            "independent clusterings whose headness is averaged, each with its own start and half of the dimensions "
            "(1: only that of the pseudo-labels)",
            low=1,
            before=1,
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

        def check_together(self) -> None:
            object.__setattr__(self, "features", pinned("guidance.features", self.features))
            alone = self.features_network and not self.features
            check(not alone, "guidance.features_network", self.features_network, "empty without guidance.features")

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
        check(options is None or not fields, "options", sorted(fields), "either options or single fields, not both")
        self.options = options or self._options(fields if labels is None else {**fields, "labels": "oracle"})
        known = self.options.labels != "oracle" or labels is not None or pseudo is not None
        check(known, "guidance.labels", "oracle", "kmeans, as these images have no labels")
        self.n, self.epochs, self.groups, self.device = n, epochs, groups, torch.device(device)
        self.pseudo = pseudo or self._pseudo_labels(labels, generator)
        self.found: dict[str, float] = {}
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
        from ..pseudo_labels import PseudoLabels

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

    def own_generator(self, purpose: str) -> torch.Generator:
        """Return a stream of the run's own for `purpose`, which disturbs no other and is the same on every device."""
        from ..streams import generator

        return generator(self.pseudo.generator.initial_seed(), purpose)

    # Hooks, in the order in which training calls them.

    def modules(self, network: nn.Module) -> nn.Module | None:
        """Return what is trained, saved and summed over processes together with the network; called once."""
        return None

    def start_epoch(self, epoch: int) -> None:
        """Prepare for `epoch`, counted from 0."""

    def update(self, features: Float[Tensor, "n d"], epoch: int) -> None:
        """Take the backbone features of all images, at each refresh, before `epoch` is trained."""
        from ..trust import CLUSTERINGS, feature_trust

        c, averaged = self.options, self.options.clusterings > 1 and self.pseudo.truth is None
        # A stream for each refresh: nothing to save, and the pseudo-labels are the same with and without it.
        rng = self.own_generator(f"trust {epoch}")
        estimate = partial(self.pseudo.estimate, **self.pseudo.options) if averaged else None
        drawn = x, index = self.pseudo.drawn(features)
        few = x if index is None or averaged else x[:: -(-len(x) // 2**15)]  # for three numbers these do
        found = feature_trust(few, rng, c.space, estimate, c.clusterings if averaged else CLUSTERINGS)
        self.found = {"trust": found.trust, "shared": found.shared, "agreement": found.agreement}
        self.pseudo.update(features, found.quantity if averaged else None, drawn)

    def views(
        self,
        index: Int64[Tensor, "b"],
        view1: Views,
        view2: Views,
        generator: torch.Generator,
        offset: int = 0,
        total: int | None = None,
    ) -> tuple[Views, Views]:
        """Change the two views of the images `index`, with draws from the views' generator.

        With `total`, the images are number `offset` and following of a batch of so many. Draw for the whole batch:
        several processes, each with its shard, then have the numbers that one would have.
        """
        return view1, view2

    def embed(self, network: nn.Module, view1: Views, view2: Views) -> tuple[Tensor, Tensor]:
        """Return the projections z1, z2 [b, d] of the two views."""
        return network(view1), network(view2)

    def scale(self, index: Int64[Tensor, "b"]) -> Float[Tensor, "b"] | None:
        """Return factors of the losses l_u of a batch, or None for 1."""
        return self.loss_scale(self.options, self.tau[index])

    @staticmethod
    def loss_scale(options: Options, tau: Float[Tensor, "b"]) -> Float[Tensor, "b"] | None:
        """Return the factors of the losses of samples with these temperatures, or None for 1."""
        return None

    def extra(self, index: Int64[Tensor, "b"], z1: Tensor, z2: Tensor) -> Float[Tensor, ""] | None:
        """Return a scalar that is added to the loss, or None; the whole batch's, also where processes share it."""
        return None

    def after_step(self, index: Int64[Tensor, "b"], out: NTXent) -> None:
        """Take the loss of a step: the batch's image indices, and the anchors in that order, twice."""

    def steer(self, options: Options) -> None:
        """Take new options from the next update on."""
        self.options = options
        self.pseudo.headness_map = options.headness_map  # the one steerable option of the pseudo-labels

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
    if isinstance(value, dict):
        return {name: _copied(v, device) for name, v in value.items()}
    return value.detach().clone().to(device or value.device) if isinstance(value, torch.Tensor) else value


def compose(*classes: type[Guidance]) -> type[Guidance]:
    """Combine guidances into one class: each hook runs as Python's method resolution says, options and state join.

    The last one decides tau and w; the others, parts, override the hooks that they need and call `super()` in them.
    """
    options = type("Options", tuple(c.Options for c in classes), {"__doc__": "The options of all parts."})
    title = " + ".join(c.title for c in reversed(classes) if c.title != "SimCLR")
    about = {
        "__doc__": " and ".join(c.__name__ for c in classes) + ", combined.",
        "Options": dataclass(frozen=True)(options),
        "SAVED": tuple(dict.fromkeys(name for c in reversed(classes) for name in c.SAVED)),
        "SHOWN": tuple(dict.fromkeys(name for c in reversed(classes) for name in c.SHOWN)),
        "title": title,
        "per_sample": any(c.per_sample for c in classes),
        "uses_features": any(c.uses_features for c in classes),
        "steerable": tuple(name for c in classes for name in c.steerable),
    }
    return type("".join(c.__name__ for c in classes), classes, about)
