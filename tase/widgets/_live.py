"""Live training: a training as a process of its own, watched from its folder, paused, stopped and steered."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..figures.style import INK, style
from ..runs import Run, RunError, load_kept
from ._panels import colour_of
from ._parts import CSS, WIDTH, Message, Picture, guarded, heading
from ._pure import members, sample_groups, train_arguments

STEER = "#8E3B9E"
INTERVAL = 0.7  # seconds between two looks at the folder
_started: dict[Path, subprocess.Popen] = {}  # asked for their end, so that no ended process looks alive
_launched: dict[Path, float] = {}
_watching: dict[Path, LiveTraining] = {}  # one panel per folder follows it


def log_path(folder: Path) -> Path:
    """Where the process writes what it has to say: beside the folder, which must be empty for a new run."""
    return folder.with_name(f"{folder.name}.log")


def launch(config: Config, folder: Path, resume: bool) -> subprocess.Popen:
    """Start `python -m tase train` in a session of its own: it outlives the kernel and the browser."""
    arguments = train_arguments(config, folder.resolve(), resume)
    folder.parent.mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).resolve().parents[2])  # also where tase is not installed, but on the path
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).strip(":")}
    with open(log_path(folder), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tase", *arguments, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    _started[folder.resolve()], _launched[folder.resolve()] = process, time.time()
    return process


def alive(folder: Path, pid: int | None) -> bool:
    """Whether the process that trains in the folder is there: one of ours, or the one that its status names."""
    own = _started.get(folder.resolve())
    if own is not None and own.poll() is None:
        return True
    if pid is None or (own is not None and own.pid == pid):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def state_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The training's state and status: none, starting, training, paused, ending, stopped, failed, finished or lost."""
    if not (folder / "config.json").exists():
        return ("starting" if alive(folder, None) else "none"), {}
    status = Run(folder).status
    state = status.get("state", "new")
    if not alive(folder, status.get("pid")):
        return ("lost" if state in ("training", "paused", "new") else state), status
    if state in ("training", "paused", "finished"):
        return state, status
    # Stopped, but with a process: one that is about to end, or a new one that has not finished an epoch yet.
    fresh = status.get("time", 0) >= _launched.get(folder.resolve(), 0) and state != "new"
    return ("ending" if fresh else "starting"), status


def pending(run: Run) -> dict[str, Any]:
    """Fields asked for in the control file that no refresh has taken yet."""
    request = load_kept(run.path / "control.json")
    taken = {event["id"] for event in run.events}
    return {} if request.get("id") in taken else request.get("set") or {}


def ask(run: Run, action: str, **fields: float) -> None:
    """Write a request to the control file, together with one that still waits for its refresh."""
    waiting = {name.split(".", 1)[1]: value for name, value in pending(run).items()}
    run.control(action, **{**waiting, **fields})


