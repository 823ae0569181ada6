"""Sources, rules, splits and groups. Small data of the true formats are written here."""

from __future__ import annotations

import dataclasses
import gzip
import pickle
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tase.config import SOURCES, ConfigError
from tase.data import (
    GROUPS,
    ImageSet,
    class_counts,
    facts,
    few_shot_draws,
    group_classes,
    list_folder,
    load_images,
    load_splits,
    missing_data,
    rank_in_class,
    tail_counts,
)
from tase.presets import preset
from tase.streams import generator


def digits(**overrides):
    return preset("digits-lt", overrides={f"data.{name}": value for name, value in overrides.items()})


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("name", "rule", "n", "largest", "smallest"),
    [
        ("cifar10-lt", "sdclr", 11_165, 4500, 45),
        ("cifar100-lt", "sdclr", 9_754, 450, 4),
        ("cifar10-lt", "ldam", 12_406, 5000, 50),
        ("cifar100-lt", "ldam", 10_847, 500, 5),
        ("digits-lt", "custom", 405, 120, 6),
        ("fashion-mnist-lt-small", "custom", 2_478, 1000, 10),
        ("fashion-mnist-lt", "custom", 12_406, 5000, 50),
        ("imagenet100-lt", "custom", 24_118, 1280, 6),
    ],
)
def test_published_sizes_without_the_data(name, rule, n, largest, smallest):
    found = class_counts(preset(name, overrides={"data.rule": rule, "data.root": "/nowhere"}))
    assert found["n"] == sum(found["counts"]) == n
    assert (found["counts"][0], found["counts"][-1]) == (largest, smallest)
    assert found["counts"] == sorted(found["counts"], reverse=True)
    assert len(found["groups"]) == len(found["counts"]) == len(set(found["classes"]))


def test_groups_of_10_and_100_classes():
    for name, sizes in (("cifar10-lt", (4, 3, 3)), ("cifar100-lt", (34, 33, 33))):
        groups = class_counts(preset(name))["groups"]
        assert groups == [g for g, size in zip(GROUPS, sizes, strict=True) for _ in range(size)]


def test_groups_by_counts_and_ties():
    assert group_classes(torch.tensor([101, 100, 20, 19]), "counts").tolist() == [0, 1, 1, 2]
    assert group_classes(torch.tensor([5, 9, 5, 5])).tolist() == [0, 0, 1, 2]
    evaluated = torch.tensor([True, False, True, True])
    assert group_classes(torch.tensor([50, 2, 70, 60]), "thirds", evaluated).tolist() == [2, 2, 0, 1]


def test_whole_numbers_are_not_lost_to_rounding():
    for n_max in range(2, 400):
        assert tail_counts(3, n_max**2, n_max**2)[1] == n_max  # n_max^2 (1/n_max^2)^(1/2)
        assert tail_counts(2, n_max, n_max / 2)[1] == 2


def test_step_profile():
    assert tail_counts(5, 100, 10, "step").tolist() == [100, 100, 100, 10, 10]


def test_ldam_is_in_the_order_of_the_ids_and_sdclr_is_shuffled_by_the_split():
    ldam = class_counts(preset("cifar10-lt", seed=3, overrides={"data.rule": "ldam"}))
    assert ldam["classes"][0] == "airplane" and ldam["classes"][-1] == "truck"
    orders = {tuple(class_counts(preset("cifar10-lt", seed=s))["classes"]) for s in range(5)}
    assert len(orders) == 5
    fixed = preset("cifar10-lt", seed=4, overrides={"data.split": 1})
    assert class_counts(fixed) == class_counts(preset("cifar10-lt", seed=1))


def test_balanced_control_has_equal_size_and_the_tails_groups():
    tail, control = load_splits(digits()), load_splits(digits(balanced=True))
    assert len(control.train) == len(tail.train) == 405
    assert control.train.counts.tolist() == [41] * 5 + [40] * 5
    assert torch.equal(control.train.groups, tail.train.groups)
    assert torch.equal(control.probe.images, tail.probe.images) and torch.equal(control.test.labels, tail.test.labels)
    assert class_counts(digits(balanced=True))["n"] == 405


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"rho": 500}, "no images left"),
        ({"n_max": 121}, "pool has 120"),
        ({"val_per_class": 174, "pool_per_class": 0}, "no images left"),
        ({"probe_per_class": 121}, "data.probe_per_class"),
        ({"rule": "sdclr", "n_max": 0}, "data.n_max"),
        ({"min_per_class": 10_000}, "data.min_per_class"),
        ({"image_size": 32}, "data.image_size"),
    ],
)
def test_impossible_splits(overrides, words):
    with pytest.raises(ConfigError, match=words):
        load_splits(digits(**overrides))


