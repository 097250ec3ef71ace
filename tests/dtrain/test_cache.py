"""Shards behind a URL through the local cache: shared, bounded, checked, and whole after any kill. Real servers."""

import fcntl
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dtrain.data import cache_folder
from dtrain.data.cache import ShardCache
from dtrain.data.cache_files import default_bytes, default_folder
from dtrain.data.fetch import MAX_RANGE
from dtrain.data.uses import ShardUse, largest_window
from shard_tools.errors import UserError
from shard_tools.manifest import Shard
from shard_tools.storage import RemoteStorage, open_storage

from ..servers import Fault, Nginx, SpoilingProxy, needs_nginx, nginx
from .conftest import SIDE, Shards, pack

pytestmark = needs_nginx

ENDED = "the cache is ended, and this was still wanted"
LARGE = 3 * MAX_RANGE
PART = re.compile(r"[0-9a-f]{64}\.([0-9]+)\.part")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """20 shards of 2 or 1 samples each."""
    return pack(tmp_path_factory.mktemp("many"), [(SIDE, SIDE)] * 4, 10, shard_size=2)


@pytest.fixture
def files(many: Shards) -> list[Shard]:
    """The shards of its training split."""
    return list(many.manifest.split("train").shards)


@pytest.fixture
def server(many: Shards, tmp_path: Path) -> Iterator[Nginx]:
    with nginx(many.folder, tmp_path / "nginx") as running:
        yield running


@pytest.fixture
def own(own_shards: Shards, tmp_path: Path) -> Iterator[tuple[Nginx, Shards, Shard]]:
    """A server of shards that a test may damage, and the first of them."""
    with nginx(own_shards.folder, tmp_path / "nginx") as running:
        yield running, own_shards, own_shards.manifest.split("train").shards[0]


MakeCache = Callable[..., ShardCache]


@pytest.fixture
def make_cache(tmp_path: Path) -> Iterator[MakeCache]:
    """Caches in tmp_path/cache with room for everything, which are closed in the end."""
    with ExitStack() as stack:

        def make(url: str, folder: Path = tmp_path / "cache", **options: float) -> ShardCache:
            storage = open_storage(url)
            assert isinstance(storage, RemoteStorage)
            settings = {"max_bytes": 10**9, "patience_seconds": 30.0} | options
            return stack.enter_context(closing(ShardCache(storage, folder, **settings)))  # type: ignore[arg-type]

        yield make


def content(cache: ShardCache, shard: Shard) -> bytes:
    with os.fdopen(cache.open(shard), "rb") as file:
        return file.read()


def borrowed(cache: ShardCache, shard: Shard) -> bytes:
    with os.fdopen(cache.borrow(shard), "rb") as file:
        return file.read()


def large_shard(folder: Path, size: int = LARGE, name: str = "large", index: bytes = b"large") -> Shard:
    """A shard that comes in several ranges; what is in it is no matter for the cache."""
    data = random.Random(name).randbytes(size)
    (folder / f"{name}.tar").write_bytes(data)
    (folder / f"{name}.idx").write_bytes(index)
    return Shard(
        file=f"{name}.tar",
        samples=1,
        bytes=size,
        sha256=hashlib.sha256(data).hexdigest(),
        index=f"{name}.idx",
        index_sha256=hashlib.sha256(index).hexdigest(),
    )


def in_a_row(shards: Sequence[Shard], together: int = 1) -> list[ShardUse]:
    """Each batch begins a shard; `together` are in use at a time."""
    return [ShardUse(shard, number, number + together - 1) for number, shard in enumerate(shards)]


def read_all(cache: ShardCache, uses: Sequence[ShardUse], folder: Path) -> None:
    """What a reader does: open at the first batch, compare with the original, release after the last."""
    opened: dict[ShardUse, int] = {}
    for batch in range(max(use.last for use in uses) + 1):
        for use in uses:
            if use.first == batch:
                opened[use] = descriptor = cache.open(use.shard)
                assert os.pread(descriptor, use.shard.bytes + 1, 0) == (folder / use.shard.file).read_bytes()
                assert cache.index(use.shard) == (folder / use.shard.index).read_bytes()
        for use in uses:
            if use.last == batch:
                os.close(opened.pop(use))
                cache.release(use.shard)


