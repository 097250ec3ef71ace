"""The reader: bytes of any sample, and every way in which shards can be wrong."""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dtrain.data import reader as reader_module
from dtrain.data.reader import ShardReader
from shard_tools.components import COMPONENTS
from shard_tools.errors import UserError

from .conftest import BACKGROUNDS, PLACEMENTS, Shards, pack


def open_reader(shards: Shards, split: str = "train", components: tuple[str, ...] = COMPONENTS) -> ShardReader:
    return ShardReader(shards.files, shards.manifest, split, components)


def places(reader: ShardReader) -> list[tuple[int, int]]:
    return [(shard, sample) for shard, length in enumerate(reader.shard_lengths) for sample in range(length)]


def test_every_sample_has_the_bytes_of_its_files(shards: Shards) -> None:
    keys = []
    for split in ("train", "test"):
        reader = open_reader(shards, split)
        for place in places(reader):
            key, parts = reader.read(*place)
            keys.append(key)
            assert parts == [file.read_bytes() for file in shards.source_files(key)]
    assert len(set(keys)) == len(keys) == BACKGROUNDS * PLACEMENTS


def test_components_come_as_asked_for(shards: Shards) -> None:
    reader = open_reader(shards, components=("mask", "bg"))
    key, parts = reader.read(1, 2)
    bg, _, _, mask = shards.source_files(key)
    assert parts == [mask.read_bytes(), bg.read_bytes()]
    with pytest.raises(UserError, match="no component 'normal'; they have: bg, fgbg, depth, mask"):
        open_reader(shards, components=("normal",))


def test_an_unknown_split_is_refused(shards: Shards) -> None:
    with pytest.raises(UserError, match="no split 'dev'; it has: train, test"):
        open_reader(shards, "dev")


def test_places_for_messages(shards: Shards) -> None:
    reader = open_reader(shards)
    assert reader.shard_lengths == [8, 8, 8, 6]
    assert reader.shard_path(2) == str(shards.folder / "train-000002.tar")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 512)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def alter(path: Path) -> None:
    path.write_text(path.read_text().replace(" 8\n", " 7\n", 1))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("train-000001.tar", cut, r"\d+ bytes, but the manifest says \d+"),
        ("train-000001.tar", empty, r"0 bytes, but the manifest says \d+"),
        ("train-000001.tar", Path.unlink, "cannot be opened: No such file"),
        ("train-000001.idx", cut, "SHA-256 differs"),
        ("train-000001.idx", alter, "SHA-256 differs"),
        ("train-000001.idx", empty, "SHA-256 differs"),
        ("train-000001.idx", Path.unlink, "cannot be read: No such file"),
    ],
)
def test_a_damaged_shard_is_named_with_a_way_out(
    own_shards: Shards, name: str, damage: Callable[[Path], None], reason: str
) -> None:
    damage(own_shards.folder / name)
    reader = open_reader(own_shards)
    for _ in range(2):  # the second attempt says the same
        with pytest.raises(
            UserError, match=rf"^{own_shards.folder / name}: .*{reason}.*(copy it|build the shards) again"
        ):
            reader.read(1, 0)
    assert len(reader.read(0, 0)[1]) == 4


def test_a_shard_that_shrinks_while_it_is_open_is_named(own_shards: Shards) -> None:
    reader = open_reader(own_shards)
    key, _ = reader.read(0, 7)
    path = own_shards.folder / "train-000000.tar"
    os.truncate(path, 5000)
    with pytest.raises(UserError, match=rf"^{path}: ends inside sample '{key}'"):
        reader.read(0, 7)


def test_the_index_of_another_shard_is_refused(own_shards: Shards) -> None:
    folder = own_shards.folder
    (folder / "train-000003.idx").write_bytes((folder / "train-000002.idx").read_bytes())
    with pytest.raises(UserError, match=r"train-000003\.idx: is not the index that the manifest names"):
        open_reader(own_shards).read(3, 0)


