"""Whole epochs side by side: tase, the loops that others write, and tase in several processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .. import training
from ..config import ViewsConfig
from ..distributed import team
from ..models import encode, initial_network
from ..probes import knn_accuracy
from ..studies.jobs import resources
from .measuring import BenchBudget, BenchRow, bench_images, rival_rows, synchronise, time_in_turn
from .rivals import PilPairs, bench_networks, bench_training, plain_formula

ENDED = 10  # seconds in which the processes of a team must end


def reference_loop(
    t: training.Training,
    workers: int,
    loss: Callable = plain_formula,
    network: nn.Module | None = None,
    data: Dataset | None = None,
) -> Callable[[], None]:
    """Return an epoch the way public code trains: workers that augment image by image, float32, a plain loss.

    Network (one with the weights that t had at first, if none is given), batch, optimiser, its rates and the
    parameters of the views are those of t. Weights lie in torch's default memory format, as such code leaves them.
    """
    config, device = t.config, t.device
    data, optim, keep = data or PilPairs(t.set.images, config.views), config.optim, workers > 0
    options = {"num_workers": workers, "persistent_workers": keep, "pin_memory": device.type == "cuda"}
    loader = DataLoader(data, optim.batch, shuffle=True, drop_last=True, **options)
    network = network or initial_network(config, t.images.shape[1], t.size, device)
    network.to(memory_format=torch.contiguous_format)
    optimiser = torch.optim.SGD(network.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay)
    step = itertools.count()

    def epoch() -> None:
        network.train()
        for first, second in loader:
            optimiser.param_groups[0]["lr"] = training.learning_rate(optim, next(step), t.steps_per_epoch)
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


# --- peers: speed and accuracy after the same epochs


def peer_networks(s: BenchBudget) -> tuple[tuple[str, int, int, int], ...]:
    """Return backbones, batches, steps in an epoch, and epochs."""
    if s.device.type == "cuda":
        return ("resnet18", 512, 21, 20), ("conv4", 512, 21, 20)
    return (("conv4", 64, 2, 3),) if s.quick else (("conv4", 256, 8, 9), ("resnet18", 64, 4, 4))


class LightlyPairs(PilPairs):
    """Yield two views of an image by lightly's SimCLRTransform with the parameters of `v`."""

    def __init__(self, images: Tensor, v: ViewsConfig):
        from lightly.transforms.simclr_transform import SimCLRTransform

        super().__init__(images, v)
        jitter = {"cj_bright": v.brightness, "cj_contrast": v.contrast, "cj_sat": v.saturation, "cj_hue": v.hue}
        chances = {"cj_prob": v.jitter, "hf_prob": v.flip, "random_gray_scale": v.grey, "gaussian_blur": 0.0}
        size = images.shape[-1]
        self.pair = SimCLRTransform(size, min_scale=v.scale[0], normalize=None, **jitter, **chances)

    def __getitem__(self, i: int) -> list[Tensor]:
        from PIL import Image

        return self.pair(Image.fromarray(self.images[i]))


def peer_loops(t: training.Training, workers: int) -> tuple[dict[str, tuple[Callable, nn.Module]], list[BenchRow]]:
    """Return name -> (epoch, its network) of tase and of each peer, and a row for a peer that is not installed.

    All start from the same weights. lightly's: its SimCLR example, with its transform and its loss. SDCLR-style: PIL
    images, torchvision's transforms, a DataLoader, and the loss as that code writes it.
    """
    start = [initial_network(t.config, t.images.shape[1], t.size, t.device) for _ in range(2)]
    plain = reference_loop(t, workers, plain_formula, start[0])
    loops = {
        "tase": (lambda: training.train_epoch(t), t.network),
        f"SDCLR-style loop, {workers} workers": (plain, start[0]),
    }
    try:
        from lightly.loss import NTXentLoss
    except ImportError:
        return loops, [{"name": "lightly's loop", "skipped": "lightly is not installed (pip install 'tase[peers]')"}]
    data = LightlyPairs(t.set.images, t.config.views)
    example = reference_loop(t, workers, NTXentLoss(temperature=t.guidance.tau[0].item()), start[1], data)
    return {**loops, f"lightly's loop, {workers} workers": (example, start[1])}, []


