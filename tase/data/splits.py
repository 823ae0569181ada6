"""One split of a source: what is held out, the pool, the long tail drawn from it, and the probe list."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..config import SOURCES, Config, ConfigError, DataConfig, check
from ..options import log, some_of
from ..streams import generator
from .sets import GROUPS, ImageSet, Splits, group_classes, subset_hash
from .sources import Source, list_source, load_source, part_hash

SETS = ("train", "probe", "val", "test")
Mask = Bool[Tensor, "n"]  # over the training images of a source
PerClass = Int64[Tensor, "C"]


# ----------------------------------------------------------------------------------------------------- images per class


def tail_counts(classes: int, n_max: int, rho: float, profile: str = "exponential") -> PerClass:
    """Return the images of each class by rank r, head first: n_max (1/rho)^(r/(C-1)), rounded down.

    The rule of Cui et al. 2019 and Cao et al. 2019 (LDAM). `step`: n_max for the first half of the classes, n_max/rho
    for the second; with an odd number of classes there is one more large class.
    """
    if profile == "step":
        shares = [1.0 if 2 * r < classes else 1 / rho for r in range(classes)]
    else:
        shares = [(1 / rho) ** (r / max(classes - 1, 1)) for r in range(classes)]
    # The margin keeps products such as 1280 * (6 / 1280) from falling just below the whole number they are.
    return torch.tensor([math.floor(n_max * share + 1e-9) for share in shares])


def rule_counts(data: DataConfig, split: int, classes: int) -> PerClass | None:
    """Return the training images of each class *id* that the rule asks for; None for rules `file` and `none`.

    Raises ConfigError where a class would have no images.
    """
    if data.rule in ("file", "none"):
        return None
    n_max = data.n_max or getattr(SOURCES[data.source], "n_max", {}).get(data.rule, 0)
    check(n_max > 0, "data.n_max", data.n_max, f"at least 1: rule '{data.rule}' knows no number for '{data.source}'")
    ranked = tail_counts(classes, n_max, data.rho, data.profile)
    allowed = f"at most n_max = {n_max}: above, a class has no images left"
    check(int(ranked.min()) >= 1, "data.rho", data.rho, allowed)
    # The class of each rank, head first; `ldam` always takes the order of the class ids.
    by_id = data.order == "id" or data.rule == "ldam"
    shuffled = torch.randperm(classes, generator=generator(split, "order of the classes", of_split=True))
    counts = torch.empty_like(ranked)
    counts[torch.arange(classes) if by_id else shuffled] = ranked
    return counts


def _equal_counts(counts: PerClass) -> PerClass:
    """Spread as many images evenly; what does not divide goes to the first classes, one each."""
    total, classes = int(counts.sum()), len(counts)
    return torch.full_like(counts, total // classes) + (torch.arange(classes) < total % classes)


def rank_in_class(labels: Int64[Tensor, "n"], keys: Int64[Tensor, "n"] | None = None) -> Int64[Tensor, "n"]:
    """Return the rank of each entry within its class, from 0, by rising key (all different) or by position."""
    place = torch.arange(len(labels), device=labels.device)
    order = place if keys is None else torch.argsort(keys)
    order = order[torch.argsort(labels[order], stable=True)]  # class by class, within a class by key
    sizes = torch.bincount(labels)
    first = sizes.cumsum(0) - sizes  # where each class begins
    ranks = torch.empty_like(labels)
    ranks[order] = place - first[labels[order]]
    return ranks


# -------------------------------------------------------------------------------------------------------------- a split


def load_splits(config: Config, parts: tuple[str, ...] = SETS) -> Splits:
    """Load the training set, probe list, validation and test of `config.data`, drawn by the number `config.split`.

    Only the named `parts` are loaded, the others are None (a probe list of large images takes memory that training
    does not need); the training set is always there. Without labels there is only the training set, which is then all
    images. A labelled folder without `data.test_per_class` and without folders train/ and test/ has no test. Classes
    without training images are left out, those without images in an official test are not evaluated. Rule `ldam` uses
    every training image, so nothing is held out for validation. Raises ConfigError for data that are missing or too
    few.
    """
    source = load_source(config.data)
    if source.train.labels is None:
        check(config.data.rule == "none", "data.rule", config.data.rule, "'none' where the images have no labels")
        return Splits(train=dataclasses.replace(source.train, name=f"{config.data.source}/train"))
    masks, known = draw_split(source, config)
    sets = {}
    for part in SETS:
        images, mask = source.train, masks[part]
        if part == "test" and source.test is not None and config.data.test_per_class == 0:  # the official one
            images, mask = source.test, known["evaluated"][source.test.labels]
        if part == "train" or (part in parts and mask.any()):
            chosen = images.subset(mask.nonzero()[:, 0])
            name, rule = f"{config.data.source}/{part}", config.data.groups
            sets[part] = dataclasses.replace(chosen, name=name, group_rule=rule, **known)
    return Splits(**sets, eval_classes=known["evaluated"].nonzero()[:, 0])


def draw_split(source: Source, config: Config) -> tuple[dict[str, Mask], dict[str, Any]]:
    """Draw which training images of the source are `train`, `probe`, `val` and `test`, and count the classes.

    Returns the four masks, and `counts`, `group_counts` and `evaluated` [C] as an `ImageSet` has them. First images
    are held out, then the tail and the probe list are drawn from the pool that is left. Each draw takes the first
    places of its own shuffled order of a class, so that a smaller draw is part of a larger one.
    """
    data, labels, classes = config.data, source.train.labels, source.train.classes
    sizes = torch.bincount(labels, minlength=len(classes))
    tested = _tested(source, data)
    evaluated = (sizes >= data.min_per_class) & tested
    allowed = f"at most {int(sizes[tested].max())}, the largest class"
    check(bool(evaluated.any()), "data.min_per_class", data.min_per_class, allowed)
    if lacking := [classes[c] for c in ((sizes >= data.min_per_class) & ~tested).nonzero()[:, 0].tolist()]:
        log.warning("classes without test images are trained on but not evaluated: %s", some_of(lacking, 10))
    masks = _hold_out(source, evaluated, config)
    pool = masks.pop("pool")
    left = torch.bincount(labels[pool], minlength=len(classes))
    _check_left(left, sizes, classes, data)
    tail = _tail(source, pool, config)
    counts = _equal_counts(tail) if data.balanced else tail
    _check_counts(counts, left, classes, data)
    if source.listed is not None and not data.balanced:
        masks["train"] = source.listed
    else:
        masks["train"] = _draw_images(labels, pool, counts, generator(config.split, "tail", of_split=True))
    # Its own draw: else all training images of a tail class would be on the list, but few of a head class.
    wanted = _probe_counts(left, evaluated, classes, data)
    masks["probe"] = _draw_images(labels, pool, wanted, generator(config.split, "probe list", of_split=True))
    return masks, {"counts": counts, "group_counts": tail, "evaluated": evaluated}


def _tested(source: Source, data: DataConfig) -> Bool[Tensor, "C"]:
    """Tell which classes the official test has images of: all, where the test is held out."""
    if source.test is None or data.test_per_class:
        return torch.ones(len(source.train.classes), dtype=torch.bool)
    return torch.bincount(source.test.labels, minlength=len(source.train.classes)) > 0


def _hold_out(source: Source, evaluated: Bool[Tensor, "C"], config: Config) -> dict[str, Mask]:
    """Draw `test` (empty if there is an official one), `val` and the `pool`; a class not evaluated is all pool."""
    data, labels, n = config.data, source.train.labels, len(source.train)
    keys = torch.randperm(n, generator=generator(config.split, "held out", of_split=True))
    if source.listed is not None:
        keys = keys + n * source.listed  # the images of a published list are the last to be held out
    rank, held = rank_in_class(labels, keys), evaluated[labels]
    end_test = held * data.test_per_class
    end_val = end_test + held * (0 if data.rule == "ldam" else data.val_per_class)
    end_pool = end_val + (data.pool_per_class or n)
    test = rank < end_test
    if data.pool_per_class and source.test is None and data.test_per_class == 0:
        test = (rank >= end_pool) & held  # all that the pool leaves
    return {"test": test, "val": (rank >= end_test) & (rank < end_val), "pool": (rank >= end_val) & (rank < end_pool)}


def _draw_images(labels: Int64[Tensor, "n"], pool: Mask, wanted: PerClass, rng: torch.Generator) -> Mask:
    """Draw `wanted` images of each class from the pool: the first of a shuffled order, those of the pool first."""
    n = len(labels)
    keys = torch.randperm(n, generator=rng) + n * (~pool)
    return pool & (rank_in_class(labels, keys) < wanted[labels])


def _tail(source: Source, pool: Mask, config: Config) -> PerClass:
    """Return the images per class of the long tail: by the rule, by the published list, or all of the pool."""
    data, labels, classes = config.data, source.train.labels, source.train.classes
    ruled = rule_counts(data, config.split, len(classes))
    if ruled is not None:
        return ruled
    natural = torch.bincount(labels[pool if source.listed is None else source.listed], minlength=len(classes))
    if source.listed is not None:
        empty = [classes[c] for c in (natural == 0).nonzero()[:, 0].tolist()]
        allowed = f"a list with images of every class; none of {', '.join(empty[:5])}"
        check(not empty, "data.list_file", data.list_file, allowed)
        largest = f"a list whose largest class has data.n_max = {data.n_max} images; here {int(natural.max())}"
        check(data.n_max in (0, int(natural.max())), "data.list_file", data.list_file, largest)
        lower = "lower: the published list needs images that would be held out, or lie outside the pool"
        check(not (source.listed & ~pool).any(), "data.val_per_class", data.val_per_class, lower)
    return natural


def _probe_counts(left: PerClass, evaluated: Bool[Tensor, "C"], classes: tuple[str, ...], data: DataConfig) -> PerClass:
    """Return the images per class of the probe list: as many of each evaluated class, or its whole pool."""
    if data.probe_per_class == 0:
        return left * evaluated
    ids = evaluated.nonzero()[:, 0]
    fewest = int(ids[left[ids].argmin()])
    allowed = f"at most {int(left[fewest])}, the pool of class '{classes[fewest]}' (0: the whole pool)"
    check(int(left[fewest]) >= data.probe_per_class, "data.probe_per_class", data.probe_per_class, allowed)
    return evaluated * data.probe_per_class


def _check_left(left: PerClass, sizes: PerClass, classes: tuple[str, ...], data: DataConfig) -> None:
    for c in (left == 0).nonzero()[:, 0].tolist():
        raise ConfigError(
            f"class '{classes[c]}' has no images left for training: it has {int(sizes[c])}, and data.test_per_class = "
            f"{data.test_per_class} and data.val_per_class = {data.val_per_class} are held out; lower them, or set "
            f"data.min_per_class above {int(sizes[c])} (now {data.min_per_class}) to train on it, not evaluate it"
        )


def _check_counts(counts: PerClass, left: PerClass, classes: tuple[str, ...], data: DataConfig) -> None:
    for c in (counts > left).nonzero()[:, 0].tolist():
        field = "data.balanced" if data.balanced else "data.n_max"
        raise ConfigError(
            f"{field} asks for {int(counts[c])} images of class '{classes[c]}', but its pool has {int(left[c])} "
            f"(held out first: data.val_per_class = {data.val_per_class}, data.test_per_class = {data.test_per_class}; "
            f"data.pool_per_class = {data.pool_per_class})"
        )


# ----------------------------------------------------------------------------------------------------- counts and draws


def class_counts(config: Config) -> dict[str, Any]:
    """Return what `config.data` trains on: `n`, and by rank, head first, lists of `counts`, `groups` and `classes`.

    Needs no data where the rule alone decides (`sdclr`, `ldam`, `custom` with a source whose classes are known); the
    files of folders are listed, not read. Without labels the lists are empty. Raises ConfigError as `load_splits` does.
    """
    data = config.data
    classes = getattr(SOURCES[data.source], "classes", ())
    tail = rule_counts(data, config.split, len(classes)) if classes else None
    if tail is not None:
        counts, evaluated = _equal_counts(tail) if data.balanced else tail, None
    else:
        source = list_source(data)
        if source.train.labels is None:
            return {"n": len(source.train), "counts": [], "groups": [], "classes": []}
        known, classes = draw_split(source, config)[1], source.train.classes
        counts, tail, evaluated = known["counts"], known["group_counts"], known["evaluated"]
    order = torch.argsort(tail, descending=True, stable=True).tolist()
    groups = group_classes(tail, data.groups, evaluated)
    return {
        "n": int(counts.sum()),
        "counts": counts[order].tolist(),
        "groups": [GROUPS[group] for group in groups[order].tolist()],
        "classes": [classes[c] for c in order],
    }


def check_few_shot(probe: ImageSet, per_class: int) -> None:
    """Raise ConfigError where a class of the probe list has fewer than `per_class` images."""
    sizes = torch.bincount(probe.labels)
    fewest = int(sizes[sizes > 0].min())
    allowed = (
        f"1 to {fewest}, the smallest class of the probe list; it belongs to a run, so another one has to be trained "
        "with it, or this one evaluated without few-shot: --protocols linear lt-knn"
    )
    check(1 <= per_class <= fewest, "data.few_shot_per_class", per_class, allowed)


def listed_hash(config: Config) -> tuple[str, bool]:
    """Return the hash of the training set as its data are now, decoding nothing, and whether it tells pixels apart.

    That of arrays with labels does not. Files that cannot be read are known, and left out, once they are decoded.
    """
    source = list_source(config.data)
    telling = not isinstance(source.train, ImageSet) or source.train.labels is None
    try:
        whole = part_hash(source.train, config.data, "train")
    except OSError:  # a broken link, or gone by now: the images are not as they were
        return "", telling
    if source.train.labels is None:
        return whole, telling
    return subset_hash(whole, draw_split(source, config)[0]["train"].nonzero()[:, 0]), telling


def few_shot_draws(probe: ImageSet, per_class: int, draws: int) -> list[Int64[Tensor, "m"]]:
    """Return `draws` fixed choices of `per_class` images of each class in the probe list, as indices into it.

    They depend on the list alone, so all methods and seeds of a split see the same labels. Raises ConfigError where a
    class has fewer images.
    """
    check(probe.labels is not None, "evaluation.protocols", "few-shot", "one that needs no labels: there are none")
    check_few_shot(probe, per_class)
    streams = [generator(draw, "few labels", of_split=True) for draw in range(draws)]
    keys = [torch.randperm(len(probe), generator=stream) for stream in streams]
    return [(rank_in_class(probe.labels, key) < per_class).nonzero()[:, 0] for key in keys]
