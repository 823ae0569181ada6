"""Files of any size and kind, decoded once, in parallel, to one uint8 file that is mapped into memory.

    <cache>/images/<key>/images.u8      n x 3 x size x size bytes
                         decoded.u8     n bytes, 1 where the image is there; while the work goes on
                         finished.json  written last: which files could not be read, and why; checksums of images.u8

The key is a hash of the files' paths, sizes and times of change, and of the size and fit asked for: where any of them
changes, another cache is made. Work that was stopped goes on where it was; of several processes one decodes, the others
wait. The checksums are looked at once in each process: a damaged cache is made again. Any folder below <cache>/images
may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ..config import ConfigError
from ._mapped import Mapped, take

VERSION = 1  # of what decoding does; raise it when the same file gives other pixels
CHUNK = 64  # files per thread between two notes of how far it is
MAX_PIXELS = 2 * 89_478_485  # Pillow's bound: a small file can claim any size ("decompression bomb")
CRC_BYTES = 2**24  # of images.u8 to a checksum
BIG_PIXELS = 2**24  # files above are decoded one at a time, to bound the memory
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO")  # none that runs a program
WHITE = (255, 255, 255)

log = logging.getLogger("tase")
_one_big = threading.Lock()
_sound: set[tuple[str, int, int]] = set()  # path, size and time of change of files whose checksums were right


def cache_folder(cache: str = "") -> Path:
    """The folder for decoded and downloaded data: `cache`, or $TASE_CACHE, or ~/.cache/tase."""
    return Path(cache or os.environ.get("TASE_CACHE") or "~/.cache/tase").expanduser()


def decode_folder(
    files: list[str], size: int, fit: str, on_bad_image: str, cache: Path
) -> tuple[UInt8[Tensor, "m 3 size size"] | Mapped, Bool[Tensor, "n"]]:
    """The files as images of `size` pixels in colour, without those that cannot be read, and a mask of the files that
    can.

    Decoded at the first call, mapped from the cache after it. Raises ConfigError naming every unreadable file where
    `on_bad_image` is strict (they are logged where it is skip), and where the cache cannot be written or nothing is
    readable.
    """
    folder = _folder(files, size, fit, cache)
    shape = (len(files), 3, size, size)
    if not _is_sound(folder, shape):
        with _locked(folder):
            if not _is_sound(folder, shape):  # not made meanwhile by another process
                _decode(files, folder, shape, fit)
    bad = _finished(folder)
    _report(files, bad, on_bad_image)
    good = torch.ones(len(files), dtype=torch.bool)
    good[list(bad)] = False
    # Mode c: writing to the tensor changes memory, not the file.
    images = torch.from_numpy(np.memmap(folder / "images.u8", dtype=np.uint8, mode="c", shape=shape))
    return take(images, good.nonzero()[:, 0]), good


def known_bad(files: list[str], size: int, fit: str, cache: Path) -> list[int]:
    """The files that were found unreadable when they were decoded; none where they have not been."""
    folder = _folder(files, size, fit, cache)
    return list(_finished(folder)) if _is_finished(folder, (len(files), 3, size, size)) else []


def _folder(files: list[str], size: int, fit: str, cache: Path) -> Path:
    digest = hashlib.sha256(f"{VERSION} {size} {fit}".encode())
    for file in files:
        try:
            stat = os.stat(file)
            facts = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            facts = (-1, -1)  # a broken link: reported when it is opened
        digest.update(os.fsencode(os.path.abspath(file)) + f"\0{facts}\0".encode())
    return cache / "images" / digest.hexdigest()[:16]


def _finished(folder: Path) -> dict[int, str]:
    saved = json.loads((folder / "finished.json").read_text())
    return {int(i): why for i, why in saved["bad"].items()}


def _is_finished(folder: Path, shape: tuple[int, ...]) -> bool:
    try:
        _finished(folder)
        return (folder / "images.u8").stat().st_size == np.prod(shape, dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_sound(folder: Path, shape: tuple[int, ...]) -> bool:
    """Whether the cache is finished and has its checksums (caches made before there were any are taken as they are)."""
    if not _is_finished(folder, shape):
        return False
    path, stat = folder / "images.u8", (folder / "images.u8").stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    expected = json.loads((folder / "finished.json").read_text()).get("crc")
    if key not in _sound and expected is not None and expected != _checksums(path):
        log.warning("%s is damaged: the images are decoded again", path)
        return False
    _sound.add(key)
    return True


def _checksums(path: Path) -> list[int]:
    """CRC-32 of each CRC_BYTES of a file, by as many threads as there are cores."""
    size = path.stat().st_size
    data = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
    with ThreadPoolExecutor(_workers()) as pool:
        return list(pool.map(lambda at: zlib.crc32(data[at : at + CRC_BYTES]), range(0, size, CRC_BYTES)))


def _workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The one process that decodes into the folder; the system lets go of it when it ends, however it ends."""
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")  # noqa: SIM115
    with file:
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"data.cache: {folder} cannot be written: {why}; set data.cache to another folder") from error


def _report(files: list[str], bad: dict[int, str], on_bad_image: str) -> None:
    if not bad:
        return
    rows = "\n".join(f"  {files[i]}: {why}" for i, why in sorted(bad.items()))
    if on_bad_image == "strict":
        hint = "mend or remove them, or set data.on_bad_image=skip to leave them out"
        raise ConfigError(f"{len(bad)} of {len(files)} image files cannot be read ({hint}):\n{rows}")
    if len(bad) == len(files):
        raise ConfigError(f"none of the {len(files)} image files can be read:\n{rows}")
    log.warning("%d of %d image files cannot be read and are left out:\n%s", len(bad), len(files), rows)


