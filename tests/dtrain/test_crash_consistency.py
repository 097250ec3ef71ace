"""A run stopped after every single operation on a file, by a kill or a power cut, goes on as it should.

What a run does with its folder is done once, for real, and recorded. Every beginning of the record is then a folder
that a crash may have left; in each, the same command is given again.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dtrain import tensor_file
from dtrain.bucket import Bucket
from dtrain.checkpoint import checkpoint_name, is_checkpoint, save_checkpoint, step_of
from dtrain.config import Config
from shard_tools.storage import LocalStorage

from .crash_disk import Data, Disk, Names, Operation, Recorder, Tree, read_tree, replay, write_tree
from .crash_scenario import (
    BEST,
    BETWEEN,
    KEEP_LAST,
    SMALL_PIECES,
    Process,
    Promise,
    checkpoint,
    fill,
    life,
    make_config,
    metrics,
)
from .test_checkpoint import contents

ROOT = Path(__file__).parents[2]
IN_MEMORY = Path("/dev/shm")
FILES = {".lock", "checkpoints", "config.yaml", "events.jsonl", "metrics.jsonl", "status.json"}
KILL: tuple[Names, Data] = ("kept", "kept")
CUTS: list[tuple[Names, Data]] = [
    ("kept", "half"),
    ("kept", "zeros"),
    ("kept", "lost"),
    ("lost", "kept"),
    ("lost", "half"),
    ("lost", "lost"),
    ("fewest", "kept"),
    ("fewest", "lost"),
]


Whole = Callable[[int], Tree]
"""The files of a checkpoint, as they should be."""


class Crash(NamedTuple):
    """A folder that a crash left."""

    run: Path
    last: Operation | None
    """The last operation that was at least half done."""
    promise: Promise
    tree: Tree

    def __str__(self) -> str:
        return f"after {self.last}, {self.promise}"

    def checkpoints(self) -> dict[int, Tree]:
        """The files of each folder with the name of a checkpoint."""
        found: dict[int, Tree] = {}
        for path, content in self.tree.items():
            folder, _, rest = path.removeprefix(f"{self.run.name}/checkpoints/").partition("/")
            if is_checkpoint(folder):
                files = found.setdefault(step_of(folder), {})
                if rest:
                    files[rest] = content
        return found


class Life(NamedTuple):
    """A record, and what has to hold when."""

    run: Path
    log: list[Operation]
    promises: list[Promise]
    last: Tree

    def crashes(self, names: Names, data: Data) -> Iterator[Crash]:
        """Each folder that a crash may leave, once; after a power cut those alone that a kill does not leave."""
        seen: set[tuple[Promise, frozenset[tuple[str, bytes | None]]]] = set()
        for done, disk in replay(self.log):
            promise = [promise for promise in self.promises if promise.done <= done][-1]
            if (names, data) != KILL:
                seen.add((promise, frozenset(disk.tree(*KILL).items())))
            tree = disk.tree(names, data)
            if (promise, frozenset(tree.items())) not in seen:
                seen.add((promise, frozenset(tree.items())))
                yield Crash(self.run, self.log[done - 1] if done else None, promise, tree)


@pytest.fixture(scope="module", autouse=True)
def small_and_quick() -> Iterator[None]:
    """The same configuration is written a thousand times; making its text takes longer than all else."""
    made: dict[str, str] = {}
    really = Config.to_yaml

    def to_yaml(config: Config) -> str:
        if repr(config) not in made:
            made[repr(config)] = really(config)
        return made[repr(config)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "PIECE_BYTES", SMALL_PIECES)
        patch.setattr(Config, "to_yaml", to_yaml)
        yield


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A folder in memory, where syncing costs nothing, if there is one."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def lived(work: Path) -> Life:
    folder = work / "lived"
    folder.mkdir()
    promises = [Promise(0, ())]
    with Recorder(folder) as recorder:
        life(folder / "run", lambda saved, damaged: promises.append(Promise(len(recorder.log), saved, damaged)))
    return Life(folder / "run", recorder.log, promises, read_tree(folder))


@pytest.fixture(scope="module")
def bucket(work: Path) -> Bucket:
    """Checkpoints of the steps 4 and 8 of a run that began on another machine."""
    fill(work / "bucket", make_config(work))
    return Bucket(LocalStorage(work / "bucket"))


@pytest.fixture(scope="module", params=["never been there", "older checkpoint there"])
def fetched(request: pytest.FixtureRequest, work: Path, bucket: Bucket) -> Life:
    """A run that goes on from checkpoints behind a URL."""
    folder = work / request.param
    folder.mkdir()
    with Recorder(folder) as recorder:
        if request.param == "older checkpoint there":
            process = Process(folder / "run")
            process.train_to(4)
            process.end()
        process = Process(folder / "run", bucket)
        assert process.start.state["global_step"] == 8
        process.end()
    return Life(folder / "run", recorder.log, [Promise(0, (4, 8))], read_tree(folder))


@pytest.fixture(scope="module")
def whole(work: Path, lived: Life) -> Whole:
    def read(step: int) -> Tree:
        return read_tree(save_checkpoint(work / "whole", step, checkpoint(step, make_config(lived.run))))

    trees = {step: read(step) for step in range(BETWEEN, 8 * BETWEEN, BETWEEN)}
    return trees.__getitem__


def test_the_record_is_complete(lived: Life, fetched: Life) -> None:
    """Replayed it ends with the same bytes under the same names."""
    for recorded in (lived, fetched):
        disk = Disk()
        for operation in recorded.log:
            disk.apply(operation)
        assert disk.tree() == recorded.last
    kinds = {operation.kind for operation in lived.log}
    assert kinds == {"mkdir", "open", "write", "truncate", "fsync", "rename", "unlink", "rmdir"}


def test_a_killed_process_leaves_what_the_record_says(lived: Life, work: Path) -> None:
    """Real processes, killed after some of the operations."""
    folder = work / "killed"
    folder.mkdir()
    numbers = list(range(3, len(lived.log), len(lived.log) // 20))
    subprocess.run(
        [sys.executable, "-m", "tests.dtrain.crash_scenario", folder, *map(str, numbers)],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    disk = Disk()
    for done, operation in enumerate(lived.log, start=1):
        disk.apply(operation)
        if done in numbers:
            assert comparable(read_tree(folder / str(done))) == comparable(disk.tree()), f"{done}: {operation}"


def comparable(tree: Tree) -> Tree:
    """A tree without what tells the time, the process or the place of its run."""
    elsewhere = ("events.jsonl", "status.json", "status.json.partial", "config.yaml", "config.yaml.partial", ".lock")
    return {path: b"" if path.removeprefix("run/") in elsewhere else content for path, content in tree.items()}


def test_killed_after_every_operation(lived: Life, whole: Whole) -> None:
    for crash in lived.crashes(*KILL):
        check(crash, whole)


@pytest.mark.parametrize(("names", "data"), CUTS)
def test_power_cut_after_every_operation(lived: Life, whole: Whole, names: Names, data: Data) -> None:
    for crash in lived.crashes(names, data):
        check(crash, whole)


@pytest.mark.parametrize(("names", "data"), [KILL, *CUTS])
def test_crash_while_a_checkpoint_is_fetched(
    fetched: Life, bucket: Bucket, whole: Whole, names: Names, data: Data
) -> None:
    for crash in fetched.crashes(names, data):
        go_on(crash, 8, {8}, whole, bucket)


def check(crash: Crash, whole: Whole) -> None:
    """What a crash has left holds what was promised, and the same command goes on from there."""
    promise = crash.promise
    there = crash.checkpoints()
    intact = {step for step, files in there.items() if files == whole(step)}
    newest = max(intact, default=0)
    assert newest >= max(promise.saved, default=0), f"{crash}: a saved checkpoint is gone"
    saved = [*(step for step in promise.saved if step < newest), *([newest] if newest else [])]
    kept = {*saved[-KEEP_LAST:], *({BEST} & set(saved))}
    assert kept <= intact, f"{crash}: not all that are to be kept are whole"
    assert there.keys() - intact <= promise.damaged, f"{crash}: a checkpoint with its final name is not whole"
    go_on(crash, newest, kept, whole)


def go_on(crash: Crash, newest: int, kept: set[int], whole: Whole, bucket: Bucket | None = None) -> None:
    """Give the same command again: it goes on from step `newest`, and keeps house as ever."""
    shutil.rmtree(crash.run, ignore_errors=True)
    write_tree(crash.run.parent, crash.tree)
    process = Process(crash.run, bucket)
    try:
        see_start(crash, process, newest)
        if not process.start.finished:
            see_next_save(crash, process, newest + BETWEEN, kept, whole)
    finally:
        process.end()


def see_start(crash: Crash, process: Process, newest: int) -> None:
    run, start = process.run, process.start
    path = run.checkpoints / checkpoint_name(newest) if newest else None
    assert start.checkpoint == path, crash
    assert run.config.read_text() == process.config.to_yaml(), crash
    if path is None:
        assert not run.metrics.exists(), crash
    elif not start.finished:
        assert process.loaded is not None, crash
        assert contents(process.loaded) == contents(checkpoint(newest, process.config)), crash
        assert run.metrics.read_bytes() == metrics(newest), crash
        assert json.loads(run.events.read_bytes().splitlines()[-1])["global_step"] == newest, crash


def see_next_save(crash: Crash, process: Process, step: int, kept: set[int], whole: Whole) -> None:
    run = process.run
    process.train_to(step)
    assert run.metrics.read_bytes() == metrics(step + 1), crash
    assert read_tree(run.checkpoints / checkpoint_name(step)) == whole(step), crash
    kept = {*sorted(kept)[1 - KEEP_LAST :], *({BEST} & {*kept, step}), step}
    assert names_in(run.checkpoints) == {checkpoint_name(step) for step in kept}, crash
    assert names_in(run.path) == FILES, crash


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
