"""Going to the middle of an epoch reads nothing of what comes before it."""

import shutil
from pathlib import Path

import pytest

from dtrain.data.order import EpochOrder
from shard_tools.errors import UserError
from shard_tools.index import parse_index

from .conftest import ALL_WORKERS, Shards, WorkerOptions, open_loader


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_samples_of_steps_that_are_done_are_not_read(shards: Shards, tmp_path: Path, workers: WorkerOptions) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards.folder, folder)
    train = shards.manifest.split("train").shards
    order = EpochOrder([shard.samples for shard in train], seed=0, stage=0, epoch=0, global_batch=6)
    middle = order.steps // 2
    for refs in map(order.batch, range(middle)):
        for shard, sample in zip(refs.shard.tolist(), refs.sample.tolist(), strict=True):
            destroy(folder / train[shard].file, sample)

    with open_loader(Shards(shards.source, folder), workers=workers) as loader:
        rest = list(loader.batches(order.reading(middle, [range(6)])))
        assert len(rest) == order.steps - middle > 0
        with pytest.raises(UserError, match="can't be decoded"):
            list(loader.batches(order.reading(0, [range(6)])))


def destroy(shard: Path, sample: int) -> None:
    """Overwrite every image of a sample with zeros, so that reading it could not go unnoticed."""
    index = shard.with_suffix(".idx")
    data = bytearray(shard.read_bytes())
    for member in parse_index(index.read_text(), index)[sample].members:
        data[member.offset : member.offset + member.size] = bytes(member.size)
    shard.write_bytes(data)
