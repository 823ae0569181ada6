"""The one writer of a run's folder: its lock, its files, its checkpoints, and the requests that it takes."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config, ConfigError, encoder_file
from ..distributed import launched
from ..files import (
    RunError,
    append_line,
    hold,
    load_npz,
    load_optional_json,
    load_pt,
    read_lines,
    save_json,
    save_npz,
    save_pt,
    tidy,
    write_lines,
    writing,
)
from ..lazy import torch
from ..models import Network, load_encoder, save_encoder
from ..streams import generator
from .run import RUN_FORMAT, Run, check_steering, not_taken

if TYPE_CHECKING:
    from ..data import ImageSet


# ---------------------------------------------------------------------------------------------------------- environment


def commit() -> str:
    """Return the short hash of the library's git commit, with '+' if files have changed since; else its version."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed within the repository of something else?
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        from .. import __version__

        return f"version {__version__}"


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, device and threads: what a result depends on besides its configuration."""
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


# ---------------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `checkpoint.pt`; the one before it becomes `checkpoint.previous.pt`."""
    current, fresh = folder / "checkpoint.pt", folder / "checkpoint.new.pt"
    save_pt(fresh, state)
    with writing(current):
        # Killed between the two renames, the folder has .new and .previous: `load_checkpoint` looks for .new first.
        if current.exists():
            os.replace(current, folder / "checkpoint.previous.pt")
        os.replace(fresh, current)


def load_checkpoint(folder: Path, identity: str) -> dict[str, Any] | None:
    """Read the newest intact checkpoint of the run with this identity, or None if there is none.

    A damaged one is passed over with a warning; raises RunError if all are damaged or of another configuration.
    """
    errors = []
    for name in ("checkpoint.new.pt", "checkpoint.pt", "checkpoint.previous.pt"):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = load_pt(path, "checkpoint of this library")
            if not isinstance(state, dict) or "epoch" not in state:
                raise RunError(f"{path} holds something else than a checkpoint")
        except RunError as error:
            errors.append(str(error))
            continue
        if not _belongs(folder, state.get("identity"), identity):
            raise RunError(f"{path} belongs to another configuration ({state.get('identity')}, not {identity})")
        if errors:
            warnings.warn(f"{'; '.join(errors)}; resuming from {name}, epoch {state['epoch']}", stacklevel=2)
        return state
    if errors:
        raise RunError("; ".join(errors))
    return None


def _belongs(folder: Path, found: str | None, identity: str) -> bool:
    """Tell whether `found` is the identity, or what an older tase called it when it saved this folder."""
    if found == identity or not (folder / "config.json").exists():
        return found == identity
    run = Run(folder)
    return run.owns(identity) and run.owns(found)


# ----------------------------------------------------------------------------------------------------------- the writer


