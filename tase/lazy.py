"""torch, imported when it is first used: configurations and methods are known, and checked, before that second passes.

from .lazy import torch
"""

from __future__ import annotations

import importlib
from typing import Any


class LazyModule:
    """Stand for a module until one of its names is used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


torch = LazyModule("torch")
