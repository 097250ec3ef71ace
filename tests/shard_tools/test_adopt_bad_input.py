"""What `shard-tools index --split` says of shards and arguments that do not go together."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from shard_tools.errors import UserError
from shard_tools.index_command import write_indexes
from shard_tools.manifest import read_manifest
from shard_tools.verify import verify

from .adopting import BOTH, GIVEN, SPLIT, ShardTools, index, make, refusal
from .foreign import (
    OTHER,
    SIZE,
    image,
    make_sample,
    write_samples,
    write_tar,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make(tmp_path / "data")


def test_samples_without_a_component_are_listed(data: Path) -> None:
    shard = {f"{i:06d}": make_sample(500 + i) for i in range(30)}
    del shard["000000"]["mask.png"]
    for i in range(3, 25):
        shard[f"{i:06d}"]["depth.jpg"] = shard[f"{i:06d}"].pop("depth.png")
    write_samples(data / "train-000009.tar", shard)
    write_tar(
        data / "val-000001.tar",
        [(f"twice.{member}", content) for member, content in [*make_sample(1).items(), ("bg.jpg", b"again")]],
    )
    lines = refusal(data).splitlines()
    assert lines[0] == "24 of 42 samples do not have each of bg.jpg, fgbg.jpg, depth.png, mask.png once:"
    assert lines[1] == "  train-000009.tar: 000000: no mask.png; it has bg.jpg, fgbg.jpg, depth.png"
    assert lines[2] == "  train-000009.tar: 000003: no depth.png; it has bg.jpg, fgbg.jpg, mask.png, depth.jpg"
    assert lines[21] == "  and 4 more"
    assert "Write those shards again, leave them out of the patterns" in lines[22]
    assert len(lines) == 23
    assert not (data / "shards.json").exists()
    text = refusal(data, {"test": ["val-*.tar"]})
    assert "  val-000001.tar: twice: 2 bg.jpg; it has bg.jpg, fgbg.jpg, depth.png, mask.png, bg.jpg\n" in text


def test_names_that_the_first_sample_does_not_have(tmp_path: Path) -> None:
    data = make(tmp_path / "data", OTHER)
    begin = f"{data}/train-000000.tar: its first sample '000000' has no "
    assert refusal(data) == (
        f"{begin}bg, fgbg, depth, mask (expected bg.jpg, fgbg.jpg, depth.jpg, mask.jpg or with the suffix of another "
        "image); it has clean.jpg, d.png, input.jpg, seg.png. Every tuple needs bg, fgbg, depth, mask; say which file "
        "is which, as in --component bg=clean.jpg"
    )
    text = refusal(data, BOTH, {**GIVEN, "depth": "dd.png"})
    assert text.startswith(f"{begin}depth (expected dd.png); it has clean.jpg, ")
    assert text.endswith("--component depth=d.png")
    assert list(data.glob("*.idx")) == []


def test_a_component_that_two_files_could_be(tmp_path: Path) -> None:
    write_samples(tmp_path / "a.tar", {"k": {**make_sample(1), "mask.jpg": image(2, "jpg", "L")}})
    text = refusal(tmp_path, {"train": ["*"]})
    assert "its first sample 'k' has mask.png and mask.jpg; say which one is mask: --component mask=mask.png" in text
    index(tmp_path, {"train": ["*"]}, {"mask": "mask.jpg"})
    assert read_manifest(tmp_path).component("mask").extension == "jpg"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--component", "albedo=a.jpg"), "--component albedo=a.jpg: no such component; a tuple has bg, fgbg, depth"),
        (("--component", "depth=npy"), "--component depth=npy: expected what stands behind KEY. in the name of an"),
        (("--component", "bg=.a.jpg"), "--component bg=.a.jpg: expected what stands behind KEY. in the name of an"),
        (("--component", "bg=a.jpg", "--component", "fgbg=a.jpg"), "=a.jpg: the same file as fgbg"),
        (
            ("--component", "bg=a.jpg", "--component", "bg=b.jpg"),
            "--component: each of bg, fgbg, depth and mask can",
        ),
        (("--component", "bg"), "argument --component: bg: expected NAME=…, as in depth=d.png"),
        (("--split", "train-*.tar"), "argument --split: train-*.tar: expected NAME=…, as in train=train-*.tar"),
    ],
)
def test_wrong_arguments(data: Path, shard_tools: ShardTools, words: tuple[str, ...], message: str) -> None:
    done = shard_tools("index", data, *SPLIT, *words)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (data / "shards.json").exists()


def test_components_go_with_splits(data: Path, shard_tools: ShardTools) -> None:
    done = shard_tools("index", data, "--component", "bg=bg.jpg")
    assert done.returncode == 1
    assert "--component: only with --split" in done.stderr


def test_patterns_that_do_not_fit(data: Path) -> None:
    there = "the 4 that are there (train-000000.tar, train-000001.tar, train-000002.tar, …); patterns are of file names"
    assert f"--split test=test-*.tar: no such tar among {there}" in refusal(data, {"test": ["test-*.tar"]})
    text = refusal(data, {"train": ["train-{000000..000004}.tar"]})
    assert text.startswith("--split train=train-{000000..000004}.tar: train-000003.tar, train-000004.tar: no such tar")
    text = refusal(data, {"train": ["*-00000[01].tar"], "test": ["val-*.tar"]})
    assert text == "val-000000.tar: in two splits, train and test; a tar can be in one: change the patterns"
    assert list(data.glob("*.idx")) == []


def test_tars_in_no_split_are_said(data: Path) -> None:
    (data / "broken.tar").write_bytes(b"no tar")
    said = index(data, {"train": ["train-*.tar"]})
    assert "  2 tars are in no split, and left alone: broken.tar, val-000000.tar" in said.splitlines()
    assert sorted(path.stem for path in data.glob("*.idx")) == ["train-000000", "train-000001", "train-000002"]


def test_a_tar_that_cannot_be_indexed_keeps_the_manifest_away(data: Path) -> None:
    with (data / "train-000002.tar").open("r+b") as file:
        file.truncate(5000)
    text = refusal(data)
    assert "1 of 4 shards cannot be indexed:" in text
    assert f"{data}/train-000002.tar: ends at byte 5,000" in text
    assert not (data / "shards.json").exists()


def test_a_key_that_comes_again_in_its_shard(tmp_path: Path) -> None:
    samples = [("a", 1), ("b", 2), ("a", 3)]
    members = [(f"{key}.{member}", data) for key, seed in samples for member, data in make_sample(seed).items()]
    write_tar(tmp_path / "a.tar", members)
    text = refusal(tmp_path, {"train": ["*"]})
    assert f"{tmp_path}/a.tar: 1 keys come again after other samples, the first 'a'; a key is one sample" in text


def test_the_same_tar_twice(data: Path) -> None:
    shutil.copy(data / "train-000001.tar", data / "val-000001.tar")
    text = refusal(data)
    assert text.startswith("val-000001.tar: the same bytes as train-000001.tar; each of its samples would count twice")
    assert not (data / "shards.json").exists()


def test_another_manifest_is_replaced_only_by_force(data: Path) -> None:
    index(data)
    text = refusal(data, {"train": ["train-*.tar"]})
    assert text == (
        f"{data}/shards.json: is there, of other arguments (split={{'train': ['train-*.tar'], 'test': ['val-*.tar']}})"
        "; replace it with --force"
    )
    write_samples(data / "val-000001.tar", {"new": make_sample(900)})
    text = refusal(data)
    assert text == (
        f"{data}/shards.json: is there, of other tars than those that lie there now; replace it with --force"
    )
    assert read_manifest(data).splits["test"].samples == 3
    index(data, force=True)
    assert read_manifest(data).splits["test"].samples == 4
    (data / "shards.json").write_text("{}")
    assert "shards.json: is there and is no manifest; replace it with --force" in refusal(data)
    index(data, {"train": ["*"]}, force=True)
    assert list(read_manifest(data).splits) == ["train"]


def test_a_manifest_that_cannot_be_written(data: Path) -> None:
    (data / "shards.json").mkdir()
    assert refusal(data) == f"{data}/shards.json: cannot be read: Is a directory"


def test_an_unfinished_build_is_not_adopted(make_tree: Callable[..., Path], shard_tools: ShardTools) -> None:
    photos = make_tree()
    shards = photos.parent / "shards"
    assert shard_tools("build", photos, shards, "--shard-size", 7, "--part", "1/2").returncode == 0
    assert "holds a build that is not finished" in refusal(shards, {"train": ["*"]})


def test_compressed_tars_have_another_way(data: Path) -> None:
    for path in data.glob("val-*.tar"):
        (data / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    way_out = "or train with `data.loader: webdataset`, which needs no index"
    note = f"1 compressed tars cannot be indexed (val-000000.tar.gz): decompress them, {way_out}"
    text = refusal(data)
    assert text.startswith("--split test=val-*.tar: no such tar among the 3")
    assert text.endswith(f"; {note}")
    assert f"  {note}" in index(data, {"train": ["train-*.tar"]}).splitlines()
    with pytest.raises(UserError, match="compressed with gzip; expected a plain tar") as caught:
        write_indexes([str(data / "val-000000.tar.gz")], force=False, workers=1)
    assert way_out in str(caught.value)
    for path in data.glob("*.tar"):
        path.unlink()
    text = refusal(data)
    assert text.startswith(f"{data}: holds no *.tar; expected a tar, or a folder with tars; 1 compressed tars")


def test_images_that_are_not_what_they_should_be_are_said(data: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    shard = {f"s{i}": make_sample(800 + i) for i in range(3)}
    shard["s0"]["fgbg.jpg"] = image(1, "jpg", "RGB", exif=exif)
    shard["s1"]["depth.png"] = shard["s1"]["depth.png"][:90]
    shard["s2"]["mask.png"] = image(2, "png", "RGBA")
    shard["s2"]["bg.jpg"] = image(3, "jpg", "RGB", (8, 8))
    write_samples(data / "train-000009.tar", shard)
    lines = index(data).splitlines()
    assert any(
        "fgbg: 1 images have something wrong, the first: train-000009.tar: s0.fgbg.jpg: turned by 90° by its EXIF "
        "orientation, which training does not honour" in line
        for line in lines
    )
    assert any("depth: 1 images have something wrong, the first: train-000009.tar: s1.depth.png: " in x for x in lines)
    assert "  mask: 1 of 14 images are RGBA (the first: s2); mask is read as grey" in lines
    assert "  bg: images of several sizes; readers scale each to the size of training" in lines
    manifest = read_manifest(data)
    assert [(c.mode, c.size) for c in manifest.components] == [
        ("RGB", None),
        ("RGB", SIZE),
        ("I;16", SIZE),
        ("L,RGBA", SIZE),
    ]


@pytest.mark.parametrize("kind", ["damaged", "floating point"])
def test_a_component_of_which_nothing_can_be_read(tmp_path: Path, kind: str) -> None:
    members = {"bg.jpg": "RGB", "fgbg.jpg": "RGB", "depth.tif": "F", "mask.png": "L"}
    shard = {f"s{i}": make_sample(i, members) for i in range(30)}
    if kind == "damaged":
        for sample in shard.values():
            sample["depth.tif"] = b"no picture"
    write_samples(tmp_path / "a.tar", shard)
    lines = refusal(tmp_path, {"train": ["*"]}).splitlines()
    assert lines[0] == "none of the 30 images of depth can be read:"
    assert lines[1].startswith("  a.tar: s0.depth.tif: ")
    assert {"damaged": "not an image", "floating point": "pixels of floating point"}[kind] in lines[1]
    assert lines[-1] == "  and 10 more"
    assert not (tmp_path / "shards.json").exists()


def test_verify_finds_what_is_wrong_with_adopted_shards(data: Path) -> None:
    index(data)
    path = data / "train-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-3000] + bytes([content[-3000] ^ 1]) + content[-2999:])
    with pytest.raises(UserError, match=r"train-000001\.tar: its SHA-256 is not the one in the manifest"):
        verify(str(data), decode=False, workers=1, json_file=None)


def test_tars_that_a_manifest_cannot_list(data: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "other" / "a.tar", {"k": make_sample(1)})
    text = refusal(data, {"train": ["*"]}, None, tmp_path / "other")
    assert text.startswith("tars in 2 folders (")
    assert "shards.json lies in one folder with all of its tars: move or link them into one" in text
    (tmp_path / "other" / "a.tar").rename(tmp_path / "other" / "a b+c.tar")
    text = refusal(tmp_path / "other", {"train": ["*"]})
    assert text == (
        "1 tars have names with other characters than letters, digits, '_', '-' and '.' (a b+c.tar); rename them"
    )
    odd = write_samples(tmp_path / "odd" / "a.tar", {"k\udcff": make_sample(1)})
    assert f"{odd}: the name 'k\\udcff.bg.jpg' is no UTF-8" in refusal(tmp_path / "odd", {"train": ["*"]})
