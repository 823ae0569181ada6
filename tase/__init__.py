"""TASE: per-sample temperatures and weights for contrastive learning on long-tailed images, seen over time.

Names are loaded when they are first used, so that `import tase` costs little more than `import torch`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from . import config, guidance  # noqa: F401 (without torch; guidance makes the methods known by name)

__version__ = "0.1.0"

_NAMES_IN = {
    "config": "Config ConfigError ESTIMATORS METHODS PROTOCOLS SOURCES applicable option override",
    "presets": "PRESETS preset",
    "data": "ImageSet Splits class_counts load_images load_splits",
    "views": "two_views",
    "models": "Network encode load_encoder",
    "losses": "nt_xent",
    "pseudo_labels": "PseudoLabels",
    "clustering": "spherical_kmeans",
    "guidance": "Guidance Method TASE build_guidance",
    "runs": "Run RunError",
    "training": "TrainingError train",
    "evaluation": "compare evaluate",
    "widgets": "rare report",
}
_ROOM_OF = {name: room for room, names in _NAMES_IN.items() for name in names.split()}
_ROOMS = frozenset(_NAMES_IN) | {"bench", "figures", "probes", "studies", "widgets"}


__all__ = ["__version__", "use", *_ROOM_OF]


def __getattr__(name: str):
    if name in _ROOM_OF:
        return getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def use(path: str | os.PathLike) -> None:
    """Import a Python file of your own that adds methods, data sources, protocols or estimators to the registries.

    Processes started from here (live training, jobs of a study) import it, too: it joins the variable TASE_IMPORT.
    Raises ConfigError if there is no such file.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise config.ConfigError(f"{path} is no file: a Python file that adds methods, sources or protocols")
    known = [entry for entry in os.environ.get("TASE_IMPORT", "").split(os.pathsep) if entry]
    os.environ["TASE_IMPORT"] = os.pathsep.join(dict.fromkeys([*known, str(path)]))
    name = "tase_user" + "".join(c if c.isalnum() else "_" for c in str(path))  # the same in every process
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]  # or the next call, of the mended file, would do nothing
            raise


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])


for _path in filter(None, os.environ.get("TASE_IMPORT", "").split(os.pathsep)):
    use(_path)
