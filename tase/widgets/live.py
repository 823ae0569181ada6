"""Live training: a training as a process of its own, watched from its folder, paused, stopped and steered."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

from ..config import Config
from ..files import RunError
from ..runs import History, Run, steered
from .base import OptionControls, Panel, flow_row, guarded, heading, override_guidance, train_words
from .svg import Plot, at_least, figure_html, group_colour, groups_present, plain_number

if TYPE_CHECKING:
    import pandas

LOOK_EVERY = 0.7  # seconds between two looks at the folder
LIVE_BUTTONS = {  # name: what is written on it, its icon, and the states in which it does something
    "start": ("start", "play", ("none",)),
    "pause": ("pause", "pause", ("training",)),
    "run": ("run on", "play", ("paused",)),
    "stop": ("stop", "stop", ("training", "paused")),
    "resume": ("resume", "repeat", ("stopped", "failed", "lost")),
    "steer": ("apply at the next refresh", "", ("training", "paused")),
}
TAU_PERCENTILES = (10, 50, 90)  # percentiles of tau
BREAK_COLOURS = {"steered": "steer"}
STATE_WORDS = {"none": "not started", "lost": "interrupted"}


def log_path(folder: Path) -> Path:
    """Name the file for the process's output: next to the folder, which must be empty for a new run."""
    return folder.with_name(f"{folder.name}.log")


def launch(config: Config, folder: Path, resume: bool) -> subprocess.Popen:
    """Start `tase train` in a session of its own: it outlives the kernel and the browser."""
    words = train_words(config, folder.resolve(), resume)
    folder.parent.mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).resolve().parents[2])  # also where tase is not installed, but on the path
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    with open(log_path(folder), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tase", *words, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths},
        )


def training_state(run: Run | None, process: subprocess.Popen | None = None) -> str:
    """Tell none, starting, training, paused, stopped, failed, finished, or lost (killed) from a run's folder.

    A training is alive while it holds the folder's lock, which the system releases however the process ends. `process`
    is one that was launched here: before it has the lock, it imports torch.
    """
    if run is not None and run.is_training:
        return "paused" if run.status.get("state") == "paused" else "training"
    if process is not None and process.poll() is None:
        return "starting"
    return "none" if run is None else run.state


# ---- the picture


def tau_of_groups(history: History) -> dict[str, tuple[int, Float[np.ndarray, "3 s"]]]:
    """Return number and the percentiles of tau at each snapshot, for each group by name."""
    if not len(history):
        return {}
    tau = history.tau  # [s, n]
    group = history.sample_groups
    return {name: (g, np.percentile(tau[:, group == g], TAU_PERCENTILES, axis=1)) for g, name in groups_present(group)}


def draw_training(run: Run) -> str:
    """Draw loss, k-NN accuracy and tau per group over the epochs, with a line where the loss changes its meaning."""
    tau, breaks = tau_of_groups(run.history), run.loss_breaks
    panels = [_draw_metric(run, "loss", "Loss (nats)", 0.5), _draw_metric(run, "knn", "k-NN accuracy in %", 20)]
    entries = [(f"{name}: median τ, band 10-90 %", group_colour(g), False) for name, (g, _) in tau.items()]
    entries += [(text, BREAK_COLOURS.get(text, "soft"), True) for text in dict.fromkeys(breaks.values())]
    within = "; compare its values only between two dashed lines" if breaks else ""
    note = f"τ and w are part of the loss: it does not compare with that of a run with other temperatures{within}."
    return figure_html([*panels, _draw_tau(run, tau)], entries, note)


def _epochs_plot(run: Run, title: str, y: tuple[float, float]) -> Plot:
    plot = Plot(title, "epoch", x=(0, run.config.optim.epochs), y=y, size=(310, 240))
    for epoch, text in run.loss_breaks.items():
        plot.line([epoch, epoch], y, BREAK_COLOURS.get(text, "soft"), 1.2, "5 3", f"{text}, epoch {epoch}")
    return plot


def _draw_metric(run: Run, name: str, title: str, span: float) -> str:
    """A column of the metrics where it has been measured, on an axis that is `span` high at least."""
    metrics = run.metrics
    seen = metrics.dropna(subset=[name]) if name in metrics else metrics[:0]
    if seen.empty:
        plot = _epochs_plot(run, title, (0.0, span))
        plot.note("not measured yet")
        return plot.svg("not measured yet")
    values = seen[name].to_numpy()
    plot = _epochs_plot(run, title, at_least(values.min(), values.max(), span))
    plot.line(seen["epoch"], values, "ink", name=title)
    if len(seen) < len(metrics):  # not of every epoch: the line only leads from one to the next
        plot.dots(seen["epoch"], values, ["ink"] * len(values))
    return plot.svg(f"{plain_number(values[0])} at first, now {plain_number(values[-1])}")


