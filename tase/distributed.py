"""Several processes, one run: `torchrun --nproc-per-node N -m tase train ...`, and several machines the same way.

    with team(device, batch):                       # NCCL on GPUs, gloo on CPUs; one process: nothing to set up
        own = index[share(len(index))]              # this process's part of the batch that all of them know
        columns = gather(z)                         # the rows of all, with gradient
        sum_gradients(network)
        done = lead(writer.finished, images)        # called in the first process, its answer or its error in all

The GPUs must be of one kind, so that all draw the same numbers. Every helper is the identity where there is one
process. The loss of a process is its rows' part of the batch's loss,
so gradients are summed, not averaged: one sum over a flat copy of them all after the backward pass. That is simpler
than DistributedDataParallel, which divides by the number of processes and wraps a network that is called twice per
step; what DDP would hide, the sum's time behind the backward pass, is not hidden.

Batch norm: synchronised on GPUs (torch.nn.SyncBatchNorm). gloo has none, so on CPUs each process normalises by its own
part of the batch, and the first one's running means and variances are taken by all at the end of an epoch.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist

from .config import OptimConfig, check

_together = False  # inside of `team`, but not of `lead`, where the first process does something alone
_lent: list[weakref.ref[Tensor]] = []  # what gloo's threads were given, and may not have let go of
PATIENCE = timedelta(minutes=30)  # for a process that lives but does not answer (the first may decode images)


class TeamError(RuntimeError):
    """The other processes of the run cannot be reached: one has ended, or hangs."""


def launched() -> int:
    """How many processes torchrun (or another launcher that sets its variables) started; 0 where it did not."""
    several = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return _launched("WORLD_SIZE", 1) if several and _launched("WORLD_SIZE", 1) > 1 else 0


def _launched(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def world() -> int:
    """Processes in the team; 1 outside of `team`, and in what `lead` calls."""
    return dist.get_world_size() if _together else 1


def rank() -> int:
    """This process's number in the team, 0 for the first; known before the team is formed."""
    return dist.get_rank() if world() > 1 else _launched("RANK", 0) if launched() else 0


def choose_device(optim: OptimConfig) -> torch.device:
    """The device of `optim.device`; auto takes the GPU where there is one, and each process of a team its own."""
    name, gpus = optim.device, torch.cuda.device_count() if torch.cuda.is_available() else 0
    check(name in ("auto", "cpu") or gpus > 0, "optim.device", name, "cpu: there is no GPU here")
    if name == "cpu" or gpus == 0:
        return torch.device("cpu")
    if not launched():
        return torch.device("cuda" if name == "auto" else name)
    local, here = _launched("LOCAL_RANK", 0), _launched("LOCAL_WORLD_SIZE", 1)
    check(name in ("auto", "cuda"), "optim.device", name, "auto, cpu or cuda: each process takes a GPU of its own")
    check(here <= gpus, "--nproc-per-node", here, f"at most {gpus}, the GPUs of this machine (or set optim.device=cpu)")
    return torch.device("cuda", local)


@contextlib.contextmanager
def team(device: torch.device, batch: int) -> Iterator[None]:
    """Inside, the processes that were launched are one team, which shares batches of `batch` images.

    Raises ConfigError for a batch that is too small, and TeamError where the others cannot be reached.
    """
    global _together
    if not launched() or _together:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Objects and flags always go through gloo: the processes agree without a look at the GPU.
        with _reaching():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    least = 2 * dist.get_world_size()
    check(batch >= least, "optim.batch", batch, f"at least {least}, 2 for each process")
    atexit.unregister(dist.destroy_process_group)  # not after an error: the others may not answer any more
    _together = True
    try:
        yield
        any_of(False)  # all have come here: nobody leaves while another waits for its message
        _settle()
    finally:
        _together = False
    atexit.register(dist.destroy_process_group)


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0][:200]
        raise TeamError(f"process {rank()} cannot reach the others; go on with --resume ({why})") from error


