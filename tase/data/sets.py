"""ImageSet (images, labels, classes), Splits (the four sets of one split), and images that do not fit into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

GROUPS = ("head", "mid", "tail")
LARGE = 2**30  # bytes; a larger subset of a set is not copied
SHARD = 2**30  # bytes of the images in one file of the cache


def short_hash(*parts: bytes) -> str:
    """Return 8 hex digits of the SHA-256 of all parts, each prefixed with its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:8]


def subset_hash(whole: str, index: Int64[Tensor, "m"]) -> str:
    """Return the hash of the images `index` of a set with the hash `whole`."""
    return short_hash(whole.encode(), index.numpy().astype("<i8").tobytes())


def group_classes(
    counts: Int64[Tensor, "C"], rule: str = "thirds", evaluated: Bool[Tensor, "C"] | None = None
) -> Int64[Tensor, "C"]:
    """Return the group of each class, 0 head, 1 mid, 2 tail, from the training images per class.

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
    """Hold uint8 images [n, c, h, w] with class labels [n] or none; raise ValueError where shapes or labels do not fit.

    `images` may be a file mapped into memory, or `Mapped`: rows of one. `counts` [C] are the images per class of the
    *training* set of the split this set belongs to, in each of its four sets. `hash`, 8 hex digits, says which images
    of which source these are, in which order. `group_counts` [C], where given, decide the groups instead of `counts`
    (the balanced control has the groups of the long-tailed set it is compared with). `evaluated` [C] marks the classes
    that are evaluated (None: all).
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
        if self.labels is None:
            return
        kind = f"{self.labels.dtype} {list(self.labels.shape)}"
        if kind != f"torch.int64 [{len(self)}]":
            raise ValueError(f"labels must be int64 [{len(self)}], one for each image, not {kind}")
        for i in ((self.labels < 0) | (self.labels >= len(self.classes))).nonzero()[:1, 0].tolist():
            allowed = f"with {len(self.classes)} classes labels go from 0 to {len(self.classes) - 1}"
            raise ValueError(f"labels out of range: the first is {int(self.labels[i])} of image {i}, but {allowed}")

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
        """Return the images of `index` [m], in its order, with their own hash; counts and groups stay as they are."""
        index = torch.as_tensor(index, dtype=torch.int64).cpu()
        return dataclasses.replace(
            self,
            images=take(self.images, index),
            labels=None if self.labels is None else self.labels[index],
            paths=None if self.paths is None else tuple(self.paths[i] for i in index.tolist()),
            hash=subset_hash(self.hash, index),
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """Hold the long-tailed training set, the balanced probe list, validation and test; None where there is none.

    `eval_classes` [e] are the classes that are evaluated: all but those with fewer than `data.min_per_class` images.
    """

    train: ImageSet
    probe: ImageSet | None = None
    val: ImageSet | None = None
    test: ImageSet | None = None
    eval_classes: Int64[Tensor, "e"] | None = None


class Shards:
    """Images uint8 [m, c, h, w] in several mapped files, as many rows in each but the last."""

    dtype = torch.uint8

    def __init__(self, parts: list[UInt8[Tensor, "r c h w"]]):
        self.parts, self.rows = parts, len(parts[0])
        self.shape = torch.Size((sum(map(len, parts)), *parts[0].shape[1:]))

    def select(self, index: Int64[Tensor, "n"], out: UInt8[Tensor, "n c h w"]) -> None:
        """Copy the rows `index` to `out`, file by file."""
        number = index // self.rows
        for part in number.unique().tolist():
            at = (number == part).nonzero()[:, 0]
            out[at] = self.parts[part][index[at] - part * self.rows]

    def __getitem__(self, index: Int64[Tensor, "n"]) -> UInt8[Tensor, "n c h w"]:
        self.select(index, out := torch.empty((len(index), *self.shape[1:]), dtype=torch.uint8))
        return out


class Mapped:
    """Rows `index` [n] of uint8 images that stay where they are (in a mapped file) until they are indexed.

    Has what ImageSet, `encode` and the training loop use of a tensor [n, c, h, w]: `shape`, `len`, `[...]`. The images
    that `[...]` returns lie on `target`; copies to a GPU start from pinned memory and do not wait.
    """

    dtype, ndim, device = torch.uint8, 4, torch.device("cpu")

    def __init__(
        self, source: UInt8[Tensor, "m c h w"] | Shards, index: Int64[Tensor, "n"], target: torch.device | str = "cpu"
    ):
        self.source, self.index, self.target = source, index, torch.device(target)
        self.shape = torch.Size((len(index), *source.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: int | slice | Tensor) -> Tensor:
        """Copy rows of the source into memory, pinned if `target` is a GPU."""
        index = self.index[rows]
        shape, pinned = (index.numel(), *self.shape[1:]), self.target.type == "cuda"
        out = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        if isinstance(self.source, Shards):
            self.source.select(index.flatten(), out)
        else:
            torch.index_select(self.source, 0, index.flatten(), out=out)
        return out if index.ndim else out[0]

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        return self.read(rows).to(self.target, non_blocking=True)


def take(images: Tensor | Shards | Mapped, index: Int64[Tensor, "m"]) -> Tensor | Mapped:
    """Return `images[index]`, without a copy if the index is a run of neighbours or the result exceeds LARGE bytes."""
    first, n = (int(index[0]), len(index)) if len(index) else (0, 0)
    if isinstance(images, Mapped):
        images, index = images.source, images.index[index]
    elif isinstance(images, Tensor) and torch.equal(index, torch.arange(first, first + n)):
        return images[first : first + n]
    return Mapped(images, index) if images.shape[1:].numel() * n > LARGE else images[index]


def shard_rows(shape: torch.Size | tuple[int, ...]) -> int:
    """Return how many images of this shape [.., c, h, w] one file of the cache holds."""
    return max(1, SHARD // math.prod(shape[1:]))


def epoch_order(images: Tensor | Mapped, generator: torch.Generator, window: float) -> Int64[Tensor, "n"]:
    """Draw the order in which an epoch takes n images: a uniform permutation where they fit into `window` GiB.

    Else the shards are permuted, and rows among as many shards as fit: what is read at a time then stays in memory
    while it is needed, and a disk is read nearly in sequence, each shard once an epoch. It depends on the images'
    number and size alone, not on where they are placed.
    """
    n, bytes_each = len(images), images.shape[1:].numel()
    order = torch.randperm(n, generator=generator)
    if n * bytes_each <= window * 2**30:
        return order
    index = images.index if isinstance(images, Mapped) else torch.arange(n)
    rows = shard_rows(images.shape)
    shard = index // rows  # of each image
    together = max(1, int(window * 2**30 / (rows * bytes_each)))  # shards in a window
    turn = torch.randperm(int(shard.max()) + 1, generator=generator)  # of each shard
    return order[torch.argsort(turn[shard[order]] // together, stable=True)]


def place(images: Tensor | Mapped, device: torch.device, memory: float = 0.0) -> tuple[Tensor | Mapped, str]:
    """Move the images to `device` if they take at most `memory` GiB, else prepare to fetch them by batch.

    Returns them and a sentence that says which. 0 GiB means half of what is free on a GPU; on a CPU they stay as
    they are.
    """
    size, on_cpu = images.shape.numel(), device.type == "cpu"  # bytes
    budget = memory * 2**30 or (float("inf") if on_cpu else torch.cuda.mem_get_info(device)[0] / 2)
    mapped = images if isinstance(images, Mapped) else Mapped(images, torch.arange(len(images)))
    if size > budget or (mapped is images and on_cpu and not memory):
        placed, where = Mapped(mapped.source, mapped.index, device), f"fetched batch by batch to {device}"
    else:
        placed, where = _resident(images, device), f"resident on {device}"
    units = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
    amount, unit = next((size / n, unit) for n, unit in units if size >= n or n == 1)
    return placed, f"{len(images):,} images, {amount:,.1f} {unit}: {where}"


def _resident(images: Tensor | Mapped, device: torch.device) -> Tensor:
    if isinstance(images, Tensor):
        return images.to(device)
    out = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), 512):  # in parts: the whole may fit only once
        out[start : start + 512] = images[start : start + 512]
    return out


def batches(images: Tensor | Mapped, parts: Iterable[slice | Tensor]) -> Iterator[Tensor]:
    """Yield `images[part]` for each part; of `Mapped` images a thread reads the next part while this one is used."""
    if isinstance(images, Tensor):
        yield from (images[part] for part in parts)
        return
    with ThreadPoolExecutor(1, "images") as reader:
        reads = (reader.submit(images.read, part) for part in parts)
        for reading, _next in itertools.pairwise(itertools.chain(reads, [None])):  # by now the next read has begun
            yield reading.result().to(images.target, non_blocking=True)
