"""From saved runs to arrays that can be drawn: which runs belong together, their names, classes from head to tail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from ..config import Config
from ..presets import changes
from ..runs import Run, RunError
from .style import Figure, footer


class Missing(RunError):
    """A run lacks what a figure needs; the message says what, and how to get it."""


@dataclass(frozen=True)
class SameMethod:
    """Runs that differ in their seed or split only, under one name."""

    label: str
    runs: list[Run]


@dataclass(frozen=True)
class ByRank:
    """One number per class and run, classes in the order of their training counts, largest first.

    `values` and `counts` [runs, classes]; `groups` [classes], -1 without a tail; `names` [classes], or None where the
    order of the classes differs between the runs; `borrowed`: the order is that of a long-tailed run.
    """

    values: Float[np.ndarray, "r c"]
    counts: Int64[np.ndarray, "r c"]
    groups: Int64[np.ndarray, " c"]
    names: tuple[str, ...] | None
    borrowed: bool

    @property
    def mean(self) -> Float[np.ndarray, " c"]:
        return self.values.mean(0)

    @property
    def deviation(self) -> Float[np.ndarray, " c"]:
        """Return the standard deviation over the runs, per class; 0 with a single run."""
        return self.values.std(0, ddof=1) if len(self.values) > 1 else np.zeros(self.values.shape[1])


def as_runs(runs: Run | str | Path | Iterable[Run | str | Path]) -> list[Run]:
    """Return a list of runs from one or many, open or by their folder; raises RunError where a folder is no run."""
    one = isinstance(runs, (str, Path)) or hasattr(runs, "config")
    opened = [Run(r) if isinstance(r, (str, Path)) else r for r in ([runs] if one else runs)]
    if not opened:
        raise Missing("no runs were given: a figure is drawn from one or more saved runs")
    return opened


def is_balanced(config: Config) -> bool:
    return config.data.balanced or config.data.rho == 1


def has_tail(counts: Int64[np.ndarray, "..."]) -> bool:
    """Whether the classes differ in size by more than one image, which is what remains when n is no multiple of C."""
    return counts.max() - counts.min() > 1


def title(config: Config) -> str:
    """Name method and kind of training set: "SimCLR, balanced"."""
    if config.data.rule == "none":
        return config.method_title
    return f"{config.method_title}, {'balanced' if is_balanced(config) else 'long tail'}"


def in_words(changed: Mapping[str, Any]) -> list[str]:
    """Write changed fields as "tau_max=0.3", without their sections."""
    return [
        f"{name.rpartition('.')[2]}={value:g}" if isinstance(value, float) else f"{name.rpartition('.')[2]}={value}"
        for name, value in changed.items()
    ]


def _differences(config: Config, other: Config) -> list[str]:
    if config.preset != other.preset:
        return [config.preset]
    unused = {f"guidance.{name}" for name in config.guidance_class.snapshot_only()}
    return in_words({name: value for name, value in config.changes(other).items() if name not in unused})


def labels_of(configs: Sequence[Config]) -> list[str]:
    """Name each configuration; those of the same title are told apart by the fields that differ."""
    labels = []
    for config in configs:
        alike = [c for c in configs if title(c) == title(config)]
        extra = _differences(config, alike[0])
        labels.append(f"{title(config)} ({', '.join(extra)})" if extra else title(config))
    return labels


def by_method(runs: Sequence[Run]) -> list[SameMethod]:
    """Gather runs by all that shapes their network but seed and split, in the order given."""
    gathered: dict[str, list[Run]] = {}
    for run in runs:
        level = dataclasses.replace(run.config, seed=0, data=dataclasses.replace(run.config.data, split=-1))
        gathered.setdefault(level.training_identity, []).append(run)
    labels = labels_of([group[0].config for group in gathered.values()])
    return [SameMethod(label, group) for label, group in zip(labels, gathered.values(), strict=True)]


def lacks_results(run: Run, *path: str) -> str:
    """Say in a sentence what `run.results` lacks down a path of keys; empty where it is there."""
    found = run.results
    if not found:
        return f"{run.path} has not been evaluated: tase evaluate {run.path}"
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return "" if found is not None else f"{run.path} has no {' / '.join(path)} in its results: evaluate it again"


def results_of(run: Run, *path: str) -> Any:
    """Return `run.results` down a path of keys; raises Missing with a plain sentence where it is not there."""
    if why := lacks_results(run, *path):
        raise Missing(why)
    found = run.results
    for key in path:
        found = found[key]
    return found


def seeds_of(runs: Sequence[Run]) -> int:
    return len({(r.config.seed, r.config.split) for r in runs})


def classes_of(run: Run) -> tuple[tuple[str, ...], np.ndarray, np.ndarray] | None:
    """Return names, training counts and groups [C] of a run's classes; None without labels."""
    saved = run.results or {}
    if saved.get("counts"):
        return tuple(saved["classes"]), np.asarray(saved["counts"]), np.asarray(saved["groups"])
    h = run.history
    return None if h.counts is None else (h.classes, h.counts, h.groups)


