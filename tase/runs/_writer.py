"""The one writer of a run's folder."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config import Config
from ..distributed import launched
from ..files import (
    InUse,
    RunError,
    append_line,
    hold,
    load_json,
    load_npz,
    load_optional_json,
    read_lines,
    save_json,
    save_npz,
    tidy,
    write_atomic,
    writing,
)
from ..models import load_backbone
from ._control import Control
from ._reader import FORMAT

if TYPE_CHECKING:
    from ..data import ImageSet


def commit() -> str:
    """Short hash of the library's git commit, with '+' where files have changed since; else its version."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("tase")
        except PackageNotFoundError:
            return "unknown"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads: what a result depends on besides its configuration."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": gpu or platform.processor() or platform.machine(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "processes": launched() or 1,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _ours(path: Path) -> bool:
    """Whether a run that was killed before it had a configuration may have left this."""
    return path.name in (".lock", "history") or (path.name[0] == "." and path.suffix == ".tmp")


class RunWriter:
    """The one writer of a run's folder; a context manager that holds its lock."""

    def __init__(self, folder: str | Path, config: Config, resume: bool = False):
        self.folder, self.config, self.resume = Path(folder), config, resume
        self.held, self.begun = contextlib.ExitStack(), False

    def __enter__(self) -> RunWriter:
        self._claim()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if not self.begun:
            self._leave()
        elif kind is not None and kind is not KeyboardInterrupt:
            with contextlib.suppress(RunError):  # a full disk, a folder that is gone: what went wrong first is told
                self.status("failed", error=f"{kind.__name__}: {error}")
        self.held.close()

    def _leave(self) -> None:
        """Nothing was written: leave the folder as it was found."""
        if not (self.folder / "config.json").exists():
            (self.folder / ".lock").unlink(missing_ok=True)
            for path in (self.folder / "history", self.folder):
                with contextlib.suppress(OSError):
                    path.rmdir()

    def _claim(self) -> None:
        """Make the folder ours, or raise RunError: it holds another run, files of something else, or is in use."""
        saved = self.folder / "config.json"
        if saved.exists():
            identity = load_json(saved).get("identity")
            if identity != self.config.identity:
                raise RunError(
                    f"{self.folder} holds another run ({identity}, not {self.config.identity}); choose another folder"
                )
            if not self.resume:
                raise RunError(
                    f"{self.folder} holds this run already; go on with resume=True (--resume), or choose another folder"
                )
        elif self.folder.exists() and any(not _ours(path) for path in self.folder.iterdir()):
            raise RunError(f"{self.folder} holds other files; choose an empty or a new folder")
        with writing(self.folder):
            (self.folder / "history").mkdir(parents=True, exist_ok=True)
            try:
                self.held.enter_context(hold(self.folder / ".lock"))
            except InUse as error:
                raise RunError(
                    f"{self.folder} is in use: another process trains in it; wait for it, or choose another folder"
                ) from error
        self.control = Control(self.folder, self.config)
        self.control.clear()

    def finished(self, images: ImageSet) -> bool:
        """Whether the folder holds this run, finished; raises RunError where it was begun on other images."""
        before = load_optional_json(self.folder / "environment.json").get("subset", images.hash)
        if before != images.hash:
            raise RunError(
                f"{self.folder} was begun on other images (subset {before}, now {images.hash}); choose another folder"
            )
        return load_optional_json(self.folder / "status.json").get("state") == "finished" and self._whole()

    def _whole(self) -> bool:
        """Whether encoder and last snapshot are, which can be made again from the checkpoint if that is there."""
        last = self.folder / "history" / f"epoch_{self.config.optim.epochs:06d}.npz"
        try:
            for path, load in ((self.folder / "encoder.pt", load_backbone), (last, load_npz)):
                if path.exists():
                    load(path)
        except (RunError, ValueError) as error:
            if (self.folder / "checkpoint.pt").exists():
                warnings.warn(f"{error}; it is made again from the checkpoint", stacklevel=4)
                return False
        return True

    def begin(self, device: torch.device, images: ImageSet) -> None:
        """Write what does not change: configuration, environment and, where there are labels, the true classes."""
        self.begun = True
        tidy(self.folder)
        saved = {"format": FORMAT, "identity": self.config.identity, "config": self.config.to_dict()}
        save_json(self.folder / "config.json", saved)
        if not load_optional_json(self.folder / "environment.json"):
            facts = {**environment(device), "subset": images.hash, "images": len(images)}
            save_json(self.folder / "environment.json", facts)
        if images.labels is not None:
            save_npz(
                self.folder / "history" / "labels.npz",
                labels=images.labels.cpu().numpy(),
                counts=images.counts.cpu().numpy(),
                groups=images.groups.cpu().numpy(),
                classes=np.array(images.classes),
            )

    def cut_back(self, epoch: int) -> None:
        """Drop metrics and snapshots from after the checkpoint: they are about to be written again."""
        rows = [row for row in read_lines(self.folder / "metrics.jsonl") if row.get("epoch", epoch + 1) <= epoch]
        write_atomic(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        for path in (self.folder / "history").glob("epoch_*.npz"):
            if int(path.stem[6:]) > epoch:
                path.unlink()

    def log(self, row: dict[str, Any]) -> None:
        append_line(self.folder / "metrics.jsonl", row)

    def snapshot(self, epoch: int, **arrays: np.ndarray) -> None:
        save_npz(self.folder / "history" / f"epoch_{epoch:06d}.npz", epoch=np.array(epoch), **arrays)

    def status(self, state: str, **more: Any) -> None:
        save_json(self.folder / "status.json", {"state": state, "pid": os.getpid(), "time": time.time(), **more})
