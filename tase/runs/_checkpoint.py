"""Checkpoints that carry their own checksum; the one before the last is kept."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from ..files import RunError, load_pt, save_pt, writing


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `checkpoint.pt`, its own checksum at its end; the one before it becomes `checkpoint.previous.pt`."""
    current, previous = folder / "checkpoint.pt", folder / "checkpoint.previous.pt"
    fresh = folder / "checkpoint.new.pt"
    save_pt(fresh, state)
    with writing(current):
        if current.exists():
            os.replace(current, previous)
        os.replace(fresh, current)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    state = load_pt(path, "checkpoint of this library")
    if not isinstance(state, dict) or "epoch" not in state:
        raise RunError(f"{path} holds something else than a checkpoint")
    return state


def load_checkpoint(folder: Path, identity: str) -> dict[str, Any] | None:
    """The newest intact checkpoint of the run with this identity, or None where there is none.

    A damaged one is passed over with a warning; raises RunError where all are damaged or of another configuration.
    """
    errors = []
    for name in ("checkpoint.new.pt", "checkpoint.pt", "checkpoint.previous.pt"):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = _read_checkpoint(path)
        except RunError as error:
            errors.append(str(error))
            continue
        if state.get("identity") != identity:
            raise RunError(f"{path} belongs to another configuration ({state.get('identity')}, not {identity})")
        if errors:
            warnings.warn(f"{'; '.join(errors)}; going on from {name}, epoch {state['epoch']}", stacklevel=2)
        return state
    if errors:
        raise RunError("; ".join(errors))
    return None