# ---------------------------------------------------------------- splits


def rows(images: ImageSet) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def test_digits_splits():
    everything, splits = load_images("digits"), load_splits(digits())
    assert (len(everything), len(splits.train), len(splits.probe), len(splits.val)) == (1797, 405, 1200, 150)
    assert len(splits.test) == 1797 - 1350
    assert everything.images.dtype == torch.uint8 and everything.images.max() == 255
    assert torch.equal(splits.train.counts, torch.bincount(splits.train.labels))
    assert torch.equal(splits.test.counts, splits.train.counts) and torch.equal(splits.test.groups, splits.train.groups)
    assert torch.bincount(splits.val.labels).tolist() == [15] * 10
    assert splits.eval_classes.tolist() == list(range(10))
    assert torch.equal(splits.train.sample_groups, splits.train.groups[splits.train.labels])
    held, used = rows(splits.val) | rows(splits.test), rows(splits.train) | rows(splits.probe)
    assert not held & used and not rows(splits.val) & rows(splits.test)
    assert rows(splits.train) <= rows(splits.probe)


def test_splits_are_fixed_by_their_number_and_the_hash_tells_them_apart():
    first, again, other = load_splits(digits()), load_splits(digits()), load_splits(digits(split=1))
    assert first.train.hash == again.train.hash and torch.equal(first.train.images, again.train.images)
    sets = [first.train, first.probe, first.val, first.test, other.train, load_splits(digits(rho=10)).train]
    assert len({s.hash for s in sets}) == 6 and all(len(s.hash) == 8 and int(s.hash, 16) >= 0 for s in sets)


def test_smaller_draws_are_part_of_larger_ones_and_val_and_test_stay():
    small, large = load_splits(digits(rho=40)), load_splits(digits(rho=5))
    assert rows(small.train) < rows(large.train)
    assert (
        small.val.hash == large.val.hash and small.test.hash == large.test.hash and small.probe.hash == large.probe.hash
    )


def test_the_probe_list_is_no_copy_of_the_training_set():
    splits = load_splits(digits(probe_per_class=60))
    assert torch.bincount(splits.probe.labels).tolist() == [60] * 10
    head = splits.train.counts.argmax()
    assert int(splits.train.counts[head]) == 120
    # 60 of 120: a class with 44 images shares about half of them with the list, not all
    for c in (splits.train.counts == 44).nonzero()[:, 0].tolist():
        chosen = splits.train.subset((splits.train.labels == c).nonzero()[:, 0])
        assert 8 <= len(rows(chosen) & rows(splits.probe)) <= 36


def test_without_validation_there_is_none():
    assert load_splits(digits(val_per_class=0)).val is None
    only = load_splits(digits(), parts=("train",))
    assert len(only.train) == 405 and only.probe is only.val is only.test is None


def test_rule_none_trains_on_what_is_not_held_out():
    splits = load_splits(digits(rule="none", pool_per_class=0, test_per_class=20))
    assert len(splits.test) == 200 and len(splits.train) == 1797 - 200 - 150
    assert rows(splits.train).isdisjoint(rows(splits.test))


def test_few_shot_draws_are_fixed_balanced_and_different():
    probe = load_splits(digits()).probe
    draws = few_shot_draws(probe, 5, 3)
    assert all(torch.equal(a, b) for a, b in zip(draws, few_shot_draws(probe, 5, 3), strict=True))
    assert all(torch.bincount(probe.labels[d]).tolist() == [5] * 10 for d in draws)
    assert len({tuple(d.tolist()) for d in draws}) == 3
    with pytest.raises(ConfigError, match="few_shot_per_class"):
        few_shot_draws(probe, 121, 1)


def test_image_set_checks_itself():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="image 1, but with 2 classes labels go from 0 to 1"):
        ImageSet(images, torch.tensor([0, 2, 1]), ("a", "b"))
    with pytest.raises(ValueError, match="uint8"):
        ImageSet(images.float())
    with pytest.raises(ValueError, match=r"int64 \[3\]"):
        ImageSet(images, torch.tensor([0, 1]), ("a", "b"))
    flat = ImageSet(images, hash="00000000")
    assert flat.groups is None and flat.sample_groups is None and len(flat.subset(torch.tensor([2, 0]))) == 2


