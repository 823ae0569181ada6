"""Evaluate a run: features of its images, the protocols on them, results.json.

    results = evaluate(run, protocols=["linear", "few-shot", "lt-knn"])     # also written to the run's results.json
    print(format_table(compare([run, other])))                              # mean and 95 % interval over seeds

Every protocol is measured three times: on the trained backbone, on the raw pixels, and on the network as it was
initialised. Chance is no floor: raw pixels of digits are told apart at 96 %.

A protocol of your own is one function, registered by name. It gets the `Features` of one backbone and the
configuration, and returns predictions of the judged images by the name of their score:

    def centroid(features, config):                                         # nearest class mean
        x, y = features.x("probe"), features.y("probe")
        means = torch.stack([x[y == c].mean(0) for c in range(features.classes)])
        return {"centroid": Predictions([torch.cdist(features.x("judged"), means).argmin(1)])}

    PROTOCOLS["centroid"] = centroid                                        # then: evaluate(run, ["centroid"])

One that gives several scores calls them "name@..." and lists them for a configuration, as `lt_knn.scores` does below.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from . import presets, probes
from .config import PROTOCOLS, Config, ConfigError, EvaluationConfig, check, check_choice, override
from .data import ImageSet, Splits, few_shot_draws, load_splits
from .distributed import device_here
from .files import load_json, load_optional_json, save_json, save_npz, tidy
from .losses import nt_xent
from .models import Network, encode, initial_network
from .runs import RESULTS, Run, load_checkpoint
from .streams import generator
from .tables import BASELINES, compare, format_table, to_markdown  # noqa: F401 (two rooms, one job)
from .views import two_views

RESULTS_FORMAT = 1  # of results.json
PIXELS = 32  # side to which larger images are reduced for the probe on raw pixels
ALIGNMENT_IMAGES = 2000  # judged images of which two views are drawn


# ---------------------------------------------------------------------------------------- what is measured, and on what


class Pixels(nn.Module):
    """Give the image itself as its features, in [0, 1]; sides over 32 pixels are averaged down to 32."""

    def forward(self, x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        return (F.adaptive_avg_pool2d(x, PIXELS) if x.shape[-1] > PIXELS else x).flatten(1)


@dataclass
class Features:
    """The image lists of a split, and the features that one backbone gives of them.

    `sets`: "tail" (the long-tailed training set), "probe" (balanced, labelled), "judged" (the test images, or the
    validation images where `on` is "val"), and "val" if there is one; without the classes that are not evaluated. The
    others, e of them, are numbered 0..e-1. `tail_hash`: of the whole long-tailed set. Features are computed when they
    are first read, then kept, on the device.
    """

    backbone: nn.Module
    sets: Mapping[str, ImageSet]
    tail_hash: str
    eval_classes: Int64[Tensor, "e"]
    config: Config
    device: torch.device
    on: str = "test"
    known: dict[str, Float[Tensor, "n d"]] = field(default_factory=dict)

    def x(self, name: str) -> Float[Tensor, "n d"] | None:
        """Return the features of a list, or None where the split has none."""
        if name not in self.known and name in self.sets:
            size = self.config.views.size
            self.known[name] = encode(self.backbone, self.images(name), size, device=self.device)
        return self.known.get(name)

    def y(self, name: str) -> Int64[Tensor, "n"] | None:
        """Return the classes of a list, or None where the split has none."""
        if name not in self.sets:
            return None
        return probes.renumbered(self.sets[name].labels.to(self.device), self.eval_classes)

    def images(self, name: str) -> UInt8[Tensor, "n c h w"]:
        """Return the images of a list, where they are kept."""
        return self.sets[name].images

    @property
    def classes(self) -> int:
        """Number of evaluated classes, e."""
        return len(self.eval_classes)

    @property
    def groups(self) -> Int64[Tensor, "e"]:
        """Group of each evaluated class: 0 head, 1 mid, 2 tail."""
        return self.sets["judged"].groups.cpu()[self.eval_classes.cpu()]

    @property
    def draws(self) -> list[Int64[Tensor, "s"]]:
        """The fixed draws of few labels, as indices into the probe list, on the device."""
        draws = few_shot_draws(self.sets["probe"], self.config.data.few_shot_per_class, self.config.evaluation.draws)
        return [draw.to(self.device) for draw in draws]


def judged_features(
    backbone: nn.Module, config: Config, splits: Splits, device: torch.device, on: str = "test"
) -> Features:
    """Collect the lists of a split for one backbone; raises ConfigError naming what is missing."""
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
    allowed = "above 0 to judge on validation images"
    check(on == "test" or splits.val is not None, "data.val_per_class", config.data.val_per_class, allowed)
    # A balanced run is judged with the long-tailed neighbours of its split: else it would lead under the `lt` protocols
    # by its bank, with the same features.
    balanced = override(config, {"data.balanced": False})
    tail = load_splits(balanced, parts=("train",)).train if config.data.balanced else splits.train
    judged = splits.test if on == "test" else splits.val
    sets = {"tail": tail, "probe": splits.probe, "val": splits.val, "judged": judged}
    kept = {name: _evaluated(images, splits.eval_classes) for name, images in sets.items() if images is not None}
    return Features(backbone, kept, tail.hash, splits.eval_classes, config, device, on)


def _evaluated(images: ImageSet, eval_classes: Int64[Tensor, "e"]) -> ImageSet:
    """Leave out classes that are not evaluated; the same object where all are (its images may be a mapped file)."""
    keep = torch.isin(images.labels, eval_classes.to(images.labels.device))
    return images if bool(keep.all()) else images.subset(keep.nonzero()[:, 0])


class Predictions(NamedTuple):
    """Classes of the judged images: one tensor [m] per draw of labels, and what validation chose to make them."""

    predicted: list[Int64[Tensor, "m"]]
    chosen: dict[str, Any] = {}


# ------------------------------------------------------------------------------------------------------------ protocols


def linear(features: Features, config: Config) -> dict[str, Predictions]:
    """Fit a logistic regression on the balanced list, its penalty picked on validation images."""
    probe = _linear_on(features, slice(None))
    return {"linear": Predictions([probe.predicted], {"l2": probe.l2, "validation": probe.validation})}


def few_shot(features: Features, config: Config) -> dict[str, Predictions]:
    """Fit `linear` on few labels per class, for each of the fixed draws."""
    found = [_linear_on(features, draw) for draw in features.draws]
    chosen = {"l2": [p.l2 for p in found], "validation": [p.validation for p in found]}
    return {"few-shot": Predictions([p.predicted for p in found], chosen)}


def _linear_on(features: Features, index: Any) -> probes.Probe:
    x, y, validation = features.x("probe"), features.y("probe"), (features.x("val"), features.y("val"))
    return probes.linear_probe(x[index], y[index], *validation, features.x("judged"), features.classes)


def lt_knn(features: Features, config: Config) -> dict[str, Predictions]:
    """Vote among the nearest long-tailed training images, for each number of neighbours (evaluation.knn)."""
    bank, judged = (features.x("tail"), features.y("tail")), features.x("judged")
    return {f"lt-knn@{k}": Predictions([probes.knn_classes(*bank, judged, k)]) for k in config.evaluation.knn}


lt_knn.scores = lambda config: [f"lt-knn@{k}" for k in config.evaluation.knn]


def lt_svm(features: Features, config: Config) -> dict[str, Predictions]:
    """Fit a linear SVM on all long-tailed training images."""
    return {"lt-svm": Predictions([probes.svm_classes(features.x("tail"), features.y("tail"), features.x("judged"))])}


def lt_few_svm(features: Features, config: Config) -> dict[str, Predictions]:
    """Fit `lt_svm` on a class-balanced subset of the tail, as many images per class as the rarest class has."""
    x, y = features.x("tail"), features.y("tail")
    index = probes.balanced_subset(y, generator(0, "lt-few-svm"))
    return {"lt-few-svm": Predictions([probes.svm_classes(x[index], y[index], features.x("judged"))])}


def linear_sgd(features: Features, config: Config) -> dict[str, Predictions]:
    """Train SDCLR's linear layer by SGD on the augmented images of the balanced list."""
    predicted, epoch = _sgd_on(features, torch.arange(len(features.y("probe"))), probes.SGD_FULL, seed=0)
    return {"linear-sgd": Predictions([predicted], {"epoch": epoch})}


