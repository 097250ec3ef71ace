"""What `shard-tools build` says of bad input, and what it leaves behind."""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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


def _huge(path: Path) -> None:
    data = bytearray(jpeg(8, 8))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (50_000).to_bytes(2, "big") * 2
    path.write_bytes(data)


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)


def _png_named_jpg(path: Path) -> None:
    Image.open(path).save(path, "PNG")


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
    (_huge, "50000×50000 pixels, more than the limit of 134,217,728"),
    (_rotated, "is turned by 180° by its EXIF orientation"),
    (_png_named_jpg, "holds a PNG image, but its name says JPEG"),
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


def test_kinds_of_problems_are_counted(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    for k in (1, 2, 3):
        _empty(source / f"bg1/fg_1/mask/{k}.jpg")
    _truncated(source / "bg1/fg_1/depth/3.jpg")
    with pytest.raises(UserError) as stopped:
        pack(source, out)
    table = [line.split() for line in str(stopped.value).splitlines()[5:8]]
    assert table == [["problem", "files", "tuples"], ["empty", "3", "3"], ["truncated", "1", "1"]]
    kinds = json.loads((out / "build_report.json").read_text())["kinds"]
    assert kinds == {"empty": {"files": 3, "tuples": 3}, "truncated": {"files": 1, "tuples": 1}}


AS_NOBODY = """
import os, sys
import multiprocessing.synchronize, shard_tools.build, shard_tools.cluster, shard_tools.workers
from shard_tools.cli import main
if os.getuid() == 0:  # for root, permissions are no obstacle
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may go into, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_permissions(make_tree: MakeTree, open_folder: Path) -> None:
    """A file, a folder and an OUT that may not be read or written, met by a user who is not root."""
    source, locked = (Path(shutil.copytree(make_tree(), open_folder / name)) for name in ("source", "locked"))
    out = open_folder / "out"
    out.mkdir()
    out.chmod(0o777)
    (source / "bg2/fg_1/mask/3.jpg").chmod(0)
    (locked / "bg2/fg_1/mask").chmod(0)

    def run(source: Path, out: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, "build", source, out, "--workers", "1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "\n  bg2/fg_1/mask/3.jpg: cannot be read: Permission denied" in run(source, out)
    assert f"{locked}/bg2/fg_1/mask: cannot be listed: Permission denied" in run(locked, out)
    (source / "bg2/fg_1/mask/3.jpg").chmod(0o644)
    mine = open_folder / "mine"
    mine.mkdir(mode=0o700)
    assert f"{mine}/shards.json: cannot be " in run(source, mine)
    (locked / "bg2/fg_1/mask").chmod(0o755)


def test_spaces_and_letters_of_other_scripts(make_tree: MakeTree, tmp_path: Path, shard_tools: ShardTools) -> None:
    source, out = make_tree("Zimmer für 客人 №1"), tmp_path / "geräumte Räume"
    done = shard_tools("build", source, out)
    assert done.returncode == 0, done.stderr
    assert read_manifest(out).build["source"] == "Zimmer für 客人 №1"
    assert "already complete" in shard_tools("build", source, out).stdout
    (source / "bg1/fg_1/mask/1.jpg").write_bytes(b"")
    failed = shard_tools("build", source, tmp_path / "übrig")
    assert f"All of them are in {tmp_path}/übrig/build_report.json" in failed.stderr


def test_a_disk_that_fills_up(make_tree: MakeTree, tmp_path: Path) -> None:
    """A real one of 200 kB; with room the same command goes on."""
    source, disk, out = make_tree(), tmp_path / "disk", tmp_path / "whole"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises(UserError, match=r"cannot be written: No space left on device; OUT has to be"):
            pack(source, disk)
        assert not (disk / "shards.json").exists()
        assert not list(disk.glob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=2m", disk], check=True)
        assert "shards were there from an interrupted build" in pack(source, disk)
        pack(source, out)
        assert content(disk) == content(out)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_command_line_prints_one_message(shard_tools: ShardTools, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, text in (("nowhere", "no such folder or table"), ("empty", "no tuples found")):
        done = shard_tools("build", tmp_path / source, tmp_path / "out")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith(f"shard-tools: {tmp_path}/{source}: {text}; expected ")
        assert not (tmp_path / "out").exists()
