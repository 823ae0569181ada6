"""Figures from run folders of the true format, whose numbers are drawn at random: what is shown is what was saved."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.image import imread

import tase
from tase import figures, files, runs
from tase.config import ConfigError
from tase.figures import sources
from tase.figures.paper import power_law
from tase.figures.study import axis_of, readable
from tase.figures.style import CLASS_COLOURS, THEMES, VALUES, on_any_ground
from tase.presets import preset
from tase.studies import contrasts, read_study
from tase.tables import study_markdown, summary


def make_run(folder, method="tase", seed=0, classes=10, snapshots=4, labelled=True, evaluated=True, **overrides):
    """A finished run's folder, every number drawn from the seed and the method's name."""
    rng = np.random.default_rng([seed, *method.encode(), classes])
    config = preset("digits-lt", method, seed, {k.replace("__", "."): v for k, v in overrides.items()})
    order = np.random.default_rng(seed).permutation(classes)  # the class of each rank
    counts = np.empty(classes, dtype=np.int64)
    counts[order] = np.maximum(5, 120 * 20 ** (-np.arange(classes) / (classes - 1)))
    groups = np.empty(classes, dtype=np.int64)
    third = classes // 3
    groups[order] = np.repeat([0, 1, 2], [classes - 2 * third, third, third])
    if config.data.balanced:
        counts = counts.sum() // classes + (np.arange(classes) < counts.sum() % classes)
    names = [str(c) for c in range(classes)]
    (folder / "history").mkdir(parents=True)
    files.save_json(folder / "config.json", {"format": 1, "identity": config.identity, "config": config.to_dict()})
    files.save_json(folder / "environment.json", {"commit": "abc1234", "subset": f"{seed:08x}"})
    labels = np.repeat(np.arange(classes), counts)
    write_history(folder / "history", rng, labels, snapshots, labelled)
    if labelled:
        arrays = {"labels": labels, "counts": counts, "groups": groups, "classes": np.array(names)}
        files.save_npz(folder / "history" / "labels.npz", **arrays)
    rows = [
        {"epoch": e, "loss": 5 - e / 50, "attraction": -2 - e / 50, "repulsion": 7.0, "lr": 0.3} for e in range(1, 41)
    ]
    for row in rows[9::10] if labelled else ():
        row["knn"] = 80 + row["epoch"] / 4
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluated:
        write_results(folder, config, rng, names, counts, groups)
    return runs.Run(folder)


def write_history(folder, rng, labels, snapshots, labelled):
    n, k = len(labels), 20
    for t in range(snapshots):
        quality = {"nmi": rng.uniform(), "spearman_samples": rng.uniform(-1, 1), "spearman_classes": rng.uniform(-1, 1)}
        arrays = {
            "tau": rng.uniform(0.1, 0.5, n).astype(np.float32),
            "weight": rng.uniform(0.2, 5, n).astype(np.float32),
            "headness": rng.normal(size=n).astype(np.float32),
            "loss": rng.normal(size=n).astype(np.float32),
            "pseudo_label": rng.integers(0, k, n),
            "cluster_sizes": rng.uniform(1, 50, k).astype(np.float32),
            "feature_index": np.arange(n if t == snapshots - 1 else 5),
            "quality": np.array(json.dumps(quality if labelled else {})),
        }
        features = rng.normal(size=(len(arrays["feature_index"]), 8)).astype(np.float16)
        epoch = 10 * (t + 1)
        files.save_npz(folder / f"epoch_{epoch:06d}.npz", epoch=np.array(epoch), features=features, **arrays)


def write_results(folder, config, rng, names, counts, groups):
    c = len(names)
    accuracy = rng.uniform(20, 99, c)
    linear = {"per_class": accuracy.tolist(), "all": accuracy.mean(), "range_classes": np.ptp(accuracy)}
    results = {
        "format": 1, "identity": config.identity, "preset": config.preset, "method": config.method, "seed": config.seed,
        "commit": "abc1234", "subset": f"{config.seed:08x}", "classes": names, "counts": counts.tolist(),
        "groups": groups.tolist(), "eval_classes": list(range(c)), "protocols": {"linear": linear},
        "geometry": {"spread": rng.uniform(30, 80, c).tolist(), "centre_angle": rng.uniform(60, 100, c).tolist()},
        "push": {"per_class": (counts / counts.sum()).tolist()},
    }  # fmt: skip
    files.save_json(folder / "results.json", results)
    labels = np.repeat(np.arange(c), max(2, 60 // c))
    features = (rng.normal(size=(c, 16))[labels] + 0.3 * rng.normal(size=(len(labels), 16))).astype(np.float16)
    files.save_npz(folder / "features_test.npz", features=features, labels=labels)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    return [
        make_run(base / "balanced", "simclr", data__balanced=True),
        make_run(base / "simclr", "simclr"),
        make_run(base / "tase", "tase"),
    ]


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory):
    base = tmp_path_factory.mktemp("hundred")
    return [make_run(base / "simclr", "simclr", classes=100), make_run(base / "tase", "tase", classes=100)]


def drawn(figure):
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure):
    return [t.get_text() for t in drawn(figure).findobj(mpl.text.Text) if t.get_text()]


def bars(ax):
    return [p for p in ax.patches if p.get_height() > 0]


ALL = {
    "per_class_accuracy": figures.per_class_accuracy,
    "geometry": figures.geometry,
    "tsne": figures.tsne,
    "dynamics": lambda runs, **options: figures.dynamics(runs[-1], **options),
    "push": figures.push,
    "training_curves": lambda runs, **options: figures.training_curves(runs[-1], **options),
}
PAIRS = {"paired_accuracy": figures.paired_accuracy}
OF_ONE = {
    name: lambda runs, name=name: getattr(figures, name)(runs[-1])
    for name in ("tau_by_group", "tau_against_loss", "tau_by_category", "temperature_map", "cluster_confusion",
                 "cluster_changes", "sample_courses")
}  # fmt: skip


@pytest.mark.parametrize("which", ["three", "many_classes"])
@pytest.mark.parametrize("name", ALL | PAIRS | OF_ONE)
def test_every_figure_is_readable_and_says_where_it_comes_from(name, which, request):
    draw, shown_runs = (ALL | PAIRS | OF_ONE)[name], request.getfixturevalue(which)
    if which == "many_classes" and name in PAIRS:
        pytest.skip("there is no balanced control among them")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # glyphs that are missing, layouts that do not fit
        figure = drawn(draw(shown_runs))
    shown = [t for t in figure.findobj(mpl.text.Text) if t.get_text() and t.get_visible()]
    assert min(t.get_fontsize() for t in shown) >= 7
    assert figure.get_figwidth() in (3.25, 5.5)
    foot = figure.get_supxlabel().replace("\n", " ")
    for part in ("digits-lt", "subset 00000000", "1 seed ", "commit abc1234"):
        assert part in foot
    if name not in OF_ONE:
        assert draw(shown_runs, footer=False).get_supxlabel() == ""


def test_ticks_that_return_when_it_is_drawn_are_seen_on_any_ground():
    with figures.style():
        figure = figures.new_figure(4, 3)
        ax = figure.subplots()
        ax.xaxis.set_major_locator(mpl.ticker.MultipleLocator(0.1))
        ax.set_xlim(0, 1)
        drawn(figure).axes[0].set_xlim(0, 0.3)
    shown = on_any_ground(figure)
    shown.axes[0].set_xlim(0, 1)
    labels = [text for text in drawn(shown).axes[0].get_xticklabels() if text.get_text()]
    assert len(labels) > 10
    assert {mpl.colors.to_hex(text.get_color()) for text in labels} == {THEMES["screen"].ink.lower()}


@pytest.mark.parametrize("name", ALL | PAIRS | OF_ONE)
def test_a_notebook_shows_every_figure_on_any_ground_and_in_words(name, three):
    """Text and lines have colours that neither white nor JupyterLab's dark page swallows; what is saved stays."""
    figure = drawn((ALL | PAIRS | OF_ONE)[name](three))
    before = [text.get_color() for text in figure.findobj(mpl.text.Text)]
    shown = drawn(on_any_ground(figure))
    words = [t for t in shown.findobj(mpl.text.Text) if t.get_text() and t.get_visible()]
    lines = [x for x in shown.findobj(mpl.lines.Line2D) if x.get_visible() and x.get_linestyle() != "None"]
    inks = {mpl.colors.to_hex(artist.get_color()) for artist in (*words, *lines)}
    assert all(min(contrast(ink, "white"), contrast(ink, "#111111")) > 2.8 for ink in inks), inks
    data, about = figure._repr_mimebundle_()
    picture = imread(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture[0, 0, 3] == 0 and picture[..., 3].max() == 1
    alt = about["image/png"]["alt"]
    assert f'alt="{html.escape(alt)}"' in data["text/html"] and len(alt) > 20 and "\n" not in alt
    assert [text.get_color() for text in figure.findobj(mpl.text.Text)] == before
    assert figure.get_facecolor() == (1, 1, 1, 1), "what is saved is on white"


def test_a_figure_shows_itself_so_where_pyplot_has_a_format_for_all_figures(tmp_path):
    pytest.importorskip("IPython")
    lines = """
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.core.pylabtools import select_figure_formats
        from tase.figures import new_figure
        shell = InteractiveShell.instance()
        select_figure_formats(shell, {"png"})
        figure = new_figure(2, 2)
        ax = figure.subplots()
        ax.plot([1, 2])
        ax.set_title("what it is")
        data, about = shell.display_formatter.format(figure)
        assert data["image/png"] in data["text/html"] and about["image/png"] == {"alt": "what it is"}
    """
    env = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(lines)], env=env, check=True)


