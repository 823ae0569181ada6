"""The GPU path without a GPU: no two devices meet, nothing waits in a step, results are the CPU's, graphs are whole.

`Elsewhere` is a tensor that says it is on another device and computes on the CPU; `Device` sees every operation, and
raises where tensors of two devices meet and, in `device.step()`, where the host would wait. Autograd knows no CUDA
without a GPU: what needs gradients is "on" meta, all else on cuda.
"""

import contextlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import tase
from tase import evaluation, models, training, views
from tase.bench import gpu
from tase.bench.measuring import bench_images
from tase.config import METHODS, PROTOCOLS, ViewsConfig

aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_)
BY_INDEX = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
# A value, or the number of rows that come out, is needed on the host.
WAITING = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.bincount, aten._unique2, aten.equal)


class Elsewhere(torch.Tensor):
    """A tensor on a device that is not there; `inner` holds its values on the CPU."""

    @staticmethod
    def __new__(cls, inner, device):
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=device, **shape)
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the device's mode")


class MixedDevices(Exception):
    pass


class Waits(Exception):
    pass


class Device(TorchDispatchMode):
    """Run what is meant for the device `kind` on the CPU."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.in_step, self.seen = kind, False, 0

    @contextlib.contextmanager
    def step(self):
        self.in_step = True
        yield
        self.in_step = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op = kwargs or {}, func.overloadpacket
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if isinstance(x, Elsewhere)]
        self.seen += bool(here)
        if here and op not in COPIES and any(x.ndim for x in tensors if not isinstance(x, Elsewhere)):
            raise MixedDevices(f"{func}: {[(x.device.type, tuple(x.shape)) for x in tensors]}")
        wanted = kwargs.get("device")
        to_here = wanted is not None and torch.device(wanted).type == self.kind
        if self.in_step:
            self.refuse_to_wait(func, args, kwargs, here, to_here)
        args_here, kwargs_here = tree_map(
            lambda x: x.inner if isinstance(x, Elsewhere) else x,
            (args, kwargs | ({"device": "cpu"} if to_here else {})),
        )
        out = func(*args_here, **kwargs_here)
        if to_here or (here and wanted is None and not (op is aten.copy_ and not isinstance(args[0], Elsewhere))):
            out = tree_map(lambda x: Elsewhere(x, self.kind) if isinstance(x, torch.Tensor) else x, out)
            return return_and_correct_aliasing(func, args, kwargs, out)
        return out

    def refuse_to_wait(self, func, args, kwargs, here, to_here):
        op = func.overloadpacket
        masks = op in BY_INDEX and any(x is not None and x.dtype == torch.bool for x in args[1])
        if here and (op in WAITING or masks):
            raise Waits(f"{func}{' by a mask' * masks}")
        if op in COPIES:
            moved = (bool(here) != to_here) if op is aten._to_copy else len(here) == 1
            blocking = not (kwargs.get("non_blocking") or (op is aten.copy_ and len(args) > 2 and args[2]))
            if moved and kwargs.get("device") is not None and (blocking or here):
                raise Waits(f"{func} {'from' if here else 'to'} the device")


TABLES = (views._bank, views._reflected_shifts, views._colour_basis, views.constant)  # kept for each device


@pytest.fixture
def there(monkeypatch):
    """there("cuda"): a context in which that device seems to exist."""

    class Generator(torch.Generator):
        pass

    real, fresh = training.generator, torch.tensor

    def generator(seed, purpose, device="cpu", **options):
        plain = real(seed, purpose, **options)
        if torch.device(device).type == "cpu":
            return plain
        made = Generator()
        made.set_state(plain.get_state())
        return made

    @contextlib.contextmanager
    def context(kind):
        Generator.device = torch.device(kind)
        monkeypatch.setattr(training, "generator", generator)
        monkeypatch.setattr(evaluation, "generator", generator)
        monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        monkeypatch.setattr(torch.backends.cudnn, "enabled", False)  # its operations have no twin on the CPU
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**36, 2**36))
        monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())  # meta has none
        # Numbers go to a GPU by a copy; torch puts them onto meta, where they are lost, without one.
        monkeypatch.setattr(torch, "tensor", lambda x, device="cpu", **o: fresh(x, **o).to(device))
        monkeypatch.setattr(torch.Tensor, "new_tensor", lambda like, x: fresh(x, dtype=like.dtype).to(like.device))
        for table in TABLES:
            table.cache_clear()
        if not torch.cuda.is_available():
            torch._C._ensureCUDADeviceGuardSet()  # as torch does for its own tensors without values
        with Device(kind) as device:
            yield device
        for table in TABLES:
            table.cache_clear()

    return context


IMAGES = bench_images(160)


# First, as torch's compiler notes at its first use what torch.tensor is, which `there` replaces.
@pytest.mark.parametrize("backbone", ["conv4", "resnet18"])
def test_networks_compile_to_one_graph(backbone, tiny):
    network = models.initial_network(tiny(model__backbone=backbone), 3, 32)
    x, found = IMAGES.images[:8] / 255, []
    for forward in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        network.zero_grad()
        forward(x).square().sum().backward()
        found.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*found)


def test_views_compile_to_one_graph():
    v, batch = ViewsConfig(blur=0.5), IMAGES.images[:8]

    def two(batch, d, strength):
        return views.rand_augment(views.make_views(batch, d, v), strength, 5.0, 2)

    d, strength = views.draw_parameters(v, 16, 32, 32, torch.Generator().manual_seed(0)), torch.linspace(0, 1, 16)
    found = []
    for function in (two, torch.compile(two, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        found.append(function(batch, d, strength))
    torch.testing.assert_close(*found)


def training_of(method, kind, tiny, **fields):
    config = tiny(method, views__blur=0.5, optim__precision="float32", **fields)
    return training.Training(config, IMAGES, torch.device(kind))


def two_steps(t, step=contextlib.nullcontext):
    index = torch.arange(64).to(t.device)
    t.guidance.start_epoch(t.config.optim.epochs - 1)  # GH's loss has joined
    training.train_step(t, index)  # tables of the views are made, and copied to the device, once
    with step():
        training.train_step(t, index)
    return [p.detach().cpu() for p in t.parameters]


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_or_mixes_devices(method, tiny, there):
    with there("meta") as device:
        found = two_steps(training_of(method, "meta", tiny), device.step)
        assert device.seen > 1000
    torch.testing.assert_close(found, two_steps(training_of(method, "cpu", tiny)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_refresh_mixes_no_devices(method, tiny, there):
    def refreshed(kind):
        t = training_of(method, kind, tiny)
        for epoch in (6, 7):  # the second one starts from the clusters of the first
            training.refresh(t)
            t.guidance.start_epoch(epoch)
            t.encoded = None
        saved = t.guidance.state_dict()
        t.guidance.load_state_dict(saved)
        return {**training.snapshot(t, training.features(t)), "tau": t.guidance.tau.cpu().numpy()}

    with there("cuda") as device:
        found = refreshed("cuda")
        assert device.seen > 100
    for name, expected in refreshed("cpu").items():
        if expected.dtype.kind in "fi":
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("protocol", ["few-shot", "lt-knn", "lt-few-svm"])
def test_an_evaluation_mixes_no_devices(protocol, trained, there):
    run = trained[2]
    config = tase.override(run.config, {"evaluation.draws": 1})

    def judged(kind):
        features = evaluation.judged_features(run.encoder().to(kind), config, run.splits, torch.device(kind))
        found = PROTOCOLS[protocol](features, config)
        return {name: evaluation.scores_of(p, features)["all"] for name, p in found.items()}

    with there("cuda") as device:
        found = judged("cuda")
        assert device.seen > 50
    assert found == judged("cpu")


def test_the_push_of_classes_mixes_no_devices(trained, there):
    run = trained[2]

    def push(kind):
        network = models.initial_network(run.config, 1, 8, kind)
        tau, weight = (torch.from_numpy(x[-1]).to(kind) for x in (run.history.tau, run.history.weight))
        return evaluation.push_per_class(network, run.images, tau, weight, run.config).cpu()

    with there("cuda"), torch.no_grad():
        found = push("cuda")
    torch.testing.assert_close(found, push("cpu").detach())


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (lambda x: x.sum().item(), Waits),
        (lambda x: bool(x[0] > 0), Waits),
        (lambda x: x.cpu(), Waits),
        (lambda x: x[x > 0], Waits),
        (lambda x: x.new_tensor([1.0]), Waits),
        (lambda x: x + torch.ones(3), MixedDevices),
        (lambda x: x[torch.tensor([0, 1])], MixedDevices),
    ],
)
@pytest.mark.parametrize("kind", ["cuda", "meta"])
def test_a_wait_and_a_mix_are_noticed(kind, what, error, there):
    with there(kind) as device:
        x = torch.ones(3).to(kind)
        assert torch.equal((x + x).cpu(), torch.full((3,), 2.0))
        with pytest.raises(error), device.step():
            what(x)


def test_the_report_of_a_gpu_is_written_on_a_cpu(tmp_path, capsys):
    assert gpu.gpu_report("cpu", tmp_path / "report.md", quick=True)
    text = (tmp_path / "report.md").read_text()
    for name in gpu.GPU_CHECKS:
        assert f"| {name} | " in text
    assert text.count("| ok |") == 5 and text.count("| skipped | needs ") == 4 and "FAILED" not in text
    assert "2,000 epochs with 101 refreshes" in text and "bit-equal" in capsys.readouterr().out


def test_a_check_that_fails_is_reported(tmp_path, monkeypatch):
    def broken(s):
        raise RuntimeError("no such kernel\nat all")

    checks = {"broken": broken, "off": lambda s: gpu.within({"views": 0.5}), "fine": lambda s: "as | it should be"}
    monkeypatch.setattr(gpu, "GPU_CHECKS", checks)
    assert not gpu.gpu_report("cpu", tmp_path / "report.md", quick=True)
    rows = (tmp_path / "report.md").read_text().splitlines()[-3:]
    assert rows[0].startswith("| broken | FAILED | RuntimeError: no such kernel<br>at all | ")
    assert rows[1].startswith("| off | FAILED | AssertionError: views off by 5.0e-01 (at most 0.001) | ")
    assert rows[2].startswith("| fine | ok | as / it should be | ")
