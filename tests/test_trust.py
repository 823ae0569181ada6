"""Trust without labels: the right verdicts on planted data, none on shuffled features, advice with labels."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from test_pseudo_labels import gen, mixture

import tase
from tase import models, studies
from tase.__main__ import main
from tase.config import ConfigError
from tase.guidance import TASE, Guidance, Method, build_guidance
from tase.pseudo_labels import quality
from tase.runs import load_checkpoint
from tase.streams import generator
from tase.trust import BALANCED_LEVEL, feature_trust, trust_words, walk_log_sizes
from tase.verdict import _classes, _with_labels, read_labels, run_trust


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("counts", "tail"), [((500, 100, 20), True), ((200, 200, 200), False), ((60,) * 10, False)])
def test_planted_mixtures_get_the_right_verdict(counts, tail, seed):
    x, _ = mixture(counts, noise=0.5, seed=seed)
    assert feature_trust(x, gen(seed)).trust == (1.0 if tail else 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_planted_features_share_much_less(seed):
    """Not nothing: each planted dimension still shows its groups."""
    x, _ = mixture((500, 100, 20), noise=0.5, seed=seed)
    x = (x @ torch.randn(x.shape[1], 128, generator=gen(seed))).relu()
    shuffled = torch.stack([column[torch.randperm(len(x), generator=gen(i))] for i, column in enumerate(x.T)], dim=1)
    whole, apart = feature_trust(x, gen()), feature_trust(shuffled, gen())
    assert whole.trust == 1 and apart.shared < 0.6 * whole.shared and apart.agreement < 0.6 * whole.agreement


def test_trained_features_shuffled_by_dimension_have_no_trust(tmp_path):
    """Each dimension keeps its values, and what they say together is gone."""
    config = tase.preset("digits-lt", "simclr", 0, {"optim.epochs": 8})
    x = torch.from_numpy(tase.train(config, tmp_path / "run", progress=False).features())
    for seed in range(4):
        shuffled = torch.stack([x[torch.randperm(len(x), generator=gen(i)), i] for i in range(x.shape[1])], dim=1)
        whole, apart = feature_trust(x, gen(seed)), feature_trust(shuffled, gen(seed))
        assert whole.trust == 1 and apart.trust == 0 and apart.shared < BALANCED_LEVEL < whole.shared


def test_words_follow_both_ends_of_the_training():
    words = {(a, b): trust_words(a, b) for a in (0.0, 0.4, 1.0) for b in (0.0, 0.4, 1.0)}
    doubted = {key for key, text in words.items() if "Treat this ranking as unknown" in text}
    assert doubted == {key for key in words if 0 in key} and all("labels" in text for text in words.values())
    assert "somewhat" in words[0.4, 1.0] and "clearly" in words[1.0, 0.4] and len(set(words.values())) == 4


def test_the_walk_counts_the_samples_that_it_reaches():
    p = torch.zeros(30, 3, dtype=torch.float64)
    p[:20, 0] = p[:20, 1] = 0.5  # two clusters of one class of 20
    p[20:, 2] = 1.0
    sizes = walk_log_sizes(p).exp()
    assert sizes[:20].tolist() == pytest.approx([20.0] * 20) and sizes[20:].tolist() == pytest.approx([10.0] * 10)


def test_a_run_says_how_far_to_believe_it_and_labels_say_more(trained, tmp_path):
    run = trained[2]
    plain = run_trust(run)
    assert plain == run_trust(run) and 0 <= plain["trust"] <= 1 and "labels" in plain["verdict"]
    rng = np.random.default_rng(0)
    some = rng.choice(len(run.history.labels), 100, replace=False)
    labels = {str(i): str(run.history.labels[i]) for i in some}
    judged = run_trust(run, labels)
    low, high = judged["interval"]
    assert judged["labelled"] == 100 and low < judged["correlation"] < high and "headness" in judged["advice"]
    with pytest.raises(ConfigError, match="labels of 2 of the run's 405 images"):
        run_trust(run, {"1": "a", "2": "b"})
    file = tmp_path / "labels.csv"
    file.write_text("image,class\n" + "".join(f"{i},{label}\n" for i, label in labels.items()))
    words = [sys.executable, "-m", "tase", "trust", str(run.path), "--labels", str(file), "--json"]
    told = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert told == json.loads(json.dumps(judged))


def test_labels_that_name_two_files_or_rank_nothing():
    paths = [f"{folder}/{i:03}.png" for folder in "ab" for i in range(20)] + ["a/alone.png"]
    headness = np.random.default_rng(0).normal(size=(1, len(paths)))
    run = SimpleNamespace(images=SimpleNamespace(paths=paths), history=SimpleNamespace(headness=headness))
    whole = {path: path[0] for path in paths}
    assert _classes(run, {**whole, "alone.png": "c"})[40] == "c"
    with pytest.raises(ConfigError, match=r"several folders have a file called 000\.png"):
        _classes(run, {path.partition("/")[2]: path[0] for path in paths})
    for classes, a in (({i: i % 4 for i in range(40)}, headness[0]), ({i: int(i < 9) for i in range(40)}, np.ones(41))):
        told = _with_labels(a, classes)
        assert told["interval"] is told["correlation"] is None and "no order to compare" in told["advice"]


def test_a_run_without_a_snapshot_has_no_clusters_to_judge(tiny, tmp_path, capsys):
    run = tase.train(tiny(record__snapshots=False), tmp_path / "run", until=1, progress=False)
    assert run.at_ends is None and run.trust_line == "" and "trust" not in run.describe()
    assert main(["trust", str(run.path)]) == 2
    assert "has no snapshot" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["", "\ufeff", "\ufeffimage;class\r\n"])
@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_labels_are_read_as_spreadsheets_write_them(start, between, tmp_path):
    start = start.replace(";", between)
    file = tmp_path / "labels.csv"
    file.write_text(f"{start}1.png{between}Käfer{between}\n\nalone\n2.png{between} bee\n", encoding="utf-8")
    labels = {name: label for name, label in read_labels(file).items() if name != "image"}
    assert labels == {"1.png": "Käfer", "2.png": "bee"}


def test_labels_that_cannot_be_used_are_one_line(trained, tmp_path, capsys, monkeypatch):
    run, file = str(trained[2].path), tmp_path / "labels.csv"

    def said():
        assert main(["trust", run, "--labels", str(file)]) == 2
        return capsys.readouterr().err

    file.write_bytes("1.png,Käfer\n".encode("latin-1"))
    assert said().startswith(f"error: {file} cannot be read as CSV in UTF-8: ")
    file.write_text("".join(f"{i},a\n" for i in range(19)))
    assert said().startswith("error: labels of 19 of the run's 405 images")
    file.write_text("1,'a\0b'\n2,b\n")
    assert said().startswith("error: ")
    monkeypatch.setattr(tase.runs.run.History, "labels", None, raising=False)
    file = "own"
    assert said().startswith("error: --labels own: the images of")


def test_no_trust_is_simclr_bit_for_bit_and_full_trust_is_tase(tmp_path, monkeypatch):
    """What counts is found at the end of the warm-up, and held although later refreshes would say otherwise."""
    said = iter([1.0, 0.0] + [1.0] * 20)

    def found(*args, **kwargs):
        return feature_trust(*args, **kwargs)._replace(trust=next(said))

    def trained_as(name, method, **fields):
        overrides = {"optim.epochs": 3, "guidance.refresh": 1, "guidance.warmup": 0.3}
        config = tase.preset("digits-lt", method, 0, {**overrides, **{f"guidance.{k}": v for k, v in fields.items()}})
        return tase.train(config, tmp_path / name, progress=False)

    monkeypatch.setattr("tase.trust.feature_trust", found)
    doubted = trained_as("doubted", "tase", trust=True)
    simclr, plain = trained_as("simclr", "simclr"), trained_as("plain", "tase")
    trusted = trained_as("trusted", "tase", trust=True)
    assert doubted.history.trust.tolist() == [1, 0, 1, 1] and doubted.trusted_at == 1
    for one, other, history in ((doubted, simclr, False), (trusted, plain, True)):
        weights = [run.encoder().state_dict() for run in (one, other)]
        assert all(torch.equal(a, weights[1][name]) for name, a in weights[0].items())
        assert list(one.metrics.loss) == list(other.metrics.loss)
        assert np.array_equal(one.history.tau, other.history.tau) and np.array_equal(
            one.history.weight, other.history.weight
        )
        assert np.array_equal(one.history.headness, other.history.headness) or not history
    assert np.ptp(plain.history.tau[-1]) > 0.1 and np.ptp(doubted.history.tau) == 0


def test_trust_survives_a_stop(tmp_path, monkeypatch):
    """The held value is of the checkpoint, not of what the features say after it."""

    def found(*args, **kwargs):
        told = feature_trust(*args, **kwargs)
        return told._replace(trust=0.5 if abs(told.shared - as_the_warm_up_ends) < 1e-6 else 0.75)

    overrides = {"optim.epochs": 3, "guidance.refresh": 1, "guidance.warmup": 0.3}
    simclr = tase.train(tase.preset("digits-lt", "simclr", 0, overrides), tmp_path / "simclr", progress=False)
    as_the_warm_up_ends = simclr.history.shared[simclr.trusted_at]
    monkeypatch.setattr("tase.trust.feature_trust", found)
    config = tase.preset("digits-lt", "tase", 0, {**overrides, "guidance.trust": True})
    whole = tase.train(config, tmp_path / "whole", progress=False)
    tase.train(config, tmp_path / "cut", until=2, progress=False)
    cut = tase.train(config, tmp_path / "cut", resume=True, progress=False)
    assert whole.history.trust.tolist() == cut.history.trust.tolist() == [0.75, 0.5, 0.75, 0.75]
    assert np.array_equal(whole.history.tau, cut.history.tau) and np.ptp(whole.history.tau[-1]) > 0.01
    assert np.array_equal(whole.history.shared, cut.history.shared) and not np.isnan(whole.history.shared).any()
    for run in (whole, cut):
        assert load_checkpoint(run.path, run.identity)["guidance"]["trusted"] == 0.5


def test_averaged_headness_follows_planted_sizes_better_than_one_clustering():
    ranks = {}
    for clusterings in (1, 4):
        each = []
        for seed in range(6):
            x, y = mixture((200, 100, 50, 25, 12), noise=0.5, seed=seed)
            guide = TASE(len(x), clusterings=clusterings, generator=gen(seed))
            guide.update(x, epoch=0)
            each.append(quality(guide.pseudo_label, guide.headness, y)["spearman_samples"])
            assert guide.found["trust"] == 1
        ranks[clusterings] = np.mean(each)
    assert ranks[4] >= ranks[1] - 0.02 and ranks[4] > 0.6


def test_a_frozen_encoder_can_give_the_features_that_are_clustered(trained, tmp_path):
    """The same images and encoder: clusters as those of its last features, at each refresh; its bytes count."""
    source = trained[1]
    overrides = {"optim.epochs": 2, "guidance.refresh": 1, "guidance.features": str(source.path)}
    config = tase.preset("digits-lt", "simclr", source.config.seed, overrides)
    assert config.identity != tase.preset("digits-lt", "simclr", source.config.seed, {"optim.epochs": 2}).identity
    run = tase.train(config, tmp_path / "run", progress=False)
    guide = build_guidance(config, 405, generator=generator(config.seed, "clustering"))
    guide.update(models.encode(source.encoder(), run.images.images), 0)
    assert np.array_equal(run.history.pseudo_label[0], guide.pseudo_label.numpy())
    assert (run.history.pseudo_label[0] == run.history.pseudo_label[-1]).mean() > 0.9
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(source.path / "encoder.safetensors", other)
    moved = tase.preset("digits-lt", "simclr", source.config.seed, {**overrides, "guidance.features": str(other)})
    assert moved.identity == config.identity  # the file's content, not its place
    (other / "encoder.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"guidance\.features.*that the run was configured with"):
        tase.train(moved, tmp_path / "moved", progress=False)
    with pytest.raises(ConfigError, match=r"guidance\.features.*channels"):
        models.frozen_features(config.guidance.features, torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_a_general_backbone_can_give_the_features_that_are_clustered(tmp_path, monkeypatch):
    """A state dict as torchvision publishes it, classifier and all; drawn here, as none can be fetched."""
    torch.manual_seed(1)
    net = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    given = {"features": str(tmp_path / "weights.pth"), "features_network": "torchvision:mobilenet_v3_small"}
    fields = {f"guidance.{name}": value for name, value in given.items()}
    config = tase.preset("digits-lt", "tase", 0, {"optim.epochs": 1, "guidance.warmup": 0.0, **fields})
    images = torch.randint(0, 256, (5, 3, 20, 24), generator=gen(), dtype=torch.uint8)
    state = torch.get_rng_state()
    h = models.frozen_features(config.guidance.features, images, network=config.guidance.features_network)
    assert torch.equal(state, torch.get_rng_state())
    net.classifier[-1] = torch.nn.Identity()
    square = torchvision.transforms.functional.center_crop(
        torch.nn.functional.interpolate(images / 255, (224, 269), mode="bilinear", antialias=True), 224
    )
    weights = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.transforms()
    expected = net(torchvision.transforms.functional.normalize(square, weights.mean, weights.std))
    assert h.shape == (5, 1024) and torch.allclose(h, expected, atol=1e-4)
    monkeypatch.setattr(models, "GENERAL_SIZE", 48)  # quick
    run = tase.train(config, tmp_path / "run", progress=False)
    frozen = models.frozen_features(
        config.guidance.features, run.images.images, network="torchvision:mobilenet_v3_small"
    )
    guide = build_guidance(config, 405, generator=generator(0, "clustering"))
    guide.update(frozen, 0)
    assert np.array_equal(run.history.pseudo_label[0], guide.pseudo_label.numpy())
    again = build_guidance(config, 405, generator=torch.Generator().manual_seed(0))  # as a study of clusters does
    again.update(frozen, 0)
    labels, counts = (torch.from_numpy(x) for x in (run.history.labels, run.history.counts))
    expected = quality(again.pseudo_label, again.headness, labels, counts)
    assert studies.jobs._clustered(run, config) == pytest.approx(expected)
    for other, error in (("resnet18", r"features = .*does not fit torchvision:resnet18"), ("torchvision:no", "no")):
        with pytest.raises(ConfigError, match=error):
            models.frozen_features(config.guidance.features, images, network=other)
    with pytest.raises(ConfigError, match=r"features_network = 'resnet18': must be empty without guidance\.features"):
        tase.preset("digits-lt", "tase", 0, {"guidance.features_network": "resnet18"})


def test_a_part_cannot_show_what_every_snapshot_has(tmp_path, monkeypatch):
    class Hiding(Guidance):
        title, SHOWN = "Hiding", ("agreement",)

    monkeypatch.setitem(tase.METHODS, "hiding", Method(Hiding))
    with pytest.raises(ConfigError, match=r"Hiding\.SHOWN = 'agreement': must be none of tau, .*agreement"):
        tase.train(tase.preset("digits-lt", "hiding"), tmp_path / "run", progress=False)
