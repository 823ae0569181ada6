"""Decoding of odd files, and the cache: interruption, changed sources, strict and skip."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from tase.config import ConfigError
from tase.data import Mapped, class_counts, decode_folder, load_images, load_splits, read_image
from tase.data.sets import Shards
from tase.files import temporary_name
from tase.presets import preset

RED, WHITE = (255, 0, 0), (255, 255, 255)


def close(pixel, colour, within=4):
    return np.abs(np.asarray(pixel, dtype=int) - np.asarray(colour)).max() <= within


def saved(folder, name, image, **options):
    image.save(folder / name, **options)
    return str(folder / name)


def gradient(width=16, height=16):
    return Image.fromarray(np.tile(np.arange(width, dtype=np.uint8) * (256 // width), (height, 1)))


def test_grey_bilevel_and_palette(tmp_path):
    grey = read_image(saved(tmp_path, "grey.png", Image.new("L", (9, 5), 100)), 4)
    assert grey.shape == (4, 4, 3) and grey.dtype == np.uint8 and (grey == 100).all()
    assert (read_image(saved(tmp_path, "bits.png", Image.new("1", (9, 5), 1)), 4) == 255).all()
    palette = Image.new("RGB", (8, 8), RED).convert("P")
    assert (read_image(saved(tmp_path, "palette.png", palette), 4) == RED).all()


def test_transparent_lies_on_white(tmp_path):
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert close(read_image(saved(tmp_path, "half.png", half), 4)[1, 1], (255, 127, 127))
    assert (read_image(saved(tmp_path, "clear.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0))), 4) == 255).all()
    assert close(read_image(saved(tmp_path, "la.png", Image.new("LA", (8, 8), (0, 128))), 4)[1, 1], (127, 127, 127))
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette(list(range(30)))
    assert (read_image(saved(tmp_path, "p.png", palette, transparency=3), 4) == 255).all()
    assert (read_image(saved(tmp_path, "rgb.png", Image.new("RGB", (8, 8), RED), transparency=RED), 4) == 255).all()


def test_what_is_clear_does_not_bleed(tmp_path):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))  # black, but not to be seen
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    pixels = read_image(saved(tmp_path, "edge.png", image), 8)
    assert close(pixels[4, 0], RED) and (pixels[..., 0] >= 250).all()


def test_16_bit_and_float(tmp_path):
    values = np.full((8, 8), 0x8080, dtype=np.uint16)
    assert (read_image(saved(tmp_path, "deep.png", Image.fromarray(values)), 4) == 128).all()
    assert (read_image(saved(tmp_path, "deep.tif", Image.fromarray(values)), 4) == 128).all()
    dark = np.full((8, 8), 300, dtype=np.uint16)
    assert (read_image(saved(tmp_path, "dark.png", Image.fromarray(dark)), 4) == 1).all()
    assert (read_image(saved(tmp_path, "f.tif", Image.fromarray(np.full((8, 8), 0.5, np.float32))), 4) == 128).all()


def test_cmyk(tmp_path):
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert close(read_image(saved(tmp_path, "cmyk.jpg", cmyk, quality=100), 4)[1, 1], RED, within=8)
    assert close(read_image(saved(tmp_path, "cmyk.tif", cmyk), 4)[1, 1], RED)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_rotation_is_undone(tmp_path, orientation, suffix):
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 16, 8))  # top left
    how = Image.Transpose
    stored = {2: how.FLIP_LEFT_RIGHT, 3: how.ROTATE_180, 4: how.FLIP_TOP_BOTTOM, 5: how.TRANSPOSE}
    stored |= {6: how.ROTATE_90, 7: how.TRANSVERSE, 8: how.ROTATE_270}
    turned = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    path = saved(tmp_path, f"turned.{suffix}", turned, exif=exif, **options)
    pixels = read_image(path, 8, "letterbox")  # 8 x 4, from row 2 on
    assert close(pixels[3, 1], RED, 30)
    for row, column in ((3, 6), (5, 1), (5, 6), (0, 0), (7, 7)):
        assert close(pixels[row, column], WHITE, 30)


def test_corrupt_exif_leaves_the_picture(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n       4\nno hexadecimal digits\n")
    path = saved(tmp_path, "note.png", Image.new("RGB", (16, 16), RED), pnginfo=text)
    with pytest.raises(ValueError, match="hex"):
        Image.open(path).getexif()
    assert (read_image(path, 4) == RED).all()


def test_one_pixel_and_thin_lines(tmp_path):
    dot = saved(tmp_path, "dot.png", Image.new("RGB", (1, 1), RED))
    line = saved(tmp_path, "line.png", Image.new("RGB", (1000, 1), RED))
    for fit in ("crop", "letterbox"):
        assert (read_image(dot, 8, fit) == RED).all()
        assert read_image(line, 8, fit).shape == (8, 8, 3)
    assert (read_image(line, 8, "letterbox") == RED).all(-1).sum() == 8


def test_crop_takes_the_middle_and_letterbox_all(tmp_path):
    image = Image.new("RGB", (48, 16), WHITE)
    image.paste(RED, (16, 0, 32, 16))
    path = saved(tmp_path, "wide.png", image)
    middle = np.asarray(image.resize((24, 8), Image.Resampling.BICUBIC).crop((8, 0, 16, 8)))
    assert np.array_equal(read_image(path, 8, "crop"), middle) and close(middle[:, 1:-1].reshape(-1, 3), RED)
    boxed = read_image(path, 12, "letterbox")
    assert (boxed[:4] == 255).all() and (boxed[8:] == 255).all() and close(boxed[5, 6], RED)
    plain = np.asarray(gradient().resize((8, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(read_image(saved(tmp_path, "ramp.png", gradient()), 8)[..., 0], plain)


def test_a_large_jpeg_is_close_to_its_full_decoding(tmp_path):
    path = saved(tmp_path, "large.jpg", gradient(1024, 1024), quality=95)
    full = np.asarray(Image.open(path).resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(read_image(path, 16)[..., 0].astype(int) - full).max() <= 3


def test_several_pictures_give_the_first(tmp_path):
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), (0, 0, 255))
    path = saved(tmp_path, "moving.gif", first, save_all=True, append_images=[second])
    assert close(read_image(path, 4).reshape(-1, 3), RED).all()


# ---------------------------------------------------------------- folders with bad files


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(6):
        Image.new("RGB", (10, 10), (40 * i, 0, 0)).save(root / f"{i}.png")
    return root


def spoil(root):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "2b-cut.png")
    data = (root / "2b-cut.png").read_bytes()
    (root / "2b-cut.png").write_bytes(data[: len(data) // 2])
    (root / "4b-text.png").write_text("I am no image")
    (root / "9-empty.jpg").write_bytes(b"")
    (root / "9-gone.png").symlink_to(root / "nowhere.png")
    return ["2b-cut.png", "4b-text.png", "9-empty.jpg", "9-gone.png"]


def load(folder, **options):
    return load_images("folder", root=folder, image_size=4, cache=str(folder.parent / "cache"), **options)


def test_strict_names_every_bad_file(folder):
    bad = spoil(folder)
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert all(str(folder / name) in str(error.value) for name in bad) and "0.png:" not in str(error.value)
    assert "4 of 10" in str(error.value) and "data.on_bad_image=skip" in str(error.value)
    assert "cannot identify image file '4b-text.png'" in str(error.value)


def test_skip_leaves_them_out_and_lists_them_once(folder, caplog):
    bad = spoil(folder)
    with caplog.at_level(logging.WARNING, logger="tase"):
        images = load(folder, on_bad_image="skip")
    assert len(caplog.records) == 1 and all(name in caplog.text for name in bad)
    assert images.paths == tuple(f"{i}.png" for i in range(6))
    assert images.images[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]


def test_they_are_listed_on_standard_error_and_in_a_notebook_in_the_output(folder, capsys, monkeypatch):
    """JupyterLab shows standard error on a red ground, and to leave out files was the user's choice."""
    spoil(folder)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    load(folder, on_bad_image="skip")
    shown = capsys.readouterr()
    assert "4 of 10 image files cannot be read" in shown.err and not shown.out
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stream)
    load(folder, on_bad_image="skip")
    assert "4 of 10 image files cannot be read" in capsys.readouterr().out and not stream.getvalue()


