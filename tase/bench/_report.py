"""The report of a benchmark: the machine it ran on, a table, and one figure of bars."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from ..runs import environment
from ._measure import Row

RIVALS = ("torchvision", "scikit-learn", "kornia", "lightly", "pytorch-metric-learning")


def machine(device: torch.device) -> Row:
    """The device by name, threads, versions of all that is compared, the commit, and the load before measuring."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in RIVALS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        named = [x.partition(":")[2].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        processor = named[0] if named else processor
    cores = {"processor": processor, "cores": os.cpu_count(), "load_before": load()}
    return {**environment(device), **cores, "versions": versions}


def load() -> float | None:
    """Processes that ran or waited for a core in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _amount(value: float, unit: str) -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:,.0f} {unit}"


def _cells(row: Row) -> list[str]:
    """Case, name, time and spread, and all that is known beside it."""
    if "skipped" in row:
        return [row["case"], row["name"], "skipped", row["skipped"]]
    spread = f" ± {_time(row['spread'])}" if row.get("spread") else ""
    notes = [f"{row['share']:.1%} of the step"] if "share" in row and "matmul_rate" not in row else []
    if "ratio" in row:
        notes.append("1" if row["name"] == row["against"] else f"{row['ratio']:.3g} x {row['against']}")
    if "rate" in row:
        notes.append(_amount(row["rate"], row["unit"]))
    if "matmul_rate" in row:
        notes.append(f"{row['share']:.0%} of the matmul rate, {_amount(row['matmul_rate'], 'FLOP/s')}")
    if "peak_bytes" in row:
        notes.append(f"peak {row['peak_bytes'] / 2**20:,.1f} MiB")
    if "inertia" in row:
        notes.append(f"inertia {row['inertia']:,.1f}")
    return [row["case"], row["name"], _time(row["seconds"]) + spread, ", ".join(notes)]


def format_table(report: dict[str, Any]) -> str:
    """The report as text, a block per section; "2 x tase" means that it takes twice the time of tase."""
    m, lines = report["machine"], []
    gpu = f"{m['device']}, " if m["device_type"] == "cuda" else ""
    lines.append(f"{gpu}{m['processor']}, {m['threads']} threads; torch {m['torch']}, commit {m['commit']}")
    if m["load_before"] is not None:
        busy = ": it was busy with other work, times and ratios are rough" if m["load_before"] > 1 else ""
        lines.append(f"load of the machine before {m['load_before']:.1f}, after {m['load_after']:.1f}{busy}")
    for section, rows in report["sections"].items():
        lines += ["", f"{section} ({report['took'][section]:.1f} s)"]
        cells, before = [_cells(row) for row in rows], None
        widths = [max((len(c[i]) for c in cells), default=0) for i in range(3)]
        for cell in cells:
            first, before = ("" if cell[0] == before else cell[0]), cell[0]
            lines.append(f"  {first:{widths[0]}}  {cell[1]:{widths[1]}}  {cell[2]:>{widths[2]}}  {cell[3]}".rstrip())
    return "\n".join(lines)


def bars(report: dict[str, Any]):
    """Times of the rivals relative to ours (log scale), and the parts of the training step: one matplotlib figure."""
    from ..figures.style import TEXT, footer, new_figure, style

    rows = [(section, row) for section, found in report["sections"].items() for row in found if "seconds" in row]
    ratios = [(section, row) for section, row in rows if row.get("against", row["name"]) != row["name"]]
    parts = [row for section, row in rows if section == "step" and "spread" in row]
    heights = [max(1, len(ratios))] + [len({row["case"] for row in parts}) + 2] * bool(parts)
    m = report["machine"]
    origin = [m["device"] if m["device_type"] == "cuda" else m["processor"], f"{m['threads']} threads"]
    origin += [f"torch {m['torch']}", m["commit"], *(["quick"] if report["quick"] else [])]
    with style():
        figure = new_figure(TEXT, 1.6 + 0.14 * sum(heights))
        above, *below = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _ratio_bars(above, ratios)
        for axes in below:
            _step_bars(axes, parts)
        footer(figure, " · ".join(origin))
    return figure


def _ratio_bars(axes, ratios: list[tuple[str, Row]]) -> None:
    from ..figures.style import CLASS_COLOURS, INK

    names = [f"{row['case']}: {row['name']} / {row['against']}" for _, row in ratios]
    values = [row["ratio"] for _, row in ratios]
    bars = axes.barh(names, [x - 1 for x in values], left=1, color=CLASS_COLOURS[0], height=0.7)
    axes.bar_label(bars, [f"{x:.3g}" for x in values], padding=2, fontsize=7)
    axes.axvline(1, color=INK, lw=0.8)
    axes.set(xscale="log", xlabel="ratio of times")
    axes.xaxis.set_minor_formatter("")  # within one decade these would overlap; the values stand at the bars
    axes.margins(x=0.4)
    axes.invert_yaxis()


def _step_bars(axes, parts: list[Row]) -> None:
    from ..figures.style import CLASS_COLOURS

    left: dict[str, float] = {}
    for i, part in enumerate(dict.fromkeys(row["name"] for row in parts)):
        own = {row["case"]: row["share"] for row in parts if row["name"] == part}
        axes.barh(list(own), list(own.values()), left=[left.get(case, 0) for case in own], label=part, height=0.7,
                  color=CLASS_COLOURS[i])  # fmt: skip
        left = {case: left.get(case, 0) + share for case, share in own.items()}
    axes.set(xlim=(0, 1), xlabel="share of the training step")
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.2, -0.55))
