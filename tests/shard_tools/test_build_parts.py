"""A build in parts, one after the other or all at once, is the build in one go."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shard_tools.build import Part, build, merge
from shard_tools.build_plan import BuildOptions
from shard_tools.errors import UserError
from shard_tools.manifest import read_manifest
from shard_tools.pack import Packed, ShardTask, pack_shard
from shard_tools.source_images import BadImageError, ImageRules, SourceImages

from .packing import content, pack

MakeTree = Callable[..., Path]


@pytest.mark.parametrize(("count", "options"), [(1, {}), (3, {}), (20, {}), (2, {"backgrounds": "shared"})])
def test_parts_and_merge_make_the_same_bytes(
    make_tree: MakeTree, tmp_path: Path, count: int, options: dict[str, Any]
) -> None:
    source, out, whole = make_tree(), tmp_path / "out", tmp_path / "whole"
    for number in reversed(range(1, count + 1)):
        summary = pack(source, out, part=Part(number, count), **options)
        assert f"part {number}/{count}: " in summary
        assert f"when all {count} parts are there: shard-tools merge {out}" in summary
        assert not (out / "shards.json").exists()
    summary = merge(out)
    assert "train: 30 tuples in 5 shards" in summary
    pack(source, whole, **options)
    assert content(out) == content(whole)
    assert "already complete" in merge(out)
    assert "already complete" in pack(source, out, part=Part(1, count), **options)


def test_parts_run_at_the_same_time(make_tree: MakeTree, tmp_path: Path) -> None:
    """As the tasks of a Slurm array do."""
    source, out, whole = make_tree(), tmp_path / "out", tmp_path / "whole"
    options = ["--shard-size", "2", "--workers", "1"]
    command = [sys.executable, "-m", "shard_tools", "build", str(source), str(out), *options]
    running = [
        subprocess.Popen([*command, "--part", f"{number}/3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for number in (1, 2, 3)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    merged = subprocess.run([sys.executable, "-m", "shard_tools", "merge", out], check=False, timeout=60)
    assert merged.returncode == 0
    pack(source, whole, shard_size=2)
    assert content(out) == content(whole)


def test_merging_too_early_names_what_is_missing(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    pack(source, out, part=Part(2, 3))
    with pytest.raises(UserError, match=r"5 of 7 shards are not there yet: train-000000, train-000002, train-000003"):
        merge(out)
    for number in (1, 3):
        pack(source, out, part=Part(number, 3))
    (out / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"1 of 7 shards that were packed are not there: train-000001\.tar; does"):
        merge(out)
    assert "2 of 2 shards were there" not in pack(source, out, part=Part(2, 3))
    merge(out)


def test_a_whole_build_finishes_parts(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    pack(source, out, part=Part(1, 2))
    assert "4 of 7 shards were there" in pack(source, out)


def test_parts_of_other_arguments_are_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    pack(source, out, part=Part(1, 2))
    with pytest.raises(UserError, match=r"holds another build, with seed 0 \(now 1\)"):
        pack(source, out, part=Part(2, 2), seed=1)


def test_a_bad_part_has_a_report_of_its_own(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    for path in (source / "bg1/fg_1/mask").iterdir():
        path.write_bytes(b"")
    failed = []
    for number in (1, 2):
        with pytest.raises(UserError, match="empty file") as stopped:
            pack(source, out, part=Part(number, 2))
        assert f"build_report-{number}-of-2.json" in str(stopped.value)
        failed += json.loads((out / f"build_report-{number}-of-2.json").read_text())["problems"]
    assert len(failed) == 5
    with pytest.raises(UserError, match="shards are not there yet"):
        merge(out)
    for number in (1, 2):
        pack(source, out, part=Part(number, 2), on_bad="skip")
    assert "left out: 5 of 40 tuples" in merge(out)


def test_merge_where_there_are_no_parts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no parts of a build; expected the OUT of `shard-tools build"):
        merge(tmp_path / "nowhere")
    (tmp_path / ".build").mkdir()
    (tmp_path / ".build/plan.json").write_text("{}")
    with pytest.raises(UserError, match=r"plan\.json: not the plan of a build by this version; remove"):
        merge(tmp_path)


@pytest.mark.parametrize(("number", "count"), [(0, 3), (4, 3), (1, 0)])
def test_a_part_that_is_none(number: int, count: int) -> None:
    with pytest.raises(UserError, match=rf"--part {number}/{count}: expected I/N with 1 <= I <= N"):
        Part(number, count)


# A source that changes


def test_a_background_that_changes_during_the_build(make_tree: MakeTree, tmp_path: Path) -> None:
    """Shards of two states of the source never come together; the same command mends it."""
    source, out, whole = make_tree(), tmp_path / "out", tmp_path / "whole"
    other = make_tree("other", backgrounds=3)
    pack(source, out, part=Part(1, 2))
    shutil.copyfile(other / "bg/bg3.jpg", source / "bg/bg1.jpg")
    pack(source, out, part=Part(2, 2))
    with pytest.raises(UserError, match=r"background bg1 changed while the build ran: train-00000\d and train-00000\d"):
        merge(out)
    assert not (out / "shards.json").exists()
    summary = pack(source, out)
    assert "4 of 7 shards were there from an interrupted build" in summary
    pack(source, whole)
    assert content(out) == content(whole)


def test_a_file_that_changed_since_its_shard_was_packed(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out, whole = make_tree(), tmp_path / "out", tmp_path / "whole"
    pack(source, out, part=Part(1, 1))
    path = source / "bg4/fg_2/depth/5.jpg"
    shutil.copyfile(source / "bg4/fg_2/depth/4.jpg", path)
    assert "6 of 7 shards were there" in pack(source, out)
    pack(source, whole)
    assert content(out) == content(whole)


def test_another_source_under_the_same_name(make_tree: MakeTree, tmp_path: Path) -> None:
    """As a worker of a cluster, which outlives a build, may meet it."""
    source = make_tree()
    pack(source, tmp_path / "first")
    source.rename(tmp_path / "moved")
    make_tree("other", size=(16, 24)).rename(source)
    pack(source, tmp_path / "second")
    assert read_manifest(tmp_path / "second").component("bg").size == (16, 24)


def test_a_file_that_is_being_written_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "growing.jpg"
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    path.write_bytes(file.getvalue())
    images = SourceImages(tmp_path, ImageRules())
    load = images.loader("fgbg", "jpg")
    assert load(path.name).data == file.getvalue()
    stop = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as growing:
            while not stop.is_set():
                growing.write(b"\0")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(BadImageError, match="was changed while it was being read"):
            for _ in range(10_000):
                load(path.name)
    finally:
        stop.set()
        writer.join()


# What must not go together, and what may come late


def test_parts_of_two_plans_are_never_merged(make_tree: MakeTree, tmp_path: Path) -> None:
    """Two that begin at the same time may both find the folder free."""
    source, out, other = make_tree(), tmp_path / "out", tmp_path / "other"
    pack(source, out, part=Part(1, 2))
    pack(source, other, part=Part(2, 2), seed=1)
    for kind in ("*.tar", "*.idx", ".build/records/*.json"):
        for path in other.glob(kind):
            shutil.copy(path, out / path.relative_to(other))
    with pytest.raises(UserError, match="3 of 7 shards are not there yet: train-000001, train-000003, test-000000"):
        merge(out)
    pack(source, out, part=Part(2, 2))
    merge(out)
    pack(source, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_a_task_that_comes_late_changes_nothing(make_tree: MakeTree, tmp_path: Path) -> None:
    """A cluster runs a task again that it took for lost; by then the build may be finished, and the source gone."""
    source, out = make_tree(), tmp_path / "out"
    tasks: list[ShardTask] = []

    def execute(function: Callable[[ShardTask], Packed], given: Iterable[ShardTask]) -> Iterator[Packed]:
        tasks.extend(given)
        return map(function, tasks)

    build(source, out, BuildOptions(shard_size=7), execute)
    before = content(out)
    (source / "bg/bg1.jpg").unlink()
    for task in tasks:
        with pytest.raises(UserError, match=r"train-000000|train-00000\d|test-00000\d"):
            pack_shard(task)
    assert content(out) == before


def test_merge_that_was_killed_while_it_tidied_up(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    pack(source, out, part=Part(1, 1))
    state = shutil.copytree(out / ".build", tmp_path / "state")
    merge(out)
    finished = content(out)
    shutil.copytree(state, out / ".build")
    (out / ".build/records/train-000002.json").unlink()
    assert "already complete" in merge(out)
    assert content(out) == finished


def test_a_build_killed_between_its_first_two_files(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    pack(source, out, part=Part(1, 2))
    for path in (out / ".build").iterdir():
        if path.is_file() and path.name != "plan.json":
            path.unlink()
    assert "4 of 7 shards were there" in pack(source, out)


def test_relative_paths_mean_the_same_for_workers_elsewhere(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tree()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def execute(function: Callable[[ShardTask], Packed], tasks: Iterable[ShardTask]) -> Iterator[Packed]:
        for task in tasks:
            os.chdir(tmp_path / "elsewhere")
            packed = function(task)
            os.chdir(tmp_path)
            yield packed

    build(Path(source.name), "out", BuildOptions(shard_size=7), execute)
    pack(source, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_shards_that_lie_elsewhere_are_missed(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"

    def execute(function: Callable[[ShardTask], Packed], tasks: Iterable[ShardTask]) -> Iterator[Packed]:
        for task in tasks:
            yield function(task)
            (out / f"{task.name}.tar").unlink()

    with pytest.raises(UserError, match=r"7 of 7 shards that were packed are not there: .*does every worker see this"):
        build(source, out, BuildOptions(shard_size=7), execute)
    assert not (out / "shards.json").exists()


def test_a_background_that_fails_only_in_its_own_shard(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    background, hidden = source / "bg/bg1.jpg", tmp_path / "hidden.jpg"

    def execute(function: Callable[[ShardTask], Packed], tasks: Iterable[ShardTask]) -> Iterator[Packed]:
        for task in tasks:
            alone = task.name.startswith("backgrounds-train")
            if alone:
                background.rename(hidden)
            yield function(task)
            if alone:
                hidden.rename(background)

    for on_bad in ("fail", "skip"):
        options = BuildOptions(shard_size=7, backgrounds="shared", on_bad=on_bad)
        with pytest.raises(UserError, match=r"backgrounds could be read for their tuples[^.]*bg/bg1\.jpg: cannot be"):
            build(source, out, options, execute)
        assert not (out / "shards.json").exists()
    pack(source, out, backgrounds="shared")
    pack(source, tmp_path / "whole", backgrounds="shared")
    assert content(out) == content(tmp_path / "whole")


def test_a_passing_error_does_not_leave_a_tuple_out_for_ever(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    mask, hidden = source / "bg1/fg_1/mask/1.jpg", tmp_path / "hidden.jpg"

    def execute(function: Callable[[ShardTask], Packed], tasks: Iterable[ShardTask]) -> Iterator[Packed]:
        mask.rename(hidden)
        mask.mkdir()
        for task in tasks:
            yield function(task)
        mask.rmdir()
        hidden.rename(mask)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, out, BuildOptions(shard_size=7, on_bad="skip"), execute)
    assert "6 of 7 shards were there" in pack(source, out, on_bad="skip")
    assert read_manifest(out).counts.model_dump() == {"found": 40, "packed": 40, "left_out": 0}


def test_what_killed_builds_leave_is_removed_by_the_next(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(), tmp_path / "out"
    (source / "bg1/fg_1/mask/1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="empty file"):
        pack(source, out)
    (out / "train-000001.tar.0123456789ab.partial").write_bytes(b"half")
    with pytest.raises(UserError, match="empty file"):
        pack(source, out)
    assert not list(out.glob("*.partial"))


def test_bytes_of_shards_mean_the_same_number_after_a_repair(make_tree: MakeTree, tmp_path: Path) -> None:
    source, out = make_tree(size=(64, 48)), tmp_path / "out"
    path = source / "bg1/fg_1/overlay/1.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    with pytest.raises(UserError, match="truncated JPEG"):
        pack(source, out, shard_bytes=60_000)
    path.write_bytes(whole)
    pack(source, out, shard_bytes=60_000)
    path.write_bytes(b"x" * 500_000)
    assert "already complete" in pack(source, out, shard_bytes=60_000)
