"""A method, a data source and a protocol that are defined here alone: everything else works with them."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import tase
from tase import figures
from tase.config import ConfigError

# What a user writes into a file of his own.
MINE = textwrap.dedent(
    '''
    from dataclasses import dataclass

    import torch

    import tase
    from tase.evaluation import Predictions


    class Nearness(tase.Guidance):
        """The nearer a sample is to its centre, the lower its temperature."""

        title, per_sample, uses_features, steerable = "Nearness", True, True, ("high",)

        @dataclass(frozen=True)
        class Options(tase.Guidance.Options):
            low: float = tase.option(0.1, "temperature of a sample at its centre", above=0)
            high: float = tase.option(0.4, "temperature of a sample between centres", above=0)

        def update(self, features, epoch):
            super().update(features, epoch)
            low, high = self.options.low, self.options.high
            self.tau = high - (high - low) * self.pseudo.p.amax(1)


    def rings(data):
        """Draw rings of three widths, few of the widest, as training and test images."""
        def draw(counts, seed):
            g = torch.Generator().manual_seed(seed)
            grid = torch.linspace(-1, 1, 8)
            radius = (grid[:, None] ** 2 + grid**2).sqrt()
            labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
            wide = 0.2 + 0.3 * labels + 0.05 * torch.randn(len(labels), generator=g)
            images = (1 - (radius - wide[:, None, None]).abs() * 3).clamp(0, 1) * 255
            return tase.ImageSet(images[:, None].to(torch.uint8), labels, classes=("small", "middle", "large"))

        return draw((80, 60, 40), 0), draw((20, 20, 20), 1)


    def centroid(features, config):
        """Predict the class with the nearest mean on the probe list."""
        x, y = features.x("probe"), features.y("probe")
        means = torch.stack([x[y == c].mean(0) for c in range(features.classes)])
        return {"centroid": Predictions([torch.cdist(features.x("judged"), means).argmin(1)])}


    tase.METHODS["nearness"] = tase.Method(Nearness)
    tase.SOURCES["rings"] = rings
    tase.PROTOCOLS["centroid"] = centroid
    '''
)

FIELDS = {
    "data.source": "rings",
    "data.n_max": 60,
    "data.rho": 4,
    "data.pool_per_class": 0,
    "data.val_per_class": 5,
    "data.few_shot_per_class": 3,
    "optim.epochs": 6,
    "optim.batch": 32,
    "guidance.refresh": 2,
    "guidance.clusters": 6,
    "model.channels": "8,8,16,16",
    "model.head_dim": 16,
    "record.features": 100,
    "evaluation.protocols": "centroid,linear",
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The user's file, imported; the registries are as before afterwards."""
    registries = (tase.METHODS, tase.SOURCES, tase.PROTOCOLS)
    before = [dict(registry) for registry in registries]
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    tase.use(path)
    yield path
    del os.environ["TASE_IMPORT"]
    for registry, entries in zip(registries, before):
        registry.clear(), registry.update(entries)


def test_a_file_that_failed_is_imported_when_it_is_mended(tmp_path, monkeypatch):
    path = tmp_path / "wrong.py"
    path.write_text("1 / 0\n")
    monkeypatch.setenv("TASE_IMPORT", "")
    with pytest.raises(ZeroDivisionError):
        tase.use(path)
    path.write_text("import tase\ntase.PROTOCOLS['mended'] = tase.PROTOCOLS['linear']\n")
    try:
        tase.use(path)
        assert "mended" in tase.PROTOCOLS
    finally:
        tase.PROTOCOLS.pop("mended", None)


@pytest.fixture(scope="module")
def runs(mine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for method in ("simclr", "nearness"):
        config = tase.preset("digits-lt", method, overrides=FIELDS)
        found.append(tase.train(config, folder / method, progress=False))
        tase.evaluate(found[-1], progress=False)
    return found


def test_it_trains_and_resumes_bit_for_bit(runs, tmp_path):
    run = runs[1]
    assert run.history.tau[-1].std() > 0 and run.history.tau[0].std() >= 0
    halfway = tase.train(run.config, tmp_path / "again", until=3, progress=False)
    assert not halfway.finished
    again = tase.train(run.config, tmp_path / "again", resume=True, progress=False)
    assert (again.history.tau == run.history.tau).all()
    for name, weights in run.encoder().state_dict().items():
        assert torch.equal(weights, again.encoder().state_dict()[name])


def test_it_is_evaluated_by_its_protocol_and_stands_in_the_table(runs):
    for run in runs:
        assert {"centroid", "linear"} <= set(run.results["protocols"])
    table = tase.compare(runs)
    assert {"centroid", "linear"} == set(table["protocol"])
    assert {"nearness", "simclr", "pixels", "untrained"} <= set(table["method"])


def test_every_figure_is_drawn_with_its_title(runs, tmp_path):
    written = figures.all_figures(runs, tmp_path)
    assert len(written) >= 10 and all(path.stat().st_size > 1000 for path in written)
    assert any("dynamics" in path.name for path in written)
    assert runs[1].config.method_title == "Nearness"


def test_the_explorers_open_it(runs, tmp_path):
    from test_report import data_of

    from tase import widgets

    explored = widgets.explore_run(runs[0], runs[1])
    assert explored.config == runs[0].config
    assert widgets.explore_temperatures(runs[1]) is not None
    path = tase.report(*runs, out=tmp_path / "report.html")
    assert "Nearness" in [shown["title"] for shown in data_of(path)["runs"]]


def test_its_options_are_checked_and_steered(runs):
    with pytest.raises(ConfigError, match="did you mean 'guidance.high'"):
        tase.preset("digits-lt", "nearness", overrides={"guidance.hihg": 0.3})
    runs[1].control(high=0.3)
    with pytest.raises(ConfigError):
        runs[1].control(low=0.3)
    with pytest.raises(ConfigError, match="no guidance to steer"):
        runs[0].control(high=0.3)


def test_another_process_knows_it_from_the_users_file(mine, tmp_path):
    """As live training, studies and the command line run it."""
    sets = [f"{name}={value}" for name, value in FIELDS.items()]
    words = ["train", "--import", str(mine), "--preset", "digits-lt", "--method", "nearness", "--set", *sets]
    ended = subprocess.run(
        [sys.executable, "-m", "tase", *words, "--out", str(tmp_path / "run"), "--json", "--quiet"],
        env={name: value for name, value in os.environ.items() if name != "TASE_IMPORT"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["epoch"] == 6
