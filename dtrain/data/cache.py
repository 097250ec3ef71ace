"""Shards behind a URL as local files: fetched ahead in the known order, once for all processes of a node, checked.

Never decides what is read when: `ShardUse`s say that. Each process pins (holds, or is fetching) at most its share of
the folder, `max_bytes // processes`; `admission` says why its reader then never waits for itself. The shares of all
processes fit into the folder together, so room for what is let in can be made by dropping what nobody pins. Within the
share, room for the largest shard may be spared: one shard at a time is borrowed through it, and unpinned as soon as it
is open, so that there is always room for the next. What remains are other runs in the same folder, a silent server, and
descriptors that a reader keeps after `release`: those waits end with `patience_seconds`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dtrain.data.admission import Admission, Held
from dtrain.data.cache_folder import CacheFolder
from dtrain.data.download import Downloader
from dtrain.data.fetch import Fetcher
from dtrain.data.uses import ShardUse, largest_window
from shard_tools.errors import UserError
from shard_tools.manifest import Shard
from shard_tools.storage import RemoteStorage

MAX_AHEAD = 128
"""How many shards are pinned beyond those in use, however much room there is: each costs a file descriptor."""

CLOSE_SECONDS = 2.0

INDEX_SHARE = 50
"""Such a part of the share is left to indexes, beyond what is in use: they are about 1 % of shards of small images."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class FetchStats:
    """What a cache did so far.

    Bytes that arrived; shards fetched, and announced ones that were found in the folder; tries after failures; seconds
    that callers waited, summed over threads.
    """

    bytes_fetched: int
    shards_fetched: int
    shards_found: int
    retries: int
    seconds_waited: float


