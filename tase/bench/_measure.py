"""Time, spread and memory of a piece of work, on any device, and images to work on."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ..data import ImageSet, load_images

Row = dict[str, Any]
Times = dict[str, list[float]]  # seconds of each action, by round


@dataclass(frozen=True)
class Bench:
    """Where and how thoroughly to measure; `seconds` is what the counted rounds of one case may take, about.

    After `deadline` (by time.perf_counter) one round has to do.
    """

    device: torch.device
    quick: bool = False
    seconds: float = 20.0
    rounds: int = 15
    deadline: float = float("inf")

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


class Stopwatch:
    """Time by part of a piece of work: `switch` names the part that begins; on CUDA by events in the stream."""

    def __init__(self, device: torch.device):
        self.device, self.marks = device, []

    def switch(self, part: str) -> None:
        if self.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record(torch.cuda.current_stream(self.device))
        else:
            mark = time.perf_counter()
        self.marks.append((part, mark))

    def read(self) -> dict[str, float]:
        """Seconds of each part up to now."""
        self.switch("")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        total: dict[str, float] = {}
        for (part, start), (_, end) in zip(self.marks, self.marks[1:]):
            seconds = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
            total[part] = total.get(part, 0.0) + seconds
        return total


def timed(action: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    watch = Stopwatch(device)
    watch.switch("all")
    action()
    return watch.read()["all"]


def measure(actions: dict[str, Callable[[], Any]], s: Bench, share: float = 1.0, warm: bool = True) -> Times:
    """Seconds of every action in each counted round: in turn, so that all see the same machine.

    `share` of `s.seconds` is what the counted rounds take; three rounds are made unless they take over twice as long.
    With `warm`, one uncounted call comes before, and tells how often a short action is repeated within a round.
    """
    calls, times = dict.fromkeys(actions, 1), {name: [] for name in actions}
    for name, action in actions.items() if warm else ():
        calls[name] = min(100, int(0.01 / timed(action, s.device)) + 1)
    order, begun, budget = list(actions), time.perf_counter(), share * s.seconds
    for turn in range(s.rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            several = partial(_repeat, actions[name], calls[name])
            times[name].append(timed(several, s.device) / calls[name])
        now = time.perf_counter()
        if now > s.deadline or now - begun > (budget if turn >= 2 else 2 * budget):
            break
    return times


def _repeat(action: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        action()


def summary(times: list[float]) -> Row:
    """Median of the rounds, half of their interquartile range, and how many there were."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return {"seconds": middle, "spread": (high - low) / 2, "rounds": len(times)}


def compared(case: str, times: Times, against: str, amount: float = 0, unit: str = "") -> list[Row]:
    """A row per name; `ratio` is the median over the rounds of its time / the time of `against`."""
    rows = []
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, times[against]))
        row = {"case": case, "name": name, **summary(own), "ratio": ratio, "against": against}
        rows.append(row | ({"rate": amount / row["seconds"], "unit": unit} if amount else {}))
    return rows


def skipped(case: str, name: str, why: str) -> Row:
    return {"case": case, "name": name, "skipped": why}


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had: of the GPU, or of the machine and the container it runs in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [float("inf")]
    if (info := Path("/proc/meminfo")).exists():
        limits += [1024 * int(x.split()[1]) for x in info.read_text().splitlines() if x.startswith("MemAvailable")]
    most, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if most.exists() and used.exists() and (text := most.read_text().strip()).isdigit():
        limits.append(int(text) - int(used.read_text()))
    return min(limits)


def peak_memory(action: Callable[[], Any], device: torch.device) -> int:
    """Largest number of bytes in tensors that one call allocates beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        action()
    events = sorted((e for e in profile.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def some_images(n: int, channels: int = 3, size: int = 32) -> ImageSet:
    """n real images of any shape: scikit-learn's digits, enlarged and coloured; ten classes, long-tailed."""
    generator = torch.Generator().manual_seed(0)
    digits = load_images("digits")
    share = 0.6 ** torch.arange(10.0)
    share[digits.labels.unique().numel() :] = 0
    picked = torch.multinomial(share[digits.labels], n, replacement=True, generator=generator)
    images = F.interpolate(digits.images[picked, :1].float(), (size, size), mode="bilinear")
    colour = torch.rand(n, channels, 1, 1, generator=generator)
    images = (images * (0.4 + 0.6 * colour)).byte()
    labels = digits.labels[picked]
    return ImageSet(images, labels, digits.classes, labels.bincount(minlength=10), name="digits, enlarged")


def one_thread(action: Callable) -> Callable:
    def alone(*inputs):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return action(*inputs)
        finally:
            torch.set_num_threads(threads)

    return alone
