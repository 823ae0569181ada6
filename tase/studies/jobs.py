"""The runs of a study as jobs: what is missing of each, doing it here or by an executor, and what it costs.

Several commands may do the jobs of one folder, on machines that share it: who does a job holds its claim, the others
leave it out and look at it again later.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config, check
from ..data import class_counts
from ..distributed import choose_device
from ..evaluation import evaluate, lacking
from ..files import Claim, InUse, RunError, is_held, load_optional_json, read_lines, save_json
from ..guidance import build_guidance
from ..models import frozen_features
from ..pseudo_labels import quality
from ..runs import Run
from ..training import train

ASSUMED = 1000  # images a second and job, where no run of the same network has finished: one CPU core, conv4, 28x28
STOP_SECONDS = 60  # seconds that a stopped job has to write its checkpoint
POLL, LOOK = 0.05, 0.5  # seconds between two looks at the futures, and at the folders of the runs
TRIES = 3  # times that a job is submitted without getting any further
HELD, STOPPED = "it is in use by another process", "stopped by a signal"


@dataclass(frozen=True)
class Job:
    """One run: train it, evaluate it by `protocols` on test or val, cluster its features in the ways `clusterings`."""

    config: Config
    folder: Path
    protocols: tuple[str, ...] = ()
    on: str = "test"
    clusterings: tuple[Config, ...] = ()

    def __str__(self) -> str:
        return f"{self.config.method} on {self.config.preset}, seed {self.config.seed} ({self.folder.name})"

    @property
    def run(self) -> Run | None:
        """The finished run, or None; one that was steered while it trained is none."""
        run = Run(self.folder) if (self.folder / "config.json").exists() else None
        return run if run and run.finished and not run.steered else None

    @property
    def claim(self) -> Claim:
        """The right to do it, as a file next to the run."""
        return Claim(self.folder.parent / ".claims" / self.folder.name)

    @property
    def free(self) -> bool:
        """Whether no process works on it: neither one of a study nor a training by itself."""
        return self.claim.owner is None and not is_held(self.folder / ".lock")

    @property
    def epochs_left(self) -> int:
        return self.config.optim.epochs - load_optional_json(self.folder / "status.json").get("epoch", 0)

    @property
    def qualities(self) -> dict[str, dict[str, float]]:
        """Quality of the clusterings done so far, by the identity of their configuration."""
        return load_optional_json(self.folder / "clusterings.json")

    @property
    def done(self) -> bool:
        run = self.run
        if run is None or (self.protocols and lacking(run, self.protocols, self.on, self.config.evaluation)):
            return False
        return {c.identity for c in self.clusterings} <= set(self.qualities)

    def do(self, on_epoch: Callable[[Run], None] | None = None) -> None:
        """Do what is missing of the job; an interrupted training is resumed."""
        run = train(self.config, self.folder, resume=True, on_epoch=on_epoch, progress=False)
        if run.steered:
            raise RunError(f"{run.path} was steered while it trained, so it is no run of a study; move it away")
        if self.protocols:
            evaluate(run, self.protocols, progress=False, on=self.on, evaluation=self.config.evaluation)
        done = self.qualities
        for config in self.clusterings:
            if config.identity not in done:
                done[config.identity] = _clustered(run, config)
                save_json(self.folder / "clusterings.json", done)


def _clustered(run: Run, config: Config) -> dict[str, float]:
    """Judge the last pseudo-labels that `config` would make, refresh by refresh, of the features the run keeps."""
    h = run.history
    if h.labels is None:
        raise RunError(f"{run.path} has no true labels: the quality of clusters needs them")
    device, index = choose_device(config.optim), h.feature_index(0)
    guide = build_guidance(config, len(index), device=device, generator=torch.Generator().manual_seed(config.seed))
    frozen, network = config.guidance.features, config.guidance.features_network
    for t, epoch in enumerate(h.epoch):
        kept = np.isin(h.feature_index(t), index)  # the last snapshot keeps the features of all images
        if not frozen:
            guide.update(torch.from_numpy(h.features(t)[kept]).to(device), int(epoch))
        elif t == 0:  # the same at each refresh
            images = run.images.images[torch.from_numpy(index)]
            guide.update(frozen_features(frozen, images, device, network=network), int(epoch))
    labels, counts = (torch.from_numpy(x).to(device) for x in (h.labels[index], h.counts))
    return quality(guide.pseudo_label, guide.headness, labels, counts)


def do_job(job: Job, on_epoch: Callable[[Run], None] | None = None) -> str:
    """Do a job, in any process; returns "", HELD, or in a line why it failed (the traceback is in a log near the run).

    The job is claimed first: of all that try, one does it.
    """
    try:
        with job.claim as claim:

            def after_epoch(run: Run) -> None:
                if claim.lost:
                    raise RunError("another machine has taken it over: this one was silent for too long")
                if on_epoch:
                    on_epoch(run)

            if not job.done:  # another may have done it meanwhile
                job.do(on_epoch=after_epoch)
        claim.remove()
        return ""
    except InUse:
        return HELD
    except Exception as error:
        log = job.folder.parent / ".logs" / f"{job.folder.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc())
        return f"{error or type(error).__name__} (all of it: {log})"


def _do_in_worker(job: Job) -> str:
    try:
        return do_job(job)
    except KeyboardInterrupt as stop:
        wanted = load_optional_json(job.folder / "control.json").get("action") == "stop"
        return str(stop) if wanted else STOPPED


def do_all(jobs: Sequence[Job], bar: Any, executor: Any = None) -> list[str]:
    """Do the jobs one by one here, or by `executor`; returns what failed, a line each.

    `bar` counts epochs. The executor has `submit(function, job)`, its futures `done()` and `result()`.
    """
    failed = _one_by_one(jobs, bar) if executor is None else _follow(jobs, executor, bar)
    return [f"{job}: {why}" for job, why in failed.items() if not job.done]  # or another command has done it


def _one_by_one(jobs: Sequence[Job], bar: Any) -> dict[Job, str]:
    """Do the jobs in this process; those that others hold at the end, when they are free."""
    failed, left = {}, list(jobs)
    while left:
        held = []
        for job in left:
            bar.set_postfix_str(str(job))
            why = do_job(job, on_epoch=lambda run: bar.update())
            held += [job] * (why == HELD)
            failed |= {job: why} if why not in ("", HELD) else {}
        time.sleep(LOOK if len(held) == len(left) else 0)
        left = held
    return failed


def _follow(jobs: Sequence[Job], executor: Any, bar: Any) -> dict[Job, str]:
    """Submit the jobs and wait for them, reading their progress from their folders; returns what failed.

    A job whose process or machine is lost or preempted is submitted again, and resumes, until it has been lost TRIES
    times without progress. One that another command holds is submitted again when it is free.
    """
    left, tries, failed = {job: job.epochs_left for job in jobs}, dict.fromkeys(jobs, 0), {}
    waiting, held, looked = {}, [], 0.0

    def submit(job: Job) -> None:
        try:
            waiting[job] = executor.submit(_do_in_worker, job)
        except Exception as error:  # its scheduler is gone, or refuses the job
            failed[job] = str(error) or type(error).__name__

    for job in jobs:
        submit(job)
    while waiting or held:
        for job in [job for job, future in waiting.items() if future.done()]:
            why, lost = _outcome(waiting.pop(job))
            tries[job] += lost
            if lost and tries[job] < TRIES:
                submit(job)
            elif why == HELD:
                held.append(job)
            elif why:
                failed[job] = why
        if time.monotonic() - looked > LOOK or not waiting:
            looked = time.monotonic()
            for job in [job for job in held if job.free]:
                held.remove(job)
                submit(job)
            bar.set_postfix_str(f"{len(waiting)} runs to go" + f", {len(held)} in use" * bool(held), refresh=False)
            for job in jobs:
                with contextlib.suppress(OSError, RunError):
                    before, left[job] = left[job], min(left[job], job.epochs_left)
                    bar.update(before - left[job])
                    tries[job] *= before == left[job]
        time.sleep(POLL if waiting else LOOK if held else 0)
    return failed


def _outcome(future: Any) -> tuple[str, bool]:
    """Return why a job failed, or "", and whether it was lost on the way and may be submitted again."""
    try:
        why = future.result()
        return why, why == STOPPED
    except Exception as error:  # the executor's own: a killed process, a lost machine
        return str(error) or type(error).__name__, True


# ------------------------------------------------------------------------------------------------------------ processes

SPAWN = multiprocessing.get_context("spawn")


class Workers(Executor):
    """Run each call in a process of its own, `n` at a time, with its share of the cores and, of several, one GPU.

    Where a process is killed, its call fails and the others are left alone. Processes end with this one, however that
    ends. Left by an error or Ctrl-C, they are terminated: trainings write a checkpoint.
    """

    def __init__(self, n: int):
        self.n, self.lock, self.processes = n, threading.Lock(), []
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(n):
            self.free.put(slot)
        self.threads = ThreadPoolExecutor(n)

    def submit(self, function: Callable, *args: Any) -> Future:
        return self.threads.submit(self._call, function, *args)

    def _call(self, function: Callable, *args: Any) -> Any:
        slot = self.free.get()
        receiver, sender = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_work, args=(sender, function, args))
        try:
            with self.lock, _environment(resources(slot, self.n)):  # the process reads it as it starts
                process.start()
                self.processes.append(process)
            sender.close()  # so that `receiver` sees the end when the process, the only other holder, has ended
            return receiver.recv()
        except (EOFError, OSError):
            hint = 'a script of your own must call run_study under `if __name__ == "__main__"`'
            raise RunError(f"its process has ended: killed, out of memory, or it could not start ({hint})") from None
        finally:
            self.free.put(slot)

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.threads.shutdown(wait=kind is None, cancel_futures=kind is not None)
        with self.lock:
            for process in self.processes if kind else ():
                process.terminate()
        for process in self.processes:
            process.join(STOP_SECONDS)
            process.kill()


def _work(sender: Any, function: Callable, args: Sequence[Any]) -> None:
    """Leave the terminal's Ctrl-C to the parent, end when the parent has ended, and send what the function returns."""
    if hasattr(os, "setsid"):
        os.setsid()

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
    sender.send(function(*args))


