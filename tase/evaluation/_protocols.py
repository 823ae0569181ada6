"""The lists of a split, a backbone's features of them, and the protocols of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from .. import probes
from ..config import Config, ConfigError, check, override
from ..data import ImageSet, Splits, few_shot_draws, load_splits
from ..models import encode
from ..training import generator
from ._sgd import FEW, FULL, sgd_probe


@dataclass(frozen=True)
class Lists:
    """The lists of a split (tail, probe, test, and val if there is one) without the classes that are not evaluated.

    `tail` is the long-tailed training set, for the balanced control that of its split: else a control would lead under
    the `lt` protocols by its neighbours, whatever its features.
    """

    images: dict[str, UInt8[Tensor, "n c h w"]]
    labels: dict[str, Int64[Tensor, "n"]]  # on the device, numbered 0..e-1
    probe: ImageSet
    tail: str  # hash of the long-tailed set
    groups: Int64[Tensor, "e"]
    config: Config
    device: torch.device
    on: str = "test"  # the list that is judged, called "test" above whichever it is

    @property
    def classes(self) -> int:
        return len(self.groups)

    @property
    def draws(self) -> list[Int64[Tensor, "s"]]:
        """The fixed draws of few labels, as indices into the probe list."""
        return few_shot_draws(self.probe, self.config.data.few_shot_per_class, self.config.evaluation.draws)


def load_lists(config: Config, splits: Splits, device: torch.device, on: str = "test") -> Lists:
    """The split's lists, ready to be measured on (test, or `on="val"`); raises ConfigError naming what is missing."""
    source = f"'{config.data.source}'" + (f" in {config.data.root}" if config.data.root else "")
    if splits.train.labels is None:
        raise ConfigError(
            f"evaluation needs labels, and {source} has none: training, clustering and exploring work without; "
            "to evaluate, put the images into one folder per class"
        )
    if splits.test is None or splits.probe is None:
        raise ConfigError(
            f"evaluation needs test images with labels, and {source} leaves none: set data.test_per_class (before "
            "training), or give the folder the parts train/ and test/"
        )
    check(
        on == "test" or splits.val is not None, "data.val_per_class", config.data.val_per_class, "above 0 to judge on"
    )
    judged = splits.test if on == "test" else splits.val
    tail = _long_tail(config, splits)
    sets = {"tail": tail, "probe": splits.probe, "val": splits.val, "test": judged}
    kept = {name: _evaluated(images, splits.eval_classes) for name, images in sets.items() if images is not None}
    return Lists(
        images={name: images.images for name, images in kept.items()},
        labels={
            name: probes.renumbered(images.labels.to(device), splits.eval_classes) for name, images in kept.items()
        },
        probe=kept["probe"],
        tail=tail.hash,
        groups=splits.train.groups.cpu()[splits.eval_classes.cpu()],
        config=config,
        device=device,
        on=on,
    )


def _long_tail(config: Config, splits: Splits) -> ImageSet:
    """The long-tailed training set of a split; loaded where the split is of the balanced control."""
    if not config.data.balanced:
        return splits.train
    return load_splits(override(config, {"data.balanced": False}), parts=("train",)).train


def _evaluated(images: ImageSet, eval_classes: Int64[Tensor, "e"]) -> ImageSet:
    """Without the classes that are not evaluated; the same object where all are (its images may be a mapped file)."""
    keep = torch.isin(images.labels, eval_classes.to(images.labels.device))
    return images if bool(keep.all()) else images.subset(keep.nonzero()[:, 0])


