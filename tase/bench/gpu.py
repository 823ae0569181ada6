"""Check and measure on a GPU what could not be tested without one, into one file: `make gpu` (`make gpu DEVICE=cpu`).

    python -m tase.bench.gpu --device cuda --out gpu-report.md       # at most 15 minutes; --quick: under a minute

A check returns what it found, in words, or raises: AssertionError where it failed, `Skipped` where the machine lacks
what it needs. On a CPU all that makes sense there is run, in small sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .. import training
from ..config import METHODS, OptimConfig, ViewsConfig
from ..distributed import choose_device
from ..files import write_atomic
from ..losses import nt_xent
from ..presets import preset
from ..runs import Run
from ..views import draw_parameters, make_views
from . import BENCH_SECTIONS, machine_facts
from .measuring import BenchBudget, bench_images, time_in_turn, timed_row
from .report import machine_words, row_line
from .rivals import late_training

TESTS = Path(__file__).parents[2] / "tests"
TOLERANCES = {"views": 1e-3, "loss": 1e-4, "bf16 loss": 0.02, "bf16 gradient": 0.25}  # relative, views of 0 to 1


@dataclasses.dataclass(frozen=True)
class GpuBudget(BenchBudget):
    """A budget of which `shortest` leaves out what takes over some seconds."""

    shortest: bool = False


class Skipped(Exception):
    """The machine lacks what the check needs; the message names it."""


def needs(present: bool, what: str) -> None:
    if not present:
        raise Skipped(f"needs {what}")


def new_training(s: GpuBudget, method: str = "tase", **fields: object) -> training.Training:
    """Set up a training of conv4 on 512 (64) stand-in images, as its seed starts it, late in its run."""
    return late_training(s, "conv4", 64 if s.quick else 512, method, **fields)


def one_step(t: training.Training) -> Tensor:
    return training.train_step(t, torch.arange(t.config.optim.batch, device=t.device)).loss.detach()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double().cpu() - b.double().cpu()).norm() / b.double().cpu().norm().clamp_min(1e-30))


# --- checks


def skipped_tests(s: GpuBudget) -> str:
    """Run the tests that skip where there is no GPU."""
    needs(s.device.type == "cuda", "a GPU")
    needs(TESTS.is_dir(), "the repository's tests/")
    command = [sys.executable, "-m", "pytest", str(TESTS), "-k", "gpu", "-m", "not soak", "-rs", "-p", "no:warnings"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-2000:]
    return "; ".join(line for line in done.stdout.splitlines() if line.startswith("SKIPPED")) or "all passed"


def no_waits(s: GpuBudget) -> str:
    """Take a step of every method under torch's own detector of waits."""
    needs(s.device.type == "cuda", "a GPU")
    for method in METHODS:
        t = new_training(s, method)
        one_step(t)  # tables are copied to the device once
        index = torch.arange(t.config.optim.batch, device=t.device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            training.train_step(t, index)
        except RuntimeError as error:
            raise AssertionError(f"a step of {method} waits: {error}") from error
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return f"a step of each of {len(METHODS)} methods waits for nothing"


def determinism(s: GpuBudget) -> str:
    """Train the same steps twice, with cuDNN's deterministic algorithms."""
    ends = []
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        for _ in range(2):
            t = new_training(s)
            losses = [one_step(t) for _ in range(3)]
            ends.append([*losses, *(p.detach() for p in t.parameters)])
    worst = max(relative(a, b) for a, b in zip(*ends))
    assert all(torch.equal(a, b) for a, b in zip(*ends)), f"two runs of three steps differ by {worst:.1e}"
    return "two runs of three steps are bit-equal"


def half_precision(s: GpuBudget) -> str:
    """Compare loss and gradient of one step in bf16 with those in float32."""
    found = []
    for precision in ("float32", "bf16"):
        t = new_training(s, **{"optim.precision": precision})
        loss = one_step(t)
        found.append((loss, torch.cat([p.grad.flatten() for p in t.parameters])))
    (loss, gradient), (half_loss, half_gradient) = found
    off = {"bf16 loss": relative(half_loss, loss), "bf16 gradient": relative(half_gradient, gradient)}
    return within(off)


def within(off: dict[str, float]) -> str:
    """Say how far off each is; AssertionError where that is above its tolerance."""
    words = ", ".join(f"{name} off by {x:.1e} (at most {TOLERANCES[name]:g})" for name, x in off.items())
    assert all(x <= TOLERANCES[name] for name, x in off.items()), words
    return words


def against_the_cpu(s: GpuBudget) -> str:
    """Make the same views, and the loss of the same embeddings, on the device and on the CPU in double precision."""
    images, v, rng = bench_images(64).images, ViewsConfig(blur=0.5), torch.Generator().manual_seed(0)
    drawn = draw_parameters(v, 128, 32, 32, rng)
    there = dataclasses.replace(
        drawn, **{f.name: getattr(drawn, f.name).to(s.device) for f in dataclasses.fields(drawn)}
    )
    views = make_views(images.to(s.device), there, v).cpu() - make_views(images, drawn, v)
    z, tau = torch.randn(2, 256, 128, generator=rng), torch.linspace(0.1, 0.5, 256)

    def loss_and_gradient(x: Tensor, tau: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        loss = nt_xent(*x, tau).loss
        return torch.cat([loss.detach()[None], torch.autograd.grad(loss, x)[0].flatten()])

    loss = relative(loss_and_gradient(z.to(s.device), tau.to(s.device)), loss_and_gradient(z.double(), tau.double()))
    return within({"views": float(views.abs().max()), "loss": loss})


def two_processes(s: GpuBudget) -> str:
    """Train a run in two processes: NCCL on two GPUs, gloo on a CPU."""
    gpus = torch.cuda.device_count() if s.device.type == "cuda" else 2
    needs(gpus >= 2, "two GPUs")
    needs(not s.shortest, "more time than --quick has")
    with tempfile.TemporaryDirectory() as folder:
        launcher = Path(sys.executable).with_name("torchrun")
        words = "--standalone --nproc-per-node 2 -m tase train --preset digits-lt --set record.knn_every=0"
        words = f"{words} optim.device={s.device.type} optim.epochs=2 optim.batch=128 --out".split()
        where = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([launcher, *words, f"{folder}/run"], capture_output=True, text=True, env=where)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        run = Run(f"{folder}/run")
        assert run.finished and run.environment["processes"] == 2
        speed = run.metrics["images_per_second"].max()
    return f"{'NCCL' if s.device.type == 'cuda' else 'gloo'}: finished, {speed:,.0f} images/s on digits-lt"


# --- measurements


def rivals(s: GpuBudget) -> str:
    """Measure the loop against the field's and the peers'."""
    needs(not s.shortest, "more time than --quick has")
    rows = [row for name in ("loop", "peers") for row in BENCH_SECTIONS[name](s)]
    return "<br>".join(" ".join(row_line(row).split()) for row in rows)


def matmul_peak(s: GpuBudget) -> str:
    """Compare the arithmetic of a training step, a second, with that of one large matrix product."""
    side, kind = (8192, torch.bfloat16) if s.device.type == "cuda" else (1024, torch.float32)
    backbone = "conv4" if s.shortest else "resnet18"
    a, t = torch.randn(side, side, device=s.device, dtype=kind), late_training(s, backbone, 64)
    with FlopCounterMode(display=False) as count:
        one_step(t)
    times = time_in_turn({"product": lambda: a @ a, "step": lambda: one_step(t)}, s, 0.5)
    seconds = {name: timed_row("", name, measured)["seconds"] for name, measured in times.items()}
    peak, step = 2 * side**3 / seconds["product"] / 1e12, count.get_total_flops() / seconds["step"] / 1e12
    product = f"product of {side} squared ({kind}): {peak:.2f} TFLOP/s"
    return f"{product}; a step of {backbone}, batch 64: {step:.2f}, {step / peak:.0%}"


def cifar_sized(s: GpuBudget) -> str:
    """Train on 11,165 stand-in images of 32 px, and predict the time of the preset's 2,000 epochs."""
    n, epochs, small = (512, 1, True) if s.shortest else (11_165, 3, s.device.type == "cpu")
    fields = {"model.backbone": "conv4"} if small else {}
    config = preset("cifar10-lt", "tase", overrides={"optim.batch": 128 if s.shortest else 512, **fields})
    t = training.Training(config, bench_images(n), s.device)
    seconds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clusters of so few epochs say nothing yet
        for action in [lambda: training.refresh(t), *[lambda: training.train_epoch(t)] * epochs]:
            start = time.perf_counter()
            action()
            float(t.sums.sum())  # waits for the device
            seconds.append(time.perf_counter() - start)
    refreshes = sum(config.is_refresh(e) for e in range(config.optim.epochs)) + 1
    epoch, refresh = min(seconds[1:]), seconds[0]
    hours = (config.optim.epochs * epoch + refreshes * refresh) / 3600
    return (
        f"{n:,} images, {config.model.backbone}, batch {config.optim.batch}: epoch {epoch:.2f} s, "
        f"{t.steps_per_epoch * config.optim.batch / epoch:,.0f} images/s, refresh {refresh:.2f} s; "
        f"{config.optim.epochs:,} epochs with {refreshes} refreshes: {hours:.1f} h"
    )


GPU_CHECKS: dict[str, Callable[[GpuBudget], str]] = {
    "tests that need a GPU": skipped_tests,
    "no waits in a step": no_waits,
    "determinism": determinism,
    "bf16 against float32": half_precision,
    "device against CPU": against_the_cpu,
    "two processes": two_processes,
    "speed against rivals": rivals,
    "speed against the matmul peak": matmul_peak,
    "CIFAR10-LT-sized run": cifar_sized,
}


def checked(name: str, s: GpuBudget) -> tuple[str, str, float]:
    """Run one check: "ok", "skipped" or "FAILED", what it found, and the seconds it took."""
    start = time.perf_counter()
    try:
        result = "ok", GPU_CHECKS[name](s)
    except Skipped as why:
        result = "skipped", str(why)
    except Exception as error:  # the other checks are still worth having
        result = "FAILED", f"{type(error).__name__}: {error}".replace("\n", "<br>")
    return *result, time.perf_counter() - start


def gpu_report(device: str, out: str | Path, quick: bool = False) -> bool:
    """Run all checks, write the report as Markdown after each, and return whether none failed."""
    chosen = choose_device(OptimConfig(device=device))
    small = quick or chosen.type == "cpu"
    s = GpuBudget(chosen, small, 0.5 if quick else 5.0 if small else 20.0, 3 if small else 15, shortest=quick)
    facts = machine_facts(chosen)
    lines = [f"# tase on {facts['device'] if chosen.type == 'cuda' else facts['processor']}", ""]
    lines += [" · ".join(machine_words(facts)), "", "| check | result | found | s |", "|---|---|---|---:|"]
    failed = False
    for name in GPU_CHECKS:
        result, found, seconds = checked(name, s)
        failed |= result == "FAILED"
        lines.append(f"| {name} | {result} | {found.replace('|', '/')} | {seconds:.1f} |")
        print(f"{name}: {result}, {found.replace('<br>', chr(10))} ({seconds:.1f} s)", flush=True)
        write_atomic(Path(out), ("\n".join(lines) + "\n").encode())
    return not failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--out", default="gpu-report.md", help="the file to send in")
    parser.add_argument("--quick", action="store_true", help="smallest sizes")
    given = parser.parse_args()
    sys.exit(not gpu_report(given.device, given.out, given.quick))
