"""A saved run and its history, read from the run's folder; and control of its training, through a file in the folder.

Control works from another process, also after a restart of the kernel. A request is taken at a refresh and becomes an
event, which is replayed on resume: a steered run can be repeated.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import uuid
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config, ConfigError, check, check_choice, encoder_file, override, unknown
from ..files import RunError, is_held, load_json, load_npz, load_optional_json, read_lines, save_json, save_npz
from ..options import some_of

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from ..data import ImageSet, Splits

RUN_FORMAT = 3  # of a run's folder; 1 had JSON without checksums, 1 and 2 had the options of all methods
RESULTS = {"test": "results.json", "val": "results_val.json"}  # by the images that are judged
# What a slim copy has besides its snapshots: small files that tables, figures and the explorer read.
SLIM = ["config.json", "environment.json", "status.json", *RESULTS.values(), "metrics.jsonl", "events.jsonl"]
SLIM += ["clusterings.json", "history/labels.npz", "history/recorded.npz"]

# Arrays of each snapshot with one value per sample, and the type in which they are given (in slim copies they are
# saved in half precision, pseudo-labels in two bytes).
PER_SAMPLE = {
    "tau": np.float32,
    "weight": np.float32,
    "pseudo_label": np.int64,
    "headness": np.float32,
    "loss": np.float32,
}
# Numbers of each snapshot: what independent clusterings say (trust.py).
PER_SNAPSHOT = ("trust", "shared", "agreement")
ACTIONS = ("run", "pause", "stop")  # that control.json can ask for
TRUE_CLASSES = ("labels", "counts", "groups")  # arrays of history/labels.npz


def has_tail(counts: np.ndarray) -> bool:
    """Whether the classes differ in size by more than one image, which is what remains when n is no multiple of C."""
    return counts.max() - counts.min() > 1


class History:
    """Per-sample quantities over training time, read from a run's snapshots; it grows while the run trains.

    `epoch` [s]; `tau`, `weight`, `pseudo_label`, `headness`, `loss` [s, n] (loss: mean since the snapshot before, NaN
    if a sample was not drawn); `trust`, `shared`, `agreement` [s], what independent clusterings say (NaN in runs of
    older versions); `cluster_sizes[t]` [k]; `quality[t]`; `features(t)` [m, d] of the images `feature_index(t)`. From
    the true labels, which judge and never train (but the oracle), or None without labels:
    `labels` [n], `counts` [C] training images per class, `groups` [C] 0 head, 1 mid, 2 tail; `classes`: their names.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._cache: dict[str, dict[str, np.ndarray]] = {}

    def snapshots(self) -> dict[Path, dict[str, np.ndarray]]:
        """Read the arrays of each snapshot but its features, which are large; a damaged one is left out, with a
        warning."""
        found = {}
        for path in sorted(self.folder.glob("epoch_*.npz")):
            key = f"{path.name}:{path.stat().st_mtime_ns}"
            if key not in self._cache:
                try:
                    self._cache[key] = load_npz(path, leave=("features",))
                except RunError as error:
                    warnings.warn(f"{error}; this snapshot is left out", stacklevel=4)
                    self._cache[key] = {}
            found |= {path: self._cache[key]} if self._cache[key] else {}
        return found

    def _each(self, name: str) -> list[np.ndarray]:
        try:
            return [arrays[name] for arrays in self.snapshots().values()]
        except KeyError:
            raise RunError(f"{self.folder.parent} is a slim copy: it keeps no {name.replace('_', ' ')}") from None

    def __getattr__(self, name: str) -> np.ndarray | None:
        if name in PER_SAMPLE:
            rows = self._each(name)
            if not rows:
                raise RunError(f"{self.folder.parent} has no snapshot yet")
            return np.stack(rows).astype(PER_SAMPLE[name])  # [s, n]
        if name in PER_SNAPSHOT:
            return np.array([float(arrays.get(name, np.nan)) for arrays in self.snapshots().values()])
        if name in TRUE_CLASSES:
            return self._classes.get(name)
        raise AttributeError(f"a history has no '{name}'")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *PER_SAMPLE, *PER_SNAPSHOT, *TRUE_CLASSES]

    def __len__(self) -> int:
        return len(self.snapshots())

    @property
    def epoch(self) -> np.ndarray:
        return np.array([int(path.stem[6:]) for path in self.snapshots()], dtype=np.int64)

    @property
    def cluster_sizes(self) -> list[np.ndarray]:
        return self._each("cluster_sizes")

    def log_sizes(self, t: int) -> np.ndarray | None:
        """Return the log sizes [m] that equation (4) ranks to get q from 0 to 1, if snapshot `t` has them."""
        saved = list(self.snapshots().values())[t].get("log_sizes")
        return saved if saved is not None and len(saved) else None

    def extra(self, name: str) -> np.ndarray:
        """Return [s, n] of what else a method knows of each sample: one of its class's SHOWN, as BCL's strength.

        Raises RunError where the snapshots do not have it.
        """
        rows = [arrays.get(name) for arrays in self.snapshots().values()]
        if not rows or any(row is None for row in rows):
            raise RunError(f"the snapshots of {self.folder.parent} keep no '{name}'")
        return np.stack(rows)

    @property
    def quality(self) -> list[dict[str, float]]:
        return [json.loads(str(text)) for text in self._each("quality")]

    def feature_index(self, t: int) -> np.ndarray:
        """Return the indices [m] of the images whose features snapshot `t` keeps."""
        return self._each("feature_index")[t]

    def features(self, t: int) -> np.ndarray:
        """Read the backbone features [m, d] (float16 on disk) of the images `feature_index(t)`."""
        arrays = load_npz(list(self.snapshots())[t])
        if "features" not in arrays:
            raise RunError(f"{self.folder.parent} is a slim copy: it keeps no features")
        return arrays["features"].astype(np.float32)

    @property
    def recorded(self) -> np.ndarray | None:
        """Indices [m] of the training images that the history is of, where they are a sample; None: all."""
        path = self.folder / "recorded.npz"
        return load_npz(path)["index"] if path.exists() else None

    @cached_property
    def _classes(self) -> dict[str, np.ndarray]:
        path = self.folder / "labels.npz"
        return load_npz(path) if path.exists() else {}

    @property
    def sample_groups(self) -> np.ndarray:
        """Group [n] of each image; -1 without labels, and without a tail."""
        if self.labels is None or not has_tail(self.counts):
            return np.full(self.tau.shape[1], -1, dtype=np.int64)
        return self.groups[self.labels].astype(np.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self._classes.get("classes", ()))


