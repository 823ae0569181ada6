"""Measure one epoch and one refresh at 10^4, 10^5 and 10^6 images: `tase bench --only scale`.

Each number of images gets a process of its own, its images a file mapped into memory. Memory is what the process holds
beyond the mapped file, less what it held after a small run and the state of each sample; sampled every 20 ms. Times
on a CPU are those of the processor: on a machine that others use they say more than the clock's. What 64 GPUs would
send is counted in a real step on tensors without values, and divided by the speeds in CLUSTER.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from .. import distributed, training
from ..config import Config, ConfigError, ViewsConfig
from ..data import ImageSet, Splits, load_images
from ..presets import preset
from ..pseudo_labels import PseudoLabels
from ..runs import Run, RunWriter
from ..streams import generator
from ..views import draw_parameters, make_views
from .measuring import BenchBudget, BenchRow, synchronise

SIDE = 16  # pixels
ALLOWED = (0.2 * 2**30, 200)  # bytes beyond images and state: in all, and a sample
# What a simulated step of ResNet-50 at 224 pixels is held against: GPUs, images in a batch; bytes a second of a node's
# network (400 Gbit/s) and of its disks, GPUs in a node; bytes a second of one file system for all; views a second of a
# GPU (assumed, of the order that H100s reach in bf16); spread of the logarithm of reading times.
CLUSTER = {"gpus": 64, "batch": 65_536, "network": 50e9, "disks": 6e9, "node": 8, "shared": 10e9, "views": 3000}
SPREAD = 0.3
FIELDS = {
    "model.channels": "16,16,32,32",
    "optim.epochs": 1,
    "optim.batch": 512,
    "optim.precision": "float32",
    "guidance.refresh": 1,
    "guidance.warmup": 0.0,
    "guidance.ramp": 0.0,
}


def write_crops(n: int, folder: Path) -> None:
    """Write n real images [n, 1, 16, 16] to be mapped: crops of Fashion-MNIST (or of digits), long-tailed classes."""
    try:
        source = load_images("fashion-mnist")
    except ConfigError:  # it is not installed
        source = load_images("digits")
    rng = torch.Generator().manual_seed(0)
    frequency = 0.6 ** torch.arange(10.0)[source.labels]
    index = torch.multinomial(frequency, n, replacement=True, generator=rng)
    pixels = np.memmap(folder / "images.u8", np.uint8, "w+", shape=(n, 1, SIDE, SIDE))
    views = ViewsConfig(size=SIDE, scale=(0.3, 0.9), jitter=0.0, grey=0.0)
    for rows in torch.arange(n).split(8192):
        images = source.images[index[rows]]
        made = make_views(images, draw_parameters(views, len(rows), *images.shape[2:], rng), views)
        pixels[rows.numpy()] = (255 * made).round().byte().numpy()
    pixels.flush()
    np.save(folder / "labels.npy", source.labels[index].numpy())


def mapped_crops(folder: Path) -> ImageSet:
    """Map what `write_crops` wrote."""
    labels = torch.from_numpy(np.load(folder / "labels.npy"))
    pixels = np.memmap(folder / "images.u8", np.uint8, "c", shape=(len(labels), 1, SIDE, SIDE))
    classes = tuple("0123456789")
    return ImageSet(torch.from_numpy(pixels), labels, classes, labels.bincount(minlength=10), name="crops")


class PeakMemory:
    """Sample how many bytes the process holds beyond mapped files, or of the GPU's memory; `bytes`: the most, grown."""

    def __init__(self, device: torch.device):
        self.cuda, self.done, self.bytes = device.type == "cuda", threading.Event(), 0

    def now(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        found = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
        return 1024 * int(found.split()[1])

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            self.bytes = max(self.bytes, self.now() - self.before)

    def __enter__(self) -> PeakMemory:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.before = self.now()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.done.set()
        self.thread.join()


def timed(action: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds that one call takes (on a CPU the processor's, see above), and its result."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    result = action()
    synchronise(device)
    return clock() - start, result


def one_epoch(config: Config, images: ImageSet, folder: Path, device: torch.device) -> dict[str, float]:
    """Train one epoch and refresh once, into a run's folder; return seconds of each, and the bytes of its state."""
    t = training.Training(config, images, device)
    with RunWriter(folder, config) as writer:
        writer.begin(device, images)
        t.recorded = writer.recorded(images)
        epoch, _ = timed(lambda: training.train_epoch(t), device)
        refresh, h = timed(lambda: training.refresh(t), device)
        snapshot, _ = timed(lambda: writer.snapshot(t.epoch, **training.snapshot(t, h)), device)
        writer.checkpoint(t.state())
        writer.encoder(t.network)
        writer.status("finished", epoch=t.epoch, step=t.step)
    each = sum(x.nbytes for x in training.tensors_in(t.state()) if x.ndim and len(x) == len(images))
    return {"epoch": epoch, "refresh": refresh, "snapshot": snapshot, "state": each}


def measured_run(folder: Path, device: torch.device, threads: int) -> dict[str, float]:
    """Do all that is measured of the images in the folder, in a process of its own."""
    torch.set_num_threads(threads)
    images, config = mapped_crops(folder), preset("fashion-mnist-lt-small", "tase", overrides=FIELDS)
    few = images.subset(torch.arange(min(2048, len(images))))
    one_epoch(config, few, folder / "small", device)
    with PeakMemory(device) as peak:
        found = one_epoch(config, images, folder / "run", device)
    run = Run(folder / "run")
    run.splits = Splits(images)
    return found | {"peak": peak.bytes, "open": timed(lambda: _opened(run, folder), device)[0]}


def _opened(run: Run, folder: Path) -> None:
    """Make the explorer and the report, laid out by PCA (t-SNE of the 2,000 points drawn takes as long at any size)."""
    from ..widgets import explore_run, report

    explore_run(run, layout="pca")
    report(run, out=folder / "report.html", layout="pca", progress=False)


def measured_in_own_process(n: int, s: BenchBudget) -> dict[str, float]:
    """Return what `measured_run` measures of n images."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, spawn) as own:
        write_crops(n, Path(folder))
        return own.submit(measured_run, Path(folder), s.device, torch.get_num_threads()).result()


def scale_rows(found: dict[int, dict[str, float]]) -> list[BenchRow]:
    """Return rows of what was found for each number of images, and the exponents with which times grow."""
    rows = []
    for n, of in found.items():
        for name in ("epoch", "refresh", "snapshot", "open"):
            row = {"case": f"{n:,} images", "name": name, "seconds": of[name], "images": n}
            rows.append(row | ({"rate": n / of[name], "unit": "images/s"} if name in ("epoch", "refresh") else {}))
        memory = {"peak_bytes": of["peak"] - of["state"], "state_bytes": of["state"]}
        rows[-4] |= memory | {"allowed_bytes": ALLOWED[0] + ALLOWED[1] * n}
    for name in ("epoch", "refresh"):
        seconds = [of[name] for of in found.values()]
        exponent = np.polyfit(np.log(list(found)), np.log(seconds), 1)[0]
        rows.append({"case": "all", "name": f"{name}, exponent", "seconds": seconds[-1], "exponent": exponent})
    return rows


def bench_scale(s: BenchBudget) -> list[BenchRow]:
    """Measure times and peak memory at each size, and what clustering a sample changes; simulate 64 GPUs."""
    sizes = (2_048, 8_192) if s.quick else (10_000, 100_000, 1_000_000)
    rows = scale_rows({n: measured_in_own_process(n, s) for n in sizes})
    return rows + sampled_clusters(4_096 if s.quick else 100_000) + simulated_cluster()


def sampled_clusters(n: int) -> list[BenchRow]:
    """Cluster features of n images in full, from another seed, and from an eighth of them; adjusted Rand index each."""
    from sklearn.metrics import adjusted_rand_score

    with tempfile.TemporaryDirectory() as folder:
        write_crops(n, Path(folder))
        images = mapped_crops(Path(folder))
        t = training.Training(preset("fashion-mnist-lt-small", "tase", overrides=FIELDS), images, torch.device("cpu"))
        training.train_epoch(t)
        h, rows, found = training.features(t), [], {}
        for name, seed, sample in (("in full", 0, n), ("in full, another seed", 1, n), ("from an eighth", 0, n // 8)):
            clusters = PseudoLabels(n, generator=torch.Generator().manual_seed(seed))
            clusters.sample = sample
            seconds, _ = timed(lambda c=clusters: c.update(h), t.device)
            found[name] = clusters
            row = {"case": f"clusters of {n:,}", "name": name, "seconds": seconds}
            row["rand"] = adjusted_rand_score(found["in full"].labels, clusters.labels)
            row["correlation"] = float(np.corrcoef(found["in full"].headness, clusters.headness)[0, 1])
            rows.append(row)
    return rows


def step_messages(gpus: int, batch: int, side: int = 224, **fields: Any) -> dict[str, int]:
    """Count the bytes that a real step of one of so many processes gathers and sums, on tensors without values."""
    sent, meta = {"all-gather": 0, "all-reduce": 0}, torch.device("meta")

    def gathered(parts: list[torch.Tensor], x: torch.Tensor) -> None:
        sent["all-gather"] += sum(part.nbytes for part in parts)

    def reduced(x: torch.Tensor, async_op: bool = False) -> Any:
        sent["all-reduce"] += x.nbytes
        return mock.Mock()

    changes = {"optim.batch": batch, "optim.precision": "float32", "optim.image_memory": 1e6, **fields}
    config = preset("imagenet100-lt", "tase", overrides=changes)
    images = ImageSet(torch.empty(batch, 3, side, side, dtype=torch.uint8, device=meta))
    replaced = [
        (module, name, lambda n=n: n)
        for module in (training, distributed)
        for name, n in (("world", gpus), ("rank", 0))
    ]
    replaced += [(distributed.dist, "all_gather", gathered), (distributed.dist, "all_reduce", reduced)]
    replaced += [(training, "generator", lambda seed, purpose, device=None: generator(seed, purpose))]
    replaced += [(torch, "autocast", lambda *args, **options: contextlib.nullcontext())]  # meta has none
    with contextlib.ExitStack() as stack:
        for target, name, new in replaced:
            stack.enter_context(mock.patch.object(target, name, new))
        training.train_step(training.Training(config, images, meta), torch.arange(batch, device=meta))
    return sent


def waiting(compute: float, read: float, gpus: int, steps: int = 2000) -> float:
    """Simulate the loader: each process reads its next part while all compute, and the slowest holds up a step.

    Returns the share of the time that is waited, at reading times of mean `read` seconds.
    """
    times = read * np.random.default_rng(0).lognormal(-(SPREAD**2) / 2, SPREAD, (steps, gpus))
    return 1 - compute / np.maximum(compute, times.max(1)).mean()


def simulated_cluster() -> list[BenchRow]:
    """Return what a step would send and read on the machines of CLUSTER, and the seconds of each."""
    c = CLUSTER
    case, part = f"{c['gpus']} GPUs, batch {c['batch']:,}", c["batch"] // c["gpus"]
    rows, compute = [], 2 * part / c["views"]
    for name, sent in step_messages(c["gpus"], c["batch"]).items():
        # In a ring each link carries all that is gathered once, all that is summed twice.
        seconds = (1 + (name == "all-reduce")) * sent / c["network"]
        rows.append({"case": case, "name": name, "seconds": seconds, "note": f"{sent / 2**20:,.0f} MiB a step"})
    read = part * 3 * 224**2  # bytes
    for name, speed in (("disks of each node", c["disks"] / c["node"]), ("one file system", c["shared"] / c["gpus"])):
        share = waiting(compute, read / speed, c["gpus"])
        note = f"a part of {read / 2**20:,.0f} MiB; {share:.0%} of the time is waited, at {compute:.2f} s of computing"
        rows.append({"case": case, "name": f"reading, {name}", "seconds": read / speed, "note": note})
    return rows
