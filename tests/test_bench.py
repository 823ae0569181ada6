"""The benchmark measures what it says: times that are known, memory that can be counted, work that can be computed."""

import copy
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tase
from tase import bench, training
from tase.bench import BenchBudget, scale
from tase.config import ViewsConfig

CPU = torch.device("cpu")
FAST = BenchBudget(CPU, quick=True, seconds=0.0, rounds=2)

SMALL_MACHINE = {"device_type": "cpu", "processor": "p", "threads": 1, "torch": "2", "commit": "c", "versions": {}}
SMALL_MACHINE |= {"load_before": 0.0, "load_after": 0.0}


def asleep(seconds):
    return lambda: time.sleep(seconds)


@pytest.fixture
def clock(monkeypatch):
    """The budget's clock, which stands still but for its ticks: how many rounds there are does not depend on load."""
    watch = SimpleNamespace(now=1.0)
    watch.tick = lambda seconds: setattr(watch, "now", watch.now + seconds)
    monkeypatch.setattr(bench.measuring, "time", SimpleNamespace(perf_counter=lambda: watch.now))
    return watch


def test_times_and_ratios_are_those_of_the_work(clock):
    s = BenchBudget(CPU, seconds=1.0, rounds=3)
    times = bench.measuring.time_in_turn({"short": asleep(0.02), "long": asleep(0.06)}, s)
    assert [len(t) for t in times.values()] == [3, 3]
    short, long = bench.measuring.rival_rows("naps", times, "short", amount=10, unit="naps/s")
    assert short["seconds"] >= 0.02 and short["ratio"] == 1 and short["ratio_spread"] == 0
    assert long["seconds"] >= 0.06 and 1.5 < long["ratio"] < 4.5
    assert long["rate"] == pytest.approx(10 / long["seconds"])


def test_actions_take_turns_and_the_first_call_of_each_does_not_count(clock):
    called = []
    actions = {name: lambda name=name: (called.append(name), time.sleep(0.02)) for name in "ab"}
    bench.measuring.time_in_turn(actions, BenchBudget(CPU, seconds=0.01, rounds=1))
    assert called == ["a", "a", "b", "b"]  # a warm-up each, then one that counts
    called.clear()
    times = bench.measuring.time_in_turn(actions, BenchBudget(CPU, seconds=0.1, rounds=2))
    assert "".join(called).startswith("aa") and called[-1] == "a"  # the second round begins with b
    assert len(times["a"]) == len(times["b"]) == 2


def test_short_actions_are_repeated_and_their_time_is_that_of_one_call(clock):
    called = []
    times = bench.measuring.time_in_turn(
        {"short": lambda: called.append(time.sleep(0.001))}, BenchBudget(CPU, seconds=0.3, rounds=3)
    )
    row = bench.measuring.timed_row("naps", "short", times["short"])
    assert len(called) > 30
    assert 0.001 <= row["seconds"] < 0.01


@pytest.mark.parametrize(
    ("tick", "deadline", "rounds"), [(0.004, float("inf"), 3), (0.0001, 0, 1), (0.01, 1e18, 1), (0.0001, 1e18, 9)]
)
def test_rounds_end_when_the_time_is_up(clock, tick, deadline, rounds):
    """A round calls twice, once to warm up: 8 ms of 9, or of twice 9 up to the third round; 20 ms are too many."""
    s = BenchBudget(CPU, seconds=0.009, rounds=9, deadline=deadline)
    times = bench.measuring.time_in_turn({"nap": lambda: (time.sleep(0.002), clock.tick(tick))}, s)
    assert len(times["nap"]) == rounds


def test_a_row_has_the_median_and_half_the_quartiles_distance_of_all_blocks():
    from torch.utils.benchmark import Measurement, TaskSpec

    task = TaskSpec("action()", "")
    rounds = [Measurement(1, [5.0, 1.0], task), Measurement(1, [2.0, 3.0, 4.0], task)]
    row = bench.measuring.timed_row("case", "name", rounds, share=0.5)
    assert row == {"case": "case", "name": "name", "seconds": 3.0, "spread": 1.0, "rounds": 2, "share": 0.5}
    assert bench.measuring.timed_row("case", "name", [Measurement(4, [8.0], task)])["seconds"] == 2.0