def test_a_run_of_neighbours_is_not_copied():
    images = ImageSet(torch.zeros(9, 1, 2, 2, dtype=torch.uint8), hash="00000000")
    part = images.subset(torch.arange(3, 7))
    assert part.images.data_ptr() == images.images[3:].data_ptr() and len(part) == 4
    assert len(images.subset(torch.tensor([], dtype=torch.int64))) == 0


def test_rank_in_class():
    labels = torch.tensor([1, 0, 1, 1, 0])
    assert rank_in_class(labels).tolist() == [0, 0, 1, 2, 1]
    assert rank_in_class(labels, torch.tensor([9, 3, 4, 7, 1])).tolist() == [2, 1, 0, 1, 0]


def test_the_streams_are_those_of_all_kept_runs():
    assert generator(0, "data").initial_seed() == 5756814887033136
    assert generator(7, "clustering").initial_seed() == 30928950372743422
    assert generator(0, "tail", of_split=True).initial_seed() == 12710391379805777
    assert generator(3, "held out", of_split=True).initial_seed() == 57693873944508507


def test_the_subsets_are_those_of_all_kept_runs():
    def hashes(config):
        splits = load_splits(config)
        return [splits.train.hash, splits.probe.hash, splits.val.hash, splits.test.hash]

    assert hashes(digits()) == ["b4d6ecf1", "e1442133", "4146a119", "66cb510d"]
    assert hashes(preset("digits-lt", seed=2, overrides={"data.balanced": True})) == [
        "4fde466a",
        "3ad6d800",
        "2351f975",
        "72537cfb",
    ]


# ---------------------------------------------------------------- sources of one's own


@pytest.fixture
def added():
    """The registry of data sources, as it was afterwards."""
    before = dict(SOURCES)
    yield SOURCES
    SOURCES.clear()
    SOURCES.update(before)


def noise(n, classes):
    pixels = torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return ImageSet(pixels, torch.arange(n) % len(classes), classes)


def own(source="noise", **fields):
    return preset("digits-lt", overrides={"data.source": source, "data.pool_per_class": 0, **fields})


def test_a_source_is_one_function(added):
    added["noise"] = lambda data: (noise(200, ("a", "b")), noise(20, ("a", "b")))
    config = own(**{"data.n_max": 50, "data.rho": 5.0})
    splits = load_splits(config)
    assert splits.train.counts.sum() == 60 and len(splits.val) == 30 and len(splits.test) == 20
    assert splits.train.name == "noise/train" and load_images("noise").images.shape == (200, 1, 6, 6)
    assert class_counts(config) == {"n": 60, "counts": [50, 10], "groups": ["head", "head"], "classes": ["b", "a"]}
    with pytest.raises(ConfigError, match="invalid data.image_size = 3: must be 0, or 6"):
        load_images("noise", image_size=3)
    with pytest.raises(ConfigError, match="data.n_max"):
        load_splits(own(**{"data.rule": "sdclr", "data.n_max": 0}))


def test_a_class_name_without_training_images_is_left_out(added, caplog):
    def three(n):
        return dataclasses.replace(noise(n, ("a", "b", "c")), labels=torch.tensor([0, 2]).repeat(n // 2))

    added["noise"] = lambda data: (three(200), noise(30, ("a", "b", "c")))
    splits = load_splits(own(**{"data.n_max": 50, "data.rho": 5.0}))
    assert splits.train.classes == splits.test.classes == ("a", "c")
    assert sorted(splits.train.counts.tolist()) == [10, 50]
    assert torch.bincount(splits.test.labels).tolist() == [10, 10]
    assert load_images("noise").counts.tolist() == [100, 100]
    assert "classes without training images are left out: b" in caplog.text


def test_what_is_known_of_a_source_before_its_data(added):
    @facts(classes=("a", "b", "c"), n_max={"sdclr": 40})
    def not_there(data):
        raise missing_data("noise", [Path("here")], "make noise")

    added["noise"] = not_there
    config = own(**{"data.rule": "sdclr", "data.n_max": 0, "data.rho": 4.0})
    assert class_counts(config)["counts"] == [40, 20, 10]
    with pytest.raises(ConfigError, match="data.root: no noise in here; get the data with:\n  make noise"):
        load_splits(config)
    added["noise"] = facts(classes=("a", "b", "c"))(lambda data: (noise(200, ("a", "b")), None))
    with pytest.raises(ConfigError, match="with its 3 classes, .*; it has 2 classes"):
        load_splits(config)


def test_a_source_of_files_is_decoded_and_cached(added, tmp_path):
    write_tree(tmp_path / "scans", {"ant": 7, "bee": 5})
    added["scans"] = facts(image_size=8)(lambda data: (list_folder(Path(data.root) / "scans"), None))
    images = load_images("scans", root=tmp_path, cache=tmp_path / "cache")
    assert (
        images.images.shape == (12, 3, 8, 8) and images.counts.tolist() == [7, 5] and images.paths[0] == "ant/ant_0.png"
    )


def test_a_source_that_is_broken_or_without_labels(added):
    added["noise"] = lambda data: (ImageSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3), ("a",)), None)
    with pytest.raises(ConfigError, match="broken data of 'noise': labels out of range: the first is 1 of image 1"):
        load_images("noise")
    pixels = noise(9, ("a",)).images
    added["noise"] = lambda data: (ImageSet(pixels), None)
    first = load_images("noise")
    assert first.labels is None and first.counts is None
    pixels = pixels + 1
    assert load_images("noise").hash != first.hash  # without labels only the pixels tell sets apart