def test_a_figure_of_images_says_its_captions_and_alt_can_be_given():
    image = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    figure = figures.thumbnails(image, ["three", "τ < 0.1"], title="Two digits")
    assert figure._repr_mimebundle_()[1]["image/png"]["alt"] == "Two digits; 2 images: three, τ < 0.1"
    figure.alt = "two zeros"
    assert 'alt="two zeros"' in figure._repr_mimebundle_()[0]["text/html"]


def test_the_footer_names_what_all_runs_have_otherwise_than_the_preset(tmp_path):
    common = {"optim__batch": 96}
    runs = [
        make_run(tmp_path / "a", "simclr", **common),
        make_run(tmp_path / "b", "tase", guidance__tau_max=0.3, **common),
    ]
    assert sources.origin(runs).startswith("digits-lt · batch=96 · subset ")
    assert sources.origin(runs[1:]).startswith("digits-lt · tau_max=0.3 · batch=96 · subset ")
    five = make_run(
        tmp_path / "c",
        "tase",
        **{f"optim__{name}": 3 for name in ("batch", "lr", "epochs")},
        **{f"guidance__{name}": 7 for name in ("clusters", "restarts")},
    )
    assert sources.origin([five]).startswith("digits-lt · 5 fields set · subset ")


@pytest.fixture(scope="module")
def long_names(tmp_path_factory):
    """Four methods, class names that are words, one label with the field that differs."""
    base = tmp_path_factory.mktemp("words")
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    here = [make_run(base / m, m) for m in ("simclr", "oracle", "tase")]
    here.append(make_run(base / "narrow", "tase", guidance__tau_max=0.3))
    for run in here:
        files.save_json(run.path / "results.json", run.results | {"classes": names})
    return here


