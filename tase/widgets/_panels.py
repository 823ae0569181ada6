"""The temperature explorer's picture: four panels whose artists are moved, not made anew."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from ..figures.style import FAINT, GROUP_COLOURS, INK, style
from ._parts import WIDTH, Picture
from ._pure import Clusters, Moment, Proposal, clusters_of, means, members, shares

OLD = "#8A8A8A"
TAU_TOPS = (0.3, 0.6, 1.05)  # ends of the temperature axes: few, so that the axes seldom change
WEIGHTS = (0.1, 0.2, 0.5, 1, 2, 5, 10)


def colour_of(group: int) -> str:
    return GROUP_COLOURS[group] if 0 <= group < 3 else "#555555"


class TemperaturePicture:
    """tau and w per group, tau against cluster size, and the push on a sample's neighbours: saved and proposed."""

    def __init__(self, now: Moment):
        with style():
            self.picture = Picture(WIDTH, 330, "temperatures and weights per group, cluster sizes, push on neighbours")
            self.tau, self.weight, self.size, self.push = self.picture.figure.subplots(
                1, 4, width_ratios=(1.15, 1, 1, 1)
            )
            self.picture.figure.subplots_adjust(left=0.065, right=0.99, bottom=0.15, top=0.84, wspace=0.27)
            self.groups = members(now.group)
            counts = {g: int((now.group == g).sum()) for g, _ in self.groups}
            self.tau_rows = [_Row(self, self.tau, i, g) for i, (g, _) in enumerate(self.groups)]
            self.weight_rows = [_Row(self, self.weight, i, g) for i, (g, _) in enumerate(self.groups)]
            self._label_rows(counts)
            self._prepare_size()
            self._prepare_push()
            self._legend()
        self.set_moment(now)

    def _label_rows(self, counts: dict[int, int]) -> None:
        names = [f"{name}\n{counts[g]:,}" for g, name in self.groups]
        ticks = [len(names) - 1 - i + 0.35 for i in range(len(names))]
        self.tau.set(yticks=ticks, yticklabels=names, xlabel="temperature τ", title="Temperature: samples per group")
        self.weight.set(yticks=[], xlabel="weight w (log scale)", title="Weight: samples per group")
        marks = [str(w) for w in WEIGHTS]
        self.weight.set(xlim=(-1.05, 1.05), xticks=np.log10(WEIGHTS), xticklabels=marks)
        for ax in (self.tau, self.weight):
            ax.set_ylim(-0.05, len(names) + 0.05)
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)

    def _prepare_size(self) -> None:
        ax = self.size
        ax.set(xscale="log", xlabel="samples in the cluster (log scale)", ylabel="mean τ of the cluster")
        ax.set_title("Temperature against cluster size")
        plain_log(ax.xaxis)
        ax.grid(color=FAINT, lw=0.4)
        self.old_dots = ax.scatter([], [], s=14, facecolor="none", edgecolor=OLD, lw=0.7)
        self.new_dots = ax.scatter([], [], s=20, lw=0, alpha=0.9)
        self.picture.moves(self.old_dots, self.new_dots)

    def _prepare_push(self) -> None:
        ax = self.push
        ax.set(xscale="log", xlabel="neighbours, nearest first (log scale)", ylabel="% of the sample's push they take")
        ax.set_title("Push on a sample's neighbours")
        ax.set(ylim=(0, 102))
        plain_log(ax.xaxis)
        ax.grid(color=FAINT, lw=0.4)
        (self.old_push,) = ax.plot([], [], color=OLD, lw=1.2, ls="--")
        (self.new_push,) = ax.plot([], [], color=INK, lw=1.6)
        self.push_text = ax.text(0.03, 0.97, "", transform=ax.transAxes, va="top", fontsize=7.5, linespacing=1.4)
        self.picture.moves(self.old_push, self.new_push, self.push_text)

    def _legend(self) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        handles = [Patch(color=colour_of(g), alpha=0.75, label=f"{name}, proposed") for g, name in self.groups]
        handles.append(Line2D([], [], color=OLD, lw=1.2, ls="--", label="as saved in the run"))
        self.picture.figure.legend(handles=handles, loc="upper right", ncols=4, borderaxespad=0.2)

    def set_moment(self, now: Moment) -> None:
        """Another snapshot, or other clusters."""
        self.now, self.clusters = now, clusters_of(now)
        self.size.set_xlim(0.8, max(10, 1.3 * self.clusters.size.max()))
        self.new_dots.set_facecolor([colour_of(g) for g in self.clusters.group])
        self._saved = self._histograms(now.tau, now.weight)
        _move(self.old_dots, self.clusters, now.tau)

    def _histograms(self, tau: np.ndarray, weight: np.ndarray) -> tuple:
        """Shares and means of both quantities per group."""
        ids, log_weight = [g for g, _ in self.groups], np.log10(weight)
        group = self.now.group
        at = (shares(tau, group, _TAU_EDGES, ids), shares(log_weight, group, _WEIGHT_EDGES, ids))
        return at, (means(tau, group, ids), means(weight, group, ids))

    def set_proposal(self, new: Proposal) -> None:
        """Move everything that depends on the settings."""
        (old_tau, old_weight), _ = self._saved
        (new_tau, new_weight), (tau_means, weight_means) = self._histograms(new.tau, new.weight)
        highest = max(float(new.tau.max()), float(self.now.tau.max()))
        top = next((t for t in TAU_TOPS if highest <= t), TAU_TOPS[-1])
        self.tau.set_xlim(0, top), self.size.set_ylim(0, top)
        for i, row in enumerate(self.tau_rows):
            row.set(_TAU_EDGES, new_tau[i], old_tau[i], tau_means[i])
        for i, row in enumerate(self.weight_rows):
            row.set(_WEIGHT_EDGES, new_weight[i], old_weight[i], weight_means[i])
        _move(self.new_dots, self.clusters, new.tau)

    def set_push(
        self, old: Float[np.ndarray, " m"] | None, new: Float[np.ndarray, " m"] | None, text: str = ""
    ) -> None:
        """Shares of the push in % on the neighbours, nearest first; None where there are no features."""
        for line, share in ((self.old_push, old), (self.new_push, new)):
            share = np.zeros(0) if share is None else share
            at = _ranks(len(share))
            line.set_data(at + 1, np.cumsum(share)[at] if len(at) else at)
        self.push.set_xlim(0.9, 1.1 * max(10, 0 if new is None else len(new)))
        self.push_text.set_text(text)


