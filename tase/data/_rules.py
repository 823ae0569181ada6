"""How the tail is made: images per class by rule, draws per class, and published split files."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..config import ConfigError, DataConfig, check

N_MAX = {("sdclr", "cifar10"): 4500, ("sdclr", "cifar100"): 450, ("ldam", "cifar10"): 5000, ("ldam", "cifar100"): 500}


def generator(split: int, purpose: str) -> torch.Generator:
    """The random numbers of one purpose in one split, so that no draw shifts another."""
    seed = hashlib.sha256(f"tase {purpose} {split}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(seed, "little"))


def tail_counts(classes: int, n_max: int, rho: float, profile: str = "exponential") -> Int64[Tensor, "C"]:
    """Images of each class by rank r, head first: n_max (1/rho)^(r/(C-1)), rounded down; `step`: n_max, then n_max/rho.

    The rule of Cui et al. 2019 and Cao et al. 2019 (LDAM). With an odd number of classes the step has one more large
    class.
    """
    if profile == "step":
        shares = [1.0 if 2 * r < classes else 1 / rho for r in range(classes)]
    else:
        shares = [(1 / rho) ** (r / max(classes - 1, 1)) for r in range(classes)]
    # The margin keeps products such as 1280 * (6 / 1280) from falling just below the whole number they are.
    return torch.tensor([math.floor(n_max * share + 1e-9) for share in shares])


def rule_counts(data: DataConfig, split: int, classes: int) -> Int64[Tensor, "C"] | None:
    """Training images of each class *id* that the rule asks for; None for rules `file` and `none`.

    Raises ConfigError where a class would have no images.
    """
    if data.rule in ("file", "none"):
        return None
    n_max = data.n_max or N_MAX.get((data.rule, data.source), 0)
    check(n_max > 0, "data.n_max", data.n_max, f"at least 1: rule '{data.rule}' knows no number for '{data.source}'")
    ranked = tail_counts(classes, n_max, data.rho, data.profile)
    allowed = f"at most n_max = {n_max}: above, a class has no images left"
    check(int(ranked.min()) >= 1, "data.rho", data.rho, allowed)
    counts = torch.empty_like(ranked)
    counts[_class_order(data, split, classes)] = ranked
    return counts


def _class_order(data: DataConfig, split: int, classes: int) -> Int64[Tensor, "C"]:
    """The class of each rank, head first; `ldam` always takes the order of the class ids."""
    if data.order == "id" or data.rule == "ldam":
        return torch.arange(classes)
    return torch.randperm(classes, generator=generator(split, "order of the classes"))


def equal_counts(counts: Int64[Tensor, "C"]) -> Int64[Tensor, "C"]:
    """As many images in all, spread evenly; what does not divide goes to the first classes, one each."""
    total, classes = int(counts.sum()), len(counts)
    return torch.full_like(counts, total // classes) + (torch.arange(classes) < total % classes)


def rank_within_class(labels: Int64[Tensor, "n"], keys: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """Place of each image among those of its class, from 0, by rising key (keys all different)."""
    order = torch.argsort(keys)
    order = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - starts[labels[order]]
    return ranks


def read_index_file(path: str | Path, n: int) -> Bool[Tensor, "n"]:
    """Which of `n` images a published `.npy` list of int64 indices names.

    Raises ConfigError where the file cannot be read, is no list of whole numbers, leaves 0..n-1, or repeats an image.
    """
    index = _load_npy(path)
    low, high = int(index.min()), int(index.max())
    _check_file(low >= 0 and high < n, path, f"holds indices from {low} to {high}; the source has 0 to {n - 1}")
    times = torch.bincount(index, minlength=n)
    repeated = (times > 1).nonzero()[:, 0]
    _check_file(len(repeated) == 0, path, f"repeats {len(repeated)} indices, the first is {repeated[:1].tolist()}")
    return times > 0


def _load_npy(path: str | Path) -> Int64[Tensor, "m"]:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"data.list_file = {str(path)!r} cannot be read as .npy: {error}") from error
    good = isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "iu" and len(array) > 0
    _check_file(good, path, "does not hold one row of whole numbers")
    return torch.from_numpy(array.astype(np.int64))


def read_path_file(path: str | Path) -> tuple[list[str], list[int]]:
    """The paths and labels of a published `.txt` list, one 'path label' a line.

    Raises ConfigError where a line has another form, a path is repeated, or labels are not 0, 1, ... without a gap.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.list_file = {str(path)!r} cannot be read: {error}") from error
    rows = [(number, line.strip().rpartition(" ")) for number, line in enumerate(lines, 1) if line.strip()]
    _check_file(len(rows) > 0, path, "is empty")
    for number, (name, _, label) in rows:
        good = name and label.isascii() and label.isdigit()
        _check_file(bool(good), path, f"line {number} is not 'path label', with a label from 0")
    paths = [name.strip() for _, (name, _, _) in rows]
    labels = [int(label) for _, (_, _, label) in rows]
    repeats = len(paths) - len(set(paths))
    _check_file(repeats == 0, path, f"repeats {repeats} paths")
    missing = sorted(set(range(max(labels) + 1)) - set(labels))[:5]
    _check_file(not missing, path, f"has labels up to {max(labels)}, but no image of {missing}")
    return paths, labels


def _check_file(ok: bool, path: str | Path, what: str) -> None:
    if not ok:
        raise ConfigError(f"data.list_file = {str(path)!r} {what}")