@pytest.mark.parametrize("which", ["three", "many_classes", "long_names"])
@pytest.mark.parametrize("name", ALL | PAIRS | OF_ONE)
def test_no_text_is_cut_off_or_overlaps(name, which, request):
    if which != "three" and name in PAIRS:
        pytest.skip("there is no balanced control among them")
    no_text_is_cut_off_or_overlaps((ALL | PAIRS | OF_ONE)[name](request.getfixturevalue(which)), name)


def no_text_is_cut_off_or_overlaps(figure, name=""):
    drawn(figure)
    box, page = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.01 and box.y0 > -0.01 and box.x1 < page[0] + 0.01 and box.y1 < page[1] + 0.01
    ticks = {t for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for t in axis.get_ticklabels(which="both")}
    words = [t for t in figure.findobj(mpl.text.Text) if t not in ticks and t.get_visible() and t.get_text().strip()]
    boxes = {t: t.get_window_extent().padded(-1) for t in words if len(t.get_text()) > 1 or name != "tsne"}
    for a, b in itertools.combinations(boxes, 2):
        assert not boxes[a].overlaps(boxes[b]), (a.get_text(), b.get_text())


def test_accuracy_shows_the_saved_numbers_from_head_to_tail(three):
    figure = figures.per_class_accuracy(three)
    for ax, run in zip(figure.axes, three):
        results = three[1].results  # the balanced control is ordered as the long tail of its seed
        order = np.argsort(-np.array(results["counts"]), kind="stable")
        accuracy = np.array(run.results["protocols"]["linear"]["per_class"])
        drawn = bars(ax)
        np.testing.assert_allclose([b.get_height() for b in drawn], accuracy[order])
        colours = [mpl.colors.to_hex(b.get_facecolor()).upper() for b in drawn]
        assert colours == [figures.GROUP_COLOURS[g] for g in (0,) * 4 + (1,) * 3 + (2,) * 3]
        assert [t.get_text() for t in ax.get_xticklabels()] == [str(i) for i in order]
        assert f"mean {accuracy.mean():.1f}, range {np.ptp(accuracy):.1f}" in ax.get_title(loc="left")
    assert [ax.get_title(loc="left").splitlines()[0] for ax in figure.axes] == [
        "SimCLR, balanced",
        "SimCLR, long tail",
        "TASE, long tail",
    ]


def test_seeds_of_a_method_share_a_panel(tmp_path):
    seeds = [make_run(tmp_path / str(s), seed=s) for s in range(3)]
    figure = figures.per_class_accuracy(seeds)
    (ax,) = figure.axes
    by_rank = []
    for run in seeds:
        order = np.argsort(-np.array(run.results["counts"]), kind="stable")
        by_rank.append(np.array(run.results["protocols"]["linear"]["per_class"])[order])
    np.testing.assert_allclose([b.get_height() for b in bars(ax)], np.mean(by_rank, 0))
    segments = [c for c in ax.collections if len(c.get_segments()) == 10][0].get_segments()
    np.testing.assert_allclose([np.ptp(s[:, 1]) / 2 for s in segments], np.std(by_rank, 0, ddof=1))
    assert f"range {np.ptp(by_rank, 1).mean():.1f}" in ax.get_title(loc="left")
    assert "rank" in ax.get_xlabel() and "3 seeds" in figure.get_supxlabel().replace("\n", " ")


def test_classes_without_evaluation_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    results = run.results
    results["eval_classes"] = [7, 2, 5]
    results["protocols"]["linear"]["per_class"] = [70.0, 20.0, None]
    files.save_json(run.path / "results.json", results)
    data = sources.ranked([run], [run], lambda r: r.results["protocols"]["linear"]["per_class"])
    counts = np.array(results["counts"])
    expected = sorted((7, 2), key=lambda c: -counts[c])
    assert data.names == tuple(map(str, expected))
    assert dict(zip(data.names, data.values[0])) == {"7": 70, "2": 20}
    title = figures.per_class_accuracy(run).axes[0].get_title(loc="left")
    assert "mean 45.0, range 50.0" in title


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """A balanced control and a long-tailed run of three seeds, each with its own order of classes."""
    base = tmp_path_factory.mktemp("paired")
    return [
        make_run(base / f"{m}-{s}{b}", m, s, data__balanced=b)
        for s in range(3)
        for m, b in (("simclr", True), ("tase", False))
    ]


def test_pairs_are_of_the_same_class_and_seed(paired):
    figure = figures.paired_accuracy(paired)
    (ax,) = figure.axes
    by_rank = []
    for control, run in (
        itertools.batched(paired, 2) if hasattr(itertools, "batched") else zip(paired[::2], paired[1::2])
    ):
        order = np.argsort(-np.array(run.results["counts"]), kind="stable")
        here, there = (np.array(r.results["protocols"]["linear"]["per_class"]) for r in (run, control))
        by_rank.append((here - there)[order])
    points = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose([line.get_ydata().item() for line in points], np.mean(by_rank, 0))
    segments = [
        c.get_segments()[0] for c in ax.collections if hasattr(c, "get_segments") and len(c.get_segments()) == 1
    ]
    half = [summary(column.tolist()).ci95 for column in np.array(by_rank).T]
    np.testing.assert_allclose([np.ptp(s[:, 1]) / 2 for s in segments], half)
    over = summary(np.mean(by_rank, 1).tolist())
    assert f"mean {over.mean:+.1f} ± {over.ci95:.1f}" in ax.get_title(loc="left")
    assert ax.get_xlabel() == "class rank, head to tail"
    foot = figure.get_supxlabel().replace("\n", " ")
    assert "minus SimCLR, balanced" in foot and "intervals: 95 % over seeds" in foot
    no_text_is_cut_off_or_overlaps(figure)


