"""Run explorer: the embedding over training time, linked with distributions, courses and images."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from ..runs import Run, RunError
from ._course import QUANTITIES, Course, share_scales
from ._layouts import layouts, normalised, rotation
from ._linked import LinkedPicture
from ._parts import CSS, Images, Job, Message, guarded, heading, trouble
from ._pure import members
from ._scatter import HEIGHT, PictureScatter, WebGLScatter, has_webgl_scatter

SHOWN = 34  # thumbnails of a selection: two rows below two runs, and they fit beside one


class Side:
    """One of the runs: its course, its cloud of points, and its linked picture."""

    def __init__(self, course: Course, webgl: bool, name: str, what: str, epoch: int, on_select):
        self.course, self.linked = course, LinkedPicture(name)
        kind = WebGLScatter if webgl else PictureScatter
        colouring = course.colouring(what, self.snapshot(epoch))
        self.cloud = kind(course.layouts.at(epoch), colouring, name, on_select)
        self.rows = np.zeros(0, dtype=np.int64)

    def snapshot(self, epoch: int) -> int:
        """The last snapshot that is not later than `epoch`."""
        return max(0, int(np.searchsorted(self.course.epoch, epoch, side="right")) - 1)

    def rows_of(self, images: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(self.course.index, images))


class RunExplorer:
    """The controls and what they move; `widget` is what is shown."""

    def __init__(self, run: Run, other: Run | None = None, points: int = 2000, threaded: bool = True):
        self.runs = [run] if other is None else [run, other]
        self.points = points
        self.message = Message()
        self.images = Images(run)
        self.job = Job(lambda error: self.message.say(trouble(error), True), self._busy, threaded)
        self.chosen = np.zeros(0, dtype=np.int64)  # image numbers
        self.linked = other is None or run.environment.get("subset") == other.environment.get("subset")
        self.sides: list[Side] = []
        self._build_controls()
        self._arrange()
        self._open("pca", [layouts(r, "pca", points) for r in self._living()])
        self._listen()
        self.change_kind()

    # ---- what is on the page

    def _living(self) -> list[Run]:
        for run in self.runs:
            if not run.path.exists():
                raise RunError(f"the run's folder {run.path} is gone")
            if not len(run.history):
                raise RunError(f"{run.path} has no snapshot yet: the first comes when its training starts")
        return self.runs

    def _build_controls(self) -> None:
        import ipywidgets as w

        wide = {"description_width": "initial"}
        epochs = sorted({int(e) for run in self._living() for e in run.history.epoch})
        self.epoch = w.SelectionSlider(options=epochs, value=epochs[0], description="epoch", style=wide)
        self.play = w.Play(min=0, max=len(epochs) - 1, interval=900, description="play", tooltip="play over the epochs")
        w.jslink((self.play, "value"), (self.epoch, "index"))
        self.what = w.Dropdown(options=[("temperature τ", "tau")], description="colour by", style=wide)
        kinds = [("t-SNE", "tsne"), ("UMAP", "umap"), ("PCA (linear, quick)", "pca")]
        self.kind = w.Dropdown(options=kinds, description="layout", style=wide)
        self.choice = w.Dropdown(options=[("choose …", "")], description="select", style=wide)
        drawn = [("WebGL (lasso)", "webgl"), ("as a picture", "picture")]
        self.drawn = w.Dropdown(options=drawn if has_webgl_scatter() else drawn[1:], description="draw", style=wide)
        self.reload = w.Button(description="read again", tooltip="read snapshots that are new", icon="refresh")
        self.busy = w.HTML()
        px = {self.epoch: 400, self.what: 230, self.kind: 210, self.choice: 330, self.drawn: 190, self.reload: 110}
        for control, width in px.items():
            control.layout.width = f"{width}px"
        for name in ("epoch", "play", "what", "kind", "choice", "drawn", "reload", "busy"):
            getattr(self, name).add_class(f"tase-{name}")

    def _arrange(self) -> None:
        import ipywidgets as w

        flow = w.Layout(flex_flow="row wrap", align_items="center")
        self.legend, self.side, self.stage, self.pictures = w.HTML(), w.HTML(), w.HBox(layout=flow), w.VBox()
        self.legend.add_class("tase-legend"), self.side.add_class("tase-selection")
        self.stage.layout.align_items = "flex-start"
        self.widget = w.VBox(
            [
                w.HTML(CSS),
                w.HBox([self.play, self.epoch, self.what, self.kind], layout=flow),
                w.HBox([self.choice, self.drawn, self.reload, self.busy], layout=flow),
                self.message.html,
                self.legend,
                self.stage,
                self.pictures,
            ]
        )
        self.widget.add_class("tase-box")
        self.widget.add_class("tase-run")

    def _listen(self) -> None:
        self.epoch.observe(lambda _: self.redraw(), "value")
        self.what.observe(lambda _: self.redraw(), "value")
        self.kind.observe(lambda _: self.change_kind(), "value")
        self.choice.observe(lambda _: self.choose(), "value")
        self.drawn.observe(lambda _: self.reopen(), "value")
        self.reload.on_click(lambda _: self.read_again())

    # ---- what happens

    def _open(self, kind: str, found: list) -> None:
        """Show these layouts."""
        import ipywidgets as w

        if len(found) == 2:
            found[1] = _turned(found[1], found[0]) if self.linked else found[1]
        courses = [Course(run, layout) for run, layout in zip(self.runs, found)]
        share_scales(courses)
        self._options(courses)
        how = (self.drawn.value == "webgl", self.what.value, self.epoch.value)
        self.sides = [
            Side(course, how[0], "ab"[i], *how[1:], lambda rows, i=i: self.lassoed(i, rows))
            for i, course in enumerate(courses)
        ]
        self.shown_kind = kind
        columns = []
        for side in self.sides:
            title = w.HTML(heading(f"{side.course.run.name} ({side.course.run.config.method})"))
            columns.append(w.VBox([title, side.cloud.widget]))
        self.side.layout.width = "535px" if len(columns) == 1 else "1080px"
        self.side.layout.max_height = f"{HEIGHT + 30}px" if len(columns) == 1 else "200px"
        for side in self.sides:
            side.rows = side.rows_of(self.chosen)
        self.redraw(selected=True)
        self.stage.children = [*columns, self.side]
        self.pictures.children = [side.linked.box for side in self.sides]

    def _options(self, courses: list[Course]) -> None:
        """What the runs can be coloured by and selected by; the old choice stays where it is still possible."""
        names = [name for name in QUANTITIES if all(name in course.quantities for course in courses)]
        old = self.what.value if self.sides and self.what.value in names else None
        few = "class" in names and len(courses[0].classes) <= 10
        default = "class" if few else "group" if "group" in names else "tau"
        options = tuple((QUANTITIES[name], name) for name in names)
        if options != self.what.options:
            self.what.options = options
        self.what.value = old or default
        self.choice.options = courses[0].choices()

    def change_kind(self) -> None:
        """Lay out anew in the background; until then the layout shown stays."""
        kind = self.kind.value
        if kind == self.shown_kind:
            self.job.cancel()
            return

        def work(wanted):
            found = []
            for i, run in enumerate(self._living()):
                tell = self._teller(kind, i, wanted)
                found.append(layouts(run, kind, self.points, tell, wanted))
            return found

        self.job.start(work, lambda found: self._open(kind, found))

    def _teller(self, kind: str, i: int, wanted):
        def tell(done: int, total: int) -> None:
            if wanted():
                which = f"run {i + 1} of {len(self.runs)}, " if len(self.runs) > 1 else ""
                name = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}[kind]
                self.busy.value = f"<b>⏳ {name}: {which}snapshot {done} of {total}; until then: PCA</b>"

        return tell

    def _busy(self, on: bool) -> None:
        self.busy.value = "<b>⏳ laying out …</b>" if on else ""

    @guarded
    def reopen(self) -> None:
        """The same layouts, drawn by the other means."""
        self._open(self.shown_kind, [side.course.layouts for side in self.sides])

    @guarded
    def read_again(self) -> None:
        """Take snapshots that were written meanwhile."""
        epochs = sorted({int(e) for run in self._living() for e in run.history.epoch})
        if tuple(epochs) != tuple(self.epoch.options):
            now = self.epoch.value
            self.epoch.options = epochs
            self.epoch.value = now if now in epochs else epochs[-1]
            self.play.max = len(epochs) - 1
        self._open("pca", [layouts(run, "pca", self.points) for run in self.runs])
        self.change_kind()

    @guarded
    def redraw(self, selected: bool = False) -> None:
        """The clouds and pictures for this epoch and colour."""
        what, epoch = self.what.value, self.epoch.value
        for side in self.sides:
            t = side.snapshot(epoch)
            if not selected:  # else the cloud is new, and has them
                side.cloud.show(side.course.layouts.at(epoch), side.course.colouring(what, t))
            else:
                side.cloud.select(side.rows)
            side.linked.show(side.course, t, what, side.rows)
        self.legend.value = legend(self.sides[0].course, what, self.sides[0].snapshot(epoch))
        self._thumbnails()
        self.message.say(self._remark())

    def _remark(self) -> str:
        gone = [str(run.path) for run in self.runs if not run.path.exists()]
        if gone:
            return f"The folder {', '.join(gone)} is gone: what was read before is still shown."
        course = self.sides[0].course
        remarks = []
        if course.label is None:
            remarks.append("This run has no labels: colours by class and group are off.")
        elif (course.group < 0).all():
            remarks.append("All classes have the same number of images: group colours are off.")
        if not self.linked:
            remarks.append("The runs were trained on different images: their selections are not linked.")
        if len(course.index) < course.n:
            remarks.append(f"Shown are the {len(course.index):,} of {course.n:,} images whose features are kept.")
        if len(course.layouts.epoch) < len(course.epoch):
            remarks.append("Some snapshots have no features: there the points stay where they were.")
        return " ".join(remarks)

    @guarded
    def lassoed(self, i: int, rows: np.ndarray) -> None:
        """Points were selected in cloud i."""
        side = self.sides[i]
        if len(rows) == len(side.rows) and np.array_equal(np.sort(rows), np.sort(side.rows)):
            return
        self.choice.value = ""
        self.select(side.course.index[rows], i)

    @guarded
    def choose(self) -> None:
        """A selection from the list."""
        if self.choice.value:
            course = self.sides[0].course
            rows = course.choose(self.choice.value, self.sides[0].snapshot(self.epoch.value))
            self.select(course.index[rows], 0)

    def select(self, images: np.ndarray, among: int = 0) -> None:
        """Select images by their numbers, in all runs where these are the same images."""
        self.chosen = np.asarray(images)
        for i, side in enumerate(self.sides):
            if i == among or self.linked:
                side.rows = np.sort(side.rows_of(self.chosen))
                side.cloud.select(side.rows)
                t = side.snapshot(self.epoch.value)
                side.linked.show(side.course, t, self.what.value, side.rows)
        self._shown_in = among
        self._thumbnails()

    def _thumbnails(self) -> None:
        """Images of the selection, and its groups in words."""
        side = self.sides[getattr(self, "_shown_in", 0)]
        course, rows = side.course, side.rows
        if not len(rows):
            hint = "Select points by drawing round them (double click: none), or from the list above."
            self.side.value = heading("No points selected") + f'<div class="tase-message">{hint}</div>'
            return
        t = side.snapshot(self.epoch.value)
        some = rows[np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int)]
        captions = [f"τ {course.tau[t, i]:.2f}\nw {course.weight[t, i]:.2f}" for i in some]
        more = "" if len(some) == len(rows) else f", {len(some)} of them shown"
        title = heading(f"{len(rows):,} points selected{more}: {counts(course, rows)}")
        self.side.value = title + self.images.strip(course.index[some], captions)


def counts(course: Course, rows: np.ndarray) -> str:
    """How many of the rows are of each group, in words."""
    named = [(name, int((course.group[rows] == g).sum())) for g, name in members(course.group)]
    return ", ".join(f"{name} {count:,}" for name, count in named)


def legend(course: Course, what: str, t: int) -> str:
    """Colours of the points as HTML; names from files are escaped."""
    colouring = course.colouring(what, t)
    if colouring.continuous:
        bar = "linear-gradient(to right, #440154, #3b528b, #21918c, #5ec962, #fde725)"
        mark = f'<i style="width:120px;border-radius:2px;background:{bar}"></i>'
        return (
            f"<span>{QUANTITIES[what]}: {colouring.low:.2f} {mark} {colouring.high:.2f} (1-99 % of all epochs)</span>"
        )
    if len(colouring.palette) > 20:
        return f"<span>{len(colouring.palette)} colours for {QUANTITIES[what]}: they repeat after ten</span>"
    pairs = zip(colouring.palette, colouring.names)
    return "".join(f'<span><i style="background:{c}"></i>{escape(name)}</span>' for c, name in pairs)


def _turned(layout, target):
    """All layouts of one run turned by the rotation that brings its last to the other run's last."""
    common, here, there = np.intersect1d(layout.index, target.index, return_indices=True)
    if len(common) < 3:
        return layout
    turn = rotation(normalised(layout.xy[-1][here]), normalised(target.xy[-1][there]))
    return type(layout)(layout.epoch, layout.index, layout.xy @ turn)


def explore_run(run: Run | str | Path, other: Run | str | Path | None = None, points: int = 2000):
    """Widget: the embedding of a run's images over its snapshots, linked with distributions, courses and images.

    Colours by class, group, pseudo-label, tau, w or loss; lasso or list to select; `other` shows a second run beside
    it, with linked selection where both were trained on the same images. At most `points` images are laid out. Raises
    RunError where a run has no snapshot, or keeps no features.
    """
    opened = [r if isinstance(r, Run) or r is None else Run(r) for r in (run, other)]
    return RunExplorer(*opened, points=points).widget
