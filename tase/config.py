"""Every choice of a run, in frozen dataclasses, one per concern, each field with its default, help and bounds.

    config = preset("digits-lt", method="tase", seed=0, overrides={"guidance.tau_max": 0.3})     # in presets.py

The options of a method live in its guidance class (guidance/); `config.guidance` holds those of the chosen method
only. A configuration is checked when it is created and goes to and from JSON. Nothing here imports torch, so that a
wrong field is reported at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from .options import ConfigError, Field, Registry, Section, check, check_choice, option, parse_value, unknown

# What can be chosen by name. Add your own from anywhere: `SOURCES["rings"] = read_rings`. The built-in ones say in
# their own module's docstring what an entry is.
SOURCES = Registry(
    "data.source",
    {
        "digits": "tase.data.sources:digits",
        "fashion-mnist": "tase.data.sources:fashion_mnist",
        "cifar10": "tase.data.sources:cifar10",
        "cifar100": "tase.data.sources:cifar100",
        "imagenet100": "tase.data.sources:imagenet100",
        "folder": "tase.data.sources:folder",
        "hf": "tase.data.archives:hf",
        "wds": "tase.data.archives:wds",
    },
)
ESTIMATORS = Registry(
    "guidance.estimator",
    {
        "size": "tase.pseudo_labels:by_size",
        "merged": "tase.pseudo_labels:by_merged_size",
        "density": "tase.pseudo_labels:by_density",
        "crowding": "tase.pseudo_labels:by_crowding",
    },
)
PROTOCOLS = Registry(
    "protocol",
    {
        "linear": "tase.evaluation:linear",
        "few-shot": "tase.evaluation:few_shot",
        "linear-sgd": "tase.evaluation:linear_sgd",
        "few-shot-sgd": "tase.evaluation:few_shot_sgd",
        "lt-knn": "tase.evaluation:lt_knn",
        "lt-svm": "tase.evaluation:lt_svm",
        "lt-few-svm": "tase.evaluation:lt_few_svm",
    },
)
METHODS = Registry("method")  # filled by guidance/, which `import tase` loads


@dataclass(frozen=True)
class DataConfig(Section):
    NAME: ClassVar[str] = "data"

    source: str = option("digits", f"where the images come from: {', '.join(SOURCES)}", choices=SOURCES)
    root: str = option("", "folder of the data; empty: the source's usual place; hf: a name on the hub, or ./FOLDER")
    columns: tuple[str, ...] = option(
        (), "hf: columns of images and labels; wds: the same, in .json (empty: the only ones)", before=()
    )
    rule: str = option(
        "sdclr",
        "how the tail is made: sdclr, ldam, custom (n_max, rho, order), file (list_file), none",
        choices=("sdclr", "ldam", "custom", "file", "none"),
    )
    n_max: int = option(0, "images of the largest class (0: what the rule says)", low=0)
    rho: float = option(100.0, "imbalance ratio, largest over smallest class; 1: balanced", low=1)
    profile: str = option(
        "exponential",
        "how counts fall from head to tail: exponential, or step (half n_max, half n_max/rho)",
        choices=("exponential", "step"),
    )
    order: str = option(
        "shuffled", "which class is head: shuffled (by the split's seed), or id (0)", choices=("shuffled", "id")
    )
    balanced: bool = option(False, "the control: as many images in all, equally many of each class")
    list_file: str = option("", "a published split: .npy of indices, or .txt with 'path label' lines")
    split: int = option(-1, "number of the split; -1: follows the run's seed", low=-1)
    image_size: int = option(0, "side in pixels to which files are decoded (0: the source's; folders need one)", low=0)
    fit: str = option(
        "crop", "how a file becomes square: crop (centre), or letterbox (on white)", choices=("crop", "letterbox")
    )
    on_bad_image: str = option(
        "strict", "a file that cannot be read: strict (stop), or skip; both list all", choices=("strict", "skip")
    )
    cache: str = option("", "folder for decoded images (empty: ~/.cache/tase)")
    pool_per_class: int = option(0, "images per class of which the tail is drawn (0: all that is left)", low=0)
    val_per_class: int = option(0, "images per class held out to pick the probe's regularisation", low=0)
    test_per_class: int = option(0, "images per class held out for the test (0: the source's own test set)", low=0)
    probe_per_class: int = option(0, "images per class on the balanced probe list (0: the whole pool)", low=0)
    few_shot_per_class: int = option(10, "labels per class of the few-shot protocols", low=1)
    min_per_class: int = option(0, "classes with fewer images are trained on but not evaluated", low=0)
    groups: str = option(
        "thirds",
        "head/mid/tail: thirds of the classes by count, or counts (>100, 20-100, <20 images)",
        choices=("thirds", "counts"),
    )

    def check_together(self) -> None:
        file = self.rule != "file" or bool(self.list_file)
        check(file, "data.list_file", self.list_file, "a file where data.rule is 'file'")
        check(self.rule != "custom" or self.n_max > 0, "data.n_max", self.n_max, "at least 1 for data.rule 'custom'")


def is_hub_name(root: str) -> bool:
    """Tell whether `data.root` of source `hf` is a name on the hub: folders start with ./, ~ or /."""
    return bool(root) and root[0] not in "./~" and not os.path.isabs(root)


@dataclass(frozen=True)
class ViewsConfig(Section):
    NAME: ClassVar[str] = "views"

    size: int = option(0, "side of a view in pixels (0: as the images)", low=0)
    scale: tuple[float, float] = option(
        (0.1, 1.0), "area of the random crop, share of the image", above=0, high=1, ordered=True
    )
    ratio: tuple[float, float] = option((0.75, 4 / 3), "aspect ratio of the crop", above=0, ordered=True)
    interpolation: str = option(
        "bicubic", "how a crop is resized: bicubic or bilinear (antialiased as in PIL)", choices=("bicubic", "bilinear")
    )
    flip: float = option(0.5, "probability of a horizontal flip", low=0, high=1)
    brightness: float = option(0.4, "factor drawn from 1 - x to 1 + x", low=0, high=1)
    contrast: float = option(0.4, "factor drawn from 1 - x to 1 + x", low=0, high=1)
    saturation: float = option(0.4, "factor drawn from 1 - x to 1 + x (colour images)", low=0, high=1)
    hue: float = option(0.1, "shift drawn from -x to x, in turns of the colour circle (colour images)", low=0, high=0.5)
    jitter: float = option(0.8, "probability of the colour jitter, brightness to hue", low=0, high=1)
    grey: float = option(0.2, "probability of dropping the colour (colour images)", low=0, high=1)
    blur: float = option(0.0, "probability of a Gaussian blur", low=0, high=1)
    blur_sigma: tuple[float, float] = option(
        (0.1, 2.0), "standard deviation of the blur in pixels of the view", above=0, ordered=True
    )


@cache
def architectures(library: str) -> frozenset[str]:
    """Return the classification networks of torchvision or timm; empty where the library is not installed.

    Read from its source: importing it would load torch, and take seconds.
    """
    found = importlib.util.find_spec(library)
    files = sorted((Path(found.origin).parent / "models").glob("*.py")) if found else []
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return frozenset(re.findall(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", text, re.M))


def check_architecture(backbone: str) -> None:
    """Raise a ConfigError with the nearest name unless there is such a backbone; timm's may not be installed."""
    library, colon, name = backbone.partition(":")
    if not colon:
        check_choice("model.backbone", backbone, ("resnet18", "resnet50", "conv4"))
        return
    check(library in ("torchvision", "timm"), "model.backbone", backbone, "torchvision:NAME or timm:NAME")
    known = architectures(library)
    if name not in known and (known or library != "timm"):
        raise unknown(f"architecture of {library}", name, known)


