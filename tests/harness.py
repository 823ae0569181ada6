"""Kills real processes at random moments, lets them go on, and compares what they leave with an undisturbed one."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import random
import re
import signal
import sys
import tarfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import tase.evaluation
import tase.figures
import tase.studies  # noqa: F401 (all in the process that is forked)
from tase.__main__ import main
from tase.files import load_json, load_npz, read_lines
from tase.runs import Run, load_checkpoint

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
EVERY = 3  # record.checkpoint_every
# Processes are forked from one that has imported everything: a kill costs milliseconds and not the import of torch.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["harness", "sklearn.datasets", "sklearn.neighbors", "pandas", "torch._dynamo"])


def _work(words: list[str], log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
    os.write(1, b"begun\n")
    try:
        code = main(words)
    except KeyboardInterrupt:  # while the words were read
        code = 130
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def start(words: list[str], log: Path):
    """A process `python -m tase WORDS`, its output in `log`; returns when it has begun."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    log.unlink(missing_ok=True)
    process = _context.Process(target=_work, args=(words, str(log)))
    process.start()
    while process.is_alive() and not (log.exists() and log.stat().st_size):
        time.sleep(0.001)
    return process


def finish(words: list[str], log: Path) -> float:
    """Let it run to its end; returns the seconds it took."""
    begun = time.perf_counter()
    process = start(words, log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    return time.perf_counter() - begun


def half_written(folder: Path) -> list[str]:
    """Names of the files and folders that are being written, or were when the process was killed."""
    found = [path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".incomplete")]
    return [re.sub(r"^\.|\.[0-9a-f]{8}\.\d+\.tmp$|\.tmp$|_\d+", "", name) for name in found]


def lost_epochs(folder: Path) -> int:
    """Epochs that are done and in no checkpoint: the most of all runs below the folder."""
    lost = [0]
    for path in folder.rglob("config.json"):
        run = Run(path.parent)
        done = [row["epoch"] for row in read_lines(path.parent / "metrics.jsonl")]
        state = load_checkpoint(path.parent, run.config.identity)
        lost.append(max(done, default=0) - (state["epoch"] if state else 0))
    return max(lost)


def kill_and_resume(words, folder: Path, rng: random.Random, seconds: float, kills: int) -> list[tuple[str, str, int]]:
    """Start, kill, start again ... up to `kills` times, then let it finish: (signal, where, lost epochs) of each.

    A kill comes after a random part of `seconds`, or as soon as a file is being written. Fewer where it ends earlier.
    """
    told, log = [], folder.parent / f"{folder.name}.log"
    for _ in range(kills):
        process, number = start(words, log), rng.choice(SIGNALS)
        end = time.perf_counter() + rng.uniform(0, seconds)
        writing = rng.random() < 0.5  # then: at the first write after that moment
        while process.is_alive() and (time.perf_counter() < end or (writing and not half_written(folder))):
            time.sleep(0.0005)
        if not process.is_alive():
            break
        os.kill(process.pid, number)
        process.join()
        said = log.read_text()
        assert "Traceback" not in said, said
        assert process.exitcode in (0, 130, -number), (process.exitcode, said)
        where = ", ".join(half_written(folder))
        lost = lost_epochs(folder)
        assert lost <= EVERY, f"{lost} epochs lost"
        told.append((number.name, where or f"exit {process.exitcode}", lost))
    finish(words, log)
    assert half_written(folder) == []
    return told


# ----------------------------------------------------------------------------------------------------- what is compared


def _flat(value, name: str = "") -> dict:
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in pairs for k, v in _flat(part, f"{name}/{key}").items()}
    value = value.numpy() if isinstance(value, torch.Tensor) else value
    return {name: (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value}


def _content(path: Path):
    if path.suffix == ".npz":
        return load_npz(path)
    if path.name == "checkpoint.pt":
        return load_checkpoint(path.parent, Run(path.parent).config.identity)
    if path.name == "metrics.jsonl":
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in read_lines(path)]
    if path.name == "config.json":
        return load_json(path)["identity"]  # the rest names folders
    if path.suffix == ".json" and path.parent.name != "tars":
        return {k: v for k, v in load_json(path).items() if k != "commit"}
    if path.suffix in (".csv", ".md", ".tex"):
        return re.sub(r"\b[0-9a-f]{10}\b\+?", "COMMIT", path.read_text())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict:
    """All that the files of a folder hold, times aside, as flat values that are equal where they are so bit for bit."""
    other = ("status.json", "environment.json", ".lock", "checkpoint.previous.pt")
    found = {}
    for path in sorted(folder.rglob("*")):  # hub: copies of another library, of which only the images count
        if path.is_file() and path.name not in other and path.suffix not in (".pdf", ".png", ".lock"):
            if "hub" in path.parts:
                continue
            found.update(_flat(_content(path), str(path.relative_to(folder))))
    return found


