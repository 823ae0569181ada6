"""A study's figure, from its results.csv: paired differences, a heat map, or curves."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..config import METHODS
from ..studies import Contrast, contrasts, name_of, read_study, shown
from ..tables import Summary, summary
from .sources import Missing, set_besides
from .style import TEXT, Figure, colours, footer, new_figure, run_marks, save, style

Found = Mapping[tuple[str, str], Contrast]  # (row, column) -> what one metric of a cell has come to
HEADROOM = "headroom"


def study_figure(folder: str | Path, preset: str = "", note: bool = True) -> Figure:
    """Draw the figure of a study's folder on one preset (its first), a column per protocol; with 95 % intervals.

    bars: paired difference to the reference of every cell, for All and Tail; heat: the same as a map (means where each
    column has a reference of its own); curve: the same over what is varied, a line per row. Strong colours and filled
    marks are for differences whose interval leaves zero; an interval that leaves the picture ends in an arrow. As long
    as the reference is not measured maps and curves show means. Raises Missing where nothing has been measured.
    """
    results, about = read_study(folder)
    preset = preset or about["presets"][0]
    cells = results[(results["kind"] == "cell") & (results["preset"] == preset)]
    accuracies = [p for p in dict.fromkeys(cells["protocol"]) if p not in ("pseudo-labels", "space", "cost")]
    panels = {p: shown(p)[1] for p in accuracies or dict.fromkeys(cells["protocol"])}
    if not panels:
        raise Missing(f"{folder} has no results on {preset} yet: tase study {about['name']}")
    found = {
        (p, m): {(c.row, c.column): c for c in contrasts(results, about, preset, p, m) if c.kind in ("cell", HEADROOM)}
        for p, metrics in panels.items()
        for m in metrics
    }
    with style():
        draw = {"bars": difference_figure, "heat": heat_figure, "curve": curve_figure}[about["figure"]]
        figure = draw(panels, found, about)
        if note:
            where = f"{preset}, on {about['on']}" if accuracies else preset
            seeds, subsets = cells["seed"].nunique(), cells["subset"].nunique()
            spread = (
                "means over seeds" if draw is heat_figure and not one_reference(found, about) else "intervals: 95 %"
            )
            parts = [about["name"], where, *set_besides(about["overrides"]), f"{subsets} subsets", f"{seeds} seeds"]
            footer(figure, " · ".join([*parts, spread, f"commit {', '.join(cells['commit'].unique()[:3])}"]))
    return figure


def draw_study(folder: str | Path, note: bool = True) -> list[Path]:
    """Draw the figure of each preset of a study into its folder, as PDF and PNG; returns the paths written."""
    results, _ = read_study(folder)
    presets = results.loc[results["kind"] == "cell", "preset"].unique()
    return [
        path for name in presets for path in save(study_figure(folder, name, note), Path(folder) / f"figure-{name}")
    ]


SIGNS = {"tau_0": "τ₀", "tau": "τ", "gamma": "γ", "rho": "ρ", "_": " ", "=": " = "}


def readable(label: str, about: Mapping[str, Any]) -> str:
    """Write a row or column as a reader knows it: methods by their titles, "tau_0=0.2" as "τ₀ = 0.2"."""
    changed = about.get("axes", {}).get(label, {})
    method = changed.get("method", label if label in METHODS else "")
    first, comma, rest = label.partition(", ")
    known, rest = (METHODS[method].title + comma, rest) if method and first == method else ("", label)
    for sign, greek in SIGNS.items():
        rest = rest.replace(sign, greek)
    return known + rest


def axis_of(labels: Sequence[str], about: Mapping[str, Any]) -> tuple[str, list[float] | None]:
    """Return the one field that differs along an axis, and its numbers; ("", None) where it is not one number."""
    changed = [about.get("axes", {}).get(label, {}) for label in labels]
    names = {name for fields in changed for name in fields}
    varied = [n for n in names if len(labels) == 1 or any(fields.get(n) != changed[0].get(n) for fields in changed)]
    values = [fields.get(varied[0]) for fields in changed] if len(varied) == 1 else []
    if values and all(isinstance(v, (int, float)) for v in values):
        return readable(varied[0].rpartition(".")[2], {}), values
    return "", None


def against(cells: Found, reference: str, compared: bool) -> dict[tuple[str, str], Summary]:
    """Return what is drawn of every cell: its paired difference, 0 for the reference itself; or its mean over seeds."""
    cells = {place: c for place, c in cells.items() if c.kind == "cell"}
    if not compared:
        return {place: c.over for place, c in cells.items()}
    itself = {place: summary([0.0] * c.over.n) for place, c in cells.items() if place[0] == reference}
    return itself | {place: c.difference for place, c in cells.items() if c.difference.n}


def leaves_zero(over: Summary) -> bool:
    """Tell whether the 95 % interval holds only values above, or only values below zero; one seed has no interval."""
    return abs(over.mean) > over.ci95


def study_grid(panels: Mapping[str, Sequence[str]], height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure with a row of axes per metric and a column per protocol."""
    figure = new_figure(TEXT, height)
    rows = len(next(iter(panels.values())))
    axes = figure.subplots(rows, len(panels), squeeze=False, **options)
    for ax, protocol in zip(axes[0], panels):
        ax.set_title(protocol)
    return figure, axes


