"""The training loop: `run = train(config, out="runs/first")`.

    images on the device, once, as uint8
    for each epoch:
        tau, w move along their ramp                                    guidance.start_epoch
        every R epochs: features of all images -> pseudo-labels -> tau, w, one snapshot       refresh
        for each batch of indices:                                      train_step
            two views, each sample with its own draws
            z1, z2 = network(view 1), network(view 2)                   guidance.embed
            loss = NT-Xent with tau, w and c[indices]                   equations (1), (2)
            one SGD step, learning rate by warm-up and cosine
    features of all images, last snapshot, encoder

A method is a guidance: the loop gets tau and w from it, calls its hooks, and knows nothing else of it.

Under torchrun several processes train one run (`distributed`). All of them know the epoch's order, and hold tau, w and
all else of every sample; of each batch, and of the images at a refresh, each works on its shard. Clustering and all
that touches the run's folder happen on rank 0. With batch norm synchronised, or none, the result is that of one process
but for rounding.
"""

from __future__ import annotations

import contextlib
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
from torch import Tensor, nn

from . import models
from .config import Config, ConfigError, OptimConfig, check
from .data import ImageSet, Splits, batches, check_few_shot, epoch_order, load_splits, place
from .distributed import (
    all_reduce,
    any_of,
    broadcast_buffers,
    choose_device,
    gather,
    launched,
    rank,
    rank_zero,
    shard,
    summed_gradients,
    team,
    world,
)
from .files import RunError, read_lines
from .guidance import Guidance, build_guidance
from .losses import NTXent, nt_xent
from .options import log
from .probes import knn_accuracy
from .pseudo_labels import quality
from .runs import PER_SAMPLE, PER_SNAPSHOT, Run, RunWriter, steered
from .streams import generator
from .views import two_views

CHECK_STEPS = 200  # a loss that is not finite is noticed within so many steps, and at the end of each epoch


class TrainingError(RuntimeError):
    """The training cannot continue; the message names the step and the likely field."""


