"""Shards that another program wrote are read as our own are."""

from pathlib import Path

import pytest

from dtrain.data.reader import LocalFiles, ShardReader
from shard_tools.adopt import adopt
from shard_tools.manifest import read_manifest
from shard_tools.storage import LocalStorage

from ..shard_tools.foreign import OTHER, Sample, make_sample, write_with_webdataset

GIVEN = {"bg": "clean.jpg", "fgbg": "input.jpg", "depth": "d.png", "mask": "seg.png"}


@pytest.mark.parametrize("components", [tuple(GIVEN), ("mask", "fgbg")])
def test_members_under_other_names(tmp_path: Path, components: tuple[str, ...]) -> None:
    samples: dict[str, Sample] = {f"{i:06d}": {**make_sample(i, OTHER), "json": [i]} for i in range(5)}
    write_with_webdataset(tmp_path, "train", samples.items(), 2)
    adopt([str(tmp_path)], {"train": ["train-{000000..000002}.tar"]}, GIVEN, force=False, workers=1)
    reader = ShardReader(LocalFiles(LocalStorage(tmp_path)), read_manifest(tmp_path), "train", components)
    assert reader.shard_lengths == [2, 2, 1]
    for place, (key, sample) in enumerate(samples.items()):
        assert reader.read(*divmod(place, 2)) == (key, [sample[GIVEN[name]] for name in components])
    reader.close()
