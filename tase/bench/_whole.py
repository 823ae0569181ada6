"""What guidance adds to a whole run, and what tase adds to the import of torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from .. import training
from ..data import Splits, load_splits
from ..presets import preset
from ._measure import Bench, Row, compared, measure, some_images

TRAINING = "import torch, tase; tase.train, tase.preset, tase.two_views, tase.nt_xent, tase.TASE, tase.Run"


def bench_guidance(s: Bench) -> list[Row]:
    """Runs of equal length: TASE with refreshes, recorded quality and files, against SimCLR with and without them."""
    name = "cifar10-lt" if s.cuda else "digits-lt"
    fields = {"optim.epochs": 12} if s.quick else {"optim.epochs": 60} if s.cuda else {}
    splits = Splits(some_images(11_165), None, None, None, torch.arange(10)) if s.cuda else None

    def run(method: str, snapshots: bool = True, **more: int) -> None:
        changes = {**fields, "record.snapshots": snapshots, "record.knn_every": 0, **more}
        config = preset(name, method, overrides=changes)
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.object(training, "load_splits", lambda config: splits or load_splits(config)),
            patch.object(training, "choose_device", lambda optim: s.device),
        ):
            training.train(config, Path(folder) / "run", progress=False)

    plain, shown, ours = "simclr, no snapshots", "simclr, snapshots", "tase, snapshots"
    actions = {plain: lambda: run("simclr", False), shown: lambda: run("simclr"), ours: lambda: run("tase")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runs this short have clusters that say nothing yet
        run("tase", **{"optim.epochs": 2})
        times = measure(actions, s, 5.0, warm=False)
    case = f"{name}, {preset(name, overrides=fields).optim.epochs} epochs"
    both = [row for row in compared(case, times, shown) if row["name"] == ours]
    return compared(case, times, plain) + both


def bench_import(s: Bench) -> list[Row]:
    """Fresh Python processes: torch alone, and torch with tase and the names that training needs."""

    def process(code: str) -> Callable[[], Any]:
        path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment)

    actions = {"import torch": process("import torch"), "import torch, tase": process(TRAINING)}
    return compared("process", measure(actions, s, 2.0, warm=False), "import torch")
