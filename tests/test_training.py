"""The loop: it learns, it resumes bit for bit, it stops when asked, it notices what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import tase
from tase import training
from tase.config import METHODS, ConfigError, OptimConfig
from tase.data import load_splits
from tase.distributed import choose_device, device_here
from tase.files import RunError, load_npz, read_lines, save_json
from tase.guidance import Guidance, Method
from tase.runs import load_checkpoint
from tase.training import Training, TrainingError, learning_rate, train, train_epoch


def arrays_of(run):
    """All that a run has learnt: weights and every array of every snapshot."""
    found = {f"encoder/{k}": v.numpy() for k, v in run.encoder().state_dict().items()}
    for path in sorted((run.path / "history").glob("*.npz")):
        found.update({f"{path.name}/{k}": v for k, v in load_npz(path).items()})
    return found


def assert_same_run(a, b):
    first, second = arrays_of(a), arrays_of(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert np.array_equal(value, second[name], equal_nan=value.dtype.kind == "f"), name
    timed = ("images_per_second",)
    rows = [
        [{k: v for k, v in row.items() if k not in timed} for row in read_lines(r.path / "metrics.jsonl")]
        for r in (a, b)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("cut", [1, 3, 5, 7])
def test_resumed_is_bit_equal_before_inside_and_after_the_ramp(cut, tiny, trained, tmp_path):
    stopped = train(trained[2].config, tmp_path / "run", until=cut, progress=False)
    assert stopped.status["state"] == "stopped" and stopped.status["epoch"] == cut
    resumed = train(trained[2].config, tmp_path / "run", resume=True, progress=False)
    assert resumed.finished
    assert_same_run(resumed, trained[2])


def test_a_run_is_not_resumed_on_another_kind_of_device(tiny, tmp_path):
    t = Training(tiny("simclr"), load_splits(tiny("simclr")).train)
    with pytest.raises(RunError, match="begun on cuda and cannot go on on cpu: set optim.device=cuda"):
        t.restore(t.state() | {"device": "cuda"})
    older = t.state()
    del older["device"]
    t.restore(older)


def test_no_epoch_is_what_it_says(tiny, tmp_path):
    assert train(tiny("simclr"), tmp_path / "run", until=0, progress=False).status["epoch"] == 0


def test_gpus_are_named_by_their_number(monkeypatch):
    """torch 2.4 asks for the memory of a numbered device only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    found = {name: choose_device(OptimConfig(device=name)) for name in ("auto", "cuda", "cuda:0", "cpu")}
    assert [str(device) for device in found.values()] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    with pytest.raises(ConfigError, match="below cuda:2"):
        choose_device(OptimConfig(device="cuda:2"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_here(OptimConfig(device="cuda:1")).type == "cpu"  # of a run trained elsewhere


@pytest.mark.parametrize("method", ["simclr", "ts", "mm-ts", "isogclr-tau", "shuffled", "oracle"])
def test_every_method_trains_and_resumes(method, tiny, tmp_path):
    config = tiny(method, optim__epochs=4, record__knn_every=2)
    whole = train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "cut", until=3, progress=False)
    assert_same_run(train(config, tmp_path / "cut", resume=True, progress=False), whole)


class Prototypes(Guidance):
    """Uses every hook: a head of its own that is trained, changed views and projections, a term of the loss."""

    title, per_sample, uses_features = "Prototypes", True, True

    def modules(self, network):
        self.head = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4, affine=False))
        with torch.no_grad():
            self.head[0].weight.normal_(generator=self.own_generator("head")), self.head[0].bias.zero_()
        self.head.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        return self.head

    def views(self, index, view1, view2, generator, offset=0, total=None):
        side = int(torch.rand((), generator=generator) < 0.5)  # one draw for all: several processes have the same
        return view1, torch.where((index % 2 == side)[:, None, None, None], view2.flip(-1), view2)

    def embed(self, network, view1, view2):
        return network(view1), 1.0 * network(view2)

    def extra(self, index, z1, z2):
        own = self.tau[index] * (self.head[0](z1.float()) - z2.float()[:, :4]).square().mean(1)
        return 0.1 * own.mean()

    def update(self, features, epoch):
        super().update(features, epoch)
        self.tau = 0.1 + 0.2 * self.pseudo.q.float()
        with torch.no_grad():
            self.head[0].bias.add_(0.01)


@pytest.fixture
def prototypes(monkeypatch):
    monkeypatch.setitem(METHODS, "prototypes", Method(Prototypes))