def encoder_file(place: str | os.PathLike) -> Path:
    """Return the file with the weights of an encoder: of a run's folder, of encoder.json, or the file itself."""
    path = Path(place)
    if os.path.isdir(path):
        return next((p for p in (path / "encoder.safetensors", path / "encoder.pt") if p.exists()), path / "encoder.pt")
    return path.with_suffix(".safetensors") if path.suffix == ".json" else path


def pinned(field: str, file: str) -> str:
    """Return FILE#HASH, 12 digits of the SHA-256 of its bytes: they decide the result, and not where they lie."""
    if not file or re.search("#[0-9a-f]{12}$", file):
        return file
    path = encoder_file(os.path.expanduser(file))
    check(os.path.isfile(path), field, file, "a file of weights, or the folder of a finished run")
    return f"{os.path.abspath(path)}#{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


@dataclass(frozen=True)
class ModelConfig(Section):
    NAME: ClassVar[str] = "model"

    backbone: str = option(
        "resnet18", "resnet18, resnet50, conv4 (four convolutions, for a CPU), torchvision:NAME, or timm:NAME"
    )
    stem: str = option(
        "auto",
        "first layers of a network of convolutions: cifar (3x3, no pooling), imagenet, or auto (cifar up to 64 px)",
        choices=("auto", "cifar", "imagenet"),
    )
    channels: tuple[int, ...] = option((32, 64, 128, 128), "conv4: channels of its convolutions", low=1)
    strides: tuple[int, ...] = option((2, 2, 2, 1), "conv4: their strides", low=1)
    weights: str = option(
        "", "published weights to start from: IMAGENET1K_V1 and such of torchvision, or a tag of timm's", before=""
    )
    init: str = option(
        "", "weights to start from: a finished run, or its encoder, or a state dict (.pt, .safetensors)", before=""
    )
    freeze: tuple[str, ...] = option(
        (), "patterns of the backbone's parameters that stay as they are: conv1.*,layer1.*", before=()
    )
    mean: tuple[float, ...] = option(
        (), "taken from each channel, 0 to 1 (empty: as init or weights were trained with, else 0)", before=()
    )
    std: tuple[float, ...] = option((), "by which it is then divided (empty: likewise, else 1)", above=0, before=())
    head_hidden: int = option(0, "hidden width of the projection head (0: the backbone's)", low=0)
    head_layers: int = option(2, "linear layers of the projection head", low=1, before=2)
    head_dim: int = option(128, "dimension of the embedding z in which the loss is taken", low=2)

    def check_together(self) -> None:
        check_architecture(self.backbone)
        check(not (self.init and self.weights), "model.init", self.init, "empty where model.weights is set")
        object.__setattr__(self, "init", pinned("model.init", self.init))
        alike = len(self.channels) == len(self.strides) > 0
        check(alike, "model.strides", self.strides, "as many as model.channels")


