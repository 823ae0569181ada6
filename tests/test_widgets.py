"""Widgets: their pure functions against what training saved, and their callbacks, bad input included."""

import dataclasses
import re
import shutil
import time
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
import pandas
import pytest
import torch

import tase
from tase.clustering import centred
from tase.config import METHODS, ConfigError
from tase.data import ImageSet, Splits
from tase.files import RunError, save_json, save_npz
from tase.guidance import Guidance, Method
from tase.runs import request
from tase.widgets import LiveTraining, TemperatureExplorer, base, live, svg, temperature, what_if

pytestmark = pytest.mark.filterwarnings("ignore:unclosed")


def said(widget):
    """The widget's message as plain text."""
    return re.sub("<.*?>", "", widget.message.value)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the tiny TASE run, free to be changed."""
    return tase.Run(shutil.copytree(trained[2].path, tmp_path / "tase"))


def planted_run(folder, n, clusters=100, classes=10, kept=2000):
    """A run's folder with one snapshot of n made-up samples of long-tailed classes, to measure and test widgets."""
    rng = np.random.default_rng(0)
    share = 0.6 ** np.arange(classes)
    labels = np.sort(rng.choice(classes, n, p=share / share.sum()))
    labels[:classes] = np.arange(classes)
    cluster = np.minimum((labels + rng.random(n)) * clusters / classes, clusters - 1).astype(np.int64)
    sizes = np.bincount(cluster, minlength=clusters).astype(np.float32)
    headness = (np.log(np.maximum(sizes, 1))[cluster] + 0.1 * rng.standard_normal(n)).astype(np.float32)
    counts = np.bincount(labels, minlength=classes)
    groups = np.repeat([0, 1, 2], [classes - 2 * (classes // 3), classes // 3, classes // 3])
    (folder / "history").mkdir(parents=True)
    config = tase.preset("digits-lt")
    save_json(folder / "config.json", {"format": 1, "identity": config.identity, "config": config.to_dict()})
    names = np.array([str(c) for c in range(classes)])
    save_npz(folder / "history" / "labels.npz", labels=labels, counts=counts, groups=groups, classes=names)
    index = np.sort(rng.permutation(n)[:kept])
    centres = rng.standard_normal((clusters, 64))
    features = (centres[cluster[index]] + 0.5 * rng.standard_normal((len(index), 64))).astype(np.float16)
    arrays = {"tau": np.full(n, 0.2, np.float32), "weight": np.ones(n, np.float32), "loss": np.ones(n, np.float32)}
    arrays |= {"pseudo_label": cluster.astype(np.int32), "headness": headness, "cluster_sizes": sizes}
    arrays |= {"feature_index": index, "features": features, "quality": np.array("{}"), "epoch": np.array(0)}
    save_npz(folder / "history" / "epoch_000000.npz", **arrays)
    run = tase.Run(folder)
    images = torch.from_numpy(rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8))
    run.__dict__["splits"] = Splits(
        ImageSet(images, torch.from_numpy(labels), tuple(names.tolist()), torch.from_numpy(counts), name="made up")
    )
    return run


def until(condition, seconds=60):
    """Wait for a condition, by looking."""
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def settled(explorer):
    """Wait for the clusters that are made in the background."""
    until(lambda: not explorer.busy.value)
    return explorer


@pytest.fixture
def explorer(run):
    return TemperatureExplorer(run)


@pytest.fixture
def unlabelled(run):
    (run.path / "history" / "labels.npz").unlink()
    return tase.Run(run.path)


# --- from a snapshot to temperatures ----------------------------------------------------------------------------------


ORACLE = {"labels": "oracle"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"headness_map": "rank"},
        {"reversed": True},
        {"gamma": 0.0},
        {"trust": True},
        {**ORACLE, "trust": True},
        {**ORACLE, "group_tau": (0.5, 0.3, 0.15)},
    ],
)
def test_what_if_with_the_runs_own_options_is_what_training_saved(tiny, tmp_path, changes):
    config = tiny(**{f"guidance__{k}": v for k, v in changes.items()}, optim__epochs=4)
    run = tase.train(config, tmp_path / "run", progress=False)
    now = what_if.saved_samples(run, len(run.history) - 1)
    new = what_if.apply_options(now, config.guidance)
    # Ranks of two samples whose headness is equal but for rounding may be exchanged.
    one_rank = (config.guidance.tau_max - config.guidance.tau_min) / len(new.tau)
    np.testing.assert_allclose(
        new.tau, run.history.tau[-1], atol=2e-5 + one_rank * (config.guidance.headness_map == "rank")
    )
    np.testing.assert_allclose(new.weight, run.history.weight[-1], rtol=2e-5)


