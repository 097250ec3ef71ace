"""`shard-tools index --split`: shards of other programs get a manifest, with which everything works as with our own."""

import hashlib
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest

from shard_tools.decoded import decode_component
from shard_tools.manifest import open_shards, read_manifest
from shard_tools.samples import read_index, read_tuples
from shard_tools.verify import verify

from .adopting import BOTH, GIVEN, SPLIT, ShardTools, index, make, refusal
from .foreign import (
    OTHER,
    SIZE,
    image,
    make_sample,
    write_samples,
    write_tar,
    write_with_gnu_tar,
    write_with_webdataset,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make(tmp_path / "data")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def test_shards_of_webdataset_get_a_manifest(data: Path, shard_tools: ShardTools) -> None:
    before = digests(data)
    done = shard_tools("index", data, *SPLIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{data}/shards.json written: train 8 samples in 3 shards, test 3 samples in 1 shards; bg = KEY.bg.jpg, fgbg = "
        "KEY.fgbg.jpg, depth = KEY.depth.png, mask = KEY.mask.png",
        "indexes: 4 written, 0 already there; they list 11 samples",
    ]
    assert digests(data) == before
    manifest = read_manifest(data)
    assert [shard.samples for shard in manifest.splits["train"].shards] == [3, 3, 2]
    assert [shard.file for shard in manifest.splits["test"].shards] == ["val-000000.tar"]
    for split in manifest.splits.values():
        for shard in split.shards:
            assert (shard.bytes, shard.sha256) == ((data / shard.file).stat().st_size, before[shard.file])
            assert shard.index_sha256 == hashlib.sha256((data / shard.index).read_bytes()).hexdigest()
    assert [(c.name, c.extension, c.mode, c.size, c.member) for c in manifest.components] == [
        ("bg", "jpg", "RGB", SIZE, None),
        ("fgbg", "jpg", "RGB", SIZE, None),
        ("depth", "png", "I;16", SIZE, None),
        ("mask", "png", "L", SIZE, None),
    ]
    assert manifest.counts.model_dump() == {"found": 11, "packed": 11, "left_out": 0}
    assert manifest.build == {"command": "index", "split": BOTH, "component": None}
    assert '"member"' not in manifest.text()


def test_all_commands_work_on_other_names(tmp_path: Path, shard_tools: ShardTools) -> None:
    """Also with a KEY.json that says nothing to us, and the same keys in both splits."""
    data = tmp_path / "data"
    originals: dict[str, bytes] = {}
    for split, count in (("train", 5), ("val", 2)):
        samples = {f"{i:06d}": {**make_sample(7 * count + i, OTHER), "json": [i, "files"]} for i in range(count)}
        write_with_webdataset(data, split, samples.items(), 3)
        for i, (key, sample) in enumerate(samples.items()):
            originals |= {f"{split}-{i // 3:06d}/{key}.{name}": sample[name] for name in OTHER}
    components = [word for name, member in GIVEN.items() for word in ("--component", f"{name}={member}")]

    def run(*words: object) -> str:
        done = shard_tools(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "bg = KEY.clean.jpg, fgbg = KEY.input.jpg, depth = KEY.d.png" in run("index", data, *SPLIT, *components)
    assert [component.member for component in read_manifest(data).components] == list(OTHER)
    assert f"{data} is whole: 7 tuples in 3 shards" in run("verify", data, "--decode")
    info = run("info", data)
    assert "depth      d.png      I;16  24 × 16" in info
    assert "of 7 tuples found, 7 packed and 0 left out" in info
    sizes = "\t".join(str(len(originals[f"train-000001/000004.{name}"])) for name in OTHER)
    assert f"000004\ttrain\ttrain-000001.tar\t{sizes}\t{{}}\n" in run("ls", data, "--long")
    assert "train: 5 tuples" in run("stats", data, "--out", tmp_path / "report")
    assert "8 were asked for" in run("preview", data, "--out", tmp_path / "sheet.png")
    said = run("unpack", data, tmp_path / "out")
    assert "the files of each are in a folder with its name" in said
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert {name: data for name, data in found.items() if not name.endswith(".json")} == originals
    assert json.loads(found["val-000000/000001.json"]) == [1, "files"]


def test_shards_of_gnu_tar(tmp_path: Path) -> None:
    """Keys with a folder, an entry of the folder itself, other members, and suffixes that are spelt otherwise."""
    members = {"bg.jpeg": "RGB", "fgbg.JPG": "RGB", "depth.tif": "I;16", "mask.webp": "RGB"}
    samples = {f"k{i}": {**make_sample(i, members), "txt": b"hello"} for i in range(4)}
    data = tmp_path / "data"
    write_with_gnu_tar(data / "train-0.tar", islice(samples.items(), 3))
    write_with_gnu_tar(data / "val-0.tar", islice(samples.items(), 3, 4))
    index(data)
    manifest = read_manifest(data)
    assert [(c.extension, c.member) for c in manifest.components] == [
        ("jpg", "bg.jpeg"),
        ("jpg", "fgbg.JPG"),
        ("tif", None),
        ("webp", None),
    ]
    assert "is whole: 4 tuples in 2 shards" in verify(str(data), decode=True, workers=1, json_file=None)
    storage = open_shards(str(data))[0]
    read = list(read_tuples(storage, manifest, "train", manifest.splits["train"].shards[0]))
    assert [sample.key for sample in read] == ["photos/k0", "photos/k1", "photos/k2"]
    for sample, original in zip(read, samples.values(), strict=False):
        assert sample.images["mask"] == original["mask.webp"]
        assert sample.images["fgbg"] == original["fgbg.JPG"]


def test_stray_members_of_a_tar_are_said_and_no_finding(tmp_path: Path) -> None:
    sample = [(f"a.{member}", data) for member, data in make_sample(1).items()]
    write_tar(tmp_path / "train-0.tar", [("README", b"x"), *sample, (".hidden", b"")])
    said = index(tmp_path, {"train": ["*"]})
    assert "not in its index: 1 × file without an extension (README), 1 × hidden file (.hidden)" in said
    assert "is whole" in verify(str(tmp_path), decode=True, workers=1, json_file=None)


def test_our_own_shards_keep_their_identity(
    make_tree: Callable[..., Path], shard_tools: ShardTools, tmp_path: Path
) -> None:
    """Adopted after shards.json was lost, they are the same data set to a run that is resumed."""
    shards = tmp_path / "shards"
    assert shard_tools("build", make_tree(), shards, "--shard-size", 7).returncode == 0
    built = read_manifest(shards)
    text = refusal(shards, {"train": ["train-*.tar"], "test": ["test-*.tar"]})
    assert text == f"{shards}/shards.json: is there, written by `shard-tools build`; replace it with --force"
    (shards / "shards.json").unlink()
    index(shards, {"train": ["train-*.tar"], "test": ["test-*.tar"]})
    again = read_manifest(shards)
    assert again.adopted and not built.adopted
    assert again.digest() == built.digest()


def test_without_splits_the_way_to_a_manifest_is_said(data: Path, shard_tools: ShardTools) -> None:
    done = shard_tools("index", data)
    assert done.returncode == 0, done.stderr
    assert not (data / "shards.json").exists()
    lines = done.stdout.splitlines()
    assert lines[0] == "indexes: 4 written, 0 already there; they list 11 samples"
    assert lines[1].startswith(f"note: {data} has no shards.json, which training wants; this writes it too: ")
    command = lines[1].partition("shard-tools ")[2].replace("'", "").replace("=test-*", "=val-*")
    assert shard_tools(*command.split()).returncode == 0
    assert (data / "shards.json").exists()
    assert "note" not in shard_tools("index", data).stdout


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1, 0):
        write_samples(tmp_path / f"part{number}.tar", {"a": make_sample(number)})
    index(tmp_path, {"train": ["part1.tar", "part10.tar", "part9.tar"], "test": ["part0*"]}, workers=2)
    assert [shard.file for shard in read_manifest(tmp_path).splits["train"].shards] == [
        "part1.tar",
        "part9.tar",
        "part10.tar",
    ]


def test_a_component_that_is_a_mere_suffix(tmp_path: Path) -> None:
    """KEY.jpg and KEY.png, as in shards of one picture and one map."""
    members = {"jpg": "RGB", "clean.jpg": "RGB", "png": "I;16", "seg.png": "L"}
    sample = {m: image(n, m.rpartition(".")[2], mode) for n, (m, mode) in enumerate(members.items())}
    write_samples(tmp_path / "a.tar", {"k": sample})
    index(tmp_path, {"train": ["*"]}, {"fgbg": "jpg", "bg": "clean.jpg", "depth": "png", "mask": "seg.png"})
    manifest = read_manifest(tmp_path)
    [read] = read_tuples(open_shards(str(tmp_path))[0], manifest, "train", manifest.splits["train"].shards[0])
    assert [read.images[name] for name in ("fgbg", "bg", "depth", "mask")] == list(sample.values())


def test_keys_that_begin_anew_in_each_shard(tmp_path: Path) -> None:
    """The laws speak of places, so these train; verify does not mind either."""
    for number in range(3):
        write_samples(tmp_path / f"train-{number}.tar", {f"{i}": make_sample(10 * number + i) for i in range(4)})
    said = index(tmp_path, {"train": ["*"]})
    assert "train: 8 keys come again in another shard; shard and key tell the samples apart" in said
    assert "is whole: 12 tuples" in verify(str(tmp_path), decode=False, workers=1, json_file=None)


def test_a_manifest_that_says_the_same_is_left_alone(data: Path) -> None:
    index(data)
    before = (data / "shards.json").stat()
    assert f"{data}/shards.json was there and says the same: train 8" in index(data, workers=2)
    assert (data / "shards.json").stat() == before


def test_components_of_other_sizes_than_their_background(tmp_path: Path) -> None:
    """Training scales each; verify does not mind where shards were not packed by us."""
    sample = {**make_sample(1), "depth.png": image(5, "png", "L", (12, 8))}
    write_samples(tmp_path / "a.tar", {"k": sample})
    index(tmp_path, {"train": ["*"]})
    assert read_manifest(tmp_path).component("depth").size == (12, 8)
    assert "every image can be decoded" in verify(str(tmp_path), decode=True, workers=1, json_file=None)


def test_some_tars_of_a_folder(data: Path) -> None:
    """Given one by one, others are not even named; links are as good as files."""
    (data / "linked.tar").symlink_to(data / "val-000000.tar")
    said = index(data / "linked.tar", {"train": ["train-*"], "test": ["linked.tar"]}, None, data / "train-000002.tar")
    assert "in no split" not in said
    assert [shard.file for split in read_manifest(data).splits.values() for shard in split.shards] == [
        "train-000002.tar",
        "linked.tar",
    ]


def test_a_remote_place(data: Path) -> None:
    fs = fsspec.filesystem("memory")
    for path in data.glob("*.tar"):
        fs.pipe(f"/adopted/{path.name}", path.read_bytes())
    index(data)
    said = index("memory://adopted")
    assert said.startswith("memory://adopted/shards.json written: train 8 samples in 3 shards")
    assert fs.cat("/adopted/shards.json") == (data / "shards.json").read_bytes()
    storage, manifest = open_shards("memory://adopted")
    keys = [sample.key for shard in manifest.splits["train"].shards for sample in read_index(storage, shard)]
    assert keys == [f"{i:06d}" for i in range(8)]


def test_depth_of_16_bits_keeps_its_upper_8(data: Path) -> None:
    index(data)
    manifest = read_manifest(data)
    [first, *_] = read_tuples(open_shards(str(data))[0], manifest, "train", manifest.splits["train"].shards[0])
    pixels = decode_component(first.images["depth"], "depth", path="", key="")
    expected = np.random.default_rng(2).integers(0, 2**16, (SIZE[1], SIZE[0]), dtype=np.uint16) >> 8
    assert np.array_equal(pixels, expected)
