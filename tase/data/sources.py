"""Data sources: digits, Fashion-MNIST, CIFAR, ImageNet-100, any folder of images; and how to add one.

A source is one function in `tase.SOURCES`. It takes the section `data` of the configuration (a `DataConfig`) and
returns the training images and the official test images (None if there are none), each as an `ImageSet` of pixels with
labels and class names, or as a `Listing` of files, which are then decoded and cached:

    def rings(data):
        images, labels = draw_rings(400)                  # uint8 [n, c, h, w], int64 [n] from 0
        return tase.ImageSet(images, labels, classes=("thin", "thick")), None

    def scans(data):
        return list_folder(Path(data.root) / "scans"), None

    tase.SOURCES["rings"] = rings                         # then: --set data.source=rings

`facts`, `list_folder` and `missing_data` come from tase.data. `@facts(classes=..., n_max={"sdclr": 450})` above the
function is optional: known before the data are read, it lets `tase info` count a long-tailed subset without them and
gives rules `sdclr` and `ldam` their size; `fixed=True` says that the images are the same wherever they lie. A function
whose data are missing raises `missing_data(...)`, a ConfigError with the command that gets them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Bool, UInt8
from torch import Tensor

from ..config import SOURCES, Config, ConfigError, DataConfig, check, is_hub_name, override
from ..files import printable
from ..options import log, some_of
from .folders import Listing, cache_folder, decode_folder, file_size, known_unreadable, list_folder, list_part
from .sets import ImageSet, short_hash

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
TRAINED = ("train", "training")  # names of the part that is trained on, in small letters
JUDGED = ("test", "testing", "validation", "valid", "val", "dev")  # parts that are test images: the first that is there
NUMBERS = tuple(str(c) for c in range(100))  # class names of CIFAR-100 and ImageNet-100 until their data are read

Part = ImageSet | Listing  # of pixels, or of files to be decoded
Reader = Callable[[DataConfig], tuple[Part, Part | None]]


def facts(
    classes: tuple[str, ...] = (), n_max: Mapping[str, int] | None = None, image_size: int = 64, fixed: bool = False
) -> Callable[[Reader], Reader]:
    """Attach to a source what is known before its data are read.

    `classes`: their names; `n_max`: images of the largest class by rule; `image_size`: side in pixels to which files
    are decoded where `data.image_size` is 0; `fixed`: the images are the same in every `data.root`.
    """

    def attach(reader: Reader) -> Reader:
        reader.classes, reader.n_max, reader.image_size, reader.fixed = classes, n_max or {}, image_size, fixed
        return reader

    return attach


def is_fixed(data: DataConfig) -> bool:
    """Tell whether the configuration names the images, and `data.root` at most the place where they lie."""
    return getattr(SOURCES[data.source], "fixed", False) or (data.source == "hf" and is_hub_name(data.root))


def missing_data(what: str, places: Iterable[str | Path], command: str, why: object = "") -> ConfigError:
    """Make the error for data that are not in `places`, with the command that gets them."""
    reason = f" ({why})" if why else ""
    return ConfigError(
        f"data.root: no {what} in {', '.join(map(str, places))}{reason}; get the data with:\n  {command}"
    )


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Source:
    """Hold the training images, the official test (or None), and which training images a published list names."""

    train: Part
    test: Part | None
    listed: Bool[Tensor, "n"] | None


def load_images(source: str, root: str = "", **fields) -> ImageSet:
    """Load all training images of a source, with labels where it has labels: an ImageSet of uint8 [n, c, h, w].

    `source` is a name in `SOURCES`, `root` the folder of its data (empty: its usual place), `fields` are others of
    section `data` of the configuration, such as image_size (pixels), fit, on_bad_image, cache. A flat folder of images
    has no labels. Raises ConfigError for unknown names, and for data that are missing, with the command that gets them.
    """
    given = {"source": source, "root": root, "rule": "none", **fields}
    texts = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in given.items()}
    data = override(Config(), {f"data.{name}": value for name, value in texts.items()}).data
    return dataclasses.replace(load_source(data).train, group_rule=data.groups)


def load_source(data: DataConfig) -> Source:
    """Load a source, its files decoded. Raises ConfigError for data that are missing or broken."""
    source = _open_source(data)
    train, good = _load_part(source.train, data, "train")
    test = None if source.test is None else _load_part(source.test, data, "test")[0]
    return _of_used_classes(Source(train, test, None if source.listed is None else source.listed[good]))


def list_source(data: DataConfig) -> Source:
    """List a source without decoding its files; those known to be unreadable are left out if they are to be skipped."""
    source = _open_source(data)
    if not isinstance(source.train, Listing) or data.on_bad_image != "skip":
        return _of_used_classes(source)
    good = torch.ones(len(source.train), dtype=torch.bool)
    good[list(known_unreadable(source.train.files, _file_size(data), data.fit, cache_folder(data.cache)))] = False
    listed = None if source.listed is None else source.listed[good]
    return _of_used_classes(Source(source.train.keep(good), source.test, listed))


def unreadable_files(data: DataConfig) -> dict[str, str]:
    """Return the files of a source's training part that could not be decoded and were left out, with the reason."""
    part = _open_source(data).train
    if not isinstance(part, Listing) or data.on_bad_image != "skip":
        return {}
    bad = known_unreadable(part.files, _file_size(data), data.fit, cache_folder(data.cache))
    return {part.paths[row]: why for row, why in sorted(bad.items())}


