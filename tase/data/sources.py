"""The sources: digits, Fashion-MNIST, CIFAR, ImageNet-100, and any folder of images."""

from __future__ import annotations

import dataclasses
import gzip
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from ..config import SOURCES, ConfigError, DataConfig, check, check_choice, unknown
from ._cache import cache_folder, decode_folder, known_bad
from ._folders import Listing, list_folder, match_list
from ._rules import read_index_file, read_path_file
from ._sets import ImageSet, check_labels, short_hash

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
# Classes known without the data. CIFAR-100 and ImageNet-100 by number, until their data are read.
CLASSES: dict[str, tuple[str, ...]] = {
    "digits": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(str(c) for c in range(100)),
    "imagenet100": tuple(str(c) for c in range(100)),
}
SIZES = {"digits": 8, "fashion-mnist": 28, "cifar10": 32, "cifar100": 32}
FILE_SIZES = {"folder": 64, "imagenet100": 256}  # where data.image_size is 0


@dataclass(frozen=True)
class Source:
    """All training images, the official test images where there are any, and which images a published list names."""

    train: ImageSet
    test: ImageSet | None
    listed: Bool[Tensor, "n"] | None


def load_images(source: str, root: str = "", **fields) -> ImageSet:
    """All training images of a source, with their labels where it has labels, as an ImageSet (uint8 [n, c, h, w]).

    `source` is one of config.SOURCES, `root` the folder of its data (empty: its usual place), `fields` are others of
    section `data` of the configuration, such as image_size (pixels), fit, on_bad_image, cache. A flat folder of images
    has no labels. Raises ConfigError for unknown names, and for data that are missing, with the command that gets them.
    """
    known = {f.name for f in dataclasses.fields(DataConfig)}
    for name in fields:
        if name not in known:
            raise unknown("field", f"data.{name}", [f"data.{k}" for k in known])
    check_choice("data.source", source, SOURCES)
    data = DataConfig(**{"source": source, "root": str(root), "rule": "none", **fields})
    return dataclasses.replace(load_source(data).train, group_rule=data.groups)


def load_source(data: DataConfig) -> Source:
    """Everything a source holds. Raises ConfigError for data that are missing or broken."""
    if data.source in FILE_SIZES:
        return _folder_source(data)
    check(data.image_size in (0, SIZES[data.source]), "data.image_size", data.image_size, f"0, or {SIZES[data.source]}")
    read = {"digits": _digits, "fashion-mnist": _fashion, "cifar10": _cifar, "cifar100": _cifar}[data.source]
    (images, labels), test, classes = read(data)
    train = _image_set(data, images, labels, classes, "train")
    listed = read_index_file(data.list_file, len(train)) if data.rule == "file" else None
    return Source(train, None if test is None else _image_set(data, *test, classes, "test"), listed)


def list_source(data: DataConfig) -> tuple[Int64[Tensor, "n"], tuple[str, ...], bool, Bool[Tensor, "n"] | None]:
    """Labels, classes, whether there is an official test, and the listed images, without decoding files.

    Files known from an earlier decoding to be unreadable are left out where `data.on_bad_image` is skip.
    """
    if data.source not in FILE_SIZES:
        source = load_source(data)
        return source.train.labels, source.train.classes, source.test is not None, source.listed
    listing, test, listed = _listings(data)
    good = torch.ones(len(listing.paths), dtype=torch.bool)
    if data.on_bad_image == "skip":
        good[known_bad(listing.files, _file_size(data), data.fit, cache_folder(data.cache))] = False
    labels = torch.zeros(len(good), dtype=torch.int64) if listing.labels is None else listing.labels
    return labels[good], listing.classes, test is not None, None if listed is None else listed[good]


def _image_set(data: DataConfig, images: Tensor, labels: Tensor, classes: tuple[str, ...], part: str) -> ImageSet:
    try:
        check_labels(labels, len(images), len(classes))
    except ValueError as error:
        raise ConfigError(f"data.root = {data.root!r} holds broken data of '{data.source}': {error}") from error
    facts = f"{data.source} {part} {list(images.shape)}".encode()
    return ImageSet(
        images=images,
        labels=labels,
        classes=classes,
        counts=torch.bincount(labels, minlength=len(classes)),
        hash=short_hash(facts, labels.numpy().astype("<i8").tobytes()),
        name=f"{data.source}/{part}",
    )


