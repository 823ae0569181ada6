"""A study's figure, from its results.csv: paired differences, a heat map, or curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..studies import BALANCED, SIMCLR, Contrast, contrasts, name_of, read_study, shown
from ..tables import Summary, summary
from .sources import Missing, set_besides
from .style import GROUP_COLOURS, INK, RUN_MARKS, SOFT, TEXT, Figure, footer, new_figure, save, style

Found = dict[tuple[str, str], Contrast]  # (row, column) -> what one metric of a cell has come to
HEADROOM = "headroom"


def study_figure(folder: str | Path, preset: str = "", note: bool = True) -> Figure:
    """The figure of a study's folder on one preset (its first), a column per protocol; error bars: 95 % intervals.

    bars: paired difference to the reference of every cell, for All and Tail; heat: the same as a map (means where each
    column has a reference of its own); curve: the same over what is varied, a line per row. As long as the reference is
    not measured maps and curves show means. Raises Missing where nothing has been measured.
    """
    results, about = read_study(folder)
    preset = preset or about["presets"][0]
    cells = results[(results["kind"] == "cell") & (results["preset"] == preset)]
    accuracies = [p for p in dict.fromkeys(cells["protocol"]) if p not in ("pseudo-labels", "space")]
    panels = {p: shown(p)[1] for p in accuracies or dict.fromkeys(cells["protocol"])}
    if not panels:
        raise Missing(f"{folder} has no results on {preset} yet: python -m tase study {about['name']}")
    found = {
        (p, m): {(c.row, c.column): c for c in contrasts(results, about, preset, p, m) if c.kind in ("cell", HEADROOM)}
        for p, metrics in panels.items()
        for m in metrics
    }
    with style():
        figure = {"bars": _bars, "heat": _heat, "curve": _curve}[about["figure"]](panels, found, about)
        if note:
            seeds, subsets = cells["seed"].nunique(), cells["subset"].nunique()
            commits = ", ".join(cells["commit"].unique()[:3])
            where = f"{preset}, on {about['on']}" if accuracies else preset
            changed = [f"{name}={value}" for name, value in about["overrides"].items()]
            where = " · ".join([where, *set_besides(changed)])
            origin = f"{about['name']} · {where} · {subsets} subsets · {seeds} seeds"
            means = about["figure"] == "heat" and not _one_reference(found, about)
            spread = "means" if means else "intervals: 95 %"
            footer(figure, f"{origin} · {spread} · commit {commits}")
    return figure


def draw_study(folder: str | Path, note: bool = True) -> list[Path]:
    """Draw the figure of each preset of a study into its folder, as PDF and PNG; returns the paths written."""
    results, _ = read_study(folder)
    presets = results.loc[results["kind"] == "cell", "preset"].unique()
    return [
        path for name in presets for path in save(study_figure(folder, name, note), Path(folder) / f"figure-{name}")
    ]


def _grid(panels: Mapping[str, Sequence[str]], height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure with a row of axes per metric and a column per protocol."""
    figure = new_figure(TEXT, height)
    rows = len(next(iter(panels.values())))
    axes = figure.subplots(rows, len(panels), squeeze=False, **options)
    for ax, protocol in zip(axes[0], panels):
        ax.set_title(protocol)
    return figure, axes


