"""A saved run and its history, read from the folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config, ConfigError
from ..files import RunError, load_json, load_npz, load_optional_json, read_lines, write_atomic
from ._control import request

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from ..data import ImageSet, Splits

FORMAT = 2  # of a run's folder; 1 had JSON without checksums


class History:
    """Per-sample quantities over training time, read from a run's snapshots; it grows while the run trains.

    `epoch` [s]; `tau`, `weight`, `pseudo_label`, `headness`, `loss` [s, n] (loss: mean since the snapshot before, NaN
    where a sample was not drawn); `cluster_sizes[t]` [k]; `quality[t]`; `features(t)` [m, d] of the images
    `feature_index(t)`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._cache: dict[str, dict[str, np.ndarray]] = {}

    def _snapshots(self) -> dict[Path, dict[str, np.ndarray]]:
        """The arrays of each snapshot but its features, which are large; a damaged one is left out with a warning."""
        found = {}
        for entry in sorted(os.scandir(self.folder), key=lambda e: e.name) if self.folder.exists() else ():
            if entry.name.startswith("epoch_") and entry.name.endswith(".npz"):
                arrays = self._snapshot(Path(entry.path), entry.stat().st_mtime_ns)
                found |= {Path(entry.path): arrays} if arrays else {}
        return found

    def _snapshot(self, path: Path, changed: int) -> dict[str, np.ndarray]:
        key = f"{path.name}:{changed}"
        if key not in self._cache:
            try:
                self._cache[key] = load_npz(path, leave=("features",))
            except RunError as error:
                warnings.warn(f"{error}; this snapshot is left out", stacklevel=4)
                self._cache[key] = {}
        return self._cache[key]

    def _paths(self) -> list[Path]:
        return list(self._snapshots())

    def _each(self, name: str) -> list[np.ndarray]:
        try:
            return [arrays[name] for arrays in self._snapshots().values()]
        except KeyError:
            raise RunError(f"{self.folder.parent} is a slim copy: it keeps no {name.replace('_', ' ')}") from None

    def _stack(self, name: str) -> np.ndarray:
        rows = self._each(name)
        if not rows:
            raise RunError(f"{self.folder.parent} has no snapshot yet")
        return np.stack(rows)

    def __len__(self) -> int:
        return len(self._snapshots())

    @property
    def epoch(self) -> np.ndarray:
        return np.array([int(path.stem[6:]) for path in self._paths()], dtype=np.int64)

    @property
    def tau(self) -> np.ndarray:
        return self._stack("tau").astype(np.float32)

    @property
    def weight(self) -> np.ndarray:
        return self._stack("weight").astype(np.float32)

    @property
    def pseudo_label(self) -> np.ndarray:
        return self._stack("pseudo_label").astype(np.int64)

    @property
    def headness(self) -> np.ndarray:
        return self._stack("headness").astype(np.float32)

    @property
    def loss(self) -> np.ndarray:
        return self._stack("loss").astype(np.float32)

    @property
    def cluster_sizes(self) -> list[np.ndarray]:
        return self._each("cluster_sizes")

    def log_sizes(self, t: int) -> np.ndarray | None:
        """[m] log sizes between whose percentiles q of equation (4) goes from 0 to 1, where snapshot `t` has them."""
        saved = list(self._snapshots().values())[t].get("log_sizes")
        return saved if saved is not None and len(saved) else None

    @property
    def quality(self) -> list[dict[str, float]]:
        return [json.loads(str(text)) for text in self._each("quality")]

    def feature_index(self, t: int) -> np.ndarray:
        """[m] indices of the images whose features snapshot `t` keeps."""
        return self._each("feature_index")[t]

    def features(self, t: int) -> np.ndarray:
        """[m, d] backbone features (float16 on disk) of images `feature_index(t)`; RunError in a slim copy."""
        arrays = load_npz(self._paths()[t])
        if "features" not in arrays:
            raise RunError(f"{self.folder.parent} is a slim copy: it keeps no features")
        return arrays["features"].astype(np.float32)

    @cached_property
    def _classes(self) -> dict[str, np.ndarray]:
        path = self.folder / "labels.npz"
        return load_npz(path) if path.exists() else {}

    @property
    def labels(self) -> np.ndarray | None:
        """[n] true class of each image, or None: used to judge, never to train (but by the oracle)."""
        return self._classes.get("labels")

    @property
    def counts(self) -> np.ndarray | None:
        """[C] training images per class."""
        return self._classes.get("counts")

    @property
    def groups(self) -> np.ndarray | None:
        """[C] group of each class: 0 head, 1 mid, 2 tail."""
        return self._classes.get("groups")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self._classes.get("classes", ()))


