"""Shards behind a URL: a real S3 server process, uploads that are cut off, and addresses that are wrong."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from shard_tools.build import Part, merge
from shard_tools.errors import UserError
from shard_tools.manifest import open_shards
from shard_tools.samples import read_tuples

from ..servers import point_to_s3, s3_server
from .packing import content, pack

MakeTree = Callable[..., Path]

BUCKET = "s3://tuples"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server in a process of its own; its address."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    point_to_s3(server, monkeypatch)
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    if fs.exists(BUCKET):
        fs.rm(BUCKET, recursive=True)
    fs.mkdir(BUCKET)
    yield f"{BUCKET}/shards"


def objects(url: str) -> dict[str, bytes]:
    """All objects below a URL by their relative names."""
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    root = url.removeprefix("s3://")
    return {name.removeprefix(f"{root}/"): fs.cat_file(name) for name in fs.find(root)}


def build_command(source: Path, out: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "shard_tools", "build", str(source), out, "--shard-size", "7", *options]


@pytest.mark.parametrize("backgrounds", ["sample", "shared"])
def test_a_bucket_holds_the_same_bytes_as_a_disk(
    bucket: str, make_tree: MakeTree, tmp_path: Path, backgrounds: str
) -> None:
    source, local = make_tree(), tmp_path / "local"
    done = subprocess.run(
        build_command(source, bucket, "--workers", "2", "--backgrounds", backgrounds),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    pack(source, local, backgrounds=backgrounds)
    assert objects(bucket) == content(local)
    assert "already complete" in pack(source, f"{bucket}/", backgrounds=backgrounds)
    storage, manifest = open_shards(f"{bucket}/shards.json")
    read = list(read_tuples(storage, manifest, "test", manifest.split("test").shards[0]))
    assert len(read) == 7
    assert all(sample.images["bg"].startswith(b"\xff\xd8") for sample in read)


def test_parts_meet_in_a_bucket(bucket: str, make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    pack(source, bucket, part=Part(1, 2))
    with pytest.raises(UserError, match="3 of 7 shards are not there yet"):
        merge(bucket)
    pack(source, bucket, part=Part(2, 2))
    merge(bucket)
    pack(source, tmp_path / "local")
    assert objects(bucket) == content(tmp_path / "local")


class CuttingProxy:
    """Passes a TCP connection on to a server until `cut` is set; then it lets `after` more bytes in and hangs."""

    def __init__(self, server: str, after: int) -> None:
        self._host, self._port = server.removeprefix("http://").split(":")
        self._left = after
        self.stuck = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[socket.socket] = [self._listening]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection((self._host, int(self._port)))
            self._open += [client, server]
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, upload: bool) -> None:
        try:
            while data := source.recv(4096):
                if upload:
                    self._left -= len(data)
                    if self._left < 0:
                        self.stuck.set()
                        return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        for connection in self._open:
            connection.close()


@pytest.mark.parametrize("seen", [30_000, 100_000, 180_000])
def test_a_build_killed_in_the_middle_of_an_upload(
    bucket: str, server: str, make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    source, local = make_tree(size=(48, 32)), tmp_path / "local"
    proxy = CuttingProxy(server, after=seen)
    building = subprocess.Popen(
        build_command(source, bucket, "--workers", "1"), env={**os.environ, "AWS_ENDPOINT_URL": proxy.address}
    )
    assert proxy.stuck.wait(60), "the upload never got that far"
    building.send_signal(signal.SIGKILL)
    building.wait(10)
    proxy.close()
    pack(source, local)
    whole = content(local)
    there = objects(bucket)
    assert "shards.json" not in there
    assert all(whole[name] == data for name, data in there.items() if not name.startswith(".build/"))
    summary = pack(source, bucket)
    if any(name.endswith(".tar") for name in there):
        assert "shards were there from an interrupted build and were kept" in summary
    assert objects(bucket) == whole


def test_a_server_that_is_not_there(make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to_s3("http://127.0.0.1:1", monkeypatch)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=r"s3://tuples/shards/shards\.json: cannot be read: .*check the address"):
        pack(make_tree(), f"{BUCKET}/shards")


def test_a_bucket_that_is_not_there(bucket: str, make_tree: MakeTree) -> None:
    with pytest.raises(UserError, match=r"s3://nobody/shards: cannot be written: .*bucket does not exist"):
        pack(make_tree(), "s3://nobody/shards")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("a:b", None),
        ("pipe://cat x", "runs a command and is refused"),
        ("simplecache::s3://bucket/x", "neither a path nor the URL of a folder"),
        ("s3:/bucket/x", "neither a path nor the URL of a folder"),
        ("s3://", "neither a path nor the URL of a folder"),
        ("file://localhost/x", "expected file:// and an absolute path"),
        ("nowhere://bucket/x", "nowhere:// cannot be used: .*; install the fsspec package"),
    ],
)
def test_schemes_that_are_no_place(make_tree: MakeTree, tmp_path: Path, url: str, message: str | None) -> None:
    if message is None:
        pack(make_tree(), tmp_path / url)
        assert (tmp_path / url / "shards.json").exists()
        return
    with pytest.raises(UserError, match=message):
        pack(make_tree(), url)


def test_memory_is_a_place_too(make_tree: MakeTree, tmp_path: Path) -> None:
    """Any file system of fsspec will do."""
    source = make_tree()
    pack(source, "memory://shards")
    pack(source, tmp_path / "local")
    fs = fsspec.filesystem("memory")
    found = {name.removeprefix("/shards/"): fs.cat_file(name) for name in fs.find("/shards")}
    assert found == content(tmp_path / "local")


def test_names_with_the_letters_of_patterns(make_tree: MakeTree) -> None:
    """Tidying up behind one folder must not reach into others."""
    source = make_tree()
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/b/exp1/.build/records/mine.json", b"mine")
    pack(source, "memory://b/exp[1]")
    pack(source, "memory://b/*")
    assert fs.cat_file("/b/exp1/.build/records/mine.json") == b"mine"
    assert not [name for name in fs.find("/b/exp[1]") if ".build" in name]


def test_a_password_in_an_address_is_not_shown(make_tree: MakeTree) -> None:
    with pytest.raises(UserError) as stopped:
        pack(make_tree(), "http://somebody:secret@127.0.0.1:1/shards")
    assert "secret" not in str(stopped.value)
    assert "http://***@127.0.0.1:1/shards" in str(stopped.value)
