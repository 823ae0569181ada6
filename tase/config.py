"""Every choice of a run, in frozen dataclasses, one per concern; presets and methods by name.

    config = preset("digits-lt", method="tase", seed=0, overrides={"guidance.tau_max": 0.3})

This file is the visible list of all defaults. A configuration is checked when it is created and goes to and from JSON.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints


class ConfigError(ValueError):
    """A field has a value it cannot have; the message names field, value and what is allowed."""


def unknown(what: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
    return ConfigError(f"unknown {what} '{name}'{hint}")


def check(ok: bool, field: str, value: object, allowed: str) -> None:
    """Raise a ConfigError naming `field`, its value and what is allowed, unless `ok`."""
    if not ok:
        raise ConfigError(f"{field} = {value!r} is not possible: it must be {allowed}")


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise unknown(field, value, choices)


def _field(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


SOURCES = ("digits", "fashion-mnist", "cifar10", "cifar100", "imagenet100", "folder")


@dataclass(frozen=True)
class DataConfig:
    source: str = _field("digits", f"where the images come from: {', '.join(SOURCES)}")
    root: str = _field("", "folder of the data; empty: the source's usual place")
    rule: str = _field("sdclr", "how the tail is made: sdclr, ldam, custom (n_max, rho, order), file (list_file), none")
    n_max: int = _field(0, "images of the largest class (0: what the rule says)")
    rho: float = _field(100.0, "imbalance ratio, largest over smallest class, >= 1")
    profile: str = _field(
        "exponential", "how counts fall from head to tail: exponential, or step (half n_max, half n_max/rho)"
    )
    order: str = _field("shuffled", "which class is head: shuffled (by the split's seed), or id (class 0 is head)")
    balanced: bool = _field(False, "the control: as many images in all, equally many of each class")
    list_file: str = _field("", "a published split: .npy of indices, or .txt with 'path label' lines")
    split: int = _field(-1, "number of the split; -1: follows the run's seed")
    image_size: int = _field(0, "side in pixels to which files are decoded (0: the source's own; folders need one)")
    fit: str = _field("crop", "how a file becomes square: crop (centre), or letterbox (on white)")
    on_bad_image: str = _field(
        "strict", "a file that cannot be read: strict (stop, listing all), or skip (leave it out, listing all)"
    )
    cache: str = _field("", "folder for decoded images (empty: ~/.cache/tase)")
    pool_per_class: int = _field(0, "images per class of which the tail is drawn (0: all that is left)")
    val_per_class: int = _field(0, "images per class held out to pick the probe's regularisation")
    test_per_class: int = _field(0, "images per class held out for the test (0: the source's own test set)")
    probe_per_class: int = _field(0, "images per class on the balanced probe list (0: the whole pool)")
    few_shot_per_class: int = _field(10, "labels per class of the few-shot protocols")
    min_per_class: int = _field(0, "classes with fewer images are trained on but not evaluated")
    groups: str = _field(
        "thirds", "head/mid/tail: thirds of the classes by count, or counts (>100, 20-100, <20 images)"
    )

    def __post_init__(self):
        check_choice("data.source", self.source, SOURCES)
        check_choice("data.rule", self.rule, ("sdclr", "ldam", "custom", "file", "none"))
        check_choice("data.profile", self.profile, ("exponential", "step"))
        check_choice("data.order", self.order, ("shuffled", "id"))
        check_choice("data.fit", self.fit, ("crop", "letterbox"))
        check_choice("data.on_bad_image", self.on_bad_image, ("strict", "skip"))
        check_choice("data.groups", self.groups, ("thirds", "counts"))
        check(self.rho >= 1, "data.rho", self.rho, "at least 1 (1 is balanced)")
        check(self.split >= -1, "data.split", self.split, "-1 (the run's seed) or more")
        for name in (
            "n_max",
            "image_size",
            "pool_per_class",
            "val_per_class",
            "test_per_class",
            "probe_per_class",
            "min_per_class",
        ):
            check(getattr(self, name) >= 0, f"data.{name}", getattr(self, name), "at least 0")
        check(self.few_shot_per_class >= 1, "data.few_shot_per_class", self.few_shot_per_class, "at least 1")
        check(
            self.rule != "file" or bool(self.list_file),
            "data.list_file",
            self.list_file,
            "a file where data.rule is 'file'",
        )
        check(
            self.rule != "custom" or self.n_max > 0, "data.n_max", self.n_max, "at least 1 where data.rule is 'custom'"
        )


@dataclass(frozen=True)
class ViewsConfig:
    size: int = _field(0, "side of a view in pixels (0: as the images)")
    scale: tuple[float, float] = _field((0.1, 1.0), "area of the random crop, share of the image, smallest and largest")
    ratio: tuple[float, float] = _field((0.75, 4 / 3), "aspect ratio of the crop, smallest and largest")
    interpolation: str = _field("bicubic", "how a crop is resized: bicubic or bilinear (both antialiased, as in PIL)")
    flip: float = _field(0.5, "probability of a horizontal flip")
    brightness: float = _field(0.4, "factor drawn from 1 - x to 1 + x")
    contrast: float = _field(0.4, "factor drawn from 1 - x to 1 + x")
    saturation: float = _field(0.4, "factor drawn from 1 - x to 1 + x (colour images)")
    hue: float = _field(0.1, "shift drawn from -x to x, in turns of the colour circle, at most 0.5 (colour images)")
    jitter: float = _field(0.8, "probability of the colour jitter, brightness to hue")
    grey: float = _field(0.2, "probability of dropping the colour (colour images)")
    blur: float = _field(0.0, "probability of a Gaussian blur")
    blur_sigma: tuple[float, float] = _field(
        (0.1, 2.0), "its standard deviation in pixels of the view, smallest and largest"
    )
    backend: str = _field("batched", "batched (on the device), or torchvision (one image at a time: the reference)")

    def __post_init__(self):
        check_choice("views.interpolation", self.interpolation, ("bicubic", "bilinear"))
        check_choice("views.backend", self.backend, ("batched", "torchvision"))
        check(self.size >= 0, "views.size", self.size, "at least 0")
        low, high = self.scale
        check(0 < low <= high <= 1, "views.scale", self.scale, "two shares of the area, 0 < smallest <= largest <= 1")
        low, high = self.ratio
        check(0 < low <= high, "views.ratio", self.ratio, "two aspect ratios, 0 < smallest <= largest")
        low, high = self.blur_sigma
        check(0 < low <= high, "views.blur_sigma", self.blur_sigma, "two widths in pixels, 0 < smallest <= largest")
        for name in ("flip", "jitter", "grey", "blur"):
            check(0 <= getattr(self, name) <= 1, f"views.{name}", getattr(self, name), "a probability, 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            check(0 <= getattr(self, name) <= 1, f"views.{name}", getattr(self, name), "from 0 to 1")
        check(0 <= self.hue <= 0.5, "views.hue", self.hue, "from 0 to 0.5 turns")


@dataclass(frozen=True)
class ModelConfig:
    backbone: str = _field("resnet18", "resnet18, resnet50, or conv4 (four convolutions, for a CPU)")
    stem: str = _field(
        "auto", "first layers of a ResNet: cifar (3x3, no pooling), imagenet, or auto (cifar up to 64 px)"
    )
    channels: tuple[int, ...] = _field((32, 64, 128, 128), "conv4: channels of its convolutions")
    strides: tuple[int, ...] = _field((2, 2, 2, 1), "conv4: their strides")
    head_hidden: int = _field(0, "hidden width of the projection head (0: the backbone's)")
    head_dim: int = _field(128, "dimension of the embedding z in which the loss is taken")

    def __post_init__(self):
        check_choice("model.backbone", self.backbone, ("resnet18", "resnet50", "conv4"))
        check_choice("model.stem", self.stem, ("auto", "cifar", "imagenet"))
        check(len(self.channels) == len(self.strides) > 0, "model.strides", self.strides, "as many as model.channels")
        check(min(self.channels) >= 1, "model.channels", self.channels, "positive")
        check(min(self.strides) >= 1, "model.strides", self.strides, "positive")
        check(self.head_hidden >= 0, "model.head_hidden", self.head_hidden, "at least 0")
        check(self.head_dim >= 2, "model.head_dim", self.head_dim, "at least 2")


ESTIMATORS = ("size", "merged", "density")
SPACES = ("auto", "sqrt", "centred", "plain")


@dataclass(frozen=True)
class GuidanceConfig:
    tau_0: float = _field(0.2, "constant temperature: of simclr, and of every method before its warm-up ends")
    tau_min: float = _field(0.1, "temperature of the samples most in the tail, equation (5)")
    tau_max: float = _field(0.5, "temperature of the samples most in the head, equation (5)")
    gamma: float = _field(0.5, "strength of the weight, equation (6); 0: all weights 1")
    w_max: float = _field(5.0, "weights are clipped to 1/w_max .. w_max")
    headness_map: str = _field("log", "how headness becomes q: log (of sizes, equation (4)), or rank")
    reversed: bool = _field(False, "turn the temperatures round: head low, tail high (a control)")
    scale_by_tau: bool = _field(
        False, "multiply an anchor's loss by tau/tau_0: takes out the factor 1/tau of its gradient"
    )
    labels: str = _field("kmeans", "where labels come from: kmeans, or oracle (the true ones: the upper bound)")
    shuffled: bool = _field(
        False, "permute the pairs (tau, w) among the samples: the control with the same distribution"
    )
    group_tau: tuple[float, ...] = _field(
        (), "with labels=oracle: temperatures of head, mid and tail by true class, in place of tau_min to tau_max"
    )
    label_noise: float = _field(
        0.0, "share of the samples whose responsibilities are permuted among each other (robustness)"
    )
    clusters: int = _field(0, "number of clusters k (0: 100, at most a tenth of the images)")
    space: str = _field(
        "auto",
        "directions that are clustered: of features that are centred, sqrt (its root), plain; auto: sqrt after a ReLU",
    )
    restarts: int = _field(3, "k-means starts at the first refresh; later ones start from the previous centres")
    estimator: str = _field("merged", f"how a sample's quantity is estimated: {', '.join(ESTIMATORS)}")
    merge_to: int = _field(
        0, "estimator 'merged': clusters that remain after joining (0: the mean over k/6 to k/2 of them)"
    )
    memory: float = _field(0.7, "share of a sample's headness that is kept from the refresh before, 0 to below 1")
    assignment_confidence: float = _field(0.8, "mean of the largest responsibility, equation (3); 1: hard")
    warmup: float = _field(0.2, "share of the run before the first guidance, 0 to 1")
    ramp: float = _field(0.05, "share of the run over which tau and w then move in linearly")
    refresh: int = _field(
        0, "epochs between two clusterings, which are also the snapshots (0: 10; 20 on runs of 1000 and more)"
    )
    periods: int = _field(5, "ts, mm-ts: cosine periods in the run")
    ts_range: tuple[float, float] = _field((0.1, 1.0), "ts: smallest and largest temperature")
    mm_range: tuple[float, float] = _field((0.17, 0.30), "mm-ts: u_min and u_max, by the size of the sample's cluster")
    mm_alpha: float = _field(0.2, "mm-ts: twice the swing of the cosine")
    iso_start: float = _field(0.1, "isogclr-tau: temperature at the start")
    iso_range: tuple[float, float] = _field((0.05, 1.0), "isogclr-tau: temperatures are clamped to this")
    iso_r: float = _field(0.4, "isogclr-tau: the constant r of its rule")
    iso_step: float = _field(0.03, "isogclr-tau: step size of a temperature")
    iso_momentum: float = _field(0.9, "isogclr-tau: momentum of a temperature's gradient")

    def __post_init__(self):
        check_choice("guidance.headness_map", self.headness_map, ("log", "rank"))
        check_choice("guidance.labels", self.labels, ("kmeans", "oracle"))
        check_choice("guidance.estimator", self.estimator, ESTIMATORS)
        check_choice("guidance.space", self.space, SPACES)
        check(0 <= self.memory < 1, "guidance.memory", self.memory, "from 0 to below 1")
        check(self.tau_0 > 0, "guidance.tau_0", self.tau_0, "above 0")
        check(self.tau_min > 0, "guidance.tau_min", self.tau_min, "above 0")
        check(
            self.tau_max >= self.tau_min,
            "guidance.tau_max",
            self.tau_max,
            f"at least guidance.tau_min = {self.tau_min}",
        )
        check(self.gamma >= 0, "guidance.gamma", self.gamma, "at least 0")
        check(self.w_max >= 1, "guidance.w_max", self.w_max, "at least 1")
        check(
            0 < self.assignment_confidence <= 1,
            "guidance.assignment_confidence",
            self.assignment_confidence,
            "above 0, at most 1",
        )
        for name in ("warmup", "ramp", "label_noise"):
            check(0 <= getattr(self, name) <= 1, f"guidance.{name}", getattr(self, name), "a share, 0 to 1")
        for name in ("clusters", "merge_to", "refresh"):
            check(getattr(self, name) >= 0, f"guidance.{name}", getattr(self, name), "at least 0")
        for name in ("restarts", "periods"):
            check(getattr(self, name) >= 1, f"guidance.{name}", getattr(self, name), "at least 1")
        for name in ("ts_range", "mm_range", "iso_range"):
            low, high = getattr(self, name)
            check(0 < low <= high, f"guidance.{name}", (low, high), "two temperatures, 0 < smallest <= largest")
        check(
            0 <= self.mm_alpha < 2 * self.mm_range[0],
            "guidance.mm_alpha",
            self.mm_alpha,
            "below 2 u_min, so that tau stays above 0",
        )
        check(self.iso_start > 0, "guidance.iso_start", self.iso_start, "above 0")
        ok = len(self.group_tau) in (0, 3) and min(self.group_tau, default=1) > 0
        check(ok, "guidance.group_tau", self.group_tau, "empty, or three temperatures above 0: head, mid, tail")


@dataclass(frozen=True)
class OptimConfig:
    epochs: int = _field(2000, "passes over the images")
    batch: int = _field(512, "images per step, each seen in two views")
    lr: float = _field(0.5, "peak learning rate of SGD")
    lr_min: float = _field(1e-6, "learning rate at the end of the cosine")
    momentum: float = _field(0.9, "momentum of SGD")
    weight_decay: float = _field(1e-4, "L2 penalty")
    warmup_epochs: int = _field(10, "epochs of linear warm-up of the learning rate, at most half the run")
    loss_chunk: int = _field(0, "rows of the similarity matrix held at a time (0: all)")
    device: str = _field("auto", "auto, cpu, cuda, or cuda:N")
    precision: str = _field("auto", "float32, bf16 (autocast), or auto: bf16 where the GPU has it")
    compile: bool = _field(False, "torch.compile the network")
    image_memory: float = _field(
        0.0, "GiB of images that are kept on the device, more are fetched by batch (0: half of what is free on a GPU)"
    )

    def __post_init__(self):
        check_choice("optim.precision", self.precision, ("auto", "float32", "bf16"))
        check(self.epochs >= 1, "optim.epochs", self.epochs, "at least 1")
        check(self.batch >= 2, "optim.batch", self.batch, "at least 2 (a contrast needs another image)")
        check(self.lr > 0, "optim.lr", self.lr, "above 0")
        check(0 <= self.lr_min <= self.lr, "optim.lr_min", self.lr_min, f"from 0 to optim.lr = {self.lr}")
        check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "from 0 to below 1")
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        check(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "at least 0")
        check(self.image_memory >= 0, "optim.image_memory", self.image_memory, "at least 0")
        check(self.loss_chunk >= 0, "optim.loss_chunk", self.loss_chunk, "at least 0")
        ok = self.device in ("auto", "cpu", "cuda") or (self.device[:5] == "cuda:" and self.device[5:].isdigit())
        check(ok, "optim.device", self.device, "auto, cpu, cuda, or cuda:N")


PROTOCOLS = ("linear", "few-shot", "linear-sgd", "few-shot-sgd", "lt-knn", "lt-svm", "lt-few-svm")


@dataclass(frozen=True)
class EvaluationConfig:
    protocols: tuple[str, ...] = _field(("linear", "few-shot", "lt-knn"), f"of {', '.join(PROTOCOLS)}")
    draws: int = _field(5, "fixed draws of the few-shot labels")
    knn: tuple[int, ...] = _field((1, 10), "neighbours of lt-knn")

    def __post_init__(self):
        for name in self.protocols:
            check_choice("evaluation.protocols", name, PROTOCOLS)
        check(self.draws >= 1, "evaluation.draws", self.draws, "at least 1")
        check(
            len(self.knn) > 0 and min(self.knn) >= 1,
            "evaluation.knn",
            self.knn,
            "one or more numbers of neighbours, at least 1",
        )


@dataclass(frozen=True)
class RecordConfig:
    """What a run writes down, and how often. Changes nothing in what is learnt."""

    checkpoint_every: int = _field(10, "epochs between checkpoints")
    knn_every: int = _field(10, "epochs between k-NN accuracies (0: never; they need labels)")
    snapshots: bool = _field(True, "write tau, w and pseudo-labels of every sample at each refresh")
    features: int = _field(2000, "images whose features are kept in each snapshot (all, in the last one)")

    def __post_init__(self):
        check(self.checkpoint_every >= 1, "record.checkpoint_every", self.checkpoint_every, "at least 1")
        check(self.knn_every >= 0, "record.knn_every", self.knn_every, "at least 0")
        check(self.features >= 0, "record.features", self.features, "at least 0")


# What a method is: the guidance class that decides tau and w, and the fields in which it differs from the defaults.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("constant", {}),
    "ts": ("ts", {}),
    "mm-ts": ("mm-ts", {}),
    "isogclr-tau": ("isogclr-tau", {}),
    "tase": ("tase", {}),
    "tase-tau": ("tase", {"guidance.gamma": 0.0}),
    "tase-weight": ("tase", {"guidance.tau_min": 0.2, "guidance.tau_max": 0.2}),
    "oracle": ("tase", {"guidance.labels": "oracle"}),
    "shuffled": ("tase", {"guidance.shuffled": True}),
    "reversed": ("tase", {"guidance.reversed": True}),
}


# The guidance's fields that are read by the guidances that do without pseudo-labels.
_READS: dict[str, tuple[str, ...]] = {
    "constant": ("tau_0",),
    "ts": ("periods", "ts_range"),
    "isogclr-tau": ("iso_start", "iso_range", "iso_r", "iso_step", "iso_momentum"),
}


def unread(method: str) -> set[str]:
    """The fields of the guidance that the method does not read: the network learns the same whatever they are."""
    names, reads = {field.name for field in dataclasses.fields(GuidanceConfig)}, _READS.get(METHODS[method][0])
    return set() if reads is None else names - {*reads}


# Fields that joined later, and what a configuration means that was saved without them.
_BEFORE: dict[str, Any] = {"guidance.group_tau": [], "guidance.space": "centred", "guidance.memory": 0.0}


@dataclass(frozen=True)
class Config:
    """All choices of one run. Equal configurations on the same machine and thread count give the same run."""

    preset: str = "digits-lt"
    method: str = "tase"
    seed: int = 0
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    optim: OptimConfig = OptimConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    record: RecordConfig = RecordConfig()

    def __post_init__(self):
        check_choice("method", self.method, METHODS)
        check(0 <= self.seed < 2**31, "seed", self.seed, "a whole number from 0 to 2^31 - 1")
        known = METHODS[self.method][0] == "tase" and self.guidance.labels == "oracle"
        allowed = "empty but for tase with guidance.labels = oracle: groups are known from true labels only"
        check(known or not self.guidance.group_tau, "guidance.group_tau", self.guidance.group_tau, allowed)

    @property
    def split(self) -> int:
        """Number of the data split: `data.split`, or the run's seed."""
        return self.seed if self.data.split < 0 else self.data.split

    @property
    def refresh(self) -> int:
        """Epochs between two refreshes of the guidance."""
        return self.guidance.refresh or (20 if self.optim.epochs >= 1000 else 10)

    @property
    def learnt(self) -> Config:
        """The same, with defaults for what the method does not read: clusters that are for its snapshots only.

        Where this is equal, the network learns the same.
        """
        default = GuidanceConfig()
        same = {name: getattr(default, name) for name in unread(self.method)}
        return dataclasses.replace(self, guidance=dataclasses.replace(self.guidance, **same))

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Config:
        """The configuration that `to_dict` wrote; raises ConfigError for unknown fields and wrong values."""
        return override(cls(), {**_BEFORE, **_flatten(saved)})

    @property
    def identity(self) -> str:
        """Short hash of all that decides the result: everything but `record`, `evaluation`, and where it runs."""
        d = self.to_dict()
        del d["record"], d["evaluation"]
        for place in (("optim", "device"), ("optim", "image_memory"), ("data", "root"), ("data", "cache")):
            del d[place[0]][place[1]]
        for name, value in _BEFORE.items():  # without them, a run keeps the identity it had
            section, leaf = name.split(".")
            if d[section][leaf] == value:
                del d[section][leaf]
        return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()[:12]


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{k}": v for k, v in value.items()})
        else:
            flat[key] = value
    return flat


