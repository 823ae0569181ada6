"""What the widgets show, as functions from arrays to arrays; tau and w come from the functions that training uses."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from ..config import Config, ConfigError, override
from ..data import GROUPS
from ..guidance import TASE, temperature_and_weight
from ..presets import preset
from ..pseudo_labels import PseudoLabels, Quantity, clipped_rank
from ..runs import History


@dataclass(frozen=True)
class Moment:
    """What one snapshot says of its n samples; `index` holds their image numbers."""

    epoch: int
    index: Int64[np.ndarray, " n"]
    headness: Float[np.ndarray, " n"]
    log_sizes: Float[np.ndarray, " m"] | None  # of the clusters that are not empty; None: percentiles of the headness
    cluster: Int64[np.ndarray, " n"]
    tau: Float[np.ndarray, " n"]  # as saved
    weight: Float[np.ndarray, " n"]  # as saved
    group: Int64[np.ndarray, " n"]  # 0 head, 1 mid, 2 tail; -1 without labels
    clusters: int


@dataclass(frozen=True)
class Proposal:
    """Temperature and weight that settings would give the samples of a moment."""

    tau: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    spread: float  # hi - lo of equation (4); below 0.1 the clusters say nothing about quantity


def sample_groups(history: History, n: int) -> Int64[np.ndarray, " n"]:
    """Group of each of n images; -1 where there are no labels, or no tail among the classes."""
    labels, groups, counts = history.labels, history.groups, history.counts
    if labels is None or groups is None or counts.min() == counts.max():
        return np.full(n, -1, dtype=np.int64)
    return groups[labels].astype(np.int64)


def moment(history: History, t: int, settings: TASE.Options) -> Moment:
    """Snapshot `t` as training saved it."""
    headness, sizes = history.headness[t].astype(np.float64), history.cluster_sizes[t].astype(np.float64)
    n, log_sizes = len(headness), history.log_sizes(t)
    if log_sizes is None and len(sizes) and (settings.labels == "oracle" or settings.estimator == "size"):
        log_sizes = np.log(sizes[sizes > 1e-9 * n])
    return Moment(
        epoch=int(history.epoch[t]),
        index=np.arange(n),
        headness=headness,
        log_sizes=None if log_sizes is None else log_sizes.astype(np.float64),
        cluster=history.pseudo_label[t],
        tau=history.tau[t],
        weight=history.weight[t],
        group=sample_groups(history, n),
        clusters=len(sizes),
    )


def reclustered(
    saved: Moment, features: Float[np.ndarray, "m d"], index: Int64[np.ndarray, " m"], settings: TASE.Options
) -> Moment:
    """The moment with new clusters of the images `index` [m], whose features are given: only these are in it.

    Raises ConfigError for more clusters than images.
    """
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    pseudo = PseudoLabels(
        len(x),
        settings.clusters,
        settings.estimator,
        settings.assignment_confidence,
        settings.restarts,
        merge_to=settings.merge_to,
        space=settings.space,
        generator=torch.Generator().manual_seed(0),
    )
    pseudo.update(x)
    return dataclasses.replace(
        saved,
        index=np.asarray(index),
        headness=pseudo.headness.numpy(),
        log_sizes=None if pseudo.log_sizes is None else pseudo.log_sizes.numpy(),
        cluster=pseudo.labels.numpy(),
        tau=saved.tau[index],
        weight=saved.weight[index],
        group=saved.group[index],
        clusters=pseudo.clusters,
    )


def proposal(now: Moment, settings: TASE.Options) -> Proposal:
    """tau and w of equations (4) to (6) for the saved headness, after the ramp."""
    a = torch.from_numpy(now.headness)
    sizes = None if now.log_sizes is None else torch.from_numpy(now.log_sizes)
    q, spread = clipped_rank(Quantity(a, sizes), settings.headness_map)
    tau, weight = temperature_and_weight(q, a, settings)
    return Proposal(tau.numpy(), weight.numpy(), float(spread))


def members(group: Int64[np.ndarray, " n"]) -> list[tuple[int, str]]:
    """The groups that occur: number and name; one, "all images", where none is known."""
    found = [(g, GROUPS[g]) for g in range(3) if (group == g).any()]
    return found or [(-1, "all images")]


def shares(
    values: Float[np.ndarray, " n"], group: Int64[np.ndarray, " n"], edges: Float[np.ndarray, " b"], groups: list[int]
) -> Float[np.ndarray, "g b"]:
    """Histogram of each of `groups` over equal bins between `edges`, in % of the group; beyond them: the end bins."""
    bins = len(edges) - 1
    place = (np.asarray(values) - edges[0]) * (bins / (edges[-1] - edges[0]))
    place = np.clip(np.nan_to_num(place), 0, bins - 1).astype(np.int64)
    table = np.bincount((group + 1) * bins + place, minlength=4 * bins).reshape(4, bins)
    rows = table[[g + 1 for g in groups]]
    return 100 * rows / np.maximum(rows.sum(1, keepdims=True), 1)


def means(values: Float[np.ndarray, " n"], group: Int64[np.ndarray, " n"], groups: list[int]) -> list[float]:
    """Mean of each of `groups`; NaN where a group has no sample."""
    count = np.bincount(group + 1, minlength=4)
    with np.errstate(invalid="ignore"):
        return (np.bincount(group + 1, values, 4) / count)[[g + 1 for g in groups]].tolist()


@dataclass(frozen=True)
class Clusters:
    """Non-empty clusters: number of samples, most frequent group (-1 unknown), and the first [n] sample's row."""

    label: Int64[np.ndarray, " c"]  # [n] position of each sample's cluster among these
    size: Int64[np.ndarray, " c"]
    group: Int64[np.ndarray, " c"]

    def mean(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " c"]:
        """Mean of a quantity over each cluster."""
        return np.bincount(self.label, values, len(self.size)) / self.size