def test_counts_without_decoding_know_the_bad_files_of_an_earlier_decoding(folder):
    spoil(folder)
    fields = {"root": str(folder), "image_size": 4, "cache": str(folder.parent / "cache"), "on_bad_image": "skip"}
    config = preset("folder", overrides={f"data.{name}": value for name, value in fields.items()})
    assert class_counts(config)["n"] == 10
    load_splits(config)
    assert class_counts(config)["n"] == 6


def test_the_hash_sees_names_and_sizes_but_not_the_place(folder):
    first = load(folder).hash
    shutil.copytree(folder, folder.parent / "copy")
    assert load(folder.parent / "copy").hash == first
    noise = np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "3.png")
    assert load(folder).hash != first


def test_nothing_readable(folder):
    for path in folder.iterdir():
        path.write_text("no image")
    with pytest.raises(ConfigError, match="none of the 6"):
        load(folder, on_bad_image="skip")


def test_a_file_that_claims_too_many_pixels(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 49)
    with pytest.raises(ConfigError, match=r"\(100 pixels\) exceeds limit of 98 pixels"):
        load(folder)


def test_a_large_file_is_read_without_a_warning(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)  # of files with 100
    with pytest.warns(Image.DecompressionBombWarning):
        read_image(str(next(folder.rglob("*.png"))), 4)
    load(folder)  # warnings are errors in tests