class ShardCache:
    """Local files of the shards in a remote storage; safe to use from several threads, but not after a fork.

    `folder` may be shared by any processes of one node, and should be on a local disk; all files in it together stay
    within `max_bytes`, of which `processes` have equal shares; with `spare`, room to borrow is kept in each of them.
    `connections` threads fetch ahead; each, and each caller, holds at most one range of 8 MiB in memory.
    `patience_seconds` limit every wait without progress.

    From `end` to the next `begin`, `open`, `borrow` and `index` raise RuntimeError at once, and those that wait then do
    so, too. Before the first `begin`, shards can be borrowed and indexes read.
    """

    def __init__(
        self,
        storage: RemoteStorage,
        folder: Path,
        *,
        max_bytes: int,
        processes: int = 1,
        spare: bool = False,
        connections: int = 4,
        patience_seconds: float = 300.0,
    ) -> None:
        """Creates the folder. Raises UserError if it can't be used."""
        self._fetcher = Fetcher(storage, patience_seconds)
        self._downloader = Downloader(
            self._fetcher, CacheFolder(folder, max_bytes), next_need=self._next_need, progressed=self._progressed
        )
        self._max_bytes = max_bytes
        self._processes = processes
        self._share = max_bytes // processes
        self._spare = spare
        self._connections = connections
        self._changed = threading.Condition()
        self._admission = Admission((), self._share, MAX_AHEAD)
        self._borrowing = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._fetched = self._found = 0
        self._waited = 0.0
        self._moved = time.monotonic()

    def begin(self, uses: Sequence[ShardUse], *, borrowed: Iterable[Shard] = ()) -> None:
        """Fetch ahead for `uses`, in the order of their first batches; ends what was begun before.

        Where room is spared, it is for the largest shard of `uses` and of `borrowed`, which are those that may be
        borrowed besides. Raises UserError if that and what is in use at the same time are more than this process's
        share.
        """
        self.end()
        shards, needed = largest_window(uses)
        all_shards = [*(use.shard for use in uses), *borrowed] if self._spare else []
        spare = max((shard.bytes for shard in all_shards), default=0)
        if needed + spare > self._share:
            besides = f", and {spare:,} bytes are kept for one more (data.on_bad_sample: replace)" if spare else ""
            raise UserError(
                f"data.cache_size: {self._max_bytes:,} bytes are too few: {shards} shards with {needed:,} bytes are "
                f"read at the same time by each of {self._processes} processes{besides}; give at least "
                f"{(needed + spare) * self._processes:,} bytes, or read fewer at a time (data.max_lanes), or build "
                "smaller shards"
            )
        room = max(needed, self._share - spare - self._share // INDEX_SHARE)
        with self._changed:
            self._start_threads()
            self._stop = threading.Event()
            self._admission = Admission(uses, room, shards + MAX_AHEAD)
            self._changed.notify_all()

    def open(self, shard: Shard) -> int:
        """A descriptor of an announced shard, read-only, whole and verified; blocks until it is there.

        To be called within the batches of a use. The caller closes the descriptor, and does so before `release`: until
        then the file can't be dropped. Raises UserError that names the shard when it can't be had, and does so again
        until the next `begin`; ValueError when no use of it is announced, or all are over.
        """
        with self._changed:
            held = self._wait_for(shard.file, self._stop, lambda: self._brought(shard))
            if held.descriptor is not None:
                return os.dup(held.descriptor)
        if isinstance(held.error, UserError):
            raise UserError(str(held.error)) from held.error
        raise RuntimeError(f"{shard.file}: {held.error!r}") from held.error

    def borrow(self, shard: Shard) -> int:
        """A descriptor of any shard, as `open`, but for a moment: it is no use, and needs no `release`.

        The caller closes it soon: the file may be dropped meanwhile, but takes its place on the disk as long as it is
        open. One that is not in the folder is fetched, without its index, into the room that is spared for it, else
        into what can be had now. Raises UserError as `open`; the next `borrow` tries again.
        """

        def fetch(stop: threading.Event) -> int:
            with self._borrowing:
                descriptor, fetched = self._downloader.loose_shard(shard, stop)
            with self._changed:
                self._fetched += fetched
            return descriptor

        return self._aside(shard.file, fetch, drop=os.close)

    def release(self, shard: Shard) -> None:
        """One use of the shard is over; to be called once for each.

        It may be dropped from now on, unless another use of it has been let in. Does nothing after `end`.
        """
        with self._changed:
            held = self._admission.release(shard)
            if held is not None:
                _close(held)
                self._changed.notify_all()

    def index(self, shard: Shard) -> bytes:
        """The bytes of the shard's index, checked against the manifest; from the folder, or fetched and kept there.

        Where all room is taken by shards in use, it is not kept. Raises UserError as `open`.
        """
        return self._aside(shard.index, lambda stop: self._downloader.index(shard, stop))

    def path(self, name: str) -> str:
        """Where a file of the storage lies, for messages."""
        return self._fetcher.path(name)

    def end(self) -> None:
        """Stop fetching, let go of all shards, and let everybody who waits raise RuntimeError. May `begin` again."""
        with self._changed:
            self._stop.set()
            for held in self._admission.held.values():
                _close(held)
            self._admission = Admission((), self._share, MAX_AHEAD)
            self._changed.notify_all()

    def close(self) -> None:
        """End, and join the threads; one that waits for a server's answer is left to itself after 2 s."""
        self.end()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def stats(self) -> FetchStats:
        """What was done so far."""
        return FetchStats(self._fetcher.bytes, self._fetched, self._found, self._fetcher.retries, self._waited)

    def _start_threads(self) -> None:
        if self._closed:
            raise RuntimeError("this cache is closed")
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"fetch-{number}", daemon=True)
                for number in range(self._connections)
            ]
            for thread in self._threads:
                thread.start()

    def _brought(self, shard: Shard) -> Held | None:
        """The shard, once it is there or can't be had."""
        if not self._admission.expects(shard):
            raise ValueError(f"{shard.file}: no use of it is announced, or all are over")
        held = self._admission.held.get(shard.sha256)
        return held if held is not None and (held.descriptor is not None or held.error is not None) else None

    def _aside(
        self,
        name: str,
        work: Callable[[threading.Event], Result],
        drop: Callable[[Result], object] = lambda result: None,
    ) -> Result:
        """What `work` returns, done by a thread of its own, so that `end` needs no answer of a server.

        What comes after nobody waits for it any more is given to `drop`.
        """
        future: Future[Result] = Future()
        stop = self._stop

        def run() -> None:
            try:
                future.set_result(work(stop))
            except BaseException as error:  # raised by `future.result()`
                future.set_exception(error)
            with self._changed:
                self._changed.notify_all()

        def drop_result(done: Future[Result]) -> None:
            if done.exception() is None:
                drop(done.result())

        threading.Thread(target=run, name="fetch-aside", daemon=True).start()
        try:
            with self._changed:
                self._wait_for(name, stop, lambda: future if future.done() else None)
        except BaseException:
            future.add_done_callback(drop_result)
            raise
        return future.result()

    def _wait_for(self, name: str, stop: threading.Event, ready: Callable[[], Result | None]) -> Result:
        """What `ready` returns, as soon as it is not None. Raises RuntimeError once `stop` is set."""
        began = time.monotonic()
        try:
            while not stop.is_set():
                if (result := ready()) is not None:
                    return result
                self._changed.wait(1.0)
                self._check_progress(name, began)
        finally:
            self._waited += time.monotonic() - began
        raise RuntimeError(f"{name}: the cache is ended, and this was still wanted")

    def _check_progress(self, name: str, since: float) -> None:
        """Raise UserError where a request hangs that can't be given up, so that its thread can't say so."""
        limit = 2 * self._fetcher.patience_seconds
        if time.monotonic() - max(self._moved, since) > limit:
            raise UserError(
                f"{self.path(name)}: nothing came in {limit:g} s, and no request has failed either; "
                "check the network and the server, then run the same command again"
            )

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            held, stop = job
            descriptor, fetched, error = None, False, None
            try:
                descriptor, fetched = self._downloader.shard(held.shard, stop)
                self._downloader.keep_index(held.shard, stop)
            except BaseException as raised:  # `open` raises it
                error = raised
            with self._changed:
                self._fetched += fetched
                self._found += descriptor is not None and not fetched
                held.descriptor, held.error = descriptor, error
                if error is not None or self._admission.held.get(held.shard.sha256) is not held:
                    _close(held)
                self._progressed()
                self._changed.notify_all()

    def _next_job(self) -> tuple[Held, threading.Event] | None:
        with self._changed:
            while not self._closed:
                if (held := self._admission.let_in_next()) is not None:
                    return held, self._stop
                self._changed.wait()
        return None

    def _next_need(self, sha256: str) -> float:
        with self._changed:
            return self._admission.next_need(sha256)

    def _progressed(self) -> None:
        self._moved = time.monotonic()


def _close(held: Held) -> None:
    if held.descriptor is not None:
        os.close(held.descriptor)
        held.descriptor = None