def below(axes: Sequence[Axes], text: str) -> None:
    """Write a label under the middle of a row of axes."""
    axes[(len(axes) - 1) // 2].set_xlabel(text, x=0.5 if len(axes) % 2 else 1.1)


def intervals(ax: Axes, places: Iterable[float], over: Sequence[Summary | None], colour: str, upright: bool) -> None:
    """Draw means with their intervals along x, or along y where `upright`; hollow where the interval holds zero."""
    paper = ax.figure.look.paper.replace("none", "black")
    for place, o in zip(places, over):
        if o and o.n:
            half = float(np.nan_to_num(o.ci95))
            at = (place, o.mean, half, None) if upright else (o.mean, place, None, half)
            strong = leaves_zero(o)
            line, fill = (colour, colour) if strong else (to_rgba(colour, 0.65), paper)
            ax.errorbar(*at, fmt="o", ms=3, lw=0.9, color=line, mfc=fill, mew=0.8, zorder=3)


def fit_intervals(ax: Axes, found: Sequence[tuple[float, Summary]], upright: bool, least: float, zero: bool = True):
    """Show all intervals; of very wide ones (two seeds give tens of points) the start, and an arrow."""
    half = np.nan_to_num([o.ci95 for _, o in found])
    means = np.array([o.mean for _, o in found])
    base = np.append(means, 0.0) if zero else means
    room = 2.5 * max(np.ptp(base), least)
    low = max(base.min() - room, min((means - half).min(), base.min()))
    high = min(base.max() + room, max((means + half).max(), base.max()))
    for (place, _), mean, h in zip(found, means, half):
        for edge, out, markers in ((low, mean - h < low, "<v"), (high, mean + h > high, ">^")):
            if out:
                at = (place, edge) if upright else (edge, place)
                ax.plot(*at, ls="", marker=markers[upright], ms=3.5, color=colours().soft)
    pad = 0.06 * (high - low)
    (ax.set_ylim if upright else ax.set_xlim)(low - pad, high + pad)


# ----------------------------------------------------------------------------------------------------------------- bars


def difference_figure(panels: Mapping[str, Sequence[str]], found: Mapping, about: Mapping[str, Any]) -> Figure:
    """Draw All and Tail of every cell minus the reference's, as points with intervals; headroom on the same scale.

    Where the balanced control is a row, compared with the same run as the headroom, the headroom is not drawn twice.
    """
    first = next(iter(found.values()))
    drawn_as_row = any(c.difference.n for (row, _), c in first.items() if is_headroom_row(row, about))
    places = [place for place, c in first.items() if c.difference.n or (c.kind == HEADROOM and not drawn_as_row)]
    names = [textwrap.fill(", ".join(readable(p, about) for p in place if p), 24) for place in places]
    lines = 1 + max((name.count("\n") for name in names), default=0)
    figure = new_figure(TEXT, 1.15 + (0.18 + 0.08 * lines) * max(1, len(places)))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    y = np.arange(len(places))
    pairs = list(zip((-0.15, 0.15), next(iter(panels.values())), (colours().ink, colours().groups[2])))
    for ax, (protocol, metrics) in zip(axes, panels.items()):
        shown_here = []
        for (shift, _, colour), metric in zip(pairs, metrics):
            cells = [found[protocol, metric].get(place) for place in places]
            over = [c and (c.over if c.kind == HEADROOM else c.difference) for c in cells]
            intervals(ax, y + shift, over, colour, upright=False)
            shown_here += [(place, o) for place, o in zip(y + shift, over) if o and o.n]
        ax.axvline(0, color=colours().soft, lw=0.6, zorder=0)
        ax.set(title=protocol, yticks=y, yticklabels=names)
        ax.xaxis.set_major_locator(MaxNLocator(3, steps=(1, 2, 5, 10)))
        if shown_here:
            fit_intervals(ax, shown_here, upright=False, least=0.5)
    axes[0].set_ylim(len(places) - 0.4, -0.6)  # downwards; points of the outer rows whole
    below(axes, f"difference to {readable(about['reference'], about)}, in points")
    figure.legend(handles=mark_handles([(name_of(m), c) for _, m, c in pairs]), loc="outside upper right", ncols=3)
    return figure


def is_headroom_row(row: str, about: Mapping[str, Any]) -> bool:
    """Tell whether a row is the reference on a balanced set: its difference is the headroom."""
    of, reference = (about.get("axes", {}).get(label, {}) for label in (row, about["reference"]))
    return of == {**reference, "data.balanced": True} and of != reference


def mark_handles(entries: Iterable[tuple[str, str]]) -> list[Line2D]:
    """Return legend entries of what is drawn by `intervals`, and of hollow marks."""
    mark = {"marker": "o", "ms": 3}
    hollow = Line2D([], [], ls="", color=colours().soft, mfc="none", label="hollow: the interval holds 0", **mark)
    return [*(Line2D([], [], color=colour, lw=0.9, label=label, **mark) for label, colour in entries), hollow]


# ----------------------------------------------------------------------------------------------------------------- heat


def heat_figure(panels: Mapping[str, Sequence[str]], found: Mapping, about: Mapping[str, Any]) -> Figure:
    """Draw a map per protocol and metric: of every cell the difference to the one reference, or its mean."""
    compared = one_reference(found, about)
    drawn = {panel: against(cells, about["reference"], compared) for panel, cells in found.items()}
    rows = len(about["rows"])
    figure, axes = study_grid(panels, 1.1 + 2 * (0.4 + (0.32 if compared else 0.2) * rows), sharex=True, sharey=True)
    reach = max([0.5, *(abs(o.mean) for cells in drawn.values() for o in cells.values())]) if compared else None
    for j, (protocol, metrics) in enumerate(panels.items()):
        for ax, metric in zip(axes[:, j], metrics):
            cells = drawn[protocol, metric]
            heat_map(ax, [[cells.get((row, column)) for column in about["columns"]] for row in about["rows"]], reach)
            extras = [
                row for row in about["extras"] if (row, "") in cells and not (compared and row == about["reference"])
            ]
            form = "+.1f" if compared else ".1f"
            short = [readable(row, about).removeprefix(f"{readable(about['reference'], about)}, ") for row in extras]
            notes = [f"{name} {cells[row, ''].mean:{form}}" for name, row in zip(short, extras)]
            ax.set_title("\n".join([protocol] * (metric == metrics[0]) + notes))
    label_axes(axes, panels, about)
    if compared:
        column = about["reference_column"]
        at = f", {column}" if (about["reference"], column) in next(iter(found.values())) and column else ""
        reference = readable(about["reference"], about)
        figure.suptitle(f"difference to {reference}{at}, in points; pale: the interval holds 0", fontsize="medium")
    return figure


def label_axes(axes: np.ndarray, panels: Mapping[str, Sequence[str]], about: Mapping[str, Any]) -> None:
    """Name rows and columns of the maps: by their numbers, where one field varies, else by their labels."""
    (x_name, x_values), (y_name, y_values) = (axis_of(about[which], about) for which in ("columns", "rows"))
    x_labels = [f"{v:g}" for v in x_values] if x_values else [readable(label, about) for label in about["columns"]]
    y_labels = [f"{v:g}" for v in y_values] if y_values else [readable(label, about) for label in about["rows"]]
    for ax in axes.flat:
        ax.set_xticks(np.arange(len(x_labels)) + 0.5, x_labels, rotation=0)
        ax.set_yticks(np.arange(len(y_labels)) + 0.5, y_labels, rotation=0)
    for ax, metric in zip(axes[:, 0], next(iter(panels.values()))):
        ax.set_ylabel(f"{name_of(metric)}\n{y_name}".strip())
    below(axes[-1], x_name)


def one_reference(found: Mapping, about: Mapping[str, Any]) -> bool:
    """Tell whether all cells were compared with the same one: a map of differences to many would not be one."""
    cells = next(iter(found.values()))
    one = about["reference_column"] or (about["reference"], "") in cells
    return bool(one) and any(c.difference.n for cells in found.values() for c in cells.values())


def heat_map(ax: Axes, cells: Sequence[Sequence[Summary | None]], reach: float | None) -> None:
    """Draw means on a scale of their own, or, within `reach` of 0, differences with their intervals.

    A difference whose interval holds 0 keeps a quarter of its colour.
    """
    import seaborn  # here: it takes a second

    means = np.array([[o.mean if o else np.nan for o in line] for line in cells])
    if reach is None:
        form = ".2f" if np.nanmax(np.abs(means)) <= 1 else ".1f"
        scale = {"cmap": "Blues", "annot": means, "fmt": form}
    else:
        strength = np.array([[1.0 if o and leaves_zero(o) else 0.25 for o in line] for line in cells])
        words = [[interval_words(o) for o in line] for line in cells]
        scale = {"cmap": "RdBu", "vmin": -reach, "vmax": reach, "annot": np.array(words), "fmt": ""}
        means = means * strength
    seaborn.heatmap(means, ax=ax, cbar=False, annot_kws={"fontsize": 7}, mask=np.isnan(means), **scale)
    ax.tick_params(length=0)


def interval_words(over: Summary | None) -> str:
    """Write a difference and its interval in two lines."""
    if not over or np.isnan(over.mean):
        return ""
    return f"{over.mean:+.1f}" + ("" if np.isnan(over.ci95) else f"\n± {over.ci95:.1f}")


# ---------------------------------------------------------------------------------------------------------------- curve


def curve_figure(panels: Mapping[str, Sequence[str]], found: Mapping, about: Mapping[str, Any]) -> Figure:
    """Draw differences to the reference over what is varied, a line per row; rows outside the columns are level lines.

    Seeds have tails of their own, and differ more than methods do: their means would hide what is paired.
    """
    crossed = about["columns"] != [""]
    labels = about["columns"] if crossed else about["rows"]
    name, values = axis_of(labels, about)
    logarithmic = bool(values) and min(values) > 0 and max(values) / min(values) >= 8
    x = np.log(values) if logarithmic else np.array(values or range(len(labels)), dtype=float)
    compared = any(c.difference.n for cells in found.values() for c in cells.values())
    lines = {row: [(row, column) for column in about["columns"]] for row in about["rows"]}
    lines = lines if crossed else {"": [(row, "") for row in about["rows"]]}
    figure, axes = study_grid(panels, 3.8, sharex=True)
    for j, (protocol, metrics) in enumerate(panels.items()):
        for ax, metric in zip(axes[:, j], metrics):
            cells = against(found[protocol, metric], about["reference"], compared)
            least = 0.05 if protocol == "pseudo-labels" else 0.5
            draw_lines(ax, x, lines, cells, about, least, compared)
            number_axis(ax, x, values, [readable(label, about) for label in labels])
    reference = readable(about["reference"], about)
    for ax, metric in zip(axes[:, 0], next(iter(panels.values()))):
        ax.set_ylabel(f"{name_of(metric)}, minus\n{reference}" if compared else name_of(metric))
    below(axes[-1], name)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    hollow = mark_handles([]) if compared else []
    figure.legend(handles=[*handles, *hollow], loc="outside upper right", ncols=4)
    return figure


def draw_lines(
    ax: Axes,
    x: np.ndarray,
    lines: Mapping[str, Sequence[tuple[str, str]]],
    cells: Mapping[tuple[str, str], Summary],
    about: Mapping[str, Any],
    least: float,
    compared: bool,
) -> None:
    """Draw a line with intervals per row, next to each other, and a level line for each row outside the columns."""
    found = []
    step = np.diff(x).min() if len(x) > 1 else 1.0
    for k, ((row, places), (colour, mark)) in enumerate(zip(lines.items(), itertools.cycle(run_marks()))):
        at = x + 0.18 * step * (k - (len(lines) - 1) / 2)  # so that intervals do not hide each other
        over = [cells.get(place) for place in places]
        mean = [o.mean if o else np.nan for o in over]
        ax.plot(at, mean, color=colour, lw=0.9, marker=mark, ms=3, label=readable(row, about) or "mean over seeds")
        if compared:
            intervals(ax, at, over, colour, upright=True)
        else:
            ax.errorbar(at, mean, np.nan_to_num([o.ci95 if o else 0 for o in over]), color=colour, lw=0.9)
        found += [(place, o) for place, o in zip(at, over) if o and o.n]
    for row, dash in zip(about["extras"], ("--", ":", "-.")):
        if (row, "") in cells and row != about["reference"]:
            ax.axhline(cells[row, ""].mean, color=colours().soft, ls=dash, lw=0.9, label=readable(row, about))
            found.append((x[0], cells[row, ""]._replace(ci95=0.0)))
    if compared:
        ax.axhline(0, color=colours().faint, lw=0.6, zorder=0)
    if found:
        fit_intervals(ax, found, upright=True, least=least, zero=compared)


def number_axis(ax: Axes, x: np.ndarray, values: Sequence[float] | None, labels: Sequence[str]) -> None:
    """Write the values under their places, as many as there is room for."""
    words = [f"{v:g}" for v in values] if values else [textwrap.fill(label, 10) for label in labels]
    middle = int(np.abs(x - (x[0] + x[-1]) / 2).argmin())
    chosen = range(len(x)) if len(x) <= 3 else [0, middle, len(x) - 1]
    ax.set_xticks([x[i] for i in chosen], [words[i] for i in chosen])
    ax.set_xticks(x, minor=True)