def _bars(panels: Mapping[str, Sequence[str]], found: Mapping, about: Mapping[str, Any]) -> Figure:
    """All and Tail of every cell minus the reference's, as points with intervals; headroom on the same scale.

    Against SimCLR the row of the balanced control is the headroom, and not drawn twice.
    """
    first = next(iter(found.values()))
    told = about["reference"] == SIMCLR and any(row == BALANCED and c.difference.n for (row, _), c in first.items())
    places = [place for place, c in first.items() if c.difference.n or (c.kind == HEADROOM and not told)]
    figure = new_figure(TEXT, 1.15 + 0.24 * max(1, len(places)))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    y = np.arange(len(places))
    for ax, (protocol, metrics) in zip(axes, panels.items()):
        for shift, metric, colour in zip((-0.14, 0.14), metrics, (INK, GROUP_COLOURS[2])):
            cells = [found[protocol, metric].get(place) for place in places]
            over = [c and (c.over if c.kind == HEADROOM else c.difference) for c in cells]
            mean = [o.mean if o else np.nan for o in over]
            half = np.nan_to_num([o.ci95 if o else 0 for o in over])
            ax.errorbar(mean, y + shift, xerr=half, fmt="o", ms=3, lw=0.9, color=colour, label=name_of(metric))
        ax.axvline(0, color=SOFT, lw=0.6)
        ax.set(title=protocol, yticks=y, yticklabels=[", ".join(filter(None, place)) for place in places])
        _within(ax, [line.get_xdata() for line in ax.lines[:-1]])
    axes[0].set_ylim(len(places) - 0.4, -0.6)  # downwards; points of the outer rows whole
    _below(axes, f"difference to {about['reference']}, in points")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _below(axes: Sequence[Axes], text: str) -> None:
    """A label under the middle of a row of axes."""
    axes[(len(axes) - 1) // 2].set_xlabel(text, x=0.5 if len(axes) % 2 else 1.1)


def _within(ax: Axes, means: Sequence[np.ndarray]) -> None:
    """Keep means readable where two seeds give an interval of tens of points: the bars then leave the picture."""
    reach = 2 * max(np.nanmax(np.abs(np.concatenate([*means, [0.0]]))), 1.0)
    low, high = ax.get_xlim()
    ax.set_xlim(max(low, -reach), min(high, reach))


def _heat(panels: Mapping[str, Sequence[str]], found: Mapping, about: Mapping[str, Any]) -> Figure:
    """A map per protocol and metric: of every cell the difference to the one reference, on one scale; or its mean."""
    (x_name, columns), (y_name, rows) = _axis(about["columns"]), _axis(about["rows"])
    compared = _one_reference(found, about)
    drawn = {panel: _against(cells, about["reference"], compared) for panel, cells in found.items()}
    figure, axes = _grid(panels, 1.0 + 2 * (0.4 + (0.3 if compared else 0.2) * len(rows)), sharex=True, sharey=True)
    reach = max([0.5, *(abs(over.mean) for cells in drawn.values() for over in cells.values())]) if compared else None
    for j, (protocol, metrics) in enumerate(panels.items()):
        for ax, metric in zip(axes[:, j], metrics):
            cells = drawn[protocol, metric]
            _map(ax, [[cells.get((row, column)) for column in about["columns"]] for row in about["rows"]], reach)
            beside = [
                row for row in about["extras"] if (row, "") in cells and not (compared and row == about["reference"])
            ]
            form = "+.1f" if compared else ".1f"
            beside = [f"{_short(row, about)} {cells[row, ''].mean:{form}}" for row in beside]
            ax.set_title("\n".join([protocol] * (metric == metrics[0]) + beside))
            ax.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    for ax, metric in zip(axes[:, 0], next(iter(panels.values()))):
        ax.set_ylabel(f"{name_of(metric)}\n{y_name}".strip())
    _below(axes[-1], x_name)
    if compared:
        column = about["reference_column"]
        at = f", {column}" if (about["reference"], column) in next(iter(found.values())) and column else ""
        figure.suptitle(f"difference to {about['reference']}{at}, in points", fontsize="medium")
    return figure


def _one_reference(found: Mapping, about: Mapping[str, Any]) -> bool:
    """Whether all cells were compared with the same one: a map of differences to many would not be one."""
    cells = next(iter(found.values()))
    one = about["reference_column"] or (about["reference"], "") in cells
    return bool(one) and any(c.difference.n for cells in found.values() for c in cells.values())


def _short(row: str, about: Mapping[str, Any]) -> str:
    return row.removeprefix(f"{about['reference']}, ")


def _map(ax: Axes, cells: Sequence[Sequence[Summary | None]], reach: float | None) -> None:
    """Means on a scale of their own, or, within `reach` of 0, differences with their intervals."""
    means = np.array([[c.mean if c else np.nan for c in line] for line in cells])
    low, high = (np.nanmin(means), np.nanmax(means)) if reach is None else (-reach, reach)
    ax.imshow(means, cmap="Blues" if reach is None else "RdBu", vmin=low, vmax=high, aspect="auto")
    form = ".2f" if max(abs(low), abs(high)) <= 1 and reach is None else ".1f"
    for (i, j), value in np.ndenumerate(means):
        if np.isnan(value):
            continue
        part = (value - low) / ((high - low) or 1.0)
        dark = part > 0.6 if reach is None else abs(part - 0.5) > 0.3
        half = cells[i][j].ci95 if reach is not None else np.nan
        words = f"{value:{form}}" if reach is None else f"{value:+{form}}"
        words += "" if np.isnan(half) else f"\n± {half:{form}}"
        ax.text(j, i, words, ha="center", va="center", fontsize=7, color="white" if dark else INK)


def _curve(panels: Mapping[str, Sequence[str]], found: Mapping, about: Mapping[str, Any]) -> Figure:
    """Differences to the reference over what is varied, a line per row; rows outside the columns are level lines.

    Seeds have tails of their own, and differ more than methods do: their means would hide what is paired.
    """
    crossed = about["columns"] != [""]
    name, ticks = _axis(about["columns"] if crossed else about["rows"])
    x = np.array([float(tick) for tick in ticks]) if name else np.arange(len(ticks)) + 0.0
    compared = any(c.difference.n for cells in found.values() for c in cells.values())
    figure, axes = _grid(panels, 3.6, sharex=True)
    for j, (protocol, metrics) in enumerate(panels.items()):
        for ax, metric in zip(axes[:, j], metrics):
            _lines(ax, x, _against(found[protocol, metric], about["reference"], compared), about, crossed)
            _near(ax, 0.1 if protocol == "pseudo-labels" else 1.0)
            if not name:
                ax.set_xticks(x, ticks)
            elif x.min() > 0 and x.max() / x.min() >= 8:
                ax.set_xscale("log")
                ax.set_xticks([x.min(), x.max()], [f"{x.min():g}", f"{x.max():g}"])
                ax.minorticks_off()
    for ax, metric in zip(axes[:, 0], next(iter(panels.values()))):
        ax.set_ylabel(f"{name_of(metric)}, minus\n{about['reference']}" if compared else name_of(metric))
    _below(axes[-1], name)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper right", ncols=4)
    return figure


def _against(cells: Found, reference: str, compared: bool) -> dict[tuple[str, str], Summary]:
    """What is drawn of every cell: its paired difference, 0 for the reference itself; or its mean over seeds."""
    cells = {place: c for place, c in cells.items() if c.kind == "cell"}
    if not compared:
        return {place: c.over for place, c in cells.items()}
    itself = {place: summary([0.0] * c.over.n) for place, c in cells.items() if place[0] == reference}
    return itself | {place: c.difference for place, c in cells.items() if c.difference.n}


def _lines(ax: Axes, x: np.ndarray, cells: Mapping[tuple[str, str], Summary], about: Mapping[str, Any], crossed: bool):
    lines = {row: [(row, column) for column in about["columns"]] for row in about["rows"]}
    if not crossed:
        lines = {about["name"]: [(row, "") for row in about["rows"]]}
    for (row, places), (colour, mark) in zip(lines.items(), RUN_MARKS * len(lines)):
        over = [cells.get(place) for place in places]
        mean = np.array([o.mean if o else np.nan for o in over])
        half = np.nan_to_num([o.ci95 if o else 0 for o in over])
        ax.plot(x, mean, color=colour, marker=mark, ms=3, label=row)
        ax.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
    for row, dash in zip(about["extras"], ("--", ":", "-.")):
        if (row, "") in cells:
            ax.axhline(cells[row, ""].mean, color=SOFT, ls=dash, lw=0.9, label=row)


def _near(ax: Axes, least: float) -> None:
    """Keep the lines readable: of the bands, show half of what the means span above and below, and `least` anyway."""
    means = np.concatenate([line.get_ydata() for line in ax.lines])
    room = max(least, (np.nanmax(means) - np.nanmin(means)) / 2)
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, np.nanmin(means) - room), min(high, np.nanmax(means) + room))


def _axis(labels: Sequence[str]) -> tuple[str, list[str]]:
    """What the labels have in common before their numbers, and these: "tau_0=0.1", ... -> "tau_0", ["0.1", ...]."""
    parts = [re.fullmatch(r"(.*?)(?:=| x| )([\d.]+)", label) for label in labels]
    if all(parts) and len({part[1] for part in parts}) == 1:
        return parts[0][1], [part[2] for part in parts]
    return "", list(labels)
