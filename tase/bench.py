"""Measure speed and memory against named rivals on this machine: `tase bench`.

    report = benchmark(quick=True)              # sections of rows: time, spread, ratio to a named row, peak memory
    print(bench_text(report))

torch.utils.benchmark times tase and its rivals in turn, round by round, each round after a warm-up of its own. A ratio
is the median over the rounds of one time / the other, so that a machine that slows down slows both. What is not
installed is named and left out, what would not fit into half of the free memory is skipped with the reason. Images are
scikit-learn's digits, enlarged and coloured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import os
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from . import training
from .config import ViewsConfig, check_choice
from .data import ImageSet, load_images
from .distributed import choose_device
from .files import load_json, save_json
from .losses import nt_xent
from .models import build
from .presets import preset
from .pseudo_labels import spherical_kmeans
from .runs import commit_text, environment
from .views import two_views

if TYPE_CHECKING:
    import pandas
    from torch.utils.benchmark import Measurement

BenchRow = dict[str, Any]
CHUNK_ROWS = 512  # of the chunked loss
STEP_PARTS = ("views", "network", "loss", "optimiser", "rest")
RIVALS = ("torchvision", "scikit-learn", "kornia", "lightly", "pytorch-metric-learning")


# --- measuring


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


# --- views


class PilPairs(Dataset):
    """Yield two views of a colour image by torchvision's transforms of PIL images, as public code has them."""

    def __init__(self, images: Tensor, v: ViewsConfig):
        from torchvision import transforms as T

        self.images = images.permute(0, 2, 3, 1).cpu().numpy()  # PIL wants channels last
        crop = T.RandomResizedCrop(images.shape[-1], v.scale, v.ratio, T.InterpolationMode(v.interpolation))
        jitter = T.RandomApply([T.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue)], v.jitter)
        steps = [crop, T.RandomHorizontalFlip(v.flip), jitter, T.RandomGrayscale(v.grey), T.ToTensor()]
        self.transform = T.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        image = Image.fromarray(self.images[i])
        return self.transform(image), self.transform(image)


def bench_views(s: BenchBudget, b: int = 512) -> list[BenchRow]:
    """Measure pairs of views a second, 32 x 32 colour; on a CPU also with one thread, as torchvision works."""
    v, alone = ViewsConfig(), "tase, 1 thread"
    batch = bench_images(b).images.to(s.device)
    pairs, rng = PilPairs(batch, v), torch.Generator(s.device).manual_seed(0)
    actions = {"tase": lambda: two_views(batch, v, rng)}
    if s.device.type == "cpu":
        actions[alone] = actions["tase"]
    actions["torchvision, per sample"] = lambda: [
        view.to(s.device) for view in default_collate([pairs[i] for i in range(b)])
    ]
    with contextlib.suppress(ImportError):
        from kornia import augmentation as K

        augment = nn.Sequential(
            K.RandomResizedCrop(batch.shape[2:], v.scale, v.ratio, resample=v.interpolation),
            K.RandomHorizontalFlip(p=v.flip),
            K.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue, p=v.jitter),
            K.RandomGrayscale(p=v.grey),
        )
        actions["kornia"] = lambda: augment(batch.repeat(2, 1, 1, 1).float() / 255)
    times = time_in_turn(actions, s, threads={alone: 1, "torchvision, per sample": 1})
    return rival_rows(f"views, batch {b}", times, alone if alone in actions else "tase", b, "pairs/s")


# --- loss


