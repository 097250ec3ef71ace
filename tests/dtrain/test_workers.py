"""Processes that load: they outlive signals, never their parent, and their end is an error with a way out."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from dtrain.data.buffers import BatchBuffers
from dtrain.data.decode_process import Channel
from dtrain.data.loader import Loader
from dtrain.data.order import EpochOrder, Reading
from dtrain.data.reader import LocalFiles
from dtrain.data.workers import Workers
from shard_tools.errors import UserError
from shard_tools.manifest import Shard
from shard_tools.storage import LocalStorage

from .conftest import Shards, WorkerOptions, decode_processes, open_loader, pack

ROOT = Path(__file__).parents[2]
TWO = WorkerOptions(2, "process")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def reading(shards: Shards) -> Reading:
    return EpochOrder(shards.lengths(), seed=1, stage=0, epoch=0, global_batch=6).reading(0, [range(6)])


def test_signals_that_are_meant_for_the_trainer_do_not_end_them(shards: Shards) -> None:
    with open_loader(shards, workers=TWO) as loader:
        for _ in range(2):  # at once after the start, and in the middle of work
            found = decode_processes()
            assert len(found) == 2
            for child in found:
                for number in SIGNALS:
                    child.send_signal(number)
            assert len(list(loader.batches(reading(shards)))) == 5
        assert decode_processes() == found
    assert decode_processes() == []


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (signal.SIGKILL, r"too little memory, use fewer data\.workers, or data\.worker_kind thread"),
        (signal.SIGSEGV, r"data\.workers 0"),
        (signal.SIGRTMIN, r"data\.workers 0"),
    ],
)
def test_one_that_is_killed_is_an_error_and_nothing_hangs(shards: Shards, number: signal.Signals, way_out: str) -> None:
    with open_loader(shards, workers=TWO) as loader:
        batches = loader.batches(reading(shards))
        next(batches)
        for child in decode_processes():
            child.send_signal(number)
        expected = rf"a decoding process was ended by {number.name}; .*{way_out}"
        for _ in range(2):  # nor is it any better later
            with pytest.raises(UserError, match=expected):
                list(loader.batches(reading(shards)))
    assert decode_processes() == []


def test_one_that_cannot_start_is_an_error(shards: Shards, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "simplejpeg.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    expected = "a decoding process ended with exit status 3; what it printed says why"
    with open_loader(shards, workers=TWO) as loader, pytest.raises(UserError, match=expected):
        list(loader.batches(reading(shards)))


PARENT = """
import sys
from dtrain.data.workers import Workers
if __name__ == "__main__":
    workers = Workers(3, kind="process", decode="fast", background_cache_bytes=0)
    print("ready", flush=True)
    sys.stdin.read()
"""


class LockedFiles(LocalFiles):
    """As the cache of a node's processes has it: a shard that is open is locked, and dropped when it is released."""

    def __init__(self, storage: LocalStorage) -> None:
        super().__init__(storage)
        self.released = 0

    def open(self, shard: Shard) -> int:
        descriptor = super().open(shard)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def release(self, shard: Shard) -> None:
        self.released += 1
        with Path(self.path(shard.file)).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_nobody_holds_a_shard_that_is_released(tmp_path: Path) -> None:
    shards = pack(tmp_path, [(24, 16)] * 2, 40, shard_size=1)
    files = LockedFiles(LocalStorage(shards.folder))
    with (
        closing(Workers(3, kind="process", decode="fast", background_cache_bytes=0)) as workers,
        closing(Loader(files, shards.manifest, "train", workers, size=16)) as loader,
    ):
        for epoch in range(60):
            order = EpochOrder(shards.lengths(), seed=1, stage=0, epoch=epoch, global_batch=20)
            assert len(list(loader.batches(order.reading(0, [range(20)])))) == 2
    assert files.released == 60 * 40


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from dtrain.data.workers import Workers
from shard_tools.errors import UserError
from shard_tools.manifest import Shard
from shard_tools.storage import LocalStorage
resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))
try:
    Workers(16, kind="process", decode="fast", background_cache_bytes=0)
except UserError as error:
    print(error)
"""


def test_too_few_descriptors_are_an_error_with_a_way_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, ROOT], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("decoding processes can't be started: Too many open files; use fewer data.workers")


def test_files_of_the_working_folder_are_not_run(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    with open_loader(shards, workers=TWO) as loader:
        assert len(list(loader.batches(reading(shards)))) == 5


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_they_never_outlive_their_parent(end: signal.Signals | None) -> None:
    """Not even if it is killed, or simply ends without having closed anything."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    found = decode_processes(parent.pid)
    assert len(found) == 3
    if end is not None:
        parent.send_signal(end)
    parent.communicate(timeout=20)
    assert psutil.wait_procs(found, timeout=20)[1] == []


def test_they_never_load_torch(shards: Shards) -> None:
    """Which would cost seconds and hundreds of megabytes each."""
    with open_loader(shards, workers=TWO) as loader:
        list(loader.batches(reading(shards)))
        for child in decode_processes():
            maps = Path(f"/proc/{child.pid}/maps").read_text()
            assert "simplejpeg" in maps
            assert "libtorch" not in maps


def shared_memory(pid: int) -> set[str]:
    """Mappings of batches in a process, by inode."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "dtrain-batch" in line}


def test_memory_and_files_of_a_loader_that_has_ended_are_let_go(shards: Shards) -> None:
    with open_loader(shards, workers=WorkerOptions(1, "process")) as loader:
        list(loader.batches(reading(shards)))
        (child,) = decode_processes()
        before = shared_memory(child.pid)
        assert before
        assert not [file for file in child.open_files() if file.path.endswith(".tar")]
        loader._buffers = BatchBuffers(2, loader._workers.memory)
        list(loader.batches(reading(shards)))
        after = shared_memory(child.pid)
        assert after
        assert not before & after


def test_many_descriptors_go_with_one_message(tmp_path: Path) -> None:
    """A batch may draw from hundreds of shards; the kernel takes 253 at a time."""
    ours, theirs = map(Channel, socket.socketpair())
    files = [(tmp_path / f"{number}").open("w") for number in range(301)]
    ours.send({"some": "thing"}, [file.fileno() for file in files])
    message, descriptors = theirs.receive()
    assert message == {"some": "thing"}
    names = [Path(f"/proc/self/fd/{number}").readlink().name for number in descriptors]
    assert names == [f"{number}" for number in range(301)]
    for number in descriptors:
        os.close(number)
    for file in files:
        file.close()
    assert not theirs.has_message(0.05)
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive()
    theirs.close()
