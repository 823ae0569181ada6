"""The report: what its file holds, for every kind of run; the table of what is rare; the explorer in Python.

The page itself: test_browser_report.py.
"""

import base64
import dataclasses
import gzip
import io
import json
import os
import re
import shutil
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import tase
from tase.config import ConfigError
from tase.files import RunError, load_npz, save_npz
from tase.pseudo_labels import clipped_rank
from tase.widgets import RunExplorer
from tase.widgets.payload import Packer, payload
from tase.widgets.rarity import listed, remarks, sentences
from tase.widgets.what_if import saved_quantity


def unpacked(data):
    """The payload as Python sees it: headers with numpy arrays, floats in 16 bits with NaN again."""
    length = int.from_bytes(data[:8], "little")
    base = 8 + length

    def found(value):
        if "@" not in value:
            return value
        offset, kind, count = value["@"]
        array = np.frombuffer(data, f"<{kind}", count, base + offset)
        if "low" not in value:
            return array
        numbers = value["low"] + array / 65534 * (value["high"] - value["low"])
        return np.where(array == 65535, np.nan, numbers)

    return json.loads(data[8:base], object_hook=found)


def data_of(path):
    """The payload in an HTML file."""
    coded = re.search(r'<script id="tase-data" type="text/plain">(.*?)</script>', path.read_text(), re.S).group(1)
    return unpacked(gzip.decompress(base64.b64decode(coded)))


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the tiny TASE run, free to be changed."""
    return tase.Run(shutil.copytree(trained[2].path, tmp_path / "tase"))


@pytest.fixture
def folder(tmp_path):
    """A flat folder of 60 pictures without labels: 20 of each of three looks, one blank, one twice."""
    rng = np.random.default_rng(0)
    home = tmp_path / "mine"
    home.mkdir()
    looks = rng.integers(0, 256, (3, 16, 16, 3))
    for i in range(60):
        noisy = np.clip(looks[i % 3] + rng.normal(0, 25, (16, 16, 3)), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(home / f"picture {i:02}.png")
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(home / "picture 07.png")
    shutil.copy(home / "picture 03.png", home / "picture 30.png")
    return home


@pytest.fixture
def unlabelled(folder, tmp_path):
    overrides = {"data.root": str(folder), "data.image_size": 16, "optim.epochs": 2, "optim.batch": 20}
    overrides |= {"model.channels": "8,8,8,8", "guidance.clusters": 5, "data.cache": str(tmp_path / "cache")}
    return tase.train(tase.preset("folder", overrides=overrides), tmp_path / "run", progress=False)


def test_sixteen_bits_keep_four_digits_and_what_is_not_known():
    pack = Packer()
    x = np.array([[0.1, np.nan], [0.5, 0.30001]], dtype=np.float32)
    header = {"x": pack.scaled(x), "same": pack.scaled(np.full(3, 2.0)), "none": pack.scaled([np.nan])}
    found = unpacked(pack.block(header | {"n": pack.whole([1, -2], "i2")}))
    np.testing.assert_allclose(found["x"], x.ravel(), atol=1e-5)
    np.testing.assert_allclose(found["same"], 2)
    assert np.isnan(found["none"]).all() and found["n"].tolist() == [1, -2]


def test_the_file_holds_what_the_run_saved(run, tmp_path):
    path = tase.report(run, out=tmp_path / "new" / "report.html", layout="pca", progress=False)
    (shown,), (images,) = data_of(path)["runs"], data_of(path)["sets"]
    h, index = run.history, images["index"]
    assert shown["epochs"] == h.epoch.tolist() and images["total"] == 405
    for name, saved in (("tau", h.tau), ("weight", h.weight), ("headness", h.headness)):
        np.testing.assert_allclose(shown[name].reshape(len(h), -1), saved[:, index], atol=1e-4)
    np.testing.assert_array_equal(shown["cluster"].reshape(len(h), -1), h.pseudo_label[:, index])
    np.testing.assert_array_equal(images["label"], h.labels[index])
    placed = shown["places"]["pca"].reshape(len(h), len(index), 2)[0, :, 0] > -32768
    assert placed.sum() == 100  # record.features; those listed as rare or common are shown too
    assert shown["settings"]["preset"] == run.describe()["preset"] and "linear" in shown["scores"]
    low, high, *_ = shown["equation"]
    np.testing.assert_allclose(low + (high - low) * shown["q"].reshape(len(h), -1)[-1], h.tau[-1][index], atol=4e-3)


def test_the_file_asks_nobody_for_anything(run, tmp_path):
    text = tase.report(run, out=tmp_path / "report.html", layout="pca", progress=False).read_text()
    page = re.sub(r'<script id="tase-data".*?</script>', "", text, flags=re.S)
    assert not re.search(r"""(src|href)=(?!["']?data:)|@import|https?://(?!www\.w3\.org)|fetch\(|import\(""", page)
    assert str(run.path.parent) not in text


def test_nearest_images_are_those_of_the_features(run):
    found = unpacked(payload([run], kinds=("pca",)))
    index, near = found["sets"][0]["index"], found["runs"][0]["near"].reshape(len(run.history), -1, 6)
    kept = run.history.feature_index(0)
    from tase.clustering import centred

    unit = centred(torch.from_numpy(run.history.features(0)))
    expected = kept[(unit @ unit[0]).argsort(descending=True)[1:7].numpy()]
    np.testing.assert_array_equal(index[near[0, np.searchsorted(index, kept[0])]], expected)
    nowhere = ~np.isin(index, kept)
    assert (near[0, nowhere] == -1).all()


def test_two_runs_on_the_same_images_show_the_same_ones(run, trained):
    found = unpacked(payload([run, trained[1]], kinds=("pca",)))
    assert len(found["sets"]) == 1 and [r["set"] for r in found["runs"]] == [0, 0]
    assert len(found["runs"][0]["cluster"]) == len(found["runs"][1]["cluster"])
    index, rare = found["sets"][0]["index"], [set(r["rare"]["rare"]) for r in found["runs"]]
    assert rare[0] != rare[1] and rare[0] | rare[1] <= set(index.tolist())  # what each takes for rare
    other = unpacked(payload([run, trained[0], trained[1]], kinds=("pca",)))  # balanced: other images
    assert [r["set"] for r in other["runs"]] == [0, 1, 0] and len(other["sets"]) == 2


def test_what_a_method_knows_besides_is_in_the_file(tiny, tmp_path):
    runs = [tase.train(tiny(method, optim__epochs=3), tmp_path / method, progress=False) for method in ("bcl-i", "gh")]
    found = unpacked(payload(runs, kinds=("pca",)))
    index, (bcl, gh) = found["sets"][0]["index"], found["runs"]
    strength = bcl["own"]["strength"].reshape(len(bcl["epochs"]), -1)
    np.testing.assert_allclose(strength, runs[0].history.extra("strength")[:, index], atol=1e-4)
    assert np.isnan(bcl["own"]["loss_memory"][: len(index)]).all()  # before the first step
    surrogate = gh["own"]["surrogate"].reshape(len(gh["epochs"]), -1)
    np.testing.assert_array_equal(surrogate, runs[1].history.extra("surrogate")[:, index])
    assert set(bcl["own"]) == {"strength", "loss_memory"} and set(gh["own"]) == {"surrogate"}


def test_slim_runs_have_the_map_that_was_kept_or_all_but_a_map(run, tmp_path):
    slim = run.slim(tmp_path / "bare")
    shutil.rmtree(slim.path / "layouts", ignore_errors=True)  # of a report that was written before
    bare = unpacked(payload([slim]))
    assert bare["runs"][0]["places"] == {} and bare["runs"][0]["near"] is None
    assert "no map" in " ".join(bare["runs"][0]["remarks"])
    assert len(bare["runs"][0]["tau"]) and bare["sets"][0]["tiles"]
    tase.report(run, out=tmp_path / "full.html", progress=False)  # keeps the layout in the run's folder
    kept = unpacked(payload([run.slim(tmp_path / "slim")]))
    assert list(kept["runs"][0]["places"]) == ["tsne"] and not kept["runs"][0]["remarks"]


def test_a_folder_without_labels_has_file_names_and_pictures(unlabelled, tmp_path):
    found = data_of(tase.report(unlabelled, out=tmp_path / "report.html", layout="pca", progress=False))
    images = found["sets"][0]
    assert images["label"] is None and images["group"] is None and images["paths"][3] == "picture 03.png"
    sheet = Image.open(io.BytesIO(images["tiles"]["sheets"][0].tobytes()))
    assert sheet.size == (32 * 16, 2 * 16)
    assert any("2 epochs only" in sentence for sentence in found["runs"][0]["sentences"])


def test_of_many_images_the_sample_that_is_recorded_has_names_and_pictures(folder, tmp_path):
    overrides = {"data.root": str(folder), "data.image_size": 16, "optim.epochs": 2, "optim.batch": 20}
    overrides |= {"model.channels": "8,8,8,8", "guidance.clusters": 5, "data.cache": str(tmp_path / "cache")}
    config = tase.preset("folder", overrides=overrides | {"record.sample": 40})
    run = tase.train(config, tmp_path / "sampled", progress=False)
    table = tase.rare(run).set_index("image")
    names = [f"picture {i:02}.png" for i in run.history.recorded]
    assert table["file"].sort_index().tolist() == names and len(names) == 40
    (shown,) = unpacked(payload([run], kinds=("pca",)))["sets"]
    assert shown["paths"] == names and shown["tiles"] and not shown["remark"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text here")
def test_names_that_are_no_text_are_shown_and_written(folder, tmp_path):
    from tase.__main__ import main

    os.rename(os.fsencode(folder / "picture 07.png"), os.fsencode(folder) + b"/caf\xe9.png")
    fields = [f"data.root={folder}", "data.image_size=16", "optim.epochs=2", "optim.batch=20", "guidance.clusters=5"]
    fields += ["model.channels=8,8,8,8", f"data.cache={tmp_path / 'cache'}"]
    out = str(tmp_path / "run")
    assert main(["train", "--preset", "folder", "--set", *fields, "--out", out, "--quiet"]) == 0
    assert main(["report", out, "--quiet"]) == 0
    assert "caf\ufffd.png" in data_of(tmp_path / "run" / "report.html")["sets"][0]["paths"]
    assert main(["rare", out, "--csv", str(tmp_path / "rare.csv"), "--quiet"]) == 0
    assert ",caf\ufffd.png," in (tmp_path / "rare.csv").read_text()


def test_curves_are_of_all_images_and_q_is_told_as_it_is(run):
    h, (shown,) = run.history, unpacked(payload([run], points=50, kinds=("pca",)))["runs"]
    group = h.groups[h.labels]
    for name in ("tau", "weight", "headness", "loss"):
        for g, means in enumerate(shown["means"][name]):
            known = getattr(h, name)[:, group == g]
            for mean, values in zip(means, known):
                assert mean is None if np.isnan(values).all() else mean == pytest.approx(np.nanmean(values), rel=1e-4)
    quantity = saved_quantity(h, -1, run.config.guidance)
    q, _ = clipped_rank(quantity)
    low, high = map(float, re.fullmatch(r"0 up to a = ([\d.]+), 1 from ([\d.]+)", shown["q_notes"][-1]).groups())
    q_told = ((quantity.a - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(q_told, q, atol=0.05, rtol=0)  # told with one digit
    assert (h.tau[0] == 0.2).all() and shown["equation"] is not None


def test_why_a_temperature_on_the_ramp_and_after_steering(trained, tmp_path, monkeypatch):
    begun = dataclasses.replace(trained[2].config, guidance=dataclasses.replace(trained[2].config.guidance, ramp=0.5))
    run = tase.train(begun, tmp_path / "run", until=5, progress=False)
    (shown,) = unpacked(payload([run], kinds=("pca",)))["runs"]
    assert shown["equation"][:3] == pytest.approx([0.1, 0.5, 0.2])
    run.control(tau_max=0.9)
    monkeypatch.chdir(run.path)  # its folder by its shortest name
    steered = tase.train(begun, ".", resume=True, progress=False)
    (shown,) = unpacked(payload([steered], kinds=("pca",)))["runs"]
    assert steered.steered and shown["equation"] == pytest.approx([0.1, 0.9, 0.2, 1, 6])


def test_images_that_are_gone_are_told_in_a_sentence(unlabelled, folder):
    shutil.rmtree(folder)
    found = unpacked(payload([tase.Run(unlabelled.path)], kinds=("pca",)))
    assert found["sets"][0]["tiles"] is None and found["sets"][0]["remark"].startswith("No pictures:")


def test_larger_sets_show_all_points_and_pictures_of_a_sample_with_all_that_are_named(run, monkeypatch):
    monkeypatch.setattr("tase.widgets.payload.PICTURES", 120)
    found = unpacked(payload([run], kinds=("pca",)))
    place, index = found["sets"][0]["tiles"]["place"], found["sets"][0]["index"]
    named = set(found["runs"][0]["rare"]["rare"])
    assert (place >= 0).sum() >= 120 and named <= set(index[place >= 0].tolist())


def test_the_same_runs_make_the_same_file(run, tmp_path):
    a, b = (tase.report(run, out=tmp_path / f"{i}.html", layout="pca", progress=False) for i in range(2))
    assert a.read_bytes() == b.read_bytes()


def test_figures_of_the_run_are_below(run, tmp_path):
    (run.path / "figures").mkdir()
    Image.new("RGB", (2000, 1000), "white").save(run.path / "figures" / "figure4_dynamics.png")
    text = tase.report(run, out=tmp_path / "report.html", layout="pca", progress=False).read_text()
    assert 'alt="tase: figure4 dynamics"' in text


def test_names_from_files_cannot_leave_their_place(run, tmp_path):
    path = run.path / "history" / "labels.npz"
    arrays = load_npz(path)
    arrays["classes"] = np.array([f"</script><script>alert({c})</script>" for c in arrays["classes"]])
    save_npz(path, **arrays)
    text = tase.report(tase.Run(run.path), out=tmp_path / "r.html", layout="pca", progress=False).read_text()
    assert "alert(" not in text


def test_what_cannot_be_shown_is_refused_with_a_reason(run, tmp_path):
    with pytest.raises(ConfigError, match="layout"):
        tase.report(run, out=tmp_path / "r.html", layout="circle")
    shutil.rmtree(run.path / "history")
    with pytest.raises(RunError, match="no snapshot yet"):
        tase.report(tase.Run(run.path), out=tmp_path / "r.html", progress=False)
    with pytest.raises(RunError, match="no snapshot yet"):
        tase.rare(run.path)


def test_rare_lists_every_image_rarest_first(run):
    table = tase.rare(run)
    assert len(table) == 405 and (np.diff(table["headness"]) >= 0).all()
    assert (table["is"] == "rare").sum() == (table["is"] == "common").sum() == 20
    assert table["is"][0] == "rare" and table["is"].iloc[-1] == "common"
    h = run.history
    np.testing.assert_allclose(table.sort_values("image")["tau"], h.tau[-1], atol=1e-4)
    for k, rows in table[table["typical_of"] >= 0].groupby("typical_of"):
        assert len(rows) <= 6 and (rows["cluster"] == k).all()


def test_rare_finds_the_blank_image_and_the_double_one(unlabelled):
    table = tase.rare(unlabelled).set_index("file")
    assert table.index[table["blank"]].tolist() == ["picture 07.png"]
    twin = table.loc["picture 30.png"]
    assert twin["duplicate_of"] == 3 and twin["difference"] == 0 and twin["cosine"] > 0.99
    assert table.loc["picture 03.png", "duplicate_of"] == 30
    assert (table["class"] == "").all()
    assert (table["broken"] == "").all()
    short = listed(unlabelled)
    assert short["remarks"] == ["2 of 60 images have a near-duplicate.", "1 blank (all pixels alike): picture 07.png."]
    assert [3, 30] in short["duplicates"] and short["blank"] == [7]


def test_files_that_cannot_be_read_are_named(folder, tmp_path, capsys):
    from tase.__main__ import main

    (folder / "holiday.jpg").write_text("no picture")
    fields = [f"data.root={folder}", "data.image_size=16", "optim.epochs=2", "optim.batch=20", "guidance.clusters=5"]
    fields += ["model.channels=8,8,8,8", f"data.cache={tmp_path / 'cache'}"]
    out = str(tmp_path / "run")
    assert main(["train", "--preset", "folder", "--set", *fields, "--out", out, "--quiet"]) == 0
    assert f"next: tase report {out}" in capsys.readouterr().err
    assert main(["rare", out, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "the 20 rarest of 61" in shown.out
    assert "1 file could not be read, and left out: holiday.jpg." in shown.err
    table = tase.rare(out)
    assert table["file"].iloc[-1] == "holiday.jpg" and "cannot identify" in table["broken"].iloc[-1]
    assert table["image"].tolist()[-1] == -1 and sorted(table["image"][:-1]) == list(range(60))
    assert main(["report", out, "--quiet"]) == 0
    lists = data_of(tmp_path / "run" / "report.html")["runs"][0]["rare"]
    assert lists["broken"] == [["holiday.jpg", table["broken"].iloc[-1]]] and -1 not in lists["common"]


def test_double_images_are_found_among_many(unlabelled, monkeypatch):
    import tase.widgets.rarity as rarity

    monkeypatch.setattr(rarity, "MANY_IMAGES", 10)  # then they are looked for within clusters
    table = rarity.rare(unlabelled).set_index("file")
    assert table.loc["picture 30.png", "duplicate_of"] == 3


def test_trust_is_told_where_a_run_knows_it(run, monkeypatch):
    steps, t = len(run.history), run.trusted_at
    monkeypatch.setattr(type(run.history), "trust", np.linspace(0, 1, steps), raising=False)
    assert sentences(run)[0].startswith(f"Trust {t / (steps - 1):.2f} at epoch {run.history.epoch[t]}: ")
    assert unpacked(payload([run], kinds=("pca",)))["runs"][0]["trust"] == pytest.approx(
        np.linspace(0, 1, steps), abs=0.01
    )
    monkeypatch.setattr(type(run.history), "trust", np.full(steps, np.nan), raising=False)  # an older run
    assert not sentences(run)[0].startswith("Trust")
    assert unpacked(payload([run], kinds=("pca",)))["runs"][0]["trust"] is None


def test_sentences_say_how_far_to_believe_it(trained):
    assert "the same τ" in sentences(trained[1])[1]  # SimCLR
    said = " ".join(sentences(trained[2]))
    assert "Rank correlation" in said and "8 epochs only" in said
    assert "Rank correlation" not in " ".join(sentences(trained[0]))  # balanced: there is no order
    assert "nan" not in trained[0].describe()["clusters"]
    blank = pd.DataFrame({"image": [7, 9], "file": "", "blank": True, "duplicate_of": -1, "broken": ""})
    assert remarks(blank) == ["2 blank (all pixels alike): image 7, image 9."]


def test_the_command_line_writes_the_file_and_the_table(run, tmp_path, capsys):
    from tase.__main__ import main

    assert main(["report", str(run.path), "-o", str(tmp_path / "r.html"), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "r.html")}
    assert main(["rare", str(run.path), "--csv", str(tmp_path / "rare.csv"), "--quiet"]) == 0
    assert len((tmp_path / "rare.csv").read_text().splitlines()) == 406
    assert main(["report", str(run.path / "history"), "--quiet"]) == 2
    assert "is no run" in capsys.readouterr().err


def planted(folder, seed, n=2000, snapshots=20, side=64):
    """A run of n photograph-like images, everything of it made up, with features of all in each snapshot."""
    rng = np.random.default_rng(seed)
    config = tase.preset("digits-lt")
    (folder / "history").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format": 1, "config": config.to_dict()}))
    cluster = rng.integers(0, 100, n)
    features = rng.standard_normal((100, 64))[cluster] + 0.5 * rng.standard_normal((n, 64))
    for t in range(snapshots):
        features = features + 0.2 * rng.standard_normal((n, 64))
        each = {name: rng.random(n).astype(np.float32) for name in ("tau", "weight", "headness", "loss")}
        each |= {"pseudo_label": cluster, "cluster_sizes": np.bincount(cluster, minlength=100).astype(np.float32)}
        each |= {"feature_index": np.arange(n), "features": features.astype(np.float16), "quality": np.array("{}")}
        save_npz(folder / "history" / f"epoch_{10 * t:06}.npz", **each)
    smooth = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(smooth, size=side, mode="bicubic").clamp(0, 1) * 255
    run = tase.Run(folder)
    run.__dict__["splits"] = tase.Splits(tase.ImageSet((images + 8 * torch.randn(images.shape)).clamp(0, 255).byte()))
    return run


def test_two_runs_of_two_thousand_images_and_twenty_snapshots_are_at_most_five_megabytes(tmp_path, capsys):
    runs = [planted(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    for run in runs:
        (run.path / "environment.json").write_text('{"subset": ""}')
    size = tase.report(*runs, out=tmp_path / "report.html", layout="pca", progress=False).stat().st_size / 1e6
    with capsys.disabled():
        print(f"\nreport of two runs, 2,000 images, 20 snapshots: {size:.1f} MB")
    assert size < 5


# ------------------------------------------------------------------------------------- the same front end in a notebook


def test_it_opens_at_the_last_epoch_with_both_layouts(run):
    explorer = RunExplorer(run)
    places = unpacked(explorer.widget.payload)["runs"][0]["places"]
    assert list(places) == ["pca"]  # until the other is there
    for _ in range(600):
        places = unpacked(explorer.widget.payload)["runs"][0]["places"]
        if "tsne" in places:
            break
        time.sleep(0.1)
    assert list(places) == ["tsne", "pca"]
    assert explorer.epoch == run.history.epoch[-1]
    assert explorer.config == run.config


def test_the_selection_is_a_table_at_the_epoch_shown(run):
    explorer = RunExplorer(run, layout="pca")
    assert explorer.selection.empty
    assert explorer.selection.columns.tolist() == ["run", "index", "path", "class", "tau", "w", "cluster"]
    explorer.select([5, 300])
    explorer.epoch = 5  # between the snapshots of epochs 4 and 6
    table, h = explorer.selection, run.history
    assert table["index"].tolist() == [5, 300] and table["run"].tolist() == ["tase"] * 2
    np.testing.assert_array_equal(table["tau"], h.tau[2][[5, 300]])
    np.testing.assert_array_equal(table["cluster"], h.pseudo_label[2][[5, 300]])
    assert table["class"].tolist() == [h.classes[h.labels[i]] for i in (5, 300)]


def test_the_selection_has_what_a_method_knows_besides(tiny, tmp_path):
    run = tase.train(tiny("bcl-i", optim__epochs=3), tmp_path / "run", progress=False)
    explorer = RunExplorer(run, layout="pca")
    explorer.select([4, 9])
    np.testing.assert_array_equal(explorer.selection["strength"], run.history.extra("strength")[-1][[4, 9]])


def test_linked_runs_have_one_selection_and_others_their_own(run, trained):
    linked = RunExplorer(run, trained[1], layout="pca")
    linked.select([7])
    assert linked.selection["run"].tolist() == ["tase", "simclr"] and (linked.selection["index"] == 7).all()
    apart = RunExplorer(run, trained[0], layout="pca")
    apart.select([7], other=[1, 2])
    assert apart.selection["run"].tolist() == ["tase", "balanced", "balanced"]


def test_refresh_reads_new_snapshots_and_a_gone_folder_is_told(run):
    last = sorted((run.path / "history").glob("epoch_*.npz"))[-1]
    away = last.rename(run.path / "later.npz")
    explorer = RunExplorer(run, layout="pca")
    before = len(unpacked(explorer.widget.payload)["runs"][0]["epochs"])
    away.rename(last)
    explorer.refresh()
    assert len(unpacked(explorer.widget.payload)["runs"][0]["epochs"]) == before + 1
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="gone"):
        explorer.refresh()


def test_it_saves_the_report_and_shows_itself(run, tmp_path):
    explorer = tase.widgets.explore_run(str(run.path), layout="pca")
    assert explorer.save(tmp_path / "saved.html").stat().st_size > 10_000
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in str(bundle)


def test_runs_without_labels_or_snapshots(run):
    (run.path / "history" / "labels.npz").unlink()
    explorer = RunExplorer(tase.Run(run.path), layout="pca")
    explorer.select([1])
    assert explorer.selection["class"].tolist() == [""]
    shutil.rmtree(run.path / "history")
    with pytest.raises(RunError, match="no snapshot yet"):
        RunExplorer(tase.Run(run.path))


def test_runs_that_keep_different_images_are_not_linked(tiny, tmp_path):
    fields = {"record__sample": 60, "data__split": 0}
    pair = [tase.train(tiny(seed=s, **fields), tmp_path / f"{s}", progress=False) for s in (0, 1)]
    assert len({run.environment["subset"] for run in pair}) == 1  # trained on the same images
    pair.append(tase.train(tiny(record__sample=150), tmp_path / "more", progress=False))
    assert not np.array_equal(pair[0].history.recorded, pair[1].history.recorded)
    for other in pair[1:]:
        found = unpacked(payload([pair[0], other], 200, ("pca",)))
        assert [run["set"] for run in found["runs"]] == [0, 1]
        for own, shown in zip((pair[0], other), found["sets"]):
            assert len(shown["index"]) >= 60 and shown["index"].max() < own.history.tau.shape[1]


def test_an_unknown_layout_is_named_and_many_points_are_laid_out_by_pca(run):
    with pytest.raises(ConfigError, match="layout 't-sne'; did you mean 'tsne'"):
        RunExplorer(run, layout="t-sne")
    many = RunExplorer(run, points=6000)
    assert many.kinds == ("pca",) and many.job.number == 1  # nothing goes on in the background
