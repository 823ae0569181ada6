"""The training loop: `run = train(config, out="runs/first")`.

    images on the device, once, as uint8
    for each epoch:
        tau, w move along their ramp                                    guidance.start_epoch
        every R epochs: features of all images -> pseudo-labels -> tau, w, one snapshot       refresh
        for each batch of indices:                                      train_step
            two views, each sample with its own draws
            z1, z2 = network(view 1), network(view 2)
            loss = NT-Xent with tau[indices], w[indices]                equations (1), (2)
            one SGD step, learning rate by warm-up and cosine
    features of all images, last snapshot, encoder

A method is a guidance: the loop asks it for tau and w and knows nothing else of it.

Under torchrun several processes train one run. All of them know the epoch's order, and hold tau, w and all else of
every sample; of each batch, and of the images at a refresh, each works on its share (`distributed`). The first process
alone reads and writes the folder. With batch norm synchronised, or none, the result is that of one process but for
rounding.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import models
from .config import Config, OptimConfig, check
from .data import ImageSet, Splits, batches, load_splits, place
from .distributed import (
    any_of,
    choose_device,
    gather,
    launched,
    lead,
    rank,
    same_buffers,
    share,
    sum_gradients,
    team,
    world,
)
from .guidance import Guidance, build_guidance
from .losses import NTXent, nt_xent, whole
from .probes import knn_accuracy
from .pseudo_labels import quality
from .runs import Run, RunWriter, load_checkpoint, save_checkpoint, steered
from .views import two_views

CHECK_STEPS = 200  # a loss that is not finite is noticed within so many steps, and at the end of each epoch


class TrainingError(RuntimeError):
    """The training cannot go on; the message names the step and the likely field."""


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The named stream of random numbers of a run: its purposes do not disturb each other."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def initial_network(config: Config, channels: int, size: int, device: torch.device | str = "cpu") -> models.Network:
    """The network as the run with this seed starts it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(config.seed, "network").initial_seed())
        network = models.build(config.model, channels, config.views.size or size)
    return network.to(device, memory_format=torch.channels_last)


