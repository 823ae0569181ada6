"""TASE: per-sample temperatures and weights for contrastive learning on long-tailed images, seen over time.

Names are loaded when they are first used, so that `import tase` costs little more than `import torch`.
"""

from __future__ import annotations

import importlib

from . import guidance  # noqa: F401 (without torch: it makes the methods known by name)

__version__ = "0.1.0"

_ROOM_OF = {
    "Config": "config",
    "ConfigError": "config",
    "ESTIMATORS": "config",
    "METHODS": "config",
    "PROTOCOLS": "config",
    "SOURCES": "config",
    "applicable": "config",
    "option": "config",
    "override": "config",
    "PRESETS": "presets",
    "preset": "presets",
    "ImageSet": "data",
    "Splits": "data",
    "class_counts": "data",
    "load_images": "data",
    "load_splits": "data",
    "two_views": "views",
    "Network": "models",
    "encode": "models",
    "load_backbone": "models",
    "nt_xent": "losses",
    "PseudoLabels": "pseudo_labels",
    "spherical_kmeans": "pseudo_labels",
    "Guidance": "guidance",
    "Method": "guidance",
    "TASE": "guidance",
    "build_guidance": "guidance",
    "Run": "runs",
    "RunError": "runs",
    "TrainingError": "training",
    "train": "training",
    "compare": "evaluation",
    "evaluate": "evaluation",
}
_ROOMS = frozenset(_ROOM_OF.values()) | {"bench", "figures", "probes", "studies", "widgets"}


__all__ = ["__version__", *_ROOM_OF]


def __getattr__(name: str):
    if name in _ROOM_OF:
        return getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