def test_a_ratio_is_taken_round_by_round():
    from torch.utils.benchmark import Measurement, TaskSpec

    def measured(*seconds):
        return [Measurement(1, [x], TaskSpec("action()", "")) for x in seconds]

    rows = bench.measuring.rival_rows("case", {"a": measured(1, 10, 100), "b": measured(2, 20, 400)}, "a")
    assert [row["ratio"] for row in rows] == [1, 2]  # although a machine that slows down 100 times
    assert rows[1]["ratio_spread"] == pytest.approx(0.5) and rows[1]["against"] == "a"


def test_peak_memory_counts_what_lives_at_the_same_time():
    mib = 2**18  # floats in a MiB

    def work():
        a = torch.ones(4 * mib)
        del a
        b, c = torch.ones(3 * mib), torch.ones(2 * mib)
        return b, c

    assert bench.measuring.peak_bytes(work, CPU) / 2**20 == pytest.approx(5, abs=0.01)


def test_free_memory_is_a_plausible_number_of_bytes():
    assert bench.measuring.free_bytes(CPU) > 2**20


def test_threads_are_those_wanted_and_put_back():
    seen, before = {"all": set(), "one": set()}, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        actions = {name: lambda name=name: seen[name].add(torch.get_num_threads()) for name in seen}
        bench.measuring.time_in_turn(actions, FAST, threads={"one": 1})
        assert seen == {"all": {2}, "one": {1}} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_images_are_long_tailed_and_coloured():
    images = bench.measuring.bench_images(500)
    assert images.images.shape == (500, 3, 32, 32) and images.images.dtype == torch.uint8
    assert images.counts.sum() == 500 and images.counts[0] > 5 * images.counts[9].clamp(min=1)
    assert not torch.equal(images.images[:, 0], images.images[:, 1])


def test_the_plain_formula_is_our_loss():
    z1, z2 = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert bench.rivals.plain_formula(z1, z2, 0.3).item() == pytest.approx(
        tase.nt_xent(z1, z2, 0.3).loss.item(), abs=1e-6
    )


def test_losses_that_do_not_fit_are_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(bench.rivals, "free_bytes", lambda device: 6 * 2**20)
    rows = {row["name"]: row for row in bench.bench_loss(FAST, [256])}
    assert rows["plain formula"]["skipped"] == "needs about 0 GiB, over half of the 0 GiB free"
    assert rows["tase"]["peak_bytes"] > 0


def test_the_estimates_of_memory_are_those_of_the_peak():
    z1, z2 = torch.randn(2, 512, 128, requires_grad=True).unbind(0)
    for name, (function, needed) in bench.rivals.loss_rivals(512, CPU).items():
        if name != "pytorch-metric-learning":
            peak = bench.measuring.peak_bytes(lambda f=function: torch.autograd.grad(f(z1, z2), (z1, z2)), CPU)
            assert 0.6 * needed < peak < 1.7 * needed, name


def test_views_and_clusters_name_their_rivals():
    rows = {row["name"]: row for row in bench.bench_views(FAST, 16)}
    assert rows["torchvision, per sample"]["unit"] == "pairs/s"
    assert ("kornia" in rows) == (importlib.util.find_spec("kornia") is not None)
    rows = {row["name"]: row for row in bench.bench_kmeans(FAST, [300], k=5)}
    ours, theirs = rows["tase, Lloyd alone"]["inertia"], rows["scikit-learn KMeans"]["inertia"]
    assert ours == pytest.approx(theirs, rel=0.02)
    assert rows["tase"]["inertia"] <= ours


def test_inertia_is_that_of_scikit_learn():
    from sklearn.cluster import KMeans

    x = bench.rivals.direction_mixture(400, 16, CPU, parts=6)
    model = KMeans(6, n_init=1, random_state=0).fit(x.double().numpy())
    labels = torch.from_numpy(model.labels_).long()
    assert bench.rivals.cluster_inertia(x, labels) == pytest.approx(model.inertia_, rel=1e-5)


