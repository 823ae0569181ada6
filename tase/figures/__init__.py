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
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..config import METHODS
from ..layouts import layout, run_layout
from ..options import message_stream
from ..runs import Run, RunError, kept_runs
from ..studies import write_tables
from .paper import control_pairs, dynamics, geometry, paired_accuracy, per_class_accuracy, push, tsne
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
from .sources import as_runs, by_method, is_balanced, results_of, snapshots_of
from .study import draw_study, study_figure
from .style import CLASS_COLOURS, GROUP_COLOURS, Figure, kept_source, new_figure, save, style, theme


def all_figures(
    runs: Run | str | Path | Sequence[Run | str | Path],
    out: str | Path | None = None,
    footer: bool = True,
    label: str | None = None,
) -> list[Path]:
    """Draw figures 1 to 5 of the given runs into the folder `out`, as PDF and PNG; returns the paths written.

    Figure 1 is drawn for each protocol that the runs were evaluated with, also in pairs where balanced controls are
    among them, figure 3 from one run of each method, and figure 4 for each run whose temperatures vary by sample. A run
    that lacks what a figure needs is left out of it, and a line says so. Without `out` the folder is
    `figures` in the run's folder, or next to the runs. Files end in the runs' names, with as many folders before them
    as it takes to leave figures of other runs of these names alone. With a `label` they end in it, and replace what is
    there.
    """
    runs = as_runs(runs)
    out = Path(out) if out else figures_folder(runs)
    written: list[Path] = []
    for name, some, needs, draw in wanted_figures(runs, label) if label is not None else freely_named(runs, out):
        usable = []
        for run in some:
            with telling(name):
                needs(run)
                usable.append(run)
        with telling(name):
            source = source_of(some) if label is None else None
            written += save(draw(usable, footer=footer), out / name, source) if usable else ()
    return sorted(written)


def freely_named(runs: Sequence[Run], out: Path) -> list[tuple[str, Sequence[Run], Callable, Callable]]:
    """Return all figures by the first names that no other runs' figures in `out` have; raises RunError without any."""
    for depth in range(1, max(len(run.path.resolve().parts) for run in runs)):
        wanted = list(wanted_figures(runs, None, depth))
        there = {out / f"{name}.png": source_of(some) for name, some, *_ in wanted}
        if all(not path.exists() or kept_source(path) == source for path, source in there.items()):
            return wanted
    raise RunError(f"{out} holds figures of other runs by all names of these: write them to another folder (--out)")


def source_of(runs: Sequence[Run]) -> str:
    """Return what tells a figure of these runs from one of others, wherever they lie: a sum over their folders."""
    return f"{zlib.crc32(chr(10).join(sorted(str(run.path.resolve()) for run in runs)).encode()):08x}"


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Tell what a figure lacks in a line, and go on with the others."""
    try:
        yield
    except RunError as lack:
        print(f"{name}: left out: {lack}", file=message_stream())


def wanted_figures(
    runs: Sequence[Run], label: str | None, depth: int = 1
) -> Iterator[tuple[str, Sequence[Run], Callable, Callable]]:
    """Yield all figures: the file's name, the runs, what reads all that is needed of a run, and what draws them."""
    label = runs_label(runs, depth) if label is None else label
    end = f"_{label}" if label else ""
    protocols = [protocol for run in runs for protocol in (run.results or {}).get("protocols", {})]
    for protocol in dict.fromkeys(protocols or ["linear"]):
        needs, at = reads_results("protocols", protocol, "per_class"), protocol.replace("@", "-")
        yield f"figure1_accuracy_{at}{end}", runs, needs, partial(per_class_accuracy, protocol=protocol)
        if control_pairs(runs):
            yield f"figure1_paired_{at}{end}", runs, needs, partial(paired_accuracy, protocol=protocol)
    yield f"figure2_geometry{end}", runs, reads_results("geometry", "spread"), geometry
    yield f"figure3_tsne{end}", [max(some, key=is_laid_out) for _, some in by_method(runs)], run_layout, tsne
    for run in runs:
        if run.config.guidance_class.per_sample:
            yield f"figure4_dynamics_{name_among(run, runs, depth)}", [run], snapshots_of, dynamics
    yield f"figure5_push{end}", runs, reads_results("push", "per_class"), push


def reads_results(*path: str) -> Callable[[Run], Any]:
    return lambda run: results_of(run, *path)


def is_laid_out(run: Run) -> bool:
    """Tell whether a run keeps a layout of its features, or the test features to make one."""
    return (run.path / "layouts" / "tsne.npz").exists() or run.test_features is not None


def figures_folder(runs: Sequence[Run]) -> Path:
    """Return where the runs' figures go: into the one run, or next to several."""
    paths = [run.path.resolve() for run in runs]
    return Path(paths[0] if len(paths) == 1 else os.path.commonpath([path.parent for path in paths])) / "figures"


def name_among(run: Run, runs: Sequence[Run], depth: int = 1) -> str:
    """Return the run's name, with its folders' below the one that all share where another run has the same name.

    With a `depth` of 2, 3, ... so many last parts of its path.
    """
    if depth > 1:
        return "_".join(run.path.resolve().parts[1:][-depth:])
    if sum(other.name == run.name for other in runs) == 1:
        return run.name
    shared = os.path.commonpath([other.path.resolve() for other in runs])
    return "_".join(run.path.resolve().relative_to(shared).parts)


def runs_label(runs: Sequence[Run], depth: int = 1) -> str:
    """Name a set of runs in a file's name: up to three by name, else the first, how many more, and a sum over all."""
    names = [name_among(run, runs, depth) for run in runs]
    if len(names) <= 3:
        return "+".join(names)
    return f"{names[0]}+{len(names) - 1}-more-{zlib.crc32('+'.join(names).encode()):08x}"


def redraw(folder: str | Path, footer: bool = True) -> list[Path]:
    """Draw all figures, and write all studies' tables, under `folder` again from what is kept; returns the paths.

    Every folder with kept runs (runs.zip, or runs/NAME) gets the figures of those runs, balanced controls first, then
    in the order of the methods; every study's folder (study.json) gets the study's, and runs kept next to studies none.
    Raises RunError where there is neither.
    """
    folder = Path(folder)
    studies = sorted(path.parent for path in folder.rglob("study.json"))
    kept = {path.parent: path for path in folder.rglob("runs") if path.is_dir()}
    kept |= {path.parent: path for path in folder.rglob("runs.zip")}
    shelves = {*studies, *(study.parent for study in studies)}  # what is kept among studies is for their tables
    kept = {place: path for place, path in sorted(kept.items()) if not shelves & {place, place.parent}}
    if not kept and not studies:
        raise RunError(f"{folder} holds no kept runs: they are looked for in {folder}/**/runs.zip and runs/NAME")
    written = [path for study in studies for path in (*write_tables(study), *draw_study(study, footer))]
    for place, path in kept.items():
        written += all_figures(sorted(kept_runs(path), key=order_in_figures), place, footer=footer, label="")
    return written


def order_in_figures(run: Run) -> tuple:
    """Order runs: balanced controls first, then as the methods are listed, by seed."""
    return not is_balanced(run.config), list(METHODS).index(run.config.method), run.config.seed, run.name