def test_new_clusters_with_the_saved_options_give_every_sample_a_cluster(run):
    t = len(run.history) - 1
    saved = what_if.saved_samples(run, t)
    x, index = run.history.features(t)[:100], run.history.feature_index(t)[:100]

    def clustered(**options):
        config = base.override_guidance(run.config, options)
        return what_if.reclustered(saved, x, index, config, run.history.labels)

    for estimator, k in (("size", 5), ("merged", 12), ("density", 3)):
        now = clustered(clusters=k, estimator=estimator)
        assert len(now.quantity.a) == len(now.tau) == 100
        assert len(np.unique(now.cluster)) == k
        assert (now.quantity.log_sizes is None) == (estimator == "density")
        np.testing.assert_array_equal(now.tau, saved.tau[index])
    with pytest.raises(ConfigError, match="clusters"):
        clustered(clusters=101)
    np.testing.assert_array_equal(clustered(labels="oracle").cluster, run.history.labels[index])


def test_histograms_hold_all_samples_also_those_beyond_the_ends():
    counts = temperature.bin_counts(np.array([-5.0, 0.05, 0.15, 0.95, 7.0]), (0, 1), 10)
    assert counts.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_the_push_on_neighbours_is_the_softmax_of_the_loss():
    h = centred(torch.randn(40, 8, generator=torch.Generator().manual_seed(0))).numpy()
    row, similarity = what_if.nearest_first(h, 7)
    assert 7 not in row and len(row) == 39
    assert (np.diff(similarity) <= 0).all()
    np.testing.assert_allclose(similarity, h[row] @ h[7], atol=1e-6)
    share = what_if.push_shares(similarity, 0.2)
    expected = np.exp(similarity / 0.2)
    np.testing.assert_allclose(share, 100 * expected / expected.sum(), rtol=1e-9)
    assert what_if.push_shares(similarity, 0.05)[0] > share[0]  # a lower temperature: more on the nearest


def test_how_hard_a_sample_pushes_is_what_the_loss_says(tiny):
    samples = what_if.WhatIf(np.array([0.3, 0.1]), np.array([2.0, 0.5]), 1.0)
    for config, tau in ((tiny(), 0.2), (tiny(guidance__scale_by_tau=False), 0.3), (tiny(method="simclr"), 0.3)):
        assert TemperatureExplorer._strength(config, samples, 0) == pytest.approx(2 / tau)


def test_equal_clusters_are_not_guided_by_in_the_explorer_either(run):
    now = what_if.saved_samples(run, len(run.history) - 1)
    flat = dataclasses.replace(now, quantity=type(now.quantity)(torch.zeros(len(now.tau)), None))
    new = what_if.apply_options(flat, run.config.guidance)
    assert new.spread < 0.1 and (new.tau == np.float32(0.2)).all() and (new.weight == 1).all()


def test_most_changed_are_ordered_and_leave_out_what_stays():
    old, new = np.zeros(6), np.array([0.3, -0.1, 0, 0.1, -0.4, 0])
    up, down = what_if.most_changed(old, new, 4)
    assert up.tolist() == [0, 3] and down.tolist() == [4, 1]
    assert not len(np.concatenate(what_if.most_changed(old, old, 4)))


def test_a_run_of_any_method_is_varied_by_the_default_method_on_the_same_data(tiny):
    simclr, oracle = tiny(method="simclr"), tiny(method="oracle")
    assert what_if.what_if_config(oracle) == oracle
    varied = what_if.what_if_config(simclr)
    assert varied.guidance_class.steerable and varied.data == simclr.data and varied.model == simclr.model
    assert varied.guidance.clusters == simclr.guidance.clusters and tase.override(varied, {"guidance.tau_max": 0.3})


# --- what the widgets share -------------------------------------------------------------------------------------------


