"""Shared by all tests: tiny configurations of real images, three trained runs, skips with a reason."""

import os
from pathlib import Path

import pytest
import torch

import tase
from tase.config import applicable

# One thread here and in the processes that tests start: results are bit-equal only at equal numbers of threads.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A run of about a second on scikit-learn's real digits: three refreshes before, inside and after the ramp.
TINY = {
    "optim.epochs": 8,
    "optim.batch": 64,
    "guidance.refresh": 2,
    "guidance.warmup": 0.25,
    "guidance.ramp": 0.25,
    "guidance.clusters": 12,
    "model.channels": "8,8,16,16",
    "model.head_dim": 16,
    "record.checkpoint_every": 3,
    "record.knn_every": 4,
    "record.features": 100,
}


@pytest.fixture
def tiny():
    """tiny(method="tase", seed=0, **overrides): a configuration that trains in about a second."""

    def make(method="tase", seed=0, **overrides):
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        return tase.preset("digits-lt", method=method, seed=seed, overrides={**applicable(TINY, method), **dotted})

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folders of three finished and evaluated tiny runs: balanced SimCLR, SimCLR, TASE."""
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for name, method, balanced in (("balanced", "simclr", True), ("simclr", "simclr", False), ("tase", "tase", False)):
        config = tase.preset(
            "digits-lt", method=method, overrides={**applicable(TINY, method), "data.balanced": balanced}
        )
        runs.append(tase.train(config, folder / name, progress=False))
        tase.evaluate(runs[-1], progress=False)
    return runs


def _needed(present: bool, what: str) -> None:
    """Skip for users who lack `what`; on CI only a GPU may be missing."""
    if not present:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{what} is missing, and CI must have it")
        pytest.skip(f"needs {what}")


@pytest.fixture
def fashion_mnist():
    _needed(Path("/usr/share/datasets/fashion-mnist").is_dir(), "Fashion-MNIST (apt-get install dataset-fashion-mnist)")


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device("cuda")