def test_runs_without_their_control_are_not_paired(paired, tmp_path):
    alone = make_run(tmp_path / "alone", "tase", seed=7)
    (ax,) = figures.paired_accuracy([*paired, alone]).axes
    (same,) = figures.paired_accuracy(paired).axes
    assert ax.get_title(loc="left") == same.get_title(loc="left")
    with pytest.raises(runs.RunError, match="no long-tailed run has a balanced control"):
        figures.paired_accuracy([paired[0], alone])
    one = figures.paired_accuracy(paired[:2])  # one seed: no interval, and none is claimed
    assert "intervals" not in one.get_supxlabel() and "±" not in one.axes[0].get_title(loc="left")


def test_pairs_are_of_one_preset_and_its_settings(paired, tmp_path):
    other = {"preset": "fashion-mnist-lt-small"}
    settings = {"plain": {}, "other": other, "rho": {**other, "data__rho": 50}, "long": {**other, "optim__epochs": 200}}
    here = [*paired]
    for name, setting in settings.items():
        here += [make_run(tmp_path / f"{name} {m}", m, 0, **setting) for m in ("simclr", "tase-tau")]
    for name in ("other", "long"):
        here += [make_run(tmp_path / f"{name} {m} b", m, 0, **settings[name], data__balanced=True)
                 for m in ("simclr", "tase")]  # fmt: skip
    found = {tailed.name: control.name for tailed, control in figures.control_pairs(here).items()}
    expected = {f"tase-{seed}False": f"simclr-{seed}True" for seed in range(3)}
    expected |= {f"plain {m}": "simclr-0True" for m in ("simclr", "tase-tau")}
    expected |= {f"{name} {m}": f"{name} simclr b" for name in ("other", "long") for m in ("simclr", "tase-tau")}
    assert found == expected
    figure = figures.paired_accuracy(here)
    assert "minus SimCLR, balanced ·" in figure.get_supxlabel().replace("\n", " ")
    labels = [label for label, _ in sources.by_method([run for run in here if run.config.method == "simclr"])]
    name = "fashion-mnist-lt-small"
    tails = ["", f" ({name})", f" ({name}, rho=50)", f" ({name}, epochs=200)"]
    assert [label for label in labels if "long tail" in label] == [f"SimCLR, long tail{end}" for end in tails]


def test_a_balanced_control_takes_its_groups_from_the_long_tail_of_its_seed(three, tmp_path):
    other = make_run(tmp_path / "other", seed=5)
    counts, groups, borrowed = sources.order_of(three[0], [other, *three])
    assert borrowed and counts.tolist() == three[1].results["counts"] and groups.tolist() == three[1].results["groups"]
    by, groups, borrowed = sources.order_of(three[0], [three[0], other])
    assert not borrowed and groups.tolist() == three[0].results["groups"]
    assert groups[np.argsort(-by, kind="stable")].tolist() == sorted(groups)
    flat = make_run(tmp_path / "flat", data__rho=1)
    files.save_json(flat.path / "results.json", flat.results | {"counts": [40] * 10})
    assert set(sources.order_of(flat, [flat])[1]) == {-1}


def test_runs_of_one_name_are_told_apart_by_what_differs(tmp_path):
    here = [make_run(tmp_path / "a"), make_run(tmp_path / "b", guidance__tau_max=0.3)]
    assert [label for label, _ in sources.by_method(here)] == ["TASE, long tail", "TASE, long tail (tau_max=0.3)"]


def test_geometry_draws_every_class_and_marks_the_drawing(three):
    figure = figures.geometry(three)
    assert "a drawing" in figure.axes[0].get_title(loc="left")
    for ax, key in zip(figure.axes[1:], ("spread", "centre_angle")):
        points = np.concatenate([c.get_offsets()[:, 0] for c in ax.collections])
        np.testing.assert_allclose(sorted(points), sorted(sum((r.results["geometry"][key] for r in three), [])))
        spread = np.array(three[0].results["geometry"][key])
        assert f"CV {spread.std() / spread.mean():.2f}" in texts(figure)


def test_the_layout_can_be_chosen(tmp_path):
    run = make_run(tmp_path / "run")
    foot = figures.tsne(run, kind="pca").get_supxlabel().replace("\n", " ")
    assert "PCA of 60 test images" in foot
    assert (run.path / "layouts" / "pca.npz").exists()
    with pytest.raises(ConfigError, match="did you mean 'tsne'"):
        figures.tsne(run, "tsnee")


def test_a_run_without_labels_is_drawn_as_one_group(tmp_path):
    run = make_run(tmp_path / "run", labelled=False, evaluated=False)
    assert "all images (median)" in texts(figures.dynamics(run))
    assert "no labels" in figures.dynamics(run).get_supxlabel()
    assert "images (no labels)" in texts(figures.tsne(run))
    assert any("needs labels" in t for t in texts(figures.training_curves(run)))


def test_dynamics_shows_medians_of_each_group(three):
    run = three[2]
    figure = figures.dynamics(run, samples=0)
    h = run.history
    for ax, values in zip(figure.axes, (h.tau, h.weight / h.weight.mean(1, keepdims=True))):
        for line, g in zip(ax.lines, range(3)):
            np.testing.assert_allclose(
                line.get_ydata(), np.median(values[:, h.groups[h.labels] == g], axis=1), rtol=1e-5
            )
    nmi = figure.axes[2].lines[0]
    np.testing.assert_allclose(nmi.get_ydata(), [q["nmi"] for q in h.quality])


def test_between_snapshots_nothing_is_made_up(three):
    """tau is known at snapshots only: it is held until the next one, and the warm-up's end is marked."""
    run = three[2]
    figure = drawn(figures.dynamics(run))
    for ax in figure.axes[:2]:
        curves = [line for line in ax.lines if len(line.get_xdata()) == len(run.history)]
        assert len(curves) == 9 and all(line.get_drawstyle() == "steps-post" for line in curves)
        ends = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
        assert ends == [run.config.warmup] and "warm-up ends" in " ".join(t.get_text() for t in ax.texts)


