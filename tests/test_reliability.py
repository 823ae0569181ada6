"""Nothing lost, nothing silently wrong: kills, broken disks and files, foreign input, odd numbers."""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, _needed
from harness import Subjects, assert_equal, contents, pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tase
from tase.__main__ import main
from tase.config import ConfigError, fields
from tase.files import RunError, load_json, save_json
from tase.runs import RUN_FORMAT, kept_runs, load_checkpoint


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return Subjects(tmp_path_factory.mktemp("kill"), TINY)


# ---------------------------------------------------------------------------------------------------- kill it anywhere


@pytest.mark.parametrize(("name", "seed"), [("train", 1), ("train", 2), ("evaluate", 3), ("cache", 4), ("study", 5)])
def test_killed_anywhere_it_goes_on_to_the_same(name, seed, subjects):
    told = []
    while not told:  # a kill that came too late is none
        told = subjects.trial(name, str(seed), random.Random(seed), kills=1)
        seed += 100
    print(name, told)


def test_the_same_in_two_processes(subjects, trained):
    """Same seed, same machine, one thread: bit for bit, in this process and in another."""
    subjects.undisturbed("train")
    assert_equal(subjects.home / "train undisturbed" / "Lauf 1", learnt(trained[2].path))


# ------------------------------------------------------------------------------------------------------- disk and files


@pytest.fixture
def disk(tmp_path):
    """disk("300k"): a small file system of its own, disk("20m") makes it larger, disk("20m", "ro") read-only."""
    place = tmp_path / "kleine Platte"
    place.mkdir()

    def mount(size, mode="rw"):
        again = "remount," if place.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}{mode},size={size}", "tmpfs", str(place)]
        _needed(subprocess.run(command, capture_output=True).returncode == 0, "the right to mount a file system (root)")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def words_of(out, *sets, preset="digits-lt"):
    sets = [*(f"{k}={v}" for k, v in TINY.items()), *sets]
    return ["train", "--preset", preset, "--resume", "--quiet", "--out", str(out), "--set", *sets]