def test_what_a_method_trains_of_its_own_learns_and_resumes(prototypes, tiny, tmp_path):
    config = tiny("prototypes", optim__epochs=4)
    whole = train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "cut", until=3, progress=False)
    assert_same_run(train(config, tmp_path / "cut", resume=True, progress=False), whole)
    saved = [load_checkpoint(tmp_path / name, config.identity) for name in ("whole", "cut")]
    assert all(torch.equal(v, saved[1]["modules"][k]) for k, v in saved[0]["modules"].items())
    fresh = Training(config, tase.load_splits(config).train)
    assert not torch.equal(fresh.modules[0].weight, saved[0]["modules"]["0.weight"])


def test_stopping_inside_an_epoch_resumes_bit_equal(tiny, trained, tmp_path, monkeypatch):
    """As on Ctrl-C, which is looked at after each step."""
    steps = iter(range(1000))
    real = training.train_step

    def interrupted(t, *batch):
        if next(steps) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return real(t, *batch)

    monkeypatch.setattr(training, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="resume"):
        train(trained[2].config, tmp_path / "run", progress=False)
    monkeypatch.setattr(training, "train_step", real)
    run = tase.Run(tmp_path / "run")
    assert run.status["state"] == "stopped" and run.status["step"] == 21
    assert_same_run(train(trained[2].config, tmp_path / "run", resume=True, progress=False), trained[2])


