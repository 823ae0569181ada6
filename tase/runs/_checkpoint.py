"""Checkpoints that carry their own checksum; the one before the last is kept."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ._files import RunError, write_atomic, writing

_MARK = b"sha256:"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `checkpoint.pt`, its own checksum at its end; the one before it becomes `checkpoint.previous.pt`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    current, previous = folder / "checkpoint.pt", folder / "checkpoint.previous.pt"
    fresh = folder / "checkpoint.new.pt"
    write_atomic(fresh, payload + _MARK + hashlib.sha256(payload).hexdigest().encode())
    with writing(current):
        if current.exists():
            os.replace(current, previous)
        os.replace(fresh, current)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    payload, mark, digest = data[: -64 - len(_MARK)], data[-64 - len(_MARK) : -64], data[-64:]
    if mark != _MARK or hashlib.sha256(payload).hexdigest().encode() != digest:
        raise RunError(f"{path} is cut off, damaged, or no checkpoint of this library")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever reading makes of foreign bytes
        raise RunError(f"{path} holds something else than a checkpoint") from error
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