def test_steering_is_marked_and_noise_of_the_knn_looks_like_noise(tmp_path):
    run = make_run(tmp_path / "run")
    (run.path / "events.jsonl").write_text(json.dumps({"id": "a", "epoch": 20, "step": 1, "set": {}}) + "\n")
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | ({"knn": 92 + row["epoch"] / 100} if "knn" in row else {})) for row in metrics]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    figure = figures.training_curves(runs.Run(run.path))
    assert [20, 20] in [list(line.get_xdata()) for line in figure.axes[0].lines]
    foot = figure.get_supxlabel().replace("\n", " ")
    assert "dotted: end of the warm-up, steered" in foot and "losses at different τ do not compare" in foot
    low, high = figure.axes[2].get_ylim()
    assert high - low == pytest.approx(5)


def test_pictures_of_one_run_show_its_last_snapshot(three):
    run = three[2]
    h = run.history
    group = h.groups[h.labels]
    ax = figures.tau_against_loss(run).axes[0]
    points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    expected = np.concatenate([np.stack([h.tau[-1], h.loss[-1]], 1)[group == g] for g in range(3)])
    np.testing.assert_allclose(points, expected, rtol=1e-5)
    table = figures.cluster_confusion(run).axes[0].collections[0].get_array()
    assert table.sum() == len(h.labels) and sorted(table.sum(0)) == sorted(h.counts)
    assert (np.diff(table.sum(0)) <= 0).all() and (np.diff(table.sum(1)) <= 0).all()  # head to tail, and by size
    rows = [t.get_text() for t in figures.tau_by_category(run).axes[0].get_yticklabels()]
    assert rows == [f"{c} ({h.counts[c]})" for c in np.argsort(-h.counts, kind="stable")]
    with pytest.raises(ValueError, match="but 2 categories"):
        figures.tau_by_category(run, ["a", "b"])
    steps = figures.sample_courses(run, [3, 5]).axes[0].lines
    np.testing.assert_array_equal([line.get_ydata() for line in steps[:2]], h.tau[:, [3, 5]].T)


def test_courses_are_drawn_from_arrays_of_ones_own():
    rng = np.random.default_rng(0)
    tau, weight, groups = rng.uniform(size=(4, 30)), rng.uniform(size=(4, 30)), np.arange(30) % 3
    figure = figures.courses(range(4), tau, weight, groups, samples=0)
    for ax, values in zip(figure.axes, (tau, weight)):
        drawn_medians = [line.get_ydata() for line in ax.lines]
        np.testing.assert_allclose(drawn_medians, [np.median(values[:, groups == g], axis=1) for g in range(3)])
    assert "all images (median)" in texts(figures.courses(range(4), tau, weight))


def test_slope_is_the_exponent():
    counts = np.array([500, 200, 70, 30, 8])
    assert power_law(counts, 3 * counts**0.4) == pytest.approx((0.4, 3))
    assert power_law(counts, np.ones(5)) == pytest.approx((0, 1))
    assert power_law(np.full(5, 40), counts / counts.sum()) is None


def test_push_names_the_slope(three):
    shown = texts(figures.push(three))
    assert "TASE, long tail: slope 1.00" in shown  # the saved push is in proportion to size
    assert "SimCLR, balanced" in shown


def test_class_sizes_take_numbers_or_names():
    figure = figures.class_sizes([10, 300, 50], ["tail", "head", "mid"], ["a", "b", "c"])
    (ax,) = figure.axes
    assert [b.get_height() for b in ax.patches] == [300, 50, 10]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["b", "c", "a"]
    assert "360 images" in ax.get_title(loc="left")
    assert len(figures.class_sizes(range(1, 101)).axes[0].patches) == 100


def test_what_is_missing_is_said_in_a_sentence(tmp_path):
    bare = make_run(tmp_path / "bare", evaluated=False, snapshots=0)
    with pytest.raises(runs.RunError, match="has not been evaluated: tase evaluate"):
        figures.per_class_accuracy(bare)
    with pytest.raises(runs.RunError, match="no snapshot yet: the first comes after 10 epochs"):
        figures.dynamics(bare)
    with pytest.raises(runs.RunError, match="keeps no features"):
        figures.tsne(bare)
    with pytest.raises(runs.RunError, match="protocols / lt-svm"):
        figures.per_class_accuracy(make_run(tmp_path / "run"), "lt-svm")
    with pytest.raises(runs.RunError, match="no runs"):
        figures.push([])


def test_all_figures_writes_pdf_and_png_and_leaves_out_what_a_run_lacks(three, tmp_path, capsys):
    bare = make_run(tmp_path / "bare", seed=1, evaluated=False, snapshots=0)
    paths = figures.all_figures([*three, bare], tmp_path / "out")
    said, label = capsys.readouterr().err.splitlines(), figures.runs_label([*three, bare])
    other = make_run(tmp_path / "other", seed=1, evaluated=False, snapshots=0)
    assert re.fullmatch(r"balanced\+3-more-[0-9a-f]{8}", label) and label != figures.runs_label([*three, other])
    kinds = ("figure1_accuracy_linear", "figure1_paired_linear", "figure2_geometry", "figure3_tsne", "figure5_push")
    assert {p.stem for p in paths} == {"figure4_dynamics_tase", *(f"{kind}_{label}" for kind in kinds)}
    assert sorted(paths) == sorted(p for p in (tmp_path / "out").iterdir())
    assert len(paths) == 12 and all(p.stat().st_size > 3000 for p in paths)
    assert any(f"figure1_accuracy_linear_{label}: left out" in line and "bare" in line for line in said)
    assert any("figure4_dynamics_bare: left out" in line for line in said)


