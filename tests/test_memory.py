"""Images that do not fit into memory are fetched by batch, and nothing else changes."""

import shutil
import threading

import pytest
import torch
from test_training import assert_same_run

import tase
from tase.data import Mapped, batches, epoch_order, place
from tase.training import Training, train

CPU = torch.device("cpu")


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reads(monkeypatch):
    """Images in each read, and the thread that did it."""
    seen, real = [], Mapped.read

    def counting(self, rows):
        out = real(self, rows)
        seen.append((len(out), threading.current_thread().name))
        return out

    monkeypatch.setattr(Mapped, "read", counting)
    return seen


def whole(images):
    return Mapped(images, torch.arange(len(images)))


def test_mapped_images_are_used_as_a_tensor_is(images):
    index = torch.randperm(40)[:31]
    for mapped, plain in ((whole(images), images), (Mapped(images, index), images[index])):
        assert len(mapped) == len(plain) and mapped.shape == plain.shape and mapped.dtype == plain.dtype
        for rows in (
            3,
            slice(4, 9),
            slice(None, None, 7),
            torch.tensor([5, 5, 0]),
            torch.tensor([], dtype=torch.int64),
        ):
            assert torch.equal(mapped[rows], plain[rows])
        assert mapped[3].shape == mapped.shape[1:] and torch.equal(place(mapped, CPU, 1.0)[0], plain)


def test_a_large_choice_of_images_is_not_copied(images, monkeypatch):
    every, some = tase.ImageSet(images, hash="0"), torch.tensor([7, 3, 30])
    assert isinstance(every.subset(some).images, torch.Tensor)
    monkeypatch.setattr("tase.data.sets.LARGE", 100)
    part = every.subset(some)
    assert isinstance(part.images, Mapped) and part.images.source.data_ptr() == images.data_ptr()
    assert torch.equal(part.images[:], images[some]) and part.hash == every.subset(some).hash
    again = part.subset(torch.tensor([2, 0])).images
    assert isinstance(again, Mapped) and again.source is part.images.source and torch.equal(again[:], images[[30, 7]])


def test_the_budget_decides_and_says_so(images):
    gib = images.numel() / 2**30
    assert place(images, CPU)[0] is images and place(images, CPU, gib)[0] is images
    fetched, words = place(images, CPU, gib * 0.99)
    assert isinstance(fetched, Mapped) and words == "40 images, 3.5 KiB: fetched batch by batch to cpu"
    assert isinstance(place(whole(images), CPU)[0], Mapped)
    loaded, words = place(whole(images), CPU, 1.0)
    assert torch.equal(loaded, images) and words.endswith("resident on cpu")


def test_the_next_batch_is_read_meanwhile(images, reads):
    parts = list(torch.arange(40).split(16))
    got = batches(whole(images), parts)
    first = next(got)
    assert torch.equal(first, images[:16])
    got.close()  # ends the reader
    assert [n for n, _ in reads] == [16, 16] and all(name.startswith("images") for _, name in reads)
    for source in (images, whole(images)):
        assert all(torch.equal(a, images[i]) for a, i in zip(batches(source, parts), parts, strict=True))


def test_batches_come_to_a_gpu_through_pinned_memory(cuda, images):
    index, parts = torch.randperm(40), list(torch.arange(40).split(16))
    mapped = Mapped(images, index, cuda)
    assert torch.equal(place(mapped, cuda, 1.0)[0].cpu(), images[index])
    assert mapped.read(parts[0]).is_pinned() and mapped.read(slice(3, 9)).is_pinned()
    for batch, part in zip(batches(mapped, parts), parts, strict=True):
        assert batch.device.type == "cuda" and torch.equal(batch.cpu(), images[index[part]])


def test_encoding_reads_a_batch_at_a_time(images, reads):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    expected = tase.encode(module, images, batch=16)
    assert torch.equal(tase.encode(module, whole(images), batch=16), expected)
    assert [n for n, _ in reads] == [16, 16, 8]
    torch.testing.assert_close(tase.encode(module, whole(images), batch=16, rows=slice(5, 30)), expected[5:30])


