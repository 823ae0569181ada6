"""Every figure is a function from saved runs to a matplotlib figure; no training in memory, no global state.

    runs = [tase.Run(path) for path in ("runs/a", "runs/b")]
    tase.figures.save(tase.figures.per_class_accuracy(runs), "figures/accuracy")    # accuracy.pdf and accuracy.png

`style` holds sizes and colours, `sources` turns runs into arrays; then a module per family: `accuracy` (1),
`space` (2, 3), `course` (4, over time), `quantity` (5), `study` (tables and ablations).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..config import METHODS
from ..runs import Run, RunError
from .accuracy import class_counts, per_class_accuracy
from .course import dynamics, training_curves
from .pictures import cluster_sheet, thumbnails
from .quantity import push
from .sources import Missing, as_runs, is_balanced, methods
from .space import geometry, layout, tsne
from .study import draw_study, study_figure
from .style import CLASS_COLOURS, GROUP_COLOURS, Figure, new_figure, save, style

__all__ = [
    "CLASS_COLOURS",
    "Figure",
    "GROUP_COLOURS",
    "Missing",
    "all_figures",
    "class_counts",
    "cluster_sheet",
    "draw_study",
    "dynamics",
    "geometry",
    "layout",
    "new_figure",
    "per_class_accuracy",
    "push",
    "redraw",
    "save",
    "study_figure",
    "style",
    "thumbnails",
    "training_curves",
    "tsne",
]


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def all_figures(
    runs: Run | str | Path | Sequence[Run | str | Path],
    out: str | Path,
    footer: bool = True,
    tell: Callable[[str], None] = _tell,
) -> list[Path]:
    """Draw figures 1 to 5 of the given runs into the folder `out`, as PDF and PNG; returns the paths written.

    Figure 1 is drawn for each protocol that the runs were evaluated with, figure 3 from one run of each method, and
    figure 4 for each run whose temperatures vary by sample. A run that lacks what a figure needs is left out of it,
    with a line to `tell` (standard error).
    """
    runs = as_runs(runs)
    out = Path(out)
    together = {
        **{
            f"figure1_accuracy_{protocol.replace('@', '-')}": partial(
                per_class_accuracy, protocol=protocol, footer=footer
            )
            for protocol in _protocols(runs)
        },
        "figure2_geometry": lambda some: geometry(some, footer=footer),
        "figure3_tsne": lambda some: tsne([m.runs[0] for m in methods(some)], footer=footer),
        "figure5_push": lambda some: push(some, footer=footer),
    }
    for run in runs:
        if run.config.guidance_class.per_sample:
            together[f"figure4_dynamics_{_short(run, runs)}"] = partial(_dynamics_of, run, footer)
    written: list[Path] = []
    for name, draw in together.items():
        figure = _draw(draw, runs, lambda why, name=name: tell(f"{name}: left out: {why}"))
        written += save(figure, out / name) if figure else ()
    return sorted(written)


def redraw(folder: str | Path, footer: bool = True, tell: Callable[[str], None] = _tell) -> list[Path]:
    """Draw all figures under `folder` anew from the slim runs and the studies kept there; returns the paths written.

    Every folder that holds `runs/NAME/config.json` (see `Run.slim`) gets the figures of those runs, balanced controls
    first, then in the order of the methods; every study's folder (study.json) gets the study's. Raises RunError where
    there is neither.
    """
    studies = sorted(path.parent for path in Path(folder).rglob("study.json"))
    places = sorted({path.parents[2] for path in Path(folder).rglob("runs/*/config.json")} - set(studies))
    if not places and not studies:
        raise RunError(f"{folder} holds no saved runs: they are looked for in {folder}/**/runs/NAME")
    written = [path for study in studies for path in draw_study(study, footer)]
    for place in places:
        runs = [Run(path.parent) for path in place.glob("runs/*/config.json")]
        written += all_figures(sorted(runs, key=_place_in_line), place, footer=footer, tell=tell)
    return written


def _protocols(runs: Sequence[Run]) -> list[str]:
    """The protocols of the runs' results, in their order; the default one where there are no results to say why."""
    found = [protocol for run in runs for protocol in (run.results or {}).get("protocols", {})]
    return list(dict.fromkeys(found)) or ["linear"]


def _place_in_line(run: Run) -> tuple:
    return not is_balanced(run.config), list(METHODS).index(run.config.method), run.config.seed, run.name


def _dynamics_of(run: Run, footer: bool, some: list[Run]) -> Figure | None:
    return dynamics(run, footer=footer) if run in some else None


def _short(run: Run, runs: list[Run]) -> str:
    """The run's name, with its folder's where another run has the same."""
    twice = sum(other.name == run.name for other in runs) > 1
    return f"{run.path.resolve().parent.name}_{run.name}" if twice else run.name


def _draw(draw: Callable[[list[Run]], Figure | None], runs: list[Run], tell: Callable[[str], None]) -> Figure | None:
    """The figure of the runs of which it can be drawn, or None; says which runs are left out, and why."""
    left = list(runs)
    while left:
        try:
            return draw(left)
        except Missing as lack:
            tell(str(lack))
            if lack.run not in left:
                return None
            left.remove(lack.run)
    return None