def _open_source(data: DataConfig) -> Source:
    reader, listed = SOURCES[data.source], None
    try:
        train, test = reader(data)
    except ConfigError:
        raise
    except ValueError as error:  # of ImageSet, which checks itself
        raise ConfigError(f"data.root = {data.root!r} holds broken data of '{data.source}': {error}") from error
    known = train.classes  # a published list may take some of them
    if data.rule == "file" and isinstance(train, Listing) and data.list_file.endswith(".txt"):
        train, listed = match_list(train, data.list_file)
    elif data.rule == "file":
        listed = read_index_file(data.list_file, len(train))
    n, expected = len(train.classes), len(getattr(reader, "classes", ()))
    allowed = f"{data.source} with its {expected} classes, or data.list_file must name {expected}; it has {n} classes"
    check(expected in (0, n), "data.root", data.root, allowed)
    if isinstance(train, ImageSet):
        side = train.images.shape[-1]
        check(data.image_size in (0, side), "data.image_size", data.image_size, f"0, or {side}")
    return Source(train, _judged_part(test, train, known), listed)


def _judged_part(test: Part | None, train: Part, known: tuple[str, ...]) -> Part | None:
    """Return the test images of the classes of `train`, of which the source knows more; None without such labels."""
    if test is None or not len(test) or train.labels is None:
        return None
    kept = None
    if test.labels is not None and set(test.classes) & set(train.classes):
        kept = test if isinstance(test, ImageSet) else test.of_classes(train.classes)
    if not kept:
        where = test.root if isinstance(test, Listing) else "the source"
        log.warning("%s: test images without labels, or of none of the trained classes, are left out", where)
        return None
    if isinstance(test, Listing) and (only := [name for name in test.classes if name not in known]):
        log.warning("%s: test images of classes without training images are left out: %s", test.root, some_of(only, 10))
    return kept


def _of_used_classes(source: Source) -> Source:
    """Leave out the classes without training images, and their test images: there is nothing to train on or judge."""
    train, test = source.train, source.test
    used = None if train.labels is None else torch.bincount(train.labels, minlength=len(train.classes)) > 0
    if used is None or used.all():
        return source
    empty = [name for name, kept in zip(train.classes, used.tolist()) if not kept]
    log.warning("classes without training images are left out: %s", some_of(empty, 10))
    ids, classes = used.cumsum(0) - 1, tuple(name for name, kept in zip(train.classes, used.tolist()) if kept)

    def renumbered(part: Part) -> Part:
        counted = {"counts": part.counts[used]} if isinstance(part, ImageSet) and part.counts is not None else {}
        return dataclasses.replace(part, labels=ids[part.labels], classes=classes, **counted)

    if test is not None:
        kept = used[test.labels]
        test = test.keep(kept) if isinstance(test, Listing) else test.subset(kept.nonzero()[:, 0])
    return Source(renumbered(train), renumbered(test) if test else None, source.listed)