def plain_formula(z1: Float[Tensor, "b d"], z2: Float[Tensor, "b d"], tau: float = 0.2) -> Float[Tensor, ""]:
    """Compute NT-Xent the way public SimCLR code writes it: masks over the whole matrix, made in each step."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    image = torch.arange(len(z1), device=z.device).repeat(2)
    same = (image[None, :] == image[:, None]).float()  # [2b, 2b]
    similarity = z @ z.T
    off_diagonal = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    same, similarity = same[off_diagonal].view(len(z), -1), similarity[off_diagonal].view(len(z), -1)
    positives = similarity[same.bool()].view(len(z), -1)  # [2b, 1]
    negatives = similarity[~same.bool()].view(len(z), -1)  # [2b, 2b - 2]
    logits = torch.cat([positives, negatives], dim=1) / tau
    return F.cross_entropy(logits, torch.zeros(len(z), dtype=torch.int64, device=z.device))


def loss_rivals(b: int, device: torch.device) -> dict[str, tuple[Callable, float]]:
    """Return name -> (function of z1 and z2, estimate of its peak in bytes); tase's have tau and w per sample."""
    matrix = 4.0 * (2 * b) ** 2
    tau, weight = torch.linspace(0.1, 0.5, b, device=device), torch.linspace(0.5, 2, b, device=device)

    def per_sample(chunk: int | None) -> Callable:
        return lambda z1, z2: nt_xent(z1, z2, tau, weight, chunk=chunk).loss

    losses = {
        "tase": (per_sample(None), 3 * matrix),
        f"tase, chunks of {CHUNK_ROWS}": (per_sample(CHUNK_ROWS), 3 * matrix * min(1, CHUNK_ROWS / (2 * b))),
        "plain formula": (plain_formula, 8 * matrix),
    }
    with contextlib.suppress(ImportError):
        from lightly.loss import NTXentLoss

        losses["lightly"] = (NTXentLoss(temperature=0.2), 6 * matrix)
    with contextlib.suppress(ImportError):
        from pytorch_metric_learning import losses as metric

        # It compares each of 2b positive pairs with all (2b)^2 negative ones.
        pairs = metric.SelfSupervisedLoss(metric.NTXentLoss(temperature=0.2))
        losses["pytorch-metric-learning"] = (pairs, 4 * 2 * b * matrix)
    return losses


def bench_loss(s: BenchBudget, sizes: Iterable[int] = ()) -> list[BenchRow]:
    """Measure forward and backward of the loss of embeddings [b, 128], float32: time, and peak memory."""
    sizes = sizes or ((64, 512, 1024) if s.quick else (128, 512, 2048, 8192, 32768))
    return [row for b in sizes for row in _losses_at(s, b)]


def _losses_at(s: BenchBudget, b: int) -> list[BenchRow]:
    z = [torch.randn(b, 128, device=s.device, requires_grad=True) for _ in range(2)]
    free, case, rows, actions = free_bytes(s.device), f"loss, batch {b:,}", [], {}
    for name, (function, needed) in loss_rivals(b, s.device).items():
        if why := too_large(needed, free):
            rows.append({"case": case, "name": name, "skipped": why})
        else:
            actions[name] = lambda f=function: torch.autograd.grad(f(*z), z)
    if actions:
        for row in rival_rows(case, time_in_turn(actions, s, 0.5), next(iter(actions))):
            rows.append(row | {"peak_bytes": peak_bytes(actions[row["name"]], s.device)})
    return rows


# --- k-means


def direction_mixture(n: int, d: int, device: torch.device, parts: int = 200) -> Float[Tensor, "n d"]:
    """Draw unit rows around `parts` directions, of which some hold many more rows than others."""
    rng = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(parts, d, generator=rng), dim=1).to(device)
    part = (parts * torch.rand(n, generator=rng) ** 2).long().to(device)
    noise = torch.randn(n, d, generator=torch.Generator(device).manual_seed(0), device=device)
    return F.normalize(noise.mul_(d**-0.5).add_(centres[part]), dim=1)


def cluster_inertia(x: Float[Tensor, "n d"], labels: Int64[Tensor, "n"]) -> float:
    """Sum the squared distances of unit rows to the means of their clusters: one yardstick for all."""
    # sum |x - mean|^2 = sum |x|^2 - sum_k |sum of cluster k|^2 / n_k, and |x| = 1
    clusters = (x[labels == cluster].double() for cluster in labels.unique())
    return len(x) - float(sum(rows.sum(0).square().sum() / len(rows) for rows in clusters))


def bench_kmeans(s: BenchBudget, sizes: Iterable[int] = (), k: int = 100) -> list[BenchRow]:
    """Measure k-means of n x 512, all from the same k rows as centres, at most 50 iterations, and its inertia."""
    rows = []
    for n in sizes or ((10_000,) if s.quick else (10_000, 100_000, 1_000_000)):
        case = f"k-means, {n:,} x 512"
        if why := too_large(3 * 4.0 * n * 512, free_bytes(s.device)):
            rows.append({"case": case, "name": "all", "skipped": why})
            continue
        x, found = direction_mixture(n, 512, s.device), {}
        times = time_in_turn(_clusterings(x, k, found), s)
        for row in rival_rows(case, times, "tase, Lloyd alone"):
            rows.append(row | {"inertia": cluster_inertia(x, found[row["name"]].to(s.device))})
    return rows