def next_refresh(run: Run, epoch: int) -> int:
    """The epoch before which the guidance is refreshed next."""
    config = run.config
    warm = round(config.guidance.warmup * config.optim.epochs)
    regular = (epoch // config.refresh + 1) * config.refresh
    return min(regular, warm) if epoch < warm else min(regular, config.optim.epochs)


class LivePicture:
    """Loss, k-NN accuracy and tau per group over the epochs, with a line at each steering."""

    def __init__(self):
        with style():
            self.picture = Picture(WIDTH, 270, "live: loss, k-NN accuracy, temperature per group")
            self.picture.image.layout.display = "none"  # until there is something to draw
            self.loss, self.knn, self.tau = self.picture.figure.subplots(1, 3)
            self.picture.figure.subplots_adjust(left=0.05, right=0.99, bottom=0.18, top=0.86, wspace=0.22)

    def show(self, run: Run) -> None:
        """Draw what the folder holds now."""
        metrics, events = run.metrics, run.events
        with style():
            for ax, title in ((self.loss, "Loss"), (self.knn, "k-NN accuracy"), (self.tau, "Temperature")):
                ax.clear()
                ax.set(xlim=(0, run.config.optim.epochs), xlabel="epoch", title=title)
                for event in events:
                    ax.axvline(event["epoch"], color=STEER, lw=1.0, ls="--")
            self._curves(metrics)
            self._temperatures(run)
            if events:
                at = self.tau.get_xaxis_transform()
                self.tau.text(events[-1]["epoch"], 0.98, " steered", color=STEER, va="top", transform=at)
        self.picture.show(anew=True)
        self.picture.image.layout.display = None

    def _curves(self, metrics) -> None:
        self.loss.set(ylabel="loss (nats)")
        self.knn.set(ylabel="accuracy in %", ylim=(0, 100))
        if len(metrics):
            self.loss.plot(metrics["epoch"], metrics["loss"], color=INK)
        if "knn" in metrics:
            seen = metrics.dropna(subset=["knn"])
            self.knn.plot(seen["epoch"], seen["knn"], color=INK, marker="o", ms=3)
        else:
            self.knn.text(0.5, 0.5, "not measured yet\n(needs labels)", ha="center", transform=self.knn.transAxes)

    def _temperatures(self, run: Run) -> None:
        """Median and 10-90 % of each group."""
        h = run.history
        self.tau.set(ylabel="temperature τ")
        if not len(h):
            self.tau.text(0.5, 0.5, "no snapshot yet", ha="center", transform=self.tau.transAxes)
            return
        epoch, tau = h.epoch, h.tau
        group = sample_groups(h, tau.shape[1])
        for g, name in members(group):
            low, middle, high = np.quantile(tau[:, group == g], (0.1, 0.5, 0.9), axis=1)
            self.tau.fill_between(epoch, low, high, color=colour_of(g), alpha=0.18, lw=0)
            label = f"{name} (median, 10-90 %)" if g <= 0 else name
            self.tau.plot(epoch, middle, color=colour_of(g), lw=1.5, marker="o", ms=2.5, label=label)
        self.tau.set_ylim(0, max(0.3, 1.15 * float(tau.max())))
        self.tau.legend(loc="lower left", ncols=3)


class LiveTraining:
    """The controls of one training; the folder holds its state, so that any number of panels can attach to it."""

    def __init__(self, what: Config | Run | str | Path, out: str | Path | None = None, watch: bool = True):
        self.config, self.folder = _target(what, out)
        self.message = Message()
        self.panel = LivePicture()
        self._seen: tuple = ()
        self._said: tuple | None = None
        self._existed = False
        self._ended, self._looking = threading.Event(), threading.Lock()
        self._build()
        self.look()
        if watch:
            self._watch()

    # ---- what is on the page

    def _build(self) -> None:
        import ipywidgets as w

        there = (self.folder / "config.json").exists()
        g = current(Run(self.folder)) if there else _steerable(self.config)
        wide = {"style": {"description_width": "initial"}}
        buttons = (("start", "start", "play"), ("pause", "pause", "pause"), ("go", "run on", "play"))
        buttons += (("stop", "stop", "stop"), ("resume", "resume", "repeat"))
        for name, text, icon in buttons:
            button = w.Button(description=text, icon=icon, layout=w.Layout(width="100px"))
            button.add_class(f"tase-{name}")
            button.on_click(lambda _, name=name: getattr(self, name)())
            setattr(self, f"{name}_button", button)
        # Sent when let go: of a value still on its way, the button's click could come first.
        slider = {**wide, "continuous_update": False}
        tau = (g["tau_min"], g["tau_max"])
        self.tau = w.FloatRangeSlider(
            value=tau, min=0.02, max=1.0, step=0.01, description="steer: temperature range τ", **slider
        )
        self.gamma = w.FloatSlider(
            value=g["gamma"], min=0, max=2, step=0.05, description="strength of the weight γ", **slider
        )
        self.tau.layout.width, self.gamma.layout.width = "460px", "360px"
        self.steer_button = w.Button(description="apply at the next refresh", layout=w.Layout(width="200px"))
        self.steer_button.on_click(lambda _: self.steer())
        for name, control in (("tau", self.tau), ("gamma", self.gamma), ("steer", self.steer_button)):
            control.add_class(f"tase-{name}")
        self.progress = w.IntProgress(min=0, max=self.config.optim.epochs, layout=w.Layout(width="260px"))
        self.status = w.HTML()
        self.status.add_class("tase-status")
        self._arrange()

    def _arrange(self) -> None:
        import ipywidgets as w

        names = ("start", "pause", "go", "stop", "resume")
        flow = w.Layout(flex_flow="row wrap", align_items="center")
        self.widget = w.VBox(
            [
                w.HTML(CSS + heading(f"{self.config.method} on {self.config.preset}, into {self.folder}")),
                w.HBox([*(getattr(self, f"{name}_button") for name in names), self.progress, self.status], layout=flow),
                w.HBox([self.tau, self.gamma, self.steer_button], layout=flow),
                self.message.html,
                self.panel.picture.image,
            ]
        )
        self.widget.add_class("tase-box")
        self.widget.add_class("tase-live")

    # ---- following the folder

    def _watch(self) -> None:
        """Look at the folder in a thread: the kernel stays free, and a busy cell does not stop the pictures."""
        before = _watching.get(self.folder.resolve())
        if before is not None:
            before.close("This training is followed by a newer panel.")
        _watching[self.folder.resolve()] = self

        def follow() -> None:
            while not self._ended.wait(INTERVAL):
                self.look()

        threading.Thread(target=follow, daemon=True, name=f"tase-live {self.folder.name}").start()

    def close(self, why: str = "") -> None:
        """Stop following; the training is left as it is."""
        self._ended.set()
        self.message.say(why)

    @guarded
    def look(self) -> None:
        """Bring the panel up to what the folder holds; draws only where something has changed."""
        with self._looking:  # the thread looks, and every button does
            try:
                self._look()
            except Exception:
                self._said = None  # the error's line is not ours: the next look writes its own
                raise

    def _look(self) -> None:
        state, status = state_of(self.folder)
        run = Run(self.folder) if (self.folder / "config.json").exists() else None
        self._allow(state)
        self._tell(state, status, run)
        seen = (state, *_marks(self.folder)) if run else (state,)
        if run is not None and seen != self._seen:
            self.panel.show(run)
        self._seen = seen

    def _allow(self, state: str) -> None:
        """Only buttons that do something now can be pressed."""
        at = {
            "start": ("none",),
            "pause": ("training",),
            "go": ("paused",),
            "stop": ("training", "paused"),
            "resume": ("stopped", "failed", "lost"),
            "steer": ("training", "paused"),
        }
        for name, states in at.items():
            off = state not in states
            if name == "steer":
                off = off or not self.config.guidance_class.steerable
            button = getattr(self, f"{name}_button")
            if button.disabled != off:
                button.disabled = off

    def _tell(self, state: str, status: dict[str, Any], run: Run | None) -> None:
        epoch = status.get("epoch", 0)
        total = self.config.optim.epochs
        self.progress.value = total if state == "finished" else epoch
        mark = f" · <b>steered</b>, identity {run.identity}" if run is not None and run.steered else ""
        words = {"none": "not started", "lost": "its process has ended", "new": "starting"}
        self.status.value = f"<b>{words.get(state, state)}</b>, epoch {epoch} of {total}{mark}"
        line, warn = self._line(state, status, run)
        if (line, warn) != self._said:
            self._said = (line, warn)
            self.message.say(line, warn)

    def _line(self, state: str, status: dict[str, Any], run: Run | None) -> tuple[str, bool]:
        """What there is to say, and whether it is a warning."""
        if state == "none":
            gone = f"The run's folder {self.folder} is gone; start trains it anew." if self._existed else ""
            return _last_words(self.folder) or gone, True
        self._existed = self._existed or run is not None
        if state == "failed":
            return f"The training failed: {status.get('error', 'see the log')}", True
        if state == "lost":
            return "The process has ended without a word; resume goes on from its last checkpoint.", True
        waiting = pending(run) if run is not None else {}
        if waiting and state in ("training", "paused"):
            at = next_refresh(run, status.get("epoch", 0))
            return f"Asked for {_fields(waiting)}: takes effect at the next refresh, before epoch {at}.", False
        if run is not None and run.steered:
            last = run.events[-1]
            return f"Steered at epoch {last['epoch']}, step {last['step']}: {_fields(last['set'])}.", False
        return "", False

    # ---- buttons

    @guarded
    def start(self) -> None:
        """Train in a process of its own; where the folder holds this run already, only follow it."""
        state, _ = state_of(self.folder)
        if state == "none":
            if self.folder.exists() and any(p.name != ".lock" for p in self.folder.iterdir()):
                raise RunError(f"{self.folder} holds other files; choose an empty or a new folder")
            launch(self.config, self.folder, resume=False)
        elif Run(self.folder).config.identity != self.config.identity:
            raise RunError(f"{self.folder} holds another run; choose another folder")
        self.look()

    @guarded
    def resume(self) -> None:
        """Go on from the last checkpoint, in a new process."""
        launch(Run(self.folder).config, self.folder, resume=True)
        self.look()

    def pause(self) -> None:
        """Wait after the step in hand."""
        self._ask("pause")

    def go(self) -> None:
        """End a pause."""
        self._ask("run")

    def stop(self) -> None:
        """End after the step in hand, with a checkpoint."""
        self._ask("stop")

    @guarded
    def _ask(self, action: str) -> None:
        ask(Run(self.folder), action)
        self.look()

    @guarded
    def steer(self) -> None:
        """Ask for the range and gamma of the sliders; only what differs from now is asked for."""
        state, _ = state_of(self.folder)
        run = Run(self.folder)
        (low, high), gamma = self.tau.value, self.gamma.value
        wanted = {"tau_min": round(low, 4), "tau_max": round(high, 4), "gamma": round(gamma, 4)}
        now = current(run)
        changes = {name: value for name, value in wanted.items() if abs(value - now[name]) > 1e-9}
        if not changes:
            self._said = None
            self.message.say("Nothing to steer: the sliders show what the training has.")
            return
        ask(run, "pause" if state == "paused" else "run", **changes)
        self.look()


def _steerable(config: Config) -> dict[str, float]:
    g = config.guidance
    return {"tau_min": g.tau_min, "tau_max": g.tau_max, "gamma": g.gamma}


def current(run: Run) -> dict[str, float]:
    """Range and gamma that hold, with all events and the request that waits."""
    values = _steerable(run.config)
    for changes in (*(event["set"] for event in run.events), pending(run)):
        values.update({name.split(".", 1)[1]: value for name, value in changes.items()})
    return values


def _target(what: Config | Run | str | Path, out: str | Path | None) -> tuple[Config, Path]:
    if isinstance(what, Config):
        if out is None:
            raise RunError("live_training(config, out): say into which folder, as out=...")
        return what, Path(out)
    run = what if isinstance(what, Run) else Run(what)
    return run.config, run.path


def _marks(folder: Path) -> list[int]:
    """Times of change of what is drawn."""
    paths = [folder / "metrics.jsonl", folder / "events.jsonl", folder / "history"]
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]


def _last_words(folder: Path) -> str:
    """The end of the log of a process that failed."""
    path, process = log_path(folder), _started.get(folder.resolve())
    if process is None or not process.poll() or not path.exists():
        return ""
    said = path.read_text(errors="replace").strip()
    words = said[said.rfind("error:") :] if "error:" in said else said.rsplit("\n", 1)[-1]
    return f"The process ended: {words}" if words else "The process ended without a word."


def _fields(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name.split('.', 1)[1]} = {value}" for name, value in changes.items())


def live_training(what: Config | Run | str | Path, out: str | Path | None = None):
    """Widget: train in a process of its own and follow, pause, stop, resume and steer it through its folder.

    `what` is a configuration, to be trained into the folder `out`, or a run (or its folder) to attach to. Closing the
    page or restarting the kernel loses nothing: call it again. Raises RunError for a folder that is no run.
    """
    return LiveTraining(what, out).widget