def test_the_command_line_says_the_configuration_exactly(tiny):
    config = tiny(method="oracle", guidance__reversed=True, guidance__tau_max=0.123, views__scale="0.3,0.9")
    words = base.train_words(config, "some folder", resume=True)
    changes = dict(word.split("=", 1) for word in words[words.index("--set") + 1 : words.index("--out")])
    assert tase.preset(config.preset, config.method, config.seed, changes) == config
    assert words[-1] == "--resume" and "'some folder'" in base.command_line(config, "some folder")
    images = tase.preset("folder", overrides={"data.root": "my images"})
    assert "'data.root=my images'" in base.command_line(images, "run")


def test_thumbnails_escape_texts_from_files(run):
    images = dataclasses.replace(run.images, classes=('"><script>',) * 10)
    html = base.picture_strip(images, [0], ["<b>x</b>\ny"])
    assert "<b>" not in html and "<script>" not in html and "<br>" in html and "data:image/png" in html


@pytest.mark.parametrize(
    "value, text", [(1422.7, "1,423"), (0.03125, "0.0312"), (0.5, "0.5"), (12.0, "12"), (0, "0"), (2.4e-5, "0.000024")]
)
def test_numbers_are_written_as_people_write_them(value, text):
    assert svg.plain_number(value) == text


def test_a_plot_says_what_it_shows_and_keeps_points_inside_its_axes():
    plot = svg.Plot("<Loss>", "epoch", x=(1, 100), y=(0, 1), log=True)
    plot.line([1, 10, 1000], [0, float("nan"), 7], "ink", name="a & b")
    plot.dots([10], [0.5], ["0"])
    page = ElementTree.fromstring(plot.svg("all is well"))
    assert page.attrib["role"] == "img" and page.attrib["aria-label"] == "<Loss>: all is well"
    line, (dot,) = page.findall("path")[-1], page.findall("circle")
    assert line.find("title").text == "a & b" and "var(--tase-ink)" in line.attrib["style"]
    points = re.findall(r"[\d.]+ [\d.]+", line.attrib["d"])
    right = plot.size[0] - 8
    assert len(points) == 2 and points[1] == f"{right}.0 {plot.TOP}.0"  # the one that is no number is left out
    assert float(dot.attrib["cx"]) == pytest.approx((plot.LEFT + right) / 2)
    assert svg.at_least(92.0, 92.6, 20) == pytest.approx((82.3, 102.3)) and svg.at_least(0, 50, 20) == (-2.5, 52.5)


def test_controls_are_made_of_a_methods_own_options(tiny):
    @dataclass(frozen=True)
    class Options(Guidance.Options):
        near_min: float = tase.option(0.1, "the lower end", above=0)
        near_max: float = tase.option(0.4, "the upper end", above=0)
        power: float = tase.option(2.0, "a power", low=1, high=3)
        soft: bool = tase.option(True, "whether")
        kind: str = tase.option("one", "which", choices=("one", "two"))
        often: int = tase.option(3, "how often", low=1)

    own = type("Own", (Guidance,), {"Options": Options, "steerable": ("near_min", "near_max", "power", "soft", "kind")})
    METHODS["own"] = Method(own)
    try:
        config = tiny(method="own")
        controls = base.OptionControls(config, [*own.steerable, "often"])
        assert controls["near_min"] is controls["near_max"] and len(list(controls)) == 5
        assert (controls["power"].min, controls["power"].max) == (1, 3)
        assert "the lower end" in controls["near_min"].tooltip and controls["kind"].options == ("one", "two")
        controls["near_min"].value, controls["often"].value = (0.2, 0.3), 0
        assert controls.values == {
            **{"near_min": 0.2, "near_max": 0.3, "power": 2.0, "soft": True, "kind": "one", "often": 0}
        }
        with pytest.raises(ConfigError, match="guidance.often = 0: must be at least 1"):
            base.override_guidance(config, controls.values)
    finally:
        del METHODS["own"]


def test_a_slider_reaches_the_value_that_the_run_has(tiny):
    slider = base.OptionControls(tiny(guidance__tau_min=0.005), ["tau_min", "tau_max"])["tau_min"]
    assert slider.value[0] == 0.005 and slider.min == pytest.approx(slider.step) and slider.min <= 0.005


