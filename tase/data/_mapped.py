"""Images that do not fit into memory: they stay in the file that is mapped, and are fetched batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

LARGE = 2**30  # bytes above which a choice of images is not copied

log = logging.getLogger("tase")


class Mapped:
    """The rows `index` [n] (None: all) of uint8 images, which are read when they are asked for.

    To be used as the tensor [n, c, h, w] would be: `[...]` with a number, a slice or an index, `shape`, `split`, `to`.
    What `[...]` gives is on `target`; copies to a GPU start from pinned memory and do not wait.
    """

    dtype, ndim, device = torch.uint8, 4, torch.device("cpu")

    def __init__(
        self,
        source: UInt8[Tensor, "m c h w"] | Mapped,
        index: Int64[Tensor, "n"] | None = None,
        target: torch.device | str = "cpu",
    ):
        inner = source if isinstance(source, Mapped) else None
        if inner is not None and inner.index is not None:
            index = inner.index if index is None else inner.index[index]
        self.source: Tensor = source if inner is None else inner.source
        self.index, self.target = index, torch.device(target)
        self.shape = torch.Size((len(source) if index is None else len(index), *source.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: int | slice | Tensor) -> Tensor:
        """The images, in pinned memory where they go to a GPU."""
        rows = rows if self.index is None else self.index[rows]
        pinned = self.target.type == "cuda"
        if not pinned or not isinstance(rows, Tensor) or rows.ndim != 1 or rows.dtype != torch.int64:
            return self.source[rows].pin_memory() if pinned else self.source[rows]
        out = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8, pin_memory=True)
        return torch.index_select(self.source, 0, rows, out=out)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        return self.read(rows).to(self.target, non_blocking=True)

    def split(self, size: int) -> Iterator[UInt8[Tensor, "b c h w"]]:
        return batches(self, (slice(i, i + size) for i in range(0, len(self), size)))

    def to(self, device: torch.device | str) -> UInt8[Tensor, "n c h w"]:
        """All of them in memory on `device`."""
        out = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for rows, part in zip(out.split(512), self.split(512)):
            rows.copy_(part)
        return out


def take(images: Tensor | Mapped, index: Int64[Tensor, "m"]) -> Tensor | Mapped:
    """`images[index]`, without a copy where the index is a run of neighbours or the images are many."""
    first, n = (int(index[0]), len(index)) if len(index) else (0, 0)
    if isinstance(images, Tensor) and torch.equal(index, torch.arange(first, first + n)):
        return images[first : first + n]
    return Mapped(images, index) if size_of(images) // max(1, len(images)) * n > LARGE else images[index]


def size_of(images: Tensor | Mapped) -> int:
    """Bytes."""
    return images.shape.numel()


def place(images: Tensor | Mapped, device: torch.device, memory: float = 0.0) -> tuple[Tensor | Mapped, str]:
    """The images on `device` if they take at most `memory` GiB, else fetched batch by batch; and which, in words.

    0: half of what is free on a GPU; on a CPU they stay as they are.
    """
    budget = memory * 2**30 or (torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else float("inf"))
    facts = f"{len(images):,} images, {size_of(images) / 2**30:.2g} GiB"
    asis = device.type == "cpu" and not memory
    if size_of(images) > budget or (asis and isinstance(images, Mapped)):
        placed, where = Mapped(images, target=device), f"fetched batch by batch to {device}"
    else:
        placed, where = images.to(device), f"resident on {device}"
    log.info("%s: %s", facts, where)
    return placed, f"{facts}: {where}"


def batches(images: Tensor | Mapped, parts: Iterable[slice | Tensor]) -> Iterator[Tensor]:
    """`images[part]` for each part; where they are fetched, the next one is read while the present one is used."""
    if not isinstance(images, Mapped):
        yield from (images[part] for part in parts)
        return
    with ThreadPoolExecutor(1, "images") as reader:
        waiting = None
        for part in parts:
            reading = reader.submit(images.read, part)
            if waiting is not None:
                yield waiting.result().to(images.target, non_blocking=True)
            waiting = reading
        if waiting is not None:
            yield waiting.result().to(images.target, non_blocking=True)
