"""Files that are whole or not there, locks and claims. Reading a file never executes what is in it.

A file is written to a temporary name and renamed, so a reader never sees half of one. Checksums show damage: a
JSON object has its own, .pt files have one at their end, .npz files one of each array (their zip's CRC).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

PT_MARK = b"sha256:"  # a .pt file ends with these 7 and 64 hexadecimal digits; torch.load reads it nonetheless
# Without a sign of life, then another machine takes a claim over; NFS shows a time up to 60 s late.
CLAIM_SECONDS = 180.0


class RunError(RuntimeError):
    """A run's folder or file cannot be used; the message says why and what to do."""


class InUse(RunError):
    """Another process works there; it may be free later."""


# -------------------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError (full disk, folder gone) into a RunError with the file's name and the reason."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}; what was saved before is kept") from error


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to a temporary name in the same folder, flush it to the disk, and rename it to `path`.

    Raises RunError if that fails; `path` is then as it was.
    """
    path = Path(path)
    temporary = temporary_name(path)
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def printable(name: object) -> str:
    """Return the name of a file or class as text for tables and pages: names on a disk may be any bytes."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def temporary_name(path: Path) -> Path:
    """Return the name under which this process writes what becomes `path`; `tidy` removes it if the process is killed.

    It names the machine, too: others may share the folder, where a process of this number is unknown.
    """
    return path.with_name(f".{path.name}.{_mark()}.{os.getpid()}.tmp")


def _mark() -> str:
    """Short for the machine's name."""
    return f"{zlib.crc32(_machine().encode()):08x}"