def test_a_newer_job_replaces_an_older_one():
    errors, results, busy = [], [], []
    job, heard = base.BackgroundJob(errors.append, busy.append), []

    def slow(wanted):
        heard.append(wanted())
        time.sleep(0.2)
        heard.append(wanted())
        return "old"

    job.start(slow, results.append)
    until(lambda: heard)
    job.start(lambda wanted: "new", results.append)
    until(lambda: results and busy[-1] is False)
    assert results == ["new"] and heard == [True, False] and not errors
    job.start(lambda wanted: 1 / 0, results.append)
    until(lambda: errors and busy[-1] is False)
    assert isinstance(errors[0], ZeroDivisionError)


# --- temperature explorer ---------------------------------------------------------------------------------------------


def test_every_slider_leads_to_a_new_picture_and_a_line_to_copy(explorer):
    seen = {explorer.picture.value}
    moves = {"tau_min": (0.2, 0.9), "gamma": 1.5, "w_max": 1.5, "headness_map": "rank", "reversed": True}
    for name, value in moves.items():
        explorer.options[name].value = value
        seen.add(explorer.picture.value)
    explorer.epoch.value = 2
    seen.add(explorer.picture.value)
    assert len(seen) == 2 + len(moves)
    for text in ("guidance.tau_max=0.9", "guidance.headness_map=rank", "guidance.reversed=true", "guidance.w_max=1.5"):
        assert text in explorer.command.value
    assert explorer.config.guidance.gamma == 1.5 and explorer.config.method == "tase"


def test_the_explorer_shows_itself_and_hands_over_what_it_shows(explorer, tmp_path):
    shown = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in shown and "<svg" in shown["text/html"]
    explorer.options["tau_max"].value = (0.05, 0.8)
    explorer.sample.value = int(explorer.run.history.feature_index(-1)[3])
    table = pandas.read_csv(explorer.save(tmp_path / "made" / "samples.csv"))
    assert len(table) == explorer.n and table["tau"].max() <= 0.8 + 1e-9 and table["w"].min() > 0
    np.testing.assert_allclose(table["saved_tau"], explorer.run.history.tau[-1], rtol=1e-5)
    assert set(table["group"]) == {"head", "mid", "tail"} and set(table["class"].astype(str)) <= set("0123456789")
    chosen = explorer.selection
    assert chosen["index"][0] == explorer.sample.value and len(chosen) == temperature.STRIP_LENGTH + 1
    assert chosen["cosine"][0] == 1 and (chosen["cosine"].diff()[2:] <= 0).all()
    assert explorer.config.guidance.tau_max == 0.8 and explorer.config.changes(explorer.run.config) == {
        "guidance.tau_min": 0.05,
        "guidance.tau_max": 0.8,
    }


def test_pictures_and_controls_have_names_for_those_who_do_not_see_them(explorer):
    labels = re.findall('role="img" aria-label="(.*?)"', explorer.picture.value)
    assert len(labels) == 4 and all(re.search(r"\d", label) for label in labels)
    assert "head mean" in labels[0] and "clusters" in labels[2]
    weight = explorer.run.history.weight[-1][explorer.now.group == 2].mean()
    assert f"tail mean {weight:.2f} (saved {weight:.2f})" in labels[1]
    controls = [*explorer.options, *explorer.clustering, explorer.epoch, explorer.sample, explorer.pick]
    assert all(control.description and control.tooltip for control in controls)


def test_clusters_are_made_again_and_can_be_taken_back(explorer):
    before = explorer.now
    explorer.clustering["clusters"].value = 4
    settled(explorer)
    assert len(np.unique(explorer.now.cluster)) == 4 and "clusters=4" in explorer.command.value
    explorer.clustering["estimator"].value = "size"
    explorer.reset_clusters()
    settled(explorer)
    np.testing.assert_array_equal(explorer.now.cluster, before.cluster)
    assert "clusters=4" not in explorer.command.value and "estimator" not in explorer.command.value
    explorer.epoch.value = 2
    explorer.clustering["clusters"].value = 5
    settled(explorer)
    assert "whose features this snapshot keeps" in said(explorer)


