"""Every figure is a function from saved runs to a matplotlib figure; no training in memory, no global state.

    runs = [tase.Run(path) for path in ("runs/a", "runs/b")]
    tase.figures.save(tase.figures.per_class_accuracy(runs), "figures/accuracy")    # accuracy.pdf and accuracy.png
    with tase.figures.theme("dark"):
        figure = tase.figures.dynamics(runs[0])

`style` holds sizes and colours, `sources` turns runs into arrays; `paper` has figures 1 to 5, `study` those of tables
and ablations, `pictures` those of images, samples and clusters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..config import METHODS
from ..layouts import lacks_features, layout, run_layout
from ..runs import Run, RunError, kept_runs
from .paper import (
    control_pairs,
    dynamics,
    geometry,
    lacks_snapshots,
    paired_accuracy,
    per_class_accuracy,
    push,
    tsne,
)
from .pictures import (
    class_sizes,
    cluster_changes,
    cluster_confusion,
    cluster_sheet,
    courses,
    rarest,
    sample_courses,
    tau_against_loss,
    tau_by_category,
    tau_by_group,
    temperature_map,
    thumbnails,
    training_curves,
)
from .sources import Missing, as_runs, by_method, is_balanced, lacks_results
from .study import draw_study, study_figure
from .style import CLASS_COLOURS, GROUP_COLOURS, Figure, new_figure, save, style, theme

__all__ = [
    "CLASS_COLOURS",
    "Figure",
    "GROUP_COLOURS",
    "Missing",
    "all_figures",
    "class_sizes",
    "cluster_changes",
    "cluster_confusion",
    "cluster_sheet",
    "courses",
    "draw_study",
    "dynamics",
    "geometry",
    "layout",
    "new_figure",
    "paired_accuracy",
    "per_class_accuracy",
    "push",
    "rarest",
    "redraw",
    "run_layout",
    "sample_courses",
    "save",
    "study_figure",
    "style",
    "tau_against_loss",
    "tau_by_category",
    "tau_by_group",
    "temperature_map",
    "theme",
    "thumbnails",
    "training_curves",
    "tsne",
]


def to_stderr(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr)


class Wanted(NamedTuple):
    """A figure to draw: its name, the runs it is drawn from, what one of them lacks (a sentence, or empty), how."""

    name: str
    runs: Sequence[Run]
    lacks: Callable[[Run], str]
    draw: Callable[..., Figure]


def all_figures(
    runs: Run | str | Path | Sequence[Run | str | Path],
    out: str | Path | None = None,
    footer: bool = True,
    tell: Callable[[str], None] = to_stderr,
    label: str | None = None,
) -> list[Path]:
    """Draw figures 1 to 5 of the given runs into the folder `out`, as PDF and PNG; returns the paths written.

    Figure 1 is drawn for each protocol that the runs were evaluated with, also in pairs where balanced controls are
    among them, figure 3 from one run of each method, and figure 4 for each run whose temperatures vary by sample. A run
    that lacks what a figure needs is left out of it, with a line to `tell` (standard error). Without `out` the folder
    is `figures` in the run's folder, or next to the runs; files end in the runs' names (or `label`), so that figures of
    other runs stay.
    """
    runs = as_runs(runs)
    out = Path(out) if out else figures_folder(runs)
    label = runs_label(runs) if label is None else label
    written: list[Path] = []
    for name, some, lacks, draw in wanted_figures(runs, label):
        reasons = {run: lacks(run) for run in some}
        for why in filter(None, reasons.values()):
            tell(f"{name}: left out: {why}")
        usable = [run for run, why in reasons.items() if not why]
        try:
            written += save(draw(usable, footer=footer), out / name) if usable else ()
        except Missing as lack:
            tell(f"{name}: left out: {lack}")
    return sorted(written)


def wanted_figures(runs: Sequence[Run], label: str) -> Iterator[Wanted]:
    """Yield all figures of the runs, by the names of their files."""
    end = f"_{label}" if label else ""
    for protocol in evaluated_protocols(runs):
        lacks, at = partial(lacks_accuracy, protocol), protocol.replace("@", "-")
        yield Wanted(f"figure1_accuracy_{at}{end}", runs, lacks, partial(per_class_accuracy, protocol=protocol))
        if control_pairs(runs):
            yield Wanted(f"figure1_paired_{at}{end}", runs, lacks, partial(paired_accuracy, protocol=protocol))
    yield Wanted(f"figure2_geometry{end}", runs, lambda run: lacks_results(run, "geometry", "spread"), geometry)
    one_each = [next((r for r in m.runs if not lacks_features(r)), m.runs[0]) for m in by_method(runs)]
    yield Wanted(f"figure3_tsne{end}", one_each, lacks_features, tsne)
    for run in runs:
        if run.config.guidance_class.per_sample:
            yield Wanted(f"figure4_dynamics_{name_among(run, runs)}", [run], lacks_snapshots, dynamics)
    yield Wanted(f"figure5_push{end}", runs, lambda run: lacks_results(run, "push", "per_class"), push)


def lacks_accuracy(protocol: str, run: Run) -> str:
    """Say in a sentence that a run has not been evaluated with a protocol; empty where it has."""
    return lacks_results(run, "protocols", protocol, "per_class")


def evaluated_protocols(runs: Sequence[Run]) -> list[str]:
    """Return the protocols of the runs' results, in their order; without any the default one."""
    found = [protocol for run in runs for protocol in (run.results or {}).get("protocols", {})]
    return list(dict.fromkeys(found)) or ["linear"]