# ---------------------------------------------------------------- published split files


def write_npy(folder, array):
    np.save(folder / "split.npy", np.asarray(array))
    return str(folder / "split.npy")


def test_index_file(tmp_path):
    labels = load_images("digits").labels
    index = torch.cat([(labels == c).nonzero()[: 30 - 2 * c, 0] for c in range(10)])
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
    config = digits(rule="file", list_file=write_npy(tmp_path, index), pool_per_class=0, test_per_class=20, n_max=30)
    splits = load_splits(config)
    assert splits.train.counts.tolist() == list(range(30, 10, -2))
    assert torch.equal(splits.train.images, load_images("digits").images[index.sort().values])
    assert rows(splits.train).isdisjoint(rows(splits.val) | rows(splits.test))
    assert class_counts(config)["counts"] == list(range(30, 10, -2))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ([0, 1, 1], "repeats 1 indices"),
        ([0, 1797], "from 0 to 1797; the source has 0 to 1796"),
        ([-1, 5], "from -1 to 5"),
        ([0.5, 1.0], "whole numbers"),
        ([[1, 2]], "whole numbers"),
        ([], "whole numbers"),
        ([0, 1, 2], "images of every class"),
        (np.array([{}], dtype=object), "cannot be read"),
    ],
)
def test_broken_index_file(tmp_path, array, words):
    with pytest.raises(ConfigError, match=words):
        load_splits(digits(rule="file", list_file=write_npy(tmp_path, array), n_max=0, pool_per_class=0))


def test_index_file_with_other_counts_or_no_file(tmp_path):
    path = write_npy(tmp_path, range(400))
    with pytest.raises(ConfigError, match="largest class has data.n_max = 99"):
        load_splits(digits(rule="file", list_file=path, n_max=99, pool_per_class=0))
    with pytest.raises(ConfigError, match="held out"):
        load_splits(digits(rule="file", list_file=path, n_max=0, pool_per_class=0, val_per_class=150))
    with pytest.raises(ConfigError, match="nothing.npy"):
        load_splits(digits(rule="file", list_file=str(tmp_path / "nothing.npy"), n_max=0))


# ---------------------------------------------------------------- Fashion-MNIST


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 200), ("t10k", 50)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(n) % 10)
    return tmp_path


def small_fashion(root):
    fields = {"n_max": 10, "rho": 10, "val_per_class": 5, "probe_per_class": 5, "root": str(root)}
    return preset("fashion-mnist-lt-small", overrides={f"data.{k}": v for k, v in fields.items()})


def test_fashion_from_idx_files(fashion):
    splits = load_splits(small_fashion(fashion))
    assert splits.train.images.shape[1:] == (1, 28, 28) and splits.train.classes[9] == "Ankle boot"
    assert (len(splits.val), len(splits.probe), len(splits.test)) == (50, 50, 50)
    assert len(splits.train) == class_counts(small_fashion(fashion))["n"]


def test_fashion_that_is_missing_or_cut_off(fashion, tmp_path_factory):
    with pytest.raises(ConfigError, match="apt install dataset-fashion-mnist"):
        load_splits(small_fashion(tmp_path_factory.mktemp("empty")))
    whole = (fashion / "train-images-idx3-ubyte.gz").read_bytes()
    (fashion / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="readable FashionMNIST"):
        load_splits(small_fashion(fashion))