def test_bad_input_gives_one_line_and_the_explorer_stays_alive(explorer):
    explorer.clustering["clusters"].value = 100_000
    assert "invalid clusters k = 100000: must be at least 1 and at most the number of images" in said(explorer)
    explorer.clustering["clusters"].value = 0
    assert "at least 1" in said(explorer)
    explorer.reset_clusters()
    explorer.options["tau_min"].value = (0.3, 0.3)
    assert "zero width" in said(explorer)
    explorer.options["tau_min"].value = (0.1, 0.4)
    assert "invalid" not in said(explorer) and "zero width" not in said(explorer)


def test_a_deleted_folder_gives_one_line(explorer):
    shutil.rmtree(explorer.run.path)
    explorer.epoch.value = 2
    assert "is gone" in said(explorer)
    picture = explorer.picture.value
    explorer.options["tau_min"].value = (0.1, 0.9)
    assert explorer.picture.value != picture  # what is in memory can still be explored


class NoImages(tase.Run):
    """A run whose images are gone."""

    images = property(lambda self: 1 / 0)


def test_without_labels_or_images_the_explorer_says_so(unlabelled):
    explorer = TemperatureExplorer(unlabelled)
    assert "no labels" in said(explorer) and "class" not in explorer.table
    assert [name for name, _ in explorer.pick.options] == ["choose …", "any all images", "τ rises most", "τ falls most"]
    assert "No pictures" in TemperatureExplorer(NoImages(unlabelled.path)).changed.value


def test_a_sample_can_be_picked_by_group_and_by_change(explorer):
    explorer.options["tau_min"].value = (0.02, 1.0)
    explorer.pick.value = "2"
    assert explorer.now.group[explorer.sample.value] == 2 and explorer.pick.value == ""
    explorer.pick.value = "up"
    assert explorer.sample.value == explorer._most["up"][0]
    assert f"no. {explorer.sample.value}" in explorer.near.value


def test_a_run_of_another_method_is_varied_too(trained):
    explorer = TemperatureExplorer(trained[1])  # SimCLR
    assert trained[1].config.method_title in said(explorer)
    assert explorer.config.guidance_class.per_sample and len(explorer.table["tau"].unique()) > 2


def test_a_run_without_snapshots_is_refused_with_a_reason(run):
    shutil.rmtree(run.path / "history")
    with pytest.raises(RunError, match="no snapshot yet"):
        TemperatureExplorer(tase.Run(run.path))


@pytest.mark.parametrize("n, limit", [(12_000, 150), (100_000, 400)])
def test_a_slider_is_quick_with_many_samples(tmp_path, capsys, n, limit):
    explorer = TemperatureExplorer(planted_run(tmp_path / "run", n))
    explorer.sample.value = int(explorer.run.history.feature_index(0)[0])
    taken = []
    for i in range(11):
        before, started = explorer.picture.value, time.perf_counter()
        explorer.options["tau_min"].value = (0.05 + 0.005 * i, 0.3 + 0.02 * i)
        taken.append(1000 * (time.perf_counter() - started))
        assert explorer.picture.value != before
    with capsys.disabled():
        print(f"\nslider to new picture, {n:,} samples: median {np.median(taken):.0f} ms (limit {limit} ms)")
    assert np.median(taken) < limit


# --- live training ----------------------------------------------------------------------------------------------------


@pytest.fixture
def panel(tiny, tmp_path):
    """The panel of a training of a few seconds, not started."""
    config = tiny(optim__epochs=60, guidance__refresh=5, record__knn_every=5)
    panel = LiveTraining(config, tmp_path / "run", watch=False)
    yield panel
    if panel.process is not None and panel.process.poll() is None:
        panel.process.kill()
        panel.process.wait()


def state_of(panel):
    state = live.training_state(panel._own()[0], panel.process)
    panel.look()  # after it: the panel shows this state, or a later one
    return state