def learning_rate(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `lr_min`, per step."""
    total = optim.epochs * steps_per_epoch
    warm = min(optim.warmup_epochs * steps_per_epoch, total // 2)
    if step < warm:
        return optim.lr * (step + 1) / warm
    progress = (step - warm) / max(1, total - 1 - warm)
    return optim.lr_min + (optim.lr - optim.lr_min) * (1 + math.cos(math.pi * progress)) / 2


class Training:
    """All that changes during a run; `state` and `restore` carry it through a checkpoint."""

    def __init__(self, config: Config, images: ImageSet, device: torch.device | None = None):
        n, channels, height, width = images.images.shape
        check(config.optim.batch <= n, "optim.batch", config.optim.batch, f"at most the number of images, {n}")
        self.config, self.set = config, images
        self.device = device = device or choose_device(config.optim)
        self.images, self.placed = place(images.images, device, config.optim.image_memory)
        self.size = min(height, width)
        self.network = initial_network(config, channels, self.size, device)
        if world() > 1 and device.type == "cuda":
            self.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.forward = torch.compile(self.network) if config.optim.compile else self.network
        optim = config.optim
        self.optimiser = torch.optim.SGD(
            self.network.parameters(),
            optim.lr,
            optim.momentum,
            weight_decay=optim.weight_decay,
            fused=device.type == "cuda" or None,
        )
        self.generators = {
            "data": generator(config.seed, "data"),
            "views": generator(config.seed, "views", device),
            "clustering": generator(config.seed, "clustering", device),
        }
        labels = None if images.labels is None else images.labels.to(device)
        self.guidance: Guidance = build_guidance(
            config, n, labels, device, self.generators["clustering"], images.sample_groups
        )
        self.steps_per_epoch = n // optim.batch
        self.epoch = self.position = 0  # epochs done, steps done in this one
        self.events: list[dict[str, Any]] = []
        self.order = torch.empty(0, dtype=torch.int64)
        self.sums = torch.zeros(4, device=device)  # loss, attraction, repulsion, steps: of this epoch
        self.bad_step = torch.full((), 2**31 - 1, dtype=torch.int64, device=device)
        self.loss_sum, self.loss_count = torch.zeros(2, n, device=device)
        self.encoded: tuple[int, Tensor] | None = None  # features of all images, and the step they are of

    @property
    def step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.position

    @property
    def autocast(self) -> torch.autocast:
        wanted, kind = self.config.optim.precision, self.device.type
        on = wanted == "bf16" or (wanted == "auto" and kind == "cuda" and torch.cuda.is_bf16_supported())
        return torch.autocast(kind, torch.bfloat16, enabled=on)

    def steer(self, events: list[dict[str, Any]]) -> None:
        """Apply changes of the guidance that were asked for while the run trains (runs.request)."""
        if events:
            self.events = self.events + [event for event in events if event not in self.events]
            self.guidance.steer(steered(self.config, self.events).guidance)

    def state(self) -> dict[str, Any]:
        return {
            "identity": self.config.identity,
            "epoch": self.epoch,
            "position": self.position,
            "order": self.order,
            "sums": self.sums,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "guidance": self.guidance.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "events": self.events,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.position, self.order = state["epoch"], state["position"], state["order"]
        self.sums, self.loss_sum, self.loss_count = (
            state[name].to(self.device) for name in ("sums", "loss_sum", "loss_count")
        )
        self.network.load_state_dict(state["network"], strict=True)
        self.optimiser.load_state_dict(state["optimiser"])
        self.guidance.load_state_dict(state["guidance"])
        self.steer(state["events"])
        for name, saved in state["generators"].items():
            self.generators[name].set_state(saved)


def train_step(t: Training, index: Tensor, images: Tensor | None = None) -> NTXent:
    """One step on the images `index` [b]: views, network, loss, guidance's hook, SGD. Nothing waits for the device.

    `images`: those of this process's share of the index, if they have been fetched already. Returns the batch's loss.
    """
    b, own = len(index), index[share(len(index))]
    images = t.images[own] if images is None else images
    index, own = (i.to(t.device, non_blocking=True) for i in (index, own))
    for group in t.optimiser.param_groups:
        group["lr"] = learning_rate(t.config.optim, t.step, t.steps_per_epoch)
    view1, view2 = two_views(images, t.config.views, t.generators["views"], share(b).start, b)
    view1, view2 = (v.contiguous(memory_format=torch.channels_last) for v in (view1, view2))
    with t.autocast:
        z1, z2 = t.forward(view1), t.forward(view2)
    guide, chunk = t.guidance, t.config.optim.loss_chunk or None
    out = nt_xent(z1, z2, guide.tau[own], guide.weight[own], chunk, guide.scale(own), batch=b)
    t.optimiser.zero_grad(set_to_none=True)
    out.loss.backward()
    sum_gradients(t.network)
    t.optimiser.step()
    out = whole(out, b)
    guide.after_step(index, out)
    _account(t, index, out)
    return out


@torch.no_grad()
def _account(t: Training, index: Tensor, out: NTXent) -> None:
    """Add the step to the epoch's and the samples' sums, on the device; remember the first step that is not finite."""
    loss = out.loss.detach()
    t.sums += torch.stack([loss, out.attraction.detach(), out.repulsion.detach(), torch.ones_like(loss)]).float()
    t.bad_step = torch.where(loss.isfinite(), t.bad_step, t.bad_step.clamp(max=t.step))
    t.loss_sum.index_add_(0, index, out.per_anchor.detach().float().view(2, -1).mean(0))
    t.loss_count.index_add_(0, index, torch.ones_like(index, dtype=torch.float32))


def check_finite(t: Training) -> None:
    """Raise TrainingError where a step since the start of this process gave a loss that is not finite."""
    step = int(t.bad_step)
    if step < 2**31 - 1:
        optim, lowest = t.config.optim, float(t.guidance.tau.min())
        if lowest < 0.02:
            likely = f"a temperature of {lowest:.3g} (guidance.tau_min, guidance.tau_0)"
        else:
            likely = f"a learning rate too high (optim.lr = {optim.lr}, optim.warmup_epochs = {optim.warmup_epochs})"
        raise TrainingError(
            f"the loss is not finite since step {step} (epoch {step // t.steps_per_epoch}); likely {likely}"
        )


def train_epoch(t: Training, stop: Callable[[], bool] = lambda: False) -> bool:
    """The rest of the current epoch; False where `stop()`, asked after each step, ended it before its last one."""
    batch = t.config.optim.batch
    if t.position == 0:
        t.order = torch.randperm(len(t.set), generator=t.generators["data"])
        t.sums.zero_()
    order = t.order.to(t.images.device)
    if order.device.type != t.device.type:
        order = order.pin_memory()
    indices = order[t.position * batch : t.steps_per_epoch * batch].split(batch)
    t.network.train()
    t.encoded = None
    for index, images in zip(indices, batches(t.images, (i[share(batch)] for i in indices))):
        train_step(t, index, images)
        t.position += 1
        if t.position % CHECK_STEPS == 0:
            lead(check_finite, t)
        if t.position < t.steps_per_epoch and stop():
            return False
    same_buffers(t.network)
    t.epoch, t.position = t.epoch + 1, 0
    return True


def features(t: Training, images: ImageSet | None = None) -> Tensor:
    """[n, d] backbone features without augmentation, network in eval mode; of the training images by default."""
    if images is None and t.encoded is not None and t.encoded[0] == t.step:
        return t.encoded[1]
    source = t.images if images is None else images.images
    n = len(source)
    own = share(n) if n >= world() else None
    with t.autocast:
        h = models.encode(t.network.backbone, source, t.config.views.size, device=t.device, rows=own)
    h = h if own is None else gather(h, n)
    if images is None:
        t.encoded = (t.step, h)
    return h


def due(t: Training) -> bool:
    """Whether the guidance takes fresh features before the current epoch."""
    return t.config.is_refresh(t.epoch)


def refresh(t: Training) -> Tensor:
    """Features of all images -> pseudo-labels -> tau, w; returns the features [n, d]."""
    h = features(t)
    t.guidance.update(h, t.epoch)
    if world() > 1:  # the same in all, whatever processors they run on
        t.guidance.load_state_dict(lead(t.guidance.state_dict))
    return h


def snapshot(t: Training, h: Tensor) -> dict[str, np.ndarray]:
    """What is kept of every sample at a refresh; features of a fixed sample of images, of all at the end."""
    guide, record = t.guidance, t.config.record
    n = len(t.set)
    kept = torch.arange(n)
    if t.epoch < t.config.optim.epochs and record.features < n:
        kept = torch.randperm(n, generator=generator(t.config.seed, "kept"))[: record.features].sort().values
    judged = {}
    if t.set.labels is not None:
        judged = quality(guide.pseudo_label, guide.headness, t.set.labels.to(t.device), t.set.counts.to(t.device))
    arrays = {
        "tau": guide.tau.float(),
        "weight": guide.weight.float(),
        "pseudo_label": guide.pseudo_label.int(),
        "headness": guide.headness.float(),
        "cluster_sizes": guide.cluster_sizes.float(),
        "log_sizes": guide.log_sizes,
        "loss": (t.loss_sum / t.loss_count).float(),
        "feature_index": kept,
        "features": h[kept.to(h.device)].half(),
    }
    t.loss_sum.zero_(), t.loss_count.zero_()
    return {name: a.cpu().numpy() for name, a in arrays.items()} | {"quality": np.array(json.dumps(judged))}


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C, a kernel interrupt or SIGTERM set: the loop then stops after the step in hand.

    A second Ctrl-C stops at once, but not one of several processes, which get it from the terminal and from torchrun.
    Signals are only taken in the main thread.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def take(number, frame):
        if asked.is_set() and world() == 1:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(config: Config, splits: Splits, writer: RunWriter, device: torch.device) -> Training:
    """A fresh training, or the one of the folder's checkpoint."""
    t = Training(config, splits.train, device)
    state = lead(load_checkpoint, writer.folder, config.identity) if writer.resume else None
    if state:
        t.restore(state)
        lead(_same_numbers, t, writer)
    lead(writer.begin, t.device, splits.train)
    lead(writer.cut_back, t.epoch)
    return t


def _same_numbers(t: Training, writer: RunWriter) -> None:
    """Warn where other threads or processes than at the start go on with the run."""
    begun, threads, several = Run(writer.folder).environment, torch.get_num_threads(), launched() or 1
    now = {"threads": threads, "processes": several} if t.device.type == "cpu" else {"processes": several}
    hints = {"threads": "OMP_NUM_THREADS={}", "processes": "torchrun --nproc-per-node {}"}
    for name, number in now.items():
        before = begun.get(name, number)
        if before != number:
            warnings.warn(
                f"begun with {before} {name}, going on with {number}: sums are rounded differently, so the result will "
                f"be another than without the stop ({hints[name].format(before)} would give the same)",
                stacklevel=2,
            )


def _metrics(t: Training, splits: Splits, started: float) -> dict[str, Any]:
    """The epoch's line in metrics.jsonl (the only place where the loop waits for the device)."""
    lead(check_finite, t)
    loss, attraction, repulsion, steps = t.sums.tolist()
    row = {
        "epoch": t.epoch,
        "step": t.step,
        "loss": loss / steps,
        "attraction": attraction / steps,
        "repulsion": repulsion / steps,
        "lr": t.optimiser.param_groups[0]["lr"],
        "images_per_second": steps * t.config.optim.batch / max(1e-9, time.perf_counter() - started),
    }
    every, judge = t.config.record.knn_every, splits.val or splits.test
    if judge is not None and every and t.epoch % every == 0:
        train_labels, labels = t.set.labels.to(t.device), judge.labels.to(t.device)
        known, asked = features(t), features(t, judge)
        row["knn"] = lead(knn_accuracy, known, train_labels, asked, labels, splits.eval_classes)
    return row


def train(
    config: Config,
    out: str | Path,
    resume: bool = False,
    until: int | None = None,
    on_epoch: Callable[[Run], None] | None = None,
    progress: bool = True,
) -> Run | None:
    """Train as `config` says into the folder `out` and return the run (None in all but the first of several processes).

    `resume=True` goes on from the folder's checkpoint exactly (and starts where there is none); `until` stops after
    that many epochs, to be resumed; `on_epoch(run)` is called after each epoch. Ctrl-C, a kernel interrupt and SIGTERM
    leave a checkpoint of the step in hand, then raise KeyboardInterrupt. Raises ConfigError, RunError (the folder holds
    something else or is in use), TrainingError (the loss is not finite) and TeamError (another process has ended).
    """
    device, writer = choose_device(config.optim), RunWriter(out, config, resume)
    with team(device, config.optim.batch), _claimed(writer):
        splits = load_splits(config)  # Ctrl-C ends this at once; decoded images are kept in the cache
        if lead(writer.finished, splits.train):
            return Run(out) if rank() == 0 else None
        with _asked_to_stop() as asked:
            t = _start(config, splits, writer, device)
            last = min(until or config.optim.epochs, config.optim.epochs)
            done = _loop(t, splits, writer, asked, last, on_epoch, progress)
            if done and t.epoch == config.optim.epochs:
                _finish(t, writer)
            else:
                lead(save_checkpoint, writer.folder, t.state())
                lead(writer.status, "stopped", epoch=t.epoch, step=t.step)
    if not done:
        raise KeyboardInterrupt(f"stopped at epoch {t.epoch}; go on with resume=True (--resume)")
    return Run(out) if rank() == 0 else None


@contextlib.contextmanager
def _claimed(writer: RunWriter) -> Iterator[None]:
    """The folder is held by the first process's writer, whose error on entering is everybody's."""
    with contextlib.ExitStack() as stack:
        lead(lambda: stack.enter_context(writer) and None)
        yield


def _loop(t, splits, writer, asked, until, on_epoch, progress) -> bool:
    """Epochs up to `until`; False where it was asked to stop before."""
    from tqdm.auto import tqdm

    def stop() -> bool:
        while True:
            action = writer.control.action() if rank() == 0 else "run"
            stopping, pausing = any_of(asked.is_set() or action == "stop", action == "pause")
            if stopping or not pausing:
                return stopping
            lead(writer.status, "paused", epoch=t.epoch, step=t.step)
            asked.wait(0.2)

    name = f"{t.config.method} on {t.config.preset}, seed {t.config.seed}"
    quiet = not progress or rank() > 0
    with tqdm(total=until, initial=t.epoch, desc=name, unit="epoch", disable=quiet, dynamic_ncols=True) as bar:
        if not quiet:
            bar.write(t.placed, file=sys.stderr)
        while t.epoch < until:
            if stop():
                return False
            started = time.perf_counter()
            if t.position == 0:
                _before_epoch(t, writer)
            if not train_epoch(t, stop):
                return False
            row = _metrics(t, splits, started)
            lead(writer.log, row)
            lead(writer.status, "training", epoch=t.epoch, step=t.step)
            if t.epoch % t.config.record.checkpoint_every == 0:
                lead(save_checkpoint, writer.folder, t.state())
            shown = {k: f"{row[k]:.3g}" for k in ("loss", "knn", "images_per_second") if k in row}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if on_epoch:
                lead(lambda: on_epoch(Run(writer.folder)) and None)
    return True


def _before_epoch(t: Training, writer: RunWriter) -> None:
    if due(t):
        t.steer(lead(lambda: writer.control.take(t.epoch, t.step)))
    t.guidance.start_epoch(t.epoch)
    if due(t) and t.config.record.snapshots:
        lead(writer.snapshot, t.epoch, **snapshot(t, refresh(t)))
    elif due(t) and t.guidance.uses_features:
        refresh(t)


def _finish(t: Training, writer: RunWriter) -> None:
    """The last snapshot (with features of all images), checkpoint and encoder."""
    t.guidance.start_epoch(t.epoch)
    lead(save_checkpoint, writer.folder, t.state())
    lead(writer.snapshot, t.epoch, **snapshot(t, refresh(t)))
    encoder = writer.folder / "encoder.pt"
    lead(models.save_backbone, encoder, t.network, t.config.model, t.images.shape[1], t.size)
    lead(writer.status, "finished", epoch=t.epoch, step=t.step)