def _draw_tau(run: Run, tau: dict[str, tuple[int, Float[np.ndarray, "3 s"]]]) -> str:
    epoch, highest = run.history.epoch, max((rows.max() for _, rows in tau.values()), default=0)
    plot = _epochs_plot(run, "Temperature τ", (0, max(0.3, 1.05 * float(highest))))
    for name, (g, (low, middle, high)) in tau.items():
        plot.area(epoch, low, high, group_colour(g), 0.2)
        plot.line(epoch, middle, group_colour(g), name=f"{name}: median")
        plot.dots(epoch, middle, [group_colour(g)] * len(epoch))  # what is known: the snapshots
    last = [f"{name} median {rows[1, -1]:.2f}" for name, (_, rows) in tau.items()]
    return plot.svg(", ".join(last) or "no snapshot yet")


# ---- the widget


class LiveTraining(Panel):
    """Train in a process of its own and follow, pause, stop, resume and steer it through its folder, as a widget.

    `what` is a configuration, to be trained into the folder `out`, or a run (or its folder) to attach to. Closing the
    page or restarting the kernel loses nothing: call it again. `.config` has what the sliders show, ready for
    `tase.train`; `.save("history.csv")` writes `.table`, the history. Raises RunError for a folder that is no run.
    """

    # The folder holds all state, so that any number of panels can attach to it.
    following: ClassVar[dict[Path, LiveTraining]] = {}  # one panel per folder looks at it on its own

    def __init__(self, what: Config | Run | str | Path, out: str | Path | None = None, watch: bool = True):
        super().__init__()
        if isinstance(what, Config):
            if out is None:
                raise RunError("live_training(config, out): name the folder to train into, as out=...")
            self.given, self.folder = what, Path(out)
        else:
            run = what if isinstance(what, Run) else Run(what)
            self.given, self.folder = run.config, run.path
        self.process: subprocess.Popen | None = None
        self._seen, self._said = (), None
        self._ended, self._looking = threading.Event(), threading.Lock()
        self._build()
        self.look()
        if watch:
            self._watch()

    # ---- what is on the page

    def _build(self) -> None:
        import ipywidgets as w

        run, _ = self._own()
        now = self.given if run is None else steered_config(run)
        # Sent when let go: of a value still on its way, the button's click could come first.
        self.options = OptionControls(now, now.guidance_class.steerable, continuous_update=False)
        self.buttons = {name: w.Button(description=text, icon=icon) for name, (text, icon, _) in LIVE_BUTTONS.items()}
        for name, button in self.buttons.items():
            button.add_class(f"tase-{name}")
            button.layout.width = "auto"
            press = getattr(self, name, None) or functools.partial(self.control, name)
            button.on_click(lambda _, press=press: press())
        self.progress = w.IntProgress(max=self.given.optim.epochs, tooltip="epochs trained", bar_style="info")
        self.status = w.HTML()
        self.status.add_class("tase-status")
        *rest, steer = self.buttons.values()
        steering = [w.HTML(heading("steer")), *self.options, steer] if now.guidance_class.steerable else []
        title = f"{self.given.method_title} on {self.given.preset}, seed {self.given.seed}, into {self.folder}"
        rows = [flow_row(*rest, self.progress, self.status), flow_row(*steering)]
        self.put_together("live", w.HTML(heading(title)), *rows, self.message, self.picture)

    # ---- what leaves the widget

    @property
    def config(self) -> Config:
        """The configuration with the options that the sliders show, ready for `tase.train`."""
        return override_guidance(self.given, self.options.values)

    @property
    def table(self) -> pandas.DataFrame:
        """One row per epoch: the metrics, and percentiles of tau in each group where there is a snapshot."""
        import pandas

        run = Run(self.folder)
        columns = {"epoch": run.history.epoch}
        for name, (_, rows) in tau_of_groups(run.history).items():
            columns |= {f"tau_{name}_{part}".replace(" ", "_"): row for part, row in zip(TAU_PERCENTILES, rows)}
        metrics, temperatures = run.metrics, pandas.DataFrame(columns)
        return temperatures if metrics.empty else metrics.merge(temperatures, on="epoch", how="outer")

    # ---- following the folder

    def _watch(self) -> None:
        """Look at the folder in a thread: the kernel stays free, and a busy cell does not stop the pictures."""
        folder = self.folder.resolve()
        if folder in self.following:
            self.following[folder].close("This training is followed by a newer panel.")
        self.following[folder] = self

        def follow() -> None:
            while not self._ended.wait(LOOK_EVERY):
                self.look()

        threading.Thread(target=follow, daemon=True, name=f"tase-live {self.folder.name}").start()

    def close(self, why: str = "") -> None:
        """Stop following; the training is left as it is."""
        self._ended.set()
        self.say(why)

    @guarded
    def look(self) -> None:
        """Bring the panel up to what the folder holds; draw only where something has changed."""
        with self._looking:  # the thread looks, and every button does
            said, self._said = self._said, None  # after an error the next look writes its line again
            run, foreign = self._own()
            state = training_state(run, self.process)
            for name, button in self.buttons.items():
                button.disabled = state not in LIVE_BUTTONS[name][2]
            self.progress.value = epoch = 0 if run is None else run.status.get("epoch", 0)
            mark = f" · <b>steered</b>, identity {run.identity}" if run is not None and run.steered else ""
            total = self.given.optim.epochs
            self.status.value = f"<b>{STATE_WORDS.get(state, state)}</b>, epoch {epoch:,} of {total:,}{mark}"
            seen = (state, *_times_of_change(self.folder))
            if run is not None and seen != self._seen:
                self.picture.value = draw_training(run)
            line = (foreign, True) if foreign else self._line(state, run, epoch)
            if line != said:  # a button may have said something else meanwhile
                self.say(*line)
            self._seen, self._said = seen, line

    def _line(self, state: str, run: Run | None, epoch: int) -> tuple[str, bool]:
        """What there is to say, and whether it is a warning."""
        if run is None:
            failed = self._last_words()
            return failed or f"{self.folder} holds no run yet.", bool(failed)
        if state == "failed":
            return f"The training failed: {run.status.get('error', 'see the log')}", True
        if state == "lost":
            return "The process has ended without a word; resume continues from its last checkpoint.", True
        if run.pending and state in ("training", "paused"):
            at = run.config.next_refresh(epoch)
            when = f"takes effect at the next refresh, before epoch {at}" if at else "too late, as no refresh is left"
            return f"Pending: {_options_text(run.pending)}; {when}.", at is None
        if state == "finished":
            judge = f"tase evaluate {run.path} (how accurate it is), " if run.history.labels is not None else ""
            return f"Finished. Next: {judge}tase report {run.path} (how it went, image by image).", False
        if run.steered:
            last = run.events[-1]
            return f"Steered at epoch {last['epoch']}, step {last['step']:,}: {_options_text(last['set'])}.", False
        if not run.config.guidance_class.steerable:
            return f"{run.config.method_title} has no options that can be steered.", False
        return (run.trust_line if epoch > run.config.warmup else ""), False

    def _own(self) -> tuple[Run | None, str]:
        """The run in the folder; None, with what there is to say of it, where that is one of another configuration."""
        run = Run(self.folder) if (self.folder / "config.json").exists() else None
        if run is None or run.owns(self.given.identity):
            return run, ""
        other = f"{run.config.method_title}, identity {run.identity}"
        return None, f"{self.folder} holds another run ({other}); choose another folder"

    def _last_words(self) -> str:
        """The end of the log of a process that failed."""
        if self.process is None or not self.process.poll():
            return ""
        said = log_path(self.folder).read_text(errors="replace").strip()
        return f"The process ended: {said[said.rfind('error:') :] if 'error:' in said else said[-200:]}"

    # ---- buttons

    @guarded
    def start(self) -> None:
        """Train in a process of its own; where the folder holds this run already, only follow it."""
        run, foreign = self._own()
        if foreign:
            raise RunError(foreign)
        if training_state(run, self.process) == "none":
            self.given = self.config
            self.process = launch(self.given, self.folder, resume=False)
        self.look()

    @guarded
    def resume(self) -> None:
        """Continue from the last checkpoint, in a new process."""
        self.process = launch(Run(self.folder).config, self.folder, resume=True)
        self.look()

    @guarded
    def control(self, action: str) -> None:
        """Pause, run or stop after the step in hand; stopping leaves a checkpoint."""
        Run(self.folder).control(action)
        self.look()

    @guarded
    def steer(self) -> None:
        """Request what the controls show; only what differs from the present options is sent."""
        run = Run(self.folder)
        now = steered_config(run).guidance
        wanted = {name: value for name, value in self.options.values.items() if value != getattr(now, name)}
        if not wanted:
            self.say("Nothing to steer: the controls show what the training has.")
            return
        run.control("pause" if training_state(run) == "paused" else "run", **wanted)
        self.look()


def steered_config(run: Run) -> Config:
    """Return the configuration after all events, and the request that is pending."""
    return steered(run.config, [*run.events, {"set": run.pending}])


def _times_of_change(folder: Path) -> list[int]:
    paths = [folder / "metrics.jsonl", folder / "events.jsonl", folder / "history"]
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]


def _options_text(changed: dict[str, Any]) -> str:
    return ", ".join(f"{name.removeprefix('guidance.')} = {value}" for name, value in changed.items())


live_training = LiveTraining