def test_parts_of_a_step_leave_the_weights_and_the_whole_is_a_real_step():
    plain, split = (bench.rivals.bench_training(FAST, "conv4", 8, 2) for _ in range(2))
    index = torch.arange(8)
    for t in (plain, split):
        t.network.train()
    start = [x.clone() for x in split.network.parameters()]
    parts = bench.rivals.step_parts(split, index)
    whole = parts.pop("whole step")
    assert (*parts, "rest") == bench.rivals.STEP_PARTS
    for part in parts.values():
        part()
    assert all(torch.equal(a, b) for a, b in zip(start, split.network.parameters()))
    plain.optimiser.load_state_dict(copy.deepcopy(split.optimiser.state_dict()))  # the momentum of the part "optimiser"
    training.train_step(plain, index)
    whole()
    for a, b in zip(plain.network.parameters(), split.network.parameters()):
        assert torch.equal(a, b)


def test_the_parts_are_the_work_of_the_step():
    t = bench.rivals.bench_training(FAST, "conv4", 8, 1)
    t.network.train()
    parts, made = bench.rivals.step_parts(t, torch.arange(8)), {}
    for name in ("views", "network"):
        made[name] = parts[name]()
    assert [view.shape for view in made["views"]] == 2 * [(8, 3, 32, 32)]
    assert len(made["network"]) == 2 and all(x.grad is not None for x in t.network.parameters())