def few_shot_sgd(features: Features, config: Config) -> dict[str, Predictions]:
    """Train `linear_sgd` on few labels per class, for each of the fixed draws."""
    found = [_sgd_on(features, draw, probes.SGD_FEW, seed) for seed, draw in enumerate(features.draws)]
    return {"few-shot-sgd": Predictions([p for p, _ in found], {"epoch": [epoch for _, epoch in found]})}


def _sgd_on(features: Features, index: Tensor, schedule: tuple[int, tuple[int, ...]], seed: int) -> tuple[Tensor, int]:
    """Run `sgd_probe` on images of the probe list.

    Without validation images a fixed fifth of each class chooses the epoch, and is not trained on.
    """
    y, views, device = features.y("probe"), features.config.views, features.device
    index = index.to(device)
    validation = features.x("val"), features.y("val")
    if validation[0] is None:
        out = probes.held_out(y[index])
        out = out if out.any() else ~out  # one label per class: the training images have to choose
        validation = features.x("probe")[index[out]], y[index[out]]
        index = index[~out] if not out.all() else index
    images = features.images("probe")
    images, rng = images[index.to(images.device)], generator(seed, "linear-sgd", device)
    judged, how = (features.x("judged"), features.classes), {"size": views.size, "flip": views.flip > 0}
    return probes.sgd_probe(features.backbone, images, y[index], *validation, *judged, schedule, rng, **how)


