"""Several processes, one run: `torchrun --nproc-per-node N -m tase train ...`, and several machines the same way.

    with team(device, batch):                       # NCCL on GPUs, gloo on CPUs; one process: nothing to set up
        writer = rank_zero(writer)                  # its methods run on rank 0, result or error in all processes
        own = index[shard(len(index))]              # this process's rows of the batch that all of them know
        columns = gather(z, len(index))             # the rows of all, with gradient
        with summed_gradients(network.parameters()):
            loss.backward()

Every helper is the identity where there is one process. The loss of a process is its rows' part of the batch's loss, so
gradients are summed, not averaged. That is done by hooks of the parameters: DistributedDataParallel would do the same,
but only for a network that is called once per step and whose parameters all get a gradient.

All processes draw the same random numbers, so the GPUs must be of one kind. Batch norm is synchronised on GPUs
(torch.nn.SyncBatchNorm). gloo has none: on CPUs each process normalises by its own rows of the batch, and all take the
running means and variances of rank 0 at the end of an epoch.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist

from .config import OptimConfig, check

_active = False  # inside `team`, but not while rank 0 does something alone
PATIENCE = timedelta(minutes=30)  # for a process that lives but does not answer (rank 0 may decode images)
BUCKET = 2**20  # gradient elements in a message: large enough to be fast, small enough to be sent while others wait


class TeamError(RuntimeError):
    """The other processes of the run cannot be reached: one has ended, or hangs."""


def launched() -> int:
    """Count the processes that torchrun (or a launcher that sets its variables) started; 0 where it did not."""
    several = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return _variable("WORLD_SIZE", 1) if several and _variable("WORLD_SIZE", 1) > 1 else 0


def _variable(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def world() -> int:
    """Count the processes of the team; 1 outside of `team`, and in what `rank_zero` calls."""
    return dist.get_world_size() if _active else 1


def rank() -> int:
    """Return this process's number in the team; known before the team is formed."""
    return dist.get_rank() if world() > 1 else _variable("RANK", 0) if launched() else 0


def choose_device(optim: OptimConfig) -> torch.device:
    """Return the device of `optim.device`; auto takes the GPU where there is one, each process its own."""
    name, gpus = optim.device, torch.cuda.device_count() if torch.cuda.is_available() else 0
    check(name in ("auto", "cpu") or gpus > 0, "optim.device", name, "cpu: there is no GPU here")
    if name == "cpu" or gpus == 0:
        return torch.device("cpu")
    if not launched():
        index = torch.device("cuda" if name == "auto" else name).index
        check(index is None or index < gpus, "optim.device", name, f"below cuda:{gpus}, as there are {gpus} GPUs here")
        return torch.device("cuda", torch.cuda.current_device() if index is None else index)  # torch 2.4 asks for it
    local, here = _variable("LOCAL_RANK", 0), _variable("LOCAL_WORLD_SIZE", 1)
    check(name in ("auto", "cuda"), "optim.device", name, "auto, cpu or cuda: each process takes a GPU of its own")
    check(here <= gpus, "--nproc-per-node", here, f"at most {gpus}, the GPUs of this machine (or set optim.device=cpu)")
    return torch.device("cuda", local)


def device_here(optim: OptimConfig) -> torch.device:
    """Return the device of `optim.device`, or, where a run was trained on a GPU and there is none, the CPU."""
    return choose_device(optim if torch.cuda.is_available() else dataclasses.replace(optim, device="cpu"))


@contextlib.contextmanager
def team(device: torch.device, batch: int) -> Iterator[None]:
    """Join the launched processes into one team, which shares batches of `batch` images.

    Raises ConfigError for a batch that cannot be shared evenly, and TeamError where the others cannot be reached.
    """
    global _active
    if not launched() or _active:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Objects and flags always go through gloo: the processes agree without waiting for the GPU.
        with _reaching():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE, **_store_of_restart())
    n = dist.get_world_size()
    even = batch % n == 0 and batch >= 2 * n  # batch norm needs two rows
    check(even, "optim.batch", batch, f"a multiple of {n}, the number of processes, and at least {2 * n}")
    atexit.unregister(dist.destroy_process_group)  # not after an error: the others may not answer any more
    _active = True
    try:
        yield
        any_of(False)  # all have come here: nobody leaves while another waits for its message
    finally:
        _active = False
    # A thread of gloo drops its tensors after it has reported the work as done, and needs the interpreter for it. So it
    # gets time now; without the destruction, or (torch 2.4) if it is still at it then, the process aborts or hangs.
    time.sleep(0.2)
    atexit.register(dist.destroy_process_group)


