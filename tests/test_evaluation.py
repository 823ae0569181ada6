"""`evaluate` on tiny real runs, the SGD probe, push by a double loop, and the table that compares runs."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import tase
from tase import probes
from tase.__main__ import main
from tase.config import PROTOCOLS, ConfigError
from tase.data import ImageSet, Splits
from tase.evaluation import Pixels, Predictions, evaluate, judged_features, lacking, push_per_class, scores_of
from tase.figures import by_method
from tase.files import load_json, save_json
from tase.models import build, encode
from tase.probes import pad_crop_flip, sgd_probe
from tase.tables import compare, format_table, to_markdown

SCORES = {"all", "head", "mid", "tail", "std", "std_classes", "range_classes"}


def copy_of(run, folder):
    """The run in a folder of its own, its shared baselines beside it."""
    shutil.copytree(run.path, folder / "run")
    if (run.path.parent / ".baselines").exists():
        shutil.copytree(run.path.parent / ".baselines", folder / ".baselines")
    return tase.Run(folder / "run")


# ------------------------------------------------------------------------------------------------------- whole runs


def test_results_hold_what_figures_and_tables_need(trained):
    run = trained[2]
    results = run.results
    assert results["identity"] == run.config.identity and results["method"] == "tase" and results["seed"] == 0
    assert results["subset"] == run.images.hash and results["counts"] == run.images.counts.tolist()
    assert set(results["protocols"]) == {"linear", "few-shot", "lt-knn@1", "lt-knn@10"}
    for scores in (results["protocols"], *results["baselines"].values()):
        assert set(scores) == set(results["protocols"])
        for one in scores.values():
            assert set(one) >= SCORES and len(one["per_class"]) == len(results["eval_classes"]) == 10
            assert one["all"] == pytest.approx(np.mean(one["per_class"]))
    assert len(results["protocols"]["few-shot"]["draws"]) == 5
    each = [draw["all"] for draw in results["protocols"]["few-shot"]["draws"]]
    assert results["protocols"]["few-shot"]["all"] == pytest.approx(np.mean(each))
    json.dumps(results, allow_nan=False)


def test_real_digits_come_out_as_they_should(trained):
    results = trained[1].results
    pixels = results["baselines"]["pixels"]
    assert 93 < pixels["linear"]["all"] < 99  # logistic regression on raw digits
    assert 75 < pixels["few-shot"]["all"] < 92
    assert pixels["lt-knn@1"]["head"] > pixels["lt-knn@1"]["tail"]
    assert results["protocols"]["linear"]["all"] > 60  # eight epochs of a tiny network; chance is 10


def test_geometry_and_push_are_measured(trained):
    for run in trained:
        geometry, push = run.results["geometry"], run.results["push"]["per_class"]
        assert len(geometry["spread"]) == len(geometry["centre_angle"]) == 10
        assert all(0 < angle < 180 for angle in geometry["spread"] + geometry["centre_angle"])
        assert -4 < geometry["uniformity"] < 0 and 0 < geometry["alignment"] < 4
        assert sum(push) == pytest.approx(1, abs=1e-5) and min(push) > 0
    counts = np.array(trained[1].results["counts"])
    assert np.corrcoef(np.log(counts), np.log(trained[1].results["push"]["per_class"]))[0, 1] > 0.95


def test_test_features_are_saved_with_class_ids(trained):
    run = trained[2]
    features, labels = run.test_features
    assert features.shape == (len(run.splits.test), 16)
    np.testing.assert_array_equal(labels, run.splits.test.labels.numpy())
    fresh = tase.encode(run.encoder(), run.splits.test.images).numpy()
    np.testing.assert_allclose(features, fresh, rtol=1e-2, atol=1e-4)


def test_evaluating_again_measures_only_what_is_missing(trained, tmp_path, monkeypatch):
    run = copy_of(trained[2], tmp_path)
    before = run.results
    monkeypatch.setattr(tase.Run, "encoder", lambda *_: pytest.fail("measured again"))
    assert evaluate(run, progress=False) == before
    monkeypatch.undo()
    after = evaluate(run.path, "lt-few-svm", progress=False)
    assert after["protocols"].pop("lt-few-svm")["all"] > 30
    assert after["protocols"] == before["protocols"] and after["push"] == before["push"]


def test_force_measures_again_and_comes_to_the_same(trained, tmp_path):
    run = copy_of(trained[2], tmp_path)
    before = run.results
    spoilt = run.results
    spoilt["protocols"]["linear"]["all"] = 0
    (run.path / "results.json").write_text(json.dumps(spoilt))
    after = evaluate(run, ["linear"], force=True, progress=False)
    assert after["protocols"]["linear"] == before["protocols"]["linear"]
    assert set(after["protocols"]) == set(before["protocols"])


def test_results_of_another_run_are_not_taken_for_this_one(trained, tmp_path):
    run = copy_of(trained[2], tmp_path)
    foreign = {**run.results, "identity": "another", "protocols": {"linear": {"all": 0}}}
    (run.path / "results.json").write_text(json.dumps(foreign))
    assert evaluate(run, ["lt-knn"], progress=False)["protocols"].keys() == {"lt-knn@1", "lt-knn@10"}


def test_other_numbers_of_draws_are_measured_anew(trained, tmp_path):
    run = copy_of(trained[2], tmp_path)
    run.config = tase.override(run.config, {"evaluation.draws": 2})
    after = evaluate(run, ["few-shot"], progress=False)
    assert len(after["protocols"]["few-shot"]["draws"]) == len(after["baselines"]["pixels"]["few-shot"]["draws"]) == 2
    assert set(after["protocols"]) == {"linear", "few-shot", "lt-knn@1", "lt-knn@10"}


def pixels_of(config, splits, on="test"):
    return judged_features(Pixels().eval(), config, splits, torch.device("cpu"), on)


def test_few_labels_matter_to_few_shot_only(tiny):
    config = tiny(data__few_shot_per_class=50)
    images = image_set([0, 1, 2, 3] * 5)
    features = pixels_of(config, Splits(images, images, None, images, eval_classes=torch.arange(4)))
    assert scores_of(PROTOCOLS["linear"](features, config)["linear"], features)["all"] == 100
    with pytest.raises(ConfigError, match="few_shot_per_class"):
        PROTOCOLS["few-shot"](features, config)


def test_few_shot_uses_the_draws_labels_only(tiny):
    config = tiny(data__few_shot_per_class=3, evaluation__draws=3)
    images = image_set([0, 1, 2, 3] * 10)
    features = pixels_of(config, Splits(images, images, images, images, eval_classes=torch.arange(4)))
    features.known = {name: features.x(name) + 0.1 * torch.rand(40, 36) for name in ("probe", "val", "judged")}
    before = PROTOCOLS["few-shot"](features, config)["few-shot"].predicted
    outside = torch.ones(40, dtype=torch.bool).index_fill(0, torch.cat(features.draws), False)
    assert outside.sum() >= 4 and all(
        torch.bincount(images.labels[draw]).tolist() == [3] * 4 for draw in features.draws
    )
    features.known["probe"][outside] = 1000.0
    after = PROTOCOLS["few-shot"](features, config)["few-shot"].predicted
    assert len(before) == 3 and all(map(torch.equal, before, after))


def test_baselines_are_shared_by_runs_of_a_split(trained):
    balanced, simclr, other = (run.results for run in trained)
    assert simclr["baselines"] == other["baselines"] == balanced["baselines"]
    assert len(list((trained[0].path.parent / ".baselines").iterdir())) == 2


def test_the_balanced_control_has_the_long_tail_for_neighbours(trained):
    balanced, simclr, _ = trained
    assert balanced.results["tail"] == simclr.results["tail"] == simclr.results["subset"] != balanced.results["subset"]
    tail, test = simclr.splits.train, balanced.splits.test
    x, y = (encode(balanced.encoder(), images.images, balanced.config.views.size) for images in (tail, test))
    hit = (probes.knn_classes(x, tail.labels, y, 1) == test.labels).double()
    expected = [100 * hit[test.labels == c].mean() for c in range(10)]
    np.testing.assert_allclose(balanced.results["protocols"]["lt-knn@1"]["per_class"], expected)


def test_every_protocol_runs_on_pixels(tiny):
    config = tiny()
    splits = tase.load_splits(config)
    features = pixels_of(config, splits)
    for name in ("lt-svm", "lt-few-svm", "linear-sgd"):
        (predictions,) = PROTOCOLS[name](features, config).values()
        scores = scores_of(predictions, features)
        assert scores["all"] > 60, name


def majority(features, config):
    """Two scores of a user's own protocol: the largest class of the tail, and of the probe list."""
    most = {name: features.y(name).bincount().argmax() for name in ("tail", "probe")}
    return {
        f"majority@{name}": Predictions([features.y("judged") * 0 + c], {"class": int(c)}) for name, c in most.items()
    }


