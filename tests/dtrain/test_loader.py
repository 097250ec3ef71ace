"""The loader: the batches of the plan whatever the threads, errors that arrive, nothing left behind."""

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from dtrain.data.loader import HostBatch, to_device
from dtrain.data.order import EpochOrder, Reading, SampleRefs
from dtrain.data.reader import ShardReader
from dtrain.data.workers import WorkerKind
from shard_tools.errors import UserError
from shard_tools.tar import member_header

from .conftest import ALL_WORKERS, IN_THE_LOOP, Shards, WorkerOptions, decode_processes, open_loader, pack

BATCH = 6


def reading(shards: Shards, epoch: int = 0, step: int = 0) -> Reading:
    order = EpochOrder(shards.lengths(), seed=1, stage=0, epoch=epoch, global_batch=BATCH)
    return order.reading(step, [range(BATCH)])


def plan(shards: Shards, epoch: int = 0) -> list[SampleRefs]:
    return list(reading(shards, epoch).batches)


def load(
    shards: Shards, *, workers: WorkerOptions = IN_THE_LOOP, size: int = 48, cache: int = 2**20
) -> list[HostBatch]:
    with open_loader(shards, workers=workers, size=size, cache=cache) as loader:
        return list(loader.batches(reading(shards)))


def raw(batch: HostBatch) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in (batch.bg, batch.fgbg, batch.depth, batch.mask)]


def loading() -> list[str]:
    """Threads and children of this process that load."""
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("load")]
    return threads + [str(child) for child in decode_processes()]


def test_batches_come_in_the_order_of_the_plan_with_the_pixels_of_the_files(shards: Shards) -> None:
    reader = ShardReader(shards.files, shards.manifest, "train", ("bg",))
    batches = load(shards, workers=WorkerOptions(2))
    assert len(batches) == 5
    for refs, batch in zip(plan(shards), batches, strict=True):
        places = zip(refs.shard.tolist(), refs.sample.tolist(), strict=True)
        assert batch.keys == [reader.read(*place)[0] for place in places]
        assert batch.bg.shape == batch.fgbg.shape == (BATCH, 48, 48, 3)
        assert batch.depth.shape == batch.mask.shape == (BATCH, 48, 48, 1)
        for row, key in enumerate(batch.keys):
            tensors = (batch.bg, batch.fgbg, batch.depth, batch.mask)
            for tensor, file in zip(tensors, shards.source_files(key), strict=True):
                expected = np.asarray(Image.open(file), dtype=np.int16).reshape(tensor.shape[1:])
                assert tensor.dtype == torch.uint8
                assert np.abs(tensor[row].numpy() - expected).max() <= 1, file


@pytest.mark.parametrize("workers", ALL_WORKERS[1:])
@pytest.mark.parametrize("cache", [0, 20_000, 2**20])
def test_workers_and_cache_change_nothing(shards: Shards, workers: WorkerOptions, cache: int) -> None:
    expected = load(shards)
    found = load(shards, workers=workers, cache=cache)
    assert [batch.keys for batch in found] == [batch.keys for batch in expected]
    assert [raw(batch) for batch in found] == [raw(batch) for batch in expected]


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_batches_are_read_only_a_little_ahead(shards: Shards, workers: WorkerOptions) -> None:
    asked: list[int] = []

    def lazily() -> Iterator[SampleRefs]:
        for refs in plan(shards):
            asked.append(len(asked))
            yield refs

    with open_loader(shards, workers=workers) as loader:
        batches = loader.batches(reading(shards)._replace(batches=lazily()))
        assert asked == []
        next(batches)
        ahead = {"thread": workers.count + 1, "process": 2 * workers.count}[workers.kind]
        assert len(asked) == min(ahead, len(plan(shards)))
        assert len(list(batches)) == len(plan(shards)) - 1