def test_batches_and_the_trained_run_are_the_same_both_ways(tiny, trained, tmp_path, reads):
    config = tase.override(trained[2].config, {"optim.image_memory": 1e-9})
    sets = tase.load_splits(config).train
    mapped = Training(config, sets)
    assert isinstance(mapped.images, Mapped) and not isinstance(Training(tiny(), sets).images, Mapped)
    assert mapped.placed == "405 images, 25.3 KiB: fetched batch by batch to cpu"
    assert_same_run(train(config, tmp_path / "run"), trained[2])
    assert max(n for n, _ in reads) <= 405 and sum(n == 64 for n, _ in reads) == 8 * (405 // 64)


def test_an_evaluation_of_mapped_images_is_the_same(trained, tmp_path, monkeypatch):
    shutil.copytree(trained[2].path, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    monkeypatch.setattr("tase.data.sets.LARGE", 0)
    run = tase.Run(tmp_path / "run")
    assert isinstance(run.splits.probe.images, Mapped)
    results = tase.evaluate(run, protocols=["lt-knn", "few-shot"], progress=False)
    for name in ("lt-knn@1", "few-shot"):
        assert results["protocols"][name] == trained[2].results["protocols"][name]


# ---------------------------------------------------------------------------------------------------- order of an epoch


def test_what_fits_into_the_window_has_a_uniform_order(images):
    gib = images.numel() / 2**30
    for source in (images, whole(images)):
        order = epoch_order(source, torch.Generator().manual_seed(3), gib)
        assert torch.equal(order, torch.randperm(40, generator=torch.Generator().manual_seed(3)))


def test_else_shards_are_permuted_and_rows_among_those_of_a_window(images, monkeypatch):
    monkeypatch.setattr("tase.data.sets.SHARD", 5 * images[0].numel())  # 8 shards of 5 images
    generator, gib = torch.Generator().manual_seed(0), images[0].numel() * 10 / 2**30  # a window of 2
    orders = [epoch_order(images, generator, gib) for _ in range(400)]
    shards = torch.stack(orders) // 5
    assert all(torch.equal(order.sort().values, torch.arange(40)) for order in orders)
    windows = [tuple(part.unique().tolist()) for part in shards[0].split(10)]
    assert all(len(window) == 2 for window in windows) and len(set(sum(windows, ()))) == 8
    assert len({tuple(window) for row in shards for window in row[:10].unique()[None].tolist()}) == 28  # all pairs
    first = torch.stack([order[0] for order in orders]).bincount(minlength=40)
    assert (first - 10).abs().max() < 4 * 10**0.5  # any image may be the first
    own = torch.randperm(40)[:30]
    mixed = epoch_order(Mapped(images, own), torch.Generator().manual_seed(1), gib)
    parts = [own[mixed[i : i + 5]] // 5 for i in range(0, 30, 5)]
    assert max(len(part.unique()) for part in parts) <= 4  # a step sees few shards: two windows' at most


def test_a_run_with_a_window_resumes_exactly_and_is_the_same_wherever_its_images_lie(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tase.data.sets.SHARD", 40 * 64)
    config = tiny("simclr", optim__window=100 * 64 / 2**30, optim__epochs=3, record__checkpoint_every=1)
    run = train(config, tmp_path / "whole", progress=False)
    assert config.identity != tiny("simclr", optim__epochs=3).identity
    plain = train(tiny("simclr", optim__epochs=3), tmp_path / "plain", progress=False)
    assert not torch.equal(*(next(iter(r.encoder().parameters())) for r in (run, plain)))
    elsewhere = tase.override(config, {"optim.image_memory": 1e-9})
    train(elsewhere, tmp_path / "stopped", until=1, progress=False)
    again = train(elsewhere, tmp_path / "stopped", resume=True, progress=False)
    for name, weights in run.encoder().state_dict().items():
        assert torch.equal(weights, again.encoder().state_dict()[name])