@dataclass(frozen=True)
class OptimConfig(Section):
    NAME: ClassVar[str] = "optim"

    epochs: int = option(2000, "passes over the images", low=1)
    batch: int = option(512, "images per step, each seen in two views (a contrast needs another image)", low=2)
    lr: float = option(0.5, "peak learning rate of SGD", above=0)
    lr_min: float = option(1e-6, "learning rate at the end of the cosine", low=0)
    momentum: float = option(0.9, "momentum of SGD", low=0, below=1)
    weight_decay: float = option(1e-4, "L2 penalty", low=0)
    warmup_epochs: int = option(10, "epochs of linear warm-up of the learning rate, at most half the run", low=0)
    loss_chunk: int = option(0, "rows of the similarity matrix held at a time (0: all)", low=0)
    device: str = option("auto", "auto, cpu, cuda, or cuda:N")
    precision: str = option(
        "auto", "float32, bf16 (autocast), or auto: bf16 where the GPU has it", choices=("auto", "float32", "bf16")
    )
    compile: bool = option(False, "torch.compile the network")
    image_memory: float = option(
        0.0, "GiB of images kept on the device, more are fetched by batch (0: half of what is free on a GPU)", low=0
    )

    window: float = option(
        16.0, "GiB of images among which an epoch's order is drawn: less than fits into memory", above=0, before=16.0
    )

    def check_together(self) -> None:
        check(self.lr_min <= self.lr, "optim.lr_min", self.lr_min, f"from 0 to optim.lr = {self.lr}")
        known = self.device in ("auto", "cpu", "cuda") or (self.device[:5] == "cuda:" and self.device[5:].isdigit())
        check(known, "optim.device", self.device, "auto, cpu, cuda, or cuda:N")


@dataclass(frozen=True)
class EvaluationConfig(Section):
    NAME: ClassVar[str] = "evaluation"

    protocols: tuple[str, ...] = option(
        ("linear", "few-shot", "lt-knn"), f"of {', '.join(PROTOCOLS)}", choices=PROTOCOLS
    )
    draws: int = option(5, "fixed draws of the few-shot labels", low=1)
    knn: tuple[int, ...] = option((1, 10), "neighbours of lt-knn", low=1)

    def check_together(self) -> None:
        check(len(self.knn) > 0, "evaluation.knn", self.knn, "one or more numbers of neighbours")