def test_a_live_training_starts_pauses_is_steered_stops_and_is_found_again(panel, tmp_path):
    assert state_of(panel) == "none" and not panel.buttons["start"].disabled and panel.buttons["stop"].disabled
    panel.options["gamma"].value = 0.25  # what the controls show at the start is trained
    panel.start()
    until(lambda: state_of(panel) == "training")
    panel.control("pause")
    until(lambda: state_of(panel) == "paused")
    panel.options["tau_max"].value = (0.1, 0.33)
    panel.steer()
    assert "Pending: tau_max = 0.33; takes effect at the next refresh" in said(panel)
    assert panel.config.guidance.tau_max == 0.33 and panel.config.optim == panel.given.optim
    assert tase.Run(panel.folder).config.guidance.gamma == 0.25
    panel.control("run")  # the pending request is not lost
    until(lambda: state_of(panel) == "training" and tase.Run(panel.folder).steered)
    panel.look()
    assert "Steered at epoch" in said(panel) and "steered" in panel.status.value
    assert "compare its values only between" in panel.picture.value
    panel.control("stop")
    until(lambda: state_of(panel) == "stopped")
    assert not panel.buttons["resume"].disabled and panel.buttons["pause"].disabled

    again = LiveTraining(panel.folder, watch=False)  # as after a restart of the kernel
    assert "stopped" in again.status.value and "steered" in again.status.value
    assert again.options["tau_max"].value == (0.1, 0.33)
    again.resume()
    until(lambda: state_of(again) in ("training", "finished"))
    assert len(tase.Run(panel.folder).events) == 1
    again.process.kill()
    again.process.wait()
    table = pandas.read_csv(again.save(tmp_path / "history.csv"))
    assert table["epoch"].is_monotonic_increasing and {"loss", "tau_head_50", "tau_tail_90"} <= set(table)


def test_a_finished_training_says_what_comes_next(run, unlabelled):
    panel = LiveTraining(run.path, watch=False)
    assert "finished" in panel.status.value and f"tase report {run.path}" in said(panel)
    assert "evaluate" not in said(panel)  # its labels are gone


def test_a_folder_that_holds_another_run_is_not_taken_for_this_one(run, tiny):
    given = tiny("tase", guidance__tau_max=0.4, optim__epochs=30)
    panel = LiveTraining(given, run.path, watch=False)
    assert "holds another run (TASE, identity" in said(panel) and "finished" not in panel.status.value
    assert panel.config.guidance.tau_max == 0.4 and panel.buttons["resume"].disabled
    panel.start()
    assert "holds another run" in said(panel) and panel.process is None


def test_what_a_method_cannot_steer_is_not_offered(tiny, tmp_path):
    """Each method's controls are exactly what the control file accepts."""
    for name in METHODS:
        config = tiny(method=name)
        panel = LiveTraining(config, tmp_path / name, watch=False)
        offered = set(panel.options.values)
        assert offered == set(config.guidance_class.steerable)
        for option in offered:
            request(tmp_path, config, set={f"guidance.{option}": getattr(config.guidance, option)})
        assert (panel.buttons["steer"] in panel.widget.children[3].children) == bool(offered)


def test_a_training_that_dies_or_cannot_start_is_told_in_a_line(panel, run, tmp_path):
    assert live.training_state(run) == "finished"
    save_json(run.path / "status.json", {"state": "training", "pid": 2**22 - 3, "epoch": 3, "step": 9})
    lost = LiveTraining(run.path, watch=False)
    assert "ended without a word" in said(lost) and not lost.buttons["resume"].disabled
    shutil.rmtree(run.path)
    lost.look()
    assert "holds no run" in said(lost) and not lost.buttons["start"].disabled
    panel.folder.mkdir()
    (panel.folder / "mine.txt").write_text("keep")
    panel.start()
    until(lambda: panel.look() or "holds other files" in said(panel))
    assert [path.name for path in panel.folder.iterdir() if path.name != ".lock"] == ["mine.txt"]
    with pytest.raises(RunError, match="out="):
        LiveTraining(panel.given)


def test_a_process_that_ends_immediately_shows_its_last_words(tiny, tmp_path):
    config = tiny(data__source="folder", data__root=str(tmp_path / "nothing"), data__rule="none", data__image_size=8)
    panel = LiveTraining(config, tmp_path / "run", watch=False)
    panel.start()
    until(lambda: panel.look() or "error:" in said(panel) or "failed" in said(panel))
    assert "nothing" in said(panel)


def test_the_thread_follows_the_folder_and_a_newer_panel_takes_over(run):
    first = LiveTraining(run.path)
    second = LiveTraining(run.path)
    assert first._ended.is_set() and "newer panel" in said(first)
    second.close()
    assert second._ended.is_set()
