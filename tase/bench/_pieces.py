"""Views, loss and k-means, each against its rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ..config import ViewsConfig
from ..pseudo_labels import spherical_kmeans
from ..views import torchvision_views, two_views
from ._measure import (
    Bench,
    Row,
    compared,
    free_memory,
    installed,
    measure,
    one_thread,
    peak_memory,
    skipped,
    some_images,
)
from ._rivals import kornia_views, loss_functions


def bench_views(s: Bench, b: int = 512) -> list[Row]:
    """Pairs of views a second, 32 x 32 colour; on a CPU also with one thread, as the per-sample back end works."""
    config, case = ViewsConfig(), f"views, batch {b}"
    batch = some_images(b).images.to(s.device)
    generator = torch.Generator(s.device).manual_seed(0)

    def ours() -> None:
        two_views(batch, config, generator)

    against = "tase" if s.cuda else "tase, 1 thread"
    actions = {"tase": ours, against: ours if s.cuda else one_thread(ours)}
    actions["torchvision, per sample"] = one_thread(lambda: torchvision_views(batch, config))
    if installed("kornia"):
        augment = kornia_views(config, batch.shape[-1])
        actions["kornia"] = lambda: augment(batch.repeat(2, 1, 1, 1).float() / 255)
    rows = compared(case, measure(actions, s), against, b, "pairs/s")
    return rows + ([] if installed("kornia") else [skipped(case, "kornia", "not installed")])


def bench_loss(s: Bench, sizes: Iterable[int] = ()) -> list[Row]:
    """Forward and backward of the loss of embeddings [b, 128], float32: time, and peak memory."""
    names = {"lightly": "lightly", "pytorch-metric-learning": "pytorch_metric_learning"}
    rows = [skipped("loss", name, "not installed") for name, package in names.items() if not installed(package)]
    for b in sizes or ((64, 512, 1024) if s.quick else (128, 512, 2048, 8192, 32768)):
        rows += _losses_at(s, b)
    return rows


def _losses_at(s: Bench, b: int) -> list[Row]:
    z1, z2 = (torch.randn(b, 128, device=s.device, requires_grad=True) for _ in range(2))
    free, case, rows, actions = free_memory(s.device), f"loss, batch {b:,}", [], {}
    for name, (function, needed) in loss_functions(b, s.device).items():
        if needed > free / 2:
            why = f"needs about {needed / 2**30:,.0f} GiB, over half of the {free / 2**30:,.0f} GiB free"
            rows.append(skipped(case, name, why))
        else:
            actions[name] = lambda f=function: torch.autograd.grad(f(z1, z2), (z1, z2))
    if not actions:
        return rows
    timed_rows = compared(case, measure(actions, s, 0.5), next(iter(actions)))
    return [row | {"peak_bytes": peak_memory(actions[row["name"]], s.device)} for row in timed_rows] + rows


def mixture(n: int, d: int, device: torch.device, parts: int = 200) -> Float[Tensor, "n d"]:
    """Unit rows around `parts` directions, of which some hold many more rows than others."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(parts, d, generator=generator), dim=1).to(device)
    part = (parts * torch.rand(n, generator=generator) ** 2).long().to(device)
    noise = torch.randn(n, d, generator=torch.Generator(device).manual_seed(0), device=device)
    return F.normalize(noise.mul_(d**-0.5).add_(centres[part]), dim=1)


def inertia(x: Float[Tensor, "n d"], labels: Int64[Tensor, "n"]) -> float:
    """Sum of squared distances of unit rows to the means of their clusters: one yardstick for all."""
    sums = x.new_zeros(int(labels.max()) + 1, x.shape[1], dtype=torch.float64)
    for rows, own in zip(x.split(2**16), labels.split(2**16)):
        sums.index_add_(0, own, rows.double())
    return len(x) - float((sums.square().sum(1) / labels.bincount().clamp(min=1)).sum())


def bench_kmeans(s: Bench, sizes: Iterable[int] = (), k: int = 100) -> list[Row]:
    """k-means of n x 512, all from the same k rows as centres, at most 50 iterations, with the inertia reached."""
    rows = []
    for n in sizes or ((10_000,) if s.quick else (10_000, 100_000, 1_000_000)):
        case, needed, free = f"k-means, {n:,} x 512", 3 * 4.0 * n * 512, free_memory(s.device)
        if needed > free / 2:
            why = f"needs about {needed / 2**30:,.0f} GiB, over half of the {free / 2**30:,.0f} GiB free"
            rows.append(skipped(case, "all", why))
            continue
        x, found = mixture(n, 512, s.device), {}
        times = measure(_clusterings(x, k, found), s)
        for row in compared(case, times, "tase, Lloyd alone"):
            rows.append(row | {"inertia": inertia(x, found[row["name"]].to(s.device))})
    return rows


def _clusterings(x: Float[Tensor, "n d"], k: int, found: dict[str, Tensor]) -> dict[str, Callable[[], None]]:
    """Ours and scikit-learn's, which leave their labels in `found`."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    start, array = x[:k].clone(), x.cpu().numpy()

    def ours(name: str, moves: int) -> None:
        found[name] = spherical_kmeans(x, k, start, iterations=50, moves=moves)[0]

    def theirs(name: str, kind: type) -> None:
        model = kind(k, init=start.cpu().numpy(), n_init=1, max_iter=50, random_state=0)
        found[name] = torch.from_numpy(model.fit(array).labels_).long()

    return {
        "tase, Lloyd alone": lambda: ours("tase, Lloyd alone", 0),
        "tase": lambda: ours("tase", 20),
        "scikit-learn KMeans": lambda: theirs("scikit-learn KMeans", KMeans),
        "scikit-learn MiniBatchKMeans": lambda: theirs("scikit-learn MiniBatchKMeans", MiniBatchKMeans),
    }