def _clusterings(x: Float[Tensor, "n d"], k: int, found: dict[str, Tensor]) -> dict[str, Callable[[], None]]:
    """Return tase's and scikit-learn's k-means, which leave their labels in `found`."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    start, array = x[:k].clone(), x.cpu().numpy()

    def of_tase(name: str, moves: int) -> None:
        found[name] = spherical_kmeans(x, k, start, iterations=50, moves=moves)[0]

    def of_sklearn(name: str, kind: type) -> None:
        model = kind(k, init=start.cpu().numpy(), n_init=1, max_iter=50, random_state=0)
        found[name] = torch.from_numpy(model.fit(array).labels_).long()

    rivals = {
        "tase, Lloyd alone": (of_tase, 0),
        "tase": (of_tase, 20),
        "scikit-learn KMeans": (of_sklearn, KMeans),
        "scikit-learn MiniBatchKMeans": (of_sklearn, MiniBatchKMeans),
    }
    return {name: partial(cluster, name, option) for name, (cluster, option) in rivals.items()}


# --- training: a step by its parts, an epoch, a run


def bench_networks(s: BenchBudget) -> tuple[tuple[str, int, int], ...]:
    """Return backbones, batches, and steps in an epoch of the comparison with the reference loop."""
    if s.device.type == "cuda":
        return ("resnet18", 512, 21), ("conv4", 512, 21)
    return (("resnet18", 16, 1), ("conv4", 256, 4)) if s.quick else (("resnet18", 512, 3), ("conv4", 512, 12))


def bench_training(s: BenchBudget, backbone: str, batch: int, steps: int, method: str = "tase") -> training.Training:
    fields = {"model.backbone": backbone, "optim.batch": batch}
    return training.Training(preset("cifar10-lt", method, overrides=fields), bench_images(batch * steps), s.device)


def step_parts(t: training.Training, index: Int64[Tensor, "b"]) -> dict[str, Callable[[], Any]]:
    """Return "whole step", a real training step, and its parts as calls of their own, which leave the weights alone."""
    guide, rng = t.guidance, torch.Generator(t.device).manual_seed(0)
    views = [v.contiguous(memory_format=torch.channels_last) for v in two_views(t.images[index], t.config.views, rng)]

    def network() -> list[Tensor]:
        t.optimiser.zero_grad(set_to_none=True)
        with t.autocast:
            out = [t.forward(view) for view in views]
        torch.autograd.backward(out, [torch.ones_like(x) for x in out])
        return out

    z = [x.detach().requires_grad_() for x in network()]  # [b, d] twice

    def loss() -> None:
        out = nt_xent(*z, guide.tau[index], guide.weight[index], t.config.optim.loss_chunk or None, guide.scale(index))
        torch.autograd.grad(out.loss, z)

    def optimiser() -> None:
        for group in t.optimiser.param_groups:
            group["lr"] = 0.0  # train_step sets it again; as it is, repeating one gradient would blow up the weights
        t.optimiser.step()

    return {
        "whole step": lambda: training.train_step(t, index),
        "views": lambda: two_views(t.images[index], t.config.views, rng),
        "network": network,
        "loss": loss,
        "optimiser": optimiser,
    }


def bench_step(s: BenchBudget) -> list[BenchRow]:
    """Measure the training step and each of its parts alone; "rest" is what the parts leave of the step."""
    rows = []
    for backbone, batch, _ in bench_networks(s):
        t, case = bench_training(s, backbone, batch, 1), f"{backbone}, batch {batch}"
        t.network.train()
        times = time_in_turn(step_parts(t, torch.arange(batch, device=s.device)), s)
        whole = timed_row(case, "whole step", times.pop("whole step"), share=1.0)
        parts = [timed_row(case, name, measured) for name, measured in times.items()]
        parts += [{"case": case, "name": "rest", "seconds": whole["seconds"] - sum(row["seconds"] for row in parts)}]
        rows += [whole, *(row | {"share": row["seconds"] / whole["seconds"]} for row in parts)]
    return rows


def reference_loop(t: training.Training, workers: int, loss: Callable = plain_formula) -> Callable[[], None]:
    """Return an epoch the way public code trains: workers that augment image by image, float32, the plain loss."""
    config, device = t.config, t.device
    data, keep = PilPairs(t.set.images, config.views), workers > 0
    options = {"num_workers": workers, "persistent_workers": keep, "pin_memory": device.type == "cuda"}
    loader = DataLoader(data, config.optim.batch, shuffle=True, drop_last=True, **options)
    network = build(config.model, t.images.shape[1], t.size).to(device).train()
    optimiser = torch.optim.SGD(network.parameters(), config.optim.lr, config.optim.momentum, weight_decay=1e-4)

    def epoch() -> None:
        for first, second in loader:
            z1, z2 = network(torch.cat([first, second]).to(device, non_blocking=True)).chunk(2)
            optimiser.zero_grad()
            loss(z1, z2).backward()
            optimiser.step()

    return epoch


def bench_loop(s: BenchBudget) -> list[BenchRow]:
    """Measure epochs of the whole loop against the reference with as many workers as cores (16 at most)."""
    workers, rows = min(16, os.cpu_count() or 1), []
    reference = f"reference loop, {workers} workers"
    for backbone, batch, steps in bench_networks(s):
        t, case = bench_training(s, backbone, batch, steps), f"{backbone}, {steps} x batch {batch}"
        # The reference first: once workers are forked off, the first step of this process copies the pages it writes.
        actions = {reference: reference_loop(t, workers), "tase": lambda t=t: training.train_epoch(t)}
        times = time_in_turn(actions, s, 1.2)
        rows += rival_rows(case, {name: times[name] for name in ("tase", reference)}, "tase", batch * steps, "images/s")
    return rows


def bench_guidance(s: BenchBudget) -> list[BenchRow]:
    """Measure runs of equal length: TASE with refreshes and files, SimCLR with and without snapshots."""
    fields = {"optim.device": str(s.device), "record.knn_every": 0, **({"optim.epochs": 12} if s.quick else {})}

    def run(method: str, snapshots: bool = True, **more: Any) -> None:
        config = preset("digits-lt", method, overrides={**fields, "record.snapshots": snapshots, **more})
        with tempfile.TemporaryDirectory() as folder:
            training.train(config, Path(folder) / "run", progress=False)

    plain, recorded, tase = "simclr, no snapshots", "simclr, snapshots", "tase, snapshots"
    actions = {plain: lambda: run("simclr", False), recorded: lambda: run("simclr"), tase: lambda: run("tase")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runs this short have clusters that say nothing yet
        run("tase", **{"optim.epochs": 2})
        times = time_in_turn(actions, s, 5.0)
    case = f"digits-lt, {preset('digits-lt', overrides=fields).optim.epochs} epochs"
    against_recorded = [row for row in rival_rows(case, times, recorded) if row["name"] == tase]
    return rival_rows(case, times, plain) + against_recorded


def bench_rivals(s: BenchBudget) -> list[BenchRow]:
    """Measure a step of SDCLR, GH and BCL late in a run, where GH's loss has joined and BCL's mean strength is 0.5."""
    backbone, batch, _ = bench_networks(s)[1]
    index, actions = torch.arange(batch, device=s.device), {}
    for method in ("simclr", "sdclr", "gh", "bcl-i", "bcl-d"):
        t = bench_training(s, backbone, batch, 1, method)
        t.network.train()
        t.guidance.start_epoch(t.config.optim.epochs - 1)
        actions[method] = functools.partial(training.train_step, t, index)
        actions[method]()
    return rival_rows(f"{backbone}, batch {batch}", time_in_turn(actions, s), "simclr")


# --- the report


BENCH_SECTIONS: dict[str, Callable[[BenchBudget], list[BenchRow]]] = {
    "views": bench_views,
    "loss": bench_loss,
    "kmeans": bench_kmeans,
    "step": bench_step,
    "loop": bench_loop,
    "guidance": bench_guidance,
    "rivals": bench_rivals,
}


def benchmark(
    quick: bool = False,
    only: Iterable[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    say: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Measure the sections (`only` some of BENCH_SECTIONS) and return the report; `out`: write bench.json and a figure.

    `quick` uses small sizes and few rounds: under 45 s on two idle cores. Raises ConfigError for an unknown section or
    device. A section that breaks is reported with its error and does not stop the others.
    """
    for name in only:
        check_choice("bench section", name, BENCH_SECTIONS)
    chosen = choose_device(dataclasses.replace(preset("digits-lt").optim, device=device))
    s = BenchBudget(chosen, quick, 0.8, 7, time.perf_counter() + 36) if quick else BenchBudget(chosen)
    report: dict[str, Any] = {"format": 1, "quick": quick, "machine": machine_facts(chosen), "sections": {}, "took": {}}
    for name in only or BENCH_SECTIONS:
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


