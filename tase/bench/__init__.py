"""How fast is it, against named rivals, on this machine: `python -m tase bench`.

    report = benchmark(quick=True)              # sections of rows: time, spread, ratio to ours, peak memory
    print(format_table(report))

Rivals and ours are timed in turn, round by round after one round that is not counted; a ratio is the median over the
rounds of theirs / ours, so that a machine that slows down slows both. What is not installed, or would not fit into
half of the free memory, is skipped and says so. Images are scikit-learn's digits, enlarged and coloured.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..config import check_choice
from ..presets import preset
from ..runs import load_json, save_json
from ..training import choose_device
from ._measure import Bench, Row
from ._pieces import bench_kmeans, bench_loss, bench_views
from ._report import bars, format_table, load, machine
from ._step import bench_loop, bench_step
from ._whole import bench_guidance, bench_import

__all__ = ["SECTIONS", "bars", "benchmark", "format_table", "redraw"]

SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "views": bench_views,
    "loss": bench_loss,
    "kmeans": bench_kmeans,
    "step": bench_step,
    "loop": bench_loop,
    "guidance": bench_guidance,
    "import": bench_import,
}


def benchmark(
    quick: bool = False,
    only: Iterable[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    say: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Measure the sections (`only` some of SECTIONS) and return the report; with `out`, write bench.json and a figure.

    `quick` uses small sizes and few rounds: under 45 s on two idle cores. Raises ConfigError for an unknown section or
    device. A section that breaks is reported with its error and does not stop the others.
    """
    for name in only:
        check_choice("bench section", name, SECTIONS)
    chosen = choose_device(dataclasses.replace(preset("digits-lt").optim, device=device))
    s = Bench(chosen, quick, 0.8, 7, time.perf_counter() + 36) if quick else Bench(chosen)
    report: dict[str, Any] = {"format": 1, "quick": quick, "machine": machine(chosen), "sections": {}, "took": {}}
    for name in only or SECTIONS:
        say(f"bench: {name} ...")
        started = time.perf_counter()
        try:
            rows = SECTIONS[name](s)
        except (OSError, RuntimeError) as error:  # too little shared memory for workers, a device that is full
            rows = [{"case": "all", "name": "all", "skipped": f"{type(error).__name__}: {error}"}]
        report["sections"][name] = rows
        report["took"][name] = time.perf_counter() - started
    report["machine"]["load_after"] = load()
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        save_json(Path(out) / "bench.json", report)
        redraw(out)
    return report


def redraw(folder: str | Path) -> list[Path]:
    """Draw the figure of every bench.json under `folder` anew; returns the paths written."""
    from ..figures.style import save

    found = sorted(Path(folder).rglob("bench.json"))
    return [drawn for path in found for drawn in save(bars(load_json(path)), path.with_suffix(""))]