def held_bytes(folder: Path) -> int:
    """What the cache takes, partial files with their full size; nothing can change while it is counted."""
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        total = 0
        for entry in os.scandir(folder):
            partial = PART.fullmatch(entry.name)
            total += max(entry.stat().st_size, int(partial[1]) if partial else 0)
        return total


@contextmanager
def sampled(folder: Path) -> Iterator[list[int]]:
    """The bytes in the cache folder, again and again while the block runs."""
    sizes: list[int] = []
    over = threading.Event()

    def sample() -> None:
        while not over.is_set():
            sizes.append(held_bytes(folder))
            time.sleep(0.002)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock"}


def open_shards() -> list[Path]:
    """The files of shards that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor that lists them
            found.append(entry.readlink())
    return [path for path in found if path.suffix == ".tar"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def all_fetched(cache: ShardCache, count: int) -> Callable[[], bool]:
    return lambda: cache.stats.shards_fetched + cache.stats.shards_found == count


def tars(server: Nginx) -> Counter[str]:
    return Counter(request.name for request in server.requests() if request.name.endswith(".tar"))


def test_shards_are_what_they_were(server: Nginx, many: Shards, files: list[Shard], make_cache: MakeCache) -> None:
    cache = make_cache(server.url)
    uses = in_a_row(files)
    cache.begin(uses)
    read_all(cache, uses, many.folder)
    assert cache.stats.shards_fetched == len(files)
    assert cache.stats.shards_found == cache.stats.retries == 0
    assert cache.stats.bytes_fetched == sum(
        (many.folder / name).stat().st_size for shard in files for name in (shard.file, shard.index)
    )
    assert Counter(request.name for request in server.requests()) == Counter(
        name for shard in files for name in (shard.file, shard.index)
    )


def test_the_next_start_finds_them(
    server: Nginx, many: Shards, files: list[Shard], make_cache: MakeCache, tmp_path: Path
) -> None:
    uses = in_a_row(files)
    first = make_cache(server.url)
    first.begin(uses)
    read_all(first, uses, many.folder)
    first.close()
    assert names(tmp_path / "cache") == {
        name for shard in files for name in (f"{shard.sha256}.tar", f"{shard.index_sha256}.idx")
    }
    requests = len(server.requests())
    second = make_cache(server.url)
    second.begin(uses)
    read_all(second, uses, many.folder)
    assert len(server.requests()) == requests
    assert second.stats.shards_found == len(files)
    assert second.stats.bytes_fetched == 0


def test_shards_are_fetched_ahead_in_their_order(server: Nginx, files: list[Shard], make_cache: MakeCache) -> None:
    cache = make_cache(server.url, connections=1)
    cache.begin(in_a_row(files)[::-1])
    wait_until(all_fetched(cache, len(files)))
    assert list(tars(server)) == [shard.file for shard in files]


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("connections", [1, 4])
def test_a_cache_of_just_what_is_needed(
    server: Nginx,
    many: Shards,
    files: list[Shard],
    make_cache: MakeCache,
    tmp_path: Path,
    together: int,
    connections: int,
) -> None:
    """Far smaller than the data set, never larger than it may be, and nobody waits for himself."""
    uses = in_a_row([*files, *reversed(files)], together)
    _, needed = largest_window(uses)
    assert needed < sum(shard.bytes for shard in files) / 2
    cache = make_cache(server.url, max_bytes=needed, connections=connections)
    with sampled(tmp_path / "cache") as sizes:
        cache.begin(uses)
        read_all(cache, uses, many.folder)
    assert 0 < max(sizes) <= needed
    assert len(sizes) > 5


def test_shares_of_several_processes(
    server: Nginx, many: Shards, files: list[Shard], make_cache: MakeCache, tmp_path: Path
) -> None:
    """Each reads its part with its share; the folder holds them all, and what they share is fetched once."""
    parts = [in_a_row(files[:9], 2), in_a_row(files[6:], 2)]
    share = max(largest_window(part)[1] for part in parts)
    caches = [make_cache(server.url, max_bytes=2 * share, processes=2) for _ in parts]
    failed: list[BaseException] = []

    def read(cache: ShardCache, uses: list[ShardUse]) -> None:
        try:
            cache.begin(uses)
            read_all(cache, uses, many.folder)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=work) for work in zip(caches, parts, strict=True)]
    with sampled(tmp_path / "cache") as sizes:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert max(sizes) <= 2 * share


READER = """
import json, os, sys
from pathlib import Path
from dtrain.data.cache import ShardCache
from dtrain.data.uses import ShardUse
from shard_tools.manifest import Shard
from shard_tools.storage import open_storage
url, folder, shards, max_bytes = json.loads(sys.argv[1])
shards = [Shard.model_validate_json(text) for text in shards]
cache = ShardCache(open_storage(url), Path(folder), max_bytes=max_bytes, patience_seconds=60)
print("ready", flush=True)
sys.stdin.readline()
cache.begin([ShardUse(shard, number, number) for number, shard in enumerate(shards)])
for shard in shards:
    descriptor = cache.open(shard)
    assert len(os.pread(descriptor, shard.bytes + 1, 0)) == shard.bytes
    os.close(descriptor)
    cache.release(shard)