_TAU_EDGES = np.linspace(0, 1.0, 101)
_WEIGHT_EDGES = np.linspace(-1.02, 1.02, 69)


class _Row:
    """One group's histogram: filled the proposal, outlined what is saved; both scaled to the row's height."""

    def __init__(self, owner: TemperaturePicture, ax: Axes, i: int, group: int):
        self.base = float(len(owner.groups) - 1 - i)
        edges = np.array([0.0, 1.0])
        self.new = ax.stairs([0], edges, baseline=self.base, fill=True, color=colour_of(group), alpha=0.75)
        self.old = ax.stairs([0], edges, baseline=self.base, color=OLD, lw=1.0, ls="--")
        self.text = ax.text(0.99, self.base + 0.92, "", ha="right", va="top", transform=ax.get_yaxis_transform())
        self.text.set_fontsize(7.5)
        ax.axhline(self.base, color=FAINT, lw=0.6, zorder=0)
        owner.picture.moves(self.new, self.old, self.text)

    def set(self, edges: np.ndarray, new: np.ndarray, old: np.ndarray, mean: float) -> None:
        for patch, share in ((self.new, new), (self.old, old)):
            height = 0.68 * np.sqrt(share / max(share.max(), 1e-9))  # square root: the rare stay visible
            patch.set_data(self.base + height, edges, self.base)
        self.text.set_text("" if np.isnan(mean) else f"mean {mean:.2f}")


def _move(dots, clusters: Clusters, values: np.ndarray) -> None:
    dots.set_offsets(np.stack([clusters.size, clusters.mean(values)], 1))


def _ranks(m: int) -> np.ndarray:
    """At most 200 ranks, evenly spaced on a log scale."""
    return np.unique(np.geomspace(1, m, 200).astype(np.int64)) - 1 if m else np.zeros(0, dtype=np.int64)


def plain_log(axis) -> None:
    """Plain numbers on a logarithmic axis."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())
