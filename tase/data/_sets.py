"""ImageSet: images, labels, and what is known of the classes; Splits: the four sets of one split."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from ._mapped import Mapped, take

GROUPS = ("head", "mid", "tail")


def short_hash(*parts: bytes) -> str:
    """8 hex digits of all parts, with their lengths, so that no two lists of parts run together."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:8]


def group_classes(
    counts: Int64[Tensor, "C"], rule: str = "thirds", evaluated: Bool[Tensor, "C"] | None = None
) -> Int64[Tensor, "C"]:
    """Group of each class, 0 head, 1 mid, 2 tail, from the training images per class.

    `thirds`: classes sorted by count, largest first, ties by class; C // 3 are mid, C // 3 tail, the rest head.
    `counts`: over 100 images head, 20 to 100 mid, fewer tail. Classes that are not `evaluated` are tail and count in no
    third.
    """
    if rule == "counts":
        return (counts <= 100).long() + (counts < 20).long()
    groups = torch.full_like(counts, 2)
    chosen = torch.arange(len(counts)) if evaluated is None else evaluated.nonzero()[:, 0]
    order = chosen[torch.argsort(counts[chosen], descending=True, stable=True)]
    third = len(chosen) // 3
    groups[order[: len(order) - third]] = 1
    groups[order[: len(order) - 2 * third]] = 0
    return groups


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """uint8 images [n, c, h, w] (perhaps a file mapped into memory, or rows of one), with class labels [n] or none.

    `counts` [C] are the images per class of the *training* set of the split this set belongs to, whichever of its four
    sets this is. `hash`, 8 hex digits, says which images of which source these are, in which order. `group_counts` [C],
    where given, decide the groups in place of `counts` (the balanced control has the groups of the tail it stands
    beside). `evaluated` [C] marks the classes that are evaluated (None: all). Raises ValueError where shapes, types or
    labels do not fit each other.
    """

    images: UInt8[Tensor, "n c h w"] | Mapped
    labels: Int64[Tensor, "n"] | None = None
    classes: tuple[str, ...] = ()
    counts: Int64[Tensor, "C"] | None = None
    hash: str = ""
    name: str = ""
    paths: tuple[str, ...] | None = None
    group_rule: str = "thirds"
    group_counts: Int64[Tensor, "C"] | None = None
    evaluated: Bool[Tensor, "C"] | None = None

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 [n, c, h, w], not {self.images.dtype} {list(self.images.shape)}")
        if self.paths is not None and len(self.paths) != len(self):
            raise ValueError(f"{len(self)} images but {len(self.paths)} paths")
        if self.labels is not None:
            check_labels(self.labels, len(self), len(self.classes))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(str(s) for s in self.images.shape[1:])
        kinds = f"{len(self.classes)} classes" if self.labels is not None else "no labels"
        return f"ImageSet({self.name}: {len(self)} images {shape}, {kinds}, hash {self.hash})"

    @property
    def groups(self) -> Int64[Tensor, "C"] | None:
        """Group of each class, an index into GROUPS; None without labels."""
        counts = self.counts if self.group_counts is None else self.group_counts
        return None if counts is None else group_classes(counts, self.group_rule, self.evaluated)

    @property
    def sample_groups(self) -> Int64[Tensor, "n"] | None:
        """Group of each image, an index into GROUPS; None without labels."""
        groups = self.groups
        return None if groups is None or self.labels is None else groups[self.labels.to(groups.device)]

    def subset(self, index: Int64[Tensor, "m"]) -> ImageSet:
        """The images of `index` [m], in its order, under a hash of their own; counts and groups stay as they are."""
        index = torch.as_tensor(index, dtype=torch.int64).cpu()
        return dataclasses.replace(
            self,
            images=take(self.images, index),
            labels=None if self.labels is None else self.labels[index],
            paths=None if self.paths is None else tuple(self.paths[i] for i in index.tolist()),
            hash=short_hash(self.hash.encode(), index.numpy().astype("<i8").tobytes()),
        )


def check_labels(labels: Tensor, n: int, classes: int) -> None:
    """Raise ValueError unless there are `n` int64 labels, all from 0 to `classes` - 1."""
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise ValueError(f"labels must be int64 [{n}], one for each image, not {labels.dtype} {list(labels.shape)}")
    wrong = ((labels < 0) | (labels >= classes)).nonzero()[:, 0]
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"{len(wrong)} labels out of range: the first is {int(labels[first])} of image {first}, "
            f"but with {classes} classes labels go from 0 to {classes - 1}"
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """The long-tailed training set, the balanced probe list, validation and test; None for what there is not.

    `eval_classes` [e] are the classes that are evaluated: all, but those with fewer than `data.min_per_class` images.
    """

    train: ImageSet
    probe: ImageSet | None = None
    val: ImageSet | None = None
    test: ImageSet | None = None
    eval_classes: Int64[Tensor, "e"] | None = None