print(cache.stats.shards_fetched, flush=True)
cache.close()
"""


def reader(url: str, folder: Path, shards: Sequence[Shard], max_bytes: int = 10**9) -> "subprocess.Popen[str]":
    """A process that reads shards in order as soon as it is told to, and then says how many it fetched."""
    arguments = json.dumps([url, str(folder), [shard.model_dump_json() for shard in shards], max_bytes])
    process = subprocess.Popen(
        [sys.executable, "-c", READER, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_two_processes_fetch_each_shard_once(
    many: Shards, files: list[Shard], tmp_path: Path, own_shards: Shards
) -> None:
    large = large_shard(own_shards.folder)
    with nginx(many.folder, tmp_path / "nginx") as server, nginx(own_shards.folder, tmp_path / "second") as second:
        for running, shards in ((server, files), (second, [large])):
            processes = [reader(running.url, tmp_path / "cache", shards) for _ in range(2)]
            for process in processes:
                tell(process)
            fetched = [int(process.communicate(timeout=60)[0]) for process in processes]
            assert [process.returncode for process in processes] == [0, 0]
            assert sum(fetched) == len(shards)
        assert tars(server) == Counter(shard.file for shard in files)
        assert tars(second) == {large.file: 3}


def test_a_killed_download_is_taken_up_where_it_was(own_shards: Shards, make_cache: MakeCache, tmp_path: Path) -> None:
    large = large_shard(own_shards.folder)
    folder = tmp_path / "cache"
    with nginx(own_shards.folder, tmp_path / "nginx", "limit_rate 12m;") as server:
        killed = reader(server.url, folder, [large])
        tell(killed)
        partial = folder / f"{large.sha256}.{large.bytes}.part"
        wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        there = partial.stat().st_size
        assert 0 < there < large.bytes
        assert names(folder) == {partial.name}
    with nginx(own_shards.folder, tmp_path / "second") as server:
        cache = make_cache(server.url)
        cache.begin(in_a_row([large]))
        assert hashlib.sha256(content(cache, large)).hexdigest() == large.sha256
        assert next(request.start for request in server.requests()) == there
        assert cache.stats.bytes_fetched == large.bytes - there + len(b"large")
    assert not partial.exists()


def test_another_takes_over_from_a_killed_one(own_shards: Shards, make_cache: MakeCache, tmp_path: Path) -> None:
    """It waits while the other lives, and goes on as soon as it is gone."""
    large = large_shard(own_shards.folder)
    partial = tmp_path / "cache" / f"{large.sha256}.{large.bytes}.part"
    with nginx(own_shards.folder, tmp_path / "nginx") as server:
        with SpoilingProxy(server.port, always=Fault("hang", MAX_RANGE + 4096)) as proxy:
            killed = reader(proxy.url, tmp_path / "cache", [large])
            tell(killed)
            wait_until(lambda: partial.exists() and partial.stat().st_size == MAX_RANGE)
            cache = make_cache(server.url)
            cache.begin(in_a_row([large]))
            time.sleep(0.3)
            assert cache.stats.bytes_fetched == 0
            killed.send_signal(signal.SIGKILL)
            killed.wait(10)
        assert hashlib.sha256(content(cache, large)).hexdigest() == large.sha256
        assert cache.stats.bytes_fetched == 2 * MAX_RANGE + len(b"large")


def test_no_kill_leaves_a_torn_file(many: Shards, files: list[Shard], make_cache: MakeCache, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    needed = 3 * max(shard.bytes for shard in files)
    chance = random.Random(5)
    with nginx(many.folder, tmp_path / "nginx") as server:
        for _ in range(5):
            killed = reader(server.url, folder, files * 20, needed)
            tell(killed)
            time.sleep(chance.uniform(0.02, 0.3))
            killed.send_signal(signal.SIGKILL)
            killed.wait(10)
            assert held_bytes(folder) <= needed
            whole = [path for path in folder.iterdir() if path.suffix in {".tar", ".idx"}]
            assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in whole)
        uses = in_a_row(files)
        cache = make_cache(server.url, max_bytes=needed)
        cache.begin(uses)
        read_all(cache, uses, many.folder)


def test_wrong_bytes_once(own: tuple[Nginx, Shards, Shard], make_cache: MakeCache, tmp_path: Path) -> None:
    server, shards, shard = own
    with SpoilingProxy(server.port, [Fault("flip", 5000)]) as proxy:
        cache = make_cache(proxy.url, connections=1)
        cache.begin(in_a_row([shard]))
        assert content(cache, shard) == (shards.folder / shard.file).read_bytes()
        assert proxy.spoiled.is_set()
        assert cache.stats.retries == 1
        assert cache.stats.shards_fetched == 1
    assert tars(server) == {shard.file: 2}


def test_wrong_bytes_always(own: tuple[Nginx, Shards, Shard], make_cache: MakeCache, tmp_path: Path) -> None:
    server, shards, shard = own
    data = bytearray((shards.folder / shard.file).read_bytes())
    data[5000] ^= 1
    (shards.folder / shard.file).write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    cache = make_cache(server.url)
    message = (
        f"{server.url}/{shard.file}: SHA-256 of what came is {found}, but the manifest says {shard.sha256}, twice; "
        "upload the shard again"
    )
    cache.begin(in_a_row([shard]))
    for _ in range(2):
        with pytest.raises(UserError, match=re.escape(message)):
            cache.open(shard)
    assert tars(server) == {shard.file: 2}
    with pytest.raises(UserError, match=re.escape(message)):
        cache.borrow(shard)
    assert names(tmp_path / "cache") == set()


def test_a_wrong_index(own: tuple[Nginx, Shards, Shard], make_cache: MakeCache) -> None:
    server, shards, shard = own
    (shards.folder / shard.index).write_bytes(b"v1.2 0\n")
    cache = make_cache(server.url)
    message = f"{server.url}/{shard.index}: SHA-256 of what came is .*{shard.index_sha256}, twice"
    with pytest.raises(UserError, match=message):
        cache.index(shard)
    cache.begin(in_a_row([shard]))
    with pytest.raises(UserError, match=message):
        cache.open(shard)


def test_an_index_comes_with_its_shard(own: tuple[Nginx, Shards, Shard], make_cache: MakeCache) -> None:
    server, shards, shard = own
    cache = make_cache(server.url)
    cache.begin(in_a_row([shard]))
    os.close(cache.open(shard))
    expected = (shards.folder / shard.index).read_bytes()
    (shards.folder / shard.index).unlink()
    assert cache.index(shard) == expected


def test_what_is_damaged_in_the_folder_is_fetched_again(
    own: tuple[Nginx, Shards, Shard], make_cache: MakeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, shards, shard = own
    cache = make_cache(server.url)
    cache.begin(in_a_row([shard]))
    os.close(cache.open(shard))
    cache.release(shard)
    (tmp_path / "cache" / f"{shard.index_sha256}.idx").write_bytes(b"torn")
    os.truncate(tmp_path / "cache" / f"{shard.sha256}.tar", 1000)
    cache.begin(in_a_row([shard]))
    assert content(cache, shard) == (shards.folder / shard.file).read_bytes()
    assert f"1000 bytes instead of {shard.bytes}; removed" in caplog.text
    assert cache.index(shard) == (shards.folder / shard.index).read_bytes()


@pytest.mark.parametrize("left", [b"something else", b"x" * 10**6])
def test_a_partial_file_of_something_else(
    own: tuple[Nginx, Shards, Shard], make_cache: MakeCache, tmp_path: Path, left: bytes
) -> None:
    server, shards, shard = own
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{shard.sha256}.{shard.bytes}.part").write_bytes(left)
    assert borrowed(make_cache(server.url), shard) == (shards.folder / shard.file).read_bytes()


def test_an_error_concerns_its_shard_alone(
    own: tuple[Nginx, Shards, Shard], make_cache: MakeCache, tmp_path: Path
) -> None:
    """It is raised when that shard is opened, and what was mended meanwhile is there at the next start."""
    server, shards, gone = own
    others = shards.manifest.split("train").shards[1:]
    (shards.folder / gone.file).rename(tmp_path / "aside")
    cache = make_cache(server.url)
    uses = in_a_row([gone, *others])
    cache.begin(uses)
    for shard in others:
        assert content(cache, shard) == (shards.folder / shard.file).read_bytes()
    with pytest.raises(UserError, match=f"{gone.file}: is not there, but the manifest names it"):
        cache.open(gone)
    (tmp_path / "aside").rename(shards.folder / gone.file)
    cache.begin(uses)
    assert content(cache, gone) == (shards.folder / gone.file).read_bytes()


def test_a_cut_and_an_outage_are_not_seen(own: tuple[Nginx, Shards, Shard], make_cache: MakeCache) -> None:
    server, shards, _ = own
    uses = in_a_row(shards.manifest.split("train").shards)
    with SpoilingProxy(server.port, [Fault("cut", 3000), Fault("cut"), Fault("cut", 20_000)]) as proxy:
        cache = make_cache(proxy.url)
        cache.begin(uses)
        read_all(cache, uses, shards.folder)
        assert cache.stats.retries >= 1


def test_a_share_that_is_too_small(server: Nginx, files: list[Shard], make_cache: MakeCache) -> None:
    uses = in_a_row(files, 3)
    _, needed = largest_window(uses)
    cache = make_cache(server.url, max_bytes=2 * needed - 1, processes=2)
    with pytest.raises(UserError) as stopped:
        cache.begin(uses)
    for part in ("data.cache_size", f"at least {2 * needed:,} bytes", "data.max_lanes", "smaller shards", "3 shards"):
        assert part in str(stopped.value)
    assert not server.requests()


def test_only_what_is_announced_is_opened(server: Nginx, files: list[Shard], make_cache: MakeCache) -> None:
    cache = make_cache(server.url)
    cache.begin(in_a_row(files[:1]))
    os.close(cache.open(files[0]))
    cache.release(files[0])
    for shard in files[:2]:
        with pytest.raises(ValueError, match=f"{shard.file}: no use of it is announced, or all are over"):
            cache.open(shard)


def test_a_shard_is_borrowed_when_all_room_is_taken(
    server: Nginx, many: Shards, files: list[Shard], make_cache: MakeCache, tmp_path: Path
) -> None:
    """By several threads at once, while others are still open, and never beyond the bound."""
    uses = in_a_row(files[:8], 2)
    room = 52 * (largest_window(uses)[1] + max(shard.bytes for shard in files)) // 50  # 4 % for indexes
    cache = make_cache(server.url, max_bytes=room, spare=True, patience_seconds=5)
    with sampled(tmp_path / "cache") as sizes, ThreadPoolExecutor(4) as threads:
        cache.begin(uses, borrowed=files)
        time.sleep(0.3)  # so that as much as can be is fetched ahead
        descriptors = list(threads.map(cache.borrow, files))
        for shard, descriptor in zip(files, descriptors, strict=True):
            assert os.pread(descriptor, shard.bytes + 1, 0) == (many.folder / shard.file).read_bytes()
            os.close(descriptor)
        read_all(cache, uses, many.folder)
    assert 0 < max(sizes) <= room
    assert not open_shards()


def test_shards_are_borrowed_one_at_a_time(
    many: Shards, files: list[Shard], make_cache: MakeCache, tmp_path: Path
) -> None:
    """So that room for one is enough."""
    with nginx(many.folder, tmp_path / "nginx", "limit_rate 14k;") as server, ThreadPoolExecutor(4) as threads:
        cache = make_cache(server.url)
        lent = [threads.submit(borrowed, cache, shard) for shard in files[:2]]
        while not all(future.done() for future in lent):
            assert sum(PART.fullmatch(name) is not None for name in names(tmp_path / "cache")) <= 1
        assert [len(future.result()) for future in lent] == [shard.bytes for shard in files[:2]]


def test_what_comes_after_the_end_is_let_go(
    many: Shards, files: list[Shard], make_cache: MakeCache, tmp_path: Path
) -> None:
    with nginx(many.folder, tmp_path / "nginx", "limit_rate 8k;") as server, ThreadPoolExecutor(1) as threads:
        cache = make_cache(server.url)
        waiting = threads.submit(cache.borrow, files[0])
        wait_until(lambda: len(names(tmp_path / "cache")) == 1)
        cache.end()
        with pytest.raises(RuntimeError, match=ENDED):
            waiting.result()
        wait_until(lambda: all(thread.name != "fetch-aside" for thread in threading.enumerate()))
        assert not open_shards()


def test_a_borrowed_shard_is_still_there_for_its_use(
    server: Nginx, many: Shards, files: list[Shard], make_cache: MakeCache
) -> None:
    """To borrow it is no use of it: it comes in its turn, and is released once."""
    uses = in_a_row([*files[:8], *files[:2]])
    cache = make_cache(server.url, max_bytes=3 * files[0].bytes, spare=True)
    cache.begin(uses)
    kept = [cache.borrow(shard) for shard in (files[7], files[0], files[7])]
    read_all(cache, uses, many.folder)
    for descriptor, shard in zip(kept, (files[7], files[0], files[7]), strict=True):
        assert os.pread(descriptor, shard.bytes + 1, 0) == (many.folder / shard.file).read_bytes()
        os.close(descriptor)
    with pytest.raises(ValueError, match="all are over"):
        cache.open(files[7])


def test_processes_that_borrow_keep_to_their_shares(
    server: Nginx, many: Shards, files: list[Shard], make_cache: MakeCache, tmp_path: Path
) -> None:
    parts = [in_a_row(files[:8], 2), in_a_row(files[7:], 2)]
    share = max(largest_window(part)[1] for part in parts) + max(shard.bytes for shard in files)
    caches = [make_cache(server.url, max_bytes=2 * share, processes=2, spare=True) for _ in parts]

    def read(cache: ShardCache, uses: list[ShardUse]) -> None:
        cache.begin(uses, borrowed=files)
        for shard in reversed(files):
            assert borrowed(cache, shard) == (many.folder / shard.file).read_bytes()
        read_all(cache, uses, many.folder)

    with sampled(tmp_path / "cache") as sizes, ThreadPoolExecutor(2) as threads:
        list(threads.map(read, caches, parts))
    assert max(sizes) <= 2 * share


def test_room_to_borrow_counts(server: Nginx, files: list[Shard], make_cache: MakeCache) -> None:
    uses = in_a_row(files, 3)
    needed, spare = largest_window(uses)[1], max(shard.bytes for shard in files)
    cache = make_cache(server.url, max_bytes=2 * (needed + spare) - 1, processes=2, spare=True)
    message = f"and {spare:,} bytes are kept for one more .*; give at least {2 * (needed + spare):,} bytes"
    with pytest.raises(UserError, match=message):
        cache.begin(uses)


def test_there_is_no_room_to_borrow(
    server: Nginx, many: Shards, files: list[Shard], make_cache: MakeCache, tmp_path: Path
) -> None:
    """Without spared room: what is in the folder can be had, and else it is said."""
    cache = make_cache(server.url, max_bytes=2 * files[0].bytes, patience_seconds=0.5)
    cache.begin(in_a_row(files, 2))
    wait_until(all_fetched(cache, 2))
    assert borrowed(cache, files[1]) == (many.folder / files[1].file).read_bytes()
    with pytest.raises(UserError, match=r"no room for its .* bytes in .* data\.cache_size"):
        cache.borrow(files[5])
    with pytest.raises(UserError, match=r"no room for its .* bytes in .* data\.cache_size"):
        make_cache(server.url, tmp_path / "other", max_bytes=files[0].bytes // 2).borrow(files[0])


def test_indexes_are_fetched_once(own_shards: Shards, make_cache: MakeCache, tmp_path: Path) -> None:
    """Though what was fetched ahead has taken all of a cache of hardly more than what is in use."""
    shards = [large_shard(own_shards.folder, 20_000, f"{number}", random.randbytes(200)) for number in range(12)]
    uses = in_a_row(shards, 2)
    with nginx(own_shards.folder, tmp_path / "nginx") as server:
        for tenths in (21, 25, 30, 45, 60):
            folder = tmp_path / f"cache-{tenths}"
            cache = make_cache(server.url, folder, max_bytes=tenths * 2_000)
            before = len(server.requests())
            cache.begin(uses)
            time.sleep(0.2)  # so that as much as can be is fetched ahead
            read_all(cache, uses, own_shards.folder)
            assert len(server.requests()) - before == 2 * len(shards)


def test_nobody_drops_what_is_pinned(server: Nginx, files: list[Shard], make_cache: MakeCache, tmp_path: Path) -> None:
    """Neither while it is held, nor after `release` while the reader's descriptor is open."""
    first, other = files[:2]
    room = max(first.bytes, other.bytes)
    pinning = make_cache(server.url, max_bytes=room)
    pinning.begin(in_a_row([first]))
    descriptor = pinning.open(first)
    hungry = make_cache(server.url, max_bytes=room, patience_seconds=0.5)
    for _ in range(2):
        hungry.begin(in_a_row([other]))
        with pytest.raises(UserError, match=rf"{other.file}: no room for its .* {first.bytes:,} are in use"):
            hungry.open(other)
        hungry.end()
        assert (tmp_path / "cache" / f"{first.sha256}.tar").exists()
        pinning.release(first)
    os.close(descriptor)
    hungry.begin(in_a_row([other]))
    os.close(hungry.open(other))
    assert not (tmp_path / "cache" / f"{first.sha256}.tar").exists()