class Run:
    """A saved run, also one that is still training: `Run("runs/first")`.

    Raises RunError where the folder is missing, is no run, or is of a newer format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "config.json").exists():
            raise RunError(f"{self.path} is no run: there is no config.json in it")
        saved = load_json(self.path / "config.json")
        form = saved.get("format") if isinstance(saved, dict) and isinstance(saved.get("config"), dict) else None
        if type(form) is not int or form < 1:
            raise RunError(f"{self.path}/config.json is of no format that tase has had (1 to {FORMAT}); train anew")
        if form > FORMAT:
            raise RunError(f"{self.path} was made by a newer tase (format {form}, here up to {FORMAT}); update tase")
        try:
            self.config = Config.from_dict(saved["config"])
        except ConfigError as error:
            raise RunError(f"{self.path}/config.json: {error}") from error
        self.history = History(self.path / "history")

    @property
    def name(self) -> str:
        return self.path.name

    def _json(self, name: str) -> dict[str, Any]:
        return load_optional_json(self.path / name)

    @property
    def environment(self) -> dict[str, Any]:
        return self._json("environment.json")

    @property
    def status(self) -> dict[str, Any]:
        """state (training, stopped, failed, finished), epoch, step, pid."""
        return self._json("status.json")

    @property
    def events(self) -> list[dict[str, Any]]:
        """Changes of the guidance that were made while the run trained: id, epoch, step, set."""
        return read_lines(self.path / "events.jsonl")

    @property
    def steered(self) -> bool:
        return bool(self.events)

    @property
    def identity(self) -> str:
        """The configuration's identity; a steered run has one of its own, from its events."""
        if not self.steered:
            return self.config.identity
        changes = [[event["epoch"], event["set"]] for event in self.events]
        text = json.dumps([self.config.identity, changes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def control(self, action: str = "run", **fields: Any) -> str:
        """Ask the run's training, in whatever process, to run, pause or stop; `tau_max=0.4` steers its guidance."""
        return request(self.path, self.config, action, {f"guidance.{name}": v for name, v in fields.items()})

    @property
    def commit(self) -> str:
        return self.environment.get("commit", "unknown")

    @property
    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    @property
    def results(self) -> dict[str, Any] | None:
        """What `evaluate` measured, or None."""
        return self._json("results.json") or None

    @property
    def metrics(self) -> pandas.DataFrame:
        """One row per epoch: loss and its parts, learning rate, images per second, k-NN accuracy where measured."""
        import pandas

        return pandas.DataFrame(read_lines(self.path / "metrics.jsonl"))

    @cached_property
    def splits(self) -> Splits:
        """The images the run was trained and is evaluated on, loaded from their source."""
        from ..data import load_splits

        return load_splits(self.config)

    @property
    def images(self) -> ImageSet:
        return self.splits.train

    def encoder(self, device: str = "cpu") -> nn.Module:
        """The trained backbone in eval mode: float [b, c, s, s] in [0, 1] -> features [b, d]."""
        from ..models import load_backbone

        if not (self.path / "encoder.pt").exists():
            if self.finished and not (self.path / "checkpoint.pt").exists():
                raise RunError(f"{self.path} is a slim copy: it keeps no encoder; train the run anew in another folder")
            raise RunError(f"{self.path} has no encoder yet: its training has not finished (train with resume=True)")
        try:
            return load_backbone(self.path / "encoder.pt", device)
        except ValueError as error:
            raise RunError(f"{error}; training with resume=True makes it again from the checkpoint") from error

    def features(self) -> np.ndarray:
        """[n, d] backbone features of all training images at the last snapshot."""
        last = len(self.history) - 1
        if last < 0 or len(self.history.feature_index(last)) < self.history.tau.shape[1]:
            raise RunError(f"{self.path} has features of all images only when its training has finished")
        return self.history.features(last)

    @property
    def test_features(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Features [m, d] and classes [m] of the test images, or None before the evaluation."""
        path = self.path / "features_test.npz"
        if not path.exists():
            return None
        saved = load_npz(path)
        return saved["features"].astype(np.float32), saved["labels"]

    def slim(self, out: str | Path, tables_only: bool = False) -> Run:
        """Copy to `out` what figures need and stays small: no weights, no features. `tables_only`: what tables need."""
        out = Path(out)
        (out / "history").mkdir(parents=True, exist_ok=True)
        names = ["config.json", "environment.json", "status.json", "results.json", "results_val.json", "events.jsonl"]
        names += ["clusterings.json"] if tables_only else ["metrics.jsonl", "history/labels.npz"]
        for name in names:
            if (self.path / name).exists():
                shutil.copyfile(self.path / name, out / name)
        if (self.path / "layouts").exists() and not tables_only:
            shutil.copytree(self.path / "layouts", out / "layouts", dirs_exist_ok=True)
        snapshots = sorted((self.path / "history").glob("epoch_*.npz"))
        for path in snapshots[-1:] if tables_only else snapshots:
            arrays = load_npz(path, leave=("features",))
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **({"quality": arrays["quality"]} if tables_only else _small(arrays)))
            write_atomic(out / "history" / path.name, buffer.getvalue())
        return Run(out)

    def __repr__(self) -> str:
        c = self.config
        state = self.status.get("state", "new")
        state += ", steered" if self.steered else ""
        return f"Run({str(self.path)!r}: {c.method} on {c.preset}, seed {c.seed}, {state})"

    def _repr_html_(self) -> str:
        from html import escape

        c, state, env = self.config, self.status, self.environment
        rows = {
            "method": c.method,
            "preset": f"{c.preset}, seed {c.seed}",
            "images": f"{env.get('images', '?')}, subset {env.get('subset', '?')}",
            "state": f"{state.get('state', 'new')}, epoch {state.get('epoch', 0)} of {c.optim.epochs}",
            "snapshots": len(self.history),
            "device": f"{env.get('device', '?')}, torch {env.get('torch', '?')}, commit {self.commit}",
        }
        for name, scores in ((self.results or {}).get("protocols") or {}).items():
            shown = ("all", "head", "mid", "tail", "std")
            rows[name] = ", ".join(f"{key} {scores[key]:.1f}" for key in shown if scores.get(key) is not None)
        left = "style='text-align:left'"
        cells = (f"<tr><th {left}>{escape(k)}</th><td {left}>{escape(str(v))}</td></tr>" for k, v in rows.items())
        return f"<table><caption>{escape(str(self.path))}</caption>{''.join(cells)}</table>"


def _small(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A snapshot's arrays in half precision, pseudo-labels in as few bytes as the clusters need."""
    small = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in arrays.items()}
    kind = np.int16 if small["cluster_sizes"].size < 2**15 else np.int32
    return small | {"pseudo_label": small["pseudo_label"].astype(kind)}
