"""Temperature explorer: what would other settings give every sample of a saved run?"""

from __future__ import annotations

import functools
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from ..clustering import centred
from ..config import Config, check
from ..data import GROUPS
from ..files import RunError
from ..guidance import says_nothing
from ..runs import Run
from .base import (
    BackgroundJob,
    OptionControls,
    Panel,
    command_line,
    flow_row,
    guarded,
    heading,
    images_of,
    opened,
    override_guidance,
    picture_strip,
)
from .live import LiveTraining
from .svg import Plot, figure_html, group_colour, groups_present
from .what_if import (
    SampleTable,
    WhatIf,
    apply_options,
    most_changed,
    nearest_first,
    push_shares,
    reclustered,
    saved_samples,
    what_if_config,
)

if TYPE_CHECKING:
    import pandas

CLUSTER_OPTIONS = ("clusters", "estimator", "merge_to")
STRIP_LENGTH = 9  # images shown in a row
TAU_TOPS = (0.3, 0.6, 1.0, 2.0, 5.0)  # ends of the temperature axes: few, so that the axes seldom change
HISTOGRAM_BINS = 80


# ---- the picture


def bin_counts(values: Float[np.ndarray, " n"], ends: tuple[float, float], bins: int) -> Int64[np.ndarray, " bins"]:
    """Count values in equal bins between `ends`; those beyond fall in the end bins."""
    return np.histogram(np.clip(values, *ends), bins, ends)[0]


def _draw_groups(title: str, xlabel: str, now: SampleTable, old: np.ndarray, new: np.ndarray, **axis: Any) -> str:
    """A histogram for each group: filled what is proposed, dashed what is saved."""
    groups = groups_present(now.group)[::-1]  # head on top
    rows = [f"{name}\n{(now.group == g).sum():,}" for g, name in groups]
    plot = Plot(title, xlabel, y=(0, len(rows)), rows=rows, **axis)
    scale, back = (np.log10, lambda x: 10**x) if plot.log else (np.asarray, np.asarray)
    ends = tuple(scale(plot.x))
    across = np.repeat(back(np.linspace(*ends, HISTOGRAM_BINS + 1)), 2)[1:-1]
    said = []
    for base, (g, name) in enumerate(groups):
        own = now.group == g
        shares = (bin_counts(scale(values[own]), ends, HISTOGRAM_BINS) / own.sum() for values in (old, new))
        # The square root of the share: rare values stay visible next to a spike.
        saved, proposed = (base + np.repeat(0.7 * np.sqrt(share / share.max()), 2) for share in shares)
        plot.area(across, np.full_like(across, base), proposed, group_colour(g), name=f"{name}, proposed")
        plot.line(across, saved, "soft", 1, "4 3", f"{name}, as saved")
        plot.text(plot.x[1], base + 0.95, f"mean {new[own].mean():.2f}", "end", dy=8)
        said.insert(0, f"{name} mean {new[own].mean():.2f} (saved {old[own].mean():.2f})")
    return plot.svg(", ".join(said))


def draw_temperatures(now: SampleTable, new: WhatIf, push: tuple | None, push_note: str) -> str:
    """Draw tau and w per group, tau against cluster size, and the push on a sample's neighbours: saved, proposed.

    `push`: saved and proposed shares of the neighbours, nearest first, or None.
    """
    highest = max(float(new.tau.max()), float(now.tau.max()))
    top = next((t for t in TAU_TOPS if highest <= 1.02 * t), highest)
    weights = {"x": (1 / 10.5, 10.5), "log": True}
    panels = [
        _draw_groups("Temperature: samples per group", "temperature τ", now, now.tau, new.tau, x=(0, top)),
        _draw_groups("Weight: samples per group", "weight w (log scale)", now, now.weight, new.weight, **weights),
        _draw_sizes(now, new, top),
        _draw_push(push, push_note),
    ]
    entries = [(f"{name}, proposed", group_colour(g), False) for g, name in groups_present(now.group)]
    return figure_html(panels, [*entries, ("as saved in the run", "soft", True)])


def _draw_sizes(now: SampleTable, new: WhatIf, top: float) -> str:
    """Mean tau of each cluster against its size, coloured by its most frequent group."""
    label = np.unique(now.cluster, return_inverse=True)[1].reshape(-1)
    size = np.bincount(label)  # [c]
    frequent = np.bincount(label * 4 + now.group + 1, minlength=4 * len(size)).reshape(-1, 4).argmax(1) - 1
    plot = Plot(
        "Mean τ against cluster size",
        "samples in the cluster (log scale)",
        x=(0.8, max(10.0, 1.3 * size.max())),
        y=(0, top),
        log=True,
    )
    old, proposed = (np.bincount(label, values, len(size)) / size for values in (now.tau, new.tau))
    plot.dots(size, old, ["soft"] * len(size), hollow=True)
    plot.dots(size, proposed, [group_colour(g) for g in frequent], 3)
    low, high = proposed[size.argmin()], proposed[size.argmax()]
    return plot.svg(f"{len(size)} clusters; the smallest has τ {low:.2f}, the largest {high:.2f} (proposed)")