def test_figures_of_another_run_stay(three, tmp_path):
    a, b = three[1:]
    first = {p: p.read_bytes() for p in figures.all_figures(a, tmp_path)}
    second = figures.all_figures(b, tmp_path)
    both = figures.all_figures([a, b], tmp_path)
    assert not {*first} & {*second} and not ({*first} | {*both}) - {*tmp_path.iterdir()}
    assert all(p.read_bytes() == content for p, content in first.items())
    assert {p.name for p in both} >= {"figure5_push_simclr+tase.png", "figure4_dynamics_tase.png"}


def test_figures_of_another_run_of_the_same_name_stay(tmp_path):
    a, b = (make_run(tmp_path / folder / "tase", seed=seed) for seed, folder in enumerate("ab"))
    out = tmp_path / "out"
    first = {p: p.read_bytes() for p in figures.all_figures(a, out)}
    second = {p: p.read_bytes() for p in figures.all_figures(b, out)}
    assert {p.stem for p in first} >= {"figure5_push_tase", "figure4_dynamics_tase"}
    assert {p.stem for p in second} >= {"figure5_push_b_tase", "figure4_dynamics_b_tase"}
    assert all(p.read_bytes() == content for p, content in {**first, **second}.items())
    assert {*figures.all_figures(a, out)} == {*first}  # each takes its own names again
    assert {*figures.all_figures(b, out)} == {*second}
    both = figures.all_figures([a, b], out)
    assert {p.stem for p in both} >= {
        "figure5_push_a_tase+b_tase",
        "figure4_dynamics_a_tase",
        "figure4_dynamics_b_tase",
    }
    assert all(p.read_bytes() == content for p, content in second.items())


def test_figures_that_have_no_free_name_are_an_error(tmp_path):
    run = make_run(tmp_path / "tase")
    parts = run.path.resolve().parts[1:]
    for depth in range(1, len(parts) + 1):
        (tmp_path / f"figure5_push_{'_'.join(parts[-depth:])}.png").touch()
    with pytest.raises(runs.RunError, match="another folder"):
        figures.all_figures(run, tmp_path)


def test_without_a_folder_figures_lie_in_the_run_or_next_to_the_runs(tmp_path):
    a, b = make_run(tmp_path / "x" / "a", "simclr"), make_run(tmp_path / "x" / "b", "simclr", seed=1)
    assert {p.parent for p in figures.all_figures(a)} == {tmp_path / "x" / "a" / "figures"}
    assert {p.parent for p in figures.all_figures([a, b])} == {tmp_path / "x" / "figures"}


def test_slim_copies_are_enough_to_draw_everything_again(three, tmp_path):
    first = figures.all_figures(three, tmp_path / "all", label="")
    for run in three:
        run.slim(tmp_path / "kept" / "demo" / "runs" / run.name)
    again = figures.redraw(tmp_path / "kept")
    assert [p.name for p in again] == [p.name for p in first]
    assert {p.parent for p in again} == {tmp_path / "kept" / "demo"}
    same = [a.name for a, b in zip(first, again) if a.read_bytes() == b.read_bytes()]
    assert {n for n in same if n.endswith("pdf")} >= {
        "figure1_accuracy_linear.pdf",
        "figure3_tsne.pdf",
        "figure5_push.pdf",
    }
    runs.keep_runs(three, tmp_path / "zipped" / "demo" / "runs.zip")
    zipped = figures.redraw(tmp_path / "zipped")
    assert [p.relative_to(tmp_path / "zipped") for p in zipped] == [p.relative_to(tmp_path / "kept") for p in again]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(again, zipped))
    with pytest.raises(runs.RunError, match="holds no kept runs"):
        figures.redraw(tmp_path / "all")


def test_saved_files_have_truetype_fonts_full_resolution_and_no_date(three, tmp_path):
    figure = figures.push(three)
    pdf, png = figures.save(figure, tmp_path / "new" / "push.png")
    data = pdf.read_bytes()
    assert b"/FontFile2" in data and b"/Type3" not in data
    height, width = imread(png).shape[:2]
    assert width == 3.25 * 300 and height == pytest.approx(figure.get_figheight() * 300, abs=1)
    again, _ = figures.save(figures.push(three), tmp_path / "again")
    assert again.read_bytes() == data


def test_a_figure_shows_itself_and_keeps_its_style_in_a_dark_session(three):
    light = figures.push(three)._repr_png_()
    assert light[:4] == b"\x89PNG"
    with mpl.style.context("dark_background"):
        assert figures.push(three)._repr_png_() == light
        assert mpl.rcParams["text.color"] == "white"  # the user's own settings are left as they were


def test_a_dark_figure_is_light_on_nothing(three):
    with figures.theme("dark"):
        figure = figures.push(three)
    light = figures.push(three)
    assert figure._repr_png_() != light._repr_png_()  # drawn after the context, in its own colours
    words = [t for t in drawn(figure).findobj(mpl.text.Text) if t.get_text() and t.get_visible()]
    assert min(contrast(mpl.colors.to_hex(t.get_color()), "#1E1E1E") for t in words) > 4.5
    assert figure.get_facecolor()[3] == 0 and figure.axes[0].get_facecolor()[3] == 0
    assert light.get_facecolor()[3] == 1
    with pytest.raises(ConfigError, match="did you mean 'dark'"), figures.theme("drak"):
        pass