def assert_equal(folder: Path, undisturbed: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = contents(folder)
    assert found.keys() == undisturbed.keys(), found.keys() ^ undisturbed.keys()
    different = [name for name, value in found.items() if repr(value) != repr(undisturbed[name])]
    assert not different, different[:10]


# ---------------------------------------------------------------------------------------------------------- what is run


def pictures(folder: Path, n: int = 256, side: int = 128) -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        (folder / f"class {i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
            folder / f"class {i % 2}" / f"{i}.png"
        )
    return folder


def archives(source: Path, folder: Path) -> dict[str, Path]:
    """The pictures of a folder once more, as Parquet files and as tar shards, four of each."""
    import datasets

    datasets.disable_progress_bars()
    files = sorted(source.rglob("*.png"))
    labels = [int(path.parent.name[-1]) for path in files]
    data = datasets.Dataset.from_dict({"image": [{"bytes": p.read_bytes()} for p in files], "label": labels})
    data = data.cast_column("image", datasets.Image())
    for part in range(4):
        name = f"train-{part:05d}-of-00004"
        data.shard(4, part).to_parquet(folder / "hf" / f"{name}.parquet")
        (folder / "wds").mkdir(exist_ok=True)
        with tarfile.open(folder / "wds" / f"{name}.tar", "w") as tar:
            for path in files[part::4]:
                tar.add(path, f"{path.stem}.png")
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(path.parent.name[-1:].encode()))
    return {"hf": folder / "hf", "wds": folder / "wds"}


SMALL_SHARDS = "import tase.data.sets as sets\nsets.SHARD, sets.LARGE = 20 * 3 * 16 * 16, 0\n"


class Subjects:
    """What is killed: `words(name, folder)` of each of NAMES; `reference[name]`, made once.

    shards, hf and wds are training on images in 13 shards, which are read from folders, Parquet and tar files.
    """

    NAMES = ("train", "evaluate", "cache", "shards", "hf", "wds", "study")

    def __init__(self, home: Path, sets: dict):
        self.home, self.sets = home, [f"{k}={v}" for k, v in {**sets, "record.checkpoint_every": EVERY}.items()]
        self.roots = dict.fromkeys(("cache", "shards"), pictures(home / "Bilder für alle"))
        self.reference, self.seconds = {}, {}

    def words(self, name: str, folder: Path) -> list[str]:
        run, train = str(folder / "Lauf 1"), ["train", "--preset", "digits-lt", "--quiet", "--resume"]
        if name == "train":
            return [*train, "--out", run, "--set", *self.sets]
        if name == "evaluate":
            return ["evaluate", run, "--quiet", "--protocols", "few-shot", "lt-knn"]
        if name == "study":
            sets = [*self.sets, "optim.epochs=5", "record.knn_every=0"]
            words = ["study", "gamma", "--preset", "digits-lt", "--seeds", "2", "--out", str(folder), "--quiet"]
            return [*words, "--rows", "tase", "--columns", "gamma=0.5", "--protocols", "lt-knn", "--set", *sets]
        if name in ("hf", "wds") and name not in self.roots:
            self.roots |= archives(self.roots["cache"], self.home)
        sets = [f"data.root={self.roots[name]}", f"data.cache={folder / 'cache'}", "data.image_size=16"]
        sets += ["optim.batch=64", "optim.epochs=2", "model.channels=8,8,8,8", "guidance.clusters=4"]
        sets += [f"data.source={name}"] * (name in ("hf", "wds"))
        if name != "cache":
            (self.home / "small.py").write_text(SMALL_SHARDS)
            sets += ["optim.window=0.00003", "--import", str(self.home / "small.py")]  # two shards
        return ["train", "--preset", "folder", "--quiet", "--resume", "--out", run, "--set", *sets]

    def folder(self, name: str, label: str) -> Path:
        """A new folder for one trial; to be evaluated, it holds a trained run."""
        import shutil

        folder = self.home / f"{name} {label}"
        if name == "evaluate":
            self.undisturbed("train")
            shutil.copytree(self.home / "train undisturbed", folder)
        folder.mkdir(exist_ok=True)
        return folder

    def undisturbed(self, name: str) -> dict:
        if name not in self.reference:
            folder = self.folder(name, "undisturbed")
            self.seconds[name] = finish(self.words(name, folder), self.home / f"{name}.log")
            self.reference[name] = contents(folder)
        return self.reference[name]

    def trial(self, name: str, label: str, rng: random.Random, kills: int) -> list[tuple[str, str, int]]:
        """Kill and resume in a new folder, and compare with the undisturbed one; what was done."""
        import shutil

        undisturbed, folder = self.undisturbed(name), self.folder(name, label)
        told = kill_and_resume(self.words(name, folder), folder, rng, self.seconds[name], kills)
        assert_equal(folder, undisturbed)
        if len(told) < kills:  # the undisturbed one was slowed down by others
            self.seconds[name] *= 0.7
        shutil.rmtree(folder)
        return told
