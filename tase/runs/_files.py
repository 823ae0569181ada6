"""Files that are whole or not there: written to a temporary name and renamed; reading executes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import warnings
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2  # of a run's folder; 1 had JSON without checksums, and is read as it is


class RunError(RuntimeError):
    """A run's folder cannot be used as asked; the message says why and what to do."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise RunError, with the file's name and the reason, where it cannot be written: full disk, folder gone."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}; what was saved before is kept") from error


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to a temporary name in the same folder, flush it to the disk, and rename it to `path`.

    Raises RunError where that fails; `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in the folder."""
    for path in folder.rglob(".*.tmp"):
        number = path.name.split(".")[-2]
        try:
            os.kill(int(number) if number.isdigit() else 2**30, 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except OSError:  # a process of someone else
            pass


def append_line(path: Path, value: Any) -> None:
    """Add a line of JSON to a file; raises RunError where that fails."""
    with writing(path), open(path, "a") as file:
        file.write(json.dumps(_finite(value)) + "\n")


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def save_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, an object with its own checksum; NaN and infinities become null, since JSON has none."""
    value = _finite(value)
    if isinstance(value, dict):
        value.pop("checksum", None)
        value["checksum"] = _checksum(value)  # the last of its keys
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def load_json(path: str | Path) -> Any:
    """The value of `save_json` (or of any JSON file); raises RunError where it is cut off or altered."""
    try:
        value = json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(value, dict) or not value:
        return value
    *_, (key, last) = value.items()
    rest = {k: v for k, v in value.items() if k != key}
    if (key == "checksum") != (last == _checksum(rest)):  # also where it is this key that is altered
        raise RunError(f"{path} is damaged: it does not have its checksum (delete that line if you edited it)")
    return rest if key == "checksum" else value


def save_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Write arrays as an uncompressed .npz (numbers and text only: nothing in it can execute)."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def load_npz(path: str | Path, leave: Container[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of `save_npz`, but those of `leave`; RunError where the file is cut off, altered, or holds objects."""
    try:
        with np.load(path, allow_pickle=False) as file:  # its zip has a CRC of each array
            return {name: file[name] for name in file.files if name not in leave}
    except FileNotFoundError:
        raise
    except Exception as error:
        raise RunError(f"{path} is damaged, or no .npz of numbers and texts") from error


def load_kept(path: Path) -> dict[str, Any]:
    """What a .json or .npz file holds that can be made again: empty where it is not there; where damaged, a warning."""
    try:
        found = (load_npz if path.suffix == ".npz" else load_json)(path) if path.exists() else {}
        if isinstance(found, dict):
            return found
        raise RunError(f"{path} is damaged: no JSON object")
    except RunError as error:
        warnings.warn(f"{error}; going on without it", stacklevel=3)
        return {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; what is no object, as a last line that is still being written, is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]
