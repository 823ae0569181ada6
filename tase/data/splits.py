"""One split of a source: what is held out, the pool, the long tail drawn from it, and the probe list."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..config import Config, ConfigError, DataConfig, check
from ._rules import equal_counts, generator, rank_within_class, rule_counts
from ._sets import GROUPS, ImageSet, Splits, group_classes
from ._sources import CLASSES, Source, list_source, load_source

PARTS = ("train", "probe", "val", "test")


@dataclass(frozen=True)
class _Plan:
    """Which image goes where (masks over the source's training images), and what is said of the classes."""

    train: Bool[Tensor, "n"]
    probe: Bool[Tensor, "n"]
    val: Bool[Tensor, "n"]
    test: Bool[Tensor, "n"]
    counts: Int64[Tensor, "C"]
    group_counts: Int64[Tensor, "C"]
    evaluated: Bool[Tensor, "C"]


def load_splits(config: Config, parts: tuple[str, ...] = PARTS) -> Splits:
    """The training set, probe list, validation and test of `config.data`, drawn by the number `config.split`.

    Only the named `parts` are gathered, the others are None (a probe list of large images fills memory that training
    need not give); the training set is always there. Without labels there is only the training set, which is then all
    images. A labelled folder without `data.test_per_class` and without folders train/ and test/ has no test. Rule
    `ldam` uses every training image, so nothing is held out for validation. Raises ConfigError for data that are
    missing or too few.
    """
    source = load_source(config.data)
    if source.train.labels is None:
        check(config.data.rule == "none", "data.rule", config.data.rule, "'none' where the images have no labels")
        return Splits(train=dataclasses.replace(source.train, name=f"{config.data.source}/train"))
    plan = _plan(source.train.labels, source.train.classes, source.test is not None, source.listed, config)
    return Splits(
        train=_part(source, plan, "train", config),
        probe=_part(source, plan, "probe", config) if "probe" in parts else None,
        val=_part(source, plan, "val", config) if "val" in parts and plan.val.any() else None,
        test=_test_part(source, plan, config) if "test" in parts else None,
        eval_classes=plan.evaluated.nonzero()[:, 0],
    )


def _part(source: Source, plan: _Plan, part: str, config: Config) -> ImageSet:
    return _named(source.train.subset(getattr(plan, part).nonzero()[:, 0]), plan, part, config)


def _test_part(source: Source, plan: _Plan, config: Config) -> ImageSet | None:
    """The held-out test, or the official one without the classes that are not evaluated, or None."""
    if source.test is not None and config.data.test_per_class == 0:
        index = plan.evaluated[source.test.labels].nonzero()[:, 0]
        return _named(source.test.subset(index), plan, "test", config)
    return _part(source, plan, "test", config) if plan.test.any() else None


def _named(images: ImageSet, plan: _Plan, part: str, config: Config) -> ImageSet:
    return dataclasses.replace(
        images,
        name=f"{config.data.source}/{part}",
        counts=plan.counts,
        group_counts=plan.group_counts,
        evaluated=plan.evaluated,
        group_rule=config.data.groups,
    )


def _plan(labels: Tensor, classes: tuple[str, ...], own_test: bool, listed: Tensor | None, config: Config) -> _Plan:
    """Hold out, then draw the tail and the probe list from the pool; all draws are places in a shuffled class."""
    data, sizes = config.data, torch.bincount(labels, minlength=len(classes))
    evaluated = sizes >= data.min_per_class
    allowed = f"at most {int(sizes.max())}, the largest class"
    check(bool(evaluated.any()), "data.min_per_class", data.min_per_class, allowed)
    test, val, pool = _hold_out(labels, evaluated, own_test, listed, config)
    _check_left(torch.bincount(labels[pool], minlength=len(classes)), sizes, classes, data)
    counts, group_counts = _counts(labels, pool, classes, listed, config)
    return _Plan(
        train=_draw_train(labels, pool, counts, listed, config),
        probe=_draw_probe(labels, pool & evaluated[labels], classes, evaluated, config),
        val=val,
        test=test,
        counts=counts,
        group_counts=group_counts,
        evaluated=evaluated,
    )


def _hold_out(
    labels: Tensor, evaluated: Tensor, own_test: bool, listed: Tensor | None, config: Config
) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "n"], Bool[Tensor, "n"]]:
    """Test (none where there is an official one), validation and pool; a class not evaluated is all pool."""
    data = config.data
    keys = torch.randperm(len(labels), generator=generator(config.split, "held out"))
    if listed is not None:
        keys = keys + len(labels) * listed  # the images of a published list are the last to be held out
    place = rank_within_class(labels, keys)
    end_test = (data.test_per_class * evaluated)[labels]
    end_val = end_test + ((0 if data.rule == "ldam" else data.val_per_class) * evaluated)[labels]
    end_pool = end_val + (data.pool_per_class or len(labels))
    test = place < end_test
    if data.pool_per_class and not own_test and data.test_per_class == 0:
        test = (place >= end_pool) & evaluated[labels]
    return test, (place >= end_test) & (place < end_val), (place >= end_val) & (place < end_pool)


def _check_left(left: Tensor, sizes: Tensor, classes: tuple[str, ...], data: DataConfig) -> None:
    for c in (left == 0).nonzero()[:, 0].tolist():
        raise ConfigError(
            f"class '{classes[c]}' has no images left for training: it has {int(sizes[c])}, and data.test_per_class = "
            f"{data.test_per_class} and data.val_per_class = {data.val_per_class} are held out; lower them, or set "
            f"data.min_per_class above {int(sizes[c])} (now {data.min_per_class}) to train on it, not evaluate it"
        )


