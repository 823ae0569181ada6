"""A study's figure, from its results.csv: paired differences, a heat map, or curves."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..config import METHODS
from ..runs import RunError, commit_text
from ..studies import Contrast, contrasts, name_of, read_study, shown
from ..tables import Summary, summary, with_interval
from .sources import set_besides
from .style import TEXT, Figure, colours, dot, footer, new_figure, run_marks, save, seaborn, style

Panels = Mapping[str, Sequence[str]]  # protocol -> the metrics that are drawn of it
Found = Mapping[tuple[str, str], Contrast]  # (row, column) -> what one metric of a cell has come to
HEADROOM = "headroom"


@style()
def study_figure(folder: str | Path, preset: str = "", note: bool = True) -> Figure:
    """Draw the figure of a study's folder on one preset (its first), a column per protocol; with 95 % intervals.

    bars: paired difference to the reference of every cell, for All, Tail and Head; heat: that of All and Tail as a map
    (means where each column has a reference of its own); curve: the same over what is varied, a line per row. Strong
    colours and filled marks are for differences whose interval leaves zero; every interval is drawn whole. As long as
    the reference is not measured maps and curves show means. Raises RunError where nothing has been measured.
    """
    results, about = read_study(folder)
    preset = preset or about["presets"][0]
    cells = results[(results["kind"] == "cell") & (results["preset"] == preset)]
    accuracies = [p for p in dict.fromkeys(cells["protocol"]) if p not in ("pseudo-labels", "space", "cost")]
    most = 3 if about["figure"] == "bars" else 2  # of all, tail, head: in maps and curves each takes a row of axes
    measured, protocols = {*cells["metric"]}, accuracies or dict.fromkeys(cells["protocol"])
    panels = {p: [m for m in shown(p)[1] if m in measured][:most] for p in protocols}
    if not panels:
        raise RunError(f"{folder} has no results on {preset} yet: tase study {about['name']}")
    found = {
        (p, m): {(c.row, c.column): c for c in contrasts(results, about, preset, p, m) if c.kind in ("cell", HEADROOM)}
        for p, metrics in panels.items()
        for m in metrics
    }
    draw = {"bars": difference_figure, "heat": heat_figure, "curve": curve_figure}[about["figure"]]
    figure = draw(panels, found, about)
    if note:
        spread = "means over seeds" if draw is heat_figure and not one_reference(found) else "intervals: 95 %"
        parts = [
            about["name"],
            f"{preset}, on {about['on']}" if accuracies else preset,
            *set_besides(about["overrides"]),
            f"{cells['subset'].nunique()} subsets",
            f"{cells['seed'].nunique()} seeds",
            spread,
            commit_text(*cells["commit"]),
        ]
        footer(figure, " · ".join(parts))
    return figure


def draw_study(folder: str | Path, note: bool = True) -> list[Path]:
    """Draw the figure of each preset of a study into its folder, as PDF and PNG; returns the paths written."""
    results, _ = read_study(folder)
    presets = results.loc[results["kind"] == "cell", "preset"].unique()
    return [
        path for name in presets for path in save(study_figure(folder, name, note), Path(folder) / f"figure-{name}")
    ]


# ---------------------------------------------------------------------------------------------------- labels and axes

SIGNS = {"tau_0": "τ₀", "tau": "τ", "gamma": "γ", "rho": "ρ", "_": " ", "=": " = "}
WORDS = {"size": "own size", "merged": "joined clusters", "sqrt": "root", "long tail": "long\N{NO-BREAK SPACE}tail"}


def readable(label: str) -> str:
    """Write a row or column as a reader knows it: methods by their titles, "tau_0=0.2" as "τ₀ = 0.2"."""
    method = re.split("[ ,]", label)[0]
    known, rest = (METHODS[method].title, label.removeprefix(method)) if method in METHODS else ("", label)
    rest = ", ".join(WORDS.get(part, part) for part in rest.split(", "))
    for sign, greek in SIGNS.items():
        rest = rest.replace(sign, greek)
    return known + rest


def axis_of(labels: Sequence[str], about: Mapping[str, Any]) -> tuple[str, list[float], list[str]]:
    """Return the one number that differs along an axis: its name, its values, and these in words.

    Where it is not one number: no name, no values, and the labels in words.
    """
    changed = [about.get("axes", {}).get(label, {}) for label in labels]
    names = {name for fields in changed for name in fields}
    varied = [n for n in names if len(labels) == 1 or any(fields.get(n) != changed[0].get(n) for fields in changed)]
    values = [fields.get(varied[0]) for fields in changed] if len(varied) == 1 else []
    if values and all(isinstance(v, (int, float)) for v in values):
        return readable(varied[0].rpartition(".")[2]), values, [f"{v:g}" for v in values]
    return "", [], [readable(label) for label in labels]


def study_grid(panels: Panels, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure with a row of axes per metric and a column per protocol."""
    figure = new_figure(TEXT, height)
    axes = figure.subplots(len(next(iter(panels.values()))), len(panels), squeeze=False, **options)
    for ax, protocol in zip(axes[0], panels):
        ax.set_title(protocol)
    return figure, axes