def _decode(files: list[str], folder: Path, shape: tuple[int, ...], fit: str) -> None:
    """Decode what is not yet in the folder, then mark it finished."""
    with _writable(folder):
        (folder / "finished.json").unlink(missing_ok=True)  # of a damaged cache: half of a new one is not finished
        _reserve(folder / "images.u8", int(np.prod(shape, dtype=np.int64)))
        _reserve(folder / "decoded.u8", shape[0])
    images = np.memmap(folder / "images.u8", dtype=np.uint8, mode="r+", shape=shape)
    done = np.memmap(folder / "decoded.u8", dtype=np.uint8, mode="r+", shape=shape[:1])
    bad = _decode_rows(files, images, done, fit)
    crc = _checksums(folder / "images.u8")
    temporary = folder / "finished.json.new"
    with _writable(folder):
        temporary.write_text(json.dumps({"version": VERSION, "shape": shape, "fit": fit, "bad": bad, "crc": crc}))
        os.replace(temporary, folder / "finished.json")
    with contextlib.suppress(OSError):
        (folder / "decoded.u8").unlink()


def _reserve(path: Path, size: int) -> None:
    """A file of `size` bytes, blocks and all: a full disk is an error now, not a crash when a page is written."""
    with open(path, "ab") as file:
        if file.tell() == size:
            return
        file.truncate(0)
        try:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
        except OSError:
            file.truncate(0)  # else the next call takes a file without blocks for one with
            raise


def _decode_rows(files: list[str], images: np.ndarray, done: np.ndarray, fit: str) -> dict[int, str]:
    """Fill the rows that are not done, some hundred at a time; returns why each bad file is bad."""
    from tqdm.auto import tqdm

    size, bad = images.shape[-1], {}

    def one(row: int) -> tuple[int, str]:
        try:
            images[row] = read_image(files[row], size, fit).transpose(2, 0, 1)
            return row, ""
        except Exception as error:  # whatever a broken file makes a decoder raise, it is this file's fault
            return row, f"{type(error).__name__}: {error}".replace(files[row], "the file")

    rows = np.flatnonzero(done != 1)
    workers = _workers()
    bar = tqdm(total=len(files), initial=len(files) - len(rows), desc="decoding images", unit="img", leave=False)
    with bar, _no_pixel_limit(), _pool(workers) as pool:
        for start in range(0, len(rows), CHUNK * workers):
            chunk = rows[start : start + CHUNK * workers].tolist()
            outcome = []
            for result in pool.map(one, chunk):
                outcome.append(result)
                bar.update()
            bad.update({row: why for row, why in outcome if why})
            images.flush()  # the images are on the disk before they are said to be
            done[[row for row, why in outcome if not why]] = 1
            done.flush()
    return bad


@contextlib.contextmanager
def _pool(workers: int):
    """Threads (Pillow decodes outside the interpreter's lock) that stop at once on Ctrl-C."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _no_pixel_limit():
    """Pillow's own limit is a warning that threads cannot catch; MAX_PIXELS is checked instead, before decoding."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_image(file: str, size: int, fit: str = "crop") -> UInt8[np.ndarray, "size size 3"]:
    """One image file as `size` x `size` pixels of red, green and blue.

    crop: the shorter side becomes `size`, the middle is taken. letterbox: the longer side becomes `size`, the rest is
    white. Grey, palette, 16 bit and CMYK are converted, what is transparent lies on white, the camera's rotation (EXIF)
    is undone. Of a file with several pictures the first is taken. Raises OSError or ValueError where the file is no
    whole image, or too large.
    """
    from PIL import Image

    with Image.open(file, formats=FORMATS) as image:
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels; the limit is {MAX_PIXELS}")
        image.draft(None, (2 * size, 2 * size))  # JPEG: decode a half, quarter or eighth where that is enough
        with _one_big if image.width * image.height > BIG_PIXELS else contextlib.nullcontext():
            image.load()
            turn = _turn(image)
            small = _fitted(_plain(image), size, fit)
    small = small if turn is None else small.transpose(turn)
    canvas = Image.new("RGB", (size, size), WHITE)
    corner = ((size - small.width) // 2, (size - small.height) // 2)
    canvas.paste(small, corner, small.getchannel("A") if small.mode == "RGBA" else None)
    return np.asarray(canvas)


def _plain(image):
    """The image in mode L, RGB or RGBA."""
    if image.mode[0] in "IF":
        return _eight_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _eight_bit(image):
    """Grey of 16 or 32 bit or float as 8 bit: values of 16 bit divided by 257, floats that end at 1 times 255."""
    from PIL import Image

    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    high = float(values.max(initial=0))
    scale = 1 / 257 if image.mode[0] == "I" and (image.mode != "I" or high > 255) else 1
    scale = 255 if image.mode == "F" and high <= 1 else scale
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def _fitted(image, size: int, fit: str):
    """Scaled to `size` (antialiased); pixels that are seen through are weighted by how opaque they are."""
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


def _turn(image):
    """What undoes the camera's rotation or mirroring (EXIF tag Orientation), or None."""
    from PIL import Image

    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # a broken note on a whole picture
        return None
    how = Image.Transpose
    turns = (how.FLIP_LEFT_RIGHT, how.ROTATE_180, how.FLIP_TOP_BOTTOM, how.TRANSPOSE)
    turns += (how.ROTATE_270, how.TRANSVERSE, how.ROTATE_90)
    return turns[orientation - 2] if orientation in range(2, 9) else None