def test_the_end_lets_go_of_everything(server: Nginx, files: list[Shard], make_cache: MakeCache) -> None:
    room = sum(shard.bytes for shard in files[:4])
    cache = make_cache(server.url, max_bytes=room)
    cache.begin(in_a_row(files[:4], 4))
    wait_until(all_fetched(cache, 4))
    assert len(open_shards()) == 4
    cache.end()
    assert not open_shards()
    other = make_cache(server.url, max_bytes=room, patience_seconds=5)
    other.begin(in_a_row(files[4:8], 4))
    for shard in files[4:8]:
        os.close(other.open(shard))
    other.end()
    cache.begin(in_a_row(files[8:10]))
    os.close(cache.open(files[8]))


@pytest.mark.parametrize("room", [2, 3])
def test_what_is_needed_last_is_dropped_first(
    server: Nginx, files: list[Shard], make_cache: MakeCache, room: int
) -> None:
    """A new shard displaces what is never needed, and then the last, however long ago they were used."""
    soon, late, never, new = files[:4]
    max_bytes = room * max(shard.bytes for shard in files) + 2000  # room for shards, and for indexes
    before = make_cache(server.url, max_bytes=max_bytes, connections=1)
    uses = in_a_row((soon, late, never)[:room])
    before.begin(uses)
    read_all(before, uses, server.folder)
    before.close()
    cache = make_cache(server.url, max_bytes=max_bytes, connections=1)
    cache.begin([ShardUse(new, 0, 0), ShardUse(soon, 1, 1), ShardUse(late, 2, 2)])
    wait_until(all_fetched(cache, room))
    assert cache.stats.shards_found == room - 1
    assert set(tars(server).values()) == {1}


