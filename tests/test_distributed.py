"""Several processes (gloo, CPU) train one run as one process would, and end together."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TINY
from test_training import Prototypes, assert_same_run
from torch import nn

import tase
from tase import distributed
from tase.__main__ import main
from tase.config import METHODS, ViewsConfig, applicable
from tase.guidance import Method
from tase.losses import nt_xent
from tase.training import Training, refresh, train_epoch, whole
from tase.views import rand_augment

# Images (2 and 3 processes share them evenly); tau, weight, scale or not; rows of a chunk.
LOSSES = [(6, False, None), (18, True, None), (18, True, 4), (6, True, 1), (66, False, 16)]
TRAINED = ("tase", "isogclr-tau", "prototypes", "sdclr", "bcl-d", "gh", "tase+gh")
KNOWN = (
    "tau",
    "weight",
    "loss_memory",
    "strength",
    "class_memory",
    "marginal",
)  # of every sample, where a method has it
SHORT = {**TINY, "optim.epochs": 10, "record.checkpoint_every": 1, "record.knn_every": 5, "optim.batch": 62}

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def one_loss(b, weighted, chunk):
    """The loss of this process's shard of b images, of the whole batch, and the network's gradients."""
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))
    for i, p in enumerate(net.parameters()):
        nn.init.normal_(p, generator=gen(i))
    x1, x2 = torch.randn(2, b, 6, generator=gen(b))
    tau, weight, scale = 0.1 + torch.rand(3, b, generator=gen(1))
    values = (tau, weight, chunk, scale) if weighted else (0.2, None, chunk, None)
    own = distributed.shard(b)
    z1, z2 = net(x1[own]), net(x2[own])
    columns = (distributed.gather(z1, b), distributed.gather(z2, b))
    out = nt_xent(z1, z2, *values, columns=columns, offset=own.start)
    with distributed.summed_gradients(net.parameters()):
        out.loss.backward()
    return [*whole(out, b)[:7], *(p.grad for p in net.parameters())]


def a_gradient_of_what_is_gathered():
    """Every process uses all rows, each in its own way: the gradient of a row is the sum over the processes."""
    x = torch.arange(12.0).view(6, 2)[distributed.shard(6)].requires_grad_()
    (distributed.gather(x, 6) ** 2).mul(distributed.rank() + 1.0).sum().backward()
    factor = sum(range(1, distributed.world() + 1))
    return [x.grad / factor, 2 * x.detach()]


def some_buckets(size=5):
    """Gradients summed in many small messages; a parameter without gradient, one that is used twice."""
    used, unused, twice = (nn.Parameter(torch.ones(n)) for n in (4, 3, 2))
    before, distributed.BUCKET = distributed.BUCKET, size
    with distributed.summed_gradients([used, unused, twice]):
        (used.sum() + twice.sum() + (twice**2).sum()).backward()
    distributed.BUCKET = before
    assert unused.grad is None
    return [used.grad / distributed.world(), twice.grad / distributed.world()]


def some_rows():
    """Shards of numbers that do not divide evenly, put together again."""
    return [distributed.gather(torch.arange(n)[distributed.shard(n)], n) for n in (1, 2, 3, 4, 7, 9, 203)]


def some_views():
    images = torch.randint(0, 256, (12, 3, 12, 12), dtype=torch.uint8, generator=gen())
    own = distributed.shard(12)
    rng = gen()
    views = tase.two_views(images[own], ViewsConfig(blur=0.5), rng, own.start, 12)
    strength = torch.rand(12, generator=gen(1))[own]
    views = [rand_augment(view, strength, 10.0, 2, True, rng, own.start, 12) for view in views]
    return [distributed.gather(view, 12) for view in views]


def trained_without_norm(method):
    """Two epochs and two refreshes of a network without batch norm: all that is known of every sample, and weights."""
    early = {**TINY, "optim.batch": 66, "optim.lr": 0.02, "guidance.warmup": 0, "guidance.ramp": 0}
    early["guidance.gh_warmup"] = 0
    config = tase.preset("digits-lt", method, overrides=applicable(early, method))
    t = Training(config, tase.load_splits(config).train)
    for part in (t.network.backbone, t.network.projector):
        for i, layer in enumerate(part):
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part[i] = nn.Identity()
    if method != "prototypes":
        t.modules = t.guidance.modules(t.network) or nn.ModuleList()
    for epoch in range(2):
        t.guidance.start_epoch(epoch)
        h = refresh(t)
        train_epoch(t)
    state = t.guidance.state_dict()
    samples = {name: state[name].nan_to_num(-9.0) for name in KNOWN if name in state} | {
        "label": t.guidance.pseudo_label
    }
    return (
        samples
        | {"headness": t.guidance.headness, "loss": t.loss_sum, "sums": t.sums, "h": h}
        | dict(t.network.named_parameters())
        | dict(t.modules.named_parameters())
    )


def everything():
    METHODS["prototypes"] = Method(Prototypes)
    try:
        trained = {method: trained_without_norm(method) for method in TRAINED}
    finally:
        del METHODS["prototypes"]
    return {
        **{f"loss {case}": one_loss(*case) for case in LOSSES},
        "gathered": a_gradient_of_what_is_gathered(),
        "buckets": some_buckets(),
        "rows": some_rows(),
        "views": some_views(),
        **trained,
    }


def worker(folder):
    """What each process of the team computes, and what it does when rank 0 fails."""
    with distributed.team(torch.device("cpu"), 66):
        found = everything() | {"error": error_of_all(Path(folder))}
        with pytest.raises(tase.ConfigError, match="only rank 0"):
            distributed.rank_zero(fail_on_rank_zero)()
        check_proxy()
        assert distributed.any_of(distributed.rank() == 1, False) == [True, False]
        torch.save(distributed.on_cpu(found), Path(folder) / f"{distributed.rank()}.pt")
    assert distributed.world() == 1  # what follows a training is done by one process, and waits for nobody
    with distributed.team(torch.device("cpu"), 66):
        assert distributed.world() > 1


class Notebook:
    """Something that only rank 0 may touch."""

    def __init__(self):
        self.name, self.lines = "notes", []

    def write(self, line, loud=False):
        assert distributed.rank() == 0 and distributed.world() == 1  # whatever it calls in turn acts alone
        self.lines.append(line.upper() if loud else line)
        return {"lines": len(self.lines), "tensor": torch.arange(2)}

    def __enter__(self):
        self.write("entered")
        return self

    def __exit__(self, *error):
        self.write("left")


def check_proxy():
    notebook = Notebook()
    with distributed.rank_zero(notebook) as proxy:
        found = proxy.write("a", loud=True)
    assert found["lines"] == 2 and found["tensor"].tolist() == [0, 1] and proxy.name == "notes"
    assert notebook.lines == (["entered", "A", "left"] if distributed.rank() == 0 else [])
    assert distributed.rank_zero(distributed.world)() == 1 < distributed.world()
    assert (distributed.rank_zero(os.getpid)() == os.getpid()) == (distributed.rank() == 0)


def error_of_all(folder):
    """Status and standard error of the command line in a folder that is no run's; the processes are a team already."""
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / "letter.txt").touch()
    with contextlib.redirect_stderr(io.StringIO()) as error:
        return main(command_line(folder / "mine")[2:]), error.getvalue()


