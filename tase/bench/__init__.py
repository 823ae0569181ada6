"""Measure speed and memory against named rivals on this machine: `tase bench`.

    report = benchmark(quick=True)              # sections of rows: time, spread, ratio to a named row, peak memory
    print(bench_text(report))

torch.utils.benchmark times tase and its rivals in turn, round by round, each round after a warm-up of its own. A ratio
is the median over the rounds of one time / the other, so that a machine that slows down slows both. What is not
installed is named and left out, what would not fit into half of the free memory is skipped with the reason. Images are
scikit-learn's digits, enlarged and coloured.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch

from ..config import OptimConfig, check_choice
from ..distributed import choose_device
from ..files import save_json
from ..runs import environment
from .measuring import BenchBudget, BenchRow
from .peers import bench_loop, bench_peers, bench_processes
from .report import bench_text, redraw_bench
from .rivals import bench_guidance, bench_kmeans, bench_loss, bench_rivals, bench_step, bench_views
from .scale import bench_scale

RIVALS = ("torchvision", "scikit-learn", "kornia", "lightly", "pytorch-metric-learning")
BENCH_SECTIONS: dict[str, Callable[[BenchBudget], list[BenchRow]]] = {
    "views": bench_views,
    "loss": bench_loss,
    "kmeans": bench_kmeans,
    "step": bench_step,
    "loop": bench_loop,
    "guidance": bench_guidance,
    "rivals": bench_rivals,
    "peers": bench_peers,
    "processes": bench_processes,
    "scale": bench_scale,
}
LONGER = ("peers", "processes", "scale")  # only where they are named: they train for minutes, or start processes


def benchmark(
    quick: bool = False,
    only: Iterable[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    say: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Measure the sections and return the report; `out`: write bench.json and a figure.

    `only` names some of BENCH_SECTIONS (default: all but LONGER). `quick` uses small sizes and few rounds: under 45 s
    on two idle cores. Raises ConfigError for an unknown section or device. A section that breaks is reported with its
    error and does not stop the others.
    """
    for name in only:
        check_choice("bench section", name, BENCH_SECTIONS)
    chosen = choose_device(OptimConfig(device=device))
    s = BenchBudget(chosen, quick, 0.8, 7, time.perf_counter() + 36) if quick else BenchBudget(chosen)
    report: dict[str, Any] = {"format": 1, "quick": quick, "machine": machine_facts(chosen), "sections": {}, "took": {}}
    for name in only or [name for name in BENCH_SECTIONS if name not in LONGER]:
        say(f"bench: {name} ...")
        started = time.perf_counter()
        try:
            rows = BENCH_SECTIONS[name](s)
        except (OSError, RuntimeError) as error:  # too little shared memory for workers, a device that is full
            rows = [{"case": "all", "name": "all", "skipped": f"{type(error).__name__}: {error}"}]
        report["sections"][name] = rows
        report["took"][name] = time.perf_counter() - started
    report["machine"]["load_after"] = psutil.getloadavg()[0]
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        save_json(Path(out) / "bench.json", report)
        redraw_bench(out)
    return report


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Return the device by name, threads, versions of all that is compared, the commit, and the load before."""
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    info = Path("/proc/cpuinfo")
    named = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    processor = (named or [platform.processor() or platform.machine()])[0]
    cores = {"processor": processor, "cores": os.cpu_count(), "load_before": psutil.getloadavg()[0]}
    return {**environment(device), **cores, "versions": {name: found.get(name) for name in RIVALS}}