def test_fashion_with_labels_out_of_range(fashion):
    write_idx(fashion / "train-labels-idx1-ubyte.gz", np.full(200, 10))
    with pytest.raises(ConfigError, match="labels out of range"):
        load_splits(small_fashion(fashion))


def test_a_failed_download_names_the_command(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tase.data.sources.DEBIAN_FASHION", tmp_path / "not-installed")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fail)
    with pytest.raises(ConfigError, match="(?s)download failed: no network.*FashionMNIST.*download=True"):
        load_images("fashion-mnist", cache=str(tmp_path / "cache"))


def test_of_several_processes_one_downloads(tmp_path, monkeypatch):
    began = []

    def slowly(root, download):
        began.append(root)
        time.sleep(0.2)
        (Path(root) / "FashionMNIST/raw").mkdir(parents=True)
        (Path(root) / "FashionMNIST/raw/train-images-idx3-ubyte.gz").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tase.data.sources.DEBIAN_FASHION", tmp_path / "not-installed")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", slowly)

    def load(_):
        with pytest.raises(ConfigError, match="readable FashionMNIST"):  # the file is empty
            load_images("fashion-mnist", cache=str(tmp_path / "cache"))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(load, range(3)))
    assert began == [str(tmp_path / "cache")]


# ---------------------------------------------------------------- CIFAR


def write_cifar(root, classes):
    """The files of the python version of CIFAR: pickled dicts of rows of 3072 bytes and labels."""
    rng = np.random.default_rng(classes)
    fine = "fine_labels" if classes == 100 else "labels"
    folder = root / ("cifar-100-python" if classes == 100 else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    files = ["train"] if classes == 100 else [f"data_batch_{i}" for i in range(1, 6)]
    for name in [*files, "test" if classes == 100 else "test_batch"]:
        labels = (np.arange(4 * classes) % classes).tolist()
        data = rng.integers(0, 256, (4 * classes, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, fine: labels}))
    key = "fine_label_names" if classes == 100 else "label_names"
    meta = {key: [f"class{c}" for c in range(classes)]}
    (folder / ("meta" if classes == 100 else "batches.meta")).write_bytes(pickle.dumps(meta))
    return folder


@pytest.mark.parametrize(("classes", "n"), [(10, 200), (100, 400)])
def test_cifar_files(tmp_path, monkeypatch, classes, n):
    # torchvision compares checksums with those of the real files, which these are not
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    folder = write_cifar(tmp_path, classes)
    images = load_images(f"cifar{classes}", root=tmp_path)
    assert images.images.shape == (n, 3, 32, 32) and images.classes[-1] == f"class{classes - 1}"
    name, key = ("train", "fine_labels") if classes == 100 else ("data_batch_1", "labels")
    first = pickle.loads((folder / name).read_bytes())
    assert images.images[1].flatten().tolist() == first["data"][1].tolist()
    assert images.labels[: 4 * classes].tolist() == first[key]
    if classes == 10:
        fields = {"root": str(tmp_path), "n_max": 16, "rho": 8, "val_per_class": 4}
        splits = load_splits(preset("cifar10-lt", overrides={f"data.{k}": v for k, v in fields.items()}))
        assert (len(splits.val), len(splits.probe), len(splits.test)) == (40, 160, 40)
        assert splits.train.counts.max() == 16 and splits.train.counts.min() == 2


