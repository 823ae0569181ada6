"""Engines that a study's jobs can run on, by name: `--executor local:4`, `submitit:partition=gpu`, `dask:tcp://HOST:PORT`.

An engine is opened as a context manager and gives an executor: `submit(function, *args)`, futures with `done()` and
`result()`. Its package is an optional extra of tase. All its processes must see the same file system.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..config import ConfigError, check, check_choice
from ..files import RunError
from ..options import package
from ..training import interruptible
from .jobs import Workers

# Parameters that submitit has for every cluster; all others are named after theirs, as in slurm_partition.
GENERAL = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
RESTARTS = 1000  # of a job by submitit, when its time is up: each resumes from its checkpoint
ANSWER = 10  # seconds within which a dask scheduler must answer


def engine(name: Any, logs: Path) -> contextlib.AbstractContextManager[Any]:
    """Open the engine NAME or NAME:OPTIONS; an executor (or None) is given back as it is. `logs`: a folder.

    Raises ConfigError for an unknown name, wrong options or a missing package, RunError where no scheduler answers.
    """
    if not isinstance(name, str):
        return contextlib.nullcontext(name)
    kind, _, options = name.partition(":")
    check_choice("executor", kind, ENGINES)
    return ENGINES[kind](options, logs)


@contextlib.contextmanager
def _local(options: str, logs: Path) -> Iterator[Workers]:
    """Processes of this machine, as with --jobs."""
    check(options.isdigit() and int(options) > 0, "--executor", f"local:{options}", "local:N, N processes at once")
    with interruptible(), Workers(int(options)) as workers:
        yield workers


class Requeued:
    """Call a function as submitit wants it: when its time is up, or on preemption, it is queued again as it was.

    The job then resumes from its last checkpoint.
    """

    def __call__(self, function: Callable, *args: Any) -> Any:
        return function(*args)

    def checkpoint(self, *args: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


@contextlib.contextmanager
def _submitit(options: str, logs: Path) -> Iterator[SimpleNamespace]:
    """Jobs of Slurm; cluster=local and cluster=debug run them on this machine, as submitit has it."""
    submitit, fields = package("submitit", "--executor", "slurm"), {"cluster": "slurm", "timeout_min": 240}
    for pair in filter(None, options.split(",")):
        field, equals, value = pair.partition("=")
        check(bool(field and equals), "--executor", pair, "submitit:FIELD=VALUE,...")
        fields[field] = int(value) if value.isdigit() else value
    cluster = fields.pop("cluster")
    check_choice("submitit cluster", cluster, ("slurm", "local", "debug"))
    if cluster == "slurm" and not shutil.which("sbatch"):
        raise RunError("--executor submitit: no Slurm here, sbatch is not found (submitit:cluster=local needs none)")
    restarts = {} if cluster == "debug" else {f"{cluster}_max_num_timeout": RESTARTS}
    executor = submitit.AutoExecutor(logs / "submitit", cluster, **restarts)
    named = {field if field in GENERAL else f"{cluster}_{field}": value for field, value in fields.items()}
    try:
        executor.update_parameters(**named)
    except (AssertionError, NameError, TypeError, ValueError) as error:  # it knows which fields and types there are
        raise ConfigError(f"--executor submitit: {str(error).splitlines()[0]}") from error
    yield SimpleNamespace(submit=partial(executor.submit, Requeued()))


@contextlib.contextmanager
def _dask(address: str, logs: Path) -> Iterator[SimpleNamespace]:
    """Workers of a running dask scheduler; start them with --nthreads 1, a job each."""
    distributed = package("distributed", "--executor", "dask")
    check(bool(address), "--executor", f"dask:{address}", "dask:tcp://HOST:PORT, the address of a scheduler")
    try:
        client = distributed.Client(address, timeout=ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RunError(f"--executor dask: no scheduler answers at {address}") from error
    with client:
        # Not pure: dask would answer the second submission of a job with the outcome of the first.
        yield SimpleNamespace(submit=partial(client.submit, pure=False))


ENGINES = {"local": _local, "submitit": _submitit, "dask": _dask}
