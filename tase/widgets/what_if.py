"""What if: the samples of a snapshot, their temperatures and weights under other options, other clusters of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64

from ..config import Config
from ..guidance import TASE, build_guidance, guided
from ..pseudo_labels import Quantity, clipped_rank
from ..runs import History, Run


@dataclass(frozen=True)
class SampleTable:
    """What one snapshot says of its n samples; `index` holds their image numbers."""

    epoch: int
    index: Int64[np.ndarray, " n"]
    quantity: Quantity  # headness, and the log sizes that it is ranked by
    cluster: Int64[np.ndarray, " n"]
    tau: Float[np.ndarray, " n"]  # as saved
    weight: Float[np.ndarray, " n"]  # as saved
    group: Int64[np.ndarray, " n"]  # 0 head, 1 mid, 2 tail; -1 without labels
    strength: float = 1.0  # of the guidance, for options with trust


class WhatIf(NamedTuple):
    """Temperature and weight that other options would give the samples of a snapshot."""

    tau: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    spread: float  # hi - lo of equation (4)


def saved_quantity(history: History, t: int, options: Any) -> Quantity:
    """Read the headness of snapshot `t` and what it is ranked by; `options` are the guidance options of the run."""
    headness, sizes = history.headness[t].astype(np.float64), history.cluster_sizes[t].astype(np.float64)
    log_sizes = history.log_sizes(t)
    if log_sizes is None and len(sizes) and (options.labels == "oracle" or options.estimator == "size"):
        log_sizes = np.log(sizes[sizes > 1e-9 * len(headness)])  # an old run: sizes of merged clusters would be lost
    ranked = None if log_sizes is None else torch.from_numpy(log_sizes.astype(np.float64))
    return Quantity(torch.from_numpy(headness), ranked)


def saved_samples(run: Run, t: int) -> SampleTable:
    """Read snapshot `t` as training saved it."""
    h = run.history
    n = h.tau.shape[1]
    return SampleTable(
        epoch=int(h.epoch[t]),
        index=np.arange(n),
        quantity=saved_quantity(h, t, run.config.guidance),
        cluster=h.pseudo_label[t],
        tau=h.tau[t],
        weight=h.weight[t],
        group=h.sample_groups,
        strength=1.0 if np.isnan(h.trust[run.trusted_at]) else float(h.trust[run.trusted_at]),
    )


def reclustered(
    saved: SampleTable,
    features: Float[np.ndarray, "m d"],
    index: Int64[np.ndarray, " m"],
    config: Config,
    labels: Int64[np.ndarray, " n"] | None = None,
) -> SampleTable:
    """Cluster the images `index` [m] again, once, by the options of `config`: only these are in the result.

    `labels` of all images are used by the oracle only. Other than a training it averages no clusterings, remembers no
    headness, and clusters the features given, also where `guidance.features` names others. Raises ConfigError for more
    clusters than images.
    """
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    true = None if labels is None else torch.from_numpy(labels[index])
    pseudo = build_guidance(config, len(x), true, groups=torch.from_numpy(saved.group[index])).pseudo
    pseudo.update(x)
    return dataclasses.replace(
        saved,
        index=index,
        quantity=Quantity(pseudo.headness, pseudo.log_sizes),
        cluster=pseudo.labels.numpy(),
        tau=saved.tau[index],
        weight=saved.weight[index],
        group=saved.group[index],
    )


def apply_options(now: SampleTable, options: Any) -> WhatIf:
    """Compute tau and w of equations (4) to (6) from the saved headness, after the ramp."""
    q, spread = clipped_rank(now.quantity, options.headness_map)
    share = now.strength if options.trust and options.labels != "oracle" else 1.0
    groups = torch.from_numpy(now.group.astype(np.int64))
    tau, weight = guided(q, now.quantity.a, spread, options, share, groups)
    return WhatIf(tau.numpy(), weight.numpy(), float(spread))


def what_if_config(config: Config) -> Config:
    """Return the configuration whose options are varied: the run's own, or the default method's on the same data.

    A run without temperatures by quantity (SimCLR, say) still has clusters, so that its samples have a headness.
    """
    if issubclass(config.guidance_class, TASE):
        return config
    return dataclasses.replace(config, method=Config.method)


def nearest_first(h: Float[np.ndarray, "m d"], row: int) -> tuple[Int64[np.ndarray, " m-1"], Float[np.ndarray, " m-1"]]:
    """Sort all other samples by their cosine to row `row` of the unit features h; returns rows and cosines."""
    cosine = h @ h[row]
    order = np.argsort(-cosine, kind="stable")
    order = order[order != row]
    return order, cosine[order].astype(np.float64)


def push_shares(similarity: Float[np.ndarray, " m"], tau: float) -> Float[np.ndarray, " m"]:
    """Compute the share of anchor u's push that each negative v takes, in %: the softmax p_uv of equation (1)."""
    return 100 * torch.softmax(torch.from_numpy(similarity) / tau, 0).numpy()


def most_changed(
    old: Float[np.ndarray, " n"], new: Float[np.ndarray, " n"], count: int = 8
) -> tuple[Int64[np.ndarray, " u"], Int64[np.ndarray, " d"]]:
    """Find the rows whose value rises most, and falls most: at most `count` each, the largest change first."""
    change = new - old
    up, down = (np.argsort(sign * change, kind="stable")[:count] for sign in (-1, 1))
    return up[change[up] > 1e-6], down[change[down] < -1e-6]