def test_ldam_uses_every_image(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    write_cifar(tmp_path, 10)
    fields = {"root": str(tmp_path), "rule": "ldam", "n_max": 20, "rho": 10}
    splits = load_splits(preset("cifar10-lt", overrides={f"data.{k}": v for k, v in fields.items()}))
    assert splits.val is None and splits.train.counts[0] == 20 and splits.train.counts[9] == 2


def test_cifar_that_is_missing_or_broken(tmp_path):
    with pytest.raises(ConfigError, match="(?s)CIFAR10.*download=True"):
        load_images("cifar10", root=tmp_path)
    write_cifar(tmp_path, 10)
    with pytest.raises(ConfigError, match="(?s)readable CIFAR10.*download=True"):
        load_images("cifar10", root=tmp_path)


# ---------------------------------------------------------------- folders


def write_tree(root, sizes, start=0):
    rng = np.random.default_rng(start)
    for name, n in sizes.items():
        for i in range(n):
            path = root / name / ("nested/deep" if i % 2 else "") / f"{name}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(path)
    return root


def folder_config(root, tmp_path, **fields):
    fields = {"root": str(root), "image_size": 8, "cache": str(tmp_path / "cache"), **fields}
    return preset("folder", overrides={f"data.{k}": v for k, v in fields.items()})


def test_folder_with_nested_categories(tmp_path):
    root = write_tree(tmp_path / "pictures", {"cat": 7, "ant": 12, "bee": 2})
    (root / "notes.txt").write_text("not an image")
    (root / "empty").mkdir()
    config = folder_config(root, tmp_path, test_per_class=2, probe_per_class=4, min_per_class=6)
    splits = load_splits(config)
    assert splits.train.classes == ("ant", "bee", "cat") and splits.eval_classes.tolist() == [0, 2]
    assert splits.train.counts.tolist() == [10, 2, 5] and len(splits.train) == 17
    assert torch.bincount(splits.test.labels, minlength=3).tolist() == [2, 0, 2]
    assert torch.bincount(splits.probe.labels, minlength=3).tolist() == [4, 0, 4]
    assert all(
        p.startswith(splits.train.classes[c]) for p, c in zip(splits.train.paths, splits.train.labels, strict=True)
    )
    assert not set(splits.train.paths) & set(splits.test.paths)
    assert class_counts(config)["counts"] == [10, 5, 2]


def test_flat_folder_has_no_labels(tmp_path):
    write_tree(tmp_path, {"flat": 5})
    for path in (tmp_path / "flat/nested/deep").iterdir():
        path.rename(tmp_path / "flat" / path.name)
    images = load_images("folder", root=tmp_path / "flat", cache=str(tmp_path / "cache"))
    assert images.labels is None and images.groups is None and images.images.shape == (5, 3, 64, 64)
    config = folder_config(tmp_path / "flat", tmp_path)
    splits = load_splits(config)
    assert len(splits.train) == 5 and splits.probe is splits.val is splits.test is splits.eval_classes is None
    assert class_counts(config) == {"n": 5, "counts": [], "groups": [], "classes": []}
    with pytest.raises(ConfigError, match="no labels"):
        load_splits(folder_config(tmp_path / "flat", tmp_path, rule="custom", n_max=3))


def test_folder_with_an_official_test(tmp_path):
    write_tree(tmp_path / "pictures/train", {"ant": 5, "bee": 4})
    write_tree(tmp_path / "pictures/test", {"bee": 2, "ant": 3}, start=1)
    splits = load_splits(folder_config(tmp_path / "pictures", tmp_path))
    assert splits.train.counts.tolist() == [5, 4] and torch.bincount(splits.test.labels).tolist() == [3, 2]


@pytest.mark.parametrize(
    ("train", "test", "more"),
    [
        ("train", "test", ("valid",)),
        ("train", "validation", ()),
        ("train", "test", ("annotations", "__MACOSX", "empty")),
        ("Train", "Test", ()),
        ("Training", "Testing", ()),
        ("TRAIN", "dev", ()),
        ("train", "", ("logs",)),
    ],
)
def test_parts_are_no_classes(train, test, more, tmp_path):
    root = tmp_path / "pictures"
    write_tree(root / train, {"ant": 5, "bee": 4})
    for seed, name in enumerate((test, *more) if test else more, 1):
        if name in (test, "valid"):
            write_tree(root / name, {"ant": 3, "bee": 2 if name == test else 1}, start=seed)
        (root / name).mkdir(exist_ok=True)
        (root / name / "._ant.png").write_text("of a Mac")
        (root / name / "about.xml").write_text("no image")
    splits = load_splits(folder_config(root, tmp_path))
    assert splits.train.classes == ("ant", "bee") and splits.train.counts.tolist() == [5, 4]
    assert splits.test is None if not test else torch.bincount(splits.test.labels).tolist() == [3, 2]


def test_a_folder_around_the_classes_is_no_class(tmp_path):
    write_tree(tmp_path / "of classes/pictures-1.0/all", {"ant": 5, "bee": 4})
    alone = load_splits(folder_config(tmp_path / "of classes", tmp_path)).train
    assert alone.classes == ("ant", "bee") and alone.counts.tolist() == [5, 4] and alone.paths[0].startswith("ant/")
    write_tree(tmp_path / "of parts/pictures-1.0/train", {"ant": 5, "bee": 4})
    write_tree(tmp_path / "of parts/pictures-1.0/test", {"bee": 2, "ant": 3}, start=1)
    splits = load_splits(folder_config(tmp_path / "of parts", tmp_path))
    assert splits.train.counts.tolist() == [5, 4] and torch.bincount(splits.test.labels).tolist() == [3, 2]
    write_tree(tmp_path / "one class", {"ant": 3, "ant/old": 2})  # its own images beside a folder: it is the class
    assert load_splits(folder_config(tmp_path / "one class", tmp_path)).train.counts.tolist() == [5]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train", "cat"), "called like parts .train. and others .cat."),
        (("ant", "bee", "cow", "Test"), "called like parts .Test. and others .ant, bee, cow."),
        (("test", "val"), "called like parts .test, val. but no single train/"),
        (("train", "Train", "test"), "called like parts .Train, train, test. but no single train/"),
    ],
)
def test_folders_that_may_be_parts_or_classes_are_asked_about(folders, words, tmp_path):
    for name in folders:
        write_tree(tmp_path / "pictures" / name, {"ant": 2, "bee": 2})
    with pytest.raises(ConfigError, match=f"holds folders {words}: leave only train/ and test/"):
        load_splits(folder_config(tmp_path / "pictures", tmp_path))