def _digits(data: DataConfig):
    """scikit-learn's 1,797 digits, 8x8, 17 grey levels spread over 0 to 255; no official test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    return (images, torch.from_numpy(digits.target).long()), None, CLASSES["digits"]


def _missing(what: str, looked: list[Path], command: str, why: object = "") -> ConfigError:
    places = ", ".join(str(place) for place in looked)
    reason = f" ({why})" if why else ""
    return ConfigError(f"data.root: no {what} in {places}{reason}; get the data with:\n  {command}")


def _fashion(data: DataConfig):
    """Fashion-MNIST (Xiao et al. 2017), 28x28: 60,000 and 10,000 images, from the four idx files."""
    home = cache_folder(data.cache)
    roots = [Path(data.root).expanduser()] if data.root else [DEBIAN_FASHION, Path("data"), home]
    folders = [root / sub for root in roots for sub in ("", "FashionMNIST/raw", "raw")]
    found = next((f for f in folders if _idx_file(f, "train-images-idx3-ubyte")), None)
    target = roots[-1]
    command = (
        "sudo apt install dataset-fashion-mnist        (Debian, Ubuntu), or\n  "
        f'python -c "from torchvision.datasets import FashionMNIST; FashionMNIST({str(target)!r}, download=True)"'
    )
    if found is None and not data.root:
        found = _download_fashion(target, roots, command)
    if found is None:
        raise _missing("Fashion-MNIST", roots, command)
    try:
        images = [_read_idx(found, f"{part}-images-idx3-ubyte")[:, None] for part in ("train", "t10k")]
        labels = [_read_idx(found, f"{part}-labels-idx1-ubyte").long() for part in ("train", "t10k")]
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise _missing("readable Fashion-MNIST", [found], command, error) from error
    return (images[0], labels[0]), (images[1], labels[1]), CLASSES["fashion-mnist"]


def _download_fashion(target: Path, roots: list[Path], command: str) -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(target), download=True)
    except (OSError, RuntimeError) as error:
        raise _missing("Fashion-MNIST", roots, command, f"and the download failed: {error}") from error
    return target / "FashionMNIST/raw"


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / f"{name}.gz", folder / name) if f.is_file()), None)


def _read_idx(folder: Path, name: str) -> UInt8[Tensor, "..."]:
    """A file in LeCun's idx format of unsigned bytes: 0, 0, 8, dimensions, their sizes (big-endian), the bytes."""
    import numpy as np

    path = _idx_file(folder, name)
    if path is None:
        raise FileNotFoundError(f"no {name} or {name}.gz")
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        raw = file.read()
    zero, kind, dims = struct.unpack(">HBB", raw[:4])
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    body = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims)
    if (zero, kind) != (0, 8) or body.size != int(np.prod(shape)):
        raise ValueError(f"{path.name} is no whole idx file of bytes")
    return torch.from_numpy(body.reshape(shape).copy())


def _cifar(data: DataConfig):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), 32x32, through torchvision, which verifies the files."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data.source]
    home = cache_folder(data.cache)
    roots = [Path(data.root).expanduser()] if data.root else [Path("data"), home]
    root = next((r for r in roots if (r / kind.base_folder).is_dir()), None)
    target = str(root or roots[-1])
    command = (
        f'python -c "from torchvision.datasets import {kind.__name__}; {kind.__name__}({target!r}, download=True)"'
    )
    if root is None and data.root:
        raise _missing(kind.__name__, roots, command)
    try:
        train, test = (kind(target, train=t, download=root is None) for t in (True, False))
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _missing(f"whole {kind.__name__}", roots, command, error) from error
    return _channels_first(train), _channels_first(test), tuple(train.classes)


def _channels_first(part) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(part.targets, dtype=torch.int64)


def _file_size(data: DataConfig) -> int:
    return data.image_size or FILE_SIZES[data.source]


def _folder_source(data: DataConfig) -> Source:
    listing, test, listed = _listings(data)
    train, good = _decoded(data, listing, "train")
    return Source(
        train=train,
        test=None if test is None else _decoded(data, test, "test")[0],
        listed=None if listed is None else listed[good],
    )


def _decoded(data: DataConfig, listing: Listing, part: str) -> tuple[ImageSet, Bool[Tensor, "n"]]:
    """The files of a listing as images, and which of them could be read (see `data.on_bad_image`)."""
    size, cache = _file_size(data), cache_folder(data.cache)
    images, good = decode_folder(listing.files, size, data.fit, data.on_bad_image, cache)
    if not good.all():
        listing = listing.keep(good)
    labels = listing.labels
    facts = f"{data.source} {part} {size} {data.fit} {list(images.shape)}".encode()
    rows = [f"{path}\0{os.stat(file).st_size}" for path, file in zip(listing.paths, listing.files, strict=True)]
    decoded = ImageSet(
        images=images,
        labels=labels,
        classes=listing.classes,
        counts=None if labels is None else torch.bincount(labels, minlength=len(listing.classes)),
        hash=short_hash(facts, "\n".join(rows).encode("utf-8", "surrogateescape")),
        name=f"{data.source}/{part}",
        paths=listing.paths,
    )
    return decoded, good


def _listings(data: DataConfig) -> tuple[Listing, Listing | None, Bool[Tensor, "n"] | None]:
    """The files to train on, those of the official test, and which of the first a published list names."""
    train_root, test_root = _tree(data)
    train = list_folder(train_root)
    listed = None
    if data.rule == "file" and data.list_file.endswith(".txt"):
        train, listed = match_list(train, *read_path_file(data.list_file), data.list_file)
    elif data.rule == "file":
        listed = read_index_file(data.list_file, len(train.paths))
    if data.source == "imagenet100":
        allowed = (
            f"a tree of 100 classes, or one that holds the 100 of data.list_file; it has {len(train.classes)} classes"
        )
        check(len(train.classes) == 100, "data.root", data.root, allowed)
    test = None if test_root is None else list_folder(test_root).of_classes(train.classes)
    return train, test, listed


def _tree(data: DataConfig) -> tuple[Path, Path | None]:
    """The folder of the training images, and that of the official test where there are train/ and test/ or val/."""
    root = Path(data.root).expanduser()
    if data.source == "imagenet100":
        command = (
            "python -c \"from torchvision.datasets import ImageNet as I; [I('FOLDER', s) for s in ('train', 'val')]\"\n"
            "  (unpacks the archives that image-net.org gives to registered users; then set data.root=FOLDER)"
        )
        if not data.root or not (root / "train").is_dir() or not (root / "val").is_dir():
            raise _missing("folders train/ and val/ of ImageNet", [root] if data.root else [Path("''")], command)
        return root / "train", root / "val"
    if not data.root or not root.is_dir():
        debian = "openclipart" in data.root
        command = (
            "sudo apt install openclipart-png"
            if debian
            else "--set data.root=FOLDER   (one sub-folder for each class, or none)"
        )
        raise _missing("folder of images", [root] if data.root else [Path("''")], command)
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    others = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")} - {"train", "test", "val"}
    if tests and not others and (root / "train").is_dir():
        return root / "train", tests[0]
    return root, None