def score_names(protocol: str, config: Config) -> list[str]:
    """List the names under which a protocol's scores are saved."""
    return getattr(PROTOCOLS[protocol], "scores", lambda config: [protocol])(config)


# ----------------------------------------------------------------------------------------------- scores, geometry, push


def scores_of(predictions: Predictions, features: Features) -> dict[str, Any]:
    """Compute the accuracies of one protocol: per class (mean over the draws) and by group; those of each draw too."""
    y = features.y("judged")
    each = [probes.class_accuracies(predicted, y, features.classes) for predicted in predictions.predicted]
    mean = torch.stack(each).mean(0)
    scores = {"per_class": mean.tolist(), **probes.group_scores(mean, features.groups), "chosen": predictions.chosen}
    if len(each) > 1:
        scores["draws"] = [probes.group_scores(accuracy, features.groups) for accuracy in each]
    return scores


def _measured(features: Features, protocol: str, bar) -> dict[str, dict[str, Any]]:
    """Measure a protocol on one backbone: scores by their names."""
    bar.set_postfix_str(protocol)
    found = PROTOCOLS[protocol](features, features.config)
    return {score: scores_of(predictions, features) for score, predictions in found.items()}


@torch.no_grad()
def _geometry_of(features: Features) -> dict[str, Any]:
    """Measure the geometry of the judged features, and the alignment of two views of the same image."""
    images, rng = features.images("judged"), generator(0, "alignment", features.device)
    parts = [
        [features.backbone(view).float() for view in two_views(part.to(features.device), features.config.views, rng)]
        for part in images[:: -(-len(images) // ALIGNMENT_IMAGES)].split(500)
    ]
    first, second = (torch.cat(some) for some in zip(*parts, strict=True))
    space = probes.space_geometry(features.x("judged"), features.y("judged"), features.classes)
    return {**space, "alignment": probes.alignment(first, second)}


@torch.no_grad()
def push_per_class(
    network: Network,
    images: ImageSet,
    tau: Float[Tensor, "n"],
    weight: Float[Tensor, "n"],
    config: Config,
    scale: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, "C"]:
    """Divide all push on negatives, (w_i / sum w) c_i (1 - p_up) / tau_i summed over anchors, among the classes.

    The training images pass once through two views and the network in eval mode, in batches as in training (the last
    one is filled up with images already seen, which then count by their mean). `scale` is c, as in the loss.
    """
    device, n, batch = tau.device, len(images), config.optim.batch
    rng = generator(0, "push", device)
    order = torch.randperm(n, generator=generator(0, "push"))
    order = torch.cat([order, order[: -n % batch]])
    network.eval()
    total, seen = torch.zeros(2, n, device=device)
    for index in order.split(batch):
        view1, view2 = two_views(images.images[index].to(device), config.views, rng)
        index = index.to(device)
        t, w, c = tau[index], weight[index], None if scale is None else scale[index]
        out = nt_xent(network(view1), network(view2), t, w, chunk=config.optim.loss_chunk or None)
        push = probes.anchor_push(out.positive_similarity, out.logsumexp, t, w, c)
        total.index_add_(0, index, push)
        seen.index_add_(0, index, torch.ones_like(push))
    return probes.class_shares(total / seen, images.labels.to(device), len(images.classes))


def _push_of(run: Run, images: ImageSet, device: torch.device) -> dict[str, Any] | None:
    """Measure push with the last temperatures and weights; None where the checkpoint or the snapshots are gone."""
    config, state = run.config, load_checkpoint(run.path, run.config.identity)
    if state is None or not len(run.history):
        return None
    network = _untrained(config, images.images, device)
    network.load_state_dict(state["network"], strict=True)
    tau, weight = (torch.from_numpy(values[-1]).to(device) for values in (run.history.tau, run.history.weight))
    scale = config.guidance_class.loss_scale(config.guidance, tau)
    return {"per_class": push_per_class(network, images, tau, weight, config, scale).tolist()}


def _untrained(config: Config, images: UInt8[Tensor, "n c h w"], device: torch.device) -> Network:
    return initial_network(config, images.shape[1], min(images.shape[2:]), device)


# ------------------------------------------------------------------------------------------------------------ baselines


def _baseline_key(kind: str, features: Features, splits: Splits) -> str:
    """Hash what a baseline's scores depend on: images, few labels, and for the untrained network how it is made."""
    config, data = features.config, features.config.data
    sets = [None if s is None else s.hash for s in (splits.probe, splits.val, splits.test)]
    parts = [RESULTS_FORMAT, kind, [features.tail_hash, *sets], splits.eval_classes.tolist(), data.groups]
    parts += [data.few_shot_per_class, data.min_per_class, splits.train.groups.tolist(), config.evaluation.draws]
    parts += [config.views.size, config.views.flip > 0]
    parts += [features.on] if features.on != "test" else []
    model = {name: value for name, value in config.to_dict()["model"].items() if value not in ("", [])}
    parts += [model, config.seed] if kind == "untrained" else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _baseline(
    kind: str, run: Run, features: Features, protocol: str, force: bool, bar, others: dict[str, Features]
) -> dict[str, dict[str, Any]]:
    """Score raw pixels or the untrained network; runs in the same folder share them through a hidden folder.

    `others` keeps their features from one protocol to the next.
    """
    path = run.path.parent / ".baselines" / f"{kind}-{_baseline_key(kind, features, run.splits)}.json"
    saved = load_optional_json(path)
    if force or _unmeasured(saved, [protocol], features.config):
        bar.set_description(f"{run.name}: {kind}")
        if kind not in others:
            images, device = features.images("tail"), features.device
            backbone = Pixels() if kind == "pixels" else _untrained(run.config, images, device).backbone
            others[kind] = dataclasses.replace(features, backbone=backbone.eval(), known={})
        saved |= _measured(others[kind], protocol, bar)
        path.parent.mkdir(exist_ok=True)
        save_json(path, saved)
    bar.update()
    return {score: saved[score] for score in score_names(protocol, features.config)}


# ------------------------------------------------------------------------------------------------------------- evaluate


def _unmeasured(saved: Mapping[str, Any], protocols: Iterable[str], config: Config) -> list[str]:
    return [name for name in protocols if any(score not in saved for score in score_names(name, config))]


def _chosen_protocols(protocols: Iterable[str] | None, config: Config) -> list[str]:
    names = [protocols] if isinstance(protocols, str) else list(protocols or config.evaluation.protocols)
    for name in names:
        check_choice("protocol", name, PROTOCOLS)
    return list(dict.fromkeys(names))


def saved_results(run: Run, on: str) -> dict[str, Any]:
    """Load what the results' file holds, where it was measured on this run; else nothing."""
    saved = load_optional_json(run.path / RESULTS[on])
    same = (saved.get("format"), saved.get("identity")) == (RESULTS_FORMAT, run.config.identity)
    # Files without "tail" are older: a balanced run's `lt` protocols then had its own images as neighbours.
    return saved if same and ("tail" in saved or not run.config.data.balanced) else {}


def _judged_by(run: Run, evaluation: EvaluationConfig | None) -> Config:
    return dataclasses.replace(run.config, evaluation=evaluation or run.config.evaluation)


def lacking(
    run: Run, protocols: Iterable[str] | None = None, on: str = "test", evaluation: EvaluationConfig | None = None
) -> list[str]:
    """List the protocols (default: the configuration's) that the run's results do not have yet.

    `evaluation` stands in the place of the section with which the run was trained, as in `evaluate`.
    """
    config, saved = _judged_by(run, evaluation), saved_results(run, on)
    same = saved.get("draws") == config.evaluation.draws
    return _unmeasured(saved.get("protocols", {}) if same else {}, _chosen_protocols(protocols, config), config)


def evaluate(
    run: Run | str | Path,
    protocols: Iterable[str] | None = None,
    force: bool = False,
    progress: bool = True,
    on: str = "test",
    evaluation: EvaluationConfig | None = None,
) -> dict[str, Any]:
    """Measure a finished run by the protocols (default: its configuration's); returns what results.json then holds.

    `on="val"` judges on the validation images instead, for choices that must not see the test; these results are a file
    of their own, results_val.json. (Validation then also picks the probe's regularisation, alike for all runs.)
    Numbers of draws and neighbours are those of `evaluation`, where it is given, in place of the configuration's.

    Protocols that results.json already has are not measured again unless `force`, and none is lost: each is written as
    soon as it is measured. Writes the features of the test images too. Every protocol is also measured on raw pixels
    and on the network as initialised; these are kept in `.baselines` next to the run's folder, for the runs that share
    them. Only evaluated classes are seen by any probe. Raises ConfigError for unknown protocols and where labels or
    test images are missing (it names what), RunError for a run that has not finished.
    """
    from tqdm.auto import tqdm

    check_choice("on", on, RESULTS)
    run = run if isinstance(run, Run) else Run(run)
    config = _judged_by(run, evaluation)
    names, saved, replaced = _chosen_protocols(protocols, config), saved_results(run, on), []
    if force or saved.get("draws") != config.evaluation.draws:
        replaced = [score.split("@")[0] for score in saved.get("protocols", {})]
        names, saved = list(dict.fromkeys([*names, *replaced])), {}
    todo = _unmeasured(saved.get("protocols", {}), names, config)
    if not todo:
        return saved
    device = device_here(config.optim)
    features = judged_features(run.encoder(device), config, run.splits, device, on)
    results = saved or _header(run, features)
    tidy(run.path), tidy(run.path.parent / ".baselines")
    if on == "test":
        ids = features.eval_classes.to(device)[features.y("judged")].cpu().numpy()
        save_npz(run.path / "features_test.npz", features=features.x("judged").half().cpu().numpy(), labels=ids)
    with tqdm(total=3 * len(todo) + 2, desc=run.name, disable=not progress, dynamic_ncols=True) as bar:
        results["geometry"] = results.get("geometry") or _geometry_of(features)
        bar.update()
        results["push"] = results.get("push") or _push_of(run, run.images, device)
        bar.update()
        others: dict[str, Features] = {}
        for name in todo:
            results["protocols"] |= _measured(features, name, bar)
            bar.update()
            for kind in BASELINES:
                results["baselines"][kind] |= _baseline(kind, run, features, name, force, bar, others)
            bar.set_description(run.name)
            bar.set_postfix_str(_headline(results))
            if not replaced or name == todo[-1]:  # what is replaced stays until all of it is measured
                save_json(run.path / RESULTS[on], results)
    return load_json(run.path / RESULTS[on])


def _header(run: Run, features: Features) -> dict[str, Any]:
    config, train = features.config, run.splits.train
    return {
        "format": RESULTS_FORMAT,
        **{name: getattr(config, name) for name in ("identity", "preset", "method", "seed", "split")},
        "balanced": config.data.balanced,
        "changes": presets.changes_in_words(config),
        "commit": run.commit,
        "subset": train.hash,
        "tail": features.tail_hash,
        "classes": list(train.classes),
        **{name: getattr(train, name).tolist() for name in ("counts", "groups")},
        "eval_classes": features.eval_classes.tolist(),
        "draws": config.evaluation.draws,
        "protocols": {},
        "baselines": {kind: {} for kind in BASELINES},
        "on": features.on,
    }


def _headline(results: Mapping[str, Any]) -> str:
    shown = {name: scores["all"] for name, scores in results["protocols"].items() if scores["all"] is not None}
    return ", ".join(f"{name} {score:.1f}" for name, score in shown.items() if not math.isnan(score))
