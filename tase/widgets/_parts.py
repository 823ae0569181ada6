"""Parts that the widgets share: a picture that is drawn quickly, a line for messages, thumbnails, a background job."""

from __future__ import annotations

import base64
import functools
import io
import threading
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ..figures.style import Figure, style

WIDTH = 1080  # pixels: fits a window of 1280 beside JupyterLab's side bars and cell prompt

CSS = """<style>
.tase-box { max-width: 1090px; }
.tase-box .widget-label, .tase-box label { white-space: nowrap; }
.tase-message { color: var(--jp-ui-font-color1, #222); min-height: 22px; line-height: 20px; }
.tase-warning { border-left: 4px solid #DE8F05; padding-left: 8px; }
.tase-thumbs { display: flex; flex-wrap: wrap; gap: 4px; align-items: flex-start; }
.tase-thumbs figure { margin: 0; text-align: center; font-size: 11px; line-height: 14px; width: 58px;
  color: var(--jp-ui-font-color1, #222); overflow: hidden; }
.tase-thumbs img { width: 44px; height: 44px; object-fit: contain; image-rendering: pixelated;
  background: #fff; border: 1px solid #999; }
.tase-heading { font-weight: 600; line-height: 20px; color: var(--jp-ui-font-color1, #222); }
.tase-legend span { display: inline-block; margin-right: 10px; white-space: nowrap;
  color: var(--jp-ui-font-color1, #222); }
.tase-legend i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 4px; }
.tase-command textarea { font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
</style>"""


class Picture:
    """A figure in an Image widget. What moves is drawn again, on a background that is kept while no axis changes."""

    def __init__(self, width: int, height: int, name: str, dpi: int = 100, sharp: float = 1.5):
        import ipywidgets

        self.figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi * sharp)
        self.canvas = FigureCanvasAgg(self.figure)
        self.image = ipywidgets.Image(format="png", width=width, height=height)
        # A tooltip, which would carry the name to screen readers, breaks the view of images in ipywidgets 8.1.
        self.image.add_class("tase-picture")
        self.image.add_class(f"tase-picture-{name.split()[0]}")
        self.moving: list[Artist] = []
        self._kept: Any = None
        self._frame: Any = None
        self._lock = threading.Lock()

    def moves(self, *artists: Artist) -> None:
        """These artists change from picture to picture."""
        for artist in artists:
            artist.set_animated(True)
            self.moving.append(artist)

    def _background(self) -> None:
        frame = [(ax.get_xlim(), ax.get_ylim(), ax.get_title(loc="left")) for ax in self.figure.axes]
        if self._kept is None or frame != self._frame:
            self.canvas.draw()
            self._kept, self._frame = self.canvas.copy_from_bbox(self.figure.bbox), frame
        self.canvas.restore_region(self._kept)

    def png(self, anew: bool = False) -> bytes:
        """The picture as it is now; `anew`: also what usually stays."""
        from PIL import Image

        with self._lock, style():
            self._kept = None if anew else self._kept
            self._background()
            for artist in self.moving:
                (artist.axes or self.figure).draw_artist(artist)
            buffer = io.BytesIO()
            Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1)
        return buffer.getvalue()

    def show(self, anew: bool = False) -> None:
        self.image.value = self.png(anew)


class Message:
    """One line that says what is missing or wrong; read aloud by screen readers."""

    def __init__(self):
        import ipywidgets

        self.html = ipywidgets.HTML()
        self.html.add_class("tase-message")

    def say(self, text: str = "", warning: bool = False) -> None:
        line = " ".join(str(text).split())
        kind = "tase-warning" if warning and line else ""
        self.html.value = f'<div role="status" aria-live="polite" class="{kind}">{escape(line)}</div>'


def trouble(error: BaseException) -> str:
    """An error as one line."""
    if isinstance(error, FileNotFoundError):
        return f"a file of the run is gone: {error.filename}"
    own = type(error).__module__.split(".")[0] == "tase"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if own else f"{type(error).__name__}: {text}"


def guarded(method: Callable) -> Callable:
    """A callback of an object with a `message`: an error becomes its line, and the widget stays alive."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.message.say(trouble(error), warning=True)

    return call


class Job:
    """One piece of work at a time in a thread, so that the kernel stays usable; a newer request replaces an older."""

    def __init__(self, failed: Callable[[BaseException], None], busy: Callable[[bool], None], threaded: bool = True):
        self.failed, self.busy, self.threaded = failed, busy, threaded
        self.number = 0
        self._lock = threading.Lock()

    def current(self, number: int) -> bool:
        return number == self.number

    def start(self, work: Callable[[Callable[[], bool]], Any], done: Callable[[Any], None]) -> None:
        """Run `work(still_wanted)` and then `done(result)`, unless a newer start came between."""
        self.number += 1
        number = self.number
        self.busy(True)
        if self.threaded:
            threading.Thread(target=self._run, args=(number, work, done), daemon=True).start()
        else:
            self._run(number, work, done)

    def cancel(self) -> None:
        self.number += 1
        self.busy(False)

    def _run(self, number: int, work: Callable, done: Callable) -> None:
        with self._lock:
            if number != self.number:
                return
            try:
                result = work(lambda: number == self.number)
                if number == self.number:
                    done(result)
            except Exception as error:
                if number == self.number:
                    self.failed(error)
            finally:
                if number == self.number:
                    self.busy(False)


def data_url(image: np.ndarray) -> str:
    """A uint8 image [c, h, w] as a data: address (PNG)."""
    from PIL import Image

    array = image[0] if image.shape[0] == 1 else np.moveaxis(image[:3], 0, -1)
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(array))
    picture.thumbnail((64, 64))
    picture.save(buffer, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnails(images: Sequence[np.ndarray], captions: Sequence[str], alts: Sequence[str]) -> str:
    """A row of images with a caption each, as HTML; texts are escaped here. Captions may have line breaks."""
    cells = []
    for image, caption, alt in zip(images, captions, alts):
        text = "<br>".join(escape(line) for line in caption.split("\n"))
        source, alt = data_url(image), escape(alt, quote=True)
        cells.append(f'<figure><img src="{source}" alt="{alt}" title="{alt}"><figcaption>{text}</figcaption></figure>')
    return f'<div class="tase-thumbs">{"".join(cells)}</div>'


def heading(text: str) -> str:
    return f'<div class="tase-heading">{escape(text)}</div>'


class Images:
    """The training images of a run for thumbnails, loaded when first wanted; None where they are not there."""

    def __init__(self, run):
        self.run, self.why = run, ""
        self._set: Any = None

    @property
    def set(self):
        if self._set is None and not self.why:
            try:
                self._set = self.run.images
            except Exception as error:
                self.why = f"no thumbnails, the images cannot be loaded: {trouble(error)}"
        return self._set

    def strip(self, index: Sequence[int], captions: Sequence[str]) -> str:
        """Thumbnails of the images `index`, or a line that says why there are none."""
        images = self.set
        if images is None:
            return f'<div class="tase-message">{escape(self.why)}</div>'
        pictures = [images.images[int(i)].numpy() for i in index]
        return thumbnails(pictures, captions, [self.describe(int(i)) for i in index])

    def describe(self, i: int) -> str:
        """Number and class of an image in words."""
        images = self.set
        if images is None or images.labels is None:
            return f"image {i}"
        return f"image {i}, class {images.classes[int(images.labels[i])]}"