def machine_words(m: dict[str, Any]) -> list[str]:
    """Return what the times depend on: device, threads, torch, commit."""
    device = m["device"] if m["device_type"] == "cuda" else m["processor"]
    return [device, f"{m['threads']} threads", f"torch {m['torch']}", commit_text(m["commit"])]


def _row_line(row: BenchRow) -> str:
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
    notes += [f"inertia {row['inertia']:,.1f}"] if "inertia" in row else []
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
        lines += ["", f"{section} ({report['took'][section]:.1f} s)", *map(_row_line, rows)]
    return "\n".join(lines)


# --- the figure


def redraw_bench(folder: str | Path) -> list[Path]:
    """Redraw the figure of every bench.json under `folder`; returns the paths written."""
    from .figures.style import save

    found = sorted(Path(folder).rglob("bench.json"))
    return [drawn for path in found for drawn in save(bench_figure(load_json(path)), path.with_suffix(""))]


def bench_figure(report: dict[str, Any]):
    """Draw times relative to a named row of the same case (log scale), and the step by parts: a matplotlib figure."""
    import pandas

    from .figures.style import TEXT, footer, new_figure, style

    rows = pandas.DataFrame([row for found in report["sections"].values() for row in found if "seconds" in row])
    rows = rows.reindex(columns=["case", "name", "ratio", "against", "share"])
    ratios = rows[rows["against"].notna() & (rows["against"] != rows["name"])]
    steps = rows[rows["name"].isin(STEP_PARTS)]
    parts = steps.pivot(index="case", columns="name", values="share").reindex(steps["case"].unique())
    bars = len(ratios) + len(ratios.groupby(["case", "against"]))  # and a heading for each group
    drawings = [(_draw_ratios, ratios, bars)] * (bars > 0) + [(_draw_parts, parts, len(parts) + 1)] * (len(parts) > 0)
    heights = [height for *_, height in drawings] or [1]
    with style():
        figure = new_figure(TEXT, 1.2 + 0.17 * sum(heights) + 0.5 * (len(parts) > 0))
        panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axes, (draw, data, _) in zip(panels, drawings):
            draw(axes, data)
        footer(figure, " · ".join(machine_words(report["machine"]) + ["quick"] * report["quick"]))
    return figure


