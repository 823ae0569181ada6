"""Hugging Face datasets and tar shards, in files of the true formats: labels, classes, splits, damage."""

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import tase
from tase.config import ConfigError, DataConfig
from tase.data import archives, folders, load_images, load_splits
from tase.data.archives import wds
from tase.options import package

CLASSES = ("ant", "bee", "cow")
COUNTS = (16, 12, 8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The hub is not looked for: what lies on the disk needs none."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = sys.modules.get("datasets")
    if datasets:
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def datasets(no_network):
    return pytest.importorskip("datasets")


def pictures(counts=COUNTS, seed=0):
    """Yield (class, PNG bytes, picture): bands of a class's own colour, of several sizes."""
    rng = np.random.default_rng(seed)
    for c, count in enumerate(counts):
        for _ in range(count):
            pixels = rng.integers(0, 60, (int(rng.integers(9, 14)), 11, 3), dtype=np.uint8)
            pixels[..., c] += 150
            picture, buffer = Image.fromarray(pixels), io.BytesIO()
            picture.save(buffer, "PNG")
            yield c, buffer.getvalue(), picture


def parquet(datasets, folder, parts=("train",), shards=1, **columns):
    """Write pictures as Parquet files with an image column `img` and a class label `label`, as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, part in enumerate(parts):
        rows = list(pictures(seed=seed))
        given = {"img": [picture for *_, picture in rows], "label": [c for c, *_ in rows], **columns}
        kinds = {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
        data = datasets.Dataset.from_dict(given)
        for name, kind in kinds.items():
            data = data.cast_column(name, kind) if name not in columns else data
        for shard in range(shards):
            name = f"{part}-{shard:05d}-of-{shards:05d}.parquet"
            data.shard(shards, shard, contiguous=True).to_parquet(str(folder / name))
    return folder


def tars(folder, name="train", shards=2, kind="cls", seed=0):
    """Write pictures as WebDataset shards: KEY.png and KEY.cls (.txt, .json), spread over the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(enumerate(pictures(seed=seed)))
    for shard in range(shards):
        with tarfile.open(folder / f"{name}-{shard:04d}.tar", "w") as file:
            for row, (c, data, _) in rows[shard::shards]:
                label = {"cls": str(c), "txt": CLASSES[c], "json": json.dumps({"label": CLASSES[c], "row": row})}.get(
                    kind
                )
                for extension, content in (("png", data), (kind, label and label.encode())):
                    if content is not None:
                        info = tarfile.TarInfo(f"{row:06d}.{extension}")
                        info.size = len(content)
                        file.addfile(info, io.BytesIO(content))
    return folder


def shard(path, samples):
    """Write samples, contents by their extensions, as one WebDataset shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for row, sample in enumerate(samples):
            for extension, content in sample.items():
                info = tarfile.TarInfo(f"{row:06d}.{extension}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def fields(source, root, cache, **more):
    return {"data.source": source, "data.root": str(root), "data.cache": str(cache), "data.image_size": 8, **more}


def check_images(images, classes=CLASSES):
    assert images.images.shape == (36, 3, 8, 8) and images.classes == classes
    assert images.counts.tolist() == list(COUNTS)
    mean = images.images.float().mean((2, 3))  # the label's colour is the brightest
    assert torch.equal(mean.argmax(1), images.labels)


@pytest.mark.parametrize("form", ["parquet", "imagefolder", "saved"])
def test_a_dataset_is_imported_once_with_labels_and_class_names(form, datasets, tmp_path, monkeypatch):
    root, cache = tmp_path / "data", tmp_path / "cache"
    if form == "parquet":
        parquet(datasets, root, ("train", "test"), shards=2)
    elif form == "saved":
        made = parquet(datasets, tmp_path / "made", ("train", "test"))
        datasets.load_dataset(str(made), cache_dir=str(tmp_path / "other")).save_to_disk(str(root))
    else:
        for seed, part in enumerate(("train", "test")):
            for row, (c, data, _) in enumerate(pictures(seed=seed)):
                (root / part / CLASSES[c]).mkdir(parents=True, exist_ok=True)
                (root / part / CLASSES[c] / f"{row}.png").write_bytes(data)
    images = load_images("hf", root, image_size=8, cache=cache)
    check_images(images)
    splits = load_splits(tase.preset("folder", overrides=fields("hf", root, cache, **{"data.val_per_class": 2})))
    assert len(splits.test) == 36 and len(splits.val) == 6 and len(splits.train) == 30
    monkeypatch.setattr(folders, "read_image", lambda *_: pytest.fail("decoded again"))
    assert load_images("hf", root, image_size=8, cache=cache).hash == images.hash
    assert "ant" in images.paths[0] if form == "imagefolder" else images.paths[0] == "train/0000000"


def test_another_process_takes_the_imported_images(datasets, tmp_path):
    root = parquet(datasets, tmp_path / "data")
    code = "import sys, tase; print(tase.load_images('hf', sys.argv[1], image_size=8, cache=sys.argv[2]).hash)"
    words = [sys.executable, "-c", code, str(root), str(tmp_path / "cache")]
    hashes = {subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(hashes) == 1
    assert len([f for f in (tmp_path / "cache" / "images").iterdir() if f.is_dir()]) == 1


def test_columns_are_chosen_and_whole_numbers_or_texts_are_classes(datasets, tmp_path):
    names = [CLASSES[c] for c, *_ in pictures()]
    root = parquet(datasets, tmp_path / "data", label=names, other=[len(name) for name in names])
    check_images(load_images("hf", root, image_size=8, cache=tmp_path / "cache"))
    images = load_images("hf", root, image_size=8, cache=tmp_path / "cache", columns="img,other")
    assert images.classes == ("3",)
    none = load_images("hf", root, image_size=8, cache=tmp_path / "cache", columns="img")
    assert none.labels is not None  # only the images were named


@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
def test_tar_shards_have_labels_and_class_names(kind, tmp_path):
    root = tars(tmp_path / "shards", kind=kind)
    tars(root, "test", 1, kind, seed=1)
    images = load_images("wds", root, image_size=8, cache=tmp_path / "cache")
    check_images(images, ("0", "1", "2") if kind == "cls" else CLASSES)
    assert images.paths[0] == "train-0000.tar/000000.png"
    assert len(load_splits(tase.preset("folder", overrides=fields("wds", root, tmp_path / "cache"))).test) == 36
    if kind == "cls":
        (root / "classes.txt").write_text("ant\nbee\ncow\n")
        check_images(load_images("wds", root, image_size=8, cache=tmp_path / "cache"))
    braced = load_images("wds", f"{root}/train-{{0000..0001}}.tar", image_size=8, cache=tmp_path / "cache")
    assert torch.equal(braced.images[:], images.images[:]) and len(braced) == 36


@pytest.mark.parametrize("source", ["hf", "wds"])
def test_a_class_name_without_images_is_left_out(source, request, tmp_path, caplog):
    names = ["ant", "none", "bee", "cow"]
    if source == "hf":
        datasets = request.getfixturevalue("datasets")
        rows = list(pictures())
        given = {"img": [picture for *_, picture in rows], "label": [c + (c > 0) for c, *_ in rows]}
        data = datasets.Dataset.from_dict(given).cast_column("label", datasets.ClassLabel(names=names))
        (tmp_path / "d").mkdir()
        data.to_parquet(str(tmp_path / "d" / "train-00000-of-00001.parquet"))
    else:
        tars(tmp_path / "d", kind="cls")
        (tmp_path / "d" / "classes.txt").write_text("ant\nbee\ncow\nnone\n")
    check_images(load_images(source, tmp_path / "d", image_size=8, cache=tmp_path / "cache"))
    for more in ({}, {"data.rule": "custom", "data.n_max": 8, "data.rho": 2}):
        config = tase.preset("folder", overrides=fields(source, tmp_path / "d", tmp_path / "cache", **more))
        assert load_splits(config).train.classes == CLASSES
    assert "classes without training images are left out: none" in caplog.text


def test_a_test_part_without_images_of_the_listed_classes_is_left_out(tmp_path, caplog):
    """Shards know all class names, so a part may know a class of which it has no image."""
    picture = [data for _, data, _ in pictures((14,))]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "classes.txt").write_text("ant\nbee\n")
    for part, c, images in (("train", "0", picture[:12]), ("test", "1", picture[12:])):
        shard(tmp_path / "d" / f"{part}-0000.tar", [{"png": data, "cls": c.encode()} for data in images])
    paths = load_images("wds", tmp_path / "d", image_size=8, cache=tmp_path / "cache").paths
    (tmp_path / "list.txt").write_text("".join(f"{path} 0\n" for path in paths))
    listed = {"data.rule": "file", "data.list_file": str(tmp_path / "list.txt"), "data.val_per_class": 0}
    config = tase.preset("folder", overrides=fields("wds", tmp_path / "d", tmp_path / "cache", **listed))
    caplog.clear()
    splits = load_splits(config)
    assert "or of none of the trained classes, are left out" in caplog.text
    assert splits.test is None and splits.train.classes == ("ant",) and len(splits.train) == 12


def test_shards_in_capital_letters_are_test_images(tmp_path):
    root = tars(tmp_path / "shards" / "Train", "a")
    tars(tmp_path / "shards" / "Test", "a", 1, seed=1)
    splits = load_splits(tase.preset("folder", overrides=fields("wds", root.parent, tmp_path / "cache")))
    assert len(splits.train) == len(splits.test) == 36


@pytest.mark.parametrize("names", ["imagenet1k-{}-00", "data_{}_0000", "{}-000"])
def test_the_part_is_any_word_of_a_shards_name(names, tmp_path):
    _, data, _ = next(pictures())
    for part, number in (("train", 1), ("validation", 2)):
        shard(tmp_path / f"data/{names.format(part)}.tar", [{"png": data, "cls": b"0"}] * number * 3)
    train, test = wds(DataConfig(source="wds", root=str(tmp_path / "data"), cache=str(tmp_path / "cache")))
    assert (len(train), len(test)) == (3, 6)


def test_a_class_that_is_named_twice_is_refused(tmp_path):
    root = tars(tmp_path / "data")
    (root / "classes.txt").write_text("crane\ndog\ncrane\n")
    with pytest.raises(ConfigError, match="names 'crane' twice"):
        load_images("wds", root, image_size=8, cache=tmp_path / "cache")


def test_a_row_without_an_image_cannot_be_read(datasets, tmp_path):
    found = [picture for *_, picture in pictures()]
    root = parquet(datasets, tmp_path / "data", img=[None, *found[1:]])
    given = fields("hf", root, tmp_path / "cache")
    with pytest.raises(ConfigError, match="train/0000000: UnidentifiedImageError"):
        load_splits(tase.preset("folder", overrides={**given, "data.on_bad_image": "strict"}))
    assert len(load_splits(tase.preset("folder", overrides=given)).train) == 35


def test_images_of_the_hub_are_named_by_their_rows(datasets, tmp_path, monkeypatch):
    """Their files lie in the hub's cache, and to name them by the way there from here would name them otherwise."""
    for row, (c, data, _) in enumerate(pictures()):
        (tmp_path / "data" / CLASSES[c]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / CLASSES[c] / f"{row}.png").write_bytes(data)
    data = DataConfig(source="hf", root=str(tmp_path / "data"), cache=str(tmp_path / "cache"))
    (part,) = archives._load_dataset(data).values()
    monkeypatch.setattr(archives, "is_hub_name", lambda name: True)
    listed = archives._list_rows(part, data, "train")
    assert listed.paths[0] == "train/0000000" and len(set(listed.paths)) == 36
    assert listed.archive.read(0) == (tmp_path / "data" / CLASSES[0] / "0.png").read_bytes()


def test_tar_shards_are_read_once(tmp_path, monkeypatch):
    root, cache = tars(tmp_path / "shards"), tmp_path / "cache"
    first = load_images("wds", root, image_size=8, cache=cache)
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", lambda *_: pytest.fail("read again"))
        again = load_images("wds", root, image_size=8, cache=cache)
    assert torch.equal(again.images[:], first.images[:]) and again.hash == first.hash
    for kept in (cache / "tars").iterdir():
        kept.write_text(kept.read_text()[:20])  # damaged: made again
    assert load_images("wds", root, image_size=8, cache=cache).hash == first.hash


def test_tar_shards_without_labels(tmp_path):
    root = tars(tmp_path / "shards", kind="none")
    images = load_images("wds", root, image_size=8, cache=tmp_path / "cache")
    assert images.labels is None and len(images) == 36


@pytest.mark.parametrize("captions", ["json", "txt", "both"])
def test_captions_are_no_classes(captions, tmp_path, caplog):
    """As img2dataset writes: the JSON tells where an image is from, the text is its caption; a third are the same."""
    rows = list(enumerate(pictures()))
    texts = [b"a picture" if row % 3 == 0 else f"picture {row}".encode() for row, _ in rows]
    about = [json.dumps({"caption": text.decode(), "status": "success"}).encode() for text in texts]
    samples = [{"png": data, "txt": text, "json": of} for (_, (_, data, _)), text, of in zip(rows, texts, about)]
    for sample in samples:
        sample.pop({"json": "txt", "txt": "json"}.get(captions), None)
    samples[5].pop("txt", None)  # one has none
    root, cache = shard(tmp_path / "a" / "00000.tar", samples), tmp_path / "cache"
    for _ in range(2):
        assert load_images("wds", root, image_size=8, cache=cache).labels is None
    assert ("24 of 35 .txt differ, so they are taken for captions" in caplog.text) == (captions != "json")
    if captions != "txt":
        assert load_images("wds", root, image_size=8, cache=cache, columns="png,status").classes == ("success",)
        with one_line("000000.json cannot be read: no whole number or text under other, label"):
            load_images("wds", root, image_size=8, cache=cache, columns="png,other")


def test_a_text_is_a_class_beside_json_without_one_and_in_a_small_test(tmp_path):
    rows, about = list(pictures()), b'{"width": 11}'
    train = [{"png": data, "json": about, "txt": CLASSES[c].encode()} for c, data, _ in rows]
    shard(tmp_path / "s" / "train-0.tar", train)
    shard(tmp_path / "s" / "test-0.tar", [train[row] for row in (0, 20, 35)])  # one image of each class
    check_images(load_images("wds", tmp_path / "s", image_size=8, cache=tmp_path / "cache"))
    config = tase.preset("folder", overrides=fields("wds", tmp_path / "s", tmp_path / "cache"))
    assert load_splits(config).test.labels.tolist() == [0, 1, 2]
    shard(tmp_path / "s" / "train-0.tar", [*train[:-1], {"png": train[-1]["png"], "json": about}])
    with one_line("000035.png has no label .*, but others have"):
        load_splits(config)


@pytest.mark.parametrize("source", ["hf", "wds"])
def test_the_tail_is_made_by_rule_and_a_run_trains(source, datasets, tmp_path):
    root = parquet(datasets, tmp_path / "d") if source == "hf" else tars(tmp_path / "d")
    rule = {"data.rule": "custom", "data.n_max": 8, "data.rho": 4, "data.test_per_class": 2, "data.val_per_class": 1}
    small = {"model.channels": "8,8,8,8", "optim.batch": 8, "optim.epochs": 1, "guidance.clusters": 3}
    config = tase.preset("folder", overrides=fields(source, root, tmp_path / "cache", **rule, **small))
    splits = load_splits(config)
    assert sorted(splits.train.counts.tolist()) == [2, 4, 8] and len(splits.test) == 6
    run = tase.train(config, tmp_path / "run", progress=False)
    assert run.finished and run.history.classes == splits.train.classes


def test_the_hub_preset_says_what_it_needs(datasets, tmp_path):
    config = tase.preset("cifar10-lt-hub", overrides={"data.cache": str(tmp_path)})
    assert tase.config.SOURCES["hf"] and config.data.rule == tase.preset("cifar10-lt").data.rule
    other = tase.override(config, {"data.root": "uoft-cs/cifar100"})
    assert config.identity != other.identity  # a name on the hub decides the result
    folder = tase.override(config, {"data.root": "./here"})
    assert folder.identity == tase.override(config, {"data.root": "/there"}).identity  # a place does not
    with pytest.raises(ConfigError, match="^data.root = 'uoft-cs/cifar10' cannot be read as a Hugging Face [^\n]*$"):
        load_splits(config)


# -------------------------------------------------------------------------------------------------------------- damage


def one_line(message):
    return pytest.raises(ConfigError, match=f"^[^\n]*{message}[^\n]*$")


def test_a_missing_or_damaged_parquet_shard_is_named(datasets, tmp_path):
    root, cache = parquet(datasets, tmp_path / "data", shards=3), tmp_path / "cache"
    kept = (root / "train-00001-of-00003.parquet").read_bytes()
    (root / "train-00001-of-00003.parquet").unlink()
    with one_line("the shard .*train-00001-of-00003.parquet is missing"):
        load_images("hf", root, image_size=8, cache=cache)
    (root / "train-00001-of-00003.parquet").write_bytes(kept[:-100])
    with one_line("train-00001-of-00003.parquet is cut off, damaged, or no Parquet"):
        load_images("hf", root, image_size=8, cache=cache)
    (root / "train-00001-of-00003.parquet").write_bytes(kept)
    check_images(load_images("hf", root, image_size=8, cache=cache))


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({}, "pic,label", "unknown column of .*'pic'"),
        ({"label": [0.5] * 36}, "", r"a label of class, whole number or text; .*label \(float64\)"),
        ({"img": list(range(36))}, "", r"data.columns = \(\): must be IMAGES,LABELS: there are img \(int64\), label"),
        ({"label": [None, *[1] * 35]}, "", "data with a 'label' in every row of 'train'"),
    ],
)
def test_a_missing_column_and_a_wrong_dtype_are_named(columns, given, message, datasets, tmp_path):
    root = parquet(datasets, tmp_path / "data", **columns)
    with one_line(message):
        load_images("hf", root, image_size=8, cache=tmp_path / "cache", columns=given)