@pytest.mark.parametrize("below", ["", "unknown"])
def test_a_test_without_labels_is_none_and_the_next_part_judges(below, tmp_path, caplog):
    root = tmp_path / "pictures"
    write_tree(root / "train", {"ant": 5, "bee": 4})
    (root / "test" / below).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "test" / below / "1.png")
    assert load_splits(folder_config(root, tmp_path)).test is None
    assert "test images without labels" in caplog.text
    held = load_splits(folder_config(root, tmp_path, test_per_class=1))
    assert len(held.test) == 2 and held.eval_classes.tolist() == [0, 1]
    write_tree(root / "val", {"ant": 3, "bee": 2}, start=1)
    assert len(load_splits(folder_config(root, tmp_path)).test) == 5


def test_a_class_of_one_part_only_is_named(tmp_path, caplog):
    root = tmp_path / "pictures"
    write_tree(root / "train", {"ant": 5, "bee": 4, "rare": 2})
    write_tree(root / "test", {"ant": 3, "bee": 2, "cow": 2}, start=1)
    config = folder_config(root, tmp_path)
    splits = load_splits(config)
    assert splits.train.counts.tolist() == [5, 4, 2] and splits.eval_classes.tolist() == [0, 1]
    assert torch.bincount(splits.test.labels).tolist() == [3, 2] and set(splits.probe.labels.tolist()) == {0, 1}
    assert class_counts(config)["groups"] == ["head", "head", "tail"]
    assert "classes without test images are trained on but not evaluated: rare" in caplog.text
    assert "test: test images of classes without training images are left out: cow" in caplog.text
    caplog.clear()
    held = load_splits(folder_config(root, tmp_path, test_per_class=1))
    assert held.eval_classes.tolist() == [0, 1, 2] and "not evaluated" not in caplog.text
    with pytest.raises(ConfigError, match="data.min_per_class = 6: must be at most 5"):
        load_splits(folder_config(root, tmp_path, min_per_class=6))


def test_a_class_without_readable_images_is_left_out_and_named(tmp_path, caplog):
    root = write_tree(tmp_path / "pictures", {"ant": 5, "bad": 2, "bee": 4})
    for path in (root / "bad").rglob("*.png"):
        path.write_text("no image")
    config = folder_config(root, tmp_path, test_per_class=1)
    for _ in range(2):
        splits = load_splits(config)
        assert splits.train.classes == ("ant", "bee") and splits.train.counts.tolist() == [4, 3]
        assert torch.bincount(splits.test.labels).tolist() == [1, 1]
        assert class_counts(config)["classes"] == ["ant", "bee"]
    assert "classes without training images are left out: bad" in caplog.text


@pytest.mark.parametrize("root", ["", "/no/such/folder"])
def test_missing_folder(root, tmp_path):
    with pytest.raises(ConfigError, match="data.root"):
        load_splits(folder_config(root, tmp_path))


def test_empty_or_broken_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no image files"):
        load_splits(folder_config(tmp_path / "empty", tmp_path))
    root = write_tree(tmp_path / "pictures", {"ant": 5, "bee": 2})
    with pytest.raises(ConfigError, match="class 'bee' has no images left"):
        load_splits(folder_config(root, tmp_path, test_per_class=2))


