"""Samples that can't be decoded: named, replaced by one of the same global batch, or left out of an evaluation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from dtrain.config import Config
from dtrain.data.dataset import open_dataset
from dtrain.data.loader import BadSample, HostBatch
from dtrain.data.order import EpochOrder, cut, in_packing_order, rows_of_rank
from dtrain.evaluator import Evaluator
from dtrain.model import DepthMaskNet
from shard_tools.errors import UserError
from shard_tools.index import parse_index

from .conftest import ALL_WORKERS, Shards, WorkerOptions, open_loader

BATCH = 6
TWO = WorkerOptions(2)


def spoil(folder: Path, shard: int, sample: int, component: str = "mask", split: str = "train") -> str:
    """Overwrite one image with zeros; returns the key of its sample."""
    path = folder / f"{split}-{shard:06d}.tar"
    found = parse_index(path.with_suffix(".idx").read_text(), path)[sample]
    member = next(member for member in found.members if member.extension.startswith(f"{component}."))
    data = bytearray(path.read_bytes())
    data[member.offset : member.offset + member.size] = bytes(member.size)
    path.write_bytes(data)
    return found.key


def order(shards: Shards) -> EpochOrder:
    return EpochOrder(shards.lengths(), seed=5, stage=0, epoch=0, global_batch=BATCH)


def epoch(
    shards: Shards, *, world_size: int = 1, largest: int = BATCH, workers: WorkerOptions = TWO
) -> list[list[HostBatch]]:
    """The micro-batches of every global batch, of all processes one after the other."""
    steps: list[list[HostBatch]] = [[] for _ in range(order(shards).steps)]
    for rank in range(world_size):
        rows = rows_of_rank(BATCH, rank, world_size)
        parts = [rows[part.start : part.stop] for part in cut(len(rows), -(-len(rows) // largest))]
        with open_loader(shards, size=24, workers=workers, on_bad_sample="replace") as own:
            for number, batch in enumerate(own.batches(order(shards).reading(0, parts))):
                steps[number // len(parts)].append(batch)
    return steps


def keys(step: list[HostBatch]) -> list[str]:
    return [key for batch in step for key in batch.keys]


def bad_ones(step: list[HostBatch]) -> list[BadSample]:
    return [bad for batch in step for bad in batch.bad]


@pytest.mark.parametrize("component", ["bg", "fgbg", "depth", "mask"])
def test_the_next_row_of_the_global_batch_stands_in(shards: Shards, own_shards: Shards, component: str) -> None:
    bad = spoil(own_shards.folder, 1, 3, component)
    whole, mended = epoch(shards), epoch(own_shards)
    (number,) = [number for number, step in enumerate(whole) if bad in keys(step)]
    row = keys(whole[number]).index(bad)
    instead = (row + 1) % BATCH
    expected = [keys(step) for step in whole]
    expected[number][row] = keys(whole[number])[instead]
    assert [keys(step) for step in mended] == expected
    ((found,),) = [bad_ones(step) for step in mended if bad_ones(step)]
    assert (found.key, found.used) == (bad, expected[number][row])
    assert f"train-000001.tar: sample '{bad}': {component} can't be decoded" in found.reason
    (batch,), (before,) = mended[number], whole[number]
    for name in ("bg", "fgbg", "depth", "mask"):
        pixels = getattr(batch, name)
        assert torch.equal(pixels[row], getattr(before, name)[instead])
        others = [other for other in range(BATCH) if other != row]
        assert torch.equal(pixels[others], getattr(before, name)[others])


@pytest.mark.parametrize(("world_size", "largest"), [(1, 1), (2, 6), (3, 2), (6, 1), (4, 2)])
@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_the_same_one_stands_in_however_the_batch_is_cut(
    own_shards: Shards, world_size: int, largest: int, workers: WorkerOptions
) -> None:
    for place in ((0, 0), (0, 1), (2, 5), (3, 5)):
        spoil(own_shards.folder, *place)
    expected = epoch(own_shards)
    found = epoch(own_shards, world_size=world_size, largest=largest, workers=workers)
    assert [keys(step) for step in found] == [keys(step) for step in expected]
    assert [bad_ones(step) for step in found] == [bad_ones(step) for step in expected]
    for name in ("bg", "fgbg", "depth", "mask"):
        for step, other in zip(found, expected, strict=True):
            pixels = torch.cat([getattr(batch, name) for batch in step])
            assert torch.equal(pixels, torch.cat([getattr(batch, name) for batch in other]))


def test_one_that_is_bad_itself_stands_in_for_nobody(own_shards: Shards) -> None:
    refs = order(own_shards).batch(2)
    places = list(zip(refs.shard.tolist(), refs.sample.tolist(), strict=True))
    names = [spoil(own_shards.folder, *place) for place in places[1:5]]
    batches = epoch(own_shards)[2]
    first, last = keys(batches)[0], keys(batches)[5]
    assert keys(batches) == [first, last, last, last, last, last]
    assert [(bad.key, bad.used) for bad in bad_ones(batches)] == [(name, last) for name in names]


def test_a_global_batch_without_a_good_sample_is_an_error(own_shards: Shards) -> None:
    refs = order(own_shards).batch(2)
    for place in zip(refs.shard.tolist(), refs.sample.tolist(), strict=True):
        spoil(own_shards.folder, *place)
    with pytest.raises(UserError, match="no sample of a whole global batch can be decoded"):
        epoch(own_shards)


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_without_leave_it_is_an_error_that_says_how_to_go_on(own_shards: Shards, workers: WorkerOptions) -> None:
    bad = spoil(own_shards.folder, 1, 3)
    with (
        open_loader(own_shards, size=24, workers=workers) as own,
        pytest.raises(UserError, match=rf"train-000001\.tar: sample '{bad}': .* --data.on_bad_sample replace"),
    ):
        list(own.batches(order(own_shards).reading(0, [range(BATCH)])))


def test_an_evaluation_leaves_it_out(shards: Shards, own_shards: Shards) -> None:
    bad = [spoil(own_shards.folder, 0, sample, split="test") for sample in (0, 3)]
    read = []
    for source in (shards, own_shards):
        with open_loader(source, "test", size=24, workers=TWO, on_bad_sample="replace") as own:
            read.append(list(own.batches(in_packing_order(source.lengths("test"), range(10), 4))))
    whole, rest = read
    assert [batch.fgbg.shape[0] for batch in rest] == [len(batch.keys) for batch in rest] == [2, 4, 2]
    assert keys(rest) == [key for key in keys(whole) if key not in bad]
    assert [(sample.key, sample.used) for sample in bad_ones(rest)] == [(key, None) for key in bad]
    for name in ("bg", "fgbg", "depth", "mask"):
        kept = torch.cat([getattr(batch, name) for batch in whole])[[1, 2, *range(4, 10)]]
        assert torch.equal(torch.cat([getattr(batch, name) for batch in rest]), kept)


def test_a_missing_shard_is_no_bad_sample(own_shards: Shards) -> None:
    (own_shards.folder / "train-000002.tar").unlink()
    with pytest.raises(UserError, match=r"train-000002\.tar: cannot be opened"):
        epoch(own_shards)


def test_a_panel_without_a_good_sample_is_left_out(own_shards: Shards, make_config: Callable[..., Config]) -> None:
    for sample in (0, 1):
        spoil(own_shards.folder, 0, sample, split="test")
    places = ("--data.manifest", str(own_shards.folder), "--data.on_bad_sample", "replace", "--data.workers", "0")
    module = DepthMaskNet(0.0625)
    for count, drawn in ((2, False), (3, True)):
        config = make_config(*places, "--evaluate.panel_samples", str(count))
        evaluator = Evaluator(config, open_dataset(config.data), Accelerator(cpu=True), "test")
        assert (evaluator.panel(module, 32) is not None) == drawn
