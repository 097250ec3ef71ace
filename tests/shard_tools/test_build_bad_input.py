"""What `shard-tools build` says of bad input, and what it leaves behind."""

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard_tools.errors import UserError
from shard_tools.manifest import read_manifest

from .packing import content, keys, pack

MakeTree = Callable[..., Path]
ShardTools = Callable[..., subprocess.CompletedProcess[str]]


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def _missing(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _text(path: Path) -> None:
    path.write_text("this is no image\n")


def _other_size(path: Path) -> None:
    path.write_bytes(jpeg(12, 16))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.jpg")


BAD = [
    (_missing, "missing"),
    (_empty, "empty file (0 bytes)"),
    (_truncated, "truncated JPEG"),
    (_text, "not an image that can be read"),
    (_other_size, "12×16 pixels, but its bg has 24×16"),
    (_folder, "cannot be read: Is a directory"),
    (_dangling, "cannot be read: No such file or directory"),
]


@pytest.mark.parametrize(("spoil", "text"), BAD)
def test_bad_file_stops_the_build_with_a_list(
    make_tree: MakeTree, tmp_path: Path, spoil: Callable[[Path], None], text: str
) -> None:
    source, out = make_tree(), tmp_path / "out"
    spoil(source / "bg2/fg_1/mask/3.jpg")
    spoil(source / "bg4/fg_2/depth/5.jpg")
    with pytest.raises(UserError) as stopped:
        pack(source, out)
    message = str(stopped.value)
    assert message.startswith("2 of 40 tuples cannot be packed:\n")
    assert f"\n  bg2/fg_1/mask/3.jpg: {text}" in message
    assert f"\n  bg4/fg_2/depth/5.jpg: {text}" in message
    assert "--on-bad skip" in message
    assert not (out / "shards.json").exists()
    report = json.loads((out / "build_report.json").read_text())
    assert (report["found"], report["bad"]) == (40, 2)
    assert report["problems"][0]["file"] == "bg2/fg_1/mask/3.jpg"
    assert report["problems"][0]["tuples"] == ["bg2_fg_1_3"]
    assert text in report["problems"][0]["problem"]


@pytest.mark.parametrize(("spoil", "text"), BAD)
def test_bad_file_is_left_out_with_its_tuple(
    make_tree: MakeTree, tmp_path: Path, spoil: Callable[[Path], None], text: str
) -> None:
    source, out = make_tree(), tmp_path / "out"
    spoil(source / "bg2/fg_1/mask/3.jpg")
    summary = pack(source, out, on_bad="skip")
    assert f"left out: 1 of 40 tuples, listed in {out}/build_report.json" in summary
    assert read_manifest(out).counts.model_dump() == {"found": 40, "packed": 39, "left_out": 1}
    packed = keys(out)
    assert len(packed) == 39
    assert "bg2_fg_1_3" not in packed
    report = json.loads((out / "build_report.json").read_text())
    assert [problem["tuples"] for problem in report["problems"]] == [["bg2_fg_1_3"]]
    assert text in report["problems"][0]["problem"]
    assert "already complete" in pack(source, out, on_bad="skip")
    with pytest.raises(UserError, match=r'on_bad "skip" \(now "fail"\)'):
        pack(source, out)


def test_on_bad_skip_goes_on_from_a_build_that_failed(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out, whole = make_tree(), tmp_path / "out", tmp_path / "whole"
    _truncated(source / "bg2/fg_1/mask/3.jpg")
    with pytest.raises(UserError, match="truncated JPEG"):
        pack(source, out)
    assert "6 of 7 shards were there" in pack(source, out, on_bad="skip")
    pack(source, whole, on_bad="skip")
    assert content(out) == content(whole)


@pytest.mark.parametrize("spoil", [_missing, _empty])
def test_a_bad_background_is_one_line(make_tree: MakeTree, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    source = make_tree()
    spoil(source / "bg/bg2.jpg")
    with pytest.raises(UserError) as stopped:
        pack(source, tmp_path / "out")
    assert str(stopped.value).startswith("10 of 40 tuples cannot be packed:\n  bg/bg2.jpg: ")
    assert "(10 tuples)\n" in str(stopped.value)
    pack(source, tmp_path / "out", on_bad="skip")
    assert read_manifest(tmp_path / "out").counts.model_dump() == {"found": 40, "packed": 30, "left_out": 10}


def test_a_long_list_is_cut_and_the_report_is_not(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(placements=15), tmp_path / "out"
    for f in (1, 2):
        for k in range(1, 16):
            _text(source / f"bg1/fg_{f}/depth/{k}.jpg")
    with pytest.raises(UserError, match=r"30 of 120 tuples cannot be packed") as stopped:
        pack(source, out)
    lines = str(stopped.value).splitlines()
    assert lines[1].startswith("  bg1/fg_1/depth/1.jpg: ")
    assert lines[2].startswith("  bg1/fg_1/depth/2.jpg: ")
    assert lines[21] == "  and 10 more"
    assert len(json.loads((out / "build_report.json").read_text())["problems"]) == 30


def test_a_shard_without_a_good_tuple_is_not_written(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    _text(source / "bg2/fg_1/mask/3.jpg")
    pack(source, out, shard_size=1, on_bad="skip")
    manifest = read_manifest(out)
    assert sum(len(split.shards) for split in manifest.splits.values()) == 39
    assert len(list(out.glob("*.tar"))) == len(list(out.glob("*.idx"))) == 39


@pytest.mark.parametrize("spoil", [_missing, _text])
def test_a_split_without_a_good_tuple_is_refused(
    make_tree: MakeTree, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    source, out = make_tree(backgrounds=1), tmp_path / "out"
    for f in (1, 2):
        for k in range(1, 6):
            spoil(source / f"bg1/fg_{f}/overlay/{k}.jpg")
    with pytest.raises(UserError, match=r"(10 of 10|none of the train split's) tuples can(not)? be packed"):
        pack(source, out, on_bad="skip")
    assert not (out / "shards.json").exists()
    assert len(json.loads((out / "build_report.json").read_text())["problems"]) == 10


def test_a_report_of_problems_goes_with_them(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    (source / "bg1/fg_1/mask/3.jpg").rename(tmp_path / "kept.jpg")
    with pytest.raises(UserError, match="missing"):
        pack(source, out)
    (tmp_path / "kept.jpg").rename(source / "bg1/fg_1/mask/3.jpg")
    pack(source, out)
    report = json.loads((out / "build_report.json").read_text())
    assert report == {"found": 40, "check": "header", "bad": 0, "kinds": {}, "problems": []}


def test_the_command_line_prints_one_message(shard_tools: ShardTools, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, text in (("nowhere", "no such folder"), ("empty", "no tuples found")):
        done = shard_tools("build", tmp_path / source, tmp_path / "out")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith(f"shard-tools: {tmp_path}/{source}: {text}; expected ")
        assert not (tmp_path / "out").exists()