def test_missing_and_damaged_tar_shards_are_named(tmp_path):
    root, cache = tars(tmp_path / "shards", shards=3), tmp_path / "cache"
    middle = root / "train-0001.tar"
    whole = middle.read_bytes()
    for cut in (len(whole) // 2, 512 * 3 + 100, 512 * 4, 700):  # also between two members, and in a header
        middle.write_bytes(whole[:cut])
        with one_line("train-0001.tar is cut off, damaged, compressed, or no tar: "):
            load_images("wds", root, image_size=8, cache=cache)
    middle.unlink()
    for place in (root, f"{root}/train-{{0000..0002}}.tar"):
        with one_line("the shard .*train-0001.tar is missing"):
            load_images("wds", place, image_size=8, cache=cache)
    assert not (cache / "images").exists()
    middle.write_bytes(whole)
    check_images(load_images("wds", root, image_size=8, cache=cache), ("0", "1", "2"))


@pytest.mark.parametrize(
    ("extension", "content", "message"),
    [
        ("cls", b"first", "the label .*000000.cls cannot be read: invalid literal"),
        ("json", b'{"label": null}', "000000.json cannot be read: no whole number or text under label, class"),
        ("json", b'{"label": 0.5}', "000000.json cannot be read: no whole number or text"),
        ("json", b"{", "000000.json cannot be read"),
    ],
)
def test_a_wrong_label_in_a_tar_is_named(extension, content, message, tmp_path):
    sample = {"png": next(pictures())[1], extension: content}
    with one_line(message):
        load_images("wds", shard(tmp_path / "a.tar", [sample]), image_size=8, cache=tmp_path / "cache")


def test_broken_pictures_in_archives_are_skipped_and_named(tmp_path):
    root = tars(tmp_path / "shards", shards=1)
    path = root / "train-0000.tar"
    data = bytearray(path.read_bytes())
    data[512:1024] = b"\0" * 512  # the first picture
    path.write_bytes(data)
    with pytest.raises(
        ConfigError, match="1 of 36 image files cannot be read.*\n  000000.png|train-0000.tar/000000.png"
    ):
        load_images("wds", root, image_size=8, cache=tmp_path / "cache")
    skipped = load_images("wds", root, image_size=8, cache=tmp_path / "cache", on_bad_image="skip")
    assert len(skipped) == 35 and skipped.paths[0] == "train-0000.tar/000001.png"


def test_a_changed_archive_is_read_again(tmp_path):
    root = tars(tmp_path / "shards")
    first = load_images("wds", root, image_size=8, cache=tmp_path / "cache")
    tars(root, seed=3)
    os.utime(root / "train-0000.tar", (1, 1))
    assert not torch.equal(load_images("wds", root, image_size=8, cache=tmp_path / "cache").images[:], first.images[:])


@pytest.mark.parametrize("source", ["hf", "wds"])
def test_missing_data_say_how_to_get_them(source, tmp_path, request):
    if source == "hf":
        request.getfixturevalue("datasets")
    with pytest.raises(ConfigError, match="data.root: no .* in .*none; get the data with"):
        load_images(source, f"{tmp_path}/none", image_size=8)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with one_line("pip install 'tase.hub.'"):
        load_images("hf", tmp_path, image_size=8)


def test_a_library_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with one_line("broken_package cannot be imported: No module named 'no_such_dependency'"):
        package("broken_package", "--executor", "dask")
