"""The report of a benchmark as text and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import load_json
from ..runs import commit_text
from .measuring import BenchRow
from .rivals import STEP_PARTS

if TYPE_CHECKING:
    import pandas

MEMORY = ("peak_bytes", "state_bytes", "allowed_bytes")


def machine_words(m: dict[str, Any]) -> list[str]:
    """Return what the times depend on: device, threads, torch, commit."""
    device = m["device"] if m["device_type"] == "cuda" else m["processor"]
    return [
        device,
        f"{m['threads']} thread{'s' * (m['threads'] != 1)}",
        f"torch {m['torch']}",
        commit_text(m["commit"]),
    ]


def row_line(row: BenchRow) -> str:
    """Return case, name, time and spread, and all else that is known."""
    head = f"  {row['case']:26}{row['name']:30}"
    if "skipped" in row:
        return f"{head}skipped: {row['skipped']}"
    notes = [f"{row['share']:.1%} of the step"] if "share" in row else []
    if row.get("against", row["name"]) != row["name"]:
        about = f" ± {row['ratio_spread']:.2g}" if "ratio_spread" in row else ""
        notes.append(f"{row['ratio']:.3g}{about} x {row['against']}")
    notes += [f"{row['rate']:,.0f} {row['unit']}"] if "rate" in row else []
    notes += [f"peak {row['peak_bytes'] / 2**20:,.1f} MiB"] if "peak_bytes" in row else []
    notes += [f"1-NN {row['knn']:.1f} %"] if "knn" in row else []
    notes += [f"{row['processor_seconds']:.3g} s of each core"] if "processor_seconds" in row else []
    notes += [f"inertia {row['inertia']:,.1f}"] if "inertia" in row else []
    notes += [f"~ images^{row['exponent']:.2f}"] if "exponent" in row else []
    notes += [row["note"]] if "note" in row else []
    if "rand" in row:
        notes.append(f"adjusted Rand index {row['rand']:.2f}, correlation of headness {row['correlation']:.2f}")
    if "state_bytes" in row:
        state, allowed = (row[name] / 2**20 for name in ("state_bytes", "allowed_bytes"))
        notes.append(f"beyond a state of {state:,.1f} MiB (allowed: {allowed:,.0f})")
    spread = f" ± {1e3 * row['spread']:,.2f}" if "spread" in row else ""
    return f"{head}{1e3 * row['seconds']:>12,.2f}{spread} ms  {', '.join(notes)}".rstrip()


def bench_text(report: dict[str, Any]) -> str:
    """Return the report as text, a block per section; "2 x tase" means that it takes twice the time of tase."""
    m = report["machine"]
    busy = ": it was busy with other work, times and ratios are rough" if m["load_before"] > 1 else ""
    lines = [", ".join(machine_words(m))]
    lines.append(f"load of the machine before {m['load_before']:.1f}, after {m['load_after']:.1f}{busy}")
    if missing := [name for name, version in m["versions"].items() if version is None]:
        lines.append(f"not installed: {', '.join(missing)}")
    for section, rows in report["sections"].items():
        lines += ["", f"{section} ({report['took'][section]:.1f} s)", *map(row_line, rows)]
    return "\n".join(lines)


# --- the figure


def redraw_bench(folder: str | Path, note: bool = True) -> list[Path]:
    """Redraw the figure of every bench.json under `folder`; returns the paths written. `note`: with the machine."""
    from ..figures.style import save

    found = sorted(Path(folder).rglob("bench.json"))
    return [drawn for path in found for drawn in save(bench_figure(load_json(path), note), path.with_suffix(""))]


def bench_figure(report: dict[str, Any], note: bool = True):
    """Draw times relative to a named row of the same case (log scale), and the step by parts: a matplotlib figure."""
    import pandas

    from ..figures.style import TEXT, footer, new_figure, style

    rows = pandas.DataFrame([row for found in report["sections"].values() for row in found if "seconds" in row])
    rows = rows.reindex(columns=["case", "name", "ratio", "against", "share", "images", "seconds", *MEMORY, "exponent"])
    sizes = rows[rows["images"].notna() | rows["exponent"].notna()]
    ratios = rows[rows["against"].notna() & (rows["against"] != rows["name"])]
    steps = rows[rows["name"].isin(STEP_PARTS)]
    parts = steps.pivot(index="case", columns="name", values="share").reindex(steps["case"].unique())
    bars = len(ratios) + len(ratios.groupby(["case", "against"]))  # and a heading for each group
    drawings = [(_draw_ratios, ratios, bars)] * (bars > 0) + [(_draw_parts, parts, len(parts) + 1)] * (len(parts) > 0)
    drawings += [(_draw_times, sizes, 14), (_draw_memory, sizes, 14)] * (len(sizes) > 0)
    heights = [height for *_, height in drawings] or [1]
    with style():
        figure = new_figure(TEXT, 1.2 + 0.17 * sum(heights) + 0.5 * (len(parts) > 0))
        panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axes, (draw, data, _) in zip(panels, drawings):
            draw(axes, data)
        if note:
            footer(figure, " · ".join(machine_words(report["machine"]) + ["quick"] * report["quick"]))
    return figure


def _draw_ratios(axes, rows: pandas.DataFrame) -> None:
    """Draw a bar per row from 1 to its ratio, under a heading that names the case and what is 1."""
    from ..figures.style import CLASS_COLOURS, INK, plain_log

    names, ratios = [], []
    heading = {"transform": axes.get_yaxis_transform(), "va": "center", "weight": "bold", "fontsize": 7}
    heading["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for (case, against), group in rows.groupby(["case", "against"], sort=False):
        axes.text(0.01, len(names), f"{case}: 1 = {against}", **heading).set_in_layout(False)  # bars need the width
        names += ["", *group["name"]]
        ratios += [1.0, *group["ratio"]]
    colours = [CLASS_COLOURS[0] if x >= 1 else CLASS_COLOURS[1] for x in ratios]  # slower and faster than that
    drawn = axes.barh(range(len(names)), [x - 1 for x in ratios], left=1, color=colours, height=0.7)
    axes.bar_label(drawn, [f"{x:.3g}" if name else "" for name, x in zip(names, ratios)], padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color=INK, lw=0.8, zorder=0)
    axes.set(xscale="log", xlabel="time / time of the one named in bold (right: slower)")
    # At least 0.5 to 2, so that a few percent look small, and room for the numbers beside the bars.
    margin = max(2, (max(ratios) / min(ratios)) ** 0.25)
    axes.set_xlim(min(ratios) / margin, max(ratios) * margin)
    plain_log(axes.xaxis, steps=(1,) if max(ratios) > 20 * min(ratios) else (1, 2, 5))  # within a decade more than one
    axes.margins(y=0.01)
    axes.invert_yaxis()


def _draw_parts(axes, shares: pandas.DataFrame) -> None:
    """Draw the shares [case, part] of a step as one stacked bar per network."""
    from ..figures.style import CLASS_COLOURS

    colours = CLASS_COLOURS[: len(STEP_PARTS)]
    shares[list(STEP_PARTS)].clip(lower=0).plot.barh(stacked=True, ax=axes, width=0.8, color=colours)
    axes.set(xlim=(0, 1), xlabel="share of the training step", ylabel="")
    axes.legend(ncols=len(STEP_PARTS), loc="lower center", bbox_to_anchor=(0.4, 1.0), borderaxespad=0.2)


def _draw_times(axes, rows: pandas.DataFrame) -> None:
    """Draw seconds against the number of images, both on log scales; the exponent fitted stands in the legend."""
    from ..figures.style import plain_log

    for name, measured in rows[rows["images"].notna()].groupby("name", sort=False):
        fit = rows.loc[rows["name"] == f"{name}, exponent", "exponent"]
        note = f", ~ images$^{{{fit.iloc[0]:.2f}}}$" if len(fit) else ""
        axes.plot(measured["images"], measured["seconds"], "o-", ms=3, label=f"{name}{note}")
    axes.set(xscale="log", yscale="log", xlabel="images", ylabel="seconds")
    plain_log(axes.xaxis, axes.yaxis)
    axes.legend(loc="lower right")


def _draw_memory(axes, rows: pandas.DataFrame) -> None:
    """Draw peak memory beyond images and state, and what is allowed, against the number of images."""
    from ..figures.style import plain_log

    measured = rows[rows["peak_bytes"].notna()]
    labels = ("peak beyond images and state", "state of each sample", "allowed beyond them")
    for name, label, line in zip(MEMORY, labels, ("o-", "s-", ":")):
        axes.plot(measured["images"], measured[name] / 2**20, line, ms=3, label=label)
    axes.set(xscale="log", yscale="log", xlabel="images", ylabel="MiB")
    plain_log(axes.xaxis, axes.yaxis)
    axes.legend(loc="lower right")