def _draw_ratios(axes, rows: pandas.DataFrame) -> None:
    """Draw a bar per row from 1 to its ratio, under a heading that names the case and what is 1."""
    from .figures.style import CLASS_COLOURS, INK

    names, ratios = [], []
    heading = {"transform": axes.get_yaxis_transform(), "va": "center", "weight": "bold", "fontsize": 7}
    heading["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for (case, against), group in rows.groupby(["case", "against"], sort=False):
        axes.text(0.01, len(names), f"{case}: 1 = {against}", **heading)
        names += ["", *group["name"]]
        ratios += [1.0, *group["ratio"]]
    colours = [CLASS_COLOURS[0] if x >= 1 else CLASS_COLOURS[1] for x in ratios]  # slower and faster than that
    drawn = axes.barh(range(len(names)), [x - 1 for x in ratios], left=1, color=colours, height=0.7)
    axes.bar_label(drawn, [f"{x:.3g}" if name else "" for name, x in zip(names, ratios)], padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color=INK, lw=0.8, zorder=0)
    axes.set(xscale="log", xlabel="time / time of the one named in bold (right: slower)")
    axes.set_xlim(0.5 * min(ratios), 2 * max(ratios))  # at least 0.5 to 2: a few percent shall look like it
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")  # within one decade these would overlap; the values stand at the bars
    axes.margins(y=0.01)
    axes.invert_yaxis()


def _draw_parts(axes, shares: pandas.DataFrame) -> None:
    """Draw the shares [case, part] of a step as one stacked bar per network."""
    from .figures.style import CLASS_COLOURS

    colours = CLASS_COLOURS[: len(STEP_PARTS)]
    shares[list(STEP_PARTS)].clip(lower=0).plot.barh(stacked=True, ax=axes, width=0.8, color=colours)
    axes.set(xlim=(0, 1), xlabel="share of the training step", ylabel="")
    axes.legend(ncols=len(STEP_PARTS), loc="lower center", bbox_to_anchor=(0.4, 1.0), borderaxespad=0.2)