def _load_part(part: Part, data: DataConfig, name: str) -> tuple[ImageSet, Bool[Tensor, "n"]]:
    """Return a part of a source as pixels, with name, counts and hash, and the mask of the images that are readable."""
    if isinstance(part, Listing):
        size = _file_size(data)
        pixels, good = decode_folder(part.files, size, data.fit, data.on_bad_image, cache_folder(data.cache))
        part = part.keep(good)
        names = tuple(map(printable, part.classes))
        images = ImageSet(pixels, part.labels, names, paths=part.paths)
    else:
        images, good = part, torch.ones(len(part), dtype=torch.bool)
    counts = None if images.labels is None else torch.bincount(images.labels, minlength=len(images.classes))
    identity = part_hash(part, data, name)
    return dataclasses.replace(images, name=f"{data.source}/{name}", counts=counts, hash=identity), good


def part_hash(part: Part, data: DataConfig, name: str) -> str:
    """Hash which images a part of a source has, of a listing those that can be read."""
    if isinstance(part, Listing):
        size = _file_size(data)
        kind = f"{data.source} {name} {size} {data.fit} {[len(part), 3, size, size]}"
        rows = [f"{path}\0{file_size(file)}" for path, file in zip(part.paths, part.files, strict=True)]
        content = "\n".join(rows).encode("utf-8", "surrogateescape")
    else:
        kind = f"{data.source} {name} {list(part.images.shape)}"
        # Labels tell the sets of one source apart without reading the pixels; without labels the pixels have to.
        content = (part.images.numpy() if part.labels is None else part.labels.numpy().astype("<i8")).tobytes()
    return short_hash(kind.encode(), content)


def _file_size(data: DataConfig) -> int:
    return data.image_size or getattr(SOURCES[data.source], "image_size", 64)


# --------------------------------------------------------------------------------------------------- arrays of pixels


@facts(classes=tuple("0123456789"), fixed=True)
def digits(data: DataConfig) -> tuple[ImageSet, None]:
    """Read scikit-learn's 1,797 digits, 8x8, 17 grey levels spread over 0 to 255; no official test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.from_numpy(found.images).mul(255 / 16).round().to(torch.uint8)[:, None]  # [n, 1, 8, 8]
    return ImageSet(pixels, torch.from_numpy(found.target).long(), digits.classes), None


@facts(
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    fixed=True,
)
def fashion_mnist(data: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Read Fashion-MNIST (Xiao et al. 2017), 28x28: 60,000 and 10,000 images, from its four idx files."""
    apt = "sudo apt install dataset-fashion-mnist        (Debian, Ubuntu), or\n  "
    with _files_of("FashionMNIST", "train-images-idx3-ubyte*", data, DEBIAN_FASHION, apt) as folder:
        pairs = [
            (_read_idx(folder, f"{part}-images-idx3-ubyte"), _read_idx(folder, f"{part}-labels-idx1-ubyte"))
            for part in ("train", "t10k")
        ]
    train, test = (ImageSet(pixels[:, None], labels.long(), fashion_mnist.classes) for pixels, labels in pairs)
    return train, test


