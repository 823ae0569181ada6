"""What the widgets share: controls of a method's options, messages, work in the background, thumbnails."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import shlex
import threading
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config, ConfigError, override
from ..presets import preset
from ..runs import Run
from .svg import WIDGET_CSS

if TYPE_CHECKING:
    import pandas


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

    def __init__(self, config: Config, names: Iterable[str], **common: Any):
        known = {field.name: field for field in dataclasses.fields(config.guidance)}
        options = {name: known[name] for name in names}
        self.controls: dict[tuple[str, ...], Any] = {}
        for name, field in options.items():
            stem = name.removesuffix("_min")
            pair = (name, f"{stem}_max") if name.endswith("_min") and f"{stem}_max" in options else (name,)
            if not any(name in taken for taken in self.controls):
                values = [getattr(config.guidance, part) for part in pair]
                label = OPTION_LABELS.get(stem, stem.replace("_", " "))
                help = "; ".join(f"{part}: {options[part].metadata['help']}" for part in pair)
                control = _option_control(values, field.metadata, description=label, tooltip=help, **common)
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

    def show(self, options: Any) -> None:
        """Set the controls to the values of these options."""
        for names, control in self.controls.items():
            value = tuple(getattr(options, name) for name in names)
            control.value = value if len(names) == 2 else value[0]

    def observe(self, call: Callable[[], None]) -> None:
        for control in self:
            control.observe(lambda _: call(), "value")


def _option_control(values: list[Any], rule: Any, **common: Any) -> Any:
    """The control that fits an option's value (two: a range) and its rule, the metadata of the option."""
    import ipywidgets as w

    value, choices = values[0], rule["choices"]
    common = {"style": {"description_width": "initial"}, **common}
    if isinstance(value, float):
        # Twice the largest value of a range is far enough; a single value has no other to compare with.
        bounds = rule["bounds"]
        low, high = bounds.get("low", 0.0), bounds.get("high", max(1.0, 2 * values[-1] * (3 - len(values))))
        step = 0.01 if high - low <= 1 else 0.05 if high - low <= 5 else 0.5
        low = bounds["above"] + step if "above" in bounds else low
        kind, shown = (w.FloatRangeSlider, tuple(values)) if len(values) == 2 else (w.FloatSlider, value)
        return kind(value=shown, min=low, max=high, step=step, readout_format=".2f", **common)
    common.pop("continuous_update", None)
    if isinstance(value, bool):
        return w.Checkbox(value, indent=False, **common)
    if choices:
        return w.Dropdown(options=list(choices), value=value, **common)
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


# ---- messages, errors, work in the background


class Panel:
    """A widget that shows itself in a notebook: `widget` is what is shown, `picture` the HTML with its figure."""

    widget: Any
    picture: Any
    table: pandas.DataFrame

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        # The HTML is for readers without a kernel: a page on the web shows the picture, though nothing moves.
        still = f'{WIDGET_CSS}<div class="tase-box">{self.picture.value}</div>'
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


def error_line(error: BaseException) -> str:
    """Write an error as one line."""
    if isinstance(error, FileNotFoundError):
        return f"a file of the run is gone: {error.filename}"
    own = type(error).__module__.split(".")[0] == "tase"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if own else f"{type(error).__name__}: {text}"


def guarded(method: Callable) -> Callable:
    """Make an error in a callback of an object with a `message` that message, and keep the widget alive."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.message.say(error_line(error), warning=True)

    return call


class BackgroundJob:
    """One piece of work at a time in a thread, so that the kernel stays usable; a newer request replaces an older."""

    def __init__(self, failed: Callable[[BaseException], None], busy: Callable[[bool], None], threaded: bool = True):
        self.failed, self.busy, self.threaded = failed, busy, threaded
        self.number = 0
        self._lock = threading.Lock()

    def start(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run `work()` and then `done(result)`, unless a newer start came between."""
        self.number += 1
        self.busy(True)
        if self.threaded:
            threading.Thread(target=self._run, args=(self.number, work, done), daemon=True).start()
        else:
            self._run(self.number, work, done)

    def cancel(self) -> None:
        self.number += 1
        self.busy(False)

    def _run(self, number: int, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        with self._lock:
            if number != self.number:
                return
            try:
                finish = functools.partial(done, work())
            except Exception as error:
                finish = functools.partial(self.failed, error)
            if number == self.number:  # no newer request meanwhile
                self.busy(False)
                finish()


# ---- images


def data_url(image: np.ndarray) -> str:
    """Encode a uint8 image [c, h, w] as a data: address (PNG)."""
    from PIL import Image

    array = image[0] if image.shape[0] == 1 else np.moveaxis(image[:3], 0, -1)
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(array))
    picture.thumbnail((64, 64))
    picture.save(buffer, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Images:
    """The training images of a run for thumbnails, loaded when first wanted; None where they are not there."""

    def __init__(self, run: Run):
        self.run, self.why = run, ""

    @functools.cached_property
    def set(self) -> Any:
        try:
            return self.run.images
        except Exception as error:
            self.why = f"no thumbnails, the images cannot be loaded: {error_line(error)}"
            return None

    def strip(self, index: Iterable[int], captions: Iterable[str]) -> str:
        """Show the images `index` in a row, or a line that says why not; captions may have line breaks."""
        if self.set is None:
            return f'<div class="tase-message">{escape(self.why)}</div>'
        cells = []
        for i, caption in zip(map(int, index), captions):
            source, alt = data_url(self.set.images[i].numpy()), escape(self.describe(i), quote=True)
            text = "<br>".join(escape(line) for line in caption.split("\n"))
            cells.append(
                f'<figure><img src="{source}" alt="{alt}" title="{alt}"><figcaption>{text}</figcaption></figure>'
            )
        return f'<div class="tase-thumbs">{"".join(cells)}</div>'

    def describe(self, i: int) -> str:
        """Say number and class of an image in words."""
        if self.set is None or self.set.labels is None:
            return f"image {i}"
        return f"image {i}, class {self.set.classes[int(self.set.labels[i])]}"
