"""The training step by parts, what the device could do in that time, and the whole loop against a reference."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from unittest.mock import patch

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from .. import training
from ..losses import nt_xent
from ..presets import preset
from ..views import two_views
from ._measure import Bench, Row, Stopwatch, compared, measure, some_images, summary
from ._rivals import reference_loop

PARTS = ("views", "network", "loss", "optimiser", "rest")


def networks(s: Bench) -> tuple[tuple[str, int, int], ...]:
    """Backbone, batch, and steps in an epoch of the comparison with the reference loop."""
    if s.cuda:
        return ("resnet18", 512, 21), ("conv4", 512, 21)
    return (("resnet18", 16, 1), ("conv4", 256, 4)) if s.quick else (("resnet18", 512, 3), ("conv4", 512, 12))


def new_training(s: Bench, backbone: str, batch: int, steps: int) -> training.Training:
    fields = {"model.backbone": backbone, "optim.batch": batch}
    return training.Training(preset("cifar10-lt", overrides=fields), some_images(batch * steps), s.device)


def split_step(t: training.Training, index: Int64[Tensor, "b"]) -> dict[str, float]:
    """Seconds of one real training step by PARTS: the functions that it calls switch a stopwatch."""
    watch = Stopwatch(t.device)

    def during(part: str, function: Callable) -> Callable:
        def switching(*inputs, **options):
            watch.switch(part)
            result = function(*inputs, **options)
            watch.switch("rest")
            return result

        return switching

    def loss(*inputs, **options):
        out = during("loss", nt_xent)(*inputs, **options)
        out.loss.register_hook(lambda _: watch.switch("loss"))  # backward begins
        return out

    def forward(x, network=t.forward):
        z = during("network", network)(x)
        z.register_hook(lambda _: watch.switch("network"))  # the loss is done with its part of it
        return z

    step, zero = (during("optimiser", f) for f in (t.optimiser.step, t.optimiser.zero_grad))
    with (
        patch.object(training, "two_views", during("views", two_views)),
        patch.object(training, "nt_xent", loss),
        patch.object(t, "forward", forward),
        patch.multiple(t.optimiser, step=step, zero_grad=zero),
    ):
        watch.switch("rest")
        training.train_step(t, index)
        return watch.read()


def bench_step(s: Bench) -> list[Row]:
    """The training step by parts, and what the device's own rates say that it should take."""
    rows = []
    for backbone, batch, _ in networks(s):
        t = new_training(s, backbone, batch, 1)
        t.network.train()
        steps, rates = split_steps(t, torch.arange(batch, device=s.device), s)
        parts = {part: [step.get(part, 0.0) for step in steps] for part in PARTS}
        total = statistics.median(sum(step.values()) for step in steps)
        case = f"{backbone}, batch {batch}"
        for part, times in parts.items():
            rows.append({"case": case, "name": part, **summary(times), "share": statistics.median(times) / total})
        rows += roofline(case, t, 2 * batch, total, statistics.median(parts["network"]), rates)
    return rows


def split_steps(
    t: training.Training, index: Int64[Tensor, "b"], s: Bench
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """`split_step` again and again, without the first; in turn with it the device's rates, so that both see the same.

    The rates are those of matrix products, in the type that training uses (FLOP/s), and of copies (bytes/s).
    """
    n = 8192 if s.cuda else 1536 if s.quick else 3072
    kind = torch.bfloat16 if s.cuda and torch.cuda.is_bf16_supported() else torch.float32
    a, b = torch.randn(2, n, n, device=s.device, dtype=kind).unbind(0)
    source = torch.ones(2**28 if s.cuda else 2**24, device=s.device)
    target, steps = torch.empty_like(source), []
    actions = {
        "step": lambda: steps.append(split_step(t, index)),
        "product": lambda: torch.mm(a, b),
        "copy": lambda: target.copy_(source),
    }
    middle = {name: statistics.median(times) for name, times in measure(actions, s).items()}
    return steps[1:], {"flops": 2 * n**3 / middle["product"], "bytes": 8 * len(source) / middle["copy"]}


def network_work(t: training.Training, n: int, probe: int = 8) -> tuple[float, float]:
    """FLOP of forward and backward of n views, and the bytes that norms, ReLUs and pools must at least move."""
    from torch.utils.flop_counter import FlopCounterMode

    moved = []

    def count(module, _, out):
        # Passes over the output, forward and backward: a norm reads twice and writes, then reads four times and writes.
        passes = 8 if "Norm" in type(module).__name__ else 0 if isinstance(module, (nn.Conv2d, nn.Linear)) else 5
        moved.append(passes * out.numel() * out.element_size())

    leaves = [m for m in t.network.modules() if not list(m.children()) and not isinstance(m, (nn.Identity, nn.Flatten))]
    hooks = [m.register_forward_hook(count) for m in leaves]
    x = torch.rand(probe, t.images.shape[1], t.size, t.size, device=t.device)
    with FlopCounterMode(display=False) as counter, t.autocast:
        t.network(x).float().sum().backward()
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() * n / probe, sum(moved) * n / probe


def roofline(
    case: str, t: training.Training, n: int, step: float, network: float, rates: dict[str, float]
) -> list[Row]:
    """Achieved FLOP/s of a step, and where the network's time goes: products, memory, and what is beyond both."""
    flops, moved = network_work(t, n)
    products, memory = flops / rates["flops"], moved / rates["bytes"]
    parts = {
        "network: arithmetic at the matmul rate": products,
        "network: norms, ReLUs at the copy rate": memory,
        "network: beyond both": network - products - memory,
    }
    whole = {"case": case, "name": "whole step", "seconds": step, "rate": flops / step, "unit": "FLOP/s"}
    whole |= {"share": products / step, "matmul_rate": rates["flops"], "copy_rate": rates["bytes"], "flops": flops}
    return [whole, *({"case": case, "name": name, "seconds": x, "share": x / step} for name, x in parts.items())]


def bench_loop(s: Bench) -> list[Row]:
    """Epochs of the whole loop, ours against the reference with as many workers as cores (16 at most)."""
    workers, rows = min(16, os.cpu_count() or 1), []
    for backbone, batch, steps in networks(s):
        t = new_training(s, backbone, batch, steps)
        reference = f"reference loop, {workers} workers"
        # The reference first: once workers are forked off, the first step of this process copies the pages it writes.
        actions = {reference: reference_loop(t, workers), "tase": lambda t=t: training.train_epoch(t)}
        times = measure(actions, s, 1.2)
        case = f"{backbone}, {steps} x batch {batch}"
        rows += compared(case, {name: times[name] for name in ("tase", reference)}, "tase", batch * steps, "images/s")
    return rows