def clusters_of(now: Moment) -> Clusters:
    """The clusters of a moment, for drawing."""
    label = np.unique(now.cluster, return_inverse=True)[1].reshape(-1)
    size = np.bincount(label)
    table = np.bincount(label * 4 + now.group + 1, minlength=4 * len(size)).reshape(-1, 4)
    return Clusters(label, size, table.argmax(1) - 1)


@dataclass(frozen=True)
class Neighbours:
    """All other samples by their cosine to one, nearest first: rows among the features, and cosines."""

    row: Int64[np.ndarray, " m"]
    similarity: Float[np.ndarray, " m"]


def neighbours(h: Float[np.ndarray, "m d"], row: int) -> Neighbours:
    """The samples around row `row` of unit features h (`pseudo_labels.centred`)."""
    similarity = h @ h[row]
    order = np.argsort(-similarity, kind="stable")
    order = order[order != row]
    return Neighbours(order, similarity[order].astype(np.float64))


def push_on(similarity: Float[np.ndarray, " m"], tau: float) -> Float[np.ndarray, " m"]:
    """Share of an anchor's push that each of its negatives takes, in %: the softmax of equation (1)."""
    return 100 * torch.softmax(torch.from_numpy(similarity) / tau, 0).numpy()


def most_changed(
    old: Float[np.ndarray, " n"], new: Float[np.ndarray, " n"], count: int = 8
) -> tuple[Int64[np.ndarray, " u"], Int64[np.ndarray, " d"]]:
    """Rows whose value rises most, and falls most: at most `count` each, the largest change first."""
    change = new - old
    count = min(count, len(change))
    up = np.argpartition(-change, count - 1)[:count]
    down = np.argpartition(change, count - 1)[:count]
    up, down = up[np.argsort(-change[up], kind="stable")], down[np.argsort(change[down], kind="stable")]
    return up[change[up] > 1e-6], down[change[down] < -1e-6]


def changed_fields(config: Config) -> dict[str, str]:
    """The fields in which `config` differs from its preset and method, as --set takes them."""
    base = _flat(preset(config.preset, config.method, config.seed))
    return {name: _text(value) for name, value in _flat(config).items() if value != base[name]}


def _flat(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, fields in config.to_dict().items()
        if isinstance(fields, dict)
        for name, value in fields.items()
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def train_arguments(config: Config, out: str | Path, resume: bool = False) -> list[str]:
    """The words after `python -m tase` that train `config` into `out`; ConfigError where no words can say it."""
    changes = changed_fields(config)
    if override(preset(config.preset, config.method, config.seed), changes) != config:
        raise ConfigError("this configuration cannot be written as a command line")
    words = ["train", "--preset", config.preset, "--method", config.method, "--seed", str(config.seed)]
    words += ["--set", *(f"{name}={value}" for name, value in changes.items())] if changes else []
    return [*words, "--out", str(out), *(["--resume"] if resume else [])]


def command_line(config: Config, out: str | Path) -> str:
    """The line to copy into a shell."""
    return shlex.join(["python", "-m", "tase", *train_arguments(config, out)])


def proposed_config(config: Config, settings: TASE.Options) -> Config:
    """The run's configuration with the settings tried; a method that they do not reach becomes `tase`."""
    method = config.method if config.guidance_class.steerable else "tase"
    return dataclasses.replace(config, method=method, guidance=settings)


def spread_line(spread: float) -> str:
    if spread >= 0.1:
        return ""
    return "The clusters are all about as large and say nothing about quantity: every sample gets the middle τ."