def test_a_protocol_of_ones_own_is_one_function(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(majority, "scores", lambda config: ["majority@tail", "majority@probe"], raising=False)
    monkeypatch.setitem(PROTOCOLS, "majority", majority)
    run = copy_of(trained[2], tmp_path)
    before = run.results
    assert lacking(run, ["linear", "majority"]) == ["majority"]
    after = evaluate(run, ["majority"], progress=False)
    assert after["protocols"]["majority@tail"]["all"] == pytest.approx(10)
    assert after["baselines"]["pixels"]["majority@tail"] == after["protocols"]["majority@tail"]
    assert after["protocols"]["linear"] == before["protocols"]["linear"]
    assert not lacking(run, ["majority"]) and tase.override(run.config, {"evaluation.protocols": "majority"})
    assert set(compare(run)["protocol"]) == set(after["protocols"])
    assert "digits-lt, majority@probe" in format_table(compare(run))


def test_a_protocol_that_breaks_takes_no_result_with_it(trained, tmp_path, monkeypatch):
    def broken(features, config):
        raise ConfigError("too few labels")

    run = copy_of(trained[2], tmp_path)
    before = run.results
    monkeypatch.setitem(PROTOCOLS, "broken", broken)
    (run.path / "results.json").unlink()
    (run.path / "features_test.npz").unlink()
    with pytest.raises(ConfigError, match="too few labels"):
        evaluate(run, ["linear", "broken", "lt-knn"], progress=False)
    after = run.results
    assert after["protocols"] == {"linear": before["protocols"]["linear"]}
    assert after["baselines"]["pixels"] == {"linear": before["baselines"]["pixels"]["linear"]}
    assert (after["geometry"], after["push"]) == (before["geometry"], before["push"]) and run.test_features
    monkeypatch.setattr("tase.evaluation._geometry_of", lambda *_: pytest.fail("measured again"))
    rest = evaluate(run, ["linear", "few-shot", "lt-knn"], progress=False)
    assert rest["protocols"] == before["protocols"] and rest["baselines"] == before["baselines"]
    monkeypatch.undo()
    monkeypatch.setitem(PROTOCOLS, "broken", broken)
    with pytest.raises(ConfigError, match="too few labels"):  # what is to be measured again stays till it is
        evaluate(run, ["linear", "broken"], force=True, progress=False)
    assert run.results == rest


def test_too_few_labels_are_told_before_the_training(tmp_path, capsys, caplog):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, n in (("train", 7), ("test", 3)):
        for i in range(2 * n):
            (tmp_path / part / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / "ab"[i % 2] / f"{i}.png")
    sets = [f"data.root={tmp_path}", f"data.cache={tmp_path / 'cache'}", "data.image_size=8", "model.channels=8,8,8,8"]
    sets += ["optim.epochs=1", "optim.batch=7", "guidance.clusters=2"]
    words = ["train", "--preset", "folder", "--quiet", "--out", str(tmp_path / "run"), "--set", *sets]
    assert main([*words, "data.few_shot_per_class=7", "--out", str(tmp_path / "enough")]) == 0
    assert "few-shot" not in caplog.text
    assert main(words) == 0
    told = "few-shot will be impossible for this run: invalid data.few_shot_per_class = 10: must be 1 to 7"
    assert told in caplog.text
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--quiet"]) == 2
    assert "--protocols linear lt-knn" in capsys.readouterr().err
    assert set(tase.Run(tmp_path / "run").results["protocols"]) == {"linear"}
    assert main(["evaluate", str(tmp_path / "run"), "--quiet", "--protocols", "linear", "lt-knn"]) == 0
    assert set(tase.Run(tmp_path / "run").results["protocols"]) == {"linear", "lt-knn@1", "lt-knn@10"}
    assert "lt-knn@10" in capsys.readouterr().out


def test_unknown_protocols_and_unfinished_runs_are_named(trained, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        evaluate(trained[2], ["linar"])
    run = copy_of(trained[2], tmp_path)
    (run.path / "results.json").unlink()
    (run.path / "encoder.safetensors").unlink()
    with pytest.raises(tase.RunError, match="not finished"):
        evaluate(run, progress=False)


# --------------------------------------------------------------------------------------------------------------- lists


def image_set(labels, classes=4, hash="00000000"):
    labels = torch.as_tensor(labels)
    images = (torch.eye(36)[labels] * 200).byte().view(-1, 1, 6, 6)  # one bright pixel, its place the class
    counts = torch.arange(40, 40 - 10 * classes, -10)
    return ImageSet(images, labels, tuple("abcd"[:classes]), counts, hash)


def test_without_labels_the_error_says_what_is_missing(tiny):
    config = tiny(data__source="folder", data__root="my_images", data__image_size=8)
    unlabelled = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="needs labels.*my_images.*one folder per class"):
        pixels_of(config, Splits(train=unlabelled))
    labelled = image_set([0, 1, 2, 3])
    with pytest.raises(ConfigError, match="data.test_per_class"):
        pixels_of(config, Splits(train=labelled, probe=labelled, eval_classes=torch.arange(4)))


def test_only_evaluated_classes_are_seen(tiny):
    config = tiny(data__few_shot_per_class=2)
    images = image_set([0, 1, 2, 3] * 5)
    splits = Splits(images, images, None, images, eval_classes=torch.tensor([1, 3]))
    features = pixels_of(config, splits)
    assert features.classes == 2 and set(features.sets) == {"tail", "probe", "judged"}
    assert all(set(y.tolist()) == {0, 1} and len(y) == 10 for y in map(features.y, features.sets))
    assert set(features.images("tail").flatten(1).argmax(1).tolist()) == {1, 3}
    assert features.groups.tolist() == images.groups[[1, 3]].tolist()
    assert features.x("val") is None and features.y("val") is None
    for name in ("linear", "few-shot", "linear-sgd", "few-shot-sgd", "lt-knn", "lt-svm", "lt-few-svm"):
        for predictions in PROTOCOLS[name](features, config).values():  # without validation images too
            assert all(torch.equal(p, features.y("judged")) for p in predictions.predicted), name


def test_on_validation_the_judged_images_are_those_of_validation(tiny):
    config, images, other = tiny(), image_set([0, 1, 2, 3] * 5), image_set([3, 2, 1, 0] * 3)
    splits = Splits(images, images, other, images, eval_classes=torch.arange(4))
    features = pixels_of(config, splits, on="val")
    assert torch.equal(features.y("judged"), other.labels) and torch.equal(features.x("judged"), features.x("val"))
    with pytest.raises(ConfigError, match="data.val_per_class"):
        pixels_of(config, Splits(images, images, None, images, eval_classes=torch.arange(4)), on="val")


def test_pixels_of_large_images_are_reduced():
    assert Pixels()(torch.rand(2, 3, 32, 32)).shape == (2, 3 * 32 * 32)
    large = torch.rand(2, 3, 64, 64)
    assert Pixels()(large).shape == (2, 3 * 32 * 32)
    assert float(Pixels()(large)[0, 0]) == pytest.approx(float(large[0, 0, :2, :2].mean()), abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- SGD probe


def test_shifts_and_flips_are_per_sample():
    x = torch.zeros(400, 1, 16, 16)
    x[:, :, 8, 5] = 1
    out = pad_crop_flip(x, True, torch.Generator().manual_seed(0))
    _, _, row, column = out.nonzero().T
    assert out.shape == x.shape and set(row.tolist()) == {6, 7, 8, 9, 10}
    assert set(column.tolist()) == {3, 4, 5, 6, 7} | {8, 9, 10, 11, 12}  # 5 shifted by 2, and 15 - 5 shifted by 2
    assert 0.4 < (column < 8).float().mean() < 0.6
    out = pad_crop_flip(x, False, torch.Generator().manual_seed(0))
    assert set(out.nonzero()[:, 3].tolist()) == {3, 4, 5, 6, 7}


def test_sgd_probe_learns_and_keeps_the_first_best_epoch():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    images = (torch.randint(0, 60, (200, 1, 8, 8), generator=g) + 120 * y[:, None, None, None]).byte()
    x = images.flatten(1).float() / 255
    predicted, epoch = sgd_probe(
        nn.Flatten(), images, y, x, y, x, 2, (6, (3,)), torch.Generator().manual_seed(1), flip=False
    )
    assert (predicted == y).float().mean() > 0.98 and 1 <= epoch <= 6
    again = sgd_probe(nn.Flatten(), images, y, x, y, x, 2, (6, (3,)), torch.Generator().manual_seed(1), flip=False)
    assert torch.equal(again[0], predicted) and again[1] == epoch


# ---------------------------------------------------------------------------------------------------------------- push


def test_push_weighs_and_counts_every_image_once(tiny):
    config = tiny(optim__batch=8)
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 9 + [1] * 4)  # 13 images: the second batch is filled up
    images = ImageSet(
        torch.randint(0, 256, (13, 1, 8, 8), generator=g).byte(), labels, ("a", "b"), torch.tensor([9, 4])
    )
    torch.manual_seed(0)
    network = build(config.model, 1, 8)
    tau, one = torch.full((13,), 0.2), torch.ones(13)
    plain = push_per_class(network, images, tau, one, config)
    assert float(plain.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(plain, push_per_class(network, images, tau, one, config))  # fixed views and batches
    weighted = push_per_class(network, images, tau, torch.where(labels == 1, 3.0, 1.0), config)
    odds = (weighted[1] / weighted[0]) / (plain[1] / plain[0])
    assert float(odds) == pytest.approx(3, rel=0.05)  # sum w differs a little between the batches
    scaled = push_per_class(network, images, tau, one, config, scale=torch.where(labels == 1, 3.0, 1.0))
    assert float((scaled[1] / scaled[0]) / (plain[1] / plain[0])) == pytest.approx(3, rel=1e-4)
    assert push_per_class(network, images, tau, (labels == 0).float(), config).tolist() == pytest.approx([1, 0])


# --------------------------------------------------------------------------------------------------------------- table


def result(method, seed, score, **more):
    scores = {"all": score, "head": score + 10, "mid": score, "tail": score - 10, "std": 8.16}
    baselines = {
        kind: {"linear": {**scores, "all": base}} for kind, base in (("pixels", 30.0 + seed), ("untrained", 20.0))
    }
    return {
        "preset": "digits-lt",
        "method": method,
        "seed": seed,
        "split": seed,
        "balanced": False,
        "changes": [],
        "subset": f"0000000{seed}",
        "protocols": {"linear": scores},
        "baselines": baselines,
        **more,
    }


def row(frame, method, protocol="linear"):
    (found,) = frame[(frame["method"] == method) & (frame["protocol"] == protocol)].to_dict("records")
    return found


def test_comparison_over_seeds_by_hand():
    runs = [result("simclr", s, v) for s, v in ((0, 50.0), (1, 54.0))]
    runs += [result("tase", s, v) for s, v in ((1, 55.0), (0, 53.0), (2, 70.0))]
    frame = compare(runs)
    assert frame["method"].tolist() == ["pixels", "untrained", "simclr", "tase"]
    simclr, ours = row(frame, "simclr"), row(frame, "tase")
    assert (simclr["n"], simclr["all"]) == (2, 52) and simclr["all_sd"] == pytest.approx(math.sqrt(8))
    assert simclr["all_ci"] == pytest.approx(12.7062 * 2, rel=1e-4)  # t(0.975; 1) * sd / sqrt 2
    assert math.isnan(simclr["difference"])
    assert ours["n"] == 3 and ours["difference"] == pytest.approx(2)  # seeds 0 and 1: 3 and 1
    assert ours["subset"] == "3 subsets"
    pixels = row(frame, "pixels")
    assert pixels["n"] == 3 and pixels["all"] == pytest.approx(31)  # once per split, whatever the number of methods


def test_labels_tell_runs_apart():
    frame = compare(
        [result("tase", 0, 50.0, changes=["epochs=8"]), result("tase", 0, 52.0, changes=["epochs=8", "k=3"])]
    )
    assert frame["method"].tolist() == ["pixels", "untrained", "tase", "tase (k=3)"]
    frame = compare(
        {"ours": [result("tase", 0, 50.0), result("tase", 1, 52.0)], "theirs": result("simclr", 0, 49.0)}, "theirs"
    )
    assert frame["method"].tolist() == ["pixels", "untrained", "ours", "theirs"]
    assert row(frame, "ours")["difference"] == 1
    frame = compare([result("simclr", 0, 60.0, balanced=True, subset="balanced"), result("simclr", 0, 50.0)])
    assert frame["method"].tolist() == ["pixels", "untrained", "simclr, balanced", "simclr"]
    assert row(frame, "pixels")["subset"] == "00000000"


def test_groups_without_classes_leave_empty_cells():
    frame = compare(
        result(
            "simclr", 0, 50.0, protocols={"linear": {"all": 50.0, "head": 50.0, "mid": 50.0, "tail": None, "std": None}}
        )
    )
    assert math.isnan(row(frame, "simclr")["tail"])
    line = next(line for line in format_table(frame).splitlines() if line.split()[:1] == ["simclr"])
    assert line.split() == ["simclr", "1", "50.0", "50.0", "50.0", "00000000"]


def test_tables_as_text_and_markdown():
    frame = compare([result("simclr", s, 50.0 + s) for s in range(3)] + [result("tase", s, 52.0 + s) for s in range(3)])
    lines = format_table(frame).splitlines()
    assert lines[0] == "digits-lt, linear" and max(map(len, lines)) < 120
    assert "52.0" not in lines[-3] and "+2.0 ± 0.0" in next(line for line in lines if "tase" in line)
    table = [line for line in to_markdown(frame).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 2 + 4
    assert "51.0 ± 2.5" in table[-2]


def test_evenness_of_the_space_is_a_metric(trained):
    frame = compare(trained)
    geometry = trained[2].results["geometry"]
    tase_row = row(frame, "tase")
    assert (tase_row["spread_cv"], tase_row["distance_cv"]) == (geometry["cv_spread"], geometry["cv_centres"])
    assert math.isnan(row(frame, "pixels")["spread_cv"])
    lines = format_table(frame, metrics=("all", "spread_cv")).splitlines()
    assert lines[1].split()[:5] == ["runs", "All", "Spread", "CV", "All"]
    line = next(line for line in lines if line.split()[:1] == ["tase"])
    assert line.split()[3] == f"{geometry['cv_spread']:.3f}"


def test_comparing_real_runs(trained, tmp_path):
    frame = compare(trained)
    assert isinstance(frame, pd.DataFrame) and len(frame) == 4 * 5
    assert frame["method"].unique().tolist() == ["pixels", "untrained", "simclr, balanced", "simclr", "tase"]
    assert row(frame, "tase")["difference"] == pytest.approx(row(frame, "tase")["all"] - row(frame, "simclr")["all"])
    assert format_table(frame).count("digits-lt") == 4
    run = copy_of(trained[0], tmp_path)
    (run.path / "results.json").unlink()
    with pytest.raises(ConfigError, match="tase evaluate"):
        compare([run])


def test_runs_of_other_defaults_and_steered_runs_have_rows_of_their_own(trained, tmp_path, capsys):
    older = copy_of(trained[2], tmp_path / "older")
    saved = load_json(older.path / "config.json")
    saved["config"]["guidance"]["scale_by_tau"] = False  # the default once, when its results were written
    save_json(older.path / "config.json", saved)
    assert older.results["changes"] == trained[2].results["changes"]
    steered = copy_of(trained[2], tmp_path / "steered")
    event = {"id": "a", "epoch": 20, "step": 60, "set": {"guidance.tau_max": 0.9, "guidance.gamma": 1.0}}
    (steered.path / "events.jsonl").write_text(json.dumps(event) + "\n")
    frame = compare([trained[2], tase.Run(older.path), tase.Run(steered.path)])
    names = ["tase", "tase (scale_by_tau=False)", "tase (steered=20 tau_max=0.9 gamma=1.0)"]
    assert frame["method"].unique()[2:].tolist() == names
    assert main(["evaluate", str(trained[2].path), str(steered.path), "--quiet"]) == 0
    assert names[2] in capsys.readouterr().out
    drawn = by_method([trained[2], tase.Run(steered.path)])
    assert [label for label, _ in drawn] == ["TASE, long tail", "TASE, long tail, steered at 20 tau_max=0.9 gamma=1.0"]


def test_two_runs_of_a_seed_are_no_row():
    runs = [result("simclr", 0, 50.0), result("simclr", 1, 51.0), result("simclr", 1, 52.0, subset="another")]
    with pytest.raises(ConfigError, match="two runs of 'simclr' on digits-lt have seed 1"):
        compare(runs)
    assert compare({"one": runs[:2], "two": runs[2:]})["n"].tolist()[-2:] == [2, 1]


def test_probes_agree_with_scikit_learn_on_real_pixels(trained):
    """The whole path, penalty included: scikit-learn's classifier at the chosen penalty predicts the same digits."""
    from sklearn.linear_model import LogisticRegression

    run = trained[1]
    splits, l2 = run.splits, run.results["baselines"]["pixels"]["linear"]["chosen"]["l2"]
    x, test = (s.images.flatten(1).float() / 255 for s in (splits.probe, splits.test))
    x, test = probes.standardise(x, test)
    model = LogisticRegression(C=1 / (len(x) * l2), tol=1e-6, max_iter=5000).fit(x.numpy(), splits.probe.labels.numpy())
    theirs = probes.mean_accuracy(torch.from_numpy(model.predict(test.numpy())), splits.test.labels, 10)
    assert run.results["baselines"]["pixels"]["linear"]["all"] == pytest.approx(theirs, abs=0.5)