def bench_peers(s: BenchBudget) -> list[BenchRow]:
    """Measure SimCLR's epochs in tase and in the peers' loops, and the accuracy of 1-NN after as many epochs in each.

    Times are of all epochs but the first. The accuracy is on 2,000 more draws of the same digits in other colours, of
    which many were trained on: it compares what the loops have learned, and is no accuracy on new images.
    """
    from torch.utils.benchmark import Measurement, TaskSpec

    workers, rows, judged = min(16, os.cpu_count() or 1), [], 200 if s.quick else 2000
    for backbone, batch, steps, epochs in peer_networks(s):
        t = bench_training(s, backbone, batch, steps, "simclr", **{"optim.epochs": epochs})
        case, times = f"{backbone}, {epochs} x {steps} x batch {batch}", {}
        loops, missing = peer_loops(t, workers)
        for epoch, (name, (train, _)) in itertools.product(range(epochs), loops.items()):
            synchronise(s.device)
            begun = time.perf_counter()
            train()
            synchronise(s.device)
            if epoch:  # in the first one workers start
                seconds = time.perf_counter() - begun
                times.setdefault(name, []).append(Measurement(1, [seconds], TaskSpec("train()", "")))
        others = bench_images(batch * steps + judged)
        for row in rival_rows(case, times, "tase", batch * steps, "images/s"):
            rows.append(row | {"knn": _knn(loops[row["name"]][1], t, others.images[-judged:], others.labels[-judged:])})
        rows += [{"case": case, **row} for row in missing]
    return rows


def _knn(network: nn.Module, t: training.Training, images: Tensor, labels: Tensor) -> float:
    bank, judged = (encode(network.backbone, x, t.config.views.size, device=t.device) for x in (t.images, images))
    known, labels = (y.to(t.device) for y in (t.set.labels, labels))
    return knn_accuracy(bank, known, judged, labels, labels.unique())


# --- several processes


@contextlib.contextmanager
def crew(n: int, *work: Any, together: bool = True) -> Iterator[Callable[[], float]]:
    """Start n processes of one thread that train `work` (device, backbone, batch, steps) together, or each by itself.

    What is given is a call that lets them train one epoch, waits for it, and returns the processor seconds of the one
    that took the most. Raises RuntimeError where one has ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = n if together else 1
    names = {"OMP_NUM_THREADS": 1, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
    code = f"from tase.bench.peers import crew_member; crew_member{work!r}"
    pipes = {"stdin": -1, "stdout": -1, "text": True}
    members = []
    for i in range(n):
        rank = i if together else 0
        own = names | {"MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": os.pathsep.join(sys.path)}
        apart = {} if together else resources(i, n)  # a GPU each, as a team's members have
        environ = os.environ | apart | {name: str(value) for name, value in own.items()}
        members.append(subprocess.Popen([sys.executable, "-c", code], env=environ, **pipes))

    def epoch() -> float:
        for member in members:
            print(file=member.stdin, flush=True)
        answers = [member.stdout.readline() for member in members]
        if not all(answers):
            raise RuntimeError("a process of the team has ended")
        return max(map(float, answers))

    try:
        yield epoch
    finally:
        for member in members:
            member.stdin.close()
        for member in members:
            try:
                member.wait(ENDED)
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()
            member.stdout.close()


def crew_member(device: str, backbone: str, batch: int, steps: int) -> None:
    """Train an epoch for each line of standard input, as one of several processes; answer by its processor seconds."""
    s = BenchBudget(training.choose_device(training.OptimConfig(device=device)))
    with team(s.device, batch):
        t = bench_training(s, backbone, batch, steps)
        for _ in sys.stdin:
            before = time.process_time()
            training.train_epoch(t)
            synchronise(s.device)
            print(time.process_time() - before, flush=True)


def bench_processes(s: BenchBudget) -> list[BenchRow]:
    """Measure epochs of one process of one thread against two of one thread each, at equal global batch.

    Two that share nothing, each with half of the batch, say what two cores of this machine can give. A busy machine has
    no second core: the processor seconds of the process that took the most say what each core would have to do.
    """
    backbone, batch, steps = bench_networks(s)[1]
    work, names = (s.device.type, backbone, batch, steps), ("1 process, 1 thread", "2 processes, 1 thread each")
    apart = "2 processes that share nothing"
    if s.device.type == "cuda" and torch.cuda.device_count() < 2:
        return [{"case": backbone, "name": names[1], "skipped": "needs two GPUs"}]
    half = (s.device.type, backbone, batch // 2, steps)
    with crew(1, *work) as alone, crew(2, *work) as team_of_two, crew(2, *half, together=False) as strangers:
        crews = {names[0]: alone, names[1]: team_of_two, apart: strangers}
        spent: dict[str, list[float]] = {name: [] for name in crews}
        times = time_in_turn({name: lambda name=name: spent[name].append(crews[name]()) for name in crews}, s, 2.0)
    rows = rival_rows(f"{backbone}, {steps} x batch {batch}", times, names[0], batch * steps, "images/s")
    return [row | {"processor_seconds": statistics.median(spent[row["name"]])} for row in rows]