def order_of(run: Run, among: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return numbers [C] that order a run's classes, largest first, their groups [C], and whether both are borrowed.

    The classes of a balanced control have no order of their own: it takes that of a long-tailed run of the same split
    that is `among` the runs drawn, else its groups, which are those of the tail it is the control of. Without any
    tail (rho 1) the groups are -1.
    """
    names, counts, groups = classes_of(run)
    if has_tail(counts):
        return counts, groups, False
    for other in among:
        theirs = classes_of(other)
        if theirs and theirs[0] == names and has_tail(theirs[1]) and other.config.split == run.config.split:
            return theirs[1], theirs[2], True
    if run.config.data.balanced:
        return -groups, groups, False
    return counts, np.full(len(counts), -1, dtype=np.int64), False


def _class_values(run: Run, values: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and values of the classes that have one: results list all classes, or those that are evaluated."""
    numbers = np.array(values, dtype=np.float64)
    classes = len(results_of(run, "counts"))
    ids = np.arange(classes) if len(numbers) == classes else np.asarray(results_of(run, "eval_classes"))
    if len(ids) != len(numbers):
        raise Missing(f"{run.path}: results.json has {len(numbers)} values for {len(ids)} classes: evaluate it again")
    known = np.isfinite(numbers)
    return ids[known], numbers[known]


def ranked(method: SameMethod, among: Sequence[Run], take: Callable[[Run], Sequence[float | None]]) -> ByRank:
    """Order what `take(run)` gives per class from head to tail, for all runs of a method."""
    values, counts, names, groups, borrowed = [], [], [], [], False
    for run in method.runs:
        ids, numbers = _class_values(run, take(run))
        by, group, lent = order_of(run, among)
        order = np.argsort(-by[ids], kind="stable")
        ids = ids[order]
        values.append(numbers[order])
        counts.append(np.asarray(results_of(run, "counts"), dtype=np.int64)[ids])
        names.append(tuple(str(run.results["classes"][i]) for i in ids))
        groups.append(group[ids])
        borrowed |= lent
    if len({len(v) for v in values}) > 1:
        raise Missing(f"the runs of '{method.label}' have different numbers of classes: draw them apart")
    same = len(set(names)) == 1
    return ByRank(np.stack(values), np.stack(counts), groups[0], names[0] if same else None, borrowed)


def _some(values: Iterable[str], at_most: int = 3) -> str:
    unique = list(dict.fromkeys(values))
    more = f" and {len(unique) - at_most} more" if len(unique) > at_most else ""
    return ", ".join(unique[:at_most]) + more


def set_besides(changed: Mapping[str, Any]) -> list[str]:
    """Name what was changed from the preset, for a footer: all of it, or how much where that is long."""
    return in_words(changed) if len(changed) <= 4 else [f"{len(changed)} fields set"]


def origin(runs: Sequence[Run], *notes: str) -> str:
    """Say where the numbers come from: preset, what all runs changed of it, subset, seeds, `notes`, commit."""
    subsets = [(r.results or {}).get("subset") or r.environment.get("subset", "?") for r in runs]
    commits = [(r.results or {}).get("commit") or r.commit for r in runs]
    seeds, (first, *others) = seeds_of(runs), [changes(r.config) for r in runs]
    shared = {name: value for name, value in first.items() if all(o.get(name) == value for o in others)}
    parts = [
        _some(r.config.preset for r in runs),
        *set_besides(shared),
        f"subset {_some(subsets)}",
        f"{seeds} seed{'s' * (seeds > 1)}",
        *(note for note in notes if note),
        f"commit {_some(commits)}",
    ]
    return " · ".join(parts)


def sign(figure: Figure, runs: Sequence[Run], *notes: str) -> None:
    """Put the line of `origin` at the figure's foot."""
    footer(figure, origin(runs, *notes))
