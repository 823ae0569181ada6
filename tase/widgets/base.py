"""What the widgets share: controls of a method's options, messages, work in the background, a run's images."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import shlex
import threading
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config, ConfigError, override
from ..data import ImageSet
from ..figures.style import THEMES
from ..files import RunError
from ..presets import preset
from ..runs import Run

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image
    from torch import Tensor

HERE = Path(__file__).parent


@functools.cache
def widget_css() -> str:
    """Return the style of the notebook widgets, with the figures' colours of head, mid and tail."""
    light, dark = (
        "".join(f"--tase-{i}: {colour}; " for i, colour in enumerate(THEMES[name].groups)) for name in ("light", "dark")
    )
    groups = f".tase-box {{ {light}}} [data-jp-theme-light='false'] .tase-box, .vscode-dark .tase-box {{ {dark}}}"
    return f"<style>{(HERE / 'widget.css').read_text()}{groups}</style>"


def heading(text: str) -> str:
    return f'<div class="tase-heading">{escape(text)}</div>'


# ---- controls of a method's options


OPTION_LABELS = {  # what a control is called; other options have their own name
    "tau": "temperature range τ",
    "gamma": "strength of the weight γ",
    "w_max": "largest weight w_max",
    "reversed": "reversed: head low, tail high",
    "clusters": "clusters k",
    "estimator": "quantity from",
    "merge_to": "merge to (0: many)",
}


class OptionControls:
    """One control for each of `names` among a configuration's guidance options; X_min and X_max make one range."""

    def __init__(self, config: Config, names: Sequence[str], **common: Any):
        rules = {field.name: field.metadata for field in dataclasses.fields(config.guidance)}
        self.controls: dict[tuple[str, ...], Any] = {}
        for name in names:
            stem, _, end = name.rpartition("_")
            pair = (f"{stem}_min", f"{stem}_max")
            if not (end in ("min", "max") and set(pair) <= set(names)):
                stem, pair = name, (name,)
            if pair not in self.controls:
                values = [getattr(config.guidance, part) for part in pair]
                label = OPTION_LABELS.get(stem, stem.replace("_", " "))
                help = "; ".join(f"{part}: {rules[part]['help']}" for part in pair)
                control = _option_control(values, rules[pair[0]], description=label, tooltip=help, **common)
                control.add_class(f"tase-{stem.replace('_', '-')}")
                self.controls[pair] = control

    def __iter__(self):
        return iter(self.controls.values())

    def __getitem__(self, name: str) -> Any:
        """The control of an option."""
        return next(control for names, control in self.controls.items() if name in names)

    @property
    def values(self) -> dict[str, Any]:
        """What the controls show: option -> value."""
        found: dict[str, Any] = {}
        for names, control in self.controls.items():
            shown = control.value if len(names) == 2 else (control.value,)
            # Of a dragged slider come values like 0.30000000000000004.
            found.update({name: round(v, 10) if isinstance(v, float) else v for name, v in zip(names, shown)})
        return found

    def observe(self, call: Callable[[], None]) -> None:
        for control in self:
            control.observe(lambda _: call(), "value")


def _option_control(values: list[Any], rule: Any, **common: Any) -> Any:
    """The control that fits an option's value (two: a range) and its rule, the metadata of the option."""
    import ipywidgets as w

    value = values[0]
    common = {"style": {"description_width": "initial"}, **common}
    if isinstance(value, float):
        # Twice the largest value of a range is far enough; a single value has no other to compare with.
        bounds = rule["bounds"]
        low, high = bounds.get("low", 0.0), bounds.get("high", max(1.0, 2 * values[-1] * (3 - len(values))))
        step = 0.01 if high - low <= 1 else 0.05 if high - low <= 5 else 0.5
        while "above" in bounds and bounds["above"] + step > values[0]:
            step /= 10
        low = bounds["above"] + step if "above" in bounds else low
        form = ".2f" if step >= 0.01 else ".3g"
        kind, shown = (w.FloatRangeSlider, tuple(values)) if len(values) == 2 else (w.FloatSlider, value)
        return kind(value=shown, min=low, max=high, step=step, readout_format=form, **common)
    common.pop("continuous_update", None)
    if isinstance(value, bool):
        return w.Checkbox(value, indent=False, **common)
    if rule["choices"]:
        return w.Dropdown(options=list(rule["choices"]), value=value, **common)
    return w.IntText(value, continuous_update=False, **common)


def override_guidance(config: Config, options: dict[str, Any]) -> Config:
    """Return the configuration with these guidance options; raises ConfigError for invalid values."""
    return override(config, {f"guidance.{name}": value for name, value in options.items()})


# ---- the line that trains a configuration


