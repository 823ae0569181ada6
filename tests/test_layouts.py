"""Layouts: the same for the same features, aligned over snapshots and runs, cached in the run's folder."""

import shutil

import numpy as np
import pytest
import torch

import tase
from tase import files, layouts
from tase.config import ConfigError
from tase.layouts import (
    aligned_layouts,
    common_images,
    layout,
    normalised,
    run_layout,
    snapshot_layouts,
    turned,
)


@pytest.fixture
def run(trained, tmp_path):
    drawn = shutil.ignore_patterns("layouts")  # by tests of other files
    return tase.Run(shutil.copytree(trained[2].path, tmp_path / "tase", ignore=drawn))


def snapshots_of(run, points=100):
    index, usable = common_images(run, points)
    return [run.history.features(t)[np.searchsorted(run.history.feature_index(t), index)] for t in usable]


def moved(film):
    return np.linalg.norm(np.diff(film, axis=0), axis=2).mean()


def test_procrustes_undoes_a_rotation_and_a_reflection():
    xy = normalised(np.random.default_rng(0).standard_normal((50, 2)))
    turn = np.array([[np.cos(2), -np.sin(2)], [np.sin(2), np.cos(2)]]) @ np.diag([1, -1])
    np.testing.assert_allclose(turned(3 * xy @ turn + 5, xy), xy, atol=1e-5)
    assert np.sqrt((xy**2).sum(1).mean()) == pytest.approx(1)
    np.testing.assert_allclose(turned(xy, xy), xy, atol=1e-5)


@pytest.mark.parametrize("kind", ["pca", "tsne"])
def test_the_same_features_give_the_same_layout_of_two_clusters(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)) * 0.05 + np.eye(5)[np.repeat([0, 1], 30)]
    xy = layout(x, kind)
    assert xy.shape == (60, 2) and xy.dtype == np.float32
    np.testing.assert_array_equal(xy, layout(x, kind))
    np.testing.assert_allclose(xy, layout(x * rng.uniform(1, 9, (60, 1)), kind), atol=1e-4 if kind == "pca" else 30)
    between = np.linalg.norm(xy[:30].mean(0) - xy[30:].mean(0))
    assert between > 2 * max(xy[:30].std(), xy[30:].std())


def test_few_images_and_one_dimension_are_laid_out():
    assert layout(np.random.default_rng(0).normal(size=(4, 3))).shape == (4, 2)
    assert np.all(layout(np.array([[1.0], [-1.0], [1.0]]), "pca")[:, 1] == 0)
    with pytest.raises(ConfigError, match="did you mean 'tsne'"):
        layout(np.eye(3), "tsnee")


@pytest.mark.parametrize("kind", ["pca", "tsne"])
def test_aligned_layouts_move_less_than_layouts_made_apart(run, kind):
    features = snapshots_of(run)
    film = [xy for _, xy in aligned_layouts(features, kind)]
    assert moved(film) <= moved([normalised(layout(x, kind)) for x in features]) + 1e-6
    np.testing.assert_array_equal(film[0], normalised(layout(features[0], kind)))


def test_layouts_of_snapshots_are_cached_and_grow_with_the_run(run):
    told = []
    first = snapshot_layouts(run, points=60, progress=lambda *at: told.append(at))
    snapshots = len(run.history)
    assert first.xy.shape == (snapshots, 60, 2) and told == [(i + 1, snapshots) for i in range(snapshots)]
    path = run.path / "layouts" / "epochs-tsne.npz"
    before = path.stat().st_mtime_ns
    np.testing.assert_array_equal(first.xy, snapshot_layouts(run, points=60).xy)
    assert path.stat().st_mtime_ns == before
    slim = snapshot_layouts(run.slim(run.path.parent / "slim"), points=60)
    np.testing.assert_array_equal(slim.xy, first.xy)
    path.write_bytes(b"cut off")
    with pytest.warns(UserWarning, match="damaged"):
        again = snapshot_layouts(run, points=60)
    np.testing.assert_array_equal(again.xy, first.xy)
    assert np.array_equal(first.at(-5), first.xy[0]) and np.array_equal(first.at(10**6), first.xy[-1])


def test_only_new_snapshots_are_laid_out(run, monkeypatch):
    made = []
    monkeypatch.setattr(layouts, "layout", lambda x, *rest: made.append(1) or layout(x, *rest))
    early = snapshot_layouts(run, points=60, wanted=lambda: len(made) < 2)
    assert len(early.xy) == len(made) == 2
    full = snapshot_layouts(run, points=60)
    assert len(full.xy) == len(made) == len(run.history)
    np.testing.assert_array_equal(full.xy[:2], early.xy)
    snapshot_layouts(run, points=60, wanted=lambda: False)  # ends early, and forgets nothing
    snapshot_layouts(run, points=60)
    assert len(made) == len(run.history)


def test_a_changed_snapshot_and_all_after_it_are_laid_out_again(run):
    first = snapshot_layouts(run, points=60)
    path = sorted((run.path / "history").glob("epoch_*.npz"))[1]
    arrays = files.load_npz(path)
    files.save_npz(path, **arrays | {"features": arrays["features"][::-1].copy()})
    second = snapshot_layouts(tase.Run(run.path), points=60)
    np.testing.assert_array_equal(first.xy[0], second.xy[0])
    assert all(not np.array_equal(a, b) for a, b in zip(first.xy[1:], second.xy[1:]))


def test_a_second_run_is_turned_to_the_first(run):
    film = snapshot_layouts(run, "pca", points=60)
    turn = np.array([[0, 1], [1, 0]], dtype=np.float32)
    other = layouts.Layouts(film.epoch, film.index, film.xy @ turn)
    np.testing.assert_allclose(other.turned_to(film).xy, film.xy, atol=1e-4)
    apart = layouts.Layouts(film.epoch, film.index + 10**6, film.xy)
    assert apart.turned_to(film) is apart


def test_a_run_without_features_says_so(run):
    with pytest.raises(tase.RunError, match="slim copy"):
        snapshot_layouts(run.slim(run.path.parent / "slim"))
    with pytest.raises(tase.RunError, match="keeps no features"):
        run_layout(tase.Run(run.path.parent / "slim"))


def test_the_last_layout_is_cached_and_made_again_when_features_change(run):
    xy, labels, what = run_layout(run, points=40)
    assert xy.shape == (40, 2) and labels.shape == (40,) and what == "test"
    file = run.path / "layouts" / "tsne.npz"
    first = file.stat().st_mtime_ns
    np.testing.assert_array_equal(run_layout(run, points=40)[0], xy)
    assert file.stat().st_mtime_ns == first
    file.unlink()
    np.testing.assert_array_equal(run_layout(run, points=40)[0], xy)
    np.testing.assert_array_equal(run_layout(run.slim(run.path.parent / "slim"))[0], xy)
    features, labels = run.test_features
    files.save_npz(run.path / "features_test.npz", features=features[::-1].astype(np.float16), labels=labels[::-1])
    assert not np.array_equal(run_layout(run, points=40)[0], xy)


@pytest.mark.slow  # umap compiles itself when first used
def test_umap_leaves_the_number_of_threads_alone(run):
    threads = torch.get_num_threads()
    film = snapshot_layouts(run, "umap", points=40)
    assert film.xy.shape == (len(run.history), 40, 2) and np.isfinite(film.xy).all()
    assert torch.get_num_threads() == threads  # numba changes it, and training would no longer be bit-equal