def _draw_push(push: tuple | None, note: str) -> str:
    """Share of the push that the nearest 1, 2, ... neighbours take together."""
    m = 10 if push is None else len(push[0])
    plot = Plot(
        "Push on a sample's neighbours, in %",
        "nearest neighbours together (log scale)",
        x=(0.9, max(10.0, 1.1 * m)),
        y=(0, 102),
        log=True,
    )
    if push is not None:
        at = np.unique(np.geomspace(1, m, 200).astype(np.int64)) - 1  # more than the eye can see
        for shares, pen in zip(push, (("soft", 1.2, "4 3", "as saved"), ("ink", 1.6, "", "proposed"))):
            plot.line(at + 1, np.cumsum(shares)[at], *pen)
    plot.note(note)
    return plot.svg(note.replace("\n", "; "))


# ---- the widget


class TemperatureExplorer(Panel):
    """Show what other temperatures and weights would do to every sample of a saved run, as a widget.

    Sliders for the range of tau, gamma, w_max, headness map and direction are seen immediately; clusters k and merging
    are made again from the saved features. `.config` is ready for `tase.train`, `.selection` holds the chosen sample
    and its neighbours, `.save("samples.csv")` writes `.table`, all samples. `run` is a run or its folder; raises
    RunError where it has no snapshot.
    """

    def __init__(self, run: Run | str | Path):
        super().__init__()
        self.run = run = opened(run)
        self.base = what_if_config(run.config)
        self.images, self.no_images = images_of(run)
        # Of the snapshot and of the sample that were used last.
        self._features = functools.lru_cache(1)(self._read_features)
        self._near = functools.lru_cache(1)(self._neighbours)
        epochs = run.history.epoch.tolist()
        self.now = saved_samples(run, len(epochs) - 1)
        self.n, clusters = len(self.now.tau), len(run.history.cluster_sizes[-1])
        self.saved_clustering = {name: getattr(self.base.guidance, name) for name in CLUSTER_OPTIONS}
        self.saved_clustering["clusters"] = clusters  # also where it was chosen by the number of images (0)
        self._build(epochs)
        self.job = BackgroundJob(self.fail, self._busy)
        self.redraw()

    # ---- what is on the page

    def _build(self, epochs: list[int]) -> None:
        import ipywidgets as w

        text = {"style": {"description_width": "initial"}, "continuous_update": False}
        self.options = OptionControls(self.base, self.base.guidance_class.steerable)
        self.clustering = OptionControls(self.base, CLUSTER_OPTIONS)
        self.clustering["clusters"].value = self.saved_clustering["clusters"]
        self.epoch = w.SelectionSlider(
            options=epochs, value=epochs[-1], description="snapshot at epoch", tooltip="of the saved run", **text
        )
        self.as_saved = w.Button(description="clusters as saved", tooltip="undo the new clustering")
        self.sample = w.BoundedIntText(
            0, 0, self.n - 1, description="sample", tooltip="number of the image whose neighbours are shown", **text
        )
        groups = [(f"any {name}", str(g)) for g, name in groups_present(self.now.group)]
        choices = [("choose …", ""), *groups, ("τ rises most", "up"), ("τ falls most", "down")]
        self.pick = w.Dropdown(options=choices, description="or", tooltip="choose a sample by what it is")
        self.out = w.Text(self._free_folder(), description="train into folder", tooltip="a new folder", **text)
        self.train = w.Button(description="train this setting", button_style="primary", icon="play")
        self.command = w.Textarea(rows=2, description="to copy", tooltip="command that trains this setting", **text)
        self.command.layout.width = "auto"
        self.busy, self.near, self.changed, self.live = w.HTML(), w.HTML(), w.HTML(), w.VBox()
        for name in ("epoch", "sample", "pick", "out", "train", "command", "busy", "near", "changed"):
            getattr(self, name).add_class(f"tase-{name}")
        self._listen()
        settings = [flow_row(*self.options, self.epoch), flow_row(*self.clustering, self.as_saved, self.busy)]
        samples = [flow_row(self.sample, self.pick), self.near, self.changed]
        training = [self.command, flow_row(self.out, self.train), self.live]
        self.put_together("temperature", *settings, self.message, self.picture, *samples, *training)

    def _listen(self) -> None:
        self.options.observe(self.redraw)
        self.clustering.observe(self.recluster)
        calls = {
            self.epoch: self.recluster,
            self.sample: self.redraw,
            self.pick: self.pick_sample,
            self.out: self.redraw,
        }
        for control, call in calls.items():
            control.observe(lambda _, call=call: call(), "value")
        self.as_saved.on_click(lambda _: self.reset_clusters())
        self.train.on_click(lambda _: self.start())

    def _free_folder(self) -> str:
        """A folder next to the run's that does not exist yet."""
        paths = (self.run.path.with_name(f"{self.run.name}-tuned{number}") for number in ("", *range(2, 1000)))
        return str(next(path for path in paths if not path.exists()))

    def _busy(self, on: bool) -> None:
        self.busy.value = "<b>⏳ clustering …</b>" if on else ""

    # ---- what leaves the widget

    @property
    def config(self) -> Config:
        """The run's configuration with these settings, ready for `tase.train`; raises ConfigError for invalid ones."""
        clustering = self.clustering.values
        k = clustering["clusters"]
        check(1 <= k <= self.n, "clusters k", k, f"at least 1 and at most the number of images, {self.n}")
        if k == self.saved_clustering["clusters"]:
            del clustering["clusters"]  # as the run has it
        return override_guidance(self.base, {**self.options.values, **clustering})

    @property
    def table(self) -> pandas.DataFrame:
        """One row per sample: what is saved, and tau and w as proposed (columns tau, w)."""
        import pandas

        now, new, history = self.now, apply_options(self.now, self.config.guidance), self.run.history
        columns: dict[str, Any] = {"index": now.index}
        if history.labels is not None:
            columns["class"] = np.array(history.classes)[history.labels[now.index]]
            columns["group"] = np.array([*GROUPS, ""])[now.group]
        columns |= {"cluster": now.cluster, "headness": now.quantity.a, "saved_tau": now.tau, "saved_w": now.weight}
        return pandas.DataFrame({**columns, "tau": new.tau, "w": new.weight})

    @property
    def selection(self) -> pandas.DataFrame:
        """The rows of the chosen sample and its nearest neighbours as shown, with their cosine.

        Raises RunError where the snapshot does not keep the sample's features.
        """
        near, cosine = self._near(self.now.epoch, self.sample.value)
        rows = self.table.set_index("index").reindex([self.sample.value, *near[:STRIP_LENGTH]])
        return rows.assign(cosine=[1.0, *cosine[:STRIP_LENGTH]]).reset_index()

    # ---- what the run has

    def _read_features(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Features [m, d] of a snapshot, and the numbers [m] of their images."""
        t = self.run.history.epoch.tolist().index(epoch)
        index = self.run.history.feature_index(t)
        if not len(index):
            raise RunError("this snapshot keeps no features (record.features)")
        return self.run.history.features(t), index

    def _neighbours(self, epoch: int, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the other images whose features the snapshot keeps, nearest first, and their cosines."""
        x, index = self._features(epoch)
        own = np.flatnonzero(index == image)
        if not len(own):
            raise RunError(f"epoch {epoch} keeps the features of {len(index):,} images, not of {image}")
        row, cosine = nearest_first(centred(torch.from_numpy(x)).numpy(), int(own[0]))
        return index[row], cosine

    # ---- what happens

    @property
    def own_clusters(self) -> bool:
        """Whether the clusters that the controls show are those that the run saved."""
        return self.clustering.values == self.saved_clustering

    @guarded
    def redraw(self) -> None:
        """Draw a new picture for the settings of this moment."""
        options = self.config.guidance
        new, missing = apply_options(self.now, options), ""
        try:
            near, cosine = self._near(self.now.epoch, self.sample.value)
            push, note = self._push(new, cosine)
            self._show_near(near, cosine)
        except RunError as error:
            push, note, missing = None, "no features kept\nfor this sample", f"No neighbours: {error}."
            self.near.value = ""
        self.picture.value = draw_temperatures(self.now, new, push, note)
        self._show_changed(new)
        self.command.value = command_line(self.config, self.out.value)
        self.say(self._remark(options, new.spread) or missing)

    def _remark(self, options: Any, spread: float) -> str:
        """What one should know about the picture, most important first."""
        if says_nothing(spread, options):
            return "The clusters are all about as large and say nothing about quantity: no guidance from them."
        if options.tau_min == options.tau_max:
            return f"A range of zero width: every sample gets τ = {options.tau_min:g}; only the weights differ."
        if len(self.now.index) < self.n:
            return f"Clustered again from the {len(self.now.index):,} images whose features this snapshot keeps."
        if self.base.method != self.run.config.method:
            return f"The run was trained by {self.run.config.method_title}; proposed is {self.base.method_title}."
        if options.shuffled:
            return "This run permutes τ and w across samples; proposed is what each sample has before that."
        if self.now.quantity.log_sizes is None and options.estimator == "merged" and self.own_clusters:
            return "The sizes of merged clusters are not saved: q is by percentiles of the samples' headness."
        if (self.now.group < 0).all():
            return f"This run has no labels, or no tail among its classes: group colours are off. {self.run.trust_line}"
        return self.run.trust_line

    def _push(self, new: WhatIf, cosine: np.ndarray) -> tuple[tuple, str]:
        """Saved and proposed push of the chosen sample on its neighbours, and what to write next to it."""
        # Images that have a cosine are also among those clustered again.
        now, i = self.now, int(np.flatnonzero(self.now.index == self.sample.value)[0])
        old, proposed = push_shares(cosine, now.tau[i]), push_shares(cosine, new.tau[i])
        count = min(10, len(old))
        factor = self._strength(self.config, new, i) / self._strength(self.run.config, now, i)
        lines = [
            f"τ {now.tau[i]:.2f} → {new.tau[i]:.2f}",
            f"{count} nearest: {old[:count].sum():.0f} → {proposed[:count].sum():.0f} %",
            f"strength: × {factor:.2f}",
        ]
        return (old, proposed), "\n".join(lines)

    @staticmethod
    def _strength(config: Config, samples: SampleTable | WhatIf, i: int) -> float:
        """What the size of sample i's gradient is in proportion to: w c / tau, with c the factor of its loss."""
        tau = torch.tensor(samples.tau[i])
        scale = config.guidance_class.loss_scale(config.guidance, tau)
        return float(samples.weight[i] / tau * (1 if scale is None else scale))

    def _strip(self, title: str, index: Any, captions: list[str]) -> str:
        """Images in a row under a title, or why there are none."""
        if self.images is None or not captions:
            return f"{heading(title)}<i>{escape(self.no_images or 'for no sample')}</i>"
        return heading(title) + picture_strip(self.images, index, captions)

    def _show_near(self, near: np.ndarray, cosine: np.ndarray) -> None:
        shown = [self.sample.value, *near[:STRIP_LENGTH]]
        captions = [f"no. {shown[0]}", *(f"no. {i}\ncos {c:.2f}" for i, c in zip(shown[1:], cosine))]
        title = "The sample and its nearest neighbours (cosine of the backbone's features, mean removed)"
        self.near.value = self._strip(title, shown, captions)

    def _show_changed(self, new: WhatIf) -> None:
        now = self.now
        self._most = dict(zip(("up", "down"), most_changed(now.tau, new.tau)))
        halves = []
        for rows, title in zip(self._most.values(), ("τ rises most", "τ falls most")):
            captions = [f"{now.tau[i]:.2f} →\n{new.tau[i]:.2f}" for i in rows]
            halves.append(f"<div>{self._strip(f'{title}, saved → proposed', now.index[rows], captions)}</div>")
        self.changed.value = f'<div class="tase-flow">{"".join(halves)}</div>'

    @guarded
    def pick_sample(self) -> None:
        """Choose a sample of a group, or the one that changes most."""
        choice, self.pick.value = self.pick.value, ""
        rows = self._most.get(choice, [])
        if choice and choice not in self._most:
            rows = np.random.default_rng(self.sample.value).permutation(np.flatnonzero(self.now.group == int(choice)))
        if len(rows):
            self.sample.value = int(self.now.index[rows[0]])

    @guarded
    def recluster(self) -> None:
        """Make new clusters of the chosen snapshot in the background, then a new picture; or take the saved ones."""
        epochs = opened(self.run).history.epoch.tolist()
        saved, config = saved_samples(self.run, epochs.index(self.epoch.value)), self.config
        if self.own_clusters:
            self.job.cancel()
            self._take(saved)
            return
        x, index = self._features(saved.epoch)
        self.job.start(lambda wanted: reclustered(saved, x, index, config, self.run.history.labels), self._take)

    def _take(self, now: SampleTable) -> None:
        self.now = now
        self.redraw()

    @guarded
    def reset_clusters(self) -> None:
        """Go back to the clusters that the run saved."""
        # Each of the three observes itself and clusters; the last one finds all as saved.
        for name, value in self.saved_clustering.items():
            self.clustering[name].value = value

    @guarded
    def start(self) -> None:
        """Train the setting in a process of its own, watched below."""
        live = LiveTraining(self.config, self.out.value)
        live.start()
        self.live.children = [live.widget]


explore_temperatures = TemperatureExplorer
