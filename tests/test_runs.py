"""A run is a folder: whole files, one writer, checkpoints that notice damage, a reader that needs no data."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import tase
from tase.config import ConfigError
from tase.runs import (
    RunError,
    RunWriter,
    load_checkpoint,
    load_json,
    load_npz,
    save_checkpoint,
    save_json,
    write_atomic,
)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    save_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(RunError, match=r"results.json cannot be written: No space"):
        write_atomic(path, b"half")
    assert load_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_json_has_no_nan(tmp_path):
    save_json(tmp_path / "x.json", {"a": float("nan"), "b": [np.float32(1.5), np.int64(3)]})
    assert load_json(tmp_path / "x.json") == {"a": None, "b": [1.5, 3]}


def test_arrays_of_objects_are_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    with open(tmp_path / "bad.npz", "wb") as file:
        pickle.dump(Evil(), file)
    np.savez(tmp_path / "objects.npz", a=np.array([Evil()], dtype=object))
    for name in ("bad.npz", "objects.npz"):
        with pytest.raises(RunError, match="damaged"):
            load_npz(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_checkpoint_goes_back_to_the_previous_when_the_last_is_damaged(tmp_path):
    for epoch in (1, 2):
        save_checkpoint(tmp_path, {"identity": "x", "epoch": epoch, "w": torch.ones(3) * epoch})
    assert load_checkpoint(tmp_path, "x")["epoch"] == 2
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], b""):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="going on from checkpoint.previous.pt, epoch 1"):
            assert load_checkpoint(tmp_path, "x")["epoch"] == 1
    (tmp_path / "checkpoint.previous.pt").unlink()
    with pytest.raises(RunError, match="cut off, damaged, or no checkpoint"):
        load_checkpoint(tmp_path, "x")


def test_checkpoint_of_another_configuration_is_refused(tmp_path):
    save_checkpoint(tmp_path, {"identity": "x", "epoch": 1})
    with pytest.raises(RunError, match="belongs to another configuration"):
        load_checkpoint(tmp_path, "y")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_executes_nothing(tmp_path):
    import hashlib

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    payload = pickle.dumps({"identity": "x", "epoch": 1, "evil": Evil()})
    (tmp_path / "checkpoint.pt").write_bytes(payload + b"sha256:" + hashlib.sha256(payload).hexdigest().encode())
    with pytest.raises(RunError):
        load_checkpoint(tmp_path, "x")
    assert not (tmp_path / "executed").exists()


def test_a_second_writer_is_refused_and_a_dead_ones_lock_is_taken_over(tmp_path, tiny):
    config = tiny()
    code = (
        "import sys, os, tase, conftest\n"
        "from tase.runs import RunWriter\n"
        "config = tase.preset('digits-lt', overrides=conftest.TINY)\n"
        f"writer = RunWriter({str(tmp_path / 'run')!r}, config).__enter__()\n"
        "print('held', flush=True); sys.stdin.read(1); os._exit(1)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.getcwd()])}
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert other.stdout.readline().strip() == "held"
    with (
        pytest.raises(RunError, match="another process trains in it"),
        RunWriter(tmp_path / "run", config, resume=True),
    ):
        pass
    other.kill()
    other.communicate()
    with RunWriter(tmp_path / "run", config, resume=True):
        pass


def test_folders_of_something_else_are_refused(tmp_path, tiny, trained):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        tase.train(tiny(), tmp_path, progress=False)
    with pytest.raises(RunError, match="holds this run already"):
        tase.train(trained[2].config, trained[2].path, progress=False)
    with pytest.raises(RunError, match="holds another run"):
        tase.train(tiny(seed=5), trained[2].path, resume=True, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no run"),
        ("{", "not JSON"),
        ('{"format": 99, "config": {}}', "update tase"),
        ('{"format": 1, "config": {"optim": {"epochs": -1}}}', "optim.epochs = -1"),
        ('{"format": 1, "config": {"optim": {"epoch": 1}}}', "did you mean 'optim.epochs'"),
        ("[]", "format"),
    ],
)
def test_what_is_no_run_says_so(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError) as error:
        tase.Run(tmp_path)
    assert message in str(error.value)


def test_history_has_every_sample_at_every_refresh(trained):
    run = trained[2]
    h, n = run.history, run.environment["images"]
    assert h.epoch.tolist() == [0, 2, 4, 6, 8]
    assert h.tau.shape == h.weight.shape == h.loss.shape == h.headness.shape == h.pseudo_label.shape == (5, n)
    assert np.allclose(h.tau[0], 0.2) and np.allclose(h.weight[0], 1)
    assert h.tau[-1].min() >= 0.1 and h.tau[-1].max() <= 0.5 and h.tau[-1].std() > 0.01
    assert h.features(0).shape == (100, 16) and h.features(4).shape == (n, 16)
    assert np.isnan(h.loss[0]).all() and np.isfinite(h.loss[1:]).mean() > 0.9
    assert abs(h.cluster_sizes[-1].sum() - n) < 1
    assert set(h.quality[-1]) >= {"nmi", "purity", "spearman_samples", "spearman_classes"}
    assert (np.bincount(h.labels, minlength=10) == h.counts).all()
    assert run.features().shape == (n, 16)


def test_the_encoder_is_the_trained_backbone(trained):
    run = trained[2]
    images = run.images
    h = tase.encode(run.encoder(), images.images)
    assert torch.allclose(h, torch.from_numpy(run.features()), atol=2e-2)  # kept as float16
    fresh = tase.training.initial_network(run.config, 1, 8)
    assert not torch.allclose(tase.encode(fresh.backbone, images.images), h, atol=0.1)


def test_a_slim_copy_draws_but_keeps_no_features(trained, tmp_path):
    slim = trained[2].slim(tmp_path / "slim")
    assert np.allclose(slim.history.tau, trained[2].history.tau, atol=1e-3)
    assert slim.results == trained[2].results
    with pytest.raises(RunError, match="slim copy"):
        slim.history.features(0)
    size = sum(p.stat().st_size for p in slim.path.rglob("*") if p.is_file())
    assert size < 100_000


def test_a_copy_for_tables_keeps_what_was_measured(trained, tmp_path):
    kept = trained[2].slim(tmp_path / "first", tables_only=True).slim(tmp_path / "second", tables_only=True)
    assert kept.results == trained[2].results and kept.finished and kept.identity == trained[2].identity
    assert kept.history.quality == trained[2].history.quality[-1:]
    for ask in (lambda: kept.history.tau, kept.features, kept.encoder):
        with pytest.raises(RunError, match="slim copy"):
            ask()
    assert sum(p.stat().st_size for p in kept.path.rglob("*") if p.is_file()) < 20_000


def test_a_run_shows_itself_and_escapes_names(trained, tmp_path):
    import shutil

    nasty = tmp_path / "<img src=x>"
    shutil.copytree(trained[2].path, nasty)
    html = tase.Run(nasty)._repr_html_()
    assert "<img" not in html and "&lt;img" in html and "tase" in html
    assert "finished" in repr(trained[2])


def test_requests_are_checked(trained):
    run = trained[2]
    with pytest.raises(ConfigError, match="did you mean 'guidance.tau_max'"):
        run.control(tau_mx=0.3)
    with pytest.raises(ConfigError, match="at least guidance.tau_min"):
        run.control(tau_max=0.01)
    with pytest.raises(ConfigError, match="unknown action"):
        run.control(action="halt")
    with pytest.raises(ConfigError, match="has no guidance"):
        trained[1].control(tau_max=0.4)
    assert not (run.path / "control.json").exists()


def test_a_later_request_keeps_what_still_waits(trained, tmp_path):
    slim = trained[2].slim(tmp_path / "slim")
    first = slim.control(tau_max=0.4)
    slim.control(action="pause")
    waiting = load_json(slim.path / "control.json")
    assert waiting["action"] == "pause" and waiting["set"] == {"guidance.tau_max": 0.4}
    (slim.path / "events.jsonl").write_text(json.dumps({"id": waiting["id"], "epoch": 2, "step": 9, "set": {}}) + "\n")
    assert slim.control(action="run") not in (first, waiting["id"])
    assert load_json(slim.path / "control.json")["set"] == {}


def test_metrics_of_a_growing_file_leave_out_a_half_line(trained, tmp_path):
    slim = trained[2].slim(tmp_path / "slim")
    with open(slim.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"epoch": 9, "loss": 1.0})[:10])
    assert slim.metrics["epoch"].tolist() == list(range(1, 9))
