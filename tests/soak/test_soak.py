"""Long runs and many kills; `make soak` runs them, nothing else does (marker `soak`)."""

import os
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from harness import Subjects

import tase
from tase.files import read_lines

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
KILLS = {"train": 30, "evaluate": 8, "cache": 12, "shards": 12, "hf": 12, "wds": 12, "study": 10}


def memory() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return Subjects(tmp_path_factory.mktemp("kill"), TINY)


@pytest.mark.parametrize("name", KILLS)
def test_many_kills(name, subjects):
    seed, done, trials = int(os.environ.get("SOAK_SEED", "0")), [], 0
    rng = random.Random(f"{name} {seed}")
    while len(done) < KILLS[name]:
        done += subjects.trial(name, str(trials), rng, kills=min(6, KILLS[name] - len(done)))
        trials += 1
    signals = dict(Counter(number for number, _, _ in done))
    writes = dict(Counter(where for _, where, _ in done if where[:4] != "exit"))
    lost = max(lost for _, _, lost in done)
    print(f"\n{name}, seed {seed}: {len(done)} kills ({signals}) in {trials} trials; while written: {writes}; "
          f"at most {lost} epochs lost; all bit-equal")  # fmt: skip


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """2,000 epochs with a snapshot each, 12,000 steps: (run, memory, seconds of a write, of opening) by epoch."""
    changes = {
        **TINY,
        "optim.epochs": 2000,
        "guidance.refresh": 1,
        "record.knn_every": 0,
        "record.checkpoint_every": 50,
    }
    config = tase.preset("digits-lt", overrides={**changes, "record.features": 10, "model.channels": "4,4,4,4"})
    held, opened, writes = [], [], []
    write = tase.runs.RunWriter.snapshot

    def timed(writer, epoch, **arrays):
        start = time.perf_counter()
        write(writer, epoch, **arrays)
        writes.append(time.perf_counter() - start)

    def look(run):
        if run.status["epoch"] % 100 == 0:
            held.append(memory())
        if run.status["epoch"] in (100, 1999):
            start = time.perf_counter()
            assert tase.Run(run.path).history.tau.shape[0] == len(run.metrics) == run.status["epoch"]
            opened.append(time.perf_counter() - start)

    tase.runs.RunWriter.snapshot = timed
    try:
        run = tase.train(config, tmp_path_factory.mktemp("long") / "run", on_epoch=look, progress=False)
    finally:
        tase.runs.RunWriter.snapshot = write
    return run, held, np.array(writes), opened


def test_memory_stays_flat_over_twelve_thousand_steps(long_run):
    run, held, _, _ = long_run
    print(f"\n{run.status['step']} steps: {held[1]:.0f} MiB at epoch 200, {held[-2]:.0f} at 1900, most {max(held):.0f}")
    assert run.status["step"] >= 10_000
    assert max(held[1:-1]) - held[1] < 30  # held[-1] is after all snapshots were read


def test_snapshots_are_written_as_fast_at_the_end(long_run):
    run, _, writes, opened = long_run
    first, last = np.median(writes[:100]), np.median(writes[-100:])
    print(f"\n{len(writes)} snapshots: {1e3 * first:.1f} ms at first, {1e3 * last:.1f} ms at last (medians of 100)")
    print(f"a new Run and its tau: {opened[0]:.2f} s with 100 snapshots, {opened[1]:.2f} s with 1999")
    assert len(writes) == 2001 and last < 2 * first + 2e-3
    assert opened[1] < 10
    start = time.perf_counter()
    assert len(run.history) == 2001 and run.history.tau.shape[0] == 2001
    again = time.perf_counter()
    assert run.history.weight.shape[0] == 2001 and run.history.epoch[-1] == 2000
    print(f"the first look {again - start:.2f} s, the next {time.perf_counter() - again:.2f} s")
    assert time.perf_counter() - again < 2


def test_logs_stay_bounded(long_run):
    run = long_run[0]
    sizes = {p.name: p.stat().st_size for p in run.path.iterdir() if p.suffix in (".json", ".jsonl")}
    print(f"\nbytes after 2,000 epochs: {sizes}")
    assert len(read_lines(run.path / "metrics.jsonl")) == 2000
    assert sizes["metrics.jsonl"] < 2000 * 300 and sizes["status.json"] < 500 and sizes.get("events.jsonl", 0) == 0