def test_close_ends_the_threads(server: Nginx, files: list[Shard], make_cache: MakeCache) -> None:
    cache = make_cache(server.url)
    cache.begin(in_a_row(files))
    os.close(cache.open(files[0]))
    cache.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch-")]


def test_an_open_that_waits_ends_with_the_cache(server: Nginx, files: list[Shard], make_cache: MakeCache) -> None:
    with SpoilingProxy(server.port, always=Fault("hang")) as proxy:
        cache = make_cache(proxy.url)
        cache.begin(in_a_row(files))
        threading.Timer(0.3, cache.close).start()
        with pytest.raises(RuntimeError, match=f"{files[0].file}: {ENDED}"):
            cache.open(files[0])


@pytest.mark.parametrize("silent", [True, False])
def test_everybody_who_waits_ends_with_the_cache(
    server: Nginx, files: list[Shard], make_cache: MakeCache, silent: bool
) -> None:
    """For a server that says nothing, and in the pauses for one that is down; a request alone may take 1000 s."""
    with SpoilingProxy(server.port, always=Fault("hang")) as proxy:
        cache = make_cache(proxy.url if silent else "http://127.0.0.1:1", patience_seconds=10_000.0)
        cache.begin(in_a_row(files[:2]))
        calls = [(cache.open, 1), (cache.borrow, 0), (cache.borrow, 4), (cache.borrow, 5), (cache.index, 6)]
        with ThreadPoolExecutor(len(calls)) as threads:
            waiting = [threads.submit(call, files[number]) for call, number in calls]
            wait_until(lambda: proxy.connections >= 3 if silent else cache.stats.retries >= 3)
            cache.end()
            for future in waiting:
                with pytest.raises(RuntimeError, match=ENDED):
                    future.result(timeout=30)


