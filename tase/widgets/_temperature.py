"""Temperature explorer: what would other settings give every sample of a saved run?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from ..config import Config, check
from ..guidance import TASE
from ..pseudo_labels import centred
from ..runs import Run, RunError
from ._panels import TemperaturePicture
from ._parts import CSS, Images, Job, Message, guarded, heading, trouble
from ._pure import (
    Moment,
    Neighbours,
    Proposal,
    command_line,
    members,
    moment,
    most_changed,
    neighbours,
    proposal,
    proposed_config,
    push_on,
    reclustered,
    spread_line,
)

MOST = 9  # images shown at each end


class Snapshots:
    """A run's snapshots as moments, the last ones used kept in memory."""

    def __init__(self, run: Run):
        self.run = run
        self._kept: dict[int, tuple] = {}

    def epochs(self) -> list[int]:
        if not self.run.path.exists():
            raise RunError(f"the run's folder {self.run.path} is gone")
        return self.run.history.epoch.tolist()

    def moment(self, epoch: int) -> Moment:
        """The snapshot of an epoch; RunError where it is gone."""
        epochs = self.epochs()
        if epoch not in epochs:
            raise RunError(f"the snapshot of epoch {epoch} is gone from {self.run.path}")
        return moment(self.run.history, epochs.index(epoch), self.run.config.guidance)

    def features(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Centred unit features [m, d] and image numbers [m] that the epoch's snapshot keeps."""
        if epoch not in self._kept:
            t = self.epochs().index(epoch)
            x, index = self.run.history.features(t), self.run.history.feature_index(t)
            if not len(index):
                raise RunError("this snapshot keeps no features (record.features)")
            self._kept = {epoch: (x, centred(torch.from_numpy(x)).numpy(), index)}
        _, h, index = self._kept[epoch]
        return h, index

    def raw_features(self, epoch: int) -> np.ndarray:
        self.features(epoch)
        return self._kept[epoch][0]


class TemperatureExplorer:
    """The controls and what they move; `widget` is what is shown."""

    def __init__(self, run: Run, threaded: bool = True):
        self.run = run
        self.message = Message()
        self.snapshots = Snapshots(run)
        self.images = Images(run)
        self.job = Job(lambda error: self.message.say(trouble(error), True), self._busy, threaded)
        self._near: tuple | None = None
        epochs = self.snapshots.epochs()
        if not epochs:
            raise RunError(f"{run.path} has no snapshot yet: the first comes when its training starts")
        self.now = self.snapshots.moment(epochs[-1])
        self.n, self.saved_clusters = len(self.now.tau), self.now.clusters
        self.panel = TemperaturePicture(self.now)
        self._controls(epochs)
        self._arrange()
        self._listen()
        self.redraw()

    # ---- what is on the page

    def _controls(self, epochs: list[int]) -> None:
        import ipywidgets as w

        g = self.run.config.guidance
        wide = {"description_width": "initial"}
        slider = {"style": wide, "continuous_update": True, "readout_format": ".2f"}
        tau = (g.tau_min, g.tau_max)
        self.tau = w.FloatRangeSlider(
            value=tau, min=0.02, max=1.0, step=0.01, description="temperature range τ", **slider
        )
        self.gamma = w.FloatSlider(
            value=g.gamma, min=0, max=2, step=0.05, description="strength of the weight γ", **slider
        )
        self.w_max = w.FloatSlider(value=g.w_max, min=1, max=10, step=0.5, description="largest weight w_max", **slider)
        maps = [("log of the size", "log"), ("rank", "rank")]
        self.map = w.Dropdown(options=maps, value=g.headness_map, description="headness map", style=wide)
        self.reversed = w.Checkbox(g.reversed, description="reversed: head low, tail high", indent=False)
        self.epoch = w.SelectionSlider(
            options=epochs, value=epochs[-1], description="snapshot at epoch", style=wide, continuous_update=True
        )
        number = {"style": wide, "continuous_update": False}
        self.clusters = w.IntText(self.now.clusters, description="clusters k", **number)
        names = [("size of the clusters", "size"), ("merged clusters", "merged"), ("density", "density")]
        self.estimator = w.Dropdown(options=names, value=g.estimator, description="quantity from", style=wide)
        self.merge_to = w.IntText(g.merge_to, description="merge to (0: many)", **number)
        self.as_saved = w.Button(description="clusters as saved", tooltip="undo the new clustering")
        self.busy = w.HTML()
        self.sample = w.BoundedIntText(
            value=0, min=0, max=len(self.now.tau) - 1, description="sample: image number", **number
        )
        picks = [("choose …", ""), *((f"any {name}", str(g)) for g, name in members(self.now.group))]
        self.pick = w.Dropdown(options=[*picks, ("τ rises most", "up"), ("τ falls most", "down")], description="or")
        self.out = w.Text(self._free_folder(), description="train into folder", style=wide, continuous_update=False)
        self.train = w.Button(description="train this setting", button_style="primary", icon="play")
        self.command = w.Textarea(rows=2, description="to copy", style=wide)

    def _free_folder(self) -> str:
        """A folder beside the run's that does not exist yet."""
        base = self.run.path.with_name(f"{self.run.name}-tuned")
        number = 2
        path = base
        while path.exists():
            path, number = base.with_name(f"{base.name}-{number}"), number + 1
        return str(path)

    def _arrange(self) -> None:
        import ipywidgets as w

        px = {self.tau: 400, self.gamma: 345, self.w_max: 315, self.map: 230, self.reversed: 230, self.epoch: 320}
        px |= {self.clusters: 160, self.estimator: 260, self.merge_to: 180, self.as_saved: 140, self.sample: 250}
        px |= {self.pick: 250, self.out: 520, self.train: 170, self.command: 1070}
        for control, width in px.items():
            control.layout.width = f"{width}px"
        self.pick.style.description_width = "20px"
        for name in ("tau", "gamma", "w_max", "map", "reversed", "epoch", "clusters", "estimator", "merge_to"):
            getattr(self, name).add_class(f"tase-{name.replace('_', '-')}")
        for name in ("sample", "pick", "out", "train", "command", "busy"):
            getattr(self, name).add_class(f"tase-{name}")
        flow = w.Layout(flex_flow="row wrap", align_items="center")
        self.near, self.rising, self.falling, self.live = w.HTML(), w.HTML(), w.HTML(), w.VBox()
        half = w.Layout(width="538px")
        self.rising.layout = self.falling.layout = half
        self.rising.add_class("tase-rising"), self.falling.add_class("tase-falling"), self.near.add_class("tase-near")
        self.widget = w.VBox(
            [
                w.HTML(CSS),
                w.HBox([self.tau, self.gamma, self.w_max], layout=flow),
                w.HBox([self.map, self.reversed, self.epoch], layout=flow),
                w.HBox([self.clusters, self.estimator, self.merge_to, self.as_saved, self.busy], layout=flow),
                self.message.html,
                self.panel.picture.image,
                w.HBox([self.sample, self.pick], layout=flow),
                self.near,
                w.HBox([self.rising, self.falling]),
                self.command,
                w.HBox([self.out, self.train], layout=flow),
                self.live,
            ]
        )
        self.widget.add_class("tase-box")
        self.widget.add_class("tase-temperature")

    def _listen(self) -> None:
        for control in (self.tau, self.gamma, self.w_max, self.map, self.reversed):
            control.observe(lambda _: self.redraw(), "value")
        self.epoch.observe(lambda _: self.change_epoch(), "value")
        for control in (self.clusters, self.estimator, self.merge_to):
            control.observe(lambda _: self.recluster(), "value")
        self.sample.observe(lambda _: self.redraw(), "value")
        self.pick.observe(lambda _: self.pick_sample(), "value")
        self.out.observe(lambda _: self._write_command(), "value")
        self.as_saved.on_click(lambda _: self.reset_clusters())
        self.train.on_click(lambda _: self.start())

    # ---- what happens

    def settings(self) -> TASE.Options:
        """The settings of all controls; raises ConfigError for values that cannot be."""
        low, high = self.tau.value
        return dataclasses.replace(
            self.run.config.guidance,
            tau_min=round(low, 4),
            tau_max=round(high, 4),
            gamma=round(self.gamma.value, 4),
            w_max=round(self.w_max.value, 4),
            headness_map=self.map.value,
            reversed=self.reversed.value,
            **self._clustering(),
        )

    def _clustering(self) -> dict:
        """Only what differs from the run's own: its 0 ("chosen by the number of images") stays 0."""
        k, merge_to = self.clusters.value, self.merge_to.value
        check(k >= 1, "clusters k", k, "at least 1")
        check(k <= self.n, "clusters k", k, f"at most the number of images, {self.n}")
        k = self.run.config.guidance.clusters if k == self.saved_clusters else k
        return {"clusters": k, "estimator": self.estimator.value, "merge_to": merge_to}

    @property
    def own_clusters(self) -> bool:
        """Whether the clusters asked for are those that the run saved."""
        g = self.run.config.guidance
        asked = (self.clusters.value, self.estimator.value, self.merge_to.value)
        return asked == (self.saved_clusters, g.estimator, g.merge_to)

    @guarded
    def redraw(self) -> None:
        """A new picture for the settings of this moment."""
        settings = self.settings()
        new = proposal(self.now, settings)
        self.panel.set_proposal(new)
        about_push = self._push(new)
        self.panel.picture.show()
        self._strips(new)
        self._write_command()
        self.message.say(self._remark(settings, new.spread) or about_push)

    def _remark(self, settings: TASE.Options, spread: float) -> str:
        if settings.tau_min == settings.tau_max:
            return f"A range of zero width: every sample gets τ = {settings.tau_min:g}; only the weights differ."
        if spread_line(spread):
            return spread_line(spread)
        if len(self.now.index) < self.n:
            return f"Clustered anew from the {len(self.now.index):,} images whose features this snapshot keeps."
        if self.now.log_sizes is None and settings.estimator == "merged" and self.own_clusters:
            return "The sizes of merged clusters are not saved: q is by percentiles of the samples' headness."
        if (self.now.group < 0).all():
            return "This run has no labels, or no tail among its classes: group colours are off."
        return ""

    def _push(self, new: Proposal) -> str:
        """Move the panel of the chosen sample; returns what is missing for it."""
        place = np.flatnonzero(self.now.index == self.sample.value)
        try:
            near = self._neighbours(self.sample.value)
        except RunError as error:
            near, why = None, str(error)
        if near is None or not len(place):
            why = why if near is None else f"image {self.sample.value} is not among the images clustered anew"
            self.panel.set_push(None, None, "no features kept\nfor this sample")
            return f"No neighbours: {why}."
        i = int(place[0])
        old, now = push_on(near.similarity, self.now.tau[i]), push_on(near.similarity, new.tau[i])
        count = min(10, len(old))
        strength = new.weight[i] / new.tau[i] / (self.now.weight[i] / self.now.tau[i])
        text = (
            f"τ {self.now.tau[i]:.2f} → {new.tau[i]:.2f}\n{count} nearest: {old[:count].sum():.0f} → "
            f"{now[:count].sum():.0f} %\nfactor w/τ: × {strength:.2f}"
        )
        self.panel.set_push(old, now, text)
        return ""

    def _neighbours(self, image: int) -> Neighbours:
        key = (self.now.epoch, image)
        if self._near is None or self._near[0] != key:
            h, index = self.snapshots.features(self.now.epoch)
            row = np.flatnonzero(index == image)
            if not len(row):
                raise RunError(f"epoch {self.now.epoch} keeps the features of {len(index):,} images, not of {image}")
            near = neighbours(h, int(row[0]))
            self._near = (key, near)
            self._show_neighbours(image, index[near.row[:MOST]], near.similarity[:MOST])
        return self._near[1]

    def _show_neighbours(self, image: int, nearest: np.ndarray, cosines: np.ndarray) -> None:
        captions = [f"no. {image}", *(f"no. {i}\ncos {c:.2f}" for i, c in zip(nearest, cosines))]
        title = heading("The sample and its nearest neighbours (cosine of the backbone's features, mean removed)")
        self.near.value = title + self.images.strip([image, *nearest], captions)

    def _strips(self, new: Proposal) -> None:
        up, down = most_changed(self.now.tau, new.tau, MOST)
        for box, rows, title in ((self.rising, up, "τ rises most"), (self.falling, down, "τ falls most")):
            rows = rows[:8]
            captions = [f"{self.now.tau[i]:.2f} →\n{new.tau[i]:.2f}" for i in rows]
            body = self.images.strip(self.now.index[rows], captions) if len(rows) else "<i>for no sample</i>"
            box.value = heading(f"{title}, saved → proposed") + body
        self._most = {"up": up, "down": down}

    @guarded
    def pick_sample(self) -> None:
        """A sample of a group, or the one that changes most."""
        choice, self.pick.value = self.pick.value, ""
        if choice in ("up", "down"):
            rows = self._most[choice]
        else:
            rows = np.flatnonzero(self.now.group == int(choice)) if choice else np.zeros(0, dtype=np.int64)
            self._draw = np.random.default_rng(self.sample.value)
            rows = self._draw.permutation(rows)
        if len(rows):
            self.sample.value = int(self.now.index[rows[0]])

    @guarded
    def change_epoch(self) -> None:
        """Another snapshot; clusters asked for are made of its features."""
        self.now = self.snapshots.moment(self.epoch.value)
        if self.own_clusters:
            self.panel.set_moment(self.now)
            self.redraw()
        else:
            self.recluster()

    @guarded
    def recluster(self) -> None:
        """New clusters in the background, then a new picture."""
        saved = self.snapshots.moment(self.epoch.value)
        settings = self.settings()
        if self.own_clusters:
            self.job.cancel()
            self._take(saved)
            return
        _, index = self.snapshots.features(saved.epoch)
        check(settings.clusters <= len(index), "clusters k", settings.clusters, f"at most the {len(index)} images kept")
        x = self.snapshots.raw_features(saved.epoch)
        self.job.start(lambda wanted: reclustered(saved, x, index, settings), self._take)

    def _take(self, now: Moment) -> None:
        self.now = now
        self.panel.set_moment(now)
        self.redraw()

    def _busy(self, on: bool) -> None:
        self.busy.value = "<b>⏳ clustering …</b>" if on else ""

    @guarded
    def reset_clusters(self) -> None:
        """Back to the clusters that the run saved."""
        g = self.run.config.guidance
        # Each of the three observes itself and clusters; the last one finds all as saved.
        self.clusters.value, self.estimator.value = self.saved_clusters, g.estimator
        self.merge_to.value = g.merge_to
        self.recluster()

    def config(self) -> Config:
        """The run's configuration with these settings."""
        return proposed_config(self.run.config, self.settings())

    @guarded
    def _write_command(self) -> None:
        self.command.value = command_line(self.config(), self.out.value)

    @guarded
    def start(self) -> None:
        """Train the setting in a process of its own, watched below."""
        from ._live import LiveTraining

        live = LiveTraining(self.config(), self.out.value)
        live.start()
        self.live.children = [live.widget]


def explore_temperatures(run: Run | str | Path):
    """Widget: what other temperatures and weights would do to every sample of a saved run.

    Sliders for the range of tau, gamma, w_max, headness map and direction are seen at once; clusters k and merging are
    made anew from the saved features. `run` is a run or its folder; raises RunError where it has no snapshot.
    """
    return TemperatureExplorer(run if isinstance(run, Run) else Run(run)).widget