@dataclass(frozen=True)
class RecordConfig(Section):
    """What a run writes down, and how often. Changes nothing in what is learnt."""

    NAME: ClassVar[str] = "record"

    checkpoint_every: int = option(10, "epochs between checkpoints", low=1)
    knn_every: int = option(10, "epochs between k-NN accuracies (0: never; they need labels)", low=0)
    snapshots: bool = option(True, "write tau, w and pseudo-labels of every sample at each refresh")
    features: int = option(2000, "images whose features are kept in each snapshot (all, in the last one)", low=0)
    sample: int = option(50_000, "of more images than these, snapshots keep so many, always the same", low=1)


# ------------------------------------------------------------------------------------------------------- configuration

# Fields that decide where and how a run is computed, but not what it computes.
_PLACES = ("optim.device", "optim.image_memory", "data.root", "data.cache")

# Configurations of formats 1 and 2 held the options of all methods, and one that no longer exists. These are their
# defaults: added to what is hashed, they keep every identity as it was; read from an old file, they are dropped.
_FORMAT_2: dict[str, Any] = {
    "views.backend": "batched",
    **{
        f"guidance.{name}": value
        for name, value in {
            "tau_0": 0.2,
            "tau_min": 0.1,
            "tau_max": 0.5,
            "gamma": 0.5,
            "w_max": 5.0,
            "reversed": False,
            "scale_by_tau": False,
            "shuffled": False,
            "ramp": 0.05,
            "periods": 5,
            "ts_range": [0.1, 1.0],
            "mm_range": [0.17, 0.3],
            "mm_alpha": 0.2,
            "iso_start": 0.1,
            "iso_range": [0.05, 1.0],
            "iso_r": 0.4,
            "iso_step": 0.03,
            "iso_momentum": 0.9,
        }.items()
    },
}
_DROPPED = {*_FORMAT_2, "guidance.group_tau"}