def refused(words, capsys):
    """The one line that the command line says."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in "".join(said)
    return errors[0]


@pytest.mark.parametrize("size", ["50k", "100k", "200k"])
def test_a_full_disk_stops_with_one_line_and_more_room_is_enough_to_go_on(size, disk, trained, capsys):
    out = disk(size) / "run"
    assert "cannot be written: No space left on device" in refused(words_of(out), capsys)
    disk("20m")
    assert main(words_of(out)) == 0
    assert_equal(out, learnt(trained[2].path))


def learnt(folder):
    return {k: v for k, v in contents(folder).items() if not k.startswith(("results", "features_test", "layouts"))}


def test_a_full_disk_under_the_cache(disk, tmp_path, capsys):
    root = pictures(tmp_path / "Bilder", 64, 8)
    sets = [f"data.root={root}", f"data.cache={disk('100k') / 'cache'}", "data.image_size=32", "optim.epochs=1"]
    sets += ["guidance.clusters=4"]
    for _ in range(2):  # the second time the file is there, without its blocks
        assert "No space left" in refused(words_of(tmp_path / "run", *sets, preset="folder"), capsys)
    disk("20m")
    assert main(words_of(tmp_path / "run", *sets, preset="folder")) == 0


def test_a_read_only_disk_can_be_read(disk, trained, capsys):
    place = disk("20m")
    shutil.copytree(trained[2].path, place / "run")
    disk("20m", "ro")
    run = tase.Run(place / "run")
    assert run.results == trained[2].results and np.array_equal(run.history.tau, trained[2].history.tau)
    assert main(["evaluate", str(run.path), "--quiet"]) == 0
    for words in (words_of(place / "run"), words_of(place / "new")):
        assert "cannot be written: Read-only file system" in refused(words, capsys)
    assert "Read-only" in refused(["evaluate", str(run.path), "--protocols", "lt-svm", "--quiet"], capsys)


def test_a_folder_removed_under_a_run(tiny, tmp_path):
    with pytest.raises(RunError, match="cannot be written: No such file or directory"):
        tase.train(tiny(), tmp_path / "run", on_epoch=lambda run: shutil.rmtree(run.path), progress=False)


def test_a_run_may_be_moved(trained, tmp_path):
    tase.train(trained[2].config, tmp_path / "Läufe (alt)" / "ein Lauf", until=4, progress=False)
    shutil.move(tmp_path / "Läufe (alt)", tmp_path / "neu")
    run = tase.train(trained[2].config, tmp_path / "neu" / "ein Lauf", resume=True, progress=False)
    assert_equal(run.path, learnt(trained[2].path))


def everything(folder):
    """All that a reader sees of a run."""
    run, found = tase.Run(folder), {}
    for name in ("epoch", "tau", "weight", "pseudo_label", "headness", "loss", "labels", "counts", "groups"):
        found[name] = getattr(run.history, name)
    found |= {"quality": repr(run.history.quality), "results": repr(run.results), "config": run.identity}
    found |= {"environment": repr(run.environment), "status": repr(run.status), "test": run.test_features[0]}
    found |= {f"features {t}": run.history.features(t) for t in range(len(run.history))}
    state = load_checkpoint(folder, run.config.identity)
    return found | {k: v.numpy() for k, v in (run.encoder().state_dict() | state["network"]).items()}


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b


FILES = "config.json environment.json status.json results.json features_test.npz checkpoint.pt".split()  # noqa: SIM905
FILES += ["encoder.safetensors", "encoder.json", "history/epoch_000004.npz", "history/labels.npz"]


@pytest.mark.parametrize("name", FILES)
def test_no_damage_goes_unnoticed(name, trained, tmp_path):
    """What is read of a damaged file is what was written, or there is a warning or a RunError."""
    folder, rng = shutil.copytree(trained[2].path, tmp_path / "run"), random.Random(0)
    whole, told = (folder / name).read_bytes(), 0
    before = everything(folder)
    for trial in range(16):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(damaged if trial % 4 else whole[: rng.randrange(len(whole))])
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                after = everything(folder)
            except RunError as error:
                assert str(folder) in str(error)
                told += 1
                continue
        told += bool(warned)
        assert warned or all(same(before[key], after[key]) for key in before)
    assert told >= 8


def test_every_flipped_bit_of_a_small_file_is_noticed(tmp_path):
    path, value = tmp_path / "status.json", {"state": "training", "epoch": 3, "loss": [0.25, None]}
    save_json(path, value)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ (1 << bit % 8)]) + whole[bit // 8 + 1 :])
        with contextlib.suppress(RunError):
            assert load_json(path) == value


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json", "history/epoch_000008.npz", "status.json"])
def test_what_can_be_made_again_is(name, trained, tmp_path):
    folder = shutil.copytree(trained[2].path, tmp_path / "run")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match="damaged"):
        tase.train(trained[2].config, folder, resume=True, progress=False)
    assert_equal(folder, contents(trained[2].path))


def test_damaged_results_are_measured_again(trained, tmp_path):
    folder = shutil.copytree(trained[2].path, tmp_path / "run")
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text.replace('"all": ', '"all": 1', 1))
    with pytest.warns(UserWarning, match="does not have its checksum"):
        again = tase.evaluate(tase.Run(folder), ["lt-knn"], progress=False)
    assert again["protocols"].items() <= trained[2].results["protocols"].items()


def test_a_request_that_is_wrong_does_not_end_a_training(tiny, tmp_path):
    """control.json is written by others: half of one, nonsense, and values that are not possible."""
    sets = ('[1], "set": {"optim.lr": 1}', '"a", "set": {"guidance.tau_max": "x"}', '"b", "set": {"optim.lr": 1}')
    wrong = iter(["{", "[1]", *(f'{{"id": {of}}}' for of in sets)])

    def spoil(run):
        (run.path / "control.json").write_text(next(wrong, "{}"))

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run = tase.train(tiny(guidance__refresh=1), tmp_path / "run", on_epoch=spoil, progress=False)
    assert run.finished and not run.steered and len(warned) >= 4


# ----------------------------------------------------------------------------------------------------- untrusted input


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_from_others_is_executed(zipped, trained, tiny, tmp_path):
    run = tase.Run(shutil.copytree(trained[2].path, tmp_path / "run"))
    evil = Evil(tmp_path / "executed")
    (run.path / "encoder.safetensors").unlink()
    torch.save({"meta": evil, "weights": {}}, run.path / "encoder.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RunError, match="damaged, or no encoder"):
        run.encoder()
    np.save(tmp_path / "list.npy", np.array([evil, evil], dtype=object), allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(evil))
    for name in ("list.npy", "raw.npy"):
        config = tiny(data__rule="file", data__list_file=str(tmp_path / name))
        with pytest.raises(ConfigError, match="cannot be read as .npy"):
            tase.load_splits(config)
    assert not evil.mark.exists()


words = st.one_of(
    st.text(max_size=20),
    st.integers(-(10**400), 10**400).map(str),
    st.floats().map(str),
    st.sampled_from(["1e308", "1" * 5000, "-0", "[[[", "1,2,,", "true", "\0", "\ud800", "ß" * 300, "=", "0x10", "1_0"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([n for n in fields() if not n.startswith("data.source")]), words)
def test_any_word_on_the_command_line_gives_a_result_or_one_line(capsys, name, word):
    capsys.readouterr()
    code = main(["info", "--preset", "digits-lt", "--set", f"{name}={word}"])
    said = capsys.readouterr().err
    assert code == 0 or (code == 2 and said.startswith("error: ") and "Traceback" not in said)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*fields(), "preset", "data", "optim", "x.y"]), json_values)
def test_any_saved_configuration_opens_or_is_a_run_error(tmp_path, name, value):
    saved = tase.preset("digits-lt").to_dict()
    place = saved
    for part in name.split(".")[:-1]:
        place = place.setdefault(part, {})
    place[name.split(".")[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "config": saved}))
    try:
        assert tase.Run(tmp_path).config.to_dict() is not None
    except RunError as error:
        assert str(tmp_path) in str(error)


def png_header(width, height):
    def part(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0" * 10**6)) + part(b"IEND", b"")


def test_a_corpus_of_broken_images_is_skipped_in_bounded_memory(tmp_path, caplog):
    """Every format, whole, cut off and with flipped bits; wrong extensions; sizes that are only claimed."""
    root, rng = tmp_path / "corpus", random.Random(0)
    root.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "ICO"):
        picture.save(buffer := io.BytesIO(), format=kind)
        whole = buffer.getvalue()
        (root / f"whole-{kind}.png").write_bytes(whole)  # whatever it is, its name says PNG
        for trial in range(12):
            damaged = bytearray(whole if trial % 3 else whole[: rng.randrange(len(whole))])
            for _ in range(trial and len(damaged) and 3):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            (root / f"{kind}-{trial}.jpg").write_bytes(damaged)
    for side in (14_000, 60_000, 2**31 - 1):
        (root / f"bomb-{side}.png").write_bytes(png_header(side, side))
    (root / "bomb.gif").write_bytes(b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0" * 20)
    (root / "bomb.bmp").write_bytes(b"BM" + b"\0" * 12 + struct.pack("<IiiHHIIiiII", 40, 30000, 30000, 1, 24, *[0] * 6))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of the files
        images = tase.load_images("folder", root=root, image_size=8, cache=str(tmp_path), on_bad_image="skip")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    names = {Path(path).stem for path in images.paths}
    assert {name for name in names if name.startswith("whole")} == {p.stem for p in root.glob("whole*")}
    assert not {name for name in names if name.startswith("bomb")} and len(names) < 9 * 13
    assert grown < 1200, f"{grown:.0f} MiB"  # an image at the limit of 179 million pixels is 512 MiB as RGB


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("tau", [0.01, 0.05, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_the_loss_of_half_precision_is_within_its_rounding(tau, dtype, digits):
    """Cosines of rounded embeddings are off by 2^-digits at most, a loss by twice that over tau."""
    z = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    losses = []
    for kind in (torch.float32, dtype):
        z1, z2 = (x.to(kind).requires_grad_() for x in z)
        out = tase.nt_xent(z1, z2, tau=tau)
        out.loss.backward()
        assert z1.grad.isfinite().all() and z2.grad.isfinite().all()
        losses.append(out.loss.item())
    assert abs(losses[0] - losses[1]) <= 2 * 2**-digits / tau


ODD = {
    "identical": lambda rng: np.repeat(rng.integers(0, 256, (1, 8, 8, 3)), 48, 0),
    "constant": lambda rng: np.zeros((48, 8, 8, 3)),
    "each constant": lambda rng: np.broadcast_to(np.arange(0, 240, 5)[:, None, None, None], (48, 8, 8, 3)),
    "duplicates": lambda rng: np.repeat(rng.integers(0, 256, (8, 8, 8, 3)), 6, 0),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # that the clusters say nothing about quantity, rightly
@pytest.mark.parametrize("method", ["tase", "mm-ts", "isogclr-tau", "oracle"])
@pytest.mark.parametrize("labels", ["no labels", "one class"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_images_are_trained_on_or_refused_with_a_reason(odd, labels, method, tmp_path):
    root = tmp_path / "my" / ("a" if labels == "one class" else "")
    root.mkdir(parents=True)
    for i, image in enumerate(ODD[odd](np.random.default_rng(0)).astype(np.uint8)):
        Image.fromarray(image).save(root / f"{i:02}.png")
    sets = {"data.root": tmp_path / "my", "data.cache": tmp_path, "data.image_size": 8, "optim.epochs": 3}
    sets |= {"optim.batch": 16, "model.channels": "4,4,4,4", "guidance.warmup": 0, "guidance.refresh": 1}
    sets |= {"guidance.clusters": 1 if odd == "duplicates" else 4, "data.rule": "none"}
    config = tase.preset("folder", method, overrides={k: str(v) for k, v in sets.items()})
    if method == "oracle" and labels == "no labels":
        with pytest.raises(ConfigError, match="labels"):
            tase.train(config, tmp_path / "run", progress=False)
        return
    run = tase.train(config, tmp_path / "run", progress=False)
    h = run.history
    assert run.finished and np.isfinite(run.metrics["loss"]).all()
    assert np.isfinite(h.tau).all() and (h.tau > 0).all() and np.isfinite(h.weight).all() and (h.weight > 0).all()


def test_fewer_images_than_a_batch_name_the_field(tiny, tmp_path, capsys):
    assert "optim.batch = 406" in refused([*words_of(tmp_path / "run"), "optim.batch=406"], capsys)


def test_what_holds_on_a_gpu(cuda, tiny, tmp_path):
    """Same seed: the same images, batches and views bit for bit; losses agree to rounding (sums are not ordered)."""
    config, views = tiny(optim__device="cuda", optim__precision="float32", optim__epochs=1), []
    losses = [tase.train(config, tmp_path / str(i), progress=False).metrics["loss"].iloc[0] for i in range(2)]
    images = tase.load_splits(config).train.images[:64].to(cuda)
    for _ in range(2):
        views.append(tase.two_views(images, config.views, tase.training.generator(0, "views", cuda)))
    assert torch.equal(views[0][0], views[1][0]) and torch.equal(views[0][1], views[1][1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


# ------------------------------------------------------------------------------------------------------------- versions


def test_runs_of_older_formats_open_and_newer_ones_say_so(trained, tmp_path):
    kept = kept_runs(Path(__file__).parent.parent / "figures" / "fashion-mnist-lt-small")
    assert kept
    for run in kept:  # of format 1
        assert run.config.identity == json.loads((run.path / "config.json").read_text())["identity"]
    saved = json.loads((trained[2].path / "config.json").read_text())
    assert saved["format"] == RUN_FORMAT
    told = {RUN_FORMAT + 1: "newer tase", 0: "no format", None: "no format", "2": "no format", True: "no format"}
    for form, why in told.items():
        (tmp_path / "config.json").write_text(json.dumps({"format": form, "config": saved["config"]}))
        with pytest.raises(RunError, match=why):
            tase.Run(tmp_path)
