"""A run is a folder: whole files, one writer, checkpoints that notice damage, a reader that needs no data."""

import contextlib
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import tase
from tase.config import ConfigError
from tase.files import RunError, hold, is_held, load_json, load_npz, load_pt, save_json, save_pt, write_atomic
from tase.runs import (
    RESULTS,
    RunWriter,
    commit,
    commit_text,
    keep_runs,
    kept_runs,
    load_checkpoint,
    request,
    save_checkpoint,
)
from tase.trust import trust_words


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
        with pytest.warns(UserWarning, match="resuming from checkpoint.previous.pt, epoch 1"):
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


def test_a_second_writer_is_refused_and_a_dead_ones_lock_is_free(tmp_path, tiny):
    config, folder = tiny(), tmp_path / "run"
    code = (
        "import sys, os, tase, conftest\n"
        "from tase.runs import RunWriter\n"
        "config = tase.preset('digits-lt', overrides=conftest.TINY)\n"
        f"writer = RunWriter({str(folder)!r}, config).__enter__()\n"
        "writer.begin(tase.lazy.torch.device('cpu'), tase.load_splits(config).train)\n"
        "writer.status('training', epoch=0)\n"
        "print('held', flush=True); sys.stdin.read(1); os._exit(1)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.getcwd()])}
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert other.stdout.readline().strip() == "held"
    run = tase.Run(folder)
    assert run.is_training and run.state == "training"
    with (
        pytest.raises(RunError, match="is in use by another process; wait for it"),
        RunWriter(folder, config, resume=True),
    ):
        pass
    other.kill()
    other.communicate()
    assert not run.is_training and run.state == "lost" and run.status["state"] == "training"
    with RunWriter(folder, config, resume=True):
        assert run.is_training
    assert run.is_training is False
    (folder / ".lock").unlink(missing_ok=True)  # older filelocks remove it
    (folder / ".lock").mkdir()  # as good as a lock of another user, also for root
    assert run.is_training is None and run.state == "training"


def test_looking_whether_a_run_trains_stops_no_training_from_starting(tmp_path, tiny):
    lock, stop = tmp_path / ".lock", threading.Event()
    lock.touch()

    def look():
        while not stop.is_set():
            is_held(lock)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for thread in lookers:
        thread.start()
    try:
        for _ in range(20):
            with hold(lock):
                assert is_held(lock)
    finally:
        stop.set()
        for thread in lookers:
            thread.join()


def test_a_writer_needs_only_plain_methods(tmp_path, tiny, trained):
    """As in training with several processes: a proxy that calls the methods of rank 0 and nothing else."""

    class Proxy:
        def __init__(self, writer):
            self._writer = writer

        def __getattr__(self, name):
            method = getattr(self._writer, name)
            assert callable(method), f"{name} is no method"
            return method

    writer = RunWriter(tmp_path / "run", trained[2].config, resume=True)
    images = trained[2].images
    with writer:
        proxy = Proxy(writer)
        assert not proxy.finished(images) and proxy.restored() is None
        proxy.begin(torch.device("cpu"), images)
        proxy.cut_back(0)
        assert proxy.action() == "run" and proxy.take(0, 0) == []
        proxy.snapshot(0, tau=np.ones(len(images), np.float32))
        proxy.log({"epoch": 1, "loss": 2.0})
        proxy.checkpoint({"identity": writer.config.identity, "epoch": 1})
        proxy.encoder(tase.models.initial_network(writer.config, 1, 8))
        proxy.status("finished", epoch=8)
        assert proxy.restored()["epoch"] == 1 and proxy.finished(images)
    run = tase.Run(tmp_path / "run")
    assert run.finished and run.history.tau.shape == (1, len(images)) and run.encoder() is not None


def test_a_run_of_an_older_identity_is_resumed(tmp_path, trained):
    """What an older tase hashed of the same configuration stays the name of its checkpoint and of the folder."""
    config, folder = trained[2].config, tmp_path / "run"
    tase.train(config, folder, until=4, progress=False)
    saved, state = load_json(folder / "config.json"), load_checkpoint(folder, config.identity)
    save_json(folder / "config.json", {**saved, "identity": "0123456789ab", "format": 2})
    for _ in range(2):
        save_checkpoint(folder, {**state, "identity": "0123456789ab"})
    run = tase.train(config, folder, resume=True, until=5, progress=False)
    assert run.saved_identity == "0123456789ab" and run.identity == config.identity
    (folder / "checkpoint.pt").write_bytes(b"")  # and the one before it, of the older tase, is still its own
    with pytest.warns(UserWarning, match="resuming from checkpoint.previous.pt, epoch 4"):
        run = tase.train(config, folder, resume=True, progress=False)
    assert np.array_equal(run.history.tau, trained[2].history.tau)
    save_checkpoint(folder, {**state, "identity": "another"})
    with pytest.raises(RunError, match="belongs to another configuration"):
        load_checkpoint(folder, config.identity)


def test_tensors_saved_without_a_checksum_are_checked_by_their_crc(tmp_path):
    """Encoders of formats 1 and 2 are plain zips of torch.save."""
    path = tmp_path / "old.pt"
    torch.save({"w": torch.arange(500.0)}, path)
    whole = path.read_bytes()
    assert torch.equal(load_pt(path)["w"], torch.arange(500.0))
    at = whole.index(torch.arange(500.0).numpy().tobytes())
    for damaged in (whole[: len(whole) // 2], whole[: at + 40] + bytes([whole[at + 40] ^ 1]) + whole[at + 41 :], b""):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged"):
            load_pt(path)
    save_pt(path, {"w": torch.ones(3)})
    assert torch.equal(torch.load(path, weights_only=True)["w"], torch.ones(3))  # torch reads what has one


def test_folders_of_something_else_are_refused(tmp_path, tiny, trained):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        tase.train(tiny(), tmp_path, progress=False)
    with pytest.raises(RunError, match="notes.txt is a file"):
        tase.train(tiny(), tmp_path / "notes.txt", progress=False)
    with pytest.raises(RunError, match="notes.txt/run cannot be written: Not a directory"):
        tase.train(tiny(), tmp_path / "notes.txt" / "run", progress=False)
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
    fresh = tase.models.initial_network(run.config, 1, 8)
    assert not torch.allclose(tase.encode(fresh.backbone, images.images), h, atol=0.1)


def test_a_slim_copy_is_enough_for_tables_and_figures(trained, tmp_path):
    run = trained[2]
    slim = run.slim(tmp_path / "first").slim(tmp_path / "second")  # also of a slim copy
    for name in ("tau", "weight", "headness", "loss"):
        np.testing.assert_allclose(getattr(slim.history, name), getattr(run.history, name), rtol=1e-3)
    for name in ("epoch", "pseudo_label", "labels", "counts", "groups", "classes"):
        assert np.array_equal(getattr(slim.history, name), getattr(run.history, name))
    assert slim.history.quality == run.history.quality and slim.metrics.equals(run.metrics)
    assert slim.results == run.results and slim.finished and slim.identity == run.identity
    assert slim.environment == run.environment
    for sizes, whole in zip(slim.history.cluster_sizes, run.history.cluster_sizes, strict=True):
        assert np.array_equal(sizes, whole)
    for ask in (lambda: slim.history.features(0), slim.features, slim.encoder):
        with pytest.raises(RunError, match="slim copy"):
            ask()
    assert sum(p.stat().st_size for p in slim.path.rglob("*") if p.is_file()) < 100_000


def test_what_tables_need_is_trust_and_quality_at_two_snapshots(trained, tmp_path):
    run = trained[2]
    few = run.slim(tmp_path / "first", tables_only=True).slim(tmp_path / "second", tables_only=True)
    at = [run.trusted_at, len(run.history) - 1]
    assert few.history.epoch.tolist() == run.history.epoch[at].tolist() and few.trusted_at == 0 < run.trusted_at
    for name in ("trust", "shared", "agreement"):
        assert np.array_equal(getattr(few.history, name), getattr(run.history, name)[at])
    assert few.history.quality == [run.history.quality[t] for t in at]
    with pytest.raises(RunError, match="slim copy"):
        few.history.tau  # noqa: B018


# ----------------------------------------------------------------------------------------------------------- kept runs


def test_kept_runs_are_one_file_of_the_same_bytes(trained, tmp_path):
    zipped = keep_runs(trained[1:], tmp_path / "a" / "runs.zip")
    again = keep_runs(kept_runs(zipped), tmp_path / "b" / "runs.zip")
    assert zipped.read_bytes() == again.read_bytes() and [p.name for p in again.parent.iterdir()] == ["runs.zip"]
    for path in (zipped, zipped.parent, trained[1].path.parent):
        runs = {run.name: run for run in kept_runs(path)}
        assert runs["tase"].results == trained[2].results and list(runs) == sorted(runs)
        assert {"simclr", "tase"} <= runs.keys()
    assert kept_runs(zipped)[0].path == kept_runs(again)[0].path  # unpacked once


def test_runs_are_added_to_those_kept_and_replace_their_namesakes(trained, tmp_path):
    keep_runs(trained[:2], tmp_path / "runs.zip")
    keep_runs([trained[2], trained[1]], tmp_path / "runs.zip")
    assert [run.name for run in kept_runs(tmp_path)] == ["balanced", "simclr", "tase"]
    other = trained[0].slim(tmp_path / "other" / "tase")
    with pytest.raises(RunError, match="have one name, tase"):
        keep_runs([trained[2], other], tmp_path / "new.zip")


def test_damage_of_kept_runs_is_noticed(trained, tmp_path):
    whole = keep_runs(trained[2:], tmp_path / "runs.zip").read_bytes()
    names = ("tau", "pseudo_label", "labels")
    before = [getattr(kept_runs(tmp_path)[0].history, name) for name in names]
    rng, noticed = random.Random(0), 0
    for trial in range(40):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "runs.zip").write_bytes(damaged if trial % 4 else whole[: rng.randrange(len(whole))])
        try:
            (run,) = kept_runs(tmp_path)
        except (RunError, ValueError) as error:
            assert isinstance(error, RunError) and "runs.zip is damaged" in str(error)
            noticed += 1
            continue
        assert all(np.array_equal(getattr(run.history, n), a) for n, a in zip(names, before, strict=True))
        assert run.results == trained[2].results
    assert noticed >= 30
    with pytest.raises(RunError, match="does not exist"):
        kept_runs(tmp_path / "nowhere")


def test_kept_results_open_under_the_identity_they_were_saved_with():
    """All runs that are kept under figures/: of formats 1 and 2, most of them named by their identity."""
    zips = sorted((Path(__file__).parent.parent / "figures").rglob("runs.zip"))
    runs = [run for path in zips for run in kept_runs(path)]
    assert len(zips) >= 7 and len(runs) >= 177
    for run in runs:
        assert run.owns(run.config.identity) and run.config.identity == run.saved_identity
        assert len(run.name) != 12 or run.name == run.config.identity
        assert run.finished and run.history.quality and (run.results or (run.path / RESULTS["val"]).exists())
        assert not re.search(r"/(home|root|work|Users)/\w", (run.path / "config.json").read_text())


# ------------------------------------------------------------------------------------------- what a run says of itself


def test_a_run_shows_itself_and_escapes_names(trained, tmp_path):
    nasty = tmp_path / "<img src=x>"
    shutil.copytree(trained[2].path, nasty)
    html = tase.Run(nasty)._repr_html_()
    assert "<img" not in html and "&lt;img" in html and "tase" in html
    assert "finished" in repr(trained[2])


def test_a_run_is_described_in_plain_lines(trained):
    run = trained[2]
    rows = run.describe()
    assert rows["state"] == "finished, epoch 8 of 8" and run.identity in rows["identity"]
    assert rows["method"] == "TASE (tase)" and rows["images"].startswith(f"{run.environment['images']}, subset ")
    assert rows["linear"].startswith(f"all {run.results['protocols']['linear']['all']:.1f}, head")
    assert f"nmi {run.history.quality[-1]['nmi']:.2f}" in rows["clusters"]
    trust, (low, high) = run.history.trust, run.at_ends
    assert rows["trust"].startswith(f"{trust[run.trusted_at]:.2f} at epoch {run.history.epoch[run.trusted_at]}: ")
    assert (
        trust_words(trust[run.trusted_at], trust[-1]) in rows["trust"]
        and f"{trust[-1]:.2f}; clusterings" in rows["trust"]
    )
    tau = run.history.tau[-1]
    assert (low, high) == ((tau < tau.min() + 1e-3).mean(), (tau > tau.max() - 1e-3).mean()) and low > 0 < high
    assert f"{100 * low:.1f} % of" in rows["at the ends"] and f"{100 * high:.1f} % the" in rows["at the ends"]
    assert trained[1].at_ends is None and "at the ends" not in trained[1].describe()
    assert all(value in run._repr_html_() for value in rows.values())


def test_where_there_is_no_repository_the_version_is_said(tmp_path, monkeypatch):
    def nothing(*words, **_):
        raise subprocess.CalledProcessError(128, words)

    assert re.fullmatch(r"[0-9a-f]{10}\+?|version .+", commit())
    monkeypatch.setattr(subprocess, "run", nothing)
    assert commit() == f"version {tase.__version__}" == commit_text(commit())
    assert commit_text("0123456789+", "9876543210", "0123456789+") == "commit 0123456789+, 9876543210"


def test_requests_are_checked(trained, tmp_path):
    run = trained[2]
    with pytest.raises(ConfigError, match="did you mean 'guidance.tau_max'"):
        run.control(tau_mx=0.3)
    with pytest.raises(ConfigError, match="at least guidance.tau_min"):
        run.control(tau_max=0.01)
    with pytest.raises(ConfigError, match="unknown action"):
        run.control(action="halt")
    for method in ("simclr", "ts", "mm-ts", "isogclr-tau"):
        config = tase.preset("digits-lt", method)
        assert not config.guidance_class.steerable
        with pytest.raises(ConfigError, match="has no guidance to steer"):
            request(tmp_path, config, set={"guidance.tau_max": 0.4})
        request(tmp_path, config, "pause")
    assert not (run.path / "control.json").exists()


def test_a_later_request_keeps_what_still_waits(trained, tmp_path):
    slim = trained[2].slim(tmp_path / "slim")
    first = slim.control(tau_max=0.4)
    slim.control(action="pause")
    waiting = load_json(slim.path / "control.json")
    assert waiting["action"] == "pause" and waiting["set"] == {"guidance.tau_max": 0.4} == slim.pending
    (slim.path / "events.jsonl").write_text(json.dumps({"id": waiting["id"], "epoch": 2, "step": 9, "set": {}}) + "\n")
    assert slim.control(action="run") not in (first, waiting["id"])
    assert load_json(slim.path / "control.json")["set"] == {} == slim.pending


def test_a_request_is_checked_after_what_has_been_steered_already(trained, tmp_path):
    slim = trained[2].slim(tmp_path / "slim")
    taken = {"guidance.tau_min": 0.6, "guidance.tau_max": 0.9}
    (slim.path / "events.jsonl").write_text(json.dumps({"id": "a", "epoch": 2, "step": 9, "set": taken}) + "\n")
    slim.control(tau_min=0.7)  # above the tau_max that the run began with
    with pytest.raises(ConfigError, match="at least guidance.tau_min = 0.7"):
        slim.control(tau_max=0.65)
    (slim.path / "control.json").write_text(json.dumps({"id": "b", "set": {"guidance.tau_max": -1}}))
    slim.control(action="stop")  # can always be asked for
    assert load_json(slim.path / "control.json")["action"] == "stop"


def test_metrics_of_a_growing_file_leave_out_a_half_line(trained, tmp_path):
    slim = trained[2].slim(tmp_path / "slim")
    with open(slim.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"epoch": 9, "loss": 1.0})[:10])
    assert slim.metrics["epoch"].tolist() == list(range(1, 9))


def test_what_another_process_did_while_the_lock_was_waited_for_is_seen(tmp_path, tiny, trained, monkeypatch):
    @contextlib.contextmanager
    def slow(path, wait=1.0):
        shutil.copytree(trained[2].path, tmp_path / "run", dirs_exist_ok=True)  # a training that ended meanwhile
        with hold(path, wait):
            yield

    monkeypatch.setattr(tase.runs.writer, "hold", slow)
    with pytest.raises(RunError, match="holds this run already"), RunWriter(tmp_path / "run", trained[2].config):
        pass
    with hold(tmp_path / "run" / ".lock", wait=0):
        assert tase.Run(tmp_path / "run").finished