@facts(
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    n_max={"sdclr": 4500, "ldam": 5000},
    fixed=True,
)
def cifar10(data: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Read CIFAR-10 (Krizhevsky 2009), 32x32: 50,000 and 10,000 images."""
    return _cifar("CIFAR10", data)


@facts(classes=NUMBERS, n_max={"sdclr": 450, "ldam": 500}, fixed=True)
def cifar100(data: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Read CIFAR-100 (Krizhevsky 2009), 32x32: 50,000 and 10,000 images."""
    return _cifar("CIFAR100", data)


def _cifar(kind: str, data: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Read the python version of CIFAR through torchvision, which verifies the files."""
    from torchvision import datasets

    reader = getattr(datasets, kind)
    with _files_of(kind, reader.base_folder, data) as place:
        parts = [reader(str(place), train=part) for part in (True, False)]
    train, test = (
        ImageSet(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets, dtype=torch.int64),
            tuple(part.classes),
        )
        for part in parts
    )
    return train, test


@contextlib.contextmanager
def _files_of(kind: str, marker: str, data: DataConfig, usual: Path | None = None, hint: str = "") -> Iterator[Path]:
    """Find the folder of one of torchvision's data sets by a file in it, or download the set, for the files to be read.

    Raises ConfigError, with the command that gets the data, if they are not in the user's `data.root`, if the download
    fails, or if the files that were found cannot be read.
    """
    from torchvision import datasets

    places = [Path(data.root).expanduser()] if data.root else [usual, Path("data"), cache_folder(data.cache)]
    places = [place for place in places if place]
    folders = [place / inner for place in places for inner in ("", f"{kind}/raw", "raw")]
    command = f'{hint}python -c "from torchvision.datasets import {kind}; {kind}({str(places[-1])!r}, download=True)"'
    if not any(any(folder.glob(marker)) for folder in folders):
        if data.root:
            raise missing_data(kind, places, command)
        try:
            places[-1].mkdir(parents=True, exist_ok=True)
            with FileLock(places[-1] / f".{kind}.lock"):  # of several processes one downloads, and the others wait
                if not any(any(folder.glob(marker)) for folder in folders):
                    getattr(datasets, kind)(str(places[-1]), download=True)
        except (OSError, RuntimeError) as error:
            raise missing_data(kind, places, command, f"and the download failed: {error}") from error
    folder = next(folder for folder in folders if any(folder.glob(marker)))
    try:
        yield folder
    except (OSError, EOFError, LookupError, RuntimeError, ValueError, zlib.error) as error:
        raise missing_data(f"readable {kind}", [folder], command, error) from error


def _read_idx(folder: Path, name: str) -> UInt8[Tensor, "..."]:
    """Read LeCun's idx format: 0, 0, 8 (bytes), number of dimensions, their sizes (big-endian uint32), the data."""
    zipped = folder / f"{name}.gz"
    raw = gzip.decompress(zipped.read_bytes()) if zipped.is_file() else (folder / name).read_bytes()
    start = 4 + 4 * raw[3]
    shape = np.frombuffer(raw[4:start], ">u4")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy())


# ---------------------------------------------------------------------------------------------------- folders of files


@facts(classes=NUMBERS, image_size=256)
def imagenet100(data: DataConfig) -> tuple[Listing, Listing]:
    """List ImageNet-100: folders train/ and val/ with 100 classes, or ImageNet's 1000 with a list that names 100."""
    root = Path(data.root).expanduser()
    if not data.root or not (root / "train").is_dir() or not (root / "val").is_dir():
        command = (
            "python -c \"from torchvision.datasets import ImageNet as I; [I('FOLDER', s) for s in ('train', 'val')]\"\n"
            "  (unpacks the archives that image-net.org gives to registered users; then set data.root=FOLDER)"
        )
        raise missing_data("folders train/ and val/ of ImageNet", [data.root or "''"], command)
    return list_folder(root / "train"), list_folder(root / "val")


def folder(data: DataConfig) -> tuple[Listing, Listing | None]:
    """List a folder of images, one sub-folder a class, or none; or its parts train/ and test/ (or val/, ...).

    Parts are known by name, in small or capital letters; folders that hold no images do not count. Where one folder
    alone holds images, all of them in folders, these are meant: unpacking an archive leaves such a folder around them.
    """
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
        command = "--set data.root=FOLDER   (one sub-folder for each class, or none)"
        command = "sudo apt install openclipart-png" if "openclipart" in data.root else command
        raise missing_data("folder of images", [data.root or "''"], command)
    found = _unwrapped(list_folder(root))
    trains, tests = ([name for name in found.classes if name.lower() in names] for names in (TRAINED, JUDGED))
    if not trains and not tests:
        return found, None
    others = [name for name in found.classes if name not in (*trains, *tests)]
    if len(trains) != 1 or others:
        beside = f"and others ({', '.join(others[:3])})" if others else "but no single train/"
        raise ConfigError(
            f"data.root = {data.root!r} holds folders called like parts ({', '.join(trains + tests)}) {beside}: leave "
            "only train/ and test/ (or val/) with images there, or set data.root to the folder with the folders of "
            "classes; a class that is called so has to be renamed"
        )
    train = list_part(found, trains[0])
    parts = [list_part(found, name) for name in sorted(tests, key=lambda name: JUDGED.index(name.lower()))]
    return train, max(parts, key=lambda part: bool(set(part.classes) & set(train.classes)), default=None)


def _unwrapped(found: Listing) -> Listing:
    """Return the listing of what lies in the only folder, as long as there is one that holds folders of images only."""
    while len(found.classes) == 1 and found.classes[0].lower() not in (*TRAINED, *JUDGED):
        if any("/" not in path.partition("/")[2] for path in found.paths):
            break
        found = list_part(found, found.classes[0])
        log.info("taken is what lies in %s, the only folder with images", found.root)
    return found


# ----------------------------------------------------------------------------------------------------- published lists


def read_index_file(path: str | Path, n: int) -> Bool[Tensor, "n"]:
    """Read which of `n` images a published `.npy` list of int64 indices names.

    Raises ConfigError where the file cannot be read, is no list of whole numbers, leaves 0..n-1, or repeats an image.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"data.list_file = {str(path)!r} cannot be read as .npy: {error}") from error
    whole = isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "iu" and len(array) > 0
    _check_list(whole, path, "does not hold one row of whole numbers")
    low, high = int(array.min()), int(array.max())
    _check_list(low >= 0 and high < n, path, f"holds indices from {low} to {high}; the source has 0 to {n - 1}")
    copies = torch.bincount(torch.from_numpy(array.astype(np.int64)), minlength=n)
    repeated = (copies > 1).nonzero()[:, 0].tolist()
    _check_list(not repeated, path, f"repeats {len(repeated)} indices, the first is {repeated[:1]}")
    return copies > 0


def read_path_file(path: str | Path) -> tuple[list[str], list[int]]:
    """Read the paths and labels of a published `.txt` list, one 'path label' a line.

    Raises ConfigError where a line has another form, a path is repeated, or labels are not 0, 1, ... without a gap.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.list_file = {str(path)!r} cannot be read: {error}") from error
    rows = {number: line.strip().rpartition(" ") for number, line in enumerate(lines, 1) if line.strip()}
    _check_list(len(rows) > 0, path, "is empty")
    for number, (name, _, label) in rows.items():
        good = name and label.isascii() and label.isdigit()
        _check_list(bool(good), path, f"line {number} is not 'path label', with a label from 0")
    paths, labels = [name.strip() for name, _, _ in rows.values()], [int(label) for *_, label in rows.values()]
    repeats, gaps = len(paths) - len(set(paths)), set(range(len(set(labels)))) - set(labels)
    _check_list(repeats == 0, path, f"repeats {repeats} paths")
    _check_list(not gaps, path, f"has labels up to {max(labels)}, but no image of {sorted(gaps)[:5]}")
    return paths, labels


def match_list(listing: Listing, list_file: str) -> tuple[Listing, Bool[Tensor, "n"]]:
    """Return the listing with the classes of a published list, numbered as there, and which of its files it names.

    Raises ConfigError where a file of the list does not exist, or its labels and folders do not fit each other.
    """
    paths, labels = read_path_file(list_file)
    _check_list(listing.labels is not None, list_file, f"has labels, but {listing.root} has no folders of classes")
    rows = {path: row for row, path in enumerate(listing.paths)}
    # Lists often name the tree's top folder, which `listing.root` is.
    index = torch.tensor([rows.get(path, rows.get(path.partition("/")[2], -1)) for path in paths])
    absent = [path for path, row in zip(paths, index.tolist()) if row < 0]
    _check_list(not absent, list_file, f": {len(absent)} files are not in {listing.root}, e.g. {absent[:1]}")
    pairs = torch.unique(torch.stack([torch.tensor(labels), listing.labels[index]], 1), dim=0)  # [C, 2] label, folder
    one_to_one = len(pairs) == len(pairs[:, 0].unique()) == len(pairs[:, 1].unique())
    _check_list(one_to_one, list_file, ": a label belongs to two folders, or a folder has two labels")
    listed = torch.isin(torch.arange(len(listing)), index)
    kept = torch.isin(listing.labels, pairs[:, 1])
    return listing.of_classes(tuple(listing.classes[c] for c in pairs[:, 1].tolist())), listed[kept]


def _check_list(ok: bool, path: str | Path, what: str) -> None:
    if not ok:
        raise ConfigError(f"data.list_file = {str(path)!r} {what}")
