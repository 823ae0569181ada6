"""Widgets for notebooks, thin over pure functions: no science in here.

tase.widgets.explore_temperatures(run)      what other settings would give every sample
tase.widgets.explore_run(run, other)        the embedding over training time, linked with distributions and images
tase.widgets.live_training(config, out)     a training in a process of its own: watched, paused, steered
"""

from ._temperature import TemperatureExplorer, explore_temperatures

__all__ = ["TemperatureExplorer", "explore_temperatures"]
