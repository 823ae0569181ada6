"""Widgets for notebooks, thin over saved runs: no science in here.

tase.widgets.explore_temperatures(run)      what other settings would give every sample
tase.widgets.explore_run(run, other)        the embedding over training time, linked with distributions and images
tase.widgets.live_training(config, out)     a training in a process of its own: watched, paused, steered
tase.widgets.temperature_toy()              what a temperature and a weight do to points on a circle, as a page
tase.report(run, other, out="report.html")  what explore_run shows, as one file; tase.rare(run): its lists as a table

Each widget is an object that shows itself, with `.config`, `.save(path)` and, where images are chosen, `.selection`.
"""

from .explorer import Page, RunExplorer, explore_run, report, temperature_toy
from .live import LiveTraining, live_training
from .rarity import rare
from .temperature import TemperatureExplorer, explore_temperatures