def test_a_file_counts_once_however_many_links_lead_to_it(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    for folder in (outside, root / "ant", root / "bee"):
        folder.mkdir(parents=True)
    for file in (outside / "far.png", root / "bee" / "own.png"):
        Image.new("RGB", (4, 4)).save(file)
    (root / "ant" / "link.png").symlink_to(root / "bee" / "own.png")  # its own name comes later, and is kept
    (root / "ant" / "one.png").symlink_to(outside / "far.png")
    (root / "bee" / "two.png").symlink_to("../ant/one.png")
    (root / "cat").symlink_to(root / "bee", target_is_directory=True)
    listing = list_folder(root)
    assert listing.paths == ("ant/one.png", "bee/own.png") and listing.labels.tolist() == [0, 1]


def test_links_to_folders_above_end(tmp_path):
    root = write_tree(tmp_path / "pictures", {"ant": 3, "bee": 2})
    (root / "ant/back").symlink_to(root, target_is_directory=True)
    assert load_images("folder", root=root, cache=str(tmp_path / "cache")).counts.tolist() == [3, 2]


def test_unknown_names():
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_images("digit")
    with pytest.raises(ConfigError, match="did you mean 'data.image_size'"):
        load_images("digits", image_sise=3)


# ---------------------------------------------------------------- ImageNet-100 and .txt lists


@pytest.fixture
def imagenet(tmp_path):
    names = {f"n{c:04}": 3 for c in range(102)}
    write_tree(tmp_path / "imagenet/train", names)
    write_tree(tmp_path / "imagenet/val", dict.fromkeys(names, 1), start=1)
    return tmp_path / "imagenet"


def imagenet_config(root, tmp_path, lines):
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    fields = {"rule": "file", "list_file": str(tmp_path / "list.txt"), "n_max": 0, "val_per_class": 1, "image_size": 4}
    fields |= {"root": str(root), "cache": str(tmp_path / "cache")}
    return preset("imagenet100-lt", overrides={f"data.{k}": v for k, v in fields.items()})


def list_lines(classes=100):
    """Class c is folder 101 - c, so folders 0 and 1 stay out; two images of the first ten classes, one of others."""
    place = [("", 0), ("nested/deep/", 1)]
    return [
        f"train/n{101 - c:04}/{sub}n{101 - c:04}_{i}.png {c}"
        for c in range(classes)
        for sub, i in place[: 2 if c < 10 else 1]
    ]


def test_imagenet_list(imagenet, tmp_path):
    splits = load_splits(imagenet_config(imagenet, tmp_path, list_lines()))
    assert splits.train.classes[0] == "n0101" and len(splits.train.classes) == 100
    assert len(splits.train) == 110 and splits.train.counts.tolist() == [2] * 10 + [1] * 90
    assert {f"train/{p}" for p in splits.train.paths} == {line.split()[0] for line in list_lines()}
    assert len(splits.val) == len(splits.test) == 100
    assert splits.train.groups.tolist() == [2] * 100  # by counts: all under 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines + lines[:1], "repeats 1 paths"),
        (lambda lines: [*lines, "train/n0101/gone.png 0"], "1 files are not in"),
        (lambda lines: [*lines, "train/n0050/n0050_2.png 0"], "two folders"),
        (lambda lines: [*lines, "train/n0101/n0101_2.png -1"], "line 111 is not"),
        (lambda lines: [*lines, "train/n0101/n0101_2.png"], "line 111 is not"),
        (lambda lines: lines[:-1] + ["train/n0002/n0002_0.png 100"], r"no image of \[99\]"),
        (lambda lines: lines[:-1], "99 classes"),
        (lambda lines: [], "is empty"),
    ],
)
def test_broken_imagenet_list(imagenet, tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        load_splits(imagenet_config(imagenet, tmp_path, change(list_lines())))


def test_imagenet_tree_that_is_missing_or_too_large(imagenet, tmp_path):
    with pytest.raises(ConfigError, match="ImageNet"):
        load_images("imagenet100", root=tmp_path)
    with pytest.raises(ConfigError, match="102 classes"):
        load_images("imagenet100", root=imagenet)


@pytest.mark.skipif(not Path("/usr/share/openclipart/png").is_dir(), reason="needs Debian's package openclipart-png")
def test_openclipart_has_the_documented_counts(tmp_path):
    found = class_counts(preset("openclipart", overrides={"data.cache": str(tmp_path)}))
    assert len(found["classes"]) == 22 and found["classes"][0] == "computer" and found["counts"][0] == 1797 - 30
    assert found["n"] == 8121 - 1221 - 13 * 30  # links; 13 categories of 91 and more give 30 each to the test
    assert found["counts"][found["classes"].index("buttons")] == 3
    assert [found["groups"].count(g) for g in GROUPS] == [5, 4, 13]  # thirds of the 13; the 9 others count as tail