def _lend(x: Tensor) -> Tensor:
    """The same memory as a tensor that nobody but the group holds, so that `_settle` sees it let go of."""
    _lent[:] = [lent for lent in _lent if lent() is not None]
    x = x.detach()
    _lent.append(weakref.ref(x))
    return x


def _settle(seconds: float = 10) -> None:
    """Wait until the group's threads have let go of every tensor.

    A thread of gloo drops its tensors after it has told us that the work is done, and needs the interpreter for it: an
    interpreter that is being taken down aborts the process there (torch 2.15), or waits for that thread for ever (2.4).
    """
    deadline = time.monotonic() + seconds
    while any(lent() is not None for lent in _lent) and time.monotonic() < deadline:
        time.sleep(0.001)


def share(n: int, of: int | None = None, at: int | None = None) -> slice:
    """The part of n rows that process `at` (this one) of `of` (the team) works on; parts differ by one row at most."""
    of, at = world() if of is None else of, (rank() if world() > 1 else 0) if at is None else at
    return slice(n * at // of, n * (at + 1) // of)


def total(x: Tensor) -> Tensor:
    """The sum of x over the processes, bit-equal in all of them."""
    if world() > 1:
        x = x.clone()
        with _reaching():
            dist.all_reduce(_lend(x))
    return x


def any_of(*flags: bool) -> list[bool]:
    """Whether each flag is set in any of the processes. Does not look at the GPU."""
    return list(flags) if world() == 1 else total(torch.tensor(flags, dtype=torch.int64)).bool().tolist()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        own = x.new_zeros(max(sizes), *x.shape[1:])  # as long as the longest: backends gather equal parts only
        own[: len(x)] = x
        parts = [torch.empty_like(own) for _ in sizes]
        with _reaching():
            dist.all_gather([_lend(part) for part in parts], _lend(own))
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        first = sum(ctx.sizes[: rank()])
        return total(gradient.contiguous())[first : first + ctx.sizes[rank()]], None


def gather(x: Float[Tensor, "r ..."], n: int) -> Float[Tensor, "n ..."]:
    """The rows of all processes, each of which holds its `share` of n: [r, ...] -> [n, ...]; differentiable."""
    return x if world() == 1 else _Gather.apply(x, [len(range(n)[share(n, at=at)]) for at in range(world())])


def sum_gradients(module: nn.Module) -> None:
    """Replace every gradient by its sum over the processes, in one message."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if world() > 1 and gradients:
        flat = total(torch.cat([g.flatten() for g in gradients]))
        for g, summed in zip(gradients, flat.split([g.numel() for g in gradients])):
            g.copy_(summed.view_as(g))


def lead(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """What the function returns in the first process, where alone it is called; its error is raised in all."""
    global _together
    if world() == 1:
        return function(*inputs, **options)
    answer, error = None, None
    if rank() == 0:
        _together = False
        try:
            answer = on_cpu(function(*inputs, **options))
        except Exception as raised:
            error = raised
        finally:
            _together = True
    answer, error = _from_the_first((answer, error))
    if error is not None:
        raise error
    return answer


def _from_the_first(message: Any) -> Any:
    """The first process's message, in all; pickled. Does not look at the GPU."""
    written = torch.frombuffer(bytearray(pickle.dumps(message)), dtype=torch.uint8)
    length = int(total(torch.tensor(len(written) if rank() == 0 else 0)))
    sent = written if rank() == 0 else written.new_empty(length)
    with _reaching():
        dist.broadcast(_lend(sent), 0)
    return pickle.loads(sent.numpy().tobytes())


def on_cpu(state: Any) -> Any:
    """The same nest of dictionaries, lists and values with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    return [on_cpu(value) for value in state] if isinstance(state, list) else state


@torch.no_grad()
def same_buffers(module: nn.Module) -> None:
    """Give all processes the first one's buffers: the running means and variances of batch norm."""
    if world() > 1:
        with _reaching():
            for buffer in module.buffers():
                dist.broadcast(_lend(buffer), 0)
