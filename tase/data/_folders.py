"""Which image files lie in a folder, and of which class each is."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..config import ConfigError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".ico")
)
log = logging.getLogger("tase")


@dataclass(frozen=True)
class Listing:
    """Image files below `root`, sorted by name, their classes' ids (None in a flat folder), and the classes' names."""

    root: Path
    paths: tuple[str, ...]
    labels: Int64[Tensor, "n"] | None
    classes: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        return [os.path.join(self.root, path) for path in self.paths]

    def keep(self, mask: Bool[Tensor, "n"]) -> Listing:
        """Only the files of the mask; the classes stay."""
        paths = tuple(path for path, kept in zip(self.paths, mask.tolist(), strict=True) if kept)
        return Listing(self.root, paths, None if self.labels is None else self.labels[mask], self.classes)

    def of_classes(self, classes: tuple[str, ...]) -> Listing:
        """Only the files of these classes, which become ids in this order; ConfigError where one has no files here."""
        missing = sorted(set(classes) - set(self.classes))
        if missing:
            raise ConfigError(f"data.root: {self.root} has no images of class {', '.join(missing[:5])}")
        ids = torch.full((len(self.classes),), -1)
        ids[[self.classes.index(name) for name in classes]] = torch.arange(len(classes))
        labels = ids[self.labels]
        return Listing(self.root, self.paths, labels, classes).keep(labels >= 0)


def list_folder(root: Path) -> Listing:
    """The image files below `root`: a class is a folder directly in it, with all that is nested there.

    Links are followed, but a file counts once, under its own name where that is below `root`: else the same image could
    be trained on and tested. A folder without sub-folders that hold images has no labels. Files whose name is not that
    of an image are passed over. Raises ConfigError where a folder cannot be read or there is no image at all.
    """
    every, passed = _walk(root)
    paths = _once(root, every)
    if len(paths) < len(every):
        log.info("%s: %d files are links to others of them and are left out", root, len(every) - len(paths))
    nested = [path for path in paths if "/" in path]
    loose = len(paths) - len(nested)
    if nested and loose:
        log.warning("%s: %d images lie in no class folder and are left out", root, loose)
    if passed:
        log.info("%s: %d files whose names are not those of images are passed over", root, passed)
    if not paths:
        raise ConfigError(f"data.root = {str(root)!r} holds no image files ({', '.join(sorted(SUFFIXES))})")
    if not nested:
        return Listing(root, tuple(paths), None, ())
    tops = [path.partition("/")[0] for path in nested]
    classes = tuple(sorted(set(tops)))
    ids = {name: c for c, name in enumerate(classes)}
    return Listing(root, tuple(nested), torch.tensor([ids[top] for top in tops]), classes)


def _walk(root: Path) -> tuple[list[str], int]:
    """Paths of the image files, relative to `root` with '/', sorted; and how many other files there are."""

    def stop(error: OSError):
        raise ConfigError(f"data.root: {error.filename} cannot be read: {error.strerror}") from error

    paths, passed, seen = [], 0, set()
    for folder, subs, names in os.walk(root, onerror=stop, followlinks=True):
        place = os.path.realpath(folder)
        subs[:] = [] if place in seen else [s for s in subs if not s.startswith(".")]
        if place in seen:
            continue  # a link back to a folder above, or a second way to the same one
        seen.add(place)
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        images = [n for n in names if os.path.splitext(n)[1].lower() in SUFFIXES and not n.startswith(".")]
        passed += len(names) - len(images)
        paths += [prefix + name for name in images]
    return sorted(paths), passed


def _once(root: Path, paths: list[str]) -> list[str]:
    """The paths without those that lead to a file that another one leads to."""
    places = {folder: os.path.realpath(os.path.join(root, folder)) for folder in {os.path.dirname(p) for p in paths}}
    real = {path: os.path.join(places[os.path.dirname(path)], os.path.basename(path)) for path in paths}
    real |= {path: os.path.realpath(file) for path, file in real.items() if os.path.islink(file)}
    top = os.path.realpath(root)
    first = {real[path]: path for path in reversed(paths)}
    first |= {file: path for path, file in real.items() if file == os.path.join(top, *path.split("/"))}
    return [path for path in paths if first[real[path]] == path]


def match_list(
    listing: Listing, paths: list[str], labels: list[int], list_file: str
) -> tuple[Listing, Bool[Tensor, "n"]]:
    """The listing with the classes of a published list, numbered as there, and which of its files the list names.

    Raises ConfigError where a file of the list does not exist, or its labels and folders do not fit each other.
    """
    if listing.labels is None:
        raise ConfigError(f"data.list_file = {list_file!r} has labels, but {listing.root} has no folders of classes")
    place = {path: i for i, path in enumerate(listing.paths)}
    rows = [place.get(path, place.get(path.partition("/")[2], -1)) for path in paths]
    absent = [path for path, row in zip(paths, rows, strict=True) if row < 0]
    if absent:
        raise ConfigError(
            f"data.list_file = {list_file!r}: {len(absent)} files are not in {listing.root}, e.g. {absent[0]}"
        )
    index, given = torch.tensor(rows), torch.tensor(labels)
    pairs = torch.unique(torch.stack([given, listing.labels[index]], 1), dim=0)
    if len(pairs) != len(pairs[:, 0].unique()) or len(pairs) != len(pairs[:, 1].unique()):
        raise ConfigError(f"data.list_file = {list_file!r}: a label belongs to two folders, or a folder has two labels")
    listed = torch.zeros(len(listing.paths), dtype=torch.bool)
    listed[index] = True
    kept = torch.isin(listing.labels, pairs[:, 1])
    return listing.of_classes(tuple(listing.classes[c] for c in pairs[:, 1].tolist())), listed[kept]