def learning_rate(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """Warm up linearly, then follow a cosine from `lr` to `lr_min`, per step."""
    total = optim.epochs * steps_per_epoch
    warm = min(optim.warmup_epochs * steps_per_epoch, total // 2)
    if step < warm:
        return optim.lr * (step + 1) / warm
    progress = (step - warm) / max(1, total - 1 - warm)
    return optim.lr_min + (optim.lr - optim.lr_min) * (1 + math.cos(math.pi * progress)) / 2


# --- all that changes -------------------------------------------------------------------------------------------------


class Training:
    """All that changes during a run; `state` and `restore` carry it through a checkpoint."""

    def __init__(self, config: Config, images: ImageSet, device: torch.device | None = None):
        n, channels, height, width = images.images.shape
        check(config.optim.batch <= n, "optim.batch", config.optim.batch, f"at most the number of images, {n}")
        self.config, self.set = config, images
        self.device = device = device or choose_device(config.optim)
        self.images, self.placed = place(images.images, device, config.optim.image_memory)
        self.size = min(height, width)
        self.generators = {
            "data": generator(config.seed, "data"),
            "views": generator(config.seed, "views", device),
            "clustering": generator(config.seed, "clustering", device),
        }
        labels = None if images.labels is None else images.labels.to(device)
        self.guidance: Guidance = build_guidance(
            config, n, labels, device, self.generators["clustering"], images.sample_groups
        )
        taken = (*PER_SAMPLE, *PER_SNAPSHOT)
        for name in self.guidance.SHOWN:
            check(name not in taken, f"{type(self.guidance).__name__}.SHOWN", name, f"none of {', '.join(taken)}")
        self.network = models.initial_network(config, channels, self.size, device)
        if world() > 1 and device.type == "cuda":
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.forward = torch.compile(self.network) if config.optim.compile else self.network
        self.modules = self.guidance.modules(self.network) or nn.ModuleList()  # trained with the network
        self.parameters = [p for m in (self.network, self.modules) for p in m.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.parameters,
            config.optim.lr,
            config.optim.momentum,
            weight_decay=config.optim.weight_decay,
            fused=device.type == "cuda" or None,
        )
        self.steps_per_epoch = n // config.optim.batch
        self.epoch = self.position = 0  # epochs done, steps done in this one
        self.events: list[dict[str, Any]] = []
        self.order = torch.empty(0, dtype=torch.int64)
        self.sums = torch.zeros(4, device=device)  # loss, attraction, repulsion, steps: of this epoch
        self.bad_step = torch.full((), 2**31 - 1, dtype=torch.int64, device=device)
        self.loss_sum, self.loss_count = torch.zeros(2, n, device=device)  # of each sample since the last snapshot
        self.frozen: Tensor | None = None  # features of guidance.features
        self.encoded: tuple[int, Tensor] | None = None  # features of all images, and the step they are of
        self.recorded: Tensor | None = None  # [m] the images that snapshots keep; None: all

    @property
    def step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.position

    @property
    def autocast(self) -> torch.autocast:
        wanted, kind = self.config.optim.precision, self.device.type
        # Emulated, as before Ampere, it would be slower than float32.
        fast = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.autocast(kind, torch.bfloat16, enabled=wanted == "bf16" or (wanted == "auto" and fast))

    def steer(self, events: list[dict[str, Any]]) -> None:
        """Apply changes of the guidance that were requested while the run trains (runs.request)."""
        if events:
            self.events = self.events + [event for event in events if event not in self.events]
            self.guidance.steer(steered(self.config, self.events).guidance)

    def state(self) -> dict[str, Any]:
        """Return all that is needed to resume bit for bit; loadable with weights_only."""
        modules = self.modules.state_dict()
        return {
            "identity": self.config.identity,
            "device": self.device.type,
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
            **({"modules": modules} if modules else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state`; raises RunError if that is of another kind of device."""
        begun = state.get("device", self.device.type)
        if begun != self.device.type:  # their generators have other states, and draw other numbers
            here = f"it was begun on {begun} and cannot go on on {self.device.type}"
            raise RunError(f"{here}: set optim.device={begun}, or train it again in another folder")
        self.epoch, self.position, self.order = state["epoch"], state["position"], state["order"]
        self.sums, self.loss_sum, self.loss_count = (
            state[name].to(self.device) for name in ("sums", "loss_sum", "loss_count")
        )
        self.network.load_state_dict(state["network"], strict=True)
        self.modules.load_state_dict(state.get("modules", {}), strict=True)
        self.optimiser.load_state_dict(state["optimiser"])
        self.guidance.load_state_dict(state["guidance"])
        self.steer(state["events"])
        for name, saved in state["generators"].items():
            self.generators[name].set_state(saved)


# --- steps and epochs -------------------------------------------------------------------------------------------------


def train_step(t: Training, index: Tensor, images: Tensor | None = None) -> NTXent:
    """Take one step on the images `index` [b]. Nothing waits for the device.

    `images`: those of this process's shard of the index, if they have been fetched already. Returns the batch's loss.
    """
    guide, b, own = t.guidance, len(index), shard(len(index))
    images = t.images[index[own]] if images is None else images
    index = index.to(t.device, non_blocking=True)
    for group in t.optimiser.param_groups:
        group["lr"] = learning_rate(t.config.optim, t.step, t.steps_per_epoch)

    view1, view2 = two_views(images, t.config.views, t.generators["views"], own.start, b)  # [b / world, c, s, s]
    view1, view2 = guide.views(index[own], view1, view2, t.generators["views"], own.start, b)
    view1, view2 = (v.contiguous(memory_format=torch.channels_last) for v in (view1, view2))
    with t.autocast, own_draws(t):
        z1, z2 = guide.embed(t.forward, view1, view2)  # [b / world, d]
    # An anchor is held against the views of the whole batch, in float32, as their gradients are summed.
    columns = gather(torch.stack([z1, z2], 1).float(), b).unbind(1) if world() > 1 else None  # [b, d] each
    tau, weight, scale = guide.tau[index], guide.weight[index], guide.scale(index)
    out = nt_xent(z1, z2, tau, weight, t.config.optim.loss_chunk or None, scale, columns, own.start)
    extra = guide.extra(index, *(columns or (z1, z2)))

    t.optimiser.zero_grad(set_to_none=True)
    with summed_gradients(t.parameters):
        # All processes compute the same `extra`, of the whole batch, and their gradients are summed.
        (out.loss if extra is None else out.loss + extra / world()).backward()
    t.optimiser.step()
    out = whole(out, b)
    guide.after_step(index, out)
    _account(t, index, out)
    return out


@contextlib.contextmanager
def own_draws(t: Training) -> Iterator[None]:
    """Give dropout and stochastic depth draws of run, step and process alone: a resumed run has the same.

    They can only draw from the global generator, which is as before afterwards.
    """
    if ":" not in t.config.model.backbone:  # no such layers
        yield
        return
    with torch.random.fork_rng([t.device] if t.device.type == "cuda" else []):
        torch.manual_seed(generator(t.config.seed, f"layers at step {t.step} of process {rank()}").initial_seed())
        yield


def whole(out: NTXent, b: int) -> NTXent:
    """Join the processes' parts of the loss of b images, detached, in every process."""
    if world() == 1:
        return out
    rows = torch.stack([out.per_anchor.detach(), out.logsumexp, out.mean_similarity, out.positive_similarity], 1)
    rows = rows.unflatten(0, (2, -1)).transpose(0, 1)  # [b / world, 2, 4]
    rows = gather(rows, b).transpose(0, 1).flatten(0, 1)  # [2b, 4]: first views, then second views
    loss, attraction, repulsion = all_reduce(torch.stack([out.loss, out.attraction, out.repulsion]))
    return NTXent(loss, rows[:, 0], attraction, repulsion, *rows[:, 1:].unbind(1), out.others)


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
    """Train the rest of the current epoch; False where `stop()`, called after each step, ended it early."""
    batch = t.config.optim.batch
    if t.position == 0:
        t.order = epoch_order(t.set.images, t.generators["data"], t.config.optim.window)
        t.sums.zero_()
    order = t.order.to(t.images.device)
    if order.device.type != t.device.type:
        order = order.pin_memory()
    indices = order[t.position * batch : t.steps_per_epoch * batch].split(batch)
    t.network.train()
    t.encoded = None
    for index, images in zip(indices, batches(t.images, (i[shard(batch)] for i in indices))):
        train_step(t, index, images)
        t.position += 1
        if t.position % CHECK_STEPS == 0:
            check_finite(t)
        if t.position < t.steps_per_epoch and stop():
            return False
    broadcast_buffers(t.network)
    broadcast_buffers(t.modules)
    t.epoch, t.position = t.epoch + 1, 0
    return True


# --- features and refreshes -------------------------------------------------------------------------------------------


def features(t: Training, images: ImageSet | None = None) -> Tensor:
    """Return [n, d] backbone features without augmentation, network in eval mode; of the training images by default."""
    if images is None and t.encoded is not None and t.encoded[0] == t.step:
        return t.encoded[1]
    source = t.images if images is None else images.images
    n = len(source)
    with t.autocast:
        h = models.encode(t.network.backbone, source, t.config.views.size, device=t.device, rows=shard(n))
    h = gather(h, n)
    if images is None:
        t.encoded = (t.step, h)
    return h


def clustered_features(t: Training, h: Tensor | EncodedRows) -> Tensor | EncodedRows:
    """Return the features [n, d] that are clustered: the network's, or those of the encoder `guidance.features`."""
    if not t.config.guidance.features:
        return h
    if t.frozen is None:  # they never change
        own = shard(len(t.images))
        file, network = t.config.guidance.features, t.config.guidance.features_network
        t.frozen = gather(models.frozen_features(file, t.images, t.device, own, network), len(t.images))
    return t.frozen


class EncodedRows:
    """Features [n, d] of the training images that are computed whenever rows are read, and not kept."""

    def __init__(self, t: Training):
        self.t = t

    def __len__(self) -> int:
        return len(self.t.set)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        t = self.t
        with t.autocast:
            return models.encode(t.network.backbone, t.images, t.config.views.size, device=t.device, rows=rows)


def refresh(t: Training) -> Tensor | EncodedRows:
    """Turn features of all images into pseudo-labels, tau and w; return the network's features [n, d].

    Those of more images than are clustered are not kept: rank 0 encodes them where it needs them.
    """
    h = EncodedRows(t) if len(t.set) > t.guidance.pseudo.sample else features(t)
    guide = rank_zero(t.guidance)
    guide.update(clustered_features(t, h), t.epoch)
    t.guidance.pseudo.p = None  # 4 k bytes a sample; the next refresh makes its own
    if world() > 1:  # k-means runs once, and all have its result
        t.guidance.load_state_dict(guide.state_dict())
        t.guidance.found = rank_zero(lambda: t.guidance.found)()
        t.modules.load_state_dict(rank_zero(t.modules).state_dict())
    return h


def snapshot(t: Training, h: Tensor | EncodedRows) -> dict[str, np.ndarray]:
    """Return what is kept at a refresh of every sample, or of those in `t.recorded`.

    Features are those of a fixed sample of images, of all at the end.
    """
    guide, record = t.guidance, t.config.record
    every = torch.arange(len(t.set)) if t.recorded is None else t.recorded
    n, own = len(every), slice(None) if t.recorded is None else every.to(t.device)
    kept = torch.arange(n)  # places in what is recorded
    if t.epoch < t.config.optim.epochs and record.features < n:
        kept = torch.randperm(n, generator=generator(t.config.seed, "kept"))[: record.features].sort().values
    judged = {}
    if t.set.labels is not None:
        judged = quality(guide.pseudo_label[own], guide.headness[own], t.set.labels[every], t.set.counts)
    of_each = {
        "tau": guide.tau.float(),
        "weight": guide.weight.float(),
        "pseudo_label": guide.pseudo_label.int(),
        "headness": guide.headness.float(),
        **{name: getattr(guide, name) for name in guide.SHOWN},
        "loss": (t.loss_sum / t.loss_count).float(),
    }
    arrays = {
        **{name: a[own] for name, a in of_each.items()},
        "cluster_sizes": guide.cluster_sizes.float(),
        "log_sizes": guide.log_sizes,
        **{name: torch.tensor(value) for name, value in guide.found.items()},
        "feature_index": kept,
        "features": h[every[kept].to(t.device)].half(),
    }
    t.loss_sum.zero_(), t.loss_count.zero_()
    return {name: a.cpu().numpy() for name, a in arrays.items()} | {"quality": np.array(json.dumps(judged))}


def _before_epoch(t: Training, writer: RunWriter) -> None:
    """Bring tau and w to the epoch: their ramp, and a refresh where one is due."""
    due = t.config.is_refresh(t.epoch)
    if due:
        t.steer(writer.take(t.epoch, t.step))
    t.guidance.start_epoch(t.epoch)
    if due and t.config.record.snapshots:
        writer.snapshot(t.epoch, **snapshot(t, refresh(t)))
    elif due and t.guidance.uses_features:
        refresh(t)


# --- a whole run ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interruptible(wait: bool = False) -> Iterator[threading.Event]:
    """Raise KeyboardInterrupt on Ctrl-C, a kernel interrupt and SIGTERM.

    With `wait`, the first one only sets the event, so that a loop can stop after the step in hand; in several processes
    the second one as well, as each gets Ctrl-C from the terminal and from torchrun. Signals can only be taken in the
    main thread.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def take(number, frame):
        if not wait or (interrupted.is_set() and world() == 1):
            raise KeyboardInterrupt("stopped; the same command resumes")
        interrupted.set()

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    config: Config,
    out: str | Path,
    resume: bool = False,
    until: int | None = None,
    on_epoch: Callable[[Run], None] | None = None,
    progress: bool = True,
) -> Run | None:
    """Train as `config` says into the folder `out` and return the run (None in all processes but rank 0).

    `resume=True` resumes exactly from the folder's checkpoint (and starts where there is none); `until` stops after
    that many epochs, to be resumed; `on_epoch(run)` is called after each epoch. Ctrl-C, a kernel interrupt and SIGTERM
    leave a checkpoint of the step in hand, then raise KeyboardInterrupt. Raises ConfigError, RunError (the folder holds
    something else or is in use), TrainingError (the loss is not finite) and TeamError (another process has ended).
    """
    device, writer = choose_device(config.optim), RunWriter(out, config, resume)
    last = config.optim.epochs if until is None else min(until, config.optim.epochs)
    t = None
    models.check_start(config.model)
    with team(device, config.optim.batch), rank_zero(writer) as writer:
        splits = load_splits(config)  # Ctrl-C ends this immediately; decoded images are kept in the cache
        if not writer.finished(splits.train):
            _warn_of_few_labels(config, splits)
            with interruptible(wait=True) as interrupted:
                t = _start(config, splits, writer, device)
                _loop(t, splits, writer, interrupted, last, on_epoch, progress)
                if t.epoch == config.optim.epochs:
                    _finish(t, writer)
                else:
                    writer.checkpoint(t.state())
                    writer.status("stopped", epoch=t.epoch, step=t.step)
    if t and t.epoch < last:
        raise KeyboardInterrupt(f"stopped at epoch {t.epoch}; resume with resume=True (--resume)")
    return Run(out) if rank() == 0 else None


def _warn_of_few_labels(config: Config, splits: Splits) -> None:
    """Say what the few-shot protocols will lack: once the run is trained it cannot be set any more."""
    few = any(name.startswith("few-shot") for name in config.evaluation.protocols)
    if few and splits.probe is not None and splits.test is not None and rank() == 0:
        try:
            check_few_shot(splits.probe, config.data.few_shot_per_class)
        except ConfigError as lack:
            log.warning("few-shot will be impossible for this run: %s", lack)


def _start(config: Config, splits: Splits, writer: RunWriter, device: torch.device) -> Training:
    """Set up a fresh training, or the one of the folder's checkpoint."""
    t = Training(config, splits.train, device)
    state = writer.restored()
    if state:
        t.restore(state)
        rank_zero(_warn_of_other_rounding)(t, writer.folder)
    writer.begin(t.device, splits.train)
    t.recorded = writer.recorded(splits.train)
    writer.cut_back(t.epoch)
    return t


def _warn_of_other_rounding(t: Training, folder: Path) -> None:
    """Warn if the number of threads or processes has changed since the run began."""
    begun, threads, processes = Run(folder).environment, torch.get_num_threads(), launched() or 1
    now = {"threads": threads, "processes": processes} if t.device.type == "cpu" else {"processes": processes}
    hints = {"threads": "OMP_NUM_THREADS={}", "processes": "torchrun --nproc-per-node {}"}
    for name, number in now.items():
        before = begun.get(name, number)
        if before != number:
            warnings.warn(
                f"begun with {before} {name}, resumed with {number}: sums are rounded differently, so the result will "
                f"differ from that of a run without the stop ({hints[name].format(before)} would give the same)",
                stacklevel=2,
            )


def _loop(t, splits, writer, interrupted, last, on_epoch, progress) -> None:
    """Train up to epoch `last`, or until a signal or a request stops it."""
    from tqdm.auto import tqdm

    def stop() -> bool:
        while True:
            action = writer.control.action() if rank() == 0 else "run"
            # Any process may get the signal, and rank 0 the request: all stop after the same step.
            stopping, pausing = any_of(interrupted.is_set() or action == "stop", action == "pause")
            if stopping or not pausing:
                return stopping
            writer.status("paused", epoch=t.epoch, step=t.step)
            interrupted.wait(0.2)

    name = f"{t.config.method} on {t.config.preset}, seed {t.config.seed}"
    quiet = not progress or rank() > 0
    with tqdm(total=last, initial=t.epoch, desc=name, unit="epoch", disable=quiet, dynamic_ncols=True) as bar:
        if not quiet and sys.stderr.isatty():  # a notebook would show it on a red ground
            bar.write(t.placed, file=sys.stderr)
        while t.epoch < last and not stop():
            started, first = time.perf_counter(), t.position  # of a resumed epoch only the rest is done here
            if t.position == 0:
                _before_epoch(t, writer)
            if not train_epoch(t, stop):
                return
            row = _metrics(t, splits, started, first)
            writer.log(row)
            writer.status("training", epoch=t.epoch, step=t.step)
            if t.epoch % t.config.record.checkpoint_every == 0:
                writer.checkpoint(t.state())
            shown = {"loss": f"{row['loss']:.3f}", "images/s": f"{row['images_per_second']:,.0f}"}
            shown |= {"knn": f"{row['knn']:.1f}"} if "knn" in row else {}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if on_epoch:
                rank_zero(lambda: on_epoch(Run(writer.folder)) and None)()


def _metrics(t: Training, splits: Splits, started: float, first: int) -> dict[str, Any]:
    """Return the epoch's line in metrics.jsonl (the only place where the loop waits for the device)."""
    check_finite(t)
    loss, attraction, repulsion, steps = t.sums.tolist()
    row = {
        "epoch": t.epoch,
        "step": t.step,
        "loss": loss / steps,
        "attraction": attraction / steps,
        "repulsion": repulsion / steps,
        "lr": t.optimiser.param_groups[0]["lr"],
        "images_per_second": (steps - first) * t.config.optim.batch / max(1e-9, time.perf_counter() - started),
    }
    every, judge = t.config.record.knn_every, splits.val or splits.test
    if judge is not None and every and t.epoch % every == 0:
        bank_set = t.set if t.recorded is None else t.set.subset(t.recorded)  # neighbours among many: of a sample
        train_labels, labels = bank_set.labels.to(t.device), judge.labels.to(t.device)
        bank, judged = features(t, None if bank_set is t.set else bank_set), features(t, judge)
        row["knn"] = rank_zero(knn_accuracy)(bank, train_labels, judged, labels, splits.eval_classes)
    return row


def _finish(t: Training, writer: RunWriter) -> None:
    """Write the last snapshot (with features of all images), checkpoint and encoder."""
    t.guidance.start_epoch(t.epoch)
    writer.checkpoint(t.state())
    writer.snapshot(t.epoch, **snapshot(t, refresh(t)))
    writer.encoder(t.network)
    writer.status("finished", epoch=t.epoch, step=t.step, **rank_zero(_expense)(t, writer.folder))


def _expense(t: Training, folder: Path) -> dict[str, float]:
    """Return what the run cost: its median speed over epochs, and the size of all that it holds between steps."""
    speeds = [row["images_per_second"] for row in read_lines(folder / "metrics.jsonl")]
    sizes = [x.nbytes for x in tensors_in(t.state())]  # weights, momentum, state of each sample; no activations
    return {"images_per_second": float(np.median(speeds)), "state_bytes": sum(sizes)}


def tensors_in(state: Any) -> Iterator[Tensor]:
    """Yield the tensors in a nest of dictionaries, lists and tuples."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(part)