def figures_folder(runs: Sequence[Run]) -> Path:
    """Return where the runs' figures go: into the one run, or next to several."""
    paths = [run.path.resolve() for run in runs]
    return Path(paths[0] if len(paths) == 1 else os.path.commonpath([path.parent for path in paths])) / "figures"


def name_among(run: Run, runs: Sequence[Run]) -> str:
    """Return the run's name, with its folder's where another run has the same."""
    twice = sum(other.name == run.name for other in runs) > 1
    return f"{run.path.resolve().parent.name}_{run.name}" if twice else run.name


def runs_label(runs: Sequence[Run]) -> str:
    """Name a set of runs in a file's name: up to three by name, else the first and how many more."""
    names = [name_among(run, runs) for run in runs]
    return "+".join(names) if len(names) <= 3 else f"{names[0]}+{len(names) - 1}-more"


def redraw(folder: str | Path, footer: bool = True, tell: Callable[[str], None] = to_stderr) -> list[Path]:
    """Draw all figures under `folder` again from the kept runs and the studies there; returns the paths written.

    Every folder with kept runs (runs.zip, or runs/NAME) gets the figures of those runs, balanced controls first, then
    in the order of the methods; every study's folder (study.json) gets the study's, and runs kept next to studies none.
    Raises RunError where there is neither.
    """
    folder = Path(folder)
    studies = sorted(path.parent for path in folder.rglob("study.json"))
    kept = {path.parent for path in folder.rglob("runs.zip")} | {
        path.parents[2] for path in folder.rglob("runs/*/config.json")
    }
    shelves = {study.parent for study in studies}  # what is kept among studies is for their tables
    places = sorted(place for place in kept - set(studies) if place.parent not in shelves)
    if not places and not studies:
        raise RunError(f"{folder} holds no kept runs: they are looked for in {folder}/**/runs.zip and runs/NAME")
    written = [path for study in studies for path in draw_study(study, footer)]
    for place in places:
        runs = kept_runs(place if (place / "runs.zip").exists() else place / "runs")
        written += all_figures(sorted(runs, key=order_in_figures), place, footer=footer, tell=tell, label="")
    return written


def order_in_figures(run: Run) -> tuple:
    """Order runs: balanced controls first, then as the methods are listed, by seed."""
    return not is_balanced(run.config), list(METHODS).index(run.config.method), run.config.seed, run.name