# ---------------------------------------------------------------- the cache


@pytest.fixture
def counted(monkeypatch):
    """The names of the files that are decoded from here on."""
    import tase.data.folders as cache

    seen, original = [], cache.read_image

    def read(file, size, fit):
        seen.append(os.path.basename(file))
        return original(file, size, fit)

    monkeypatch.setattr(cache, "read_image", read)
    return seen


def test_decoded_once(folder, counted):
    first = load(folder)
    assert sorted(counted) == [f"{i}.png" for i in range(6)]
    again = load(folder)
    assert len(counted) == 6 and torch.equal(first.images, again.images) and first.hash == again.hash


def test_changed_added_and_removed_files_are_noticed(folder, counted):
    first = load(folder)
    Image.new("RGB", (10, 10), (7, 7, 7)).save(folder / "3.png")
    os.utime(folder / "3.png", ns=(1, 1))
    changed = load(folder)
    assert changed.images[3, 0, 0, 0] == 7
    Image.new("RGB", (10, 10)).save(folder / "6.png")
    assert len(load(folder)) == 7
    (folder / "0.png").unlink()
    third = load(folder)
    assert len(third) == 6 and third.paths[0] == "1.png" and third.hash != first.hash


def test_size_and_fit_have_caches_of_their_own(folder, counted):
    load(folder)
    load(folder, fit="letterbox")
    assert len(counted) == 12


def interrupt_at(monkeypatch, name):
    """Stop, as by Ctrl-C, when the file is reached; chunks of one file each, in one thread."""
    import tase.data.folders as cache

    original = cache.read_image

    def read(file, size, fit):
        if os.path.basename(file) == name:
            raise KeyboardInterrupt
        return original(file, size, fit)

    monkeypatch.setattr(cache, "read_image", read)
    monkeypatch.setattr(cache, "DECODE_CHUNK", 1)
    monkeypatch.setattr(cache.os, "sched_getaffinity", lambda pid: {0}, raising=False)


def files_of(cache):
    return sorted(path.name for path in cache.glob("images/*/*") if path.suffix != ".lock")


def test_interrupted_decoding_leaves_nothing_and_starts_again(folder, counted, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt_at(patched, "4.png")
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    assert counted == ["0.png", "1.png", "2.png", "3.png"] and files_of(folder.parent / "cache") == []
    images = load(folder)
    assert counted[4:] == [f"{i}.png" for i in range(6)]
    assert images.images[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]
    assert files_of(folder.parent / "cache") == ["00000.json", "00000.u8"]


def test_what_a_killed_process_left_is_removed(folder, counted):
    load(folder)
    (made,) = (folder.parent / "cache").glob("images/*/00000.u8")
    here, pid, _ = temporary_name(made).name.removeprefix(".00000.u8.").split(".")
    assert int(pid) == os.getpid()
    made.rename(made.with_name(f".00000.u8.{here}.{2**22 + 1}.tmp"))  # no process can have this number
    other = made.with_name(".00000.u8.0badc0de.1.tmp")  # another machine's: there it may live
    other.write_bytes(b"half")
    assert load(folder).images[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]
    assert len(counted) == 12 and files_of(folder.parent / "cache") == [other.name, "00000.json", "00000.u8"]
    os.utime(other, (0, 0))
    made.unlink()
    load(folder)
    assert files_of(folder.parent / "cache") == ["00000.json", "00000.u8"]


def test_of_several_that_need_a_cache_one_decodes(folder, counted, monkeypatch):
    import tase.data.folders as folders

    original = folders.read_image
    monkeypatch.setattr(folders, "read_image", lambda *args: time.sleep(0.05) or original(*args))
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load(folder).images.tolist(), range(4)))
    assert sorted(counted) == [f"{i}.png" for i in range(6)] and all(images == loaded[0] for images in loaded)


