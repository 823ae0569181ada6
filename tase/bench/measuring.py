"""Time actions in turn, ratios of times, peak memory, and the images that are measured on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch.nn import functional as F

from ..data import ImageSet, load_images

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement

BenchRow = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class BenchBudget:
    """Say where and how thoroughly to measure: the rounds of one case may take about `seconds`.

    After `deadline` (by time.perf_counter) one round has to do.
    """

    device: torch.device
    quick: bool = False
    seconds: float = 20.0
    rounds: int = 15
    deadline: float = float("inf")


def time_in_turn(
    actions: dict[str, Callable[[], Any]], s: BenchBudget, share: float = 1.0, threads: dict[str, int] | None = None
) -> dict[str, list[Measurement]]:
    """Time every action once a round, for at most `share` of the budget; `threads` of some (the others: torch's).

    Three rounds are made unless they take over twice the time.
    """
    from torch.utils.benchmark import Timer  # imported here: it looks for a compiler, and may warn

    timers = {}
    for name, action in actions.items():
        number = (threads or {}).get(name, torch.get_num_threads())
        timers[name] = Timer("action()", globals={"action": action}, num_threads=number)
    times: dict[str, list[Measurement]] = {name: [] for name in actions}
    order, begun, seconds = list(actions), time.perf_counter(), share * s.seconds
    for turn in range(s.rounds):
        first = turn % len(order)  # another one begins each round: none always follows the same neighbour
        for name in order[first:] + order[:first]:
            times[name].append(timers[name].blocked_autorange(min_run_time=seconds / s.rounds / len(order)))
        now = time.perf_counter()
        if now > s.deadline or now - begun > (seconds if turn >= 2 else 2 * seconds):
            break
    return times


def timed_row(case: str, name: str, times: list[Measurement], **more: Any) -> BenchRow:
    """Return a row: median and half of the interquartile range over all blocks of calls, number of rounds."""
    (merged,) = times[0].merge(times)
    return {"case": case, "name": name, "seconds": merged.median, "spread": merged.iqr / 2, "rounds": len(times)} | more


def rival_rows(
    case: str, times: dict[str, list[Measurement]], against: str, amount: float = 0, unit: str = ""
) -> list[BenchRow]:
    """Return a row per name; `ratio` is the median over the rounds of its time / the time of `against`."""
    rows = []
    for name, measured in times.items():
        ratios = [a.median / b.median for a, b in zip(measured, times[against])]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        row = timed_row(case, name, measured, ratio=middle, ratio_spread=(high - low) / 2, against=against)
        rows.append(row | ({"rate": amount / row["seconds"], "unit": unit} if amount else {}))
    return rows


def too_large(needed: float, free: float) -> str:
    """Return why so many bytes are not tried, or nothing if they fit into half of those that are free."""
    if needed <= free / 2:
        return ""
    return f"needs about {needed / 2**30:,.0f} GiB, over half of the {free / 2**30:,.0f} GiB free"


def free_bytes(device: torch.device) -> float:
    """Return the bytes that can still be had: of the GPU, or of the machine and the container it runs in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no container, or "max": one without a limit
        limit, used = (int((Path("/sys/fs/cgroup") / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(action: Callable[[], Any], device: torch.device) -> int:
    """Return how many bytes one call holds in tensors at most, beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        action()
    # Every allocation and release is an event of its own, with its size or minus its size.
    events = sorted((e for e in profile.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def bench_images(n: int) -> ImageSet:
    """Make n real images [n, 3, 32, 32]: scikit-learn's digits, enlarged and coloured; ten classes, long-tailed."""
    rng = torch.Generator().manual_seed(0)
    digits = load_images("digits")
    frequency = 0.6 ** torch.arange(10.0)
    picked = torch.multinomial(frequency[digits.labels], n, replacement=True, generator=rng)
    images = F.interpolate(digits.images[picked, :1].float(), (32, 32), mode="bilinear")
    images = (images * (0.4 + 0.6 * torch.rand(n, 3, 1, 1, generator=rng))).byte()
    labels = digits.labels[picked]
    return ImageSet(images, labels, digits.classes, labels.bincount(minlength=10), name="digits, enlarged")
