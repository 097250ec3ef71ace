"""What each option of `shard-tools build` puts into the shards."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image, ImageOps

from shard_tools.errors import UserError
from shard_tools.manifest import open_shards, read_manifest
from shard_tools.samples import Sample, read_tuples

from .packing import content, keys, pack

MakeTree = Callable[..., Path]


def tuples(out: Path) -> Iterator[Sample]:
    """All tuples of a finished build, as the project's own commands read them."""
    storage, manifest = open_shards(str(out))
    for name, split in manifest.splits.items():
        for shard in split.shards:
            yield from read_tuples(storage, manifest, name, shard)


def source_bytes(source: Path, sample: Sample) -> dict[str, bytes]:
    return {
        name: (source / file).read_bytes()
        for name, file in zip(("bg", "fgbg", "depth", "mask"), sample.metadata["files"], strict=True)
    }


# Which tuples


def test_limits_are_prefixes_in_the_same_shards(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    pack(source, tmp_path / "all")
    whole = keys(tmp_path / "all")
    for limit in (1, 7, 14, 20):
        out = tmp_path / str(limit)
        pack(source, out, limit=limit)
        assert keys(out) == whole[:limit] + whole[30:]
        same = [f"train-{number:06d}.tar" for number in range(limit // 7)] + ["test-000000.tar", "test-000001.tar"]
        assert all((out / name).read_bytes() == (tmp_path / "all" / name).read_bytes() for name in same)
        assert read_manifest(out).build["limit"] == limit


@pytest.mark.parametrize(("by", "component"), [("backgrounds", "background"), ("foregrounds", "foreground")])
def test_held_out_groups_test_alone(make_tree: MakeTree, tmp_path: Path, by: str, component: str) -> None:
    out = tmp_path / "out"
    summary = pack(make_tree(foregrounds=3), out, by=by, hold_out=("2",))
    manifest = read_manifest(out)
    found = [sample.metadata[component] for sample in tuples(out)]
    train = manifest.splits["train"].samples
    assert set(found[train:]) == {2}
    assert 2 not in found[:train]
    assert len(found) == 60
    assert f"{by} held out for the test split: 1 of {4 if by == 'backgrounds' else 3} (2)" in summary


def test_a_fraction_tests(make_tree: MakeTree, tmp_path: Path) -> None:
    pack(make_tree(), tmp_path / "out", by="fraction", test_share=0.1)
    assert {name: split.samples for name, split in read_manifest(tmp_path / "out").splits.items()} == {
        "train": 36,
        "test": 4,
    }


# Sizes of shards


def test_shards_of_about_so_many_bytes(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree(backgrounds=4, foregrounds=5, placements=10, size=(48, 32))
    for target in (30_000, 100_000):
        out = tmp_path / str(target)
        pack(source, out, shard_bytes=target)
        sizes = [shard.bytes for shard in read_manifest(out).split("train").shards[:-1]]
        assert len(sizes) > 3
        assert all(abs(size - target) < 0.2 * target for size in sizes)
        before = content(out)
        assert "already complete" in pack(source, out, shard_bytes=target)
        assert content(out) == before


def test_samples_and_bytes_are_two_ways(make_tree: MakeTree, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--shard-size and --shard-bytes: expected one of them"):
        pack(make_tree(), tmp_path / "out", shard_size=5, shard_bytes=1000)


# Backgrounds stored once


def test_shared_backgrounds_are_stored_once_a_split(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out, own = make_tree(), tmp_path / "out", tmp_path / "own"
    summary = pack(source, out, backgrounds="shared", train=25, test=15)
    pack(source, own, train=25, test=15)
    manifest = read_manifest(out)
    held = {
        name: [sample["__key__"] for sample in read_plain(out, [shard.file for shard in split.backgrounds])]
        for name, split in manifest.splits.items()
    }
    assert held == {"train": ["bg1", "bg2", "bg3"], "test": ["bg3", "bg4"]}
    assert keys(out) == keys(own)
    for shared, complete in zip(tuples(out), tuples(own), strict=True):
        assert shared.images == complete.images == source_bytes(source, shared)
        assert shared.metadata == {**complete.metadata, "bg": f"bg{complete.metadata['background']}"}
    assert "with 3 backgrounds stored once in 1 of their own" in summary
    assert sum(s.bytes for n in manifest.splits.values() for s in n.files) < sum(
        s.bytes for n in read_manifest(own).splits.values() for s in n.files
    )


def test_a_bad_background_takes_its_tuples_with_it(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    (source / "bg/bg2.jpg").write_bytes(b"")
    pack(source, out, backgrounds="shared", on_bad="skip")
    manifest = read_manifest(out)
    assert manifest.counts.model_dump() == {"found": 40, "packed": 30, "left_out": 10}
    assert {sample.metadata["background"] for sample in tuples(out)} == {1, 3, 4}
    assert sum(shard.samples for shard in manifest.splits["train"].backgrounds) == 2


def read_plain(out: Path, names: list[str]) -> list[dict[str, Any]]:
    return list(webdataset.WebDataset([str(out / name) for name in names], shardshuffle=False))


# Encoded anew


def test_size_encodes_once_with_masks_lossless(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(size=(48, 48)), tmp_path / "out"
    pack(source, out, size=16, quality=95)
    manifest = read_manifest(out)
    assert [(c.name, c.extension, c.mode, c.size) for c in manifest.components] == [
        ("bg", "jpg", "RGB", (16, 16)),
        ("fgbg", "jpg", "RGB", (16, 16)),
        ("depth", "jpg", "L", (16, 16)),
        ("mask", "png", "L", (16, 16)),
    ]
    for sample in list(tuples(out))[:10]:
        for name, original in source_bytes(source, sample).items():
            stored = Image.open(io.BytesIO(sample.images[name]))
            assert stored.format == ("PNG" if name == "mask" else "JPEG")
            resampling = {"depth": Image.Resampling.BILINEAR, "mask": Image.Resampling.BOX}
            expected = Image.open(io.BytesIO(original)).resize((16, 16), resampling.get(name, Image.Resampling.LANCZOS))
            difference = np.abs(np.asarray(stored, np.int16) - np.asarray(expected, np.int16))
            assert difference.max() <= 1 if name == "mask" else difference.mean() < 16, name


def test_a_binary_mask_stays_binary(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(backgrounds=2, foregrounds=1, size=(32, 32), suffix="png"), tmp_path / "out"
    for path in source.glob("bg*/fg_1/mask/*.png"):
        mask = Image.new("1", (32, 32))
        mask.paste(1, (8, 4, 20, 24))
        mask.save(path)
    pack(source, out, size=16)
    for sample in tuples(out):
        pixels = np.asarray(Image.open(io.BytesIO(sample.images["mask"])))
        assert set(np.unique(pixels)) == {0, 255}
        assert (pixels > 0).sum() == 6 * 10


def test_sixteen_bits_of_depth_stay(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(backgrounds=2, foregrounds=1, size=(32, 32)), tmp_path / "out"
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    for path in source.glob("bg*/fg_1/depth/*.jpg"):
        path.unlink()
        Image.fromarray(ramp).save(path.with_suffix(".png"))
    pack(source, out, size=16)
    assert read_manifest(out).component("depth").mode == "I;16"
    stored = np.asarray(Image.open(io.BytesIO(next(tuples(out)).images["depth"])))
    assert stored.dtype == np.uint16
    rows = ramp.astype(float).reshape(16, 2, 16, 2).mean(axis=(1, 3))
    assert np.abs(stored[1:-1, 1:-1] - rows[1:-1, 1:-1]).max() < 1000


def test_rotated_files_are_straightened_with_size_and_refused_without(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree(size=(24, 16))
    path = source / "bg2/fg_1/overlay/3.jpg"
    upright = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(path, exif=exif, quality=100, subsampling=0)
    with pytest.raises(UserError, match=r"overlay/3\.jpg: is turned by 90° by its EXIF orientation.*--size"):
        pack(source, tmp_path / "refused")
    pack(source, tmp_path / "out", size=16)
    stored = next(sample for sample in tuples(tmp_path / "out") if sample.key == "bg2_fg_1_3")
    pixels = np.asarray(Image.open(io.BytesIO(stored.images["fgbg"])), np.int16)
    expected = np.asarray(
        ImageOps.exif_transpose(Image.open(path)).resize((16, 16), Image.Resampling.LANCZOS), np.int16
    )
    turned = np.asarray(Image.open(path).resize((16, 16), Image.Resampling.LANCZOS), np.int16)
    assert np.abs(pixels - expected).mean() < np.abs(pixels - turned).mean() / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 90}, "--quality: is for --size"),
        ({"size": 4}, "--size 4: expected 8 to 4096 pixels"),
        ({"size": 16, "quality": 0}, "--quality 0: expected 1 to 100"),
        ({"shard_bytes": 0}, "--shard-bytes 0: expected 1 or more"),
        ({"limit": 31}, "--limit 31: the train split has 30 tuples"),
    ],
)
def test_options_out_of_range(make_tree: MakeTree, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(make_tree(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# Checks


def test_nothing_is_looked_at_without_a_check(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    (source / "bg2/fg_1/mask/3.jpg").write_text("no image")
    pack(source, out, check="none")
    manifest = read_manifest(out)
    assert {(c.mode, c.size) for c in manifest.components} == {("unknown", None)}
    assert b"no image" in {sample.images["mask"] for sample in tuples(out)}
    (source / "bg2/fg_1/mask/4.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"mask/4\.jpg: empty file"):
        pack(source, tmp_path / "other", check="none")


def test_decoding_finds_what_headers_do_not_tell(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree(size=(64, 64))
    path = source / "bg2/fg_1/overlay/3.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    pack(source, tmp_path / "header")
    with pytest.raises(UserError, match=r"overlay/3\.jpg: cannot be decoded: damaged JPEG"):
        pack(source, tmp_path / "decode", check="decode")
    report = json.loads((tmp_path / "decode/build_report.json").read_text())
    assert report["check"] == "decode"
    assert report["kinds"] == {"damaged": {"files": 1, "tuples": 1}}


def test_a_mask_in_rgb_is_noted_and_one_in_colour_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    gray, colour = source / "bg1/fg_1/mask/2.jpg", source / "bg4/fg_2/mask/5.jpg"
    Image.open(gray).convert("RGB").save(gray)
    summary = pack(source, tmp_path / "gray", check="decode")
    assert "mask: 1 of 40 images are RGB (the first: bg1_fg_1_2); mask is read as grey" in summary
    Image.new("RGB", (24, 16), (255, 0, 0)).save(colour)
    assert "mask: 2 of 40 images are RGB" in pack(source, tmp_path / "header")
    with pytest.raises(UserError, match=r"bg4/fg_2/mask/5\.jpg: has coloured pixels, but mask is read as grey"):
        pack(source, tmp_path / "decode", check="decode")


# Metadata


def test_json_names_the_files_as_they_were(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(suffix="JPEG", mask_folder="mask_"), tmp_path / "out"
    pack(source, out)
    for sample in tuples(out):
        assert sample.images == source_bytes(source, sample)
        assert sample.metadata["files"][3].split("/")[2] == "mask_"
    with tarfile.open(out / "train-000000.tar") as tar:
        assert all(member.size <= 512 for member in tar.getmembers() if member.name.endswith(".json"))


# The command line


@pytest.mark.parametrize("names", ["", ",", " , "])
def test_holding_out_nothing_is_refused(
    make_tree: MakeTree, tmp_path: Path, shard_tools: Callable[..., Any], names: str
) -> None:
    """An empty list, as of a shell variable that is not set, must not become a share of all."""
    source, out = make_tree(), tmp_path / "out"
    refused = shard_tools("build", source, out, "--split", "backgrounds", "--hold-out", names, "--workers", 1)
    assert refused.returncode == 2
    assert "argument --hold-out: expected names, such as 7,12" in refused.stderr
    assert not out.exists()


def test_with_size_a_mask_may_be_smaller_but_not_of_another_shape(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree(size=(64, 32))
    path = source / "bg2/fg_1/mask/3.jpg"
    Image.new("L", (32, 16)).save(path)
    with pytest.raises(UserError, match=r"mask/3\.jpg: 32×16 pixels, but its bg has 64×32"):
        pack(source, tmp_path / "unchanged")
    pack(source, tmp_path / "out", size=16)
    Image.new("L", (64, 16)).save(path)
    with pytest.raises(UserError, match=r"mask/3\.jpg: 64×16 pixels, but its bg has 64×32"):
        pack(source, tmp_path / "other", size=16)


def test_what_was_recognised_is_said_before_the_work(
    make_tree: MakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(make_tree(), tmp_path / "out", train=15)
    said = capsys.readouterr().err
    assert said.startswith("layout: nested (it has folders like bg1/fg_1/)\nnote: the cut after 15 tuples leaves")
    assert "packing: " in said
