"""The same shard tasks on a Dask cluster: a real scheduler, two worker processes, one of them killed."""

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from shard_tools.build import build
from shard_tools.build_plan import BuildOptions
from shard_tools.cluster import run_on_dask
from shard_tools.errors import UserError

from .packing import content, pack

MakeTree = Callable[..., Path]
ShardTools = Callable[..., subprocess.CompletedProcess[str]]

START_SECONDS = 60


class Cluster:
    """A scheduler and its workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self._start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", until="Scheduler at:")

    def add_worker(self) -> subprocess.Popen[bytes]:
        return self._start(
            *("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"),
            until="Registered to:",
        )

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)

    def _start(self, *arguments: str, until: str) -> subprocess.Popen[bytes]:
        log = self._folder / f"{len(self._processes)}-{arguments[0]}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                cwd=self._folder,
                env={**os.environ, "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        deadline = time.monotonic() + START_SECONDS
        while until not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        return process


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "dask").mkdir()
    started = Cluster(tmp_path / "dask")
    try:
        yield started
    finally:
        started.close()


def test_two_workers_make_the_same_bytes(
    cluster: Cluster, make_tree: MakeTree, shard_tools: ShardTools, tmp_path: Path
) -> None:
    source, out, local = make_tree(), tmp_path / "out", tmp_path / "local"
    for _ in range(2):
        cluster.add_worker()
    done = shard_tools("build", source, out, "--shard-size", 2, "--dask", cluster.address)
    assert done.returncode == 0, done.stderr
    pack(source, local, shard_size=2)
    assert content(out) == content(local)


def test_a_worker_that_is_killed_costs_nothing(cluster: Cluster, make_tree: MakeTree, tmp_path: Path) -> None:
    source, out, local = make_tree(backgrounds=10, foregrounds=4), tmp_path / "out", tmp_path / "local"
    doomed = cluster.add_worker()
    running = subprocess.Popen(
        [
            *(sys.executable, "-m", "shard_tools", "build", str(source), str(out)),
            *("--shard-size", "1", "--dask", cluster.address),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + START_SECONDS
    while len(list(out.glob("*.tar"))) < 5:
        assert running.poll() is None, "the build ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    doomed.send_signal(signal.SIGKILL)
    cluster.add_worker()
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    pack(source, local, shard_size=1)
    assert content(out) == content(local)


def test_a_problem_on_a_worker_is_told_here(
    cluster: Cluster, make_tree: MakeTree, shard_tools: ShardTools, tmp_path: Path
) -> None:
    source, out = make_tree(), tmp_path / "out"
    (source / "bg2/fg_1/mask/3.jpg").write_text("no image")
    cluster.add_worker()
    done = shard_tools("build", source, out, "--dask", cluster.address)
    assert done.returncode == 1
    assert "bg2/fg_1/mask/3.jpg: not an image that can be read" in done.stderr
    assert "Traceback" not in re.sub(r"(?s)distributed\..*", "", done.stderr)


def test_no_scheduler(make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard_tools.cluster.CONNECT_SECONDS", 1)
    source = make_tree()
    for address in ("tcp://127.0.0.1:1", "nonsense"):
        with pytest.raises(UserError, match=rf"--dask {address}: no Dask scheduler answers there .*tcp://host:8786"):
            build(source, tmp_path / "out", BuildOptions(), partial(run_on_dask, address=address))


def test_a_try_after_one_that_failed(make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard_tools.cluster.CONNECT_SECONDS", 1)
    source = make_tree()

    def collect_at_the_start_of_a_thread(*_: object) -> None:
        sys.setprofile(None)
        gc.collect()

    gc.disable()
    threading.setprofile(collect_at_the_start_of_a_thread)
    try:
        for address in ("nonsense", "tcp://127.0.0.1:1"):
            with pytest.raises(UserError, match="no Dask scheduler answers there"):
                build(source, tmp_path / "out", BuildOptions(), partial(run_on_dask, address=address))
    finally:
        threading.setprofile(None)
        gc.enable()


def test_no_workers(cluster: Cluster, make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard_tools.cluster.WITHOUT_WORKERS_SECONDS", 2)
    with pytest.raises(UserError, match=r"no worker for 2 s; start `dask worker tcp://"):
        build(make_tree(), tmp_path / "out", BuildOptions(), partial(run_on_dask, address=cluster.address))
