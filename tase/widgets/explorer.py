"""The run explorer: the front end of the report, in a notebook, with the selection at hand in Python."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config
from ..files import RunError
from ..runs import Run
from .page import HERE, report
from .payload import payload

if TYPE_CHECKING:
    import pandas


class RunExplorer:
    """One or two runs over training time, linked; shown where a notebook's cell ends with it.

    `selection` is a table of the images selected on the page, `config` the first run's configuration, `save(path)`
    writes the same page as one HTML file, `refresh()` reads what a run that is still training has written since.
    """

    def __init__(
        self,
        run: Run,
        other: Run | None = None,
        points: int = 2000,
        layout: str = "tsne",
        threaded: bool = True,
    ):
        self.runs = [run] if other is None else [run, other]
        self.points, self.layout, self.threaded = points, layout, threaded
        self._thread: threading.Thread | None = None
        self._number = 0  # of the latest layout wanted: a newer one ends an older one
        self.widget = _front()
        self.refresh()
        self.widget.epoch = max(int(e) for r in self.runs for e in r.history.epoch)

    @property
    def config(self) -> Config:
        """The first run's configuration, ready for `tase.train`."""
        return self.runs[0].config

    @property
    def epoch(self) -> int:
        """The epoch shown; setting it moves the page there."""
        return self.widget.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.widget.epoch = int(value)

    def refresh(self) -> None:
        """Read the runs again and show them: by PCA immediately, by t-SNE or UMAP when that is done."""
        self._number += 1
        self.widget.payload = payload(self.runs, self.points, ("pca",))
        if self.layout == "pca":
            return
        if not self.threaded:
            self._lay_out(self._number)
            return
        self._thread = threading.Thread(target=self._lay_out, args=(self._number,), daemon=True)
        self._thread.start()

    def _lay_out(self, number: int) -> None:
        def wanted() -> bool:
            return number == self._number

        try:
            data = payload(self.runs, self.points, (self.layout, "pca"), wanted=wanted)
        except RunError:  # the folder went away meanwhile; what is shown stays
            return
        if wanted():
            self.widget.payload = data

    def select(self, images: Iterable[int], other: Iterable[int] = ()) -> None:
        """Select images by their numbers; `other`: those of a second run that was trained on other images."""
        self.widget.selected = [[int(i) for i in images], [int(i) for i in other]]

    @property
    def selection(self) -> pandas.DataFrame:
        """Table of the images selected: run, index, path, class, tau, w, cluster at the epoch shown."""
        import pandas

        columns = ("run", "index", "path", "class", "tau", "w", "cluster")
        parts = [self._rows(run, images) for run, images in zip(self.runs, self._selected())]
        return pandas.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in columns})

    def _selected(self) -> Sequence[list[int]]:
        found = [*self.widget.selected, [], []]
        linked = len({run.environment.get("subset", run.name) for run in self.runs}) == 1
        return [found[0], found[0] if linked else found[1]]

    def _rows(self, run: Run, images: list[int]) -> dict[str, Any]:
        h, index = run.history, np.asarray(images, dtype=np.int64)
        t = max(0, int(np.searchsorted(h.epoch, self.epoch, side="right")) - 1)
        try:
            paths = run.images.paths
        except Exception:  # a source may fail in ways of its own; numbers and temperatures are still known
            paths = None
        return {
            "run": np.full(len(index), run.name, dtype=object),
            "index": index,
            "path": np.array(["" if paths is None else paths[i] for i in index], dtype=object),
            "class": np.array(["" if h.labels is None else h.classes[h.labels[i]] for i in index], dtype=object),
            "tau": h.tau[t][index],
            "w": h.weight[t][index],
            "cluster": h.pseudo_label[t][index],
        }

    def save(self, path: str | Path = "report.html") -> Path:
        """Write the page as one HTML file that needs no kernel and no network."""
        return report(*self.runs, out=path, points=self.points, layout=self.layout, progress=False)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)


def _front() -> Any:
    """The widget: front.js and front.css, the data as bytes, the selection and the epoch that both sides can change."""
    import anywidget
    import traitlets

    class Front(anywidget.AnyWidget):
        _esm = HERE / "front.js"
        _css = HERE / "front.css"
        payload = traitlets.Bytes(b"").tag(sync=True)
        selected = traitlets.List([[], []]).tag(sync=True)  # image numbers, of each set of images
        epoch = traitlets.Int(0).tag(sync=True)

    return Front()


def explore_run(
    run: Run | str | Path, other: Run | str | Path | None = None, points: int = 2000, layout: str = "tsne"
) -> RunExplorer:
    """Explore a run's images over training time in a notebook; `other` shows a second run next to it.

    Selections are linked where both runs were trained on the same images. At most `points` images are laid out, by
    `layout`: tsne, umap or pca. Raises RunError where a run has no snapshot yet.
    """
    opened = [r if isinstance(r, Run) or r is None else Run(r) for r in (run, other)]
    return RunExplorer(*opened, points=points, layout=layout)