def _store_of_restart() -> dict[str, Any]:
    """Return a store of names for processes that torchrun has started again, as arguments of init_process_group.

    torchrun keeps its store over restarts, and in it the addresses of the processes that have ended: one that is early
    would connect to those. Machines count restarts each for itself, so that several need a store of their own each time
    (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun).
    """
    restarts = _variable("TORCHELASTIC_RESTART_COUNT", 0)
    if not restarts or _variable("GROUP_WORLD_SIZE", 1) > 1:
        return {}
    store, own, n = next(dist.rendezvous("env://", timeout=PATIENCE))
    return {"store": dist.PrefixStore(f"restart {restarts}", store), "rank": own, "world_size": n}


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0][:200]
        raise TeamError(f"process {rank()} cannot reach the others; resume with --resume ({why})") from error


def shard(n: int, at: int | None = None) -> slice:
    """Return the rows of n that this process (or process `at`) works on.

    All shards have the same length. Where n does not divide evenly, the last ones overlap.
    """
    size = -(-n // world())
    first = min((rank() if at is None else at) * size, n - size) if world() > 1 else 0
    return slice(first, first + size)


class _Gather(torch.autograd.Function):
    """The rows of all processes, one after the other (torch.distributed.nn has it, deprecated since torch 2.14)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        with _reaching():
            dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Each process has used the rows of all: the gradient of a row is the sum of what they found for it.
        return all_reduce(gradient).chunk(world())[rank()]


def gather(x: Float[Tensor, "r ..."], n: int) -> Float[Tensor, "n ..."]:
    """Join the processes' shards of n rows, with gradient."""
    if world() == 1:
        return x
    rows = _Gather.apply(x.contiguous())  # [world * r, ...]
    if len(rows) > n:  # the last shards overlap: row i is one of process i // r
        i, r = torch.arange(n, device=x.device), len(x)
        start = (i // r * r).clamp_max(n - r)  # of that process's shard
        rows = rows[i // r * r + i - start]
    return rows


def all_reduce(x: Tensor) -> Tensor:
    """Return the sum of x over the processes, bit-equal in all of them."""
    if world() > 1:
        x = x.detach().clone(memory_format=torch.contiguous_format)
        with _reaching():
            dist.all_reduce(x)
    return x


def any_of(*flags: bool) -> list[bool]:
    """Tell for each flag whether it is set in any of the processes. Does not wait for the GPU."""
    return all_reduce(torch.tensor(flags, dtype=torch.int64)).bool().tolist()


@contextlib.contextmanager
def summed_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Sum the gradients of the backward pass inside over the processes.

    A bucket of gradients is sent as soon as it is full, so that the sum hides behind the rest of the backward pass.
    Autograd visits the same graph in the same order everywhere, so all processes fill the same buckets.
    """
    if world() == 1:
        yield
        return
    bucket: list[Tensor] = []
    sent: list[tuple[list[Tensor], Tensor, dist.Work]] = []

    def send() -> None:
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        with _reaching():
            sent.append(([*bucket], flat, dist.all_reduce(flat, async_op=True)))
        bucket.clear()

    def ready(p: nn.Parameter) -> None:
        bucket.append(p.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET:
            send()

    hooks = [p.register_post_accumulate_grad_hook(ready) for p in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if bucket:
        send()
    for gradients, flat, work in sent:
        with _reaching():
            work.wait()
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(total.view_as(gradient))


def broadcast(x: Any) -> Any:
    """Return rank 0's object, with its tensors on the CPU, in all processes. Does not wait for the GPU."""
    message = [on_cpu(x) if rank() == 0 else None]
    with _reaching():
        dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
    return message[0]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Make the process inside see no other."""
    global _active
    before, _active = _active, False
    try:
        yield
    finally:
        _active = before


class _RankZero:
    """Proxy of `rank_zero`."""

    def __init__(self, target: Any):
        self._target = target

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        result = error = None
        if rank() == 0:
            try:
                with _alone():
                    result = self._target(*inputs, **options)
            except Exception as raised:
                error = raised
        result, error = broadcast((result, error))
        if error is not None:
            raise error
        return result

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return _RankZero(value) if callable(value) else value

    def __enter__(self) -> _RankZero:
        _RankZero(lambda: self._target.__enter__() and None)()
        return self

    def __exit__(self, *error: Any) -> Any:
        if rank() == 0:
            with _alone():  # and without a message: after an error the others may not answer any more
                return self._target.__exit__(*error)


def rank_zero(target: Any) -> Any:
    """Return a proxy of an object whose methods, or of a function that, runs on rank 0 alone.

    Result or exception come back in all processes. In what is called, `world()` is 1. As a context manager the proxy
    enters and leaves the object on rank 0.
    """
    return target if world() == 1 else _RankZero(target)


def on_cpu(state: Any) -> Any:
    """Return the same nest of dictionaries, lists and tuples with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    return type(state)(map(on_cpu, state)) if type(state) in (list, tuple) else state


@torch.no_grad()
def broadcast_buffers(module: nn.Module) -> None:
    """Give all processes rank 0's buffers: the running means and variances of batch norm."""
    if world() > 1:
        with _reaching():
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
