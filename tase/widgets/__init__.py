"""Widgets for notebooks, thin over saved runs: no science in here.

tase.widgets.explore_temperatures(run)      what other settings would give every sample
tase.widgets.explore_run(run, other)        the embedding over training time, linked with distributions and images
tase.widgets.live_training(config, out)     a training in a process of its own: watched, paused, steered

Each returns an object that shows itself, with `.config`, `.save(path)` and, where images are chosen, `.selection`.
"""

from ._explorer import RunExplorer, explore_run
from ._layouts import Layouts, layouts
from .live import LiveTraining, live_training
from .temperature import TemperatureExplorer, explore_temperatures

__all__ = [
    "Layouts",
    "LiveTraining",
    "RunExplorer",
    "TemperatureExplorer",
    "explore_run",
    "explore_temperatures",
    "layouts",
    "live_training",
]
