"""A run over training time: in a notebook, with the selection at hand in Python, and as one HTML file.

Both show the same front end (front.js, front.css); the file needs no kernel and no network.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config, check_choice
from ..figures.style import THEMES
from ..files import RunError, printable, write_atomic
from ..layouts import LAYOUTS
from ..runs import Run
from .base import HERE, BackgroundJob, images_of, opened
from .payload import are_linked, payload

if TYPE_CHECKING:
    import pandas

MOST_EMBEDDED = 5000  # points that t-SNE and UMAP lay out in bearable time; more are laid out by PCA
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel='icon' href='data:,'>
<style>
{css}</style>
</head>
<body class="tase-page">
<main id="tase"><p class="tase-wait">Opening …</p></main>
{body}
<script type="module">
{js}
</script>
</body>
</html>
"""
DATA = """<section class="tase-figures">{figures}</section>
<script id="tase-data" type="text/plain">{data}</script>"""
# JupyterLab takes the frame out of a notebook that it does not trust, such as a downloaded one; the line is seen then.
FRAME = """<style>iframe + .tase-untrusted {{ display: none }}</style>\
<iframe srcdoc="{page}" style="width:100%;height:{height}px;border:0" loading="lazy"></iframe>\
<p class="tase-untrusted">\
A page is shown here once this cell has run, or the notebook is trusted (View, Activate Command
Palette, <em>Trust Notebook</em>).</p>"""
OPEN = 'openPage(document.getElementById("tase"), document.getElementById("tase-data").textContent);'


# ---- the file


class Page:
    """A page that needs no kernel and no network: it shows itself in a notebook, and `save(path)` writes it."""

    def __init__(self, title: str, script: str, body: str = "", height: int = 900):
        front = {"css": (HERE / "front.css").read_text(), "js": (HERE / "front.js").read_text() + script}
        self.html, self.height = PAGE.format(title=escape(title), body=body, **front), height

    def save(self, path: str | Path) -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.html.encode())
        return Path(path)

    def _repr_html_(self) -> str:
        """The page in a frame, which also works in a notebook exported to HTML; in one not trusted, how to see it."""
        return FRAME.format(page=escape(self.html, quote=True), height=self.height)


def temperature_toy() -> Page:
    """Make notebook 00's toy as a page: sliders for temperatures and weight move points on a circle immediately."""
    colours = json.dumps({name: theme.groups for name, theme in THEMES.items()})
    script = f"const GROUP_COLOURS = {colours};\n" + (HERE / "toy.js").read_text()
    start = 'followNotebook();\nwindow.toy = new Toy(document.getElementById("tase"));'
    return Page("What a temperature and a weight do", script + start, height=640)


def report(
    run: Run | str | Path,
    *others: Run | str | Path,
    out: str | Path = "report.html",
    points: int = 2000,
    layout: str = "tsne",
    progress: bool = True,
) -> Path:
    """Write a page that shows one run, or two side by side, to be chosen among more; returns its path.

    At most `points` images are laid out, by `layout` (tsne, umap or pca; more than 5,000 by pca), for all snapshots so
    that points move and do not jump. Below are the figures that `tase figures` has drawn in the run's folder. A run
    without labels, features or images is shown with what it has, and says what is missing. Raises RunError where a run
    has no snapshot.
    """
    from tqdm.auto import tqdm

    kinds, runs = _kinds(layout, points), [opened(r) for r in (run, *others)]
    with tqdm(bar_format="{desc}", disable=not progress) as bar:
        data = payload(runs, points, kinds, progress=bar.set_description_str)
    return _run_page(runs, data).save(out)


def _kinds(layout: str, points: int) -> tuple[str, ...]:
    """Return the layouts to make: the one wanted, where so many points can be laid out by it, and PCA."""
    check_choice("layout", layout, LAYOUTS)
    return ("pca",) if points > MOST_EMBEDDED or layout == "pca" else (layout, "pca")