def resources(slot: int, at_once: int) -> dict[str, str]:
    """Name a worker's threads and, where there are several GPUs, the one it sees, as environment variables."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    variables = {"OMP_NUM_THREADS": str(max(1, cores // at_once))}
    gpus = torch.cuda.device_count()
    if gpus > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        variables["CUDA_VISIBLE_DEVICES"] = seen[slot % gpus]
    return variables


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
        os.environ.update(before)


# ----------------------------------------------------------------------------------------------------------------- cost


def cost(jobs: Sequence[Job], at_once: int) -> tuple[float, str]:
    """Estimate the seconds that training the jobs will take, and say what that rests on.

    Speed is that of finished runs of the same network and image source, else ASSUMED.
    """
    speeds: dict[tuple, list[float]] = {}
    for path in (path for folder in {job.folder.parent for job in jobs} for path in folder.glob("*/metrics.jsonl")):
        rows = [row["images_per_second"] for row in read_lines(path) if "images_per_second" in row]
        with contextlib.suppress(RunError):  # a damaged run says nothing about speed
            if rows:
                speeds.setdefault(_network_of(Run(path.parent).config), []).append(np.median(rows))
    check(at_once >= 1, "--jobs", at_once, "at least 1")
    total, assumed = 0.0, 0
    images: dict[tuple, int] = {}
    for job in jobs:
        known = speeds.get(_network_of(job.config), [])
        assumed += not known
        drawn = job.config.data, job.config.split  # listing a folder takes its time
        images[drawn] = images.get(drawn) or class_counts(job.config)["n"]
        total += job.epochs_left * images[drawn] / (np.mean(known) if known else ASSUMED)
    basis = f"assuming {ASSUMED:,} images a second for each of {assumed} runs" if assumed else ""
    measured = "speed of the runs that are there" if assumed < len(jobs) else ""
    return float(total) / at_once, " and ".join(filter(None, (measured, basis)))


def _network_of(config: Config) -> tuple:
    m = config.model
    return config.data.source, config.data.image_size, config.views.size, m.backbone, m.channels, m.strides
