"""Streams of tars without an index: what is drawn, what is evaluated, and that nothing is lost without a word."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dtrain.config import DataConfig, StreamConfig
from dtrain.data.dataset import Dataset, open_dataset
from dtrain.data.loader import HostBatch
from dtrain.data.order import EpochOrder, Reading, SampleRefs, cut, in_packing_order
from shard_tools.errors import UserError

from ..servers import Fault, Nginx, SpoilingProxy, needs_nginx, nginx
from .conftest import Shards

TRAIN, TEST = 30, 10
BATCH = 6
CPU = torch.device("cpu")
BLOCK = 512

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def folder(shards: Shards, tmp_path: Path) -> Path:
    """The tars of the shards and nothing else: train-000000 to 3 and test-000000 to 1."""
    out = tmp_path / "tars"
    out.mkdir()
    for tar in shards.folder.glob("*.tar"):
        shutil.copy(tar, out)
    return out


def data_config(place: Path | str, *, suffix: str = ".tar", threads: int = 0, **options: object) -> DataConfig:
    """A configuration of the tars at `place`; `options` are for data, or for data.stream where it has such a key."""
    stream = {
        "train": f"{place}/train-{{000000..000003}}{suffix}",
        "test": f"{place}/test-{{000000..000001}}{suffix}",
        "train_samples": TRAIN,
        "test_samples": TEST,
        "shuffle": 8,
    }
    stream |= {key: value for key, value in options.items() if key in StreamConfig.model_fields}
    others = {key: value for key, value in options.items() if key not in StreamConfig.model_fields}
    return DataConfig.model_validate({"loader": "webdataset", "workers": threads, "stream": stream, **others})


def open_tars(place: Path | str, **options: object) -> Dataset:
    return open_dataset(data_config(place, **options))  # type: ignore[arg-type]


def load(dataset: Dataset, reading: Reading, split: str = "test", size: int = 48) -> list[HostBatch]:
    with closing(dataset.loader(split, size=size, device=CPU)) as loader:
        return list(loader.batches(reading))


def load_test(dataset: Dataset, size: int = 48) -> list[HostBatch]:
    return load(dataset, in_packing_order([TEST], range(TEST), 4), size=size)


def training(
    *, epoch: int = 0, step: int = 0, rows: range = range(BATCH), lengths: list[int] | None = None, seed: int = 1
) -> Reading:
    order = EpochOrder(lengths or [TRAIN], seed=seed, stage=0, epoch=epoch, global_batch=BATCH)
    return order.reading(step, [rows])


def draw(dataset: Dataset, reading: Reading | None = None) -> list[str]:
    """The keys that are trained on."""
    return keys(load(dataset, reading or training(), "train"))


def keys(batches: list[HostBatch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def raw(batch: HostBatch) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in (batch.bg, batch.fgbg, batch.depth, batch.mask)]


def keys_in(*tars: Path) -> list[str]:
    """Keys in the order of the files."""
    found = []
    for path in tars:
        with tarfile.open(path) as tar:
            found += [name.partition(".")[0] for name in tar.getnames() if name.endswith(".mask.jpg")]
    return found


def keys_of_the_test_split(folder: Path) -> list[str]:
    return keys_in(*sorted(folder.glob("test-*.tar")))


# Evaluation: each test sample once, in the order of the stream.


@pytest.mark.parametrize("threads", [0, 2])
def test_the_test_split_is_read_in_its_order_with_the_pixels_of_the_files(
    folder: Path, shards: Shards, threads: int
) -> None:
    batches = load_test(open_tars(folder, threads=threads))
    assert [len(batch.keys) for batch in batches] == [4, 4, 2]
    assert keys(batches) == keys_of_the_test_split(folder)
    for batch in batches:
        for row, key in enumerate(batch.keys):
            tensors = (batch.bg, batch.fgbg, batch.depth, batch.mask)
            for tensor, file in zip(tensors, shards.source_files(key), strict=True):
                expected = np.asarray(Image.open(file), dtype=np.int16).reshape(tensor.shape[1:])
                assert tensor.dtype == torch.uint8
                assert np.abs(tensor[row].numpy() - expected).max() <= 1, file


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("processes", [1, 2, 3, 7, 12])
def test_processes_share_the_test_split_whatever_their_number(folder: Path, processes: int, batch: int) -> None:
    parts = [load(open_tars(folder, threads=1), in_packing_order([TEST], rows, batch)) for rows in cut(TEST, processes)]
    assert [key for part in parts for key in keys(part)] == keys_of_the_test_split(folder)


@pytest.mark.parametrize("size", [16, 24, 32, 48, 64])
def test_images_come_in_the_size_that_is_trained_on(folder: Path, size: int) -> None:
    (batch, *_) = load_test(open_tars(folder), size=size)
    assert batch.bg.shape == batch.fgbg.shape == (4, size, size, 3)
    assert batch.depth.shape == batch.mask.shape == (4, size, size, 1)


def test_exact_decoding_gives_the_pixels_of_pillow(folder: Path, shards: Shards) -> None:
    (batch, *_) = load_test(open_tars(folder, decode="exact"), size=24)
    image = Image.open(shards.source_files(batch.keys[0])[1]).resize((24, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(batch.fgbg[0].numpy(), np.asarray(image))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}


def compress(folder: Path, suffix: str) -> None:
    """Replace every tar by a compressed one."""
    for tar in folder.glob("*.tar"):
        tar.with_suffix(suffix).write_bytes(COMPRESS[suffix](tar.read_bytes()))
        tar.unlink()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_tars_give_the_same(folder: Path, suffix: str) -> None:
    expected = [*load_test(open_tars(folder)), *load(open_tars(folder), training(), "train")]
    compress(folder, suffix)
    dataset = open_tars(folder, suffix=suffix, threads=2)
    found = [*load_test(dataset), *load(dataset, training(), "train")]
    assert [batch.keys for batch in found] == [batch.keys for batch in expected]
    assert [raw(batch) for batch in found] == [raw(batch) for batch in expected]


def test_zstd_is_refused_by_its_name(folder: Path) -> None:
    (folder / "test-000000.tar").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(1000))
    with pytest.raises(UserError, match=r"test-000000\.tar: can't be read: .*zstd"):
        load_test(open_tars(folder))


@pytest.mark.parametrize("threads", [0, 2])
def test_the_train_split_can_be_read_in_its_order_too(folder: Path, threads: int) -> None:
    dataset = open_tars(folder, threads=threads)
    expected = keys_in(*sorted(folder.glob("train-*.tar")))
    with closing(dataset.loader("train", size=16, device=CPU)) as loader:
        drawn = keys(list(loader.batches(training())))
        parts = [in_packing_order(dataset.lengths("train"), rows, 4) for rows in cut(TRAIN, 2)]
        assert [key for part in parts for key in keys(list(loader.batches(part)))] == expected
        assert keys(list(loader.batches(training()))) == drawn != expected


def test_a_bad_sample_is_left_out_of_a_train_split_in_its_order(folder: Path) -> None:
    expected = keys_in(*sorted(folder.glob("train-*.tar")))
    spoil_images(folder / "train-000000.tar", "mask.jpg", expected[1])
    dataset = open_tars(folder, on_bad_sample="replace")
    batches = load(dataset, in_packing_order(dataset.lengths("train"), range(TRAIN), 4), "train")
    assert keys(batches) == [expected[0], *expected[2:]]
    assert [(sample.key, sample.used) for batch in batches for sample in batch.bad] == [(expected[1], None)]


def test_a_train_split_in_its_order_may_be_shorter_or_longer_than_an_epoch(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    longer, shorter = open_tars(folder, train_samples=5000), open_tars(folder, train_samples=8)
    message = r"^data\.stream\.train: holds 30 samples, but data\.stream\.train_samples is 5000; set it to 30"
    with pytest.raises(UserError, match=message):
        load(longer, in_packing_order(longer.lengths("train"), range(4090, 5000), 4), "train")
    drawn = load(shorter, in_packing_order(shorter.lengths("train"), range(8), 4), "train")
    assert keys(drawn) == keys_in(*sorted(folder.glob("train-*.tar")))[:8]
    assert "data.stream.train: holds more samples than data.stream.train_samples (8)" in capfd.readouterr().err


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_process_begins_far_into_a_split_where_its_own_samples_stand(tmp_path: Path, split: str) -> None:
    pixel = io.BytesIO()
    Image.new("L", (8, 8)).save(pixel, "JPEG")
    path, count = tmp_path / "many.tar", 4100
    with tarfile.open(path, "w") as tar:
        for sample in range(count):
            for member in ("bg", "fgbg", "depth", "mask"):
                info = tarfile.TarInfo(f"{sample:04}.{member}.jpg")
                info.size = len(pixel.getvalue())
                tar.addfile(info, io.BytesIO(pixel.getvalue()))
    dataset = open_tars(tmp_path, train=str(path), test=str(path), train_samples=count, test_samples=count)
    reading = in_packing_order(dataset.lengths(split), range(4094, count), 4)
    assert keys(load(dataset, reading, split, size=8)) == [f"{sample:04}" for sample in range(4094, count)]


@pytest.mark.parametrize("promised", [11, 40])
def test_fewer_test_samples_than_promised_are_counted_for_the_user(folder: Path, promised: int) -> None:
    for rows in cut(promised, 2)[1:], cut(promised, 1):
        with pytest.raises(
            UserError, match=rf"holds 10 samples, but data.stream.test_samples is {promised}; set it to 10"
        ):
            load(open_tars(folder, test_samples=promised), in_packing_order([promised], rows[0], 4))


def test_more_test_samples_than_promised_are_told_once_by_the_process_that_ends(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = open_tars(folder, test_samples=9, threads=1)
    first, last = (in_packing_order([9], rows, 4) for rows in cut(9, 2))
    assert keys(load(dataset, first)) == keys_of_the_test_split(folder)[:4]
    assert capfd.readouterr().err == ""
    assert keys(load(dataset, last)) == keys_of_the_test_split(folder)[4:9]
    assert "holds more samples than data.stream.test_samples (9)" in capfd.readouterr().err
    load(dataset, in_packing_order([9], range(9), 4))
    assert capfd.readouterr().err == ""


def test_as_many_as_promised_say_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_test(open_tars(folder))
    assert capfd.readouterr().err == ""


# Training: drawn again and again, shuffled, other samples for everyone.


def test_an_epoch_is_as_many_draws_as_the_configuration_says(folder: Path) -> None:
    dataset = open_tars(folder, train_samples=20_000)
    lengths = dataset.lengths("train")
    assert sum(lengths) == 20_000
    assert dataset.lengths("test") == [TEST]
    drawn = draw(dataset, training(lengths=lengths, step=20_000 // BATCH - 40))
    assert len(drawn) == 40 * BATCH
    assert set(drawn) == set(keys_in(*folder.glob("train-*.tar")))
    assert max(Counter(drawn).values()) > 1


def test_batches_have_the_sizes_that_are_asked_for(folder: Path) -> None:
    order = EpochOrder([TRAIN], seed=1, stage=0, epoch=0, global_batch=BATCH)
    batches = load(open_tars(folder, threads=2), order.reading(1, [range(1), range(1, 4)]), "train")
    assert [len(batch.keys) for batch in batches] == [1, 3] * 4
    assert [batch.mask.shape[0] for batch in batches] == [1, 3] * 4


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("shuffle", [0, 1, 8, 1000])
def test_the_same_place_draws_the_same_whatever_the_threads(folder: Path, threads: int, shuffle: int) -> None:
    expected = load(open_tars(folder, shuffle=shuffle), training(epoch=3, step=2), "train")
    found = load(open_tars(folder, shuffle=shuffle, threads=threads), training(epoch=3, step=2), "train")
    assert [batch.keys for batch in found] == [batch.keys for batch in expected]
    assert [raw(batch) for batch in found] == [raw(batch) for batch in expected]


def test_epochs_steps_seeds_and_processes_draw_other_samples(folder: Path) -> None:
    dataset = open_tars(folder)
    drawn = [
        draw(dataset, training(epoch=epoch, step=step, seed=seed, rows=rows))[:6]
        for epoch in (0, 1, 2)
        for step in (0, 3)
        for seed in (1, 2)
        for rows in (range(3), range(3, 6))
    ]
    assert len(set(map(tuple, drawn))) == len(drawn)


def test_epochs_with_one_sample_a_process_do_not_begin_alike(folder: Path) -> None:
    dataset = open_tars(folder)
    drawn = {tuple(draw(dataset, training(epoch=epoch, rows=range(1)))) for epoch in range(40)}
    assert len(drawn) == 40


def test_the_shuffle_buffer_mixes_tars(folder: Path) -> None:
    owner = {key: tar for tar in folder.glob("train-*.tar") for key in keys_in(tar)}

    def changes(shuffle: int) -> int:
        drawn = draw(open_tars(folder, shuffle=shuffle, train_samples=240), training(lengths=[240]))
        return sum(owner[one] != owner[other] for one, other in pairwise(drawn))

    assert changes(0) <= 240 / 6
    assert changes(200) > 240 / 3


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_are_asked_for_only_a_little_ahead(folder: Path, threads: int) -> None:
    asked: list[int] = []

    def lazily() -> Iterator[SampleRefs]:
        for refs in training(lengths=[600]).batches:
            asked.append(len(asked))
            yield refs

    with closing(open_tars(folder, threads=threads).loader("train", size=16, device=CPU)) as loader:
        batches = loader.batches(training()._replace(batches=lazily()))
        assert asked == []
        next(batches)
        assert len(asked) <= 8 + threads + 1


def test_a_loader_serves_one_reading_after_the_other(folder: Path) -> None:
    with closing(open_tars(folder, threads=2).loader("train", size=16, device=CPU)) as loader:
        drawn = [keys(list(loader.batches(training(epoch=epoch)))) for epoch in (0, 1, 0)]
        next(loader.batches(training(epoch=1)))
        again = keys(list(loader.batches(training(epoch=1))))
    assert [len(epoch) for epoch in drawn] == [TRAIN] * 3
    assert drawn[0] == drawn[2] != drawn[1] == again


def test_an_epoch_that_is_over_reads_nothing(folder: Path) -> None:
    with closing(open_tars(folder).loader("train", size=16, device=CPU)) as loader:
        for tar in folder.glob("train-*.tar"):
            tar.unlink()
        assert list(loader.batches(training(step=TRAIN // BATCH))) == []


# What is wrong is one message that names the tar.


def cut_at(data: bytes, sample: int, member: int = 0, more: int = 0) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return data[: tar.getmembers()[5 * sample + member].offset + more]


def spoil(data: bytes, at: int, count: int = 100) -> bytes:
    return data[:at] + bytes(byte ^ 255 for byte in data[at : at + count]) + data[at + count :]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut between samples": (lambda data: cut_at(data, 3), "without the two blocks of zeros"),
    "cut inside a header": (lambda data: cut_at(data, 3, more=200), "without the two blocks of zeros"),
    "cut inside an image": (lambda data: cut_at(data, 3, 1, 900), "unexpected end of data"),
    "cut inside the padding": (lambda data: cut_at(data, 3, 2)[:-1], "unexpected end of data"),
    "half an end": (lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % BLOCK + BLOCK), "two blocks"),
    "damaged header": (lambda data: spoil(data, len(cut_at(data, 3))), "expected the header of a member"),
    "damaged second block of the end": (lambda data: data[:-1] + b"x", "more follows"),
    "joined": (lambda data: data + data, "more follows"),
    "no tar": (lambda _: b"<html>" * 1000, "invalid header"),
    "empty": (lambda _: b"", "empty file"),
    "no samples": (lambda _: bytes(10240), "holds no samples"),
    "gzip, cut": (lambda data: gzip.compress(data)[: len(gzip.compress(data)) * 2 // 3], "ended before the end"),
    "gzip, cut by its last bytes": (lambda data: gzip.compress(data)[:-4], "ended before the end"),
    "gzip, other checksum": (lambda data: spoil(gzip.compress(data), len(gzip.compress(data)) - 8, 4), "CRC"),
    "gzip of a cut tar": (lambda data: gzip.compress(cut_at(data, 3)), "without the two blocks of zeros"),
    "xz, cut": (lambda data: lzma.compress(data)[:-20], "ended before the end"),
    "bzip2, cut": (lambda data: bz2.compress(data)[:-5], "ended before the end"),
}


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tar_is_never_silently_shorter(folder: Path, damage: str, split: str, threads: int) -> None:
    change, expected = DAMAGE[damage]
    path = folder / f"{split}-000000.tar"
    path.write_bytes(change(path.read_bytes()))
    dataset = open_tars(folder, threads=threads)
    reading = training(lengths=[600]) if split == "train" else in_packing_order([TEST], range(TEST), 4)
    with pytest.raises(UserError, match=rf"^{path}: .*{expected}.*; .*write it again") as caught:
        load(dataset, reading, split)
    assert "object at 0x" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, 2])
def test_tars_without_any_sample_are_no_endless_loop(folder: Path, threads: int) -> None:
    for path in folder.glob("train-*.tar"):
        path.write_bytes(bytes(10240))
    with pytest.raises(UserError, match=r"train-00000\d\.tar: holds no samples"):
        draw(open_tars(folder, threads=threads))


def rewrite(path: Path, members: Callable[[str], list[str]]) -> None:
    """Write a tar again: each member under the names that `members` gives for its own."""
    with tarfile.open(path) as tar:
        contents = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for name, data in contents:
            for new in members(name):
                info = tarfile.TarInfo(new)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_sample_without_a_member_is_named(folder: Path, split: str) -> None:
    path = folder / f"{split}-000001.tar"
    key = keys_in(path)[1]
    rewrite(path, lambda name: [] if name == f"{key}.depth.jpg" else [name])
    reading = training(lengths=[600]) if split == "train" else in_packing_order([TEST], range(TEST), 4)
    with pytest.raises(
        UserError, match=rf"^{path}: sample '{key}' has no depth.jpg, only bg.jpg, fgbg.jpg, mask.jpg, json"
    ):
        load(open_tars(folder), reading, split)


def test_a_member_that_comes_twice_is_named(folder: Path) -> None:
    path = folder / "test-000000.tar"
    rewrite(path, lambda name: [name, name] if name.endswith("mask.jpg") else [name])
    with pytest.raises(UserError, match=rf"^{path}: can't be read: {keys_in(path)[0]}.mask.jpg: duplicate file name"):
        load_test(open_tars(folder))


def test_members_may_have_other_names(folder: Path) -> None:
    expected = load_test(open_tars(folder))
    other = {"bg": "Clean.JPG", "fgbg": "input.jpg", "depth": "d.0.jpg", "mask": "seg.jpg"}
    names = {f"{name}.jpg": new for name, new in other.items()}
    for path in folder.glob("test-*.tar"):
        rewrite(path, lambda name: [f"{name.partition('.')[0]}.{names.get(name.partition('.')[2], 'txt')}"])
    found = load_test(open_tars(folder, **other))
    assert [raw(batch) for batch in found] == [raw(batch) for batch in expected]


def test_a_tar_that_vanishes_while_training_is_named(folder: Path) -> None:
    dataset = open_tars(folder)
    dataset.lengths("train")
    (folder / "train-000002.tar").unlink()
    loader = dataset.loader("train", size=16, device=CPU)
    with closing(loader), pytest.raises(UserError, match=rf"^{folder}/train-000002\.tar: can't be read: No such file"):
        list(loader.batches(training(lengths=[600])))


def test_a_missing_tar_is_named_before_anything_starts(folder: Path) -> None:
    (folder / "train-000002.tar").unlink()
    dataset = open_tars(folder)
    with pytest.raises(UserError, match=rf"^data\.stream\.train: {folder}/train-000002\.tar: no such file"):
        dataset.lengths("train")
    assert dataset.lengths("test") == [TEST]


# Samples that can't be decoded.


def spoil_images(path: Path, suffix: str, *spoiled: str) -> None:
    """Break an image of some samples of a tar."""
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if extension == suffix and key in spoiled:
                data[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    path.write_bytes(data)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_sample_stops_a_run_by_its_name(folder: Path, threads: int) -> None:
    path = folder / "test-000001.tar"
    key = keys_in(path)[0]
    spoil_images(path, "mask.jpg", key)
    message = rf"^{path}: sample '{key}': mask can't be decoded: .*--data.on_bad_sample replace"
    with pytest.raises(UserError, match=message):
        load_test(open_tars(folder, threads=threads))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_sample_is_left_out_of_an_evaluation(folder: Path, threads: int) -> None:
    expected = keys_of_the_test_split(folder)
    bad = [expected[2], expected[3], expected[9]]
    for path in folder.glob("test-*.tar"):
        spoil_images(path, "fgbg.jpg", *bad)
    batches = load_test(open_tars(folder, threads=threads, on_bad_sample="replace"))
    assert keys(batches) == [key for key in expected if key not in bad]
    assert [batch.fgbg.shape[0] for batch in batches] == [2, 4, 1]
    told = [sample for batch in batches for sample in batch.bad]
    assert [(sample.key, sample.used) for sample in told] == [(key, None) for key in bad]
    assert "fgbg can't be decoded" in told[0].reason


@pytest.mark.parametrize("threads", [0, 2])
def test_the_next_sample_stands_in_for_a_bad_one_in_training(folder: Path, threads: int) -> None:
    bad = keys_in(*sorted(folder.glob("train-*.tar")))[::3]
    for path in folder.glob("train-*.tar"):
        spoil_images(path, "bg.jpg", *bad)
    dataset = open_tars(folder, threads=threads, on_bad_sample="replace")
    batches = load(dataset, training(lengths=[120]), "train")
    assert [len(batch.keys) for batch in batches] == [BATCH] * 20
    assert not set(keys(batches)) & set(bad)
    told = [(sample, batch) for batch in batches for sample in batch.bad]
    assert {sample.key for sample, _ in told} <= set(bad)
    assert len(told) > 20
    for sample, batch in told:
        assert sample.used in batch.keys
    again = load(dataset, training(lengths=[120]), "train")
    assert keys(again) == keys(batches)


@pytest.mark.parametrize("threads", [0, 2])
def test_when_nothing_can_be_decoded_the_search_ends(folder: Path, threads: int) -> None:
    for path in folder.glob("train-*.tar"):
        spoil_images(path, "depth.jpg", *keys_in(path))
    with pytest.raises(UserError, match="100 samples in a row can't be decoded"):
        draw(open_tars(folder, threads=threads, on_bad_sample="replace"))


@pytest.mark.parametrize("threads", [0, 3])
def test_a_torn_tar_is_an_error_while_bad_samples_are_replaced(folder: Path, threads: int) -> None:
    for path in folder.glob("train-*.tar"):
        spoil_images(path, "depth.jpg", *keys_in(path))
        path.write_bytes(path.read_bytes()[:-2048])
    with pytest.raises(UserError, match=r"train-00000\d\.tar: can't be read"):
        draw(open_tars(folder, threads=threads, shuffle=0, on_bad_sample="replace"))


# Which URLs are opened, and what is left behind.


@pytest.mark.parametrize(
    "pattern",
    [
        "{{pipe,other}}:touch {mark}",
        "PIPE:touch {mark}",
        "gs://bucket/a.tar",
        "scp://host/a.tar",
        "-",
        "",
        "{tar}::ais://a/b",
        "http://127.0.0.1:1/a';touch {mark};'.tar",
        "{{a.tar",
        "${{UNSET}}.tar",
    ],
)
def test_what_is_no_path_and_no_http_is_refused_and_runs_nothing(folder: Path, tmp_path: Path, pattern: str) -> None:
    mark = tmp_path / "mark"
    dataset = open_tars(folder, train=pattern.format(mark=mark, tar=folder / "train-000000.tar"))
    for ask in (lambda: dataset.lengths("train"), lambda: dataset.loader("train", size=16, device=CPU)):
        with pytest.raises(UserError, match=r"^data\.stream\.train: .+$") as caught:
            ask()
        assert len(str(caught.value).splitlines()) == 1
    assert not mark.exists()


def test_the_environment_cannot_make_a_command_of_a_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOPEN_REWRITE", f"{folder}=pipe:touch {tmp_path}/mark;")
    with pytest.raises(UserError, match=r"^data\.stream\.test: .*expected paths or http"):
        open_tars(folder).lengths("test")
    assert not (tmp_path / "mark").exists()


def test_file_urls_and_lists_are_read(folder: Path) -> None:
    pattern = f"file:{folder}/test-000000.tar::{folder}/test-000001.tar"
    assert keys(load_test(open_tars(folder, test=pattern))) == keys_of_the_test_split(folder)


def test_a_split_that_is_not_there_is_named(folder: Path) -> None:
    dataset = open_tars(folder, train_split="learn")
    assert sum(dataset.lengths("learn")) == TRAIN
    with pytest.raises(UserError, match=r"no split 'train'; it has: learn, test"):
        dataset.lengths("train")
    with pytest.raises(UserError, match=r"data\.train_split and data\.test_split"):
        open_tars(folder, train_split="test")


def test_tars_that_lie_elsewhere_are_the_same_data(folder: Path, tmp_path: Path) -> None:
    before = open_tars(folder).digest
    assert open_tars(folder.rename(tmp_path / "moved")).digest == before


def test_nothing_comes_over_the_network_as_far_as_is_known(folder: Path) -> None:
    assert open_tars(folder).fetched is None


def open_files(folder: Path) -> int:
    return sum(os.path.realpath(path).startswith(f"{folder}/") for path in Path("/proc/self/fd").iterdir())


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]


@pytest.mark.parametrize("finish", ["exhausted", "abandoned", "never begun", "dropped", "failed"])
@pytest.mark.parametrize("split", ["test", "train"])
def test_closing_leaves_no_threads_and_no_files(folder: Path, split: str, finish: str) -> None:
    if finish == "failed":
        path = folder / f"{split}-000001.tar"
        path.write_bytes(path.read_bytes()[:-2048])
    loader = open_tars(folder, threads=2).loader(split, size=16, device=CPU)
    batches = loader.batches(training(lengths=[300]) if split == "train" else in_packing_order([TEST], range(TEST), 1))
    if finish == "exhausted":
        assert sum(len(batch.keys) for batch in batches) == (300 if split == "train" else TEST)
    elif finish == "failed":
        with pytest.raises(UserError):
            list(batches)
    elif finish != "never begun":
        next(batches)
        assert threads_of_ours() != []
    if finish == "dropped":
        del batches
    loader.close()
    assert threads_of_ours() == []
    assert open_files(folder) == 0


# Over HTTP, by webdataset's curl.


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[Nginx]:
    with nginx(folder, tmp_path / "nginx") as running:
        yield running


def curls() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name() == "curl"]


@needs_curl
@needs_nginx
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tars_behind_http_give_the_same(folder: Path, server: Nginx, suffix: str) -> None:
    expected = [*load_test(open_tars(folder)), *load(open_tars(folder), training(), "train")]
    if suffix != ".tar":
        compress(folder, suffix)
    dataset = open_tars(server.url, suffix=suffix, threads=2)
    found = [*load_test(dataset), *load(dataset, training(), "train")]
    assert [raw(batch) for batch in found] == [raw(batch) for batch in expected]
    assert curls() == []


@needs_curl
@needs_nginx
def test_what_the_server_does_not_have_is_named(folder: Path, server: Nginx) -> None:
    (folder / "test-000001.tar").unlink()
    message = rf"^{server.url}/test-000001\.tar: can't be read: curl ended with status 22"
    with pytest.raises(UserError, match=message):
        load_test(open_tars(server.url))


@needs_curl
@needs_nginx
def test_a_transfer_that_is_cut_is_named(folder: Path, server: Nginx) -> None:
    half = (folder / "test-000000.tar").stat().st_size // 2
    with SpoilingProxy(server.port, always=Fault("cut", half)) as proxy:
        message = rf"^{proxy.url}/test-000000\.tar: can't be read: curl ended with status 18"
        with pytest.raises(UserError, match=message):
            load_test(open_tars(proxy.url))


@needs_curl
@needs_nginx
def test_a_server_that_says_nothing_is_given_up(server: Nginx) -> None:
    with (
        SpoilingProxy(server.port, always=Fault("hang", 5000)) as proxy,
        pytest.raises(UserError, match=rf"^{proxy.url}/test-000000\.tar: can't be read: not a byte for 0\.5 s"),
    ):
        load_test(open_tars(proxy.url, patience_seconds=0.5))
    assert curls() == []


@needs_curl
@needs_nginx
@pytest.mark.timeout(60)
def test_closing_does_not_wait_for_a_server_that_says_nothing(server: Nginx) -> None:
    whole = Fault("cut", 2**30)
    with SpoilingProxy(server.port, faults=[whole], always=Fault("hang", 1000)) as proxy:
        one = f"{proxy.url}/train-000000.tar"
        loader = open_tars(proxy.url, train=one, threads=2, patience_seconds=3600, shuffle=0).loader(
            "train", size=16, device=CPU
        )
        batches = loader.batches(training(lengths=[600], rows=range(1)))
        assert len([next(batches) for _ in range(7)]) == 7
        assert proxy.spoiled.wait(30)
        loader.close()
    assert threads_of_ours() == []
    assert curls() == []