def test_the_rows_of_a_step_add_up(monkeypatch):
    monkeypatch.setattr(bench.rivals, "bench_networks", lambda s: (("conv4", 8, 1),))
    whole, *parts = bench.bench_step(FAST)
    assert whole["name"] == "whole step" and {row["name"] for row in parts} == set(bench.rivals.STEP_PARTS)
    assert sum(row["share"] for row in parts) == pytest.approx(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_reference_loop_trains_on_all_batches(workers):
    t = bench.rivals.bench_training(FAST, "conv4", 8, 3)
    seen = []

    def counting(*inputs):
        seen.append(len(inputs[0]))
        return bench.rivals.plain_formula(*inputs)

    bench.peers.reference_loop(t, workers, counting)()
    assert seen == [8, 8, 8]


def test_peers_train_the_same_network_on_the_same_batches(monkeypatch):
    networks = {}
    loops = bench.peers.peer_loops

    def noting(t, workers):
        found, missing = loops(t, 0)
        networks.update({name: (network, copy.deepcopy(network.state_dict())) for name, (_, network) in found.items()})
        return found, missing

    monkeypatch.setattr(bench.peers, "peer_networks", lambda s: (("conv4", 16, 2, 2),))
    monkeypatch.setattr(bench.peers, "peer_loops", noting)
    rows = bench.bench_peers(FAST)
    assert [row["name"].split(",")[0] for row in rows] == ["tase", "SDCLR-style loop", "lightly's loop"]
    assert all(row["rounds"] == 1 and 0 <= row["knn"] <= 100 and row["unit"] == "images/s" for row in rows)
    assert "1-NN" in bench.bench_text({"machine": SMALL_MACHINE, "sections": {"peers": rows}, "took": {"peers": 1.0}})
    (first, begun), *others = networks.values()
    steps = first.backbone[1].num_batches_tracked.item()
    for network, start in others:
        assert all(torch.equal(a, b) for a, b in zip(start.values(), begun.values()))
        assert network.backbone[1].num_batches_tracked * 2 == steps == 8  # tase calls it once a view
        assert not any(torch.equal(a, b) for a, b in zip(network.parameters(), first.parameters()))


def test_a_peer_that_is_not_installed_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    loops, (row,) = bench.peers.peer_loops(bench.rivals.bench_training(FAST, "conv4", 8, 1, "simclr"), 0)
    assert len(loops) == 2 and row["skipped"] == "lightly is not installed (pip install 'tase[peers]')"


def test_views_of_lightly_have_the_parameters_of_the_configuration():
    v = ViewsConfig()
    data = bench.peers.LightlyPairs(bench.measuring.bench_images(4).images, v)
    steps = {type(step).__name__: step for step in data.pair.transforms[0].transform.transforms}
    jitter = steps["RandomApply"].transforms[0]
    assert jitter.hue == (-v.hue, v.hue) and jitter.brightness == (1 - v.brightness, 1 + v.brightness)
    assert steps["RandomResizedCrop"].scale == v.scale and steps["RandomGrayscale"].p == v.grey
    assert steps["GaussianBlur"].prob == 0 == v.blur and [view.shape for view in data[0]] == [(3, 32, 32)] * 2


def test_two_processes_train_together(monkeypatch):
    monkeypatch.setattr(bench.peers, "bench_networks", lambda s: (("conv4", 8, 1), ("conv4", 8, 2)))
    alone, together, apart = bench.bench_processes(BenchBudget(CPU, seconds=0.0, rounds=1))
    assert alone["name"] == "1 process, 1 thread" and together["against"] == alone["name"]
    assert apart["name"] == "2 processes that share nothing" and apart["processor_seconds"] > 0
    assert together["rate"] == pytest.approx(16 / together["seconds"])
    assert (
        0 < together["processor_seconds"] < together["seconds"] * 2 + 0.1
    )  # a core has no more, but clocks are coarse


def test_a_process_that_ends_is_an_error(capfd):
    with bench.peers.crew(2, "cpu", "conv4", 7, 1) as epoch, pytest.raises(RuntimeError, match="has ended"):
        epoch()  # two processes cannot share 7 images evenly
    assert "optim.batch = 7" in capfd.readouterr().err


def test_guidance_runs_are_the_real_ones(monkeypatch):
    runs = []

    def noting(config, out, **options):
        runs.append((config.method, config.record.snapshots))
        assert config.optim.device == "cpu" and config.optim.epochs in (2, 12)

    monkeypatch.setattr(training, "train", noting)
    rows = bench.bench_guidance(BenchBudget(CPU, quick=True, seconds=0.0, rounds=1))
    assert runs[0] == ("tase", True)  # a short one first, so that nothing is loaded while it counts
    assert list(dict.fromkeys(runs[1:])) == [("simclr", False), ("simclr", True), ("tase", True)]
    against = ["simclr, no snapshots"] * 4 + ["simclr, snapshots"] + ["an epoch"] * 2
    assert [row["against"] for row in rows] == against and rows[-1]["ratio"] > 0
    assert rows[-1]["case"] == "conv4, 256 images" and rows[-1]["name"] == "a refresh, one in 10 epochs"


def test_scale_is_measured_at_each_size(tmp_path, monkeypatch):
    """A real epoch and refresh of 200 and 400 images, in this process."""

    def here(n, s):
        (tmp_path / str(n)).mkdir()
        scale.write_crops(n, tmp_path / str(n))
        return scale.measured_run(tmp_path / str(n), CPU, 1)

    monkeypatch.setitem(scale.FIELDS, "optim.batch", 64)
    monkeypatch.setattr("tase.widgets.explore_run", lambda run, **options: len(run.images) or 1 / 0)
    monkeypatch.setattr("tase.widgets.report", lambda run, **options: run.history.tau)
    found = {n: here(n, FAST) for n in (200, 400)}
    assert all(of["state"] > 50 * n and of["peak"] >= 0 for n, of in found.items())
    rows = scale.scale_rows({n: of | {"epoch": n / 1000, "refresh": n**2 / 1e6} for n, of in found.items()})
    fitted = {row["name"]: row["exponent"] for row in rows if "exponent" in row}
    assert fitted == {"epoch, exponent": pytest.approx(1), "refresh, exponent": pytest.approx(2)}
    rows += scale.sampled_clusters(400)
    assert [row["rand"] for row in rows[-3:]][0] == 1 and all(-0.1 < row["rand"] <= 1 for row in rows[-3:])
    report = {"sections": {"scale": rows}, "took": {"scale": 1.0}, "quick": True, "machine": bench.machine_facts(CPU)}
    text = bench.bench_text(report | {"machine": report["machine"] | {"load_after": 0.0}})
    assert "~ images^2.00" in text and "beyond a state of" in text and "adjusted Rand index 1.00" in text
    times, memory = bench.report.bench_figure(report).axes
    assert [len(line.get_xdata()) for line in times.lines] == [2] * 4 and len(memory.lines) == 3


def test_messages_of_a_step_are_those_of_its_embeddings_and_weights():
    fields = {"model.backbone": "conv4", "model.channels": "4,8", "model.strides": "2,2", "model.head_dim": 16}
    sent = scale.step_messages(4, 64, side=96, **fields)  # too large for tables of crops
    z, rows = 2 * 64 * 16 * 4, 2 * 64 * 4 * 4  # embeddings; four numbers of each anchor
    assert sent["all-gather"] == z + rows
    weights = 3 * 4 * 9 + 4 * 8 * 9 + 2 * (4 + 8) + 8 * 8 + 8 + 2 * 8 + 8 * 16 + 2 * 16
    assert sent["all-reduce"] == z + 4 * weights + 3 * 4  # and the three parts of the loss
    assert scale.waiting(1.0, 0.1, 64) == 0 and 0.4 < scale.waiting(1.0, 1.0, 64) < 0.6


def test_report_table_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.rivals, "bench_networks", lambda s: (("conv4", 8, 1),))
    said = []
    report = bench.benchmark(True, ["step", "loss"], tmp_path, device="cpu", say=said.append)
    assert said == ["bench: step ...", "bench: loss ..."]
    assert json.loads((tmp_path / "bench.json").read_text())["sections"].keys() == {"step", "loss"}
    assert (tmp_path / "bench.png").stat().st_size > 5000 and (tmp_path / "bench.pdf").exists()
    table = bench.bench_text(report)
    for word in ("conv4, batch 8", "optimiser", "of the step", "plain formula", "peak", "torch"):
        assert word in table
    shares = [row["share"] for row in report["sections"]["step"] if row["name"] in bench.rivals.STEP_PARTS]
    assert sum(shares) == pytest.approx(1, abs=0.3)
    machine = report["machine"]
    assert machine["threads"] == torch.get_num_threads() and machine["versions"]["torchvision"]
    assert {"commit", "torch", "device", "processor"} <= set(machine)