def test_a_damaged_cache_is_made_again(folder, counted):
    first = load(folder).images.clone()  # its file is cut off next
    (cache,) = (path.parent for path in (folder.parent / "cache").glob("images/*/00000.u8"))
    os.truncate(cache / "00000.u8", 10)
    assert torch.equal(load(folder).images, first) and len(counted) == 12
    data = bytearray((cache / "00000.u8").read_bytes())
    data[50] ^= 1
    (cache / "00000.u8").write_bytes(data)
    assert torch.equal(load(folder).images, first) and len(counted) == 18
    (cache / "00000.json").write_text("{")
    assert torch.equal(load(folder).images, first)
    assert json.loads((cache / "00000.json").read_text())["bad"] == {}


@pytest.fixture
def two_a_shard(monkeypatch):
    monkeypatch.setattr("tase.data.sets.SHARD", 2 * 3 * 4 * 4 + 5)


def test_shards_hold_the_same_images(folder, two_a_shard, counted, monkeypatch):
    (folder / "3.png").write_text("no image")
    first = load(folder, on_bad_image="skip")
    assert files_of(folder.parent / "cache") == [f"0000{i}.{kind}" for i in range(3) for kind in ("json", "u8")]
    assert first.images[:, 0, 0, 0].tolist() == [0, 40, 80, 160, 200] and len(counted) == 6
    monkeypatch.setattr("tase.data.sets.LARGE", 0)
    mapped = load(folder, on_bad_image="skip")
    assert isinstance(mapped.images, Mapped) and isinstance(mapped.images.source, Shards)
    rows = torch.tensor([4, 0, 3, 3])
    assert torch.equal(mapped.images[rows], first.images[rows]) and torch.equal(mapped.images[2], first.images[2])
    assert torch.equal(mapped.subset(rows).images[:], first.images[rows]) and mapped.hash == first.hash
    assert len(counted) == 6


def test_whole_shards_are_kept_after_a_stop_and_damaged_ones_made_again(folder, two_a_shard, counted, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt_at(patched, "5.png")
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    assert files_of(folder.parent / "cache") == ["00000.json", "00000.u8", "00001.json", "00001.u8"]
    del counted[:]
    first = load(folder).images.clone()
    assert sorted(counted) == ["4.png", "5.png"] and first[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]
    (cache,) = (path.parent for path in (folder.parent / "cache").glob("images/*/00001.u8"))
    os.truncate(cache / "00001.u8", 10)
    data = bytearray((cache / "00002.u8").read_bytes())
    data[7] ^= 1
    (cache / "00002.u8").write_bytes(data)  # seen as soon as something has to be made
    del counted[:]
    assert torch.equal(load(folder).images, first) and sorted(counted) == ["2.png", "3.png", "4.png", "5.png"]


def test_several_processes_share_the_shards_out(folder, two_a_shard, monkeypatch):
    import tase.data.folders as folders

    original, makers, making = folders.read_image, [], folders._make

    def make(shard, *args):
        makers.append((threading.get_ident(), shard.path.name))
        making(shard, *args)

    monkeypatch.setattr(folders, "read_image", lambda *args: time.sleep(0.1) or original(*args))
    monkeypatch.setattr(folders, "_make", make)
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(lambda _: load(folder).images.tolist(), range(3)))
    assert sorted(name for _, name in makers) == ["00000.u8", "00001.u8", "00002.u8"]
    assert len({who for who, _ in makers}) > 1 and loaded[0] == loaded[1] == loaded[2]


def test_writing_to_the_images_leaves_the_cache(folder):
    images = load(folder).images
    images[:] = 9
    assert load(folder).images[0].max() == 0


def test_a_cache_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="data.cache"):
        load_images("folder", root=folder, image_size=4, cache=str(tmp_path / "file"))


def test_cache_folder_by_environment(folder, monkeypatch):
    monkeypatch.setenv("TASE_CACHE", str(folder.parent / "elsewhere"))
    load_images("folder", root=folder, image_size=4)
    assert len(list((folder.parent / "elsewhere").glob("images/*/00000.u8"))) == 1


def test_decode_folder_is_public(folder):
    files = [str(path) for path in sorted(folder.iterdir())]
    images, good = decode_folder(files, 4, "crop", "strict", folder.parent / "cache")
    with pytest.raises(ConfigError, match="no images to decode"):
        decode_folder([], 4, "crop", "strict", folder.parent / "cache")
    assert images.shape == (6, 3, 4, 4) and good.all()