def tidy(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote in the folder.

    Those of other machines, whose processes cannot be asked, go a day after they were last written to.
    """
    here = _mark()
    for path in folder.rglob(".*.tmp"):
        *_, machine, pid, _end = ("", "", *path.name.split("."))
        try:
            if machine != here and time.time() - path.stat().st_mtime < 86400:
                continue
            # Signal 0 only looks whether the process is there.
            os.kill(int(pid) if machine == here and pid.isdigit() else 2**30, 0)
        except FileNotFoundError:  # renamed or removed meanwhile
            pass
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except OSError:  # a process of another user: it may still write
            pass


@contextlib.contextmanager
def hold(path: str | Path, wait: float = 1.0) -> Iterator[None]:
    """Hold the lock file `path`; the system frees it when the process ends, however it ends.

    Waits up to `wait` seconds: `is_held` takes the lock for a moment. Raises InUse if another holder keeps it, and
    RunError if the file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(path), thread_local=False)
    with writing(Path(path)):
        try:
            lock.acquire(timeout=wait)
        except Timeout as error:
            folder = Path(path).parent
            raise InUse(f"{folder} is in use by another process; wait for it, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def is_held(path: str | Path) -> bool | None:
    """Tell whether some process holds the lock file `path`; None if this user may not know (it cannot be written)."""
    from filelock import FileLock, Timeout

    try:
        if Path(path).exists():
            with FileLock(str(path), timeout=0):
                pass
        return False
    except Timeout:
        return True
    except OSError:
        return None


# --------------------------------------------------------------------------------------------------------------- claims


class Claim:
    """Hold the right to do something, among the processes of all machines that share a folder: `with Claim(path):`.

    Claim number g is the file `path.g`. It is made with O_EXCL, which is atomic on NFS (version 3 and later) as well,
    where a flock may not be. The highest number counts. Who finds that it was let go, that its process is gone (on the
    same machine), or that it has shown no sign of life for CLAIM_SECONDS (on another one), makes number g + 1: exactly
    one can. No number comes back, so that nobody takes a new claim for the old one that was found dead. Times are those
    of the file system, never of two machines' clocks.
    """

    def __init__(self, path: str | Path):
        self.path, self.number, self._end = Path(path), 0, threading.Event()

    def __enter__(self) -> Claim:
        """Take the claim; raises InUse if another holds it, RunError if the folder cannot be written."""
        latest = self._latest()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if latest and not self._is_over(latest):
                raise InUse(f"{self.path} is held by another process")
            try:
                descriptor = os.open(self._file(latest + 1), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                raise InUse(f"{self.path} is held by another process") from None
            with open(descriptor, "w") as file:
                own = psutil.Process()
                json.dump({"host": _machine(), "pid": own.pid, "begun": own.create_time()}, file)
        self.number, self._end = latest + 1, threading.Event()
        threading.Thread(target=self._live, args=(self._end,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._end.set()
        with contextlib.suppress(RunError):  # a full disk: it is free when this process has ended
            write_atomic(self._file(self.number), b"{}")

    @property
    def owner(self) -> dict[str, Any] | None:
        """Host and process that hold it now; None where it is free."""
        latest = self._latest()
        return (self._read(latest)[0] or {"host": "?"}) if latest and not self._is_over(latest) else None

    @property
    def lost(self) -> bool:
        """Whether another has taken it over: this process was suspended, or could not reach the file system."""
        return self._latest() != self.number

    def remove(self) -> None:
        """Remove all its files; for what is done, so that a claim has no meaning any more."""
        for number in self._numbers():
            self._file(number).unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _numbers(self) -> list[int]:
        prefix, folder = f"{self.path.name}.", self.path.parent
        names = os.listdir(folder) if folder.exists() else ()
        ends = (name[len(prefix) :] for name in names if name.startswith(prefix))
        return [int(end) for end in ends if end.isdigit()]

    def _latest(self) -> int:
        return max(self._numbers(), default=0)

    def _read(self, number: int) -> tuple[dict[str, Any] | None, float]:
        """Read who holds it ({}: it was let go, None: still being written) and the time of the last sign of life."""
        with open(self._file(number)) as file:  # opened first: then NFS asks the server for the time
            text, seen = file.read(), os.fstat(file.fileno()).st_mtime
        with contextlib.suppress(ValueError):
            return json.loads(text), seen
        return None, seen

    def _is_over(self, number: int) -> bool:
        try:
            owner, seen = self._read(number)
        except FileNotFoundError:  # removed just now: look again
            return False
        if owner is not None and owner.get("host") in (None, _machine()):
            return not (owner and _lives(owner["pid"], owner["begun"]))
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".now") as now:
            return os.fstat(now.fileno()).st_mtime - seen > CLAIM_SECONDS

    def _live(self, end: threading.Event) -> None:
        """Show signs of life, several within the time after which others would take the claim over."""
        while not end.wait(CLAIM_SECONDS / 9):
            with contextlib.suppress(OSError):
                os.utime(self._file(self.number))


def _machine() -> str:
    """Name the machine and, as containers may share its name, the space that its process numbers are from."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{space.stat().st_ino}" if space.exists() else socket.gethostname()


def _lives(pid: int, begun: float) -> bool:
    """Tell whether the process of this machine that began at that time is still there."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - begun) < 5
    except psutil.NoSuchProcess:
        return False


# ----------------------------------------------------------------------------------------------------------------- JSON


def save_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, an object with its own checksum; NaN and infinities become null, since JSON has none."""
    value = _finite(value)
    if isinstance(value, dict):
        value.pop("checksum", None)
        value["checksum"] = _checksum(value)  # the last of its keys
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def load_json(path: str | Path) -> Any:
    """Read the value of `save_json`, or any JSON file; raises RunError if it is cut off or altered."""
    try:
        value = json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(value, dict) or not value:
        return value
    *_, (key, last) = value.items()
    rest = {k: v for k, v in value.items() if k != key}
    if (key == "checksum") != (last == _checksum(rest)):  # also if the damage is in this key
        raise RunError(f"{path} is damaged: it does not have its checksum (delete that line if you edited it)")
    return rest if key == "checksum" else value


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def append_line(path: Path, value: Any) -> None:
    """Add a line of JSON to a file; raises RunError if that fails."""
    with writing(path), open(path, "a") as file:
        file.write(json.dumps(_finite(value)) + "\n")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSON-lines file as a whole."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON-lines file; a last line that is still being written is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


# ------------------------------------------------------------------------------------------------- arrays and tensors


@contextlib.contextmanager
def _reading(path: str | Path, what: str) -> Iterator[None]:
    """Turn any error that damaged or foreign bytes cause into a RunError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise RunError(f"{path} is cut off, damaged, or no {what}") from error


def save_npz(path: str | Path, compress: bool = False, **arrays: np.ndarray) -> None:
    """Write arrays of numbers and text as .npz."""
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def load_npz(path: str | Path, leave: Container[str] = ()) -> dict[str, np.ndarray]:
    """Read the arrays of `save_npz` but those in `leave`; raises RunError if it is cut off, altered or has objects."""
    with _reading(path, ".npz of numbers and texts"), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name not in leave}  # reading checks each array's CRC


def save_pt(path: str | Path, value: Any) -> None:
    """Write tensors and plain values as .pt, with the checksum of the whole file at its end."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    payload = buffer.getvalue()
    write_atomic(path, payload + PT_MARK + hashlib.sha256(payload).hexdigest().encode())


def load_pt(path: str | Path, what: str = "file of tensors", device: Any = "cpu") -> Any:
    """Read the value of `save_pt` onto `device`; raises RunError if it is cut off, altered, or no `what`.

    A file without a checksum at its end (once, encoders had none) is checked by the CRCs of its zip.
    """
    import torch

    with _reading(path, what):
        data = Path(path).read_bytes()
        payload, mark, digest = data[:-71], data[-71:-64], data[-64:]
        if mark == PT_MARK:
            intact = hashlib.sha256(payload).hexdigest().encode() == digest
        else:
            payload, intact = data, zipfile.ZipFile(io.BytesIO(data)).testzip() is None
        if not intact:
            raise ValueError("its checksum is wrong")
        return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)


# ------------------------------------------------------------------------------------- files that can be made again


def load_optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that can be made again: {} if it is missing, and if it is damaged, with a warning."""
    return _optional(load_json, path)


def load_optional_npz(path: Path) -> dict[str, np.ndarray]:
    """Read arrays that can be made again: {} if the file is missing, and if it is damaged, with a warning."""
    return _optional(load_npz, path)


def _optional(load: Callable[[Path], Any], path: Path) -> dict[str, Any]:
    try:
        found = load(path) if path.exists() else {}
        if isinstance(found, dict):
            return found
        raise RunError(f"{path} is damaged: no JSON object")
    except RunError as error:
        warnings.warn(f"{error}; going on without it", stacklevel=4)
        return {}