def test_nothing_is_fetched_after_the_end(
    server: Nginx, many: Shards, files: list[Shard], make_cache: MakeCache
) -> None:
    cache = make_cache(server.url)
    cache.begin(in_a_row(files[:2]))
    wait_until(all_fetched(cache, 2))
    cache.end()
    requests = len(server.requests())
    for shard in (files[0], files[5]):
        for call in (cache.open, cache.borrow, cache.index):
            with pytest.raises(RuntimeError, match=ENDED):
                call(shard)
    cache.release(files[0])
    assert len(server.requests()) == requests
    assert not open_shards()
    cache.begin(in_a_row(files[:2]))
    assert borrowed(cache, files[5]) == (many.folder / files[5].file).read_bytes()


def test_a_hanging_library_does_not_hang_the_reader(files: list[Shard], make_cache: MakeCache) -> None:
    """File systems of fsspec that are not asynchronous can't be interrupted."""
    release = threading.Event()

    class Hanging(MemoryFileSystem):  # type: ignore[misc]
        protocol = "hanging"

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
            release.wait(100)
            return b""

    fsspec.register_implementation("hanging", Hanging, clobber=True)
    cache = make_cache("hanging://bucket", patience_seconds=0.5)
    cache.begin(in_a_row(files))
    try:
        for call, shard in ((cache.open, files[0]), (cache.index, files[0]), (cache.borrow, files[-1])):
            with pytest.raises(UserError, match=r"hanging://bucket/.*: nothing came in 1 s, and no request has failed"):
                call(shard)
    finally:
        release.set()