@dataclass
class Bench:
    """One backbone under measurement; the features of a list are computed when they are first asked for, then kept."""

    module: nn.Module
    lists: Lists
    features: dict[str, Float[Tensor, "n d"]] = field(default_factory=dict)

    def x(self, name: str) -> Float[Tensor, "n d"] | None:
        if name not in self.features and name in self.lists.images:
            size, device = self.lists.config.views.size, self.lists.device
            self.features[name] = encode(self.module, self.lists.images[name], size, device=device)
        return self.features.get(name)

    def pair(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Features and classes of a list; None twice where there is none."""
        return self.x(name), self.lists.labels.get(name)


# ----------------------------------------------------------------------------------------------------------- protocols


class Outcome(NamedTuple):
    predicted: list[Int64[Tensor, "m"]]  # one per draw of labels
    chosen: dict[str, Any]  # what validation decided


def _linear(b: Bench) -> dict[str, Outcome]:
    probe = probes.linear(*b.pair("probe"), *b.pair("val"), b.x("test"), b.lists.classes)
    return {"linear": Outcome([probe.predicted], {"l2": probe.l2, "validation": probe.validation})}


def _few_shot(b: Bench) -> dict[str, Outcome]:
    found = probes.few_shot(*b.pair("probe"), *b.pair("val"), b.x("test"), b.lists.classes, b.lists.draws)
    chosen = {"l2": [p.l2 for p in found], "validation": [p.validation for p in found]}
    return {"few-shot": Outcome([p.predicted for p in found], chosen)}


def _by_sgd(b: Bench, index: Tensor, schedule: tuple[int, tuple[int, ...]], seed: int) -> tuple[Tensor, int]:
    """Without validation images a fixed fifth of each class chooses the epoch, and is not trained on."""
    lists, y = b.lists, b.lists.labels["probe"]
    index = index.to(y.device)
    val_x, val_y = b.pair("val")
    if val_x is None:
        out = probes.held_out(y[index])
        out = out if out.any() else ~out  # one label per class: the training images have to choose
        val_x, val_y = b.x("probe")[index[out]], y[index[out]]
        index = index[~out] if not out.all() else index
    images = lists.images["probe"]
    size, flip = lists.config.views.size, lists.config.views.flip > 0
    rng = generator(seed, "linear-sgd", lists.device)
    at = (images[index.to(images.device)], y[index])
    return sgd_probe(b.module, *at, val_x, val_y, b.x("test"), lists.classes, schedule, rng, size, flip)


def _linear_sgd(b: Bench) -> dict[str, Outcome]:
    predicted, epoch = _by_sgd(b, torch.arange(len(b.lists.labels["probe"])), FULL, seed=0)
    return {"linear-sgd": Outcome([predicted], {"epoch": epoch})}


def _few_shot_sgd(b: Bench) -> dict[str, Outcome]:
    found = [_by_sgd(b, draw, FEW, seed) for seed, draw in enumerate(b.lists.draws)]
    return {"few-shot-sgd": Outcome([p for p, _ in found], {"epoch": [epoch for _, epoch in found]})}


def _lt_knn(b: Bench) -> dict[str, Outcome]:
    ks = b.lists.config.evaluation.knn
    return {f"lt-knn@{k}": Outcome([probes.lt_knn(*b.pair("tail"), b.x("test"), k)], {}) for k in ks}


def _lt_svm(b: Bench) -> dict[str, Outcome]:
    return {"lt-svm": Outcome([probes.lt_svm(*b.pair("tail"), b.x("test"))], {})}


def _lt_few_svm(b: Bench) -> dict[str, Outcome]:
    predicted = probes.lt_few_svm(*b.pair("tail"), b.x("test"), generator(0, "lt-few-svm"))
    return {"lt-few-svm": Outcome([predicted], {})}


MEASURE: dict[str, Callable[[Bench], dict[str, Outcome]]] = {
    "linear": _linear,
    "few-shot": _few_shot,
    "linear-sgd": _linear_sgd,
    "few-shot-sgd": _few_shot_sgd,
    "lt-knn": _lt_knn,
    "lt-svm": _lt_svm,
    "lt-few-svm": _lt_few_svm,
}


def keys(protocol: str, config: Config) -> list[str]:
    """The names under which a protocol's scores are saved."""
    return [f"lt-knn@{k}" for k in config.evaluation.knn] if protocol == "lt-knn" else [protocol]


def missing(saved: dict[str, Any], names: Sequence[str], config: Config) -> list[str]:
    return [name for name in names if any(key not in saved for key in keys(name, config))]


def measured(b: Bench, names: Sequence[str], bar) -> dict[str, dict[str, Any]]:
    found = {}
    for name in names:
        bar.set_postfix_str(name)
        found.update({key: scores_of(outcome, b.lists) for key, outcome in MEASURE[name](b).items()})
        bar.update()
    return found


def scores_of(outcome: Outcome, lists: Lists) -> dict[str, Any]:
    """Accuracies of one protocol: per class (mean over the draws) and by group; each draw's own beside them."""
    y = lists.labels["test"]
    each = [probes.per_class_accuracy(predicted, y, lists.classes) for predicted in outcome.predicted]
    mean = torch.stack(each).mean(0)
    scores = {"per_class": mean.tolist(), **probes.group_scores(mean, lists.groups), "chosen": outcome.chosen}
    if len(each) > 1:
        scores["draws"] = [probes.group_scores(accuracy, lists.groups) for accuracy in each]
    return scores