def test_a_section_that_breaks_says_so_and_stops_no_other(monkeypatch):
    def broken(s):
        raise RuntimeError("no shared memory")

    monkeypatch.setitem(bench.BENCH_SECTIONS, "loop", broken)
    monkeypatch.setitem(bench.BENCH_SECTIONS, "views", lambda s: [])
    report = bench.benchmark(True, ["loop", "views"], device="cpu")
    assert report["sections"] == {
        "loop": [{"case": "all", "name": "all", "skipped": "RuntimeError: no shared memory"}],
        "views": [],
    }
    assert "no shared memory" in bench.bench_text(report)


def test_unknown_sections_and_devices_are_errors():
    with pytest.raises(tase.ConfigError, match="did you mean 'kmeans'"):
        bench.benchmark(True, ["kmean"])
    with pytest.raises(tase.ConfigError, match=r"optim\.device"):
        bench.benchmark(True, ["views"], device="gpu")


KEPT = sorted((Path(__file__).parent.parent / "figures").rglob("bench.json"))


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.parent.name)
def test_kept_reports_are_redrawn_and_told(kept, tmp_path):
    (tmp_path / "bench.json").write_text(kept.read_text())
    for rows in (report := json.loads(kept.read_text()))["sections"].values():
        assert all(row["name"] in bench.bench_text(report) for row in rows)
    assert {path.name for path in bench.redraw_bench(tmp_path)} == {"bench.pdf", "bench.png"}
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_every_bar_of_the_figure_has_its_name_and_every_group_its_heading():
    (kept,) = (path for path in KEPT if path.parent.name == "bench")
    axes, below = bench.report.bench_figure(json.loads(kept.read_text())).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    headings = [text.get_text() for text in axes.texts if ": 1 = " in text.get_text()]
    assert "views, batch 512: 1 = tase, 1 thread" in headings and labels.count("plain formula") == 4
    assert labels.count("") == len(headings) == len(set(headings))
    low, high = axes.get_xlim()
    assert low <= 0.5 and high >= 2
    assert [label.get_text() for label in below.get_yticklabels()] == ["resnet18, batch 512", "conv4, batch 512"]
    notes = [bench.report.bench_figure(json.loads(kept.read_text()), note).get_supxlabel() for note in (True, False)]
    assert "commit" in notes[0] and not notes[1]