def test_killed_at_once_resumes_bit_equal(trained, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tase", "train", "--preset", "digits-lt", "--quiet", "--out", str(out), "--set"]
    from conftest import TINY

    process = subprocess.Popen([*command, *(f"{k}={v}" for k, v in TINY.items())])
    while not (out / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert_same_run(train(trained[2].config, out, resume=True, progress=False), trained[2])


def test_other_threads_than_before_are_told(tiny, tmp_path):
    train(tiny(optim__epochs=2), tmp_path / "run", until=1, progress=False)
    torch.set_num_threads(2)
    try:
        with pytest.warns(UserWarning, match="begun with 1 threads, resumed with 2"):
            train(tiny(optim__epochs=2), tmp_path / "run", resume=True, progress=False)
    finally:
        torch.set_num_threads(1)


def test_other_processes_than_before_are_told(tiny, tmp_path):
    run = train(tiny(optim__epochs=2), tmp_path / "run", until=1, progress=False)
    save_json(run.path / "environment.json", {**run.environment, "processes": 4})
    with pytest.warns(UserWarning, match="begun with 4 processes, resumed with 1.*--nproc-per-node 4"):
        train(tiny(optim__epochs=2), tmp_path / "run", resume=True, progress=False)


def test_images_are_encoded_once_where_knn_and_refresh_meet(trained, tmp_path, monkeypatch):
    seen, real = [], training.models.encode

    def counting(module, images, *inputs, **options):
        seen.append(len(images))
        return real(module, images, *inputs, **options)

    monkeypatch.setattr(training.models, "encode", counting)
    assert_same_run(train(trained[2].config, tmp_path / "run", progress=False), trained[2])
    assert seen.count(405) == 5  # refreshes at 0, 2, 4, 6, 8; the k-NN at 4 and 8 takes their features


def test_a_finished_run_is_returned_as_it_is(trained):
    before = (trained[2].path / "encoder.safetensors").stat().st_mtime_ns
    assert train(trained[2].config, trained[2].path, resume=True, progress=False).finished
    assert (trained[2].path / "encoder.safetensors").stat().st_mtime_ns == before


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    """The configuration names a folder; what is in it may change."""
    from PIL import Image

    rng = np.random.default_rng(0)
    config = tase.preset("folder", "simclr", overrides={"data.root": str(tmp_path / "my"), "data.image_size": 8})
    config = tase.override(config, {"optim.epochs": 2, "optim.batch": 8, "model.channels": "8,8,8,8"})
    (tmp_path / "my").mkdir()
    for name in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "my" / f"{name}.png")
    config = tase.override(config, {"data.cache": str(tmp_path / "cache")})
    train(config, tmp_path / "run", until=1, progress=False)
    assert train(config, tmp_path / "run", resume=True, progress=False).finished
    (tmp_path / "my" / "3.png").unlink()
    with pytest.raises(RunError, match="begun on other images"):
        train(config, tmp_path / "run", resume=True, progress=False)


def test_same_seed_same_run_other_seed_other_run(tiny, trained, tmp_path):
    again = train(trained[2].config, tmp_path / "again", progress=False)
    assert_same_run(again, trained[2])
    other = train(tiny(seed=1, optim__epochs=2), tmp_path / "other", progress=False)
    assert other.environment["subset"] != again.environment["subset"]
    assert not np.array_equal(arrays_of(other)["encoder/0.weight"], arrays_of(again)["encoder/0.weight"])


def test_training_neither_uses_nor_moves_the_global_generator(tiny, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run = train(tiny(optim__epochs=2), tmp_path / "a", progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert_same_run(train(tiny(optim__epochs=2), tmp_path / "b", progress=False), run)


def test_steering_is_recorded_and_replayed(tiny, tmp_path):
    config = tiny(record__checkpoint_every=1)

    def steer(run):
        if run.status["epoch"] == 5:
            run.control(tau_min=0.3, tau_max=0.31, gamma=0.0)

    run = train(config, tmp_path / "a", on_epoch=steer, progress=False)
    assert [(e["epoch"], e["set"]["guidance.gamma"]) for e in run.events] == [(6, 0.0)]
    assert run.steered and run.identity != config.identity and "steered" in repr(run)
    assert run.history.tau[-1].min() >= 0.3 - 1e-6 and np.allclose(run.history.weight[-1], 1)
    assert run.history.tau[-3].min() < 0.29
    train(config, tmp_path / "b", until=4, on_epoch=steer, progress=False)
    (tmp_path / "b" / "events.jsonl").write_text((tmp_path / "a" / "events.jsonl").read_text())
    (tmp_path / "b" / "control.json").write_text((tmp_path / "a" / "control.json").read_text())
    replayed = train(config, tmp_path / "b", resume=True, progress=False)
    assert_same_run(replayed, run)
    assert replayed.identity == run.identity


def test_a_run_that_repeats_its_events_takes_a_new_request_after_them(tiny, tmp_path):
    config = tiny(record__checkpoint_every=1)
    run = train(config, tmp_path / "a", until=2, progress=False)
    old = {"id": "old", "epoch": 6, "step": 36, "set": {"guidance.tau_max": 0.9}}
    (run.path / "events.jsonl").write_text(json.dumps(old) + "\n")  # as of a run that came to epoch 6 before
    run.control(tau_max=0.3)
    run = train(config, tmp_path / "a", resume=True, progress=False)
    assert [(e["epoch"], e["set"]["guidance.tau_max"]) for e in run.events] == [(6, 0.9), (6, 0.3)]
    assert run.history.tau[-1].max() == pytest.approx(0.3, abs=0.01)


def test_stop_and_pause_from_outside(tiny, tmp_path):
    def stop(run):
        if run.status["epoch"] == 2:
            run.control(action="stop")

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run", on_epoch=stop, progress=False)
    assert tase.Run(tmp_path / "run").status["state"] == "stopped"
    assert train(tiny(), tmp_path / "run", resume=True, progress=False).finished


@pytest.mark.parametrize(
    ("overrides", "likely"),
    [({"optim__lr": 1e12, "optim__warmup_epochs": 0, "optim__precision": "float32"}, "learning rate too high")],
)
def test_a_loss_that_is_not_finite_stops_with_step_and_likely_field(overrides, likely, tiny, tmp_path):
    with pytest.raises(TrainingError, match=likely) as error:
        train(tiny(**overrides), tmp_path / "run", progress=False)
    assert "since step" in str(error.value) and "optim.lr" in str(error.value)
    status = tase.Run(tmp_path / "run").status
    assert status["state"] == "failed" and status.get("epoch", 0) == len(tase.Run(tmp_path / "run").metrics)


def test_impossible_sizes_name_the_field(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"optim.batch = 1000: .*405"):
        train(tiny(optim__batch=1000), tmp_path / "a", progress=False)
    with pytest.raises(ConfigError, match=r"guidance.clusters = 500"):
        train(tiny(guidance__clusters=500), tmp_path / "b", progress=False)
    with pytest.raises(ConfigError, match="there is no GPU"):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        train(tiny(optim__device="cuda"), tmp_path / "c", progress=False)
    assert list(tmp_path.iterdir()) == []  # nothing is left of a run that could not begin


def test_learning_rate_warms_up_then_falls_to_the_end():
    optim = tase.preset("cifar10-lt").optim
    per_epoch, last = 21, 2000 * 21 - 1
    rates = [learning_rate(optim, s, per_epoch) for s in (0, 104, 209, 210, last)]
    assert rates[0] == pytest.approx(0.5 / 210)
    assert rates[2] == pytest.approx(0.5) and rates[3] == pytest.approx(0.5)
    assert rates[1] == pytest.approx(0.25) and rates[4] == pytest.approx(1e-6)
    short = tase.override(tase.preset("cifar10-lt"), {"optim.epochs": 2}).optim
    assert learning_rate(short, 2 * 21 - 1, 21) == pytest.approx(1e-6)


def test_training_learns_what_the_untrained_network_does_not_know(tiny, tmp_path):
    config = tiny("simclr", optim__epochs=30, model__channels="16,32,32,32", record__knn_every=0)
    run = train(config, tmp_path / "run", progress=False)
    loss = run.metrics["loss"]
    assert loss.iloc[-1] < loss.iloc[0] - 0.5
    assert np.allclose(run.metrics["attraction"] + run.metrics["repulsion"], loss, atol=1e-4)


def test_chunked_loss_gives_the_same_training(tiny):
    config = tiny(optim__precision="float32")
    losses = []
    for chunk in (0, 48):
        t = Training(tase.override(config, {"optim.loss_chunk": chunk}), tase.load_splits(config).train)
        t.guidance.start_epoch(0)
        train_epoch(t)
        losses.append(t.sums.tolist())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_bf16_and_float32_agree(tiny):
    losses = []
    for precision in ("float32", "bf16"):
        t = Training(tiny(optim__precision=precision), tase.load_splits(tiny()).train)
        train_epoch(t)
        losses.append(t.sums[0].item() / t.sums[3].item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_without_snapshots_nothing_changes_but_the_folder(tiny, trained, tmp_path):
    run = train(tase.override(trained[2].config, {"record.snapshots": False}), tmp_path / "run", progress=False)
    assert run.history.epoch.tolist() == [8]
    assert torch.equal(run.encoder()[0].weight, trained[2].encoder()[0].weight)
    assert np.array_equal(run.history.tau[-1], trained[2].history.tau[-1])


def test_on_a_gpu_training_and_resuming_work(cuda, tiny, tmp_path):
    config = tiny(optim__device="cuda", optim__compile=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config, tmp_path / "run", until=3, progress=False)
        run = train(config, tmp_path / "run", resume=True, progress=False)
    assert run.finished and run.environment["device_type"] == "cuda"


def test_the_command_line_trains_and_prints_one_json_object(tmp_path):
    from conftest import TINY

    sets = [f"{k}={v}" for k, v in {**TINY, "optim.epochs": 2}.items()]
    command = [sys.executable, "-m", "tase", "train", "--preset", "digits-lt", "--json", "--out", str(tmp_path / "r")]
    done = subprocess.run([*command, "--set", *sets], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] == 2
    again = subprocess.run([*command, "--set", *sets], capture_output=True, text=True, timeout=120)
    assert again.returncode == 2 and again.stderr.startswith("error:") and "Traceback" not in again.stderr


@pytest.fixture
def many(monkeypatch):
    """405 images count as many: 200 of them are clustered, their features are not kept."""
    monkeypatch.setattr("tase.pseudo_labels.PseudoLabels.sample", 200)
    return {"record__sample": 120, "record__features": 50}


def test_of_many_images_a_sample_is_recorded(many, tiny, tmp_path):
    run = train(tiny(**many), tmp_path / "run", progress=False)
    h, index = run.history, run.history.recorded
    assert h.tau.shape == h.pseudo_label.shape == (5, 120) and len(h.labels) == 120 and (np.diff(index) > 0).all()
    assert (
        torch.equal(run.images.images, run.splits.train.images[index])
        and run.images.labels.tolist() == h.labels.tolist()
    )
    assert [len(h.feature_index(t)) for t in range(5)] == [50] * 4 + [120]
    features = tase.encode(run.encoder(), run.images.images).numpy()
    np.testing.assert_allclose(run.features(), features, rtol=1e-2, atol=1e-3)  # saved in half precision
    assert h.cluster_sizes[-1].sum() == pytest.approx(405, rel=1e-4) and np.isfinite(h.quality[-1]["nmi"])
    assert run.slim(tmp_path / "slim").history.recorded.tolist() == index.tolist()


def test_a_run_of_many_images_resumes_and_keeps_its_sample(many, tiny, tmp_path):
    whole, config = train(tiny(**many), tmp_path / "a", progress=False), tiny(**many)
    train(config, tmp_path / "b", until=5, progress=False)
    again = train(tase.override(config, {"record.sample": 77}), tmp_path / "b", resume=True, progress=False)
    assert_same_run(whole, again)


def test_many_images_work_with_averaged_clusterings(many, tiny, tmp_path):
    run = train(tiny(guidance__clusterings=2, **many), tmp_path / "run", progress=False)
    few = train(tiny(**many), tmp_path / "few", progress=False)
    assert run.history.headness.shape == (5, 120) and not np.allclose(run.history.headness, few.history.headness)


def test_a_run_of_many_images_is_evaluated_explored_and_told(many, tiny, tmp_path):
    run = train(tiny(**many), tmp_path / "run", progress=False)
    results = tase.evaluate(run, protocols=["lt-knn"], progress=False)
    assert results["protocols"]["lt-knn@1"]["all"] > 50 and len(results["push"]["per_class"]) == 10
    report = tase.report(run, out=tmp_path / "report.html")
    assert report.stat().st_size > 10_000