def fields() -> dict[str, tuple[Any, Any, str]]:
    """Every settable field: dotted name -> (type, default, help)."""
    rows: dict[str, tuple[Any, Any, str]] = {
        "method": (str, "tase", "see METHODS"),
        "seed": (int, 0, "seed of the run"),
    }
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default):
            hints = get_type_hints(type(section.default))
            for f in dataclasses.fields(section.default):
                rows[f"{section.name}.{f.name}"] = (hints[f.name], f.default, f.metadata["help"])
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _parse(name: str, kind: Any, value: Any) -> Any:
    """`value`, a string from the command line or a JSON value, as the field's type."""
    if isinstance(value, str) and kind is not str:
        text = value.strip()
        if kind in (int, float, bool):
            try:
                value = json.loads(text.lower())
            except ValueError:
                value = text
        else:
            value = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
    if kind is bool:
        check(isinstance(value, bool), name, value, "true or false")
        return value
    if kind is int:
        check(_is_number(value) and value == int(value), name, value, "a whole number")
        return int(value)
    if kind is float:
        check(_is_number(value), name, value, "a number")
        return float(value)
    if kind is str:
        check(isinstance(value, str), name, value, "a text")
        return value
    inner, *more = kind.__args__
    check(isinstance(value, (list, tuple)), name, value, "a list, with commas between")
    if more and more[0] is not Ellipsis:
        check(len(value) == len(kind.__args__), name, value, f"{len(kind.__args__)} values, with commas between")
    return tuple(_parse(name, inner, v) for v in value)


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with the dotted fields of `overrides` replaced and checked; values may be strings."""
    known = fields()
    changes: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for name, value in overrides.items():
        if name == "preset":
            check(isinstance(value, str), name, value, "a text")
            top[name] = value
        elif name not in known:
            raise unknown("field", name, known)
        elif "." in name:
            section, field = name.split(".")
            changes.setdefault(section, {})[field] = _parse(name, known[name][0], value)
        else:
            top[name] = _parse(name, known[name][0], value)
    for section, values in changes.items():
        top[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **top)


_CONV4 = {"model.backbone": "conv4", "model.head_dim": 64}
_CIFAR = {
    "data.rule": "sdclr",
    "views.scale": (0.1, 1.0),
    "optim.epochs": 2000,
    "optim.batch": 512,
}

# A preset fixes data, views, network, optimisation and evaluation for all methods, so that they can be compared.
PRESETS: dict[str, dict[str, Any]] = {
    # 8x8 digits: a small crop leaves nothing to recognise, and a flipped digit is another sign.
    "digits-lt": {
        **_CONV4,
        "data.source": "digits",
        "data.rule": "custom",
        "data.n_max": 120,
        "data.rho": 20.0,
        "data.pool_per_class": 120,
        "data.val_per_class": 15,
        "data.few_shot_per_class": 5,
        "views.scale": (0.4, 1.0),
        "views.flip": 0.0,
        "views.hue": 0.0,
        "views.saturation": 0.0,
        "views.grey": 0.0,
        "model.strides": (1, 2, 1, 2),
        "optim.epochs": 150,
        "optim.batch": 128,
        "optim.lr": 0.3,
        "optim.weight_decay": 5e-4,
    },
    "fashion-mnist-lt-small": {
        **_CONV4,
        "data.source": "fashion-mnist",
        "data.rule": "custom",
        "data.n_max": 1000,
        "data.val_per_class": 500,
        "data.probe_per_class": 500,
        "data.few_shot_per_class": 10,
        "views.scale": (0.2, 1.0),
        "optim.epochs": 100,
        "optim.batch": 64,  # 3,800 updates; after the 900 of batch 256 the long tail has done no harm yet
        "optim.lr": 0.15,
        "optim.weight_decay": 5e-4,
    },
    "fashion-mnist-lt": {
        "data.source": "fashion-mnist",
        "data.rule": "custom",
        "data.n_max": 5000,
        "data.val_per_class": 500,
        "data.few_shot_per_class": 55,
        "views.scale": (0.2, 1.0),
        "optim.epochs": 500,
    },
    "openclipart": {
        **_CONV4,
        "data.source": "folder",
        "data.root": "/usr/share/openclipart/png",
        "data.rule": "none",
        "data.image_size": 32,
        "data.fit": "letterbox",
        "data.on_bad_image": "skip",
        "data.test_per_class": 30,
        "data.probe_per_class": 65,
        "data.min_per_class": 91,
        "views.scale": (0.2, 1.0),
        "optim.epochs": 60,
        "optim.batch": 256,
        "optim.lr": 0.3,
        "optim.weight_decay": 5e-4,
    },
    "cifar10-lt": {**_CIFAR, "data.source": "cifar10", "data.val_per_class": 500, "data.few_shot_per_class": 45},
    "cifar100-lt": {**_CIFAR, "data.source": "cifar100", "data.val_per_class": 50, "data.few_shot_per_class": 4},
    "imagenet100-lt": {
        "data.source": "imagenet100",
        "data.n_max": 1280,
        "data.rho": 1280 / 6,
        "data.rule": "custom",
        "data.image_size": 256,
        "data.val_per_class": 20,
        "data.few_shot_per_class": 12,
        "data.groups": "counts",
        "views.size": 224,
        "views.scale": (0.08, 1.0),
        "views.blur": 0.5,
        "model.backbone": "resnet50",
        "optim.epochs": 500,
        "optim.batch": 256,
    },
    "folder": {
        **_CONV4,
        "data.source": "folder",
        "data.rule": "none",
        "data.image_size": 64,
        "data.on_bad_image": "skip",
        "optim.epochs": 100,
        "optim.batch": 256,
        "optim.lr": 0.3,
        "optim.weight_decay": 5e-4,
    },
}


def preset(name: str, method: str = "tase", seed: int = 0, overrides: Mapping[str, Any] | None = None) -> Config:
    """The named preset with the method's fields, then `overrides` ("section.field": value), checked.

    Raises ConfigError for an unknown preset, method or field (with the nearest name) and for impossible values.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    check_choice("method", method, METHODS)
    chosen = {**PRESETS[name], **METHODS[method][1], **(overrides or {})}
    return override(Config(), {"preset": name, "method": method, "seed": seed, **chosen})
