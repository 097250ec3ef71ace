"""Objects over the network, from real servers that are slow, cut off, silent, or hold something else."""

import logging
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from dtrain.data.fetch import MAX_RANGE, Fetcher, StoppedError
from shard_tools.errors import UserError
from shard_tools.storage import RemoteStorage, open_storage

from ..servers import Fault, Nginx, SpoilingProxy, free_port, needs_nginx, nginx, point_to_s3, s3_server

NAME = "train-000000.tar"
LARGE = 2 * MAX_RANGE + MAX_RANGE // 2


@pytest.fixture(scope="module")
def content() -> bytes:
    """Two ranges and a half."""
    return random.Random(1).randbytes(LARGE)


@pytest.fixture
def folder(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / NAME).write_bytes(content)
    return tmp_path / "served"


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[Nginx]:
    with nginx(folder, tmp_path / "nginx") as running:
        yield running


def fetcher(url: str, patience: float = 60.0) -> Fetcher:
    storage = open_storage(url)
    assert isinstance(storage, RemoteStorage)
    return Fetcher(storage, patience)


def fetched(source: Fetcher, size: int, start: int = 0, name: str = NAME) -> bytes:
    return b"".join(source.pieces(name, start, size, threading.Event()))


@needs_nginx
def test_an_object_comes_in_ranges(server: Nginx, content: bytes) -> None:
    source = fetcher(server.url)
    pieces = list(source.pieces(NAME, 0, LARGE, threading.Event()))
    assert b"".join(pieces) == content
    assert [len(piece) for piece in pieces] == [MAX_RANGE, MAX_RANGE, MAX_RANGE // 2]
    assert source.bytes == LARGE
    assert [request[1:] for request in server.requests()] == [
        (0, MAX_RANGE, 206),
        (MAX_RANGE, 2 * MAX_RANGE, 206),
        (2 * MAX_RANGE, LARGE, 206),
    ]


@needs_nginx
def test_an_object_is_continued_from_any_byte(server: Nginx, content: bytes) -> None:
    assert fetched(fetcher(server.url), LARGE, start=LARGE - 1000) == content[-1000:]
    assert server.requests() == [(NAME, LARGE - 1000, LARGE, 206)]
    assert fetched(fetcher(server.url), LARGE, start=LARGE) == b""


@needs_nginx
def test_a_small_object_of_unknown_size(server: Nginx, folder: Path) -> None:
    (folder / "train-000000.idx").write_bytes(b"v1.2 0\n")
    assert fetcher(server.url).whole("train-000000.idx", threading.Event()) == b"v1.2 0\n"


@needs_nginx
@pytest.mark.parametrize("start", [0, 1000])
def test_a_server_that_knows_no_ranges(folder: Path, tmp_path: Path, content: bytes, start: int) -> None:
    with nginx(folder, tmp_path / "nginx", "max_ranges 0;") as server:
        assert fetched(fetcher(server.url), LARGE, start) == content[start:]
        assert [request.status for request in server.requests()] == [200]


@needs_nginx
def test_a_slow_server_is_asked_for_less(folder: Path, tmp_path: Path, content: bytes) -> None:
    """A range of 8 MiB takes longer than a request may, and yet it all comes."""
    size = 3 * 2**20
    (folder / NAME).write_bytes(content[:size])
    with nginx(folder, tmp_path / "nginx", "limit_rate 2m;") as server:
        source = fetcher(server.url, patience=8)
        assert fetched(source, size) == content[:size]
        assert source.retries > 0
        assert min(stop - start for _, start, stop, _ in server.requests() if start is not None and stop) < size


@needs_nginx
def test_a_server_that_is_out_for_a_while(
    folder: Path, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    out.touch()
    with nginx(folder, tmp_path / "nginx", f"if (-f {out}) {{ return 503; }}") as server:
        back = threading.Timer(0.6, out.unlink)
        back.start()
        with caplog.at_level(logging.WARNING, "dtrain.data"):
            source = fetcher(server.url)
            assert fetched(source, LARGE) == content
        back.join()
        assert source.retries == len(caplog.messages) >= 1
        assert f"{server.url}/{NAME}: 503" in caplog.messages[0]
        assert "next try in 0." in caplog.messages[0]
        assert server.requests()[0].status == 503


@needs_nginx
def test_patience_ends(folder: Path, tmp_path: Path) -> None:
    with nginx(folder, tmp_path / "nginx", "return 503;") as server:
        source = fetcher(server.url, patience=1.0)
        with pytest.raises(UserError, match=rf"/{NAME}: no new byte of it came in 1 s; last: 503.*; check the network"):
            fetched(source, LARGE)
        assert source.retries >= 2


@needs_nginx
def test_a_connection_that_is_cut_is_taken_up_where_it_was(server: Nginx, content: bytes) -> None:
    with SpoilingProxy(server.port, [Fault("cut", MAX_RANGE + MAX_RANGE // 2)]) as proxy:
        source = fetcher(proxy.url)
        assert fetched(source, LARGE) == content
        assert proxy.spoiled.is_set()
        assert source.retries == 1
        assert proxy.connections == 2
    starts = [request.start for request in server.requests()]
    assert starts.count(0) == 1
    assert starts.count(MAX_RANGE) == 2


@needs_nginx
def test_connections_that_never_last(server: Nginx, content: bytes) -> None:
    """Each ends before a whole range of the usual size has come."""
    with SpoilingProxy(server.port, always=Fault("cut", 5 * 2**20)) as proxy:
        assert fetched(fetcher(proxy.url), LARGE) == content


@needs_nginx
def test_a_silent_connection_is_given_up(server: Nginx, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with SpoilingProxy(server.port, [Fault("hang"), Fault("hang", 1000)]) as proxy:
        assert fetched(fetcher(proxy.url, patience=8), LARGE) == content
    assert sum("no answer within 0.8 s" in message for message in caplog.messages) >= 2


@needs_nginx
def test_a_server_that_stays_silent(server: Nginx) -> None:
    with (
        SpoilingProxy(server.port, always=Fault("hang")) as proxy,
        pytest.raises(UserError, match=r"no new byte of it came in 1 s; last: no answer within 0\.1 s"),
    ):
        fetched(fetcher(proxy.url, patience=1.0), LARGE)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"no new byte of it came in 0\.5 s; last: Cannot connect"):
        fetched(fetcher(f"http://127.0.0.1:{free_port()}", patience=0.5), LARGE)


@needs_nginx
@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("return 404;", "is not there, but the manifest names it; upload it again"),
        ("return 403;", "may not be read: 403.*; check the credentials"),
        ("return 401;", "may not be read: 401.*; check the credentials"),
        ("return 410;", "cannot be read: 410.*; check the address"),
    ],
)
def test_what_is_no_use_is_not_tried_again(folder: Path, tmp_path: Path, directive: str, message: str) -> None:
    with nginx(folder, tmp_path / "nginx", directive) as server:
        source = fetcher(server.url)
        with pytest.raises(UserError, match=rf"{server.url}/{NAME}: {message}"):
            fetched(source, LARGE)
        assert source.retries == 0
        assert len(server.requests()) == 1


@needs_nginx
@pytest.mark.parametrize("ranges", ["", "max_ranges 0;"])
@pytest.mark.parametrize("start", [0, 2000])
@pytest.mark.parametrize("there", [1500, 4000])
def test_an_object_of_another_size(tmp_path: Path, ranges: str, start: int, there: int) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / NAME).write_bytes(bytes(there))
    with nginx(tmp_path / "served", tmp_path / "nginx", ranges) as server:
        source = fetcher(server.url)
        if there > 3000 and not ranges:  # only its hash will tell
            assert fetched(source, 3000, start) == bytes(3000 - start)
            return
        with pytest.raises(UserError, match=rf"{NAME}: {there:,} bytes are there, but the manifest says 3,000; upload"):
            fetched(source, 3000, start)
        assert source.retries == 0


@needs_nginx
def test_a_password_is_never_shown(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with nginx(folder, tmp_path / "nginx", "return 503;") as server, pytest.raises(UserError) as stopped:
        fetched(fetcher(f"http://somebody:secret@127.0.0.1:{server.port}", patience=0.5), LARGE)
    assert f"http://***@127.0.0.1:{server.port}/{NAME}" in str(stopped.value)
    said = [str(stopped.value), *caplog.messages]
    assert len(said) > 1
    assert not any("secret" in text for text in said)


@needs_nginx
def test_fetching_can_be_stopped(folder: Path, tmp_path: Path) -> None:
    with nginx(folder, tmp_path / "nginx", "return 503;") as server:
        stop = threading.Event()
        pieces = fetcher(server.url, patience=1000).pieces(NAME, 0, LARGE, stop)
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(StoppedError):
            next(pieces)


@pytest.fixture
def bucket(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as address:
        point_to_s3(address, monkeypatch)
        fs = fsspec.filesystem("s3")
        fs.mkdir("s3://tuples")
        fs.pipe_file(f"s3://tuples/shards/{NAME}", content)
        yield "s3://tuples/shards"


def test_an_object_in_a_bucket(bucket: str, content: bytes) -> None:
    source = fetcher(bucket, patience=100)
    assert fetched(source, LARGE, start=5) == content[5:]
    assert source.bytes == LARGE - 5
    assert source.whole(NAME, threading.Event()) == content
    with pytest.raises(UserError, match=r"s3://tuples/shards/gone\.tar: is not there, but the manifest names it"):
        fetched(source, LARGE, name="gone.tar")
    for start in (0, LARGE + 1):
        with pytest.raises(UserError, match=f"{LARGE:,} bytes are there, but the manifest says {LARGE + 10:,}"):
            fetched(source, LARGE + 10, start)


def test_a_file_system_that_is_not_asynchronous(content: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(f"/fetch/{NAME}", content)
    source = fetcher("memory://fetch")
    assert fetched(source, LARGE) == content
    with pytest.raises(UserError, match="is not there"):
        fetched(source, LARGE, name="gone.tar")