def put_index(folder: Path, data: bytes) -> None:
    """Give the first shard another index that the manifest vouches for."""
    (folder / "train-000000.idx").write_bytes(data)
    manifest = json.loads((folder / "shards.json").read_text())
    manifest["splits"]["train"]["shards"][0]["index_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "shards.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (rb"bg\.jpg", b"\xff\xfe.jpg", "is no text"),
        (rb"mask\.jpg ([0-9]+) [0-9]+", rb"mask.jpg \1 %d" % 2**40, "lies beyond the end of train-000000.tar"),
        (rb"mask\.jpg [0-9]+", b"mask.jpg %d" % 2**70, "lies beyond the end of its shard"),
    ],
)
def test_an_index_that_cannot_be_true_is_refused(own_shards: Shards, old: bytes, new: bytes, reason: str) -> None:
    folder = own_shards.folder
    index = (folder / "train-000000.idx").read_bytes()
    altered = re.sub(old, new, index)
    assert altered != index
    put_index(folder, altered)
    reader = open_reader(Shards(own_shards.source, folder), components=("mask",))
    with pytest.raises(UserError, match=rf"train-000000\.idx: .*{reason}.*again"):
        reader.read(0, 0)


def test_many_threads_read_at_once(shards: Shards) -> None:
    reader = open_reader(shards)
    wanted = places(reader)
    expected = dict(zip(wanted, (reader.read(*place) for place in wanted), strict=True))
    reader.close()
    order = random.Random(0).choices(wanted, k=1000)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda place: reader.read(*place), order)) == [expected[place] for place in order]


def open_tars(folder: Path) -> int:
    """Shards below `folder` that this process has open, counting each descriptor."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = descriptor.readlink()
        except FileNotFoundError:  # the one that lists
            continue
        count += target.parent == folder and target.suffix == ".tar"
    return count


def test_few_files_are_open_at_a_time(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_OPEN_SHARDS", 2)
    reader = open_reader(shards)
    opened = []
    for place in random.Random(0).choices(places(reader), k=60):
        key, parts = reader.read(*place)
        assert parts[0] == shards.source_files(key)[0].read_bytes()
        opened.append(open_tars(shards.folder))
    assert max(opened) == 2

    reader.close()
    assert open_tars(shards.folder) == 0
    reader.read(0, 0)
    assert open_tars(shards.folder) == 1
    del reader
    assert open_tars(shards.folder) == 0


def test_a_reader_opens_nothing_before_it_is_asked(shards: Shards) -> None:
    reader = open_reader(shards)
    assert open_tars(shards.folder) == 0
    reader.read(2, 3)
    reader.read(2, 4)
    assert open_tars(shards.folder) == 1


# Backgrounds that are stored once


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return pack(tmp_path_factory.mktemp("shared"), [(24, 16)] * BACKGROUNDS, 5, backgrounds="shared")


@pytest.mark.parametrize("components", [COMPONENTS, ("mask", "bg"), ("depth",)])
def test_a_background_comes_from_its_own_shard(shared: Shards, components: tuple[str, ...]) -> None:
    for split in ("train", "test"):
        reader = open_reader(shared, split, components)
        for place in places(reader):
            key, parts = reader.read(*place)
            files = shared.source_files(key)
            assert parts == [files[COMPONENTS.index(name)].read_bytes() for name in components]


def test_the_order_does_not_know_where_backgrounds_lie(shared: Shards, tmp_path: Path) -> None:
    """The same samples in the same shards: a run would be the same one."""
    own = pack(tmp_path, [(24, 16)] * BACKGROUNDS, 5)
    one, other = (open_reader(shards, components=("fgbg",)) for shards in (own, shared))
    assert one.shard_lengths == other.shard_lengths
    assert [one.read(*place) for place in places(one)] == [other.read(*place) for place in places(other)]


def test_a_missing_shard_of_backgrounds_is_named(shared: Shards, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared.folder, tmp_path / "damaged"))
    (folder / "backgrounds-train-000000.tar").unlink()
    reader = open_reader(Shards(shared.source, folder), components=("bg",))
    with pytest.raises(UserError, match=r"backgrounds-train-000000\.tar: cannot be opened: No such file"):
        reader.read(0, 0)