def _counts(
    labels: Tensor, pool: Tensor, classes: tuple[str, ...], listed: Tensor | None, config: Config
) -> tuple[Int64[Tensor, "C"], Int64[Tensor, "C"]]:
    """Training images per class, and those that decide the groups (they differ in the balanced control)."""
    data, left = config.data, torch.bincount(labels[pool], minlength=len(classes))
    natural = left if listed is None else torch.bincount(labels[listed], minlength=len(classes))
    if listed is not None:
        _check_listed(natural, listed & ~pool, classes, data)
    tail = rule_counts(data, config.split, len(classes))
    tail = natural if tail is None else tail
    counts = equal_counts(tail) if data.balanced else tail
    for c in (counts > left).nonzero()[:, 0].tolist():
        field = "data.balanced" if data.balanced else "data.n_max"
        raise ConfigError(
            f"{field} asks for {int(counts[c])} images of class '{classes[c]}', but its pool has {int(left[c])} "
            f"(held out first: data.val_per_class = {data.val_per_class}, data.test_per_class = {data.test_per_class}; "
            f"data.pool_per_class = {data.pool_per_class})"
        )
    return counts, tail


def _check_listed(natural: Tensor, outside: Tensor, classes: tuple[str, ...], data: DataConfig) -> None:
    """A published list has every class, the head it is said to have, and leaves enough images to hold out."""
    empty = [classes[c] for c in (natural == 0).nonzero()[:, 0].tolist()]
    check(
        not empty,
        "data.list_file",
        data.list_file,
        f"a list with images of every class; none of {', '.join(empty[:5])}",
    )
    largest = f"a list whose largest class has data.n_max = {data.n_max} images; here {int(natural.max())}"
    check(data.n_max in (0, int(natural.max())), "data.list_file", data.list_file, largest)
    lower = (
        "lower: the published list needs images that would be held out for validation or test, or lie outside the pool"
    )
    check(not outside.any(), "data.val_per_class", data.val_per_class, lower)


def _draw_train(
    labels: Tensor, pool: Tensor, counts: Tensor, listed: Tensor | None, config: Config
) -> Bool[Tensor, "n"]:
    if listed is not None and not config.data.balanced:
        return listed
    return pool & (_place_in_pool(labels, pool, generator(config.split, "tail")) < counts[labels])


def _draw_probe(
    labels: Tensor, pool: Tensor, classes: tuple[str, ...], evaluated: Tensor, config: Config
) -> Bool[Tensor, "n"]:
    """A draw of its own, so that head and tail classes of the training set are in it alike."""
    wanted = config.data.probe_per_class
    if wanted == 0:
        return pool
    left = torch.bincount(labels[pool], minlength=len(classes))
    fewest = torch.where(evaluated, left, left.max()).argmin()
    allowed = f"at most {int(left[fewest])}, the pool of class '{classes[int(fewest)]}' (0: the whole pool)"
    check(int(left[fewest]) >= wanted, "data.probe_per_class", wanted, allowed)
    return pool & (_place_in_pool(labels, pool, generator(config.split, "probe list")) < wanted)


def _place_in_pool(labels: Tensor, pool: Tensor, rng: torch.Generator) -> Int64[Tensor, "n"]:
    """Place of each image in its class, shuffled, those of the pool first."""
    n = len(labels)
    return rank_within_class(labels, torch.randperm(n, generator=rng) + n * (~pool))


def class_counts(config: Config) -> dict:
    """What `config.data` trains on: `n`, and by rank, head first, `counts`, `groups` and `classes` (class names or
    ids).

    Needs no data where the rule alone decides (`sdclr`, `ldam`, `custom` with a known source); for folders the files
    are listed, not read. Without labels the lists are empty. Raises ConfigError as `load_splits` does.
    """
    data = config.data
    names = CLASSES.get(data.source)
    tail = rule_counts(data, config.split, len(names)) if names else None
    if tail is not None:
        return _summary(equal_counts(tail) if data.balanced else tail, tail, None, names, data)
    labels, names, own_test, listed = list_source(data)
    if not names:
        return {"n": len(labels), "counts": [], "groups": [], "classes": []}
    plan = _plan(labels, names, own_test, listed, config)
    return _summary(plan.counts, plan.group_counts, plan.evaluated, names, data)


def _summary(counts: Tensor, group_counts: Tensor, evaluated: Tensor | None, names: tuple, data: DataConfig) -> dict:
    order = torch.argsort(group_counts, descending=True, stable=True).tolist()
    groups = group_classes(group_counts, data.groups, evaluated)
    return {
        "n": int(counts.sum()),
        "counts": [int(counts[c]) for c in order],
        "groups": [GROUPS[int(groups[c])] for c in order],
        "classes": [names[c] for c in order],
    }


def few_shot_draws(probe: ImageSet, per_class: int, draws: int) -> list[Int64[Tensor, "m"]]:
    """`draws` fixed choices of `per_class` images of each class in the probe list, as indices into it.

    They depend on the list alone, so all methods and seeds of a split see the same labels. Raises ConfigError where a
    class has fewer images.
    """
    check(probe.labels is not None, "evaluation.protocols", "few-shot", "one that needs no labels: there are none")
    sizes = torch.bincount(probe.labels)
    fewest = int(sizes[sizes > 0].min())
    check(
        1 <= per_class <= fewest, "data.few_shot_per_class", per_class, f"1 to {fewest}, the smallest class of the list"
    )
    keys = [torch.randperm(len(probe), generator=generator(draw, "few labels")) for draw in range(draws)]
    return [(rank_within_class(probe.labels, key) < per_class).nonzero()[:, 0] for key in keys]
