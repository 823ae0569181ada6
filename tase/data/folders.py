"""Folders of image files: listing them, decoding them once to uint8 pixels, and the cache that keeps the pixels.

    <cache>/images/<key>/00000.u8       rows x 3 x size x size bytes, at most a GiB
                         00000.json     which files could not be read, and why; a checksum of the bytes
                         00001.u8 ...

The key is a hash of the files' paths, sizes and times of change, and of the wanted size and fit: a change of any of
them makes another cache. Each shard is decoded under a temporary name and renamed; several processes share the shards
out, and what is there after a stop is not made again. Any folder below <cache>/images may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from ..config import ConfigError
from ..files import temporary_name, tidy
from ..options import log
from .sets import Mapped, Shards, shard_rows, take

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".ico")
)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO")  # none that runs a program
VERSION = 2  # of the pixels that decoding gives and of the files; part of the cache's key
BIG_PIXELS = 2**24  # larger files are decoded one at a time, to bound the memory
DECODE_CHUNK = 512  # files that are handed to the threads together
WHITE = (255, 255, 255)
ORIENTATION = 0x0112  # EXIF tag

_one_big_file = threading.Lock()


# ------------------------------------------------------------------------------------------------------------- listing


class Archive(Protocol):
    """Larger files that hold images: sizes in bytes, the bytes of one, and a stamp that changes when the files do."""

    sizes: Sequence[int]
    stamp: Any

    def read(self, row: int) -> bytes: ...


class Packed(NamedTuple):
    """An image in an archive, as `Listing.files` has it in the place of a path."""

    name: str
    archive: Archive
    row: int

    def __str__(self) -> str:
        return self.name


File = str | Packed


def file_size(file: File) -> int:
    """Return the bytes of an image file; raises OSError where it is not there."""
    return file.archive.sizes[file.row] if isinstance(file, Packed) else os.stat(file).st_size


@dataclass(frozen=True)
class Listing:
    """Hold the image files below `root`, sorted by name, with the ids (None in a flat folder) and names of classes."""

    root: Path
    paths: tuple[str, ...]
    labels: Int64[Tensor, "n"] | None
    classes: tuple[str, ...]
    archive: Archive | None = None  # what holds the images, if they are no files of their own
    rows: Int64[Tensor, "n"] | None = None  # which of its images these are

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def files(self) -> list[File]:
        if self.archive is not None:
            return [Packed(path, self.archive, row) for path, row in zip(self.paths, self.rows.tolist())]
        return [os.path.join(self.root, path) for path in self.paths]

    def keep(self, mask: Bool[Tensor, "n"]) -> Listing:
        """Return the files of the mask only; the classes stay."""
        paths = tuple(path for path, kept in zip(self.paths, mask.tolist(), strict=True) if kept)
        labels, rows = (None if values is None else values[mask] for values in (self.labels, self.rows))
        return dataclasses.replace(self, paths=paths, labels=labels, rows=rows)

    def of_classes(self, classes: tuple[str, ...]) -> Listing:
        """Return the files of these classes only, numbered in this order; of some there may be none."""
        places = {name: c for c, name in enumerate(classes)}
        labels = torch.tensor([places.get(name, -1) for name in self.classes])[self.labels]
        return dataclasses.replace(self, labels=labels, classes=classes).keep(labels >= 0)


def list_folder(root: Path) -> Listing:
    """List the image files below `root`: a class is a folder directly in it, with all that is nested there.

    Links are followed, but a file counts once, under its own name where that is below `root`: else the same image could
    be trained on and tested. A folder without sub-folders that hold images has no labels. Files without the suffix of
    an image are skipped. Raises ConfigError where a folder cannot be read or there is no image at all.
    """
    paths = _image_paths(root)
    if not paths:
        raise ConfigError(f"data.root = {str(root)!r} holds no image files ({', '.join(sorted(SUFFIXES))})")
    return _in_classes(root, paths)


def list_part(listing: Listing, name: str) -> Listing:
    """List by itself what lies in one of the folders of a listing: its classes are the folders in there."""
    paths = [path.partition("/")[2] for path in listing.paths if path.startswith(f"{name}/")]
    return _in_classes(listing.root / name, paths)


def _in_classes(root: Path, paths: list[str]) -> Listing:
    nested = [path for path in paths if "/" in path]
    if not nested:
        return Listing(root, tuple(paths), None, ())
    if len(nested) < len(paths):
        log.warning("%s: %d images lie in no class folder and are left out", root, len(paths) - len(nested))
    folders = [path.partition("/")[0] for path in nested]
    classes = tuple(sorted(set(folders)))
    ids = {name: c for c, name in enumerate(classes)}
    return Listing(root, tuple(nested), torch.tensor([ids[name] for name in folders]), classes)


def _image_paths(root: Path) -> list[str]:
    """Return the path of each image file, relative to `root` with '/', sorted."""

    def stop(error: OSError):
        raise ConfigError(f"data.root: {error.filename} cannot be read: {error.strerror}") from error

    top, seen, others = os.path.realpath(root), set(), 0
    found: dict[str, list[tuple[bool, str]]] = {}  # file -> the paths that lead to it, and whether by a link
    for folder, subs, names in os.walk(root, onerror=stop, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # a link back to a folder above, or a second way to the same one
            subs.clear()
            continue
        seen.add(place)
        subs[:] = [sub for sub in subs if not sub.startswith(".")]
        inside = os.path.relpath(folder, root)
        for name in names:
            if os.path.splitext(name)[1].lower() not in SUFFIXES or name.startswith("."):
                others += 1
                continue
            path, file = os.path.normpath(os.path.join(inside, name)), os.path.join(place, name)
            file = os.path.realpath(file) if os.path.islink(file) else file
            found.setdefault(file, []).append((file != os.path.join(top, path), path.replace(os.sep, "/")))
    links = sum(map(len, found.values())) - len(found)
    log.info("%s: left out %d links to other files, %d files without the suffix of an image", root, links, others)
    return sorted(min(ways)[1] for ways in found.values())  # the file's own name, else the first link's


# --------------------------------------------------------------------------------------------------------------- cache


def cache_folder(cache: str = "") -> Path:
    """Return the folder for decoded and downloaded data: `cache`, or $TASE_CACHE, or ~/.cache/tase."""
    return Path(cache or os.environ.get("TASE_CACHE") or "~/.cache/tase").expanduser()


def decode_folder(
    files: list[File], size: int, fit: str, on_bad_image: str, cache: Path
) -> tuple[UInt8[Tensor, "m 3 size size"] | Mapped, Bool[Tensor, "n"]]:
    """Return the readable files as colour images of `size` pixels, and the mask of the files that are readable.

    Decodes at the first call; later ones map the cached pixels. Raises ConfigError naming every unreadable file if
    `on_bad_image` is strict (they are logged if it is skip), if the cache cannot be written, or if nothing is readable.
    """
    if not files:
        raise ConfigError("data.root: there are no images to decode")
    shards = _shards_of(files, size, fit, cache)
    if (bad := _unreadable(shards)) is None:
        folder = shards[0].path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tidy(folder)
            _decode(shards, size, fit)
            if (bad := _unreadable(shards)) is None:
                raise OSError("what was written is not what lies there")
        except OSError as e:
            why = f"{folder} cannot be written: {e.strerror or e}; set data.cache to another folder"
            raise ConfigError(f"data.cache: {why}") from e
    _report_unreadable(files, bad, on_bad_image)
    good = torch.ones(len(files), dtype=torch.bool)
    good[list(bad)] = False
    # Mode c: writing to the tensor changes memory, not the file.
    maps = [np.memmap(s.path, dtype=np.uint8, mode="c", shape=(len(s.files), 3, size, size)) for s in shards]
    parts = [torch.from_numpy(pixels) for pixels in maps]
    return take(parts[0] if len(parts) == 1 else Shards(parts), good.nonzero()[:, 0]), good


def known_unreadable(files: list[File], size: int, fit: str, cache: Path) -> dict[int, str]:
    """Return which files were unreadable when they were decoded, and why; none if they have not been."""
    return _unreadable(_shards_of(files, size, fit, cache)) or {}


class Shard(NamedTuple):
    """One file of the cache: the pixels of `files`, the first of which is number `first` of all; `size` bytes."""

    path: Path
    first: int
    files: list[File]
    size: int


def _shards_of(files: list[File], size: int, fit: str, cache: Path) -> list[Shard]:
    folder, rows = _folder_of(files, size, fit, cache), shard_rows((len(files), 3, size, size))
    starts = range(0, len(files), rows)
    parts = [files[first : first + rows] for first in starts]
    bytes_each = 3 * size * size
    paths = [folder / f"{number:05d}.u8" for number in range(len(parts))]
    return [Shard(path, first, part, len(part) * bytes_each) for path, first, part in zip(paths, starts, parts)]


def _folder_of(files: list[File], size: int, fit: str, cache: Path) -> Path:
    digest = hashlib.sha256(f"{VERSION} {size} {fit}".encode())
    if files and isinstance(files[0], Packed):
        digest.update(repr(files[0].archive.stamp).encode())
        digest.update("".join(f"{file}\0{file.row}\0{file_size(file)}\0" for file in files).encode())
        files = []
    for file in files:
        try:
            stat = os.stat(file)
            facts = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            facts = (-1, -1)  # a broken link: reported when it is opened
        digest.update(os.fsencode(os.path.abspath(file)) + f"\0{facts}\0".encode())
    return cache / "images" / digest.hexdigest()[:16]


def _unreadable(shards: list[Shard]) -> dict[int, str] | None:
    """Return the files that a cache lacks, each with the reason; None if a shard is missing or damaged.

    Of a single shard all bytes are checked, of many only their number: reading them takes minutes.
    """
    found = [_unreadable_in(shard, check_bytes=len(shards) == 1) for shard in shards]
    if None in found:
        return None
    return {shard.first + row: why for shard, bad in zip(shards, found) for row, why in bad.items()}


def _unreadable_in(shard: Shard, check_bytes: bool) -> dict[int, str] | None:
    """Return the unreadable files of a shard by their row in it; None if it is not whole."""
    try:
        saved = json.loads(shard.path.with_suffix(".json").read_text())
        whole = shard.path.stat().st_size == shard.size
        if whole and check_bytes:
            whole = zlib.crc32(np.memmap(shard.path, mode="r")) == saved["crc32"]
        return {int(row): why for row, why in saved["bad"].items()} if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _report_unreadable(files: list[File], bad: dict[int, str], on_bad_image: str) -> None:
    if not bad:
        return
    rows = "\n".join(f"  {files[row]}: {why}" for row, why in sorted(bad.items()))
    if on_bad_image == "strict":
        hint = "mend or remove them, or set data.on_bad_image=skip to leave them out"
        raise ConfigError(f"{len(bad)} of {len(files)} image files cannot be read ({hint}):\n{rows}")
    if len(bad) == len(files):
        raise ConfigError(f"none of the {len(files)} image files can be read:\n{rows}")
    log.warning("%d of %d image files cannot be read and are left out:\n%s", len(bad), len(files), rows)


# ------------------------------------------------------------------------------------------------------------ decoding


def _decode(shards: list[Shard], size: int, fit: str) -> None:
    """Make the shards that are missing or damaged; several processes share them out."""
    from PIL import Image

    with warnings.catch_warnings():  # of each large file: one at a time is decoded, twice as many pixels are refused
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for wait in (0, -1):  # those that no other process makes; then wait for the others'
            for shard in shards:
                with contextlib.suppress(Timeout), FileLock(f"{shard.path}.lock", timeout=wait):
                    if _unreadable_in(shard, check_bytes=wait == 0) is None:
                        _make(shard, size, fit)


def _make(shard: Shard, size: int, fit: str) -> None:
    """Decode the files of a shard under a temporary name; the JSON, written last, says that it is whole."""
    path, bad, crc = shard.path, {}, 0
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as out:
            for row, (pixels, why) in enumerate(_decoded(shard.files, size, fit)):
                data = pixels.tobytes()
                out.write(data)  # not through a mapping: there a full disk is a crash, not an OSError
                crc = zlib.crc32(data, crc)
                if why:
                    bad[row] = why
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
        path.with_suffix(".json").write_text(json.dumps({"bad": bad, "crc32": crc}))
    finally:
        temporary.unlink(missing_ok=True)


def _decoded(files: list[File], size: int, fit: str) -> Iterator[tuple[UInt8[np.ndarray, "3 size size"], str]]:
    """Yield the pixels of each file, in order, decoded by threads; black with the reason for an unreadable file."""

    def one(file: File) -> tuple[np.ndarray, str]:
        try:
            return read_image(file, size, fit).transpose(2, 0, 1), ""
        except Exception as error:  # a broken file can make a decoder raise anything
            why = f"{type(error).__name__}: {error}"
            why = why.replace(file, os.path.basename(file)) if isinstance(file, str) else why.partition(" <_io")[0]
            return np.zeros((3, size, size), np.uint8), why

    # Pillow decodes outside the interpreter's lock, so threads are enough.
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        chunks = (pool.map(one, files[i : i + DECODE_CHUNK]) for i in range(0, len(files), DECODE_CHUNK))
        results = itertools.chain.from_iterable(chunks)
        yield from tqdm(results, total=len(files), desc="decoding images", unit="img", leave=False)


def read_image(file: File, size: int, fit: str = "crop") -> UInt8[np.ndarray, "size size 3"]:
    """Read one image file as `size` x `size` pixels of red, green and blue.

    crop: the shorter side becomes `size`, the middle is taken. letterbox: the longer side becomes `size`, the rest is
    white. Grey, palette, 16 bit and CMYK are converted, transparent pixels lie on white, the camera's rotation (EXIF)
    is undone. Of a file with several pictures the first is taken. Raises what Pillow raises where the file is no whole
    image, or has over 179 million pixels (twice `Image.MAX_IMAGE_PIXELS`).
    """
    from PIL import Image, ImageOps

    opened = io.BytesIO(file.archive.read(file.row)) if isinstance(file, Packed) else file
    with Image.open(opened, formats=FORMATS) as image:  # checks the size that the file claims ("decompression bomb")
        image.draft(None, (2 * size, 2 * size))  # JPEG: decode a half, quarter or eighth where that is enough
        with _one_big_file if image.width * image.height > BIG_PIXELS else contextlib.nullcontext():
            image.load()
            small = _resized(_plain(image), size, fit)
        with contextlib.suppress(Exception):  # a corrupt EXIF tag does not make the picture unreadable
            small.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
            ImageOps.exif_transpose(small, in_place=True)
    canvas = Image.new("RGB", (size, size), WHITE)
    corner = ((size - small.width) // 2, (size - small.height) // 2)
    canvas.paste(small, corner, small.getchannel("A") if small.mode == "RGBA" else None)
    return np.asarray(canvas)


def _plain(image):
    """Convert to mode L, RGB or RGBA."""
    if image.mode[0] in "IF":
        return _eight_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _eight_bit(image):
    """Convert grey of 16 or 32 bit or float to 8 bit: 16-bit values divided by 257, floats up to 1 times 255."""
    from PIL import Image

    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    high = float(values.max(initial=0))
    scale = 1 / 257 if image.mode[0] == "I" and (image.mode != "I" or high > 255) else 1
    scale = 255 if image.mode == "F" and high <= 1 else scale
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def _resized(image, size: int, fit: str):
    """Scale to `size`, antialiased; transparent pixels weigh as much as they are opaque (Pillow does so for RGBA).

    ImageOps.fit and pad do the same without `reducing_gap`, which makes large files several times faster.
    """
    from PIL import Image

    width, height = image.size
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box, shape = (left, top, left + side, top + side), (size, size)
    else:
        scale = size / max(width, height)
        box, shape = None, (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.resize(shape, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
