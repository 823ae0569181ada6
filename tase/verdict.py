"""What a run says of itself, in words: how far its ranking of images, from common to rare, can be believed."""

from __future__ import annotations

import csv
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from .config import ConfigError
from .runs import Run, RunError
from .streams import generator
from .trust import feature_trust, trust_words


def run_trust(run: Run, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Say how far to believe a run's ranking of its images, from common to rare.

    Without `labels`: trust s, shared variance c and agreement at the end of the warm-up (guidance itself raises them
    later), `last`, s at the last snapshot, `at_ends`, the share of the images at the lowest and at the highest
    temperature (None where all have one), and what they mean in words. With labels (file name or number of an image ->
    class, of 50 to 200 images drawn at random) also the rank correlation of the run's headness with how often a class
    occurs among them, its 95 % interval (bootstrap over images; both None where nothing can be ranked), and advice.
    Raises RunError for a run without snapshots or features, ConfigError for labels of fewer than 20 of its images, and
    for a name that several files have.
    """
    history, t, ends = run.history, run.trusted_at, run.at_ends
    if not len(history):
        raise RunError(f"{run.path} has no snapshot: there are no clusters to judge")
    found, last = _found(run, t), _found(run, len(history) - 1)
    facts = {"epoch": int(history.epoch[t])} | {name: round(value, 3) for name, value in found.items()}
    facts |= {"last": round(last["trust"], 3), "at_ends": ends and [round(share, 3) for share in ends]}
    facts["verdict"] = trust_words(found["trust"], last["trust"])
    return facts if labels is None else {**facts, **_with_labels(history.headness[-1], _classes(run, labels))}


def read_labels(path: str | os.PathLike) -> dict[str, str]:
    """Read labels, name or number of an image and its class, from CSV with commas, semicolons or tabs.

    What does not have two columns is passed over. Raises ConfigError where the text is not UTF-8.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel begins it with a mark
            first = file.readline()
            file.seek(0)
            rows = list(csv.reader(file, delimiter=max(",;\t", key=first.count)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{os.fspath(path)} cannot be read as CSV in UTF-8: {error}; save it as that") from error
    return {row[0].strip(): row[1].strip() for row in rows if len(row) >= 2}


def _found(run: Run, t: int) -> dict[str, float]:
    """What independent clusterings say at snapshot t: as saved, or from its features, in runs of older versions."""
    saved = {name: float(getattr(run.history, name)[t]) for name in ("trust", "shared", "agreement")}
    if not np.isnan(saved["trust"]):
        return saved
    features = torch.from_numpy(run.history.features(t))
    found = feature_trust(features, generator(run.config.seed, "trust"), run.config.guidance.space)
    return {name: getattr(found, name) for name in saved}


def _classes(run: Run, labels: Mapping[str, str]) -> dict[int, str]:
    """Class by number of the image, from names or numbers of images."""
    paths = getattr(run.images, "paths", None) or []
    n = run.history.headness.shape[1]
    names = [str(path).rpartition("/")[2] for path in paths]
    several = {name for name, count in Counter(names).items() if count > 1}
    numbers = {name: i for i, name in enumerate(names) if name not in several}
    numbers |= {str(path): i for i, path in enumerate(paths)}
    numbers |= {str(i): i for i in range(n)}
    unclear = [name for name in labels if name in several and name not in numbers]
    if unclear:
        raise ConfigError(f"labels: several folders have a file called {unclear[0]}: write it with its folder")
    known = {numbers[name]: label for name, label in labels.items() if name in numbers}
    if len(known) < 20:
        raise ConfigError(f"labels of {len(known)} of the run's {n} images: 50 to 200 are needed to say anything")
    return known


def _with_labels(headness: Float[np.ndarray, " n"], classes: Mapping[int, str]) -> dict[str, Any]:
    from scipy.stats import ConstantInputWarning, spearmanr

    index = np.array(list(classes))
    _, inverse, counts = np.unique(list(classes.values()), return_inverse=True, return_counts=True)
    a, size = headness[index], counts[inverse]
    rng, m = np.random.default_rng(0), len(index)
    if np.ptp(counts) == 0 or np.ptp(a) == 0:
        same = "the classes labelled are equally frequent" if np.ptp(counts) == 0 else "all have the same headness"
        advice = f"{same}: there is no order to compare"
        return {"labelled": m, "correlation": None, "interval": None, "advice": advice}
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # a draw may have one class alone
        draws = [spearmanr(a[i], size[i]).statistic for i in rng.integers(m, size=(1000, m))]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    advice = (
        "headness follows the class sizes: its ranking can be used"
        if low > 0.2
        else "headness runs against the class sizes: do not use its ranking, nor TASE with these clusters"
        if high < 0
        else "headness does not surely follow the class sizes: do not rely on its ranking"
    )
    correlation = float(spearmanr(a, size).statistic)
    return {"labelled": m, "correlation": correlation, "interval": [float(low), float(high)], "advice": advice}