def _run_page(runs: Sequence[Run], data: bytes, with_figures: bool = True) -> Page:
    """The page of runs for what `payload` has gathered."""
    pictures = [(r, path) for r in runs for path in sorted((r.path / "figures").glob("*.png")) if with_figures]
    figures = "".join(small_figure(*pair) for pair in pictures)
    body = DATA.format(figures=figures, data=base64.b64encode(gzip.compress(data, 6, mtime=0)).decode())
    return Page(", ".join(run.name for run in runs), OPEN, body)


def small_figure(run: Run, path: Path) -> str:
    """Return one of a run's figures as HTML, as a PNG of few colours and at most 1280 pixels."""
    from PIL import Image

    picture, buffer = Image.open(path).convert("RGB"), io.BytesIO()
    picture.thumbnail((1280, 1280))
    picture.quantize(64).save(buffer, "png", optimize=True)
    name = escape(f"{run.name}: {path.stem.replace('_', ' ')}", quote=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<figure><img alt="{name}" src="{source}"><figcaption>{name}</figcaption></figure>'


# ---- the notebook


class RunExplorer:
    """Explore a run's images over training time in a notebook; `other` shows a second run next to it.

    Selections are linked where both runs keep the same images of one training set. At most `points` images are laid
    out, by `layout`: tsne, umap or pca (more than 5,000 by pca). `selection` is a table of the images selected on the
    page, `config` the first run's configuration, `save(path)` writes the same page as one HTML file, `refresh()` reads
    what a run that is still training has written since. Raises RunError where a run has no snapshot yet, ConfigError
    for an unknown layout.
    """

    def __init__(
        self,
        run: Run | str | Path,
        other: Run | str | Path | None = None,
        points: int = 2000,
        layout: str = "tsne",
    ):
        self.runs = [opened(r) for r in (run, other) if r is not None]
        self.points, self.kinds = points, _kinds(layout, points)
        self.job = BackgroundJob(self._failed)
        self.widget, self._last = _front(), 0
        self.refresh()

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
        before, self._last = self._last, max(int(r.history.epoch[-1]) for r in self.runs)
        if self.epoch >= before:  # it was at the end, and goes on to the new one
            self.epoch = self._last
        if len(self.kinds) > 1:
            self.job.start(lambda wanted: payload(self.runs, self.points, self.kinds, wanted=wanted), self._show)

    def _show(self, data: bytes) -> None:
        self.widget.payload = data

    def _failed(self, error: Exception) -> None:
        # A folder may go away meanwhile: what is shown stays.
        if not isinstance(error, RunError) and all(run.path.exists() for run in self.runs):
            raise error

    def select(self, images: Iterable[int], other: Iterable[int] = ()) -> None:
        """Select images by their numbers; `other`: those of a second run that shows other images."""
        self.widget.selected = [[int(i) for i in images], [int(i) for i in other]]

    @property
    def selection(self) -> pandas.DataFrame:
        """Table of the images selected: run, index, path, class, tau, w, cluster at the epoch shown.

        A method that knows more of each sample has columns for it, such as BCL's `strength`.
        """
        import pandas

        selected = [*self.widget.selected, []]  # of runs that show the same images the page has one list
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
                "path": "" if paths is None else [printable(paths[i]) for i in index],
                "class": "" if h.labels is None else np.array(h.classes)[h.labels[index]],
                "tau": h.tau[t][index],
                "w": h.weight[t][index],
                "cluster": h.pseudo_label[t][index],
                **{name: h.extra(name)[t][index] for name in run.config.guidance_class.SHOWN},
            }
        )

    def save(self, path: str | Path = "report.html") -> Path:
        """Write the page as one HTML file that needs no kernel and no network."""
        return report(*self.runs, out=path, points=self.points, layout=self.kinds[0], progress=False)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and for a page without a kernel the report in a frame, by the layout that is there."""
        bundle, metadata = self.widget._repr_mimebundle_(**options)
        still = _run_page(self.runs, self.widget.payload, with_figures=False)
        return {**bundle, "text/html": still._repr_html_()}, metadata


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


explore_run = RunExplorer
