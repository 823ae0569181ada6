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
from ..options import some_of
from ..presets import changes
from ..runs import History, Run, RunError, commit_text, has_tail
from .style import Figure, footer


@dataclass(frozen=True)
class ByRank:
    """One number per class and run, classes in the order of their training counts, largest first.

    `values` and `counts` [runs, classes]; `groups` [classes], -1 without a tail; `names` [classes], or None where the
    order of the classes differs between the runs.
    """

    values: Float[np.ndarray, "r c"]
    counts: Int64[np.ndarray, "r c"]
    groups: Int64[np.ndarray, " c"]
    names: tuple[str, ...] | None

    @property
    def mean(self) -> Float[np.ndarray, " c"]:
        return self.values.mean(0)


# ----------------------------------------------------------------------------------------------------- reading of runs


def as_runs(runs: Run | str | Path | Iterable[Run | str | Path]) -> list[Run]:
    """Return a list of runs from one or many, open or by their folder; raises RunError for none, or no run."""
    one = isinstance(runs, (str, Path)) or hasattr(runs, "config")
    opened = [Run(r) if isinstance(r, (str, Path)) else r for r in ([runs] if one else runs)]
    if not opened:
        raise RunError("no runs were given: a figure is drawn from one or more saved runs")
    return opened


def results_of(run: Run, *path: str) -> Any:
    """Return `run.results` down a path of keys; raises RunError with a plain sentence where it is not there."""
    found = run.results
    if not found:
        raise RunError(f"{run.path} has not been evaluated: tase evaluate {run.path}")
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        raise RunError(f"{run.path} has no {' / '.join(path)} in its results: evaluate it again")
    return found


def snapshots_of(run: Run) -> History:
    """Return the run's history; raises RunError where it has no snapshot."""
    if not len(run.history):
        raise RunError(f"{run.path} has no snapshot yet: the first comes after {run.config.refresh} epochs")
    return run.history


def classes_of(run: Run) -> tuple[tuple[str, ...], np.ndarray, np.ndarray] | None:
    """Return names, training counts and groups [C] of a run's classes; None without labels."""
    saved = run.results or {}
    if saved.get("counts"):
        return tuple(saved["classes"]), np.asarray(saved["counts"]), np.asarray(saved["groups"])
    h = run.history
    return None if h.counts is None else (h.classes, h.counts, h.groups)


# --------------------------------------------------------------------------------------------------- names and sameness


def is_balanced(config: Config) -> bool:
    return config.data.balanced or config.data.rho == 1


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


def labels_of(configs: Sequence[Config]) -> list[str]:
    """Name each configuration; those of the same title are told apart by the preset and the fields that differ."""
    labels = []
    for config in configs:
        alike = [c for c in configs if title(c) == title(config)]
        base = next(c for c in alike if c.preset == config.preset)
        unused = {f"guidance.{name}" for name in config.guidance_class.snapshot_only()}
        changed = {name: value for name, value in config.changes(base).items() if name not in unused}
        extra = [config.preset] * (base.preset != alike[0].preset) + in_words(changed)
        labels.append(f"{title(config)} ({', '.join(extra)})" if extra else title(config))
    return labels


def by_method(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Gather runs by all that shapes their network but seed and split, in the order given: (label, runs) of each."""
    gathered: dict[str, list[Run]] = {}
    for run in runs:
        level = dataclasses.replace(run.config, seed=0, data=dataclasses.replace(run.config.data, split=-1))
        gathered.setdefault(level.training_identity + run.steering, []).append(run)
    labels = labels_of([some[0].config for some in gathered.values()])
    steering = [f", steered at {some[0].steering}" if some[0].steered else "" for some in gathered.values()]
    return [(label + how, some) for label, how, some in zip(labels, steering, gathered.values())]


def setting_of(config: Config, seeded: bool = True) -> str:
    """Hash what a run shares with its balanced control: all but the method; without seed and split if not `seeded`."""
    seed, split = (config.seed, config.split) if seeded else (0, -1)
    data = dataclasses.replace(config.data, balanced=False, split=split)
    return dataclasses.replace(config, method="simclr", guidance=None, seed=seed, data=data).identity


# ---------------------------------------------------------------------------------------------- classes, head to tail


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


def ranked(runs: Sequence[Run], among: Sequence[Run], take: Callable[[Run], Sequence[float | None]]) -> ByRank:
    """Order what `take(run)` gives per class from head to tail, for all runs of a method.

    It gives one number for each class, or for each that is evaluated; classes with None are left out.
    """
    rows = []
    for run in runs:
        values, counts = np.array(take(run), dtype=np.float64), np.array(results_of(run, "counts"))
        ids = np.arange(len(counts)) if len(values) == len(counts) else np.array(results_of(run, "eval_classes"))
        by, groups, _ = order_of(run, among)
        order = np.argsort(-by[ids], kind="stable")
        order = order[np.isfinite(values[order])]
        ids = ids[order]
        rows.append((values[order], counts[ids], groups[ids], tuple(str(run.results["classes"][i]) for i in ids)))
    values, counts, groups, names = zip(*rows)
    if len({len(v) for v in values}) > 1:
        raise RunError(f"{runs[0].path} and others of its method have different numbers of classes: draw them apart")
    same = names[0] if len(set(names)) == 1 else None
    return ByRank(np.stack(values), np.stack(counts), groups[0], same)


# -------------------------------------------------------------------------------------------------------- the footer


def set_besides(changed: Mapping[str, Any]) -> list[str]:
    """Name what was changed from the preset, for a footer: all of it, or how much where that is long."""
    return in_words(changed) if len(changed) <= 4 else [f"{len(changed)} fields set"]


def seeds_of(runs: Sequence[Run]) -> int:
    return len({(r.config.seed, r.config.split) for r in runs})


def origin(runs: Sequence[Run], *notes: str) -> str:
    """Say where the numbers come from: preset, what all runs changed of it, subset, seeds, `notes`, commit."""
    seeds, (first, *others) = seeds_of(runs), [changes(r.config) for r in runs]
    shared = {name: value for name, value in first.items() if all(o.get(name) == value for o in others)}
    parts = [
        some_of(r.config.preset for r in runs),
        *set_besides(shared),
        f"subset {some_of((r.results or {}).get('subset') or r.environment.get('subset', '?') for r in runs)}",
        f"{seeds} seed{'s' * (seeds > 1)}",
        *filter(None, notes),
        commit_text(*((r.results or {}).get("commit") or r.commit for r in runs)),
    ]
    return " · ".join(parts)


def signed(figure: Figure, runs: Sequence[Run], *notes: str, shown: bool = True) -> Figure:
    """Put the line of `origin` at the figure's foot, if it is to be `shown`; returns the figure."""
    if shown:
        footer(figure, origin(runs, *notes))
    return figure
