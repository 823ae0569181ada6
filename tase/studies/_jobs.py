"""The runs of a study as jobs: what is missing of each, doing it here or in processes, and what it costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..data import class_counts
from ..evaluation import evaluate, lacking
from ..guidance import build_guidance
from ..pseudo_labels import quality
from ..runs import Run, RunError, load_kept, read_lines, save_json
from ..training import choose_device, train

ASSUMED = 1000  # images a second and job, where no run of the same network has finished: one CPU core, conv4, 28x28
PATIENCE = 60  # seconds that a stopped job has to write its checkpoint


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
        """The finished run, or None."""
        run = Run(self.folder) if (self.folder / "config.json").exists() else None
        return run if run and run.finished else None

    @property
    def epochs_left(self) -> int:
        return self.config.optim.epochs - load_kept(self.folder / "status.json").get("epoch", 0)

    @property
    def qualities(self) -> dict[str, dict[str, float]]:
        """Quality of the clusterings done so far, by the identity of their configuration."""
        return load_kept(self.folder / "clusterings.json")

    @property
    def done(self) -> bool:
        run = self.run
        if run is None or (self.protocols and lacking(run, self.protocols, self.on)):
            return False
        return {c.identity for c in self.clusterings} <= set(self.qualities)

    def do(self, on_epoch: Callable[[Run], None] | None = None) -> None:
        """All of the job that is not done yet; a training goes on where it was stopped."""
        run = train(self.config, self.folder, resume=True, on_epoch=on_epoch, progress=False)
        if self.protocols:
            evaluate(run, self.protocols, progress=False, on=self.on)
        done = self.qualities
        for config in self.clusterings:
            if config.identity not in done:
                done[config.identity] = _clustered(run, config)
                save_json(self.folder / "clusterings.json", done)

    def to_json(self) -> str:
        clusterings = [c.to_dict() for c in self.clusterings]
        parts = {"folder": str(self.folder), "protocols": self.protocols, "on": self.on, "clusterings": clusterings}
        return json.dumps({"config": self.config.to_dict(), **parts})

    @classmethod
    def from_json(cls, text: str) -> Job:
        d = json.loads(text)
        clusterings = tuple(map(Config.from_dict, d["clusterings"]))
        return cls(Config.from_dict(d["config"]), Path(d["folder"]), tuple(d["protocols"]), d["on"], clusterings)


def _clustered(run: Run, config: Config) -> dict[str, float]:
    """Quality of the last pseudo-labels that `config` would make, refresh by refresh, of the features the run keeps."""
    h = run.history
    if h.labels is None:
        raise RunError(f"{run.path} has no true labels: the quality of clusters needs them")
    device, index = choose_device(config.optim), h.feature_index(0)
    guide = build_guidance(config, len(index), device=device, generator=torch.Generator().manual_seed(config.seed))
    for t, epoch in enumerate(h.epoch):
        kept = np.isin(h.feature_index(t), index)
        guide.update(torch.from_numpy(h.features(t)[kept]).to(device), int(epoch))
    labels, counts = (torch.from_numpy(x).to(device) for x in (h.labels[index], h.counts))
    return quality(guide.pseudo_label, guide.headness, labels, counts)


# ------------------------------------------------------------------------------------------------------------- in a row


def do_all(jobs: Sequence[Job], at_once: int, bar: Any) -> list[str]:
    """Do the jobs, `at_once` of them side by side; returns what failed, a line each. `bar` counts epochs."""
    if at_once > 1:
        return _in_processes(jobs, at_once, bar)
    failed = []
    for job in jobs:
        bar.set_postfix_str(str(job))
        try:
            job.do(on_epoch=lambda run: bar.update())
        except (ValueError, RuntimeError, OSError) as error:
            failed.append(f"{job}: {error}")
    return failed


# --------------------------------------------------------------------------------------------------------- in processes


class _Process:
    """A job in a process of its own, with its share of the cores, on its own GPU where there are several."""

    def __init__(self, job: Job, slot: int, at_once: int):
        self.job, self.slot, self.left = job, slot, job.epochs_left
        self.log = job.folder.parent / ".logs" / f"{job.folder.name}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tase", "study", "--job", job.to_json()]
        env = {**os.environ, **_share(slot, at_once)}
        with open(self.log, "wb") as log:
            # Its standard input ends when this process does, however it does: then the job ends too.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def progress(self) -> int:
        """Epochs since the last call."""
        with contextlib.suppress(OSError, RunError):
            before, self.left = self.left, min(self.left, self.job.epochs_left)
            return before - self.left
        return 0

    @property
    def failure(self) -> str | None:
        if self.process.returncode == 0:
            return None
        lines = self.log.read_text(errors="replace").strip().splitlines() or ["no message"]
        return f"{self.job}: {lines[-1].removeprefix('error: ')} (all of it: {self.log})"

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def wait(self) -> None:
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdin.close()


def _share(slot: int, at_once: int) -> dict[str, str]:
    """Environment of a process: its threads and, where there are several GPUs, the one it sees."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": str(max(1, cores // at_once)), "PYTHONUNBUFFERED": "1"}
    gpus = torch.cuda.device_count()
    if gpus > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        share["CUDA_VISIBLE_DEVICES"] = seen[slot % gpus]
    return share


def _in_processes(jobs: Sequence[Job], at_once: int, bar: Any) -> list[str]:
    waiting, running, failed = list(jobs), [], []
    with _sigterm_as_interrupt():
        try:
            while waiting or running:
                free = sorted(set(range(at_once)) - {p.slot for p in running})
                for slot, _ in zip(free, list(waiting)):
                    running.append(_Process(waiting.pop(0), slot, at_once))
                time.sleep(0.05)
                bar.set_postfix_str(f"{len(waiting) + len(running)} runs to go", refresh=False)
                bar.update(sum(p.progress() for p in running))
                ended = [p for p in running if p.process.poll() is not None]
                running = [p for p in running if p not in ended]
                for p in ended:
                    p.wait()
                failed += [p.failure for p in ended if p.failure]
        finally:
            for p in running:
                p.stop()
            for p in running:
                p.wait()
    return failed


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that the processes are stopped too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt("stopped; the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def work(text: str) -> None:
    """The other side of a process: do the job, and end at once when the study's own process has ended."""

    def watch() -> None:
        os.read(0, 1)  # returns when the other end is closed
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
    Job.from_json(text).do()


# ----------------------------------------------------------------------------------------------------------------- cost


def cost(jobs: Sequence[Job], at_once: int) -> tuple[float, str]:
    """Seconds that training the jobs will take, and what that rests on.

    Speed is that of finished runs of the same network and image source, else ASSUMED.
    """
    speeds: dict[tuple, list[float]] = {}
    for folder in {job.folder.parent for job in jobs}:
        for path in folder.glob("*/metrics.jsonl"):
            run = Run(path.parent)
            rows = [row["images_per_second"] for row in read_lines(path)]
            speeds.setdefault(_kind(run.config), []).append(sorted(rows)[len(rows) // 2] if rows else ASSUMED)
    total, assumed = 0.0, 0
    for job in jobs:
        known = speeds.get(_kind(job.config), [])
        assumed += not known
        speed = sum(known) / len(known) if known else ASSUMED
        total += job.epochs_left * class_counts(job.config)["n"] / speed
    basis = f"assuming {ASSUMED:,} images a second for each of {assumed} runs" if assumed else ""
    measured = "speed of the runs that are there" if assumed < len(jobs) else ""
    return total / at_once, " and ".join(part for part in (measured, basis) if part)


def _kind(config: Config) -> tuple:
    m = config.model
    return config.data.source, config.data.image_size, config.views.size, m.backbone, m.channels, m.strides
