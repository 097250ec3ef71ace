"""`shard-tools build` as its users meet it: real files, processes and signals, and the messages they read."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from shard_tools.errors import UserError
from shard_tools.index import parse_index
from shard_tools.manifest import read_manifest

from .packing import content, keys, pack

MakeTree = Callable[..., Path]
ShardTools = Callable[..., subprocess.CompletedProcess[str]]
COMPONENT_FOLDERS = {"fgbg": "overlay", "depth": "depth", "mask": "mask"}


# What is in the shards


def test_shards_hold_the_source_bytes_of_every_tuple(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    pack(source, out)
    names = [shard.file for split in read_manifest(out).splits.values() for shard in split.shards]
    dataset = webdataset.WebDataset([str(out / name) for name in names], shardshuffle=False)
    samples = {sample["__key__"]: sample for sample in dataset}
    assert len(samples) == 4 * 2 * 5
    for key, sample in samples.items():
        place = json.loads(sample["json"])
        b, f, k = place["background"], place["foreground"], place["placement"]
        assert key == f"bg{b}_fg_{f}_{k}"
        assert sample["bg.jpg"] == (source / f"bg/bg{b}.jpg").read_bytes()
        for component, folder in COMPONENT_FOLDERS.items():
            assert sample[f"{component}.jpg"] == (source / f"bg{b}/fg_{f}/{folder}/{k}.jpg").read_bytes()


def test_index_and_manifest_agree_with_the_tars(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    pack(source, out)
    manifest = read_manifest(out)
    for split in manifest.splits.values():
        for shard in split.shards:
            data, index = (out / shard.file).read_bytes(), (out / shard.index).read_bytes()
            assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            assert shard.index_sha256 == hashlib.sha256(index).hexdigest()
            with tarfile.open(out / shard.file) as tar:
                expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
            samples = parse_index(index.decode(), out / shard.index)
            assert len(samples) == shard.samples
            assert [
                (f"{sample.key}.{m.extension}", m.offset, m.size) for sample in samples for m in sample.members
            ] == expected
            listed = subprocess.run(["tar", "tf", out / shard.file], capture_output=True, text=True, check=True)
            assert listed.stdout.split() == [name for name, _, _ in expected]
            assert listed.stderr == ""


def test_manifest_describes_the_tuples(make_tree: MakeTree, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(make_tree(), out, seed=3)
    manifest = read_manifest(out)
    described = [(c.name, c.extension, c.mode, c.size) for c in manifest.components]
    assert described == [
        ("bg", "jpg", "RGB", (24, 16)),
        ("fgbg", "jpg", "RGB", (24, 16)),
        ("depth", "jpg", "L", (24, 16)),
        ("mask", "jpg", "L", (24, 16)),
    ]
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 30, "test": 10}
    assert [shard.samples for shard in manifest.split("train").shards] == [7, 7, 7, 7, 2]
    assert [shard.file for shard in manifest.split("test").shards] == ["test-000000.tar", "test-000001.tar"]
    assert manifest.counts.model_dump() == {"found": 40, "packed": 40, "left_out": 0}
    assert manifest.build["source"] == "photos"
    assert str(tmp_path) not in (out / "shards.json").read_text()
    wanted = {"shards.json", "build_report.json"} | {f"train-{i:06d}.{e}" for i in range(5) for e in ("tar", "idx")}
    assert set(content(out)) == wanted | {f"test-{i:06d}.{e}" for i in range(2) for e in ("tar", "idx")}


def test_components_that_vary_say_so(make_tree: MakeTree, tmp_path: Path) -> None:
    """A mask in RGB is accepted; a background of another size goes with tuples of that size."""
    source, out = make_tree(), tmp_path / "out"
    mask = source / "bg1/fg_1/mask/1.jpg"
    Image.open(mask).convert("RGB").save(mask)
    other = make_tree("other", backgrounds=1, size=(8, 8))
    shutil.copytree(other / "bg1", source / "bg9")
    shutil.copy(other / "bg/bg1.jpg", source / "bg/bg9.jpg")
    pack(source, out)
    manifest = read_manifest(out)
    assert manifest.component("mask").mode == "L,RGB"
    assert {component.size for component in manifest.components} == {None}


def test_png_upper_case_and_mask_with_underscore(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(suffix="PNG", mask_folder="mask_"), tmp_path / "out"
    pack(source, out)
    assert {component.extension for component in read_manifest(out).components} == {"png"}
    with tarfile.open(out / "train-000000.tar") as tar:
        member = tar.extractfile(next(name for name in tar.getnames() if name.endswith(".mask.png")))
        assert member is not None
        assert Image.open(io.BytesIO(member.read())).size == (24, 16)


def test_the_first_tuples_train_and_the_next_test(make_tree: MakeTree, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = pack(make_tree(), out, train=15, test=10)
    assert "the cut after 15 tuples leaves 1 background(s) both in training and in the test split: 2" in summary
    assert "15 of 40 tuples belong to no split" in summary
    order = [f"bg{b}_fg_{f}_{k}" for b in range(1, 5) for f in (1, 2) for k in range(1, 6)]
    assert sorted(keys(out)[:15]) == sorted(order[:15])
    assert sorted(keys(out)[15:]) == sorted(order[15:25])


def test_more_tuples_than_there_are(make_tree: MakeTree, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--train 41: the source has 40 tuples"):
        pack(make_tree(), tmp_path / "out", train=41)


# Same arguments, same bytes


def test_bytes_do_not_depend_on_the_number_of_processes(
    make_tree: MakeTree, shard_tools: ShardTools, tmp_path: Path
) -> None:
    source = make_tree()
    for workers in (1, 4):
        done = shard_tools("build", source, tmp_path / f"out{workers}", "--shard-size", 3, "--workers", workers)
        assert done.returncode == 0, done.stderr
        assert "train: 30 tuples in 10 shards" in done.stdout
        assert f"--data.manifest {tmp_path}/out{workers}" in done.stdout
        assert "packing: 40/40 tuples (100%)" in done.stderr
    assert content(tmp_path / "out1") == content(tmp_path / "out4")


@pytest.mark.parametrize(("workers", "finished_shards"), [(1, 1), (2, 8)])
def test_a_killed_build_is_finished_by_the_same_command(
    make_tree: MakeTree, shard_tools: ShardTools, tmp_path: Path, workers: int, finished_shards: int
) -> None:
    source, out, whole = make_tree(placements=15), tmp_path / "out", tmp_path / "whole"
    pack(source, whole, shard_size=4)
    reference = content(whole)

    killed = start_build(source, out, shard_size=4, workers=workers)
    wait_for_shards(killed, out, finished_shards)
    children = descendants(killed.pid)
    killed.kill()
    killed.wait()
    assert len(children) >= workers - 1
    wait_until_gone(children)

    left = content(out)
    assert "shards.json" not in left
    final = {name: data for name, data in left.items() if name.endswith((".tar", ".idx"))}
    assert finished_shards <= len(final) < len(reference) - 1
    assert all(reference[name] == data for name, data in final.items())

    again = shard_tools("build", source, out, "--shard-size", 4, "--workers", 2)
    assert again.returncode == 0, again.stderr
    if finished_shards > workers:
        assert "were there from an interrupted build and were kept" in again.stdout
    assert content(out) == reference


def test_ctrl_c_leaves_what_the_same_command_finishes(
    make_tree: MakeTree, shard_tools: ShardTools, tmp_path: Path
) -> None:
    source, out, whole = make_tree(placements=15), tmp_path / "out", tmp_path / "whole"
    pack(source, whole, shard_size=4)
    running = start_build(source, out, shard_size=4, workers=2)
    wait_for_shards(running, out, 2)
    children = descendants(running.pid)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted; the same command goes on from here" in errors
    assert "Traceback" not in errors
    wait_until_gone(children)
    assert not list(out.glob("*.partial"))
    assert shard_tools("build", source, out, "--shard-size", 4, "--workers", 2).returncode == 0
    assert content(out) == content(whole)


def test_ctrl_c_while_the_workers_start(make_tree: MakeTree, tmp_path: Path) -> None:
    running = start_build(make_tree(), tmp_path / "out", shard_size=1, workers=2)
    while not any("spawn_main" in command_line(pid) for pid in descendants(running.pid)):
        assert running.poll() is None
    time.sleep(0.2)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in errors


def test_a_killed_worker_is_one_clear_error(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(placements=15), tmp_path / "out"
    running = start_build(source, out, shard_size=4, workers=2)
    wait_for_shards(running, out, 2)
    packer = next(pid for pid in descendants(running.pid) if "spawn_main" in command_line(pid))
    os.kill(packer, signal.SIGKILL)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "a worker process was killed from outside" in errors
    assert "Traceback" not in errors


def test_a_finished_build_is_left_alone(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    pack(source, out)
    before = {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]}
    assert "already complete, nothing to do" in pack(source, out)
    assert {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]} == before


def test_a_finished_build_that_lost_a_shard_is_not_called_complete(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    pack(source, out)
    (out / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"lists train-000001\.tar .* remove the folder and build again"):
        pack(source, out)


def test_finished_shards_stay_while_the_source_is_repaired(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out, whole = make_tree(), tmp_path / "out", tmp_path / "whole"
    pack(source, whole)
    good = (source / "bg1/fg_1/mask/3.jpg").read_bytes()
    (source / "bg1/fg_1/mask/3.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"bg1/fg_1/mask/3\.jpg: empty file"):
        pack(source, out)
    assert len(list(out.glob("*.tar"))) == 6
    damaged = sorted(out.glob("*.tar"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-512] + b"x" * 512)
    (source / "bg1/fg_1/mask/3.jpg").write_bytes(good)
    assert "5 of 7 shards were there" in pack(source, out)
    assert content(out) == content(whole)


# Folders that hold something else


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0 (now 1)"),
        ({"shard_size": 9}, "shard_size 7 (now 9)"),
        ({"train": 9}, "train null (now 9)"),
    ],
)
def test_another_build_in_the_folder_is_refused(
    make_tree: MakeTree, tmp_path: Path, finished: bool, change: dict[str, int], named: str
) -> None:
    source, out = make_tree(), tmp_path / "out"
    if not finished:
        (source / "bg1/fg_1/mask/3.jpg").write_bytes(b"")
    with contextlib.suppress(UserError):
        pack(source, out)
    before = content(out)
    with pytest.raises(UserError) as refused:
        pack(source, out, **change)  # type: ignore[arg-type]
    assert f"holds another build, with {named}" in str(refused.value)
    assert content(out) == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_files_in_the_source_are_another_build(make_tree: MakeTree, tmp_path: Path, finished: bool) -> None:
    source, out = make_tree(), tmp_path / "out"
    if not finished:
        (source / "bg1/fg_1/mask/3.jpg").write_bytes(b"")
    with contextlib.suppress(UserError):
        pack(source, out)
    shutil.rmtree(source / "bg4")
    with pytest.raises(UserError, match="the files of the source are not those it began with"):
        pack(source, out)


def test_files_that_would_be_overwritten_are_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    out.mkdir()
    (out / "train-000002.tar").write_text("mine")
    with pytest.raises(UserError, match=r"holds train-000002\.tar, which this build would overwrite"):
        pack(source, out)
    assert content(out).keys() & {"shards.json", "train-000000.tar"} == set()
    assert (out / "train-000002.tar").read_text() == "mine"


def test_files_that_are_in_nobodys_way_stay(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    pack(source, out)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_second_build_at_the_same_time_is_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    (out / ".build").mkdir(parents=True)
    held = os.open(out / ".build/lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another build is writing here"):
            pack(source, out)
    finally:
        os.close(held)
    pack(source, out)


def test_a_file_in_the_place_of_the_folder(make_tree: MakeTree, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out: cannot be written: File exists"):
        pack(make_tree(), tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_clear_error(make_tree: MakeTree, tmp_path: Path, workers: int) -> None:
    """A limit on the size of files stands in for the disk: write() fails in the same way."""
    source, out = make_tree(), tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "shard_tools", "build", source, out, "--workers", str(workers)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.glob("*.tar"))
    assert not list(out.glob("*.partial"))


# Processes


def start_build(source: Path, out: Path, *, shard_size: int, workers: int) -> subprocess.Popen[str]:
    """A build in a process group of its own."""
    options = ["--shard-size", str(shard_size), "--workers", str(workers)]
    return subprocess.Popen(
        [sys.executable, "-m", "shard_tools", "build", source, out, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_shards(running: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < count:
        assert running.poll() is None, "the build ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    try:
        found = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return found.union(*(descendants(child) for child in found))


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 10
    while left := {pid for pid in pids if is_running(pid)}:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