def test_drawing_needs_no_pyplot(three, tmp_path):
    code = (
        "import sys; from tase import figures; from tase.runs import Run;"
        f"f = figures.push([Run({str(three[1].path)!r})]); figures.save(f, {str(tmp_path / 'x')!r});"
        "print('matplotlib.pyplot' in sys.modules, 'sklearn' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


# Colour vision: Machado, Oliveira, Fernandes 2009, full severity, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, deficiency):
    """CIELAB of a colour as it is seen."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("name", THEMES)
def test_group_colours_are_told_apart_by_all_readers(name, deficiency):
    seen = [lab(c, deficiency) for c in THEMES[name].groups]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 30
    if deficiency == "none":  # in grey print too; colours for both grounds have L* from 41 to 61 only
        assert min(abs(a[0] - b[0]) for a, b in itertools.combinations(seen, 2)) > (9 if name == "screen" else 12)


def contrast(colour, ground):
    """Contrast ratio of WCAG 2."""
    light = [((lab(c, "none")[0] + 16) / 116) ** 3 + 0.05 for c in (colour, ground)]  # of colours above L* = 8
    return max(light) / min(light)


def test_group_colours_have_three_to_one_on_their_background():
    both = (*THEMES["screen"].groups, *CLASS_COLOURS, *(VALUES(x) for x in np.linspace(0, 1, 9)))
    assert all(min(contrast(c, "white"), contrast(c, "#111111")) >= 3 for c in both)
    assert all(contrast(c, "white") >= 3 for c in THEMES["light"].groups)
    assert all(contrast(c, "#1E1E1E") >= 3 for c in (*THEMES["dark"].groups, THEMES["light"].groups[2]))
    assert THEMES["light"].groups == figures.GROUP_COLOURS


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_class_colours_are_told_apart_and_are_the_same_in_explorers(deficiency):
    seen = [lab(c, deficiency) for c in CLASS_COLOURS]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest > (30 if deficiency == "none" else 15)
    front = (Path(tase.__file__).parent / "widgets" / "front.js").read_text()
    listed = re.search(r"const CLASSES = \[(.*?)\];", front, re.S)[1]
    assert re.findall(r"#[0-9a-f]{6}", listed) == [c.lower() for c in CLASS_COLOURS]


# ------------------------------------------------------------------------------------------------------------- studies


def make_study(folder, figure="bars", rows=("simclr", "tase"), columns=("",), reference="simclr", values=None, **about):
    """A study's folder of one protocol; `values`: (row, column) -> accuracies of the seeds."""
    values = values or {(row, column): [80.0, 81.0, 82.5] for row in rows for column in columns}
    extras = about.pop("extras", [])
    shared = {"study": "made", "kind": "cell", "preset": "digits-lt", "subset": "00000000", "commit": "abc1234"}
    lines = [
        shared | {"row": row, "column": column, "protocol": "linear", "seed": seed, "split": seed, "metric": metric,
                  "value": value, "identity": "x"}
        for (row, column), own in values.items() for seed, value in enumerate(own) for metric in ("all", "tail", "head")
    ]  # fmt: skip
    folder.mkdir(parents=True)
    pd.DataFrame(lines).to_csv(folder / "results.csv", index=False)
    saved = {"name": "made", "question": "?", "reference": reference, "reference_column": "", "figure": figure}
    saved |= {"outside": [], "rows": list(rows), "columns": list(columns), "extras": extras, "presets": ["digits-lt"]}
    saved |= {"seeds": [0, 1, 2], "on": "test", "overrides": {}, "left_out": [], "failed": [], "axes": {}}
    files.save_json(folder / "study.json", saved | about)
    return folder


def test_a_difference_is_filled_where_its_interval_leaves_zero(tmp_path):
    values = {
        ("simclr", ""): [80.0, 81.0, 82.0],
        ("tase", ""): [82.0, 83.1, 84.0],
        ("shuffled", ""): [79.0, 83.0, 81.0],
    }
    figure = figures.study_figure(make_study(tmp_path / "s", rows=("simclr", "tase", "shuffled"), values=values))
    (ax,) = figure.axes
    marks = [line for line in ax.lines if line.get_marker() == "o"]
    fills = {tuple(line.get_ydata()): mpl.colors.to_hex(line.get_markerfacecolor()) for line in marks}
    assert [fills[y,] == "#ffffff" for y in sorted(y for (y,) in fills)] == [False] * 3 + [True] * 3
    assert [t.get_text() for t in ax.get_yticklabels()] == ["TASE", "TASE, shuffled"]
    assert ax.get_xlabel() == "difference to SimCLR, in points" and "intervals: 95 %" in figure.get_supxlabel()
    assert "hollow: the interval holds 0" in texts(figure)
    no_text_is_cut_off_or_overlaps(figure)


def test_a_study_of_many_commits_says_how_many_it_does_not_name(tmp_path):
    folder = make_study(tmp_path / "s", rows=("simclr", "tase", "ts", "oracle"))
    results = pd.read_csv(folder / "results.csv")
    results["commit"] = results["row"].map({"simclr": "a1", "tase": "b2", "ts": "c3", "oracle": "d4"})
    results.to_csv(folder / "results.csv", index=False)
    assert "commit a1, b2, c3 and 1 more" in " ".join(figures.study_figure(folder).get_supxlabel().split())


def ends_of(ax, upright):
    found = [s for c in ax.collections for s in (c.get_segments() if hasattr(c, "get_segments") else ())]
    return np.array([s[:, int(upright)] for s in found])


@pytest.mark.parametrize("figure", ["bars", "curve"])
def test_an_interval_is_whole_however_wide(tmp_path, figure):
    upright = figure == "curve"
    wide = {("simclr", ""): [80.0, 81.0], ("tase", ""): [70.0, 95.0]}  # of two seeds: over a hundred points
    (ax, *_) = figures.study_figure(make_study(tmp_path / "s", figure, values=wide)).axes
    ends, (low, high) = ends_of(ax, upright), ax.get_ylim() if upright else ax.get_xlim()
    assert np.ptp(ends) > 200 and low < ends.min() and ends.max() < high and low < 0 < high


def test_a_map_keeps_strong_colours_for_what_leaves_zero(tmp_path):
    columns = ("tau_max=0.2", "tau_max=0.5")
    values = {("tau_min=0.1", columns[0]): [81.0, 82.0, 83.1], ("tau_min=0.1", columns[1]): [80.0, 83.0, 83.0]}
    values[("simclr", "")] = [80.0, 81.0, 82.0]
    axes = {
        label: {f"guidance.{label.split('=')[0]}": float(label.split("=")[1])} for label in ("tau_min=0.1", *columns)
    }
    folder = make_study(tmp_path / "s", "heat", ("tau_min=0.1",), columns, values=values, extras=["simclr"], axes=axes)
    figure = figures.study_figure(folder)
    ax = figure.axes[0]
    shown = ax.collections[0].get_array().ravel()
    np.testing.assert_allclose(shown, [3.1 / 3, 0.1])  # the largest difference, and a tenth of one
    assert [t.get_text().split("\n")[0] for t in ax.texts] == ["+1.0", "+1.0"]
    assert figure.axes[1].get_xlabel() == "τ max"
    assert [t.get_text() for t in figure.axes[1].get_xticklabels()] == ["0.2", "0.5"]
    means = figures.study_figure(make_study(tmp_path / "m", "heat", values={k: v for k, v in values.items() if k[1]},
                                            rows=("tau_min=0.1",), columns=columns, axes=axes))  # fmt: skip
    assert "means over seeds" in means.get_supxlabel() and "intervals" not in means.get_supxlabel()


def test_a_map_of_one_reference_in_a_column_has_one_zero(tmp_path):
    """Four protocols, so that rows above the maps have little room."""
    rows, columns, extras = ("head 0.2", "head 0.5"), ("tail 0.2", "tail 0.5"), ["simclr", "simclr, balanced"]
    places = [*itertools.product(rows, columns), *((row, "") for row in extras)]
    values = {place: [80.0 + i, 81.0 + i, 82.5 + i + i / 10] for i, place in enumerate(places)}
    about = {"extras": extras, "axes": {row: {"method": "simclr"} for row in extras}, "reference_column": "tail 0.2"}
    folder = make_study(tmp_path / "s", "heat", rows, columns, "head 0.2", values, **about)
    one = pd.read_csv(folder / "results.csv", keep_default_na=False)
    protocols = ("linear", "few-shot", "lt-knn@1", "lt-knn@10")
    pd.concat([one.assign(protocol=name) for name in protocols]).to_csv(folder / "results.csv", index=False)
    results, about = read_study(folder)
    found = {(c.row, c.column): c.difference for c in contrasts(results, about, "digits-lt", "linear", "all")}
    assert [place for place, difference in found.items() if not difference.n] == [("head 0.2", "tail 0.2")]
    assert found["head 0.5", "tail 0.5"].mean == pytest.approx(3.1)  # and not 2.07, to its own column's
    figure = figures.study_figure(folder)
    assert [t.get_text().split("\n")[0] for t in figure.axes[0].texts] == ["+0.0", "+1.0", "+2.1", "+3.1"]
    assert figure.get_suptitle().startswith("difference to head 0.2, tail 0.2, in points")
    assert figure.axes[0].get_title("left") == "linear\nSimCLR +4.1\nbalanced +5.2"
    no_text_is_cut_off_or_overlaps(figure)
    legend = "- reference: {}, paired by seed and split."
    assert legend.format("head 0.2 in tail 0.2") in study_markdown(results, about)
    about["reference"] = "simclr"  # which has no column: so were tables made by `--reference simclr`
    assert legend.format("simclr") in study_markdown(results, about)


def test_axes_carry_their_values():
    axes = {"a": {"guidance.tau_0": 0.1, "method": "simclr"}, "b": {"guidance.tau_0": 0.2, "method": "simclr"}}
    axes |= {"c": {"guidance.group_tau": [0.1]}, "d": {"guidance.group_tau": [0.2]}, "e": {"optim.epochs": "x2"}}
    about = {"axes": axes}
    assert axis_of(["a", "b"], about) == ("τ₀", [0.1, 0.2], ["0.1", "0.2"])
    for labels in (["c", "d"], ["e"], ["unknown"]):
        assert axis_of(labels, about) == ("", [], labels)
    assert readable("tase, scale_by_tau") == "TASE, scale by τ"
    assert readable("tau_0=0.2") == "τ₀ = 0.2" and readable("simclr") == "SimCLR"
    assert readable("tase, tau 0.4 for all") == "TASE, τ 0.4 for all"
    assert readable("simclr at 0.4") == "SimCLR at 0.4" and readable("simclrs") == "simclrs"
    assert readable("merged, sqrt, hard") == "joined clusters, root, hard"


# ------------------------------------------------------------------------------------------------- sheets of thumbnails


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_every_image_with_its_caption_and_frame(channels):
    images = torch.randint(0, 256, (7, channels, 8, 8), dtype=torch.uint8)
    names = [f"no. {i}" for i in range(7)]
    figure = figures.thumbnails(images, names, ["#27509A"] * 7, columns=5, title="seven")
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_xlabel() for ax in shown] == names
    assert len(figure.axes) == 10  # two rows of five, the last three empty
    pixels = torch.from_numpy(shown[3].images[0].get_array().data.copy())
    expected = images[3, 0] if channels == 1 else images[3].permute(1, 2, 0)
    assert torch.equal(pixels, expected)
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_views_in_zero_to_one_are_shown_alike():
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    a, b = (figures.thumbnails(x, columns=1).axes[0].images[0].get_array() for x in (images, images / 255))
    assert (a == b).all()


def test_wrong_numbers_of_captions_and_no_images_are_errors():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="2 images but 3 captions"):
        figures.thumbnails(images, ["a", "b", "c"])
    with pytest.raises(ValueError, match="no image"):
        figures.thumbnails(images[:0])
