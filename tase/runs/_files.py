"""Files that are whole or not there: written to a temporary name and renamed; reading executes nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1


class RunError(RuntimeError):
    """A run's folder cannot be used as asked; the message says why and what to do."""


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to a temporary name in the same folder, flush it to the disk, and rename it to `path`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON; NaN and infinities become null, since JSON has none."""
    write_atomic(path, (json.dumps(_finite(value), indent=1, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def load_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged: not JSON ({error})") from error


def save_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Write arrays as an uncompressed .npz (numbers and text only: nothing in it can execute)."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of `save_npz`; raises RunError where the file is cut off, altered, or holds objects."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:
        raise RunError(f"{path} is damaged: {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that is still being written is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows
