"""The benchmark measures what it says: times that are known, memory that can be counted, work that can be computed."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import tase
from tase import bench, training
from tase.bench import _measure, _pieces, _rivals, _step, _whole
from tase.bench._measure import Bench

CPU = torch.device("cpu")
FAST = Bench(CPU, quick=True, seconds=0.0, rounds=2)


def asleep(seconds):
    return lambda: time.sleep(seconds)


def test_times_and_ratios_are_those_of_the_work():
    s = Bench(CPU, seconds=1.0, rounds=3)
    times = _measure.measure({"short": asleep(0.02), "long": asleep(0.06)}, s)
    assert [len(t) for t in times.values()] == [3, 3]
    short, long = _measure.compared("naps", times, "short", amount=10, unit="naps/s")
    assert short["seconds"] >= 0.02 and short["ratio"] == 1
    assert long["seconds"] >= 0.06 and 1.5 < long["ratio"] < 4.5
    assert long["rate"] == pytest.approx(10 / long["seconds"])


def test_actions_take_turns_and_the_first_call_does_not_count():
    called = []
    actions = {name: lambda name=name: (called.append(name), time.sleep(0.02)) for name in "ab"}
    times = _measure.measure(actions, Bench(CPU, seconds=10, rounds=2))
    assert called == ["a", "b"] + ["a", "b"] + ["b", "a"]
    assert len(times["a"]) == 2


def test_short_actions_are_repeated_and_their_time_is_that_of_one_call():
    called = []
    times = _measure.measure({"short": lambda: called.append(time.sleep(0.001))}, Bench(CPU, seconds=1, rounds=3))
    assert len(called) > 1 + 3 * 2
    assert 0.001 <= min(times["short"]) < 0.01


@pytest.mark.parametrize(("seconds", "deadline", "rounds"), [(0.02, float("inf"), 3), (9, 0, 1), (0.001, 1e18, 1)])
def test_rounds_end_when_the_time_is_up(seconds, deadline, rounds):
    s = Bench(CPU, seconds=seconds, rounds=9, deadline=deadline)
    assert len(_measure.measure({"nap": asleep(0.012)}, s)["nap"]) == rounds


def test_summary_is_median_and_half_the_quartiles_distance():
    assert _measure.summary([5.0, 1.0, 2.0, 3.0, 4.0]) == {"seconds": 3.0, "spread": 1.0, "rounds": 5}
    assert _measure.summary([2.0]) == {"seconds": 2.0, "spread": 0.0, "rounds": 1}


def test_the_stopwatch_shares_out_all_of_the_time():
    watch, begun = _measure.Stopwatch(CPU), time.perf_counter()
    for part, nap in (("a", 0.02), ("b", 0.01), ("a", 0.02)):
        watch.switch(part)
        time.sleep(nap)
    parts = watch.read()
    assert parts["a"] >= 0.04 and parts["b"] >= 0.01
    assert sum(parts.values()) <= time.perf_counter() - begun


def test_peak_memory_counts_what_lives_at_the_same_time():
    mib = 2**18  # floats in a MiB

    def work():
        a = torch.ones(4 * mib)
        del a
        b, c = torch.ones(3 * mib), torch.ones(2 * mib)
        return b, c

    assert _measure.peak_memory(work, CPU) / 2**20 == pytest.approx(5, abs=0.01)


def test_free_memory_is_a_plausible_number_of_bytes():
    assert _measure.free_memory(CPU) > 2**20


def test_threads_are_put_back():
    before = torch.get_num_threads()
    assert _measure.one_thread(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == before


def test_images_are_long_tailed_and_coloured():
    images = _measure.some_images(500, 3, 16)
    assert images.images.shape == (500, 3, 16, 16) and images.images.dtype == torch.uint8
    assert images.counts.sum() == 500 and images.counts[0] > 5 * images.counts[9].clamp(min=1)
    assert not torch.equal(images.images[:, 0], images.images[:, 1])


def test_the_plain_formula_is_our_loss():
    z1, z2 = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert _rivals.plain_formula(z1, z2, 0.3).item() == pytest.approx(tase.nt_xent(z1, z2, 0.3).loss.item(), abs=1e-6)


def test_losses_that_do_not_fit_are_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(_pieces, "free_memory", lambda device: 6 * 2**20)
    rows = {row["name"]: row for row in _pieces.bench_loss(FAST, [256])}
    assert rows["plain formula"]["skipped"] == "needs about 0 GiB, over half of the 0 GiB free"
    assert rows["tase"]["peak_bytes"] > 0


def test_the_estimates_of_memory_are_those_of_the_peak():
    z1, z2 = torch.randn(2, 512, 128, requires_grad=True).unbind(0)
    for name, (function, needed) in _rivals.loss_functions(512, CPU).items():
        if name != "pytorch-metric-learning":
            peak = _measure.peak_memory(lambda f=function: torch.autograd.grad(f(z1, z2), (z1, z2)), CPU)
            assert 0.6 * needed < peak < 1.7 * needed, name


def test_views_and_clusters_name_their_rivals():
    rows = {row["name"]: row for row in _pieces.bench_views(FAST, 16)}
    assert rows["torchvision, per sample"]["unit"] == "pairs/s"
    assert "skipped" in rows["kornia"] or rows["kornia"]["rate"] > 0
    rows = {row["name"]: row for row in _pieces.bench_kmeans(FAST, [300], k=5)}
    ours, theirs = rows["tase, Lloyd alone"]["inertia"], rows["scikit-learn KMeans"]["inertia"]
    assert ours == pytest.approx(theirs, rel=0.02)
    assert rows["tase"]["inertia"] <= ours


def test_inertia_is_that_of_scikit_learn():
    from sklearn.cluster import KMeans

    x = _pieces.mixture(400, 16, CPU, parts=6)
    model = KMeans(6, n_init=1, random_state=0).fit(x.double().numpy())
    labels = torch.from_numpy(model.labels_).long()
    assert _pieces.inertia(x, labels) == pytest.approx(model.inertia_, rel=1e-5)


def test_parts_of_a_step_are_a_real_step():
    plain, split = (_step.new_training(FAST, "conv4", 8, 2) for _ in range(2))
    index = torch.arange(8)
    for t in (plain, split):
        t.network.train()
    training.train_step(plain, index)
    parts = _step.split_step(split, index)
    assert set(parts) == set(_step.PARTS) and min(parts.values()) > 0
    assert parts["network"] > parts["optimiser"]
    for a, b in zip(plain.network.parameters(), split.network.parameters()):
        assert torch.equal(a, b)
    assert training.two_views is tase.two_views and training.nt_xent is tase.nt_xent
    assert split.forward is split.network and "step" not in vars(split.optimiser)


def test_the_networks_work_is_counted():
    t = _step.new_training(FAST, "conv4", 8, 1)
    t.network.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
    t.network.projector = nn.Identity()
    flops, moved = _step.network_work(t, 10)
    forward = 2 * 10 * 32 * 32 * 4 * 3 * 9
    assert flops == 2 * forward  # of an input that needs no gradient: forward, and the weights' gradient
    assert moved == 5 * 10 * 4 * 32 * 32 * 4
    assert not any(module._forward_hooks for module in t.network.modules())


def test_the_account_adds_up():
    t = _step.new_training(FAST, "conv4", 8, 1)
    rates = {"flops": 1e12, "bytes": 1e11}
    whole, *parts = _step.roofline("c", t, 16, 0.5, 0.4, rates)
    assert whole["rate"] == pytest.approx(whole["flops"] / 0.5)
    assert sum(row["seconds"] for row in parts) == pytest.approx(0.4)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_reference_loop_trains_on_all_batches(workers):
    t = _step.new_training(FAST, "conv4", 8, 3)
    seen = []

    def counting(*inputs):
        seen.append(len(inputs[0]))
        return _rivals.plain_formula(*inputs)

    _rivals.reference_loop(t, workers, counting)()
    assert seen == [8, 8, 8]


def test_guidance_runs_are_the_real_ones(monkeypatch):
    runs = []

    def noting(config, out, **options):
        runs.append((config.method, config.record.snapshots))
        assert training.choose_device(config.optim) == CPU

    monkeypatch.setattr(training, "train", noting)
    rows = _whole.bench_guidance(Bench(CPU, quick=True, rounds=1))
    assert runs == [("tase", True), ("simclr", False), ("simclr", True), ("tase", True)]
    assert [row["against"] for row in rows] == ["simclr, no snapshots"] * 3 + ["simclr, snapshots"]


def test_report_table_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(_step, "networks", lambda s: (("conv4", 8, 1),))
    said = []
    report = bench.benchmark(True, ["step", "loss"], tmp_path, device="cpu", say=said.append)
    assert said == ["bench: step ...", "bench: loss ..."]
    assert json.loads((tmp_path / "bench.json").read_text())["sections"].keys() == {"step", "loss"}
    assert (tmp_path / "bench.png").stat().st_size > 5000 and (tmp_path / "bench.pdf").exists()
    table = bench.format_table(report)
    for word in ("conv4, batch 8", "optimiser", "of the matmul rate", "plain formula", "peak", "torch"):
        assert word in table
    shares = [row["share"] for row in report["sections"]["step"] if row["name"] in _step.PARTS]
    assert sum(shares) == pytest.approx(1, abs=0.3)
    machine = report["machine"]
    assert machine["threads"] == torch.get_num_threads() and machine["versions"]["torchvision"]
    assert {"commit", "torch", "device", "processor"} <= set(machine)


def test_a_section_that_breaks_says_so_and_stops_no_other(monkeypatch):
    def broken(s):
        raise RuntimeError("no shared memory")

    monkeypatch.setitem(bench.SECTIONS, "loop", broken)
    monkeypatch.setitem(bench.SECTIONS, "views", lambda s: [])
    report = bench.benchmark(True, ["loop", "views"], device="cpu")
    assert report["sections"] == {
        "loop": [{"case": "all", "name": "all", "skipped": "RuntimeError: no shared memory"}],
        "views": [],
    }
    assert "no shared memory" in bench.format_table(report)


def test_unknown_sections_and_devices_are_errors():
    with pytest.raises(tase.ConfigError, match="did you mean 'kmeans'"):
        bench.benchmark(True, ["kmean"])
    with pytest.raises(tase.ConfigError, match=r"optim\.device"):
        bench.benchmark(True, ["views"], device="gpu")


def test_the_kept_report_is_redrawn(tmp_path):
    kept = Path(__file__).parent.parent / "figures" / "bench" / "bench.json"
    (tmp_path / "bench.json").write_text(kept.read_text())
    assert {path.name for path in bench.redraw(tmp_path)} == {"bench.pdf", "bench.png"}
    assert (tmp_path / "bench.png").stat().st_size > 10_000
