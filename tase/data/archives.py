"""Images that lie in larger files: Hugging Face datasets (`hf`) and WebDataset tar shards (`wds`).

    tase train --preset folder --set data.source=hf data.root=uoft-cs/cifar10          # a name on the hub
    tase train --preset folder --set data.source=hf data.root=./parquet                # files of one's own
    tase train --preset folder --set data.source=wds data.root='shards/train-{000..015}.tar'

Both are read once into the cache of decoded images, as folders are (folders.py), with labels and class names; what is
damaged or missing is named before anything is written. `hf` needs the extra `hub` (pip install 'tase[hub]'); tar shards
are read with Python alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config import ConfigError, DataConfig, check, is_hub_name, unknown
from ..files import RunError, write_atomic
from ..options import log, package
from .folders import SUFFIXES, Listing, cache_folder
from .sets import short_hash
from .sources import JUDGED, TRAINED, missing_data

if TYPE_CHECKING:
    from datasets import Dataset

LABELS = ("cls", "json", "txt")  # extensions of a sample's label, the first that holds one counts
LABEL_KEYS = ("label", "class", "class_name", "cls")  # where a sample's JSON has it


def listing_of(archive: Any, root: Path, paths: Sequence[str], labels: Sequence[int | str] | None, names=()) -> Listing:
    """List the images of an archive; labels are class ids into `names`, or values of which each is a class."""
    rows = torch.arange(len(paths))
    if labels is None:
        return Listing(root, tuple(paths), None, (), archive, rows)
    kinds = sorted(set(labels))
    classes = tuple(names) or tuple(str(kind) for kind in kinds)
    ids = range(len(names)) if names else {kind: number for number, kind in enumerate(kinds)}
    wrong = [kind for kind in kinds if names and kind not in ids]
    check(not wrong, "data.root", str(root), f"data with labels from 0 to {len(names) - 1}: one is {wrong[:1]}")
    return Listing(root, tuple(paths), torch.tensor([ids[label] for label in labels]), classes, archive, rows)


# ------------------------------------------------------------------------------------------------ Hugging Face datasets


class DatasetImages:
    """The images of a column of a dataset, each as the bytes of its file, or where that lies."""

    def __init__(self, data: Dataset, column: str):
        import pyarrow.compute as pc
        from datasets import Image

        self.data, self.column = data.select_columns([column]).cast_column(column, Image(decode=False)), column
        self.stamp = data._fingerprint  # changes with the files, and is the same in every process
        cells = self.data.data.column(column)
        self.places = pc.struct_field(cells, "path").to_pylist()
        lengths = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
        # A row without an image is one that cannot be read.
        self.sizes = [os.path.getsize(p) if n is None and p else n or 0 for n, p in zip(lengths, self.places)]
        self.inside = [n is not None or not p for n, p in zip(lengths, self.places)]

    def read(self, row: int) -> bytes:
        if not self.inside[row]:
            return Path(self.places[row]).read_bytes()
        return (self.data[row][self.column] or {}).get("bytes") or b""


def hf(data: DataConfig) -> tuple[Listing, Listing | None]:
    """Read a Hugging Face dataset: NAME, NAME:CONFIG or NAME@REVISION of the hub, or a folder (from ./, ~ or /).

    A folder holds Parquet files, images in folders of classes (imagefolder), or what `save_to_disk` wrote.
    """
    parts = _load_dataset(data)
    train = "train" if "train" in parts else next(iter(parts)) if len(parts) == 1 else ""
    if not train:
        raise unknown(f"part of {data.root}", "train", parts)
    listed = _list_rows(parts[train], data, train)
    judged = [name for name in JUDGED if name in parts and name != train and listed.labels is not None]
    tests = (_list_rows(parts[name], data, name) for name in judged)
    return listed, next((test for test in tests if test.labels is not None), None)


def _load_dataset(data: DataConfig) -> dict[str, Dataset]:
    """Load all parts of a dataset by their names; downloads and copies lie below the cache."""
    datasets = package("datasets", "data.source = 'hf'", "hub")
    place, keep = os.path.expanduser(data.root), str(cache_folder(data.cache) / "hub")
    name, _, revision = data.root.partition("@")
    name, _, config = name.partition(":")
    if not is_hub_name(data.root):
        _check_parquet(place, data)
    try:
        if is_hub_name(data.root):
            found = datasets.load_dataset(name, config or None, revision=revision or None, cache_dir=keep)
        elif {"dataset_dict.json", "state.json"} & set(os.listdir(place)):
            found = datasets.load_from_disk(place)
        else:
            found = datasets.load_dataset(place, cache_dir=keep)
    except Exception as error:  # of the hub, of the files, of each format
        reason = error.__cause__ or error if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        why = " ".join(str(reason).split())
        raise ConfigError(f"data.root = {data.root!r} cannot be read as a Hugging Face dataset: {why}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _check_parquet(place: str, data: DataConfig) -> None:
    """Raise ConfigError with the name of a Parquet file that is missing or damaged."""
    import pyarrow.parquet

    if not data.root or not os.path.isdir(place):
        raise missing_data("dataset", [data.root or "''"], "--set data.root=NAME   (of huggingface.co/datasets)")
    files = sorted(Path(place).rglob("*.parquet"))
    check_shards(files)
    for file in files:
        try:
            pyarrow.parquet.read_metadata(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise ConfigError(f"data.root: {file} is cut off, damaged, or no Parquet: {error}") from error


def _list_rows(part: Dataset, data: DataConfig, name: str) -> Listing:
    image, label = _columns(part, data)
    rows = DatasetImages(part, image)
    top = Path(os.path.expanduser(data.root))
    hub = is_hub_name(data.root)  # its files lie somewhere in the cache
    paths = [
        f"{name}/{row:07d}" if hub or rows.inside[row] else os.path.relpath(place, top)
        for row, place in enumerate(rows.places)
    ]
    labels = part.with_format(None)[label][:] if label else None
    if labels is not None:
        check(None not in labels, "data.root", data.root, f"data with a '{label}' in every row of '{name}'")
        labels = None if set(labels) == {-1} else labels  # so tests are published whose labels are kept back
    return listing_of(rows, top, paths, labels, getattr(part.features[label], "names", ()) if label else ())


def _columns(part: Dataset, data: DataConfig) -> tuple[str, str | None]:
    """Return the columns of images and of labels (None: there is none): `data.columns`, or those of that kind."""
    import datasets

    kinds = part.features
    for column in data.columns:
        if column not in kinds:
            raise unknown(f"column of {data.root}", column, kinds)
    images = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in ("label", "labels") if name in kinds]
    image, label = (*data.columns, None, None)[:2]
    image = image or (images[0] if len(images) == 1 else None)
    label = label or (labels[0] if len(labels) == 1 and len(data.columns) < 2 else None)
    several = "IMAGES,LABELS: there are " + ", ".join(f"{name} ({_kind(kind)})" for name, kind in kinds.items())
    check(image in images and (label or not labels), "data.columns", data.columns, several)
    sound = (
        label is None or isinstance(kinds[label], datasets.ClassLabel) or re.match("u?int|string", _kind(kinds[label]))
    )
    check(bool(sound), "data.columns", data.columns, f"a label of class, whole number or text; {several[16:]}")
    return image, label


def _kind(feature: Any) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__


# ------------------------------------------------------------------------------------------------ WebDataset tar shards


class TarImages:
    """Images in uncompressed tar files: which file, from which byte, how many."""

    def __init__(self, tars: Sequence[Path], members: Sequence[tuple[int, int, int]]):
        self.tars, self.members = tars, np.array(members, dtype=np.int64).reshape(-1, 3)
        self.sizes = self.members[:, 2].tolist()
        self.stamp = [(os.stat(tar).st_size, os.stat(tar).st_mtime_ns) for tar in tars]

    def read(self, row: int) -> bytes:
        number, offset, size = self.members[row].tolist()
        with open(self.tars[number], "rb") as file:
            file.seek(offset)
            return file.read(size)


def wds(data: DataConfig) -> tuple[Listing, Listing | None]:
    """List the samples of tar shards: KEY.jpg (or another image) with KEY.cls, .json or .txt as label, or none.

    JSON without a label is passed over, and texts that are more than half as many as the images are captions: no label.
    `data.root` is a folder, a file, or files as {000..015}. Shards that are named or lie in a folder test (or val) are
    test images. A file classes.txt next to the shards names the classes of whole numbers, one a line.
    """
    tars = _shards(data)
    check_shards(tars)
    part = {tar: _part_of(tar) for tar in tars}
    judged = next((p for p in JUDGED if p in part.values()), None)
    train = _list_tars([tar for tar in tars if not part[tar]] or tars, data, captions=True)
    test = None
    if judged and any(not p for p in part.values()) and train.labels is not None:
        test = _list_tars([tar for tar in tars if part[tar] == judged], data)
    return train, test


def _part_of(tar: Path) -> str:
    """Return the name of the part of test images that a shard belongs to, "" for those that are trained on."""
    words = {tar.parent.name.lower(), *re.findall("[a-z]+", tar.stem.lower())}
    return "" if words & set(TRAINED) else next((name for name in JUDGED if name in words), "")


def _shards(data: DataConfig) -> list[Path]:
    """Return the tar files that `data.root` means."""
    root = os.path.expanduser(data.root)
    if found := re.search(r"\{(\d+)\.\.(\d+)\}", root):
        first, last = found.groups()
        numbers = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
        return [Path(root[: found.start()] + number + root[found.end() :]) for number in numbers]
    tars = sorted(Path(root).rglob("*.tar")) if root and os.path.isdir(root) else [Path(root)] if root else []
    if not tars or not tars[0].exists():
        raise missing_data("tar shards", [data.root or "''"], "--set data.root=FOLDER   (or train-{000..015}.tar)")
    return tars


def check_shards(files: Iterable[Path]) -> None:
    """Raise ConfigError with the name of a shard that is missing: of those numbered from 0 on, or as 00000-of-00008."""
    groups: dict[tuple, dict[int, Path]] = {}
    for file in files:
        if not file.is_file():
            raise ConfigError(f"data.root: the shard {file} is missing")
        if found := re.fullmatch(r"(.*?)(\d+)((?:-of-(\d+))?\.\w+)", file.name):
            head, number, tail, of = found.groups()
            groups.setdefault((file.parent, head, len(number), tail, int(of or 0)), {})[int(number)] = file
    for (folder, head, digits, tail, of), there in groups.items():
        numbers = range(of) if of else range(max(there) + 1) if min(there) == 0 else ()
        for number in numbers:
            if number not in there:
                raise ConfigError(f"data.root: the shard {folder / f'{head}{number:0{digits}d}{tail}'} is missing")


def _list_tars(tars: list[Path], data: DataConfig, captions: bool = False) -> Listing:
    """List the images of tar files in their order; `captions`: look whether texts are these, and no classes."""
    paths, members, labels, kinds = [], [], [], []
    for number, tar in enumerate(tars):
        for name, offset, size, label, kind in _indexed(tar, data):
            paths.append(f"{tar.name}/{name}")
            members.append((number, offset, size))
            labels.append(label)
            kinds.append(kind)
    if not paths:
        raise ConfigError(f"data.root: {tars[0]} holds no image files ({', '.join(sorted(SUFFIXES))})")
    texts = [label for label, kind in zip(labels, kinds) if kind == "txt"]
    if captions and 2 * len(set(texts)) > len(texts):
        found = "%s: %d of %d .txt differ, so they are taken for captions, and not for names of classes"
        log.warning(found, tars[0].parent, len(set(texts)), len(texts))
        labels = [None if kind == "txt" else label for label, kind in zip(labels, kinds)]
    named = sum(label is not None for label in labels)
    if 0 < named < len(labels):
        places = f".cls, .txt, or {', '.join(LABEL_KEYS)} in .json"
        raise ConfigError(f"data.root: {paths[labels.index(None)]} has no label ({places}), but others have")
    if len({type(label) for label in labels}) > 1:
        raise ConfigError(f"data.root: some labels of {tars[0].parent} are numbers and some are texts")
    listed = tars[0].with_name("classes.txt")
    names = listed.read_text().split("\n") if listed.is_file() and named and isinstance(labels[0], int) else []
    names = [name.strip() for name in names if name.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"data.root: {listed} names '{twice[0]}' twice; each line is a class of its own")
    return listing_of(TarImages(tars, members), tars[0].parent, paths, labels if named else None, names)


Sample = tuple[str, int, int, int | str | None, str | None]  # name, first byte, bytes, label, its file's extension


def _indexed(tar: Path, data: DataConfig) -> list[Sample]:
    """Return the samples of a tar file, from <cache>/tars where it has been read before: a million take minutes."""
    stat = os.stat(tar)
    form = 2  # of what is kept
    key = short_hash(f"{form}\0{tar.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{data.columns}".encode())
    kept = cache_folder(data.cache) / "tars" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(kept.read_text())
    found = list(_samples(tar, data))
    with contextlib.suppress(OSError, RunError):  # a cache that cannot be written is an error where images are decoded
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, json.dumps(found).encode())
    return found


def _samples(tar: Path, data: DataConfig) -> Iterable[Sample]:
    """Yield the images of a tar file with their labels, in their order."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                if member.isfile() and key:
                    samples.setdefault(f"{folder}/{key}".lstrip("./"), {})[extension.lower()] = member
            with open(tar, "rb") as raw:
                raw.seek(file.offset)  # a file cut off between two members looks whole but for its end, two blocks of 0
                if len(raw.read(512)) < 512:
                    raise tarfile.ReadError("it has no end")
            for key, members in samples.items():
                image = next((e for e in members if f".{e.rpartition('.')[2]}" in SUFFIXES), None)
                if image:
                    label = kind = None
                    for kind in (e for e in LABELS if e in members):
                        label = _label(file.extractfile(members[kind]).read(), kind, data, f"{tar}/{key}.{kind}")
                        if label is not None:
                            break
                    yield f"{key}.{image}", members[image].offset_data, members[image].size, label, kind
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"data.root: {tar} is cut off, damaged, compressed, or no tar: {error}") from error


def _label(text: bytes, kind: str, data: DataConfig, name: str) -> int | str | None:
    """Read a sample's label: .cls a whole number, .txt a text, .json either under `data.columns` or a usual key.

    None: JSON without any of these keys tells other things of the image.
    """
    try:
        if kind == "json":
            found = json.loads(text)
            keys = (*data.columns[1:2], *LABEL_KEYS)
            if not data.columns[1:2] and not any(key in found for key in keys):
                return None
            label = next((found[key] for key in keys if key in found), None)
            if not isinstance(label, (int, str)) or isinstance(label, bool):
                raise ValueError(f"no whole number or text under {', '.join(keys)}")
            return label
        return int(text) if kind == "cls" else text.decode().strip()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"data.root: the label {name} cannot be read: {error}") from error
