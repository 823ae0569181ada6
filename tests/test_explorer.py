"""The run explorer in Python: what goes to the page, what comes back. The page: test_browser_report.py."""

import shutil
import time

import numpy as np
import pytest
from test_report import unpacked

import tase
from tase.files import RunError
from tase.widgets import RunExplorer


@pytest.fixture
def run(trained, tmp_path):
    return tase.Run(shutil.copytree(trained[2].path, tmp_path / "tase"))


def test_it_opens_at_the_last_epoch_with_both_layouts(run):
    explorer = RunExplorer(run)
    places = unpacked(explorer.widget.payload)["runs"][0]["places"]
    assert list(places) == ["pca"]  # until the other is there
    for _ in range(600):
        places = unpacked(explorer.widget.payload)["runs"][0]["places"]
        if "tsne" in places:
            break
        time.sleep(0.1)
    assert list(places) == ["tsne", "pca"]
    assert explorer.epoch == run.history.epoch[-1]
    assert explorer.config == run.config


def test_the_selection_is_a_table_at_the_epoch_shown(run):
    explorer = RunExplorer(run, layout="pca")
    assert explorer.selection.empty
    assert explorer.selection.columns.tolist() == ["run", "index", "path", "class", "tau", "w", "cluster"]
    explorer.select([5, 300])
    explorer.epoch = 5  # between the snapshots of epochs 4 and 6
    table, h = explorer.selection, run.history
    assert table["index"].tolist() == [5, 300] and table["run"].tolist() == ["tase"] * 2
    np.testing.assert_array_equal(table["tau"], h.tau[2][[5, 300]])
    np.testing.assert_array_equal(table["cluster"], h.pseudo_label[2][[5, 300]])
    assert table["class"].tolist() == [h.classes[h.labels[i]] for i in (5, 300)]


def test_the_selection_has_what_a_method_knows_besides(tiny, tmp_path):
    run = tase.train(tiny("bcl-i", optim__epochs=3), tmp_path / "run", progress=False)
    explorer = RunExplorer(run, layout="pca")
    explorer.select([4, 9])
    np.testing.assert_array_equal(explorer.selection["strength"], run.history.extra("strength")[-1][[4, 9]])


def test_linked_runs_have_one_selection_and_others_their_own(run, trained):
    linked = RunExplorer(run, trained[1], layout="pca")
    linked.select([7])
    assert linked.selection["run"].tolist() == ["tase", "simclr"] and (linked.selection["index"] == 7).all()
    apart = RunExplorer(run, trained[0], layout="pca")
    apart.select([7], other=[1, 2])
    assert apart.selection["run"].tolist() == ["tase", "balanced", "balanced"]


def test_refresh_reads_new_snapshots_and_a_gone_folder_is_told(run):
    last = sorted((run.path / "history").glob("epoch_*.npz"))[-1]
    away = last.rename(run.path / "later.npz")
    explorer = RunExplorer(run, layout="pca")
    before = len(unpacked(explorer.widget.payload)["runs"][0]["epochs"])
    away.rename(last)
    explorer.refresh()
    assert len(unpacked(explorer.widget.payload)["runs"][0]["epochs"]) == before + 1
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="gone"):
        explorer.refresh()


def test_it_saves_the_report_and_shows_itself(run, tmp_path):
    explorer = tase.widgets.explore_run(str(run.path), layout="pca")
    assert explorer.save(tmp_path / "saved.html").stat().st_size > 10_000
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in str(bundle)


def test_runs_without_labels_or_snapshots(run):
    (run.path / "history" / "labels.npz").unlink()
    explorer = RunExplorer(tase.Run(run.path), layout="pca")
    explorer.select([1])
    assert explorer.selection["class"].tolist() == [""]
    shutil.rmtree(run.path / "history")
    with pytest.raises(RunError, match="no snapshot yet"):
        RunExplorer(tase.Run(run.path))