@dataclass(frozen=True)
class Config:
    """All choices of one run. Equal configurations on the same machine and thread count give the same run.

    `guidance` holds the `Options` of the method's guidance class (None: its defaults); options of another class are
    carried over where both have them.
    """

    preset: str = "digits-lt"
    method: str = "tase"
    seed: int = 0
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    guidance: Any = None
    optim: OptimConfig = OptimConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    record: RecordConfig = RecordConfig()

    def __post_init__(self):
        options = self.guidance_class.Options
        if type(self.guidance) is not options:
            names = {field.name for field in dataclasses.fields(options)}
            given = vars(self.guidance) if self.guidance is not None else {}
            shared = {name: value for name, value in given.items() if name in names}
            object.__setattr__(self, "guidance", options(**shared))
        check(0 <= self.seed < 2**31, "seed", self.seed, "a whole number from 0 to 2^31 - 1")

    @property
    def guidance_class(self) -> type:
        """The class that decides tau and w of each sample: knows its options, title, and what can be steered."""
        return METHODS[self.method].guidance

    @property
    def method_title(self) -> str:
        """The method as tables and figures write it."""
        return METHODS[self.method].title

    @property
    def split(self) -> int:
        """Number of the data split: `data.split`, or the run's seed."""
        return self.seed if self.data.split < 0 else self.data.split

    @property
    def refresh(self) -> int:
        """Epochs between two refreshes of the guidance."""
        return self.guidance.refresh or (20 if self.optim.epochs >= 1000 else 10)

    @property
    def warmup(self) -> int:
        """Epochs before the first guidance."""
        return round(self.guidance.warmup * self.optim.epochs)

    def is_refresh(self, epoch: int) -> bool:
        """Tell whether the guidance takes fresh features before `epoch`, counted from 0."""
        return epoch % self.refresh == 0 or epoch in (self.warmup, self.optim.epochs)

    def next_refresh(self, epoch: int) -> int | None:
        """Return the first epoch after `epoch` before which there is a refresh; None where none is left."""
        return next((e for e in range(epoch + 1, self.optim.epochs) if self.is_refresh(e)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON has it: sections of plain values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Config:
        """Rebuild the configuration that `to_dict` wrote; raises ConfigError for unknown fields and wrong values.

        Of older formats, options of other methods than the saved one are dropped.
        """
        flat = _flatten(saved)
        method = flat.get("method", cls.method)
        check(isinstance(method, str), "method", method, "a text")
        known = fields(method)
        backend = flat.get("views.backend", "batched")
        allowed = "batched: torchvision's views are a reference of the tests"
        check(backend == "batched", "views.backend", backend, allowed)
        flat = {name: value for name, value in flat.items() if name in known or name not in _DROPPED}
        joined = {name: field.before for name, field in known.items() if field.before is not None}
        return override(cls(), {**joined, **flat})

    def __reduce__(self):
        # Options of combined methods belong to classes that no module has by name: pickle cannot find them.
        return Config.from_dict, (self.to_dict(),)

    def flat(self) -> dict[str, Any]:
        """Return every value under its dotted name."""
        return _flatten(self.to_dict())

    def changes(self, base: Config) -> dict[str, Any]:
        """Return the fields that decide the result and differ from `base`, with the values here; not seed and split."""
        here, there = self.flat(), base.flat()
        hidden = {"seed", "data.split", *_PLACES}
        return {
            name: value
            for name, value in here.items()
            if value != there.get(name) and name not in hidden and name.split(".")[0] not in ("record", "evaluation")
        }

    @property
    def identity(self) -> str:
        """Short hash of all that decides the result: everything but `record`, `evaluation`, and where it runs."""
        return _hash({**_FORMAT_2, **self.flat()}, fields(self.method))

    @property
    def training_identity(self) -> str:
        """The identity, without options that shape only the snapshots of a method that does not use them.

        Where this is equal, the network learns the same.
        """
        default = self.guidance_class.Options()
        unused = {f"guidance.{name}": getattr(default, name) for name in self.guidance_class.snapshot_only()}
        return override(self, unused).identity


def _hash(flat: Mapping[str, Any], known: Mapping[str, Field]) -> str:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        section, dot, leaf = name.partition(".")
        joined = name in known and known[name].before is not None and value == _jsoned(known[name].before)
        named = name == "data.root" and flat["data.source"] == "hf" and is_hub_name(value)  # then it is no place
        if section in ("record", "evaluation") or (name in _PLACES and not named) or joined:
            continue
        if name in ("model.init", "guidance.features"):
            value = value.rpartition("#")[2]  # its content, not its place
        if dot:
            tree.setdefault(section, {})[leaf] = value
        else:
            tree[name] = value
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def _jsoned(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{k}": v for k, v in value.items()})
        else:
            flat[key] = value
    return flat


# ------------------------------------------------------------------------------------------------ from names and texts


def fields(method: str = "tase") -> dict[str, Field]:
    """Return every settable field of a configuration with this method, by its dotted name."""
    return _fields(METHODS[method].guidance.Options)


@cache
def _fields(options: type) -> dict[str, Field]:
    rows = {"method": Field(str, "tase", "see METHODS"), "seed": Field(int, 0, "seed of the run")}
    sections = [type(f.default) for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default)]
    for section in (*sections, options):
        hints = get_type_hints(section)
        for f in dataclasses.fields(section):
            about = f.metadata
            rows[f"{section.NAME}.{f.name}"] = Field(hints[f.name], f.default, about["help"], about["before"])
    return rows


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return `config` with the dotted fields of `overrides` replaced and checked; values may be strings.

    Another method brings the fields that make it what it is, and leaves none of the former one's behind.
    """
    method = overrides.get("method", config.method)
    check(isinstance(method, str), "method", method, "a text")
    known = fields(method)
    if method != config.method:
        former = {name: known[name].default for name in METHODS[config.method].changes if name in known}
        overrides = {**former, **METHODS[method].changes, **overrides}
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        section, dot, leaf = name.partition(".")
        if name == "preset":
            check(isinstance(value, str), name, value, "a text")
            top[name] = value
        elif name not in known:
            raise _unknown_field(name, method, known)
        elif dot:
            sections.setdefault(section, {})[leaf] = parse_value(name, known[name].type, value)
        else:
            top[name] = parse_value(name, known[name].type, value)
    config = dataclasses.replace(config, **top)
    parts = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, **parts)


def applicable(overrides: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return the overrides that this method has, to set several methods alike; ConfigError for what no method has."""
    for name in overrides:
        if name != "preset" and not any(name in fields(other) for other in METHODS):
            raise unknown("field", name, {name for other in METHODS for name in fields(other)})
    return {name: value for name, value in overrides.items() if name in fields(method) or name == "preset"}


def _unknown_field(name: str, method: str, known: Iterable[str]) -> ConfigError:
    having = [other for other in METHODS if name in fields(other)]
    if having:
        return ConfigError(f"unknown field '{name}' of method '{method}': it is an option of {', '.join(having)}")
    return unknown("field", name, known)