def train_words(config: Config, out: str | Path, resume: bool = False) -> list[str]:
    """Return the words after `tase` that train `config` into `out`; raises ConfigError where no words can."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    base = preset(config.preset, config.method, config.seed).flat()
    settings = {name: text(value) for name, value in config.flat().items() if value != base[name]}
    if preset(config.preset, config.method, config.seed, settings) != config:
        raise ConfigError("this configuration cannot be written as a command line")
    words = ["train", "--preset", config.preset, "--method", config.method, "--seed", str(config.seed)]
    words += ["--set", *(f"{name}={value}" for name, value in settings.items())] if settings else []
    return [*words, "--out", str(out), *(["--resume"] if resume else [])]


def command_line(config: Config, out: str | Path) -> str:
    """Return the line to copy into a shell."""
    return shlex.join(["tase", *train_words(config, out)])


# ---- what is on the page, errors, work in the background


class Panel:
    """A widget that shows itself in a notebook: `widget` is what is shown, `picture` the HTML with its figure.

    `message` is one line that says what is missing or wrong; screen readers read it aloud.
    """

    widget: Any
    table: pandas.DataFrame

    def __init__(self):
        import ipywidgets

        self.message, self.picture = ipywidgets.HTML(), ipywidgets.HTML()
        self.message.add_class("tase-message")

    def put_together(self, kind: str, *children: Any) -> None:
        """Make `widget` of what stands below each other."""
        import ipywidgets

        self.widget = ipywidgets.VBox([ipywidgets.HTML(widget_css()), *children])
        self.widget.add_class("tase-box")
        self.widget.add_class(f"tase-{kind}")

    def say(self, text: str = "", warning: bool = False) -> None:
        kind = "tase-warning" if warning and text else ""
        self.message.value = f'<div role="status" aria-live="polite" class="{kind}">{escape(text)}</div>'

    def fail(self, error: Exception) -> None:
        """Say what went wrong."""
        self.say(error_line(error), warning=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        # The HTML is for readers without a kernel: a page on the web shows the picture, though nothing moves.
        still = f'{widget_css()}<div class="tase-box">{self.picture.value}</div>'
        return {**self.widget._repr_mimebundle_(**kwargs), "text/html": still}

    def save(self, path: str | Path) -> Path:
        """Write `table` as CSV; returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.table.to_csv(path, index=False)
        return path


def flow_row(*children: Any) -> Any:
    """Put controls in a row that wraps on a narrow page."""
    import ipywidgets

    row = ipywidgets.Box(children)
    row.add_class("tase-flow")
    return row


def error_line(error: Exception) -> str:
    """Write an error as one line; its type only where it is none of this package."""
    own = type(error).__module__.split(".")[0] == "tase"
    return " ".join(f"{'' if own else f'{type(error).__name__}: '}{error}".split())


def guarded(method: Callable) -> Callable:
    """Make an error in a callback of a Panel its message, and keep the widget alive."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.fail(error)

    return call


class BackgroundJob:
    """One piece of work at a time in a thread, so that the kernel stays usable; a newer request replaces an older."""

    def __init__(self, failed: Callable[[Exception], None], busy: Callable[[bool], None] = lambda on: None):
        self.failed, self.busy = failed, busy
        self.number = 0  # of the newest request
        self._lock = threading.Lock()

    def start(self, work: Callable[[Callable[[], bool]], Any], done: Callable[[Any], None]) -> None:
        """Run `done(work(wanted))`; `wanted()` is False, and `done` left out, where a newer request came meanwhile."""
        self.cancel()
        self.busy(True)
        threading.Thread(target=self._run, args=(self.number, work, done), daemon=True).start()

    def cancel(self) -> None:
        self.number += 1
        self.busy(False)

    def _run(self, number: int, work: Callable, done: Callable[[Any], None]) -> None:
        def wanted() -> bool:
            return number == self.number

        with self._lock:
            if not wanted():
                return
            try:
                finish = functools.partial(done, work(wanted))
            except Exception as error:
                finish = functools.partial(self.failed, error)
            if wanted():
                finish()
                self.busy(False)


# ---- a run and its images


def opened(run: Run | str | Path) -> Run:
    """Open a run by its folder where it is not open; raises RunError where it has no snapshot to show."""
    run = run if isinstance(run, Run) else Run(run)
    if not run.path.exists():
        raise RunError(f"the run's folder {run.path} is gone")
    if not len(run.history):
        raise RunError(f"{run.path} has no snapshot yet: the first comes when its training starts")
    return run


def images_of(run: Run) -> tuple[ImageSet | None, str]:
    """Return the run's training images, or None and a sentence that says why there are no pictures."""
    try:
        images, whole = run.images, run.splits.train
    except Exception as error:  # a source may fail in ways of its own; the rest can still be shown
        return None, f"No pictures: the images cannot be loaded here ({error_line(error)[:160]})."
    if (run.environment.get("subset") or whole.hash) == whole.hash and len(images) == run.history.tau.shape[1]:
        return images, ""
    return None, "No pictures: the images are others than those of the training."


def picture_of(image: Tensor, side: int) -> Image:
    """A uint8 image [c, h, w] as a Pillow image in colour of side x side pixels."""
    from PIL import Image

    array = np.asarray(image)
    array = np.repeat(array[:1], 3, 0) if array.shape[0] < 3 else array[:3]
    picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(array, 0, -1)))
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.LANCZOS)


def picture_strip(images: ImageSet, index: Iterable[int], captions: Iterable[str]) -> str:
    """Show the images `index` in a row; captions may have line breaks."""
    cells = []
    for i, caption in zip(map(int, index), captions):
        pixels, buffer = images.images[i], io.BytesIO()
        picture_of(pixels, min(64, max(pixels.shape[1:]))).save(buffer, "png", compress_level=1)
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        kind = "" if images.labels is None else f", class {images.classes[int(images.labels[i])]}"
        alt, text = escape(f"image {i}{kind}", quote=True), escape(caption).replace("\n", "<br>")
        cells.append(f'<figure><img src="{source}" alt="{alt}" title="{alt}"><figcaption>{text}</figcaption></figure>')
    return f'<div class="tase-thumbs">{"".join(cells)}</div>'