def test_a_folder_that_is_emptied_meanwhile(
    server: Nginx, many: Shards, files: list[Shard], make_cache: MakeCache, tmp_path: Path
) -> None:
    cache = make_cache(server.url)
    cache.begin(in_a_row(files[:1]))
    descriptor = cache.open(files[0])
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    assert os.pread(descriptor, 10**6, 0) == (many.folder / files[0].file).read_bytes()
    os.close(descriptor)
    for shard in files[:2]:
        assert borrowed(cache, shard) == (many.folder / shard.file).read_bytes()


def test_a_folder_that_cannot_be_used(make_cache: MakeCache, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"{tmp_path}/file/cache: can't be used as the cache .* data\.cache_dir"):
        make_cache("http://127.0.0.1:1", tmp_path / "file" / "cache")


def test_a_lock_that_is_never_let_go(
    server: Nginx, files: list[Shard], make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a process that was stopped, but not ended."""
    monkeypatch.setattr(cache_folder, "LOCK_SECONDS", 0.3)
    cache = make_cache(server.url)
    with (tmp_path / "cache" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=rf"{tmp_path}/cache/lock: another process has held this lock for 0\.3 s"):
            cache.borrow(files[0])
    os.close(cache.borrow(files[0]))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(own_shards: Shards, make_cache: MakeCache, tmp_path: Path, small_disk: Path) -> None:
    """What nobody needs makes room, though the cache might be larger; else it is said."""
    one, two, three = (large_shard(own_shards.folder, 900_000, name) for name in ("one", "two", "three"))
    with nginx(own_shards.folder, tmp_path / "nginx") as server:
        cache = make_cache(server.url, small_disk / "cache")
        for shard in (one, two, three):
            assert borrowed(cache, shard) == (own_shards.folder / shard.file).read_bytes()
        cache.begin(in_a_row([two, three], 2))
        wait_until(all_fetched(cache, 5))
        with pytest.raises(UserError) as stopped:
            cache.borrow(one)
        for part in (f"{small_disk}/cache: the disk", "bytes free", "data.cache_size", "data.cache_dir"):
            assert part in str(stopped.value)
        cache.begin(in_a_row([one]))
        assert content(cache, one) == (own_shards.folder / one.file).read_bytes()


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "dtrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "dtrain"


def test_the_default_size(small_disk: Path) -> None:
    """Half of the disk, however much of it the cache already takes."""
    folder = small_disk / "not" / "there"
    assert default_bytes(folder) == 2**20
    folder.mkdir(parents=True)
    (folder / f"{'0' * 64}.tar").write_bytes(bytes(2**20))
    assert 2**20 - 2**15 <= default_bytes(folder) <= 2**20
    (folder / "something else").write_bytes(bytes(2**19))
    assert default_bytes(folder) < 2**20 - 2**17
