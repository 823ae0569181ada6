"""What is measured: views, loss, k-means, a training step by its parts, a run; each against named rivals."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from .. import training
from ..clustering import spherical_kmeans
from ..config import ViewsConfig
from ..losses import nt_xent
from ..presets import preset
from ..runs import RunWriter
from ..trust import feature_trust
from ..views import two_views
from .measuring import (
    BenchBudget,
    BenchRow,
    bench_images,
    free_bytes,
    peak_bytes,
    rival_rows,
    time_in_turn,
    timed_row,
    too_large,
)

CHUNK_ROWS = 512  # of the chunked loss
STEP_PARTS = ("views", "network", "loss", "optimiser", "rest")

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


# --- training: a step by its parts, a run


def bench_networks(s: BenchBudget) -> tuple[tuple[str, int, int], ...]:
    """Return backbones, batches, and steps in an epoch of the comparison with the reference loop."""
    if s.device.type == "cuda":
        return ("resnet18", 512, 21), ("conv4", 512, 21)
    return (("resnet18", 16, 1), ("conv4", 256, 4)) if s.quick else (("resnet18", 512, 3), ("conv4", 512, 12))


def bench_training(
    s: BenchBudget, backbone: str, batch: int, steps: int, method: str = "tase", **fields: Any
) -> training.Training:
    fields = {"model.backbone": backbone, "optim.batch": batch, **fields}
    return training.Training(preset("cifar10-lt", method, overrides=fields), bench_images(batch * steps), s.device)


def late_training(s: BenchBudget, backbone: str, batch: int, method: str = "tase", **fields: Any) -> training.Training:
    """Set up a training late in its run: what a method adds to a step has joined."""
    t = bench_training(s, backbone, batch, 1, method, **fields)
    t.network.train()
    t.guidance.start_epoch(t.config.optim.epochs - 1)
    return t


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


def bench_guidance(s: BenchBudget) -> list[BenchRow]:
    """Measure runs of equal length: TASE with refreshes and files, SimCLR with and without snapshots."""
    fields = {"optim.device": str(s.device), "record.knn_every": 0, **({"optim.epochs": 12} if s.quick else {})}

    def run(method: str, snapshots: bool = True, **more: Any) -> None:
        config = preset("digits-lt", method, overrides={**fields, "record.snapshots": snapshots, **more})
        with tempfile.TemporaryDirectory() as folder:
            training.train(config, Path(folder) / "run", progress=False)

    plain, recorded, tase = "simclr, no snapshots", "simclr, snapshots", "tase, snapshots"
    actions = {plain: lambda: run("simclr", False), recorded: lambda: run("simclr"), tase: lambda: run("tase")}
    # What trust takes of the two with snapshots: that of all refreshes, by itself.
    settings, h = preset("digits-lt", overrides=fields), torch.rand(405, 128, device=s.device)
    due = sum(map(settings.is_refresh, range(settings.optim.epochs + 1)))
    actions["trust, all refreshes"] = lambda: [feature_trust(h, torch.Generator().manual_seed(0)) for _ in range(due)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runs this short have clusters that say nothing yet
        run("tase", **{"optim.epochs": 2})
        times = time_in_turn(actions, s, 5.0)
    case = f"digits-lt, {settings.optim.epochs} epochs"
    against_recorded = [row for row in rival_rows(case, times, recorded) if row["name"] == tase]
    return rival_rows(case, times, plain) + against_recorded + _refresh_rows(s)


def _refresh_rows(s: BenchBudget) -> list[BenchRow]:
    """Measure a refresh with trust and snapshot against an epoch, of as many images as fashion-mnist-lt-small has."""
    config = preset("fashion-mnist-lt-small", "tase", overrides={"optim.device": str(s.device)})
    images = bench_images(256 if s.quick else 2478)
    images = dataclasses.replace(images, images=images.images[:, :1, 2:30, 2:30])  # grey, 28 pixels
    t = training.Training(config, images, s.device)
    with tempfile.TemporaryDirectory() as folder, RunWriter(Path(folder) / "run", config) as writer:
        writer.begin(s.device, images)

        def refreshed() -> None:
            writer.snapshot(t.epoch, **training.snapshot(t, training.refresh(t)))

        actions = {"an epoch": lambda: training.train_epoch(t), f"a refresh, one in {config.refresh} epochs": refreshed}
        times = time_in_turn(actions, s, 5.0)
    return rival_rows(f"conv4, {len(images):,} images", times, "an epoch")


def bench_rivals(s: BenchBudget) -> list[BenchRow]:
    """Measure a step of SDCLR, GH and BCL late in a run, where GH's loss has joined and BCL's mean strength is 0.5."""
    backbone, batch, _ = bench_networks(s)[1]
    index, actions = torch.arange(batch, device=s.device), {}
    for method in ("simclr", "sdclr", "gh", "bcl-i", "bcl-d"):
        actions[method] = partial(training.train_step, late_training(s, backbone, batch, method), index)
        actions[method]()
    return rival_rows(f"{backbone}, batch {batch}", time_in_turn(actions, s), "simclr")
