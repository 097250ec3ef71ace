"""What a configuration's data section opens: from a folder, from a file, from a URL; and what it refuses."""

import hashlib
import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from pydantic import ByteSize

from dtrain.config import DataConfig
from dtrain.data.dataset import open_dataset
from dtrain.data.order import EpochOrder, rows_of_rank
from shard_tools.errors import UserError

from ..servers import needs_nginx, nginx
from .conftest import Shards
from .test_bad_samples import spoil

CPU = torch.device("cpu")


def pixels_of_an_epoch(config: DataConfig) -> list[bytes]:
    dataset = open_dataset(config)
    with closing(dataset), closing(dataset.loader("train", size=24, device=CPU)) as loader:
        order = EpochOrder(dataset.lengths("train"), seed=0, stage=0, epoch=0, global_batch=6)
        batches = loader.batches(order.reading(0, [range(6)]))
        return [getattr(batch, name).numpy().tobytes() for batch in batches for name in ("bg", "fgbg", "depth", "mask")]


@needs_nginx
def test_a_folder_a_manifest_and_a_url_are_the_same_data(shards: Shards, tmp_path: Path) -> None:
    expected = pixels_of_an_epoch(DataConfig(manifest=str(shards.folder)))
    assert len(expected) == 20
    with nginx(shards.folder, tmp_path / "server") as server:
        for place in (
            f"{shards.folder}/shards.json",
            f"file://{shards.folder}",
            server.url,
            f"{server.url}/shards.json",
        ):
            config = DataConfig(manifest=place, cache_dir=tmp_path / "cache", workers=1)
            assert pixels_of_an_epoch(config) == expected, place
            assert open_dataset(config).digest == shards.manifest.digest()


def test_an_unknown_split_names_the_ones_there_are(shards: Shards) -> None:
    with pytest.raises(UserError, match="no split 'dev'; it has: train, test"):
        open_dataset(DataConfig(manifest=str(shards.folder))).lengths("dev")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", r"nowhere/shards\.json: no such file; expected the manifest"),
        ("http://127.0.0.1:1/shards", r"http://127\.0\.0\.1:1/shards/shards\.json: cannot be read"),
        ("bogus://bucket/shards", r"bogus://.*cannot be used"),
        ("pipe://cat", "runs a command and is refused"),
    ],
)
def test_a_place_that_cannot_be_opened_is_named(place: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_dataset(DataConfig(manifest=place, cache_dir=tmp_path))


@needs_nginx
def test_a_cache_folder_that_is_a_file_is_named(shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        nginx(shards.folder, tmp_path / "server") as server,
        pytest.raises(UserError, match=f"{tmp_path}/file.*data.cache_dir"),
    ):
        open_dataset(DataConfig(manifest=server.url, cache_dir=tmp_path / "file"))


@needs_nginx
def test_a_sample_of_another_process_stands_in_from_behind_a_url_too(
    shards: Shards, own_shards: Shards, tmp_path: Path
) -> None:
    """Its shard is none that this process has announced; the cache has room for little more than one batch needs."""
    largest = max(shard.bytes for shard in shards.manifest.split("train").shards)

    def keys_and_bad(config: DataConfig) -> list[tuple[list[str], list[tuple[str, str | None]]]]:
        found = []
        dataset = open_dataset(config)
        with closing(dataset), closing(dataset.loader("train", size=24, device=CPU)) as loader:
            order = EpochOrder(dataset.lengths("train"), seed=0, stage=0, epoch=0, global_batch=6, max_lanes=2)
            for rank in range(2):
                batches = loader.batches(order.reading(0, [rows_of_rank(6, rank, 2)]))
                found += [(batch.keys, [(bad.key, bad.used) for bad in batch.bad]) for batch in batches]
        return found

    for sample in range(0, 8, 2):
        for number in range(3):
            spoil(own_shards.folder, number, sample)
    manifest = json.loads((own_shards.folder / "shards.json").read_text())
    for shard in manifest["splits"]["train"]["shards"]:
        shard["sha256"] = hashlib.sha256((own_shards.folder / shard["file"]).read_bytes()).hexdigest()
    (own_shards.folder / "shards.json").write_text(json.dumps(manifest))
    expected = keys_and_bad(DataConfig(manifest=str(own_shards.folder), on_bad_sample="replace"))
    assert sum(len(bad) for _, bad in expected) == 12
    with nginx(own_shards.folder, tmp_path / "server") as server:
        config = DataConfig(
            manifest=server.url,
            on_bad_sample="replace",
            workers=1,
            cache_dir=tmp_path / "cache",
            cache_size=ByteSize(4 * largest),
            patience_seconds=20,
        )
        assert keys_and_bad(config) == expected