def below(axes: Sequence[Axes], text: str) -> None:
    """Write a label under the middle of a row of axes."""
    axes[(len(axes) - 1) // 2].set_xlabel(text, x=0.5 if len(axes) % 2 else 1.1)


# --------------------------------------------------------------------------------------------- means and differences


def against(cells: Found, compared: bool) -> dict[tuple[str, str], Summary]:
    """Return what is drawn of every cell: its paired difference, 0 for the reference itself; or its mean over seeds."""
    cells = {place: c for place, c in cells.items() if c.kind == "cell"}
    if not compared:
        return {place: c.over for place, c in cells.items()}
    itself = {place: summary([0.0] * c.over.n) for place, c in cells.items() if place == c.base}
    return itself | {place: c.difference for place, c in cells.items() if c.difference.n}


def leaves_zero(over: Summary) -> bool:
    """Tell whether the 95 % interval holds only values above, or only values below zero; one seed has no interval."""
    return abs(over.mean) > over.ci95


Placed = list[tuple[float, Summary]]  # where along an axis, and what


def intervals(ax: Axes, found: Placed, colour: str, upright: bool) -> None:
    """Draw means with their intervals along x, or along y where `upright`; hollow where the interval holds zero."""
    paper = ax.figure.look.paper.replace("none", "black")
    for place, o in found:
        half = float(np.nan_to_num(o.ci95))
        at = (place, o.mean, half, None) if upright else (o.mean, place, None, half)
        line, fill = (colour, colour) if leaves_zero(o) else (to_rgba(colour, 0.65), paper)
        ax.errorbar(*at, fmt="o", ms=3, lw=0.9, color=line, mfc=fill, mew=0.8, zorder=3)


def fit_intervals(ax: Axes, found: Placed, upright: bool, zero: bool = True) -> None:
    """Show all intervals whole, however wide those of two seeds are, and zero."""
    half = np.nan_to_num([o.ci95 for _, o in found])
    means = np.array([o.mean for _, o in found])
    low, high = np.sort(np.concatenate([means - half, means + half, [0.0] * zero]))[[0, -1]]
    pad = 0.06 * max(high - low, 1.0)
    (ax.set_ylim if upright else ax.set_xlim)(low - pad, high + pad)


def hollow() -> Line2D:
    """Return the legend's entry of a difference that may be none."""
    return dot(colours().soft, "hollow: the interval holds 0", ms=3, mfc="none")


# ----------------------------------------------------------------------------------------------------------------- bars


def difference_figure(panels: Panels, found: Mapping[tuple[str, str], Found], about: Mapping[str, Any]) -> Figure:
    """Draw All, Tail and Head of every cell minus the reference's, with intervals; headroom on the same scale.

    Where the balanced control is a row, its difference is the headroom, which is then not drawn twice.
    """
    first = next(iter(found.values()))
    rows = {place: c.difference for place, c in first.items() if c.difference.n}
    twice = lambda c: any(np.allclose(c.over, o, equal_nan=True) for o in rows.values())  # noqa: E731
    places = [p for p, c in first.items() if p in rows or (c.kind == HEADROOM and not twice(c))]
    words = (
        headroom_of(c.row) if c.kind == HEADROOM else ", ".join(readable(p) for p in place if p)
        for place, c in ((place, first[place]) for place in places)
    )
    names = [textwrap.fill(text, 24) for text in words]
    lines = 1 + max((name.count("\n") for name in names), default=0)
    figure = new_figure(TEXT, 1.15 + (0.21 + 0.08 * lines) * max(1, len(places)))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    inks = (colours().ink, colours().groups[2], colours().groups[0])
    for ax, (protocol, metrics) in zip(axes, panels.items()):
        drawn: Placed = []
        for shift, metric, colour in zip((-0.22, 0, 0.22), metrics, inks):
            cells = [found[protocol, metric].get(place) for place in places]
            over = [c and (c.over if c.kind == HEADROOM else c.difference) for c in cells]
            own = [(y + shift, o) for y, o in enumerate(over) if o and o.n]
            intervals(ax, own, colour, upright=False)
            drawn += own
        ax.axvline(0, color=colours().soft, lw=0.6, zorder=0)
        ax.set(title=protocol, yticks=range(len(places)), yticklabels=names)
        ax.xaxis.set_major_locator(MaxNLocator(3, steps=(1, 2, 5, 10)))
        if drawn:
            fit_intervals(ax, drawn, upright=False)
    axes[0].set_ylim(len(places) - 0.4, -0.6)  # downwards; points of the outer rows whole
    below(axes, f"difference to {reference_of(found, about)}, in points")
    handles = [dot(colour, name_of(m), lw=0.9, ms=3) for m, colour in zip(next(iter(panels.values())), inks)]
    figure.legend(handles=[*handles, hollow()], loc="outside upper right", ncols=4)
    return figure


def headroom_of(label: str) -> str:
    """Write the label of the headroom in words: it names its row where that is not the preset's own SimCLR."""
    row = label.removesuffix(": balanced - long tail").removeprefix(HEADROOM).removeprefix(" of ")
    return f"headroom: {readable(row or 'simclr')}, balanced"


# ----------------------------------------------------------------------------------------------------------------- heat


def heat_figure(panels: Panels, found: Mapping[tuple[str, str], Found], about: Mapping[str, Any]) -> Figure:
    """Draw a map per protocol and metric: of every cell the difference to the one reference, or its mean."""
    compared, rows, columns = one_reference(found), about["rows"], about["columns"]
    drawn = {panel: against(cells, compared) for panel, cells in found.items()}
    figure, axes = study_grid(
        panels, 1.1 + 2 * (0.4 + (0.32 if compared else 0.2) * len(rows)), sharex=True, sharey=True
    )
    reach = max([0.5, *(abs(o.mean) for cells in drawn.values() for o in cells.values())]) if compared else None
    (x_name, _, x_words), (y_name, _, y_words) = axis_of(columns, about), axis_of(rows, about)
    for ax, (protocol, metric) in zip(axes.T.flat, found):
        cells = drawn[protocol, metric]
        heat_map(ax, [[cells.get((row, column)) for column in columns] for row in rows], x_words, y_words, reach)
        # Rows outside the columns have no place in the map: a line above it each.
        extras = [r for r in about["extras"] if (r, "") in cells and not (compared and r == about["reference"])]
        form = "+.1f" if compared else ".1f"
        known = "|".join(re.escape(readable(r)) for r in (about["reference"], *extras))
        names = [re.sub(f"^({known}), ", "", readable(r)) for r in extras]
        notes = [f"{name} {cells[r, ''].mean:{form}}" for name, r in zip(names, extras)]
        notes = [textwrap.fill(note, 72 // len(panels)) for note in notes]
        ax.set_title("\n".join([ax.get_title("left"), *notes]).strip())
    for ax, metric in zip(axes[:, 0], next(iter(panels.values()))):
        ax.set_ylabel(f"{name_of(metric)}\n{y_name}".strip())
    below(axes[-1], x_name)
    if compared:
        title = f"difference to {reference_of(found, about)}, in points; pale: the interval holds 0"
        figure.suptitle(title, fontsize="medium")
    return figure


def bases_of(found: Mapping[tuple[str, str], Found]) -> set[tuple[str, str]]:
    """Collect the cells with which others were compared."""
    return {c.base for cells in found.values() for c in cells.values() if c.base}


def one_reference(found: Mapping[tuple[str, str], Found]) -> bool:
    """Tell whether all cells were compared with the same one: a map of differences to many would not be one."""
    return len(bases_of(found)) == 1 and are_compared(found)


def reference_of(found: Mapping[tuple[str, str], Found], about: Mapping[str, Any]) -> str:
    """Write what cells were compared with: its row, and its column where that is the same for all."""
    place = about["reference"], about["reference_column"]
    return ", ".join(readable(part) for part in (place if place in bases_of(found) else place[:1]) if part)


def are_compared(found: Mapping[tuple[str, str], Found]) -> bool:
    """Tell whether the reference has been measured."""
    return any(c.difference.n for cells in found.values() for c in cells.values())


def heat_map(
    ax: Axes,
    cells: Sequence[Sequence[Summary | None]],
    columns: Sequence[str],
    rows: Sequence[str],
    reach: float | None,
) -> None:
    """Draw means on a scale of their own, or, within `reach` of 0, differences with their intervals.

    Where the interval leaves 0 the colour has at least two fifths of its strength, elsewhere at most a tenth.
    """
    means = np.array([[o.mean if o else np.nan for o in line] for line in cells])
    scale: dict[str, Any] = {"cmap": "Blues", "annot": means, "fmt": ".2f" if np.nanmax(np.abs(means)) <= 1 else ".1f"}
    if reach is not None:
        words = [[with_interval(o.mean, o.ci95, sign="+").replace(" ±", "\n±") if o else "" for o in c] for c in cells]
        scale = {"cmap": "RdBu", "vmin": -reach, "vmax": reach, "annot": np.array(words), "fmt": ""}
        sure = [[o is not None and leaves_zero(o) for o in line] for line in cells]
        means = np.where(sure, 0.6 * means + 0.4 * reach * np.sign(means), 0.1 * means)
    labels = {"xticklabels": columns, "yticklabels": rows, "annot_kws": {"fontsize": 7}}
    seaborn.heatmap(means, ax=ax, cbar=False, mask=np.isnan(means), **labels, **scale)
    ax.tick_params(length=0, rotation=0)


# ---------------------------------------------------------------------------------------------------------------- curve


def curve_figure(panels: Panels, found: Mapping[tuple[str, str], Found], about: Mapping[str, Any]) -> Figure:
    """Draw differences to the reference over what is varied, a line per row; rows outside the columns are level lines.

    Seeds have tails of their own, and differ more than methods do: their means would hide what is paired.
    """
    crossed = about["columns"] != [""]
    name, values, words = axis_of(about["columns"] if crossed else about["rows"], about)
    logarithmic = bool(values) and min(values) > 0 and max(values) / min(values) >= 8
    x = np.log(values) if logarithmic else np.array(values or range(len(words)), dtype=float)
    lines = {readable(row): [(row, column) for column in about["columns"]] for row in about["rows"]}
    lines = lines if crossed else {"mean over seeds": [(row, "") for row in about["rows"]]}
    extras = {row: readable(row) for row in about["extras"] if row != about["reference"]}
    compared = are_compared(found)
    figure, axes = study_grid(panels, 3.8, sharex=True)
    ends = sorted({0, int(np.abs(x - (x[0] + x[-1]) / 2).argmin()), len(x) - 1})  # there is no room for more words
    for ax, panel in zip(axes.T.flat, found):
        draw_lines(ax, x, lines, extras, against(found[panel], compared), compared)
        ax.set_xticks(x[ends], [textwrap.fill(words[i], 10) for i in ends])
        ax.set_xticks(x, minor=True)
    minus = f", minus\n{reference_of(found, about)}" if compared else ""
    for ax, metric in zip(axes[:, 0], next(iter(panels.values()))):
        ax.set_ylabel(f"{name_of(metric)}{minus}")
    below(axes[-1], name)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles=[*handles, *([hollow()] if compared else [])], loc="outside upper right", ncols=4)
    return figure


def draw_lines(
    ax: Axes,
    x: np.ndarray,
    lines: Mapping[str, Sequence[tuple[str, str]]],
    extras: Mapping[str, str],
    cells: Mapping[tuple[str, str], Summary],
    compared: bool,
) -> None:
    """Draw a line with intervals per row, next to each other, and a level line for each of the extras."""
    drawn: Placed = []
    step = np.diff(x).min() if len(x) > 1 else 1.0
    for k, ((label, places), (colour, mark)) in enumerate(zip(lines.items(), itertools.cycle(run_marks()))):
        at = x + 0.18 * step * (k - (len(lines) - 1) / 2)  # so that intervals do not hide each other
        over = [cells.get(place, summary([])) for place in places]
        ax.plot(at, [o.mean for o in over], color=colour, lw=0.9, marker=mark, ms=3, label=label)
        own = [(place, o) for place, o in zip(at, over) if o.n]
        if compared:
            intervals(ax, own, colour, upright=True)
        else:
            ax.errorbar(at, [o.mean for o in over], np.nan_to_num([o.ci95 for o in over]), color=colour, lw=0.9)
        drawn += own
    for (row, label), dash in zip(extras.items(), ("--", ":", "-.")):
        if (row, "") in cells:
            ax.axhline(cells[row, ""].mean, color=colours().soft, ls=dash, lw=0.9, label=label)
            drawn.append((x[0], cells[row, ""]._replace(ci95=0.0)))
    if compared:
        ax.axhline(0, color=colours().faint, lw=0.6, zorder=0)
    if drawn:
        fit_intervals(ax, drawn, upright=True, zero=compared)