class Run:
    """A saved run, also one that is still training: `Run("runs/first")`.

    Raises RunError if the folder is missing, is no run, or is of a newer format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "config.json").exists():
            raise RunError(f"{self.path} is no run: there is no config.json in it")
        saved = load_json(self.path / "config.json")
        form = saved.get("format") if isinstance(saved, dict) and isinstance(saved.get("config"), dict) else None
        if type(form) is not int or form < 1:
            raise RunError(f"{self.path}/config.json is of no format that tase knows (1 to {RUN_FORMAT}); train again")
        if form > RUN_FORMAT:
            raise RunError(f"{self.path} is of a newer tase (format {form}, here up to {RUN_FORMAT}); update tase")
        try:
            self.config = Config.from_dict(saved["config"])
        except ConfigError as error:
            raise RunError(f"{self.path}/config.json: {error}") from error
        self.saved_identity = saved.get("identity")
        self.history = History(self.path / "history")

    # ---- what is in the folder

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, device, threads, commit, number of images, hash of the subset."""
        return load_optional_json(self.path / "environment.json")

    @property
    def commit(self) -> str:
        return self.environment.get("commit", "unknown")

    @property
    def status(self) -> dict[str, Any]:
        """What the training last wrote: state (training, paused, stopped, failed, finished), epoch, step."""
        return load_optional_json(self.path / "status.json")

    @property
    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    @property
    def is_slim(self) -> bool:
        """Whether it is a copy without weights, of which nothing more can be measured."""
        return self.finished and not encoder_file(self.path).exists() and not (self.path / "checkpoint.pt").exists()

    @property
    def is_training(self) -> bool | None:
        """Whether a process trains in the folder, which holds its lock; None if this user may not open the lock."""
        return is_held(self.path / ".lock")

    @property
    def state(self) -> str:
        """The status's state; lost if it says that the run trains, and no process does."""
        state = self.status.get("state", "new")
        return "lost" if state in ("new", "training", "paused") and self.is_training is False else state

    @property
    def events(self) -> list[dict[str, Any]]:
        """Changes of the guidance that were made while the run trained: id, epoch, step, set."""
        return read_lines(self.path / "events.jsonl")

    @property
    def steered(self) -> bool:
        return bool(self.events)

    @property
    def loss_breaks(self) -> dict[int, str]:
        """Epochs from which other temperatures hold, and why: losses before and after one do not compare."""
        ramps = hasattr(self.config.guidance, "ramp") and self.config.warmup > 0
        marks = {self.config.warmup: "end of the warm-up"} if ramps else {}
        return {**marks, **{event["epoch"]: "steered" for event in self.events}}

    @property
    def steering(self) -> str:
        """What was changed while it trained: "20 tau_max=0.9, 40 gamma=1.0"; empty if nothing was."""
        sets = [(e["epoch"], " ".join(f"{n.partition('.')[2]}={v}" for n, v in e["set"].items())) for e in self.events]
        return ", ".join(f"{epoch} {changed}" for epoch, changed in sets)

    @property
    def identity(self) -> str:
        """The configuration's identity; a steered run has one of its own, from its events."""
        if not self.steered:
            return self.config.identity
        changes = [[event["epoch"], event["set"]] for event in self.events]
        text = json.dumps([self.config.identity, changes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def owns(self, identity: str | None) -> bool:
        """Tell whether a checkpoint or results with this identity are of this run, also if an older tase hashed
        options that the method does not read."""
        return identity is not None and identity in (self.config.identity, self.saved_identity)

    @property
    def pending(self) -> dict[str, Any]:
        """Fields of the last request to steer that no refresh has taken yet."""
        return not_taken(load_optional_json(self.path / "control.json"), self.events)

    def control(self, action: str = "run", **fields: Any) -> str:
        """Ask the run's training, in any process, to run, pause or stop; `tau_max=0.4` steers its guidance."""
        return request(self.path, self.config, action, {f"guidance.{name}": v for name, v in fields.items()})

    @property
    def results(self) -> dict[str, Any] | None:
        """What `evaluate` measured, or None."""
        return load_optional_json(self.path / RESULTS["test"]) or None

    @property
    def metrics(self) -> pandas.DataFrame:
        """One row per epoch: loss and its parts, learning rate, images per second, k-NN accuracy if measured."""
        import pandas

        return pandas.DataFrame(read_lines(self.path / "metrics.jsonl"))

    # ---- images, network, features

    @cached_property
    def splits(self) -> Splits:
        """The images the run was trained and is evaluated on, loaded from their source."""
        from ..data import load_splits

        return load_splits(self.config)

    @cached_property
    def images(self) -> ImageSet:
        """The training images that the history is of: all, or the recorded sample of many (record.sample)."""
        index = self.history.recorded
        return self.splits.train if index is None else self.splits.train.subset(index)

    def encoder(self, device: str = "cpu") -> nn.Module:
        """Return the trained backbone in eval mode, as `load_encoder` does: images -> features [b, d]."""
        from ..models import load_encoder

        if not encoder_file(self.path).exists():
            if self.is_slim:
                raise RunError(f"{self.path} is a slim copy: it keeps no encoder; train the run in another folder")
            raise RunError(f"{self.path} has no encoder yet: its training has not finished (train with resume=True)")
        try:
            return load_encoder(self.path, device)
        except (RunError, ValueError) as error:
            raise RunError(f"{error}; training with resume=True makes it again from the checkpoint") from error

    def features(self) -> np.ndarray:
        """Read the backbone features [n, d] of all training images at the last snapshot."""
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

    @property
    def trusted_at(self) -> int:
        """Index of the first snapshot after the warm-up, whose trust counts (the last one, before there is any)."""
        return min(int((self.history.epoch < self.config.warmup).sum()), len(self.history) - 1)

    @property
    def at_ends(self) -> list[float] | None:
        """Shares of the images at the lowest and at the highest temperature of the last snapshot.

        None where all have one temperature, without a snapshot, and in copies that do not keep it.
        """
        tau = [*self.history.snapshots().values()][-1].get("tau") if len(self.history) else None
        if tau is None or np.ptp(tau) < 1e-3:
            return None
        tau = tau.astype(np.float32)
        return [float((tau < tau.min() + 1e-3).mean()), float((tau > tau.max() - 1e-3).mean())]

    @property
    def trust_line(self) -> str:
        """How far to trust the run's clusters, in one sentence; empty where that was not measured."""
        from ..trust import trust_words

        h, t = self.history, self.trusted_at
        if not len(h) or np.isnan([h.trust[t], h.trust[-1]]).any():
            return ""
        return f"Trust {h.trust[t]:.2f} at epoch {h.epoch[t]}: {trust_words(h.trust[t], h.trust[-1])}."

    # ---- copies and descriptions

    def slim(self, out: str | Path, tables_only: bool = False) -> Run:
        """Copy to `out` what tables, figures and the explorer need: no weights, no features, half precision.

        With `tables_only`, what tables need: of the history trust and quality of the clusters, at the end of the
        warm-up and at the end; no layouts.
        """
        out = Path(out)
        (out / "history").mkdir(parents=True, exist_ok=True)
        for name in SLIM:
            drawn = name in ("metrics.jsonl", "history/labels.npz")
            if (self.path / name).exists() and not (tables_only and drawn):
                shutil.copyfile(self.path / name, out / name)
        if (self.path / "layouts").exists() and not tables_only:
            shutil.copytree(self.path / "layouts", out / "layouts", dirs_exist_ok=True)
        snapshots = list(self.history.snapshots().items())
        if tables_only and snapshots:
            snapshots = [snapshots[t] for t in sorted({self.trusted_at, len(snapshots) - 1})]
        for path, arrays in snapshots:
            kept = [name for name in ("quality", *PER_SNAPSHOT) if name in arrays] if tables_only else arrays
            small = {name: _small(name, arrays[name]) for name in kept}
            save_npz(out / "history" / path.name, compress=True, **small)
        return Run(out)

    def describe(self) -> dict[str, str]:
        """Return what there is to say of the run, a line each, from its method to the quality of its last clusters."""
        c, environment = self.config, self.environment
        rows = {
            "method": f"{c.method_title} ({c.method})",
            "preset": f"{c.preset}, seed {c.seed}, split {c.split}",
            "images": f"{environment.get('images', '?')}, subset {environment.get('subset', '?')}",
            "state": f"{self.state}, epoch {self.status.get('epoch', 0)} of {c.optim.epochs}",
            "identity": self.identity + (f", steered at {len(self.events)} refreshes" if self.steered else ""),
            "snapshots": str(len(self.history)),
            "device": f"{environment.get('device', '?')}, torch {environment.get('torch', '?')}",
            "code": commit_text(self.commit),
        }
        for name, scores in ((self.results or {}).get("protocols") or {}).items():
            rows[name] = _score_text(scores, ("all", "head", "mid", "tail", "std"), ".1f")
        if self.trust_line:
            agreement, last = self.history.agreement[self.trusted_at], self.history.trust[-1]
            line = self.trust_line.removeprefix("Trust ")
            rows["trust"] = f"{line} At the last snapshot {last:.2f}; clusterings agree by {agreement:.2f}"
        if len(self.history) and self.at_ends:
            low, high = self.at_ends
            rows["at the ends"] = (
                f"{100 * low:.1f} % of the images have the lowest temperature, {100 * high:.1f} % the highest"
            )
        for quality in self.history.quality[-1:]:
            rows |= {"clusters": _score_text(quality, tuple(quality), ".2f")} if quality else {}
        return rows

    def __repr__(self) -> str:
        c, steered = self.config, ", steered" if self.steered else ""
        return f"Run({str(self.path)!r}: {c.method} on {c.preset}, seed {c.seed}, {self.state}{steered})"

    def _repr_html_(self) -> str:
        from html import escape

        left = "style='text-align:left'"
        cells = (f"<tr><th {left}>{escape(k)}</th><td {left}>{escape(v)}</td></tr>" for k, v in self.describe().items())
        return f"<table><caption>{escape(str(self.path))}</caption>{''.join(cells)}</table>"


def _small(name: str, array: np.ndarray) -> np.ndarray:
    """Halve an array with a value per sample; sizes of clusters may exceed half precision's 65,504, and stay."""
    if name not in PER_SAMPLE:
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float16)
    return array.astype(np.int16) if array.max(initial=0) < 2**15 else array  # pseudo-labels


def commit_text(*commits: str) -> str:
    """Say which code it was: "commit 1234567890, 0987654321+", or "version 0.1.0" if there was no repository.

    Of many the first three are named, and how many more there are is said.
    """
    text = some_of(commits)
    return text if text.startswith("version") else f"commit {text}"


def _score_text(scores: dict[str, float], names: tuple[str, ...], form: str) -> str:
    known = [name for name in names if scores.get(name) is not None and not math.isnan(scores[name])]
    return ", ".join(f"{name.replace('_', ' ')} {scores[name]:{form}}" for name in known)


# ------------------------------------------------------------- control of a training: requests become events when taken


def request(folder: str | Path, config: Config, action: str = "run", set: dict[str, Any] | None = None) -> str:
    """Ask the training in `folder` to run on, pause or stop, and to take the fields `set` from its next refresh on.

    Fields of an earlier request that are still pending stay. Returns the request's id. Raises ConfigError for an
    unknown action, and for fields that cannot be steered, or not to these values after what has been steered already.
    """
    check_choice("action", action, ACTIONS)
    events = read_lines(Path(folder) / "events.jsonl")
    changes = {**not_taken(load_optional_json(Path(folder) / "control.json"), events), **(set or {})}
    if set:
        check_steering(config, events, changes)
    id = uuid.uuid4().hex[:8]
    save_json(Path(folder) / "control.json", {"id": id, "action": action, "set": changes})
    return id


def not_taken(request: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of a request that is not among the events, which is pending."""
    return {} if request.get("id") in [event.get("id") for event in events] else request.get("set") or {}


def steered(config: Config, events: list[dict[str, Any]]) -> Config:
    """Return the configuration after the events, in their order; raises ConfigError if they make none."""
    changes: dict[str, Any] = {}
    for event in events:
        changes.update(event["set"])
    return override(config, changes)


def check_steering(config: Config, events: list[dict[str, Any]], changes: dict[str, Any]) -> None:
    """Raise ConfigError unless the fields can be steered, to these values, after the events."""
    steerable = [f"guidance.{name}" for name in config.guidance_class.steerable]
    check(bool(steerable) or not changes, "set", changes, f"empty: {config.method} has no guidance to steer")
    for name in changes:
        if name not in steerable:
            raise unknown("field to steer", name, steerable)
    steered(config, [*events, {"set": changes}])
