"""Kept runs: slim copies in one zip next to the tables and figures that are made of them."""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ..files import RunError, write_atomic
from .run import Run

KEPT = "runs.zip"
_unpacked: dict[bytes, tempfile.TemporaryDirectory] = {}  # zips, by the hash of their bytes


def keep_runs(runs: Iterable[Run], zip_path: str | Path, tables_only: bool = False) -> Path:
    """Write slim copies of the runs into one zip, by the names of their folders; runs that it has already stay.

    `tables_only` keeps what tables need, some 5 kB a run; else figures can be drawn, too. The same runs give the same
    bytes. Raises RunError if two of the runs have one name.
    """
    zip_path = Path(zip_path)
    named = {run.name: run for run in kept_runs(zip_path)} if zip_path.exists() else {}
    new: dict[str, Run] = {}
    for run in runs:
        if new.setdefault(run.name, run).path.resolve() != run.path.resolve():
            raise RunError(f"{run.path} and {new[run.name].path} have one name, {run.name}: rename one of the folders")
    zip_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, run in named.items():
            shutil.copytree(run.path, Path(folder) / name)
        for name, run in new.items():
            shutil.rmtree(Path(folder) / name, ignore_errors=True)
            run.slim(Path(folder) / name, tables_only)
        write_atomic(zip_path, _zipped(Path(folder)))
    return zip_path


def kept_runs(path: str | Path) -> list[Run]:
    """Open the runs in a zip, in a folder that has one (`runs.zip`), or in a folder of run folders, sorted by name.

    A zip is unpacked into a temporary folder, once in a process, which goes when the process ends. Raises RunError if
    the zip is damaged, or there is nothing at `path`.
    """
    path = Path(path)
    path = path / KEPT if (path / KEPT).exists() else path
    if not path.exists():
        raise RunError(f"{path} does not exist: kept runs are looked for in it")
    if path.is_file():
        path = _unpack(path)
    return [Run(config.parent) for config in sorted(path.glob("*/config.json"))]


def _zipped(folder: Path) -> bytes:
    """Zip the files below `folder` in the order of their names, with one fixed date and mode."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        for name in sorted(paths):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Unix, wherever it is written
            file.writestr(entry, paths[name].read_bytes(), zipfile.ZIP_DEFLATED)
        file.comment = _digest(file)
    return buffer.getvalue()


def _digest(file: zipfile.ZipFile) -> bytes:
    """Hash names, sizes and CRCs: a zip checks its contents, but not whether a name was altered."""
    facts = sorted((entry.filename, entry.file_size, entry.CRC) for entry in file.infolist())
    return hashlib.sha256(repr(facts).encode()).hexdigest().encode()


def _unpack(path: Path) -> Path:
    data = path.read_bytes()
    key = hashlib.sha256(data).digest()
    if key not in _unpacked:
        folder = tempfile.TemporaryDirectory(prefix="tase-runs-", ignore_cleanup_errors=True)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                if file.comment != _digest(file):
                    raise RunError("its names or sizes are not those that were written")
                file.extractall(folder.name)  # checks each file's CRC, and leaves no path that leads out of the folder
        except Exception as error:
            raise RunError(f"{path} is damaged, or no zip of runs") from error
        _unpacked[key] = folder
    return Path(_unpacked[key].name)
