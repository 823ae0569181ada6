"""The run explorer: the front end of the report, in a notebook, with the selection at hand in Python."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config
from ..runs import Run
from .base import HERE, BackgroundJob, images_of, opened
from .page import report
from .payload import are_linked, payload

if TYPE_CHECKING:
    import pandas


class RunExplorer:
    """One or two runs over training time, linked; shown where a notebook's cell ends with it.

    `selection` is a table of the images selected on the page, `config` the first run's configuration, `save(path)`
    writes the same page as one HTML file, `refresh()` reads what a run that is still training has written since.
    """

    def __init__(self, run: Run, other: Run | None = None, points: int = 2000, layout: str = "tsne"):
        self.runs = [run] if other is None else [run, other]
        self.points, self.layout = points, layout
        self.job = BackgroundJob(failed=lambda error: None)  # the folder went away meanwhile; what is shown stays
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
        self.job.cancel()
        self._show(payload(self.runs, self.points, ("pca",)))
        if self.layout != "pca":
            kinds = (self.layout, "pca")
            self.job.start(lambda wanted: payload(self.runs, self.points, kinds, wanted=wanted), self._show)

    def _show(self, data: bytes) -> None:
        self.widget.payload = data

    def select(self, images: Iterable[int], other: Iterable[int] = ()) -> None:
        """Select images by their numbers; `other`: those of a second run that was trained on other images."""
        self.widget.selected = [[int(i) for i in images], [int(i) for i in other]]

    @property
    def selection(self) -> pandas.DataFrame:
        """Table of the images selected: run, index, path, class, tau, w, cluster at the epoch shown."""
        import pandas

        selected = [*self.widget.selected, []]  # of runs on the same images the page has one list
        if are_linked(self.runs):
            selected[1] = selected[0]
        return pandas.concat([self._rows(*pair) for pair in zip(self.runs, selected)], ignore_index=True)

    def _rows(self, run: Run, selected: list[int]) -> pandas.DataFrame:
        import pandas

        h, index, (images, _) = run.history, np.asarray(selected, dtype=np.int64), images_of(run)
        t = max(0, int(np.searchsorted(h.epoch, self.epoch, side="right")) - 1)
        paths = None if images is None else images.paths
        return pandas.DataFrame(
            {
                "run": run.name,
                "index": index,
                "path": "" if paths is None else [paths[i] for i in index],
                "class": "" if h.labels is None else np.array(h.classes)[h.labels[index]],
                "tau": h.tau[t][index],
                "w": h.weight[t][index],
                "cluster": h.pseudo_label[t][index],
            }
        )

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
    return RunExplorer(opened(run), None if other is None else opened(other), points=points, layout=layout)