def test_a_loader_serves_epoch_after_epoch(shards: Shards) -> None:
    with open_loader(shards, workers=WorkerOptions(2)) as loader:
        epochs = [[key for batch in loader.batches(reading(shards, epoch)) for key in batch.keys] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 30


def spoil_an_image(shards: Shards) -> tuple[Path, str]:
    """Break the mask of one sample in a shard, leaving all lengths; returns shard and key."""
    path = shards.folder / "train-000002.tar"
    line = path.with_suffix(".idx").read_text().splitlines()[4].split(" ")
    extension, offset, size, name = next(
        tuple(line[i : i + 4]) for i in range(0, len(line), 4) if line[i] == "mask.jpg"
    )
    data = bytearray(path.read_bytes())
    start = int(offset)
    assert data[start - 512 : start] == member_header(name, int(size))
    data[start : start + int(size)] = bytes(int(size))
    path.write_bytes(data)
    return path, name.removesuffix(f".{extension}")


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_an_image_that_cannot_be_decoded_is_named_to_the_consumer(own_shards: Shards, workers: WorkerOptions) -> None:
    path, key = spoil_an_image(own_shards)
    (number,) = [number for number, batch in enumerate(load_keys(own_shards)) if key in batch]
    with open_loader(own_shards, workers=workers) as loader:
        batches = loader.batches(reading(own_shards))
        for _ in range(number):
            next(batches)
        with pytest.raises(UserError, match=rf"^{path}: sample '{key}': mask can't be decoded: "):
            next(batches)
    assert loading() == []


def load_keys(shards: Shards) -> list[list[str]]:
    reader = ShardReader(shards.files, shards.manifest, "train", ("bg",))
    return [
        [reader.read(*place)[0] for place in zip(refs.shard.tolist(), refs.sample.tolist(), strict=True)]
        for refs in plan(shards)
    ]


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_a_missing_shard_reaches_the_consumer(own_shards: Shards, workers: WorkerOptions) -> None:
    (own_shards.folder / "train-000003.tar").unlink()
    with (
        open_loader(own_shards, workers=workers) as loader,
        pytest.raises(UserError, match=r"train-000003\.tar: cannot be opened"),
    ):
        list(loader.batches(reading(own_shards)))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("kind", get_args(WorkerKind))
@pytest.mark.parametrize("finish", ["exhausted", "abandoned", "never begun", "dropped"])
def test_closing_leaves_no_workers_and_no_files(shards: Shards, finish: str, kind: WorkerKind) -> None:
    gc.collect()
    before, files_before = threading.active_count(), open_files()
    with open_loader(shards, workers=WorkerOptions(4, kind)) as loader:
        batches = loader.batches(Reading(iter(plan(shards) * 3), []))
        if finish == "exhausted":
            assert len(list(batches)) == 15
        elif finish != "never begun":
            next(batches)
            next(batches)
            assert loading() != []
        if finish == "dropped":
            del batches
    assert loading() == []
    assert threading.active_count() == before
    del loader
    if finish != "dropped":
        del batches
    assert open_files() == files_before


@pytest.mark.parametrize(("size", "side"), [(48, 48), (24, 24), (8, 12), (32, 36), (96, 48)])
def test_slots_are_scaled_by_the_decoder(shards: Shards, size: int, side: int) -> None:
    (batch, *_) = load(shards, size=size)
    assert batch.fgbg.shape == (BATCH, side, side, 3)
    assert batch.mask.shape == (BATCH, side, side, 1)
    whole = load(shards)[0]
    moved, expected = (to_device(loaded, torch.device("cpu"), size) for loaded in (batch, whole))
    assert (moved.images - expected.images).abs().mean() < 0.02
    assert (moved.depth - expected.depth).abs().mean() < 0.02


def test_on_the_device_everything_is_float_in_zero_to_one(shards: Shards) -> None:
    (batch, *_) = load(shards)
    moved = to_device(batch, torch.device("cpu"), 48)
    assert moved.keys == batch.keys
    assert moved.images.shape == (BATCH, 6, 48, 48)
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.images[:, :3], batch.bg.permute(0, 3, 1, 2) / 255)
    assert torch.equal(moved.images[:, 3:], batch.fgbg.permute(0, 3, 1, 2) / 255)
    assert torch.equal(moved.depth, batch.depth.permute(0, 3, 1, 2) / 255)
    assert torch.equal(moved.mask, batch.mask.permute(0, 3, 1, 2) / 255)
    other = to_device(batch, torch.device("cpu"), 32)
    assert other.images.shape == (BATCH, 6, 32, 32)
    for tensor in (other.images, other.depth, other.mask):
        assert tensor.dtype == torch.float32
        assert 0 <= float(tensor.min()) < float(tensor.max()) <= 1


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Shards]:
    made: dict[tuple[tuple[int, int], ...], Shards] = {}

    def make(*sizes: tuple[int, int]) -> Shards:
        if sizes not in made:
            made[sizes] = pack(tmp_path_factory.mktemp("sizes"), list(sizes), 6)
        return made[sizes]

    return make


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_images_of_several_sizes_are_brought_to_one(
    other_shards: Callable[..., Shards], workers: WorkerOptions
) -> None:
    shards = other_shards((48, 48), (64, 40), (30, 50), (56, 56))
    assert shards.manifest.component("bg").size is None
    batches = load(shards, workers=workers, size=32)
    assert {batch.fgbg.shape for batch in batches} == {(BATCH, 32, 32, 3)}
    for batch in batches:
        for row, key in enumerate(batch.keys):
            file = shards.source_files(key)[1]
            expected = Image.open(file).resize((32, 32), Image.Resampling.BILINEAR)
            assert np.abs(batch.fgbg[row].numpy() - np.asarray(expected, dtype=np.int16)).mean() < 6


def test_images_that_are_no_squares_keep_their_shape_until_they_are_on_the_device(
    other_shards: Callable[..., Shards],
) -> None:
    shards = other_shards((96, 48), (96, 48))
    (batch, *_) = load(shards, size=24)
    assert batch.fgbg.shape == (BATCH, 24, 48, 3)
    assert to_device(batch, torch.device("cpu"), 24).images.shape == (BATCH, 6, 24, 24)