def fail_on_rank_zero():
    assert distributed.rank() == 0
    raise tase.ConfigError("only rank 0 fails")


def start(n, *command):
    """n processes with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(n):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_PORT": port}
        env = {**os.environ, **{k: str(v) for k, v in names.items()}, "MASTER_ADDR": "127.0.0.1"}
        where = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, *command], cwd=Path(__file__).parent, **where))
    return started


def ended(processes, seconds=120):
    """(exit status, standard error) of each; none is left behind."""
    try:
        deadline = time.monotonic() + seconds
        errors = [p.communicate(timeout=max(1, deadline - time.monotonic()))[1] for p in processes]
        return [(p.returncode, error) for p, error in zip(processes, errors, strict=True)]
    finally:
        for p in processes:
            p.kill()


def command_line(out, *more):
    sets = [f"{name}={value}" for name, value in SHORT.items()]
    return ["-m", "tase", "train", "--preset", "digits-lt", "--out", str(out), "--quiet", *more, "--set", *sets]


@pytest.fixture(scope="module")
def alone():
    return everything()


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory):
    """What each of 2 or 3 processes found."""
    folder = tmp_path_factory.mktemp("team")
    processes = start(request.param, "-c", f"import test_distributed; test_distributed.worker({str(folder)!r})")
    for status, error in ended(processes):
        assert status == 0, error
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("case", LOSSES)
def test_loss_and_gradients_are_those_of_one_process(case, alone, together):
    for found in together:
        for value, expected in zip(found[f"loss {case}"], alone[f"loss {case}"], strict=True):
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)


def test_views_are_those_of_one_process(alone, together):
    for found in together:
        for value, expected in zip(found["views"], alone["views"], strict=True):
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)


def test_rows_are_gathered_whole_with_their_gradient(alone, together):
    for found in together:
        assert all(torch.equal(*pair) for pair in zip(found["rows"], alone["rows"], strict=True))
        torch.testing.assert_close(*found["gathered"])
    torch.testing.assert_close(*alone["gathered"])


def test_gradients_are_summed_in_buckets(alone, together):
    for found in together:
        for value, expected in zip(found["buckets"], alone["buckets"], strict=True):
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("method", TRAINED)
def test_training_without_batch_norm_is_that_of_one_process(method, alone, together):
    for found in together:
        for name, expected in alone[method].items():
            # Losses here differ by 0.003 only, and the strengths are their differences, stretched to 0 to 1.
            close = 1e-3 if name == "strength" else 1e-5 if name in KNOWN else 1e-4
            torch.testing.assert_close(
                found[method][name], expected, atol=close, rtol=close, msg=lambda m, n=name: n + m
            )
            if name in (*KNOWN, "label", "headness", "loss", "h"):
                assert torch.equal(found[method][name], together[0][method][name]), f"{name} differs between processes"
    assert alone["tase"]["tau"].std() > 0.01 and alone["bcl-d"]["strength"].std() > 0.01
    assert alone["gh"]["marginal"].std() > 0.001 and torch.equal(alone[method]["label"], together[0][method]["label"])


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run that torchrun trained with two processes, and what it printed."""
    out = tmp_path_factory.mktemp("torchrun") / "run"
    done = subprocess.run([*TORCHRUN, *command_line(out, "--json")], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return tase.Run(out), json.loads(done.stdout)


def test_torchrun_writes_one_normal_run(whole_run):
    run, printed = whole_run
    assert run.finished and printed["epoch"] == 10 and run.metrics["epoch"].tolist() == list(range(1, 11))
    assert run.metrics["knn"].notna().sum() == 2 and run.history.epoch.tolist() == list(range(0, 11, 2))
    assert run.environment["processes"] == 2
    loss = run.metrics["loss"].to_numpy()  # does not compare across the warm-up's end, where guidance scales it
    assert loss[run.config.warmup - 1] < loss[0] and loss[-1] < loss[len(loss) // 2]
    # Features of both processes' images are of the encoder that is kept: its running means are those of all.
    kept = torch.from_numpy(run.features())
    torch.testing.assert_close(kept, tase.encode(run.encoder(), run.images.images), atol=2e-3, rtol=2e-3)


def signalled(out, number, *more):
    """Exit status and standard error of two processes, of which the second got a signal after the first checkpoint."""
    before = (out / "checkpoint.pt").stat().st_mtime_ns if more else 0
    processes = start(2, *command_line(out, *more))

    def written():
        return (out / "checkpoint.pt").exists() and (out / "checkpoint.pt").stat().st_mtime_ns > before

    while not written() and all(p.poll() is None for p in processes):
        time.sleep(0.01)
    processes[1].send_signal(number)
    return ended(processes, 60)


def test_stopped_or_killed_processes_end_together_and_the_run_goes_on_exactly(whole_run, tmp_path):
    out = tmp_path / "run"
    assert [status for status, _ in signalled(out, signal.SIGTERM)] == [130, 130]
    assert tase.Run(out).status["state"] == "stopped"
    began = time.monotonic()
    (status, error), (killed, _) = signalled(out, signal.SIGKILL, "--resume")
    assert time.monotonic() - began < 60 and killed == -signal.SIGKILL
    assert status == 2 and error.count("error: process 0 cannot reach the others") == 1 and "Traceback" not in error
    assert tase.Run(out).status["state"] == "failed"
    assert [status for status, _ in ended(start(2, *command_line(out, "--resume")))] == [0, 0]
    assert_same_run(tase.Run(out), whole_run[0])


def restarted(out, restarts):
    """Kill the second process after the first checkpoint; torchrun may start all again: its status and what it said."""
    command = [*TORCHRUN, "--max-restarts", str(restarts), *command_line(out, "--resume")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (out / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    first = tase.Run(out).status["pid"]
    (second,) = {p.pid for p in psutil.Process(process.pid).children()} - {first}
    os.kill(second, signal.SIGKILL)
    told = process.communicate(timeout=180)[0]
    return process.returncode, told


def test_torchrun_restarts_a_killed_process_and_the_run_is_the_same(whole_run, tmp_path):
    status, told = restarted(tmp_path / "run", 1)
    assert status == 0, told
    assert_same_run(tase.Run(tmp_path / "run"), whole_run[0])


def test_a_run_resumed_at_another_size_differs_by_rounding_and_batch_norm_alone(whole_run, tmp_path):
    """The rule: one order of images, one set of draws, one schedule, one history; each process normalises its shard."""
    status, _ = restarted(tmp_path / "run", 0)
    assert status != 0
    stopped = len(tase.Run(tmp_path / "run").metrics)
    with pytest.warns(UserWarning, match="begun with 2 processes, resumed with 1"):
        assert main(command_line(tmp_path / "run", "--resume")[2:]) == 0
    run, whole = tase.Run(tmp_path / "run"), whole_run[0]
    one, two = run.metrics, whole.metrics
    assert one["lr"].tolist() == two["lr"].tolist() and one["step"].tolist() == two["step"].tolist()
    assert run.history.epoch.tolist() == whole.history.epoch.tolist() and run.environment["processes"] == 2
    assert one["loss"].iloc[-1] == pytest.approx(two["loss"].iloc[-1], rel=0.1) and 0 < stopped < 10
    kept = [tase.runs.load_checkpoint(r.path, r.config.identity) for r in (run, whole)]
    assert torch.equal(kept[0]["order"], kept[1]["order"])
    for name, state in kept[0]["generators"].items():
        assert name == "clustering" or torch.equal(state, kept[1]["generators"][name]), name


def test_an_error_that_all_have_is_told_once(together):
    found = [other["error"] for other in together]
    assert [status for status, _ in found] == [2] * len(found)
    assert found[0][1].startswith("error: ") and "holds other files" in found[0][1]
    assert found[0][1].count("\n") == 1 and not any(error for _, error in found[1:])


def test_shards_are_equally_long_and_cover_all_rows(monkeypatch):
    for n in range(1, 12):
        for world in range(1, 5):
            monkeypatch.setattr(distributed, "world", lambda world=world: world)
            parts = [range(n)[distributed.shard(n, at)] for at in range(world)]
            assert sorted({i for part in parts for i in part}) == list(range(n))
            assert {len(part) for part in parts} == {-(-n // world)}
            if n % world == 0:
                assert [i for part in parts for i in part] == list(range(n))


@pytest.mark.parametrize("batch", [4, 10])
def test_a_batch_that_processes_cannot_share_evenly_is_an_error(batch, monkeypatch):
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 4)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(tase.ConfigError, match=rf"optim\.batch = {batch}: .* a multiple of 4.* at least 8"),
        distributed.team(torch.device("cpu"), batch),
    ):
        pass


def test_only_training_is_shared(monkeypatch, capsys):
    launcher = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert main(["info", "--preset", "digits-lt"]) == 2
    assert "not info: start it without torchrun" in capsys.readouterr().err


def test_two_gpus_train_one_run(cuda, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for status, error in ended(start(2, *command_line(tmp_path / "run", "--set", "optim.precision=float32"))):
        assert status == 0, error
    run = tase.Run(tmp_path / "run")
    assert run.finished and run.environment["processes"] == 2 and run.environment["device_type"] == "cuda"
    h = tase.encode(run.encoder("cuda"), run.images.images.cuda())
    torch.testing.assert_close(torch.from_numpy(run.features()), h.cpu(), atol=2e-2, rtol=2e-2)