class RunWriter:
    """The one writer of a run's folder; a context manager that holds the folder's lock.

    With several processes only rank 0 enters it and calls its methods.
    """

    def __init__(self, folder: str | Path, config: Config, resume: bool = False):
        self.folder, self.config, self.resume = Path(folder), config, resume
        self.events: list[dict[str, Any]] = []
        self._lock, self._begun = contextlib.ExitStack(), False
        self._refused = None  # the id of a request that was invalid

    # ---- the folder is claimed, and let go

    def __enter__(self) -> RunWriter:
        """Claim the folder; raises RunError if it holds another run or files of something else, or is in use."""
        self._check_folder()  # before anything is written into a folder that may be of something else
        with contextlib.ExitStack() as stack:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(self.folder / ".lock"))
            self._check_folder()  # another process may have held the lock until now
            lines = read_lines(self.folder / "events.jsonl")
            self.events = [event for event in lines if {"id", "epoch", "set"} <= event.keys()]
            if self.action() != "run":  # of a training before: one that is started is meant to run
                save_json(self.folder / "control.json", {**self._request(), "action": "run"})
            self._lock = stack.pop_all()
        return self

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file; choose an empty or a new folder")
        if (self.folder / "config.json").exists():
            identity, new = Run(self.folder).config.identity, self.config.identity
            if identity != new:
                raise RunError(f"{self.folder} holds another run ({identity}, not {new}); choose another folder")
            if not self.resume:
                raise RunError(
                    f"{self.folder} holds this run already; resume it (resume=True, --resume), or choose another folder"
                )
        # Hidden ones, its lock and a file half written, are also left by a run that was killed at its start.
        elif self.folder.exists() and any(path.name[0] != "." for path in self.folder.iterdir()):
            raise RunError(f"{self.folder} holds other files; choose an empty or a new folder")

    def __exit__(self, kind, error, trace) -> None:
        if not self._begun:
            self._leave()
        elif kind not in (None, KeyboardInterrupt, SystemExit):  # by an exit submitit ends a job whose time is up
            with contextlib.suppress(RunError):  # a full disk, a folder that is gone: the first error is what is told
                before = load_optional_json(self.folder / "status.json")
                place = {name: before[name] for name in ("epoch", "step") if name in before}
                self.status("failed", error=f"{kind.__name__}: {error}", **place)
        self._lock.close()

    def _leave(self) -> None:
        """Leave the folder as it was found: nothing was written."""
        if not (self.folder / "config.json").exists():
            (self.folder / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it has other hidden files
                self.folder.rmdir()

    def finished(self, images: ImageSet) -> bool:
        """Tell whether the folder holds this run, finished; raises RunError if it was begun on other images."""
        before = load_optional_json(self.folder / "environment.json").get("subset", images.hash)
        if before != images.hash:
            raise RunError(
                f"{self.folder} was begun on other images (subset {before}, now {images.hash}); choose another folder"
            )
        return load_optional_json(self.folder / "status.json").get("state") == "finished" and self._is_whole()

    def _is_whole(self) -> bool:
        """Tell whether encoder and last snapshot are intact: the checkpoint, if it is there, can make them again."""
        last = self.folder / "history" / f"epoch_{self.config.optim.epochs:06d}.npz"
        try:
            for path, load in ((encoder_file(self.folder), load_encoder), (last, load_npz)):
                if path.exists():
                    load(path)
        except (RunError, ValueError) as error:
            if (self.folder / "checkpoint.pt").exists():
                warnings.warn(f"{error}; it is made again from the checkpoint", stacklevel=4)
                return False
        return True

    # ---- what is written

    def begin(self, device: torch.device, images: ImageSet) -> None:
        """Write what does not change: configuration, environment and, if there are labels, the true classes."""
        self._begun = True
        tidy(self.folder)
        identity = self.config.identity
        if (self.folder / "config.json").exists():  # resumed: its checkpoint may be of an older tase's identity
            identity = Run(self.folder).saved_identity
        saved = {"format": RUN_FORMAT, "identity": identity, "config": self.config.to_dict()}
        save_json(self.folder / "config.json", saved)
        with writing(self.folder):
            (self.folder / "history").mkdir(exist_ok=True)
        if not load_optional_json(self.folder / "environment.json"):
            facts = {**environment(device), "subset": images.hash, "images": len(images)}
            save_json(self.folder / "environment.json", facts)
        if images.labels is not None:
            recorded = self.recorded(images)
            save_npz(
                self.folder / "history" / "labels.npz",
                labels=images.labels.cpu().numpy()[slice(None) if recorded is None else recorded.numpy()],
                counts=images.counts.cpu().numpy(),
                groups=images.groups.cpu().numpy(),
                classes=np.array(images.classes),
            )

    def recorded(self, images: ImageSet) -> torch.Tensor | None:
        """Return the images [m] that snapshots keep, as drawn when the run began; None: all of them."""
        path, history, n = self.folder / "history" / "recorded.npz", self.folder / "history", len(images)
        begun = path.exists() or any(history.glob("epoch_*.npz"))  # maybe with another record.sample
        if not begun and n > self.config.record.sample:
            index = torch.randperm(n, generator=generator(self.config.seed, "recorded"))[: self.config.record.sample]
            save_npz(path, index=index.sort().values.numpy())
        return torch.from_numpy(load_npz(path)["index"]) if path.exists() else None

    def cut_back(self, epoch: int) -> None:
        """Drop metrics and snapshots from after the checkpoint: they are about to be written again."""
        path = self.folder / "metrics.jsonl"
        write_lines(path, [row for row in read_lines(path) if row.get("epoch", epoch + 1) <= epoch])
        for path in (self.folder / "history").glob("epoch_*.npz"):
            if int(path.stem[6:]) > epoch:
                path.unlink()

    def status(self, state: str, **more: Any) -> None:
        save_json(self.folder / "status.json", {"state": state, "pid": os.getpid(), "time": time.time(), **more})

    def log(self, row: dict[str, Any]) -> None:
        append_line(self.folder / "metrics.jsonl", row)

    def snapshot(self, epoch: int, **arrays: np.ndarray) -> None:
        save_npz(self.folder / "history" / f"epoch_{epoch:06d}.npz", epoch=np.array(epoch), **arrays)

    def checkpoint(self, state: dict[str, Any]) -> None:
        save_checkpoint(self.folder, state)

    def restored(self) -> dict[str, Any] | None:
        """Read the checkpoint from which the run is to be resumed, if any."""
        return load_checkpoint(self.folder, self.config.identity) if self.resume else None

    def encoder(self, network: Network) -> None:
        """Write the trained backbone."""
        save_encoder(self.folder, network, self.config.model)

    # ---- requests from outside

    @property
    def control(self) -> RunWriter:
        """The writer itself, also behind a proxy: rank 0 looks at requests after each step, without a broadcast."""
        return self

    def _request(self) -> dict[str, Any]:
        return load_optional_json(self.folder / "control.json")

    def action(self) -> str:
        """Return what is requested: run, pause or stop."""
        return self._request().get("action", "run")

    def take(self, epoch: int, step: int) -> list[dict[str, Any]]:
        """Return the events of this refresh: those recorded for it, and the pending request if it is valid.

        A run that goes on from before recorded events repeats all of them before it takes anything new.
        """
        request = self._request()
        event = {"id": request.get("id"), "epoch": epoch, "step": step, "set": not_taken(request, self.events)}
        repeating = any(event["epoch"] > epoch for event in self.events)
        if event["set"] and not repeating and self._is_valid(event):
            self.events.append(event)
            write_lines(self.folder / "events.jsonl", self.events)
        return [event for event in self.events if event["epoch"] == epoch]

    def _is_valid(self, event: dict[str, Any]) -> bool:
        """Tell whether a request, which anyone may have written, makes a configuration; warn once if it does not."""
        try:
            check_steering(self.config, self.events, dict(event["set"]))
            return True
        except (ConfigError, TypeError, ValueError) as error:
            if event["id"] != self._refused:
                warnings.warn(f"{self.folder / 'control.json'} is passed over: {error}", stacklevel=2)
            self._refused = event["id"]
            return False
