"""Shards behind a URL as local files: fetched ahead in the known order, once for all processes of a node, checked.

Never decides what is read when: `ShardUse`s say that. Each process pins (holds, or is fetching) at most its share of
the folder, `max_bytes // processes`; `admission` says why its reader then never waits for itself. The shares of all
processes fit into the folder together, so room for what is let in can be made by dropping what nobody pins. What
remains are other runs in the same folder, a silent server, and descriptors that a reader keeps after `release`: those
waits end with `patience_seconds`.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrain.data.admission import Admission, Held
from dtrain.data.cache_folder import CacheFolder
from dtrain.data.download import Downloader
from dtrain.data.fetch import Fetcher, StoppedError
from dtrain.data.uses import ShardUse, largest_window
from shard_tools.errors import UserError
from shard_tools.manifest import Shard
from shard_tools.storage import RemoteStorage

MAX_AHEAD = 128
"""How many shards are pinned beyond those in use, however much room there is: each costs a file descriptor."""

CLOSE_SECONDS = 2.0

_ENDED = "the cache was ended while this was waited for"


@dataclass(frozen=True)
class FetchStats:
    """What a cache did so far.

    Bytes that arrived; shards fetched, and found in the folder; tries after failures; seconds that `open` waited,
    summed over threads.
    """

    bytes_fetched: int
    shards_fetched: int
    shards_found: int
    retries: int
    seconds_waited: float


class ShardCache:
    """Local files of the shards in a remote storage; safe to use from several threads, but not after a fork.

    `folder` may be shared by any processes of one node, and should be on a local disk; all files in it together stay
    within `max_bytes`, of which `processes` have equal shares. `connections` threads fetch; each holds at most one
    range of 8 MiB in memory. `patience_seconds` limit every wait without progress.
    """

    def __init__(
        self,
        storage: RemoteStorage,
        folder: Path,
        *,
        max_bytes: int,
        processes: int = 1,
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
        self._connections = connections
        self._changed = threading.Condition()
        self._admission = Admission((), self._share, MAX_AHEAD)
        self._urgent: deque[Held] = deque()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._fetched = self._found = 0
        self._waited = 0.0
        self._moved = time.monotonic()

    def begin(self, uses: Sequence[ShardUse]) -> None:
        """Fetch ahead for `uses`, in the order of their first batches; ends what was begun before.

        Raises UserError if what is in use at the same time is more than this process's share.
        """
        self.end()
        shards, needed = largest_window(uses)
        if needed > self._share:
            raise UserError(
                f"data.cache_size: {self._max_bytes:,} bytes are too few: {shards} shards with {needed:,} bytes are "
                f"read at the same time by each of {self._processes} processes; give at least "
                f"{needed * self._processes:,} bytes, or read fewer at a time (data.max_lanes), or build smaller shards"
            )
        with self._changed:
            self._admission = Admission(uses, self._share, shards + MAX_AHEAD)
            self._start_threads()
            self._changed.notify_all()

    def open(self, shard: Shard) -> int:
        """A descriptor of the shard, read-only, whole and verified; blocks until it is there.

        The caller closes it, and does so before `release`: until then the file can't be dropped. Raises UserError that
        names the shard when it can't be had, also if a background thread found out; the next `open` tries again.
        """
        began = time.monotonic()
        with self._changed:
            held = self._admission.held.get(shard.sha256) or self._let_in_now(shard)
            while held.descriptor is None and held.error is None:
                self._changed.wait(1.0)
                self._check_progress(shard, began)
            self._waited += time.monotonic() - began
            if held.descriptor is not None:
                return os.dup(held.descriptor)
            if self._admission.held.get(shard.sha256) is held:
                del self._admission.held[shard.sha256]
        if isinstance(held.error, UserError):
            raise UserError(str(held.error)) from held.error
        raise RuntimeError(f"{shard.file}: {_ENDED if held.error is None else held.error!r}") from held.error

    def release(self, shard: Shard) -> None:
        """One use of the shard is over: once for each announced use; once for a shard that was not announced.

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
        try:
            return self._downloader.index(shard, self._stop)
        except StoppedError:
            raise RuntimeError(f"{shard.index}: {_ENDED}") from None

    def path(self, name: str) -> str:
        """Where a file of the storage lies, for messages."""
        return self._fetcher.path(name)

    def end(self) -> None:
        """Stop fetching ahead and let go of all shards; a waiting `open` raises RuntimeError. May `begin` again."""
        with self._changed:
            self._stop.set()
            self._stop = threading.Event()
            for held in self._admission.held.values():
                _close(held)
                held.error = held.error or StoppedError(_ENDED)
            self._admission = Admission((), self._share, MAX_AHEAD)
            self._urgent.clear()
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

    def _let_in_now(self, shard: Shard) -> Held:
        self._start_threads()
        held = self._admission.let_in_now(shard)
        self._urgent.append(held)
        self._changed.notify_all()
        return held

    def _check_progress(self, shard: Shard, since: float) -> None:
        """Raise UserError where a request hangs that can't be given up, so that its thread can't say so."""
        limit = 2 * self._fetcher.patience_seconds
        if time.monotonic() - max(self._moved, since) > limit:
            raise UserError(
                f"{self.path(shard.file)}: nothing came in {limit:g} s, and no request has failed either; "
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
                held.descriptor, held.error = descriptor, held.error or error
                if held.error is not None or self._admission.held.get(held.shard.sha256) is not held:
                    _close(held)
                self._progressed()
                self._changed.notify_all()

    def _next_job(self) -> tuple[Held, threading.Event] | None:
        with self._changed:
            while not self._closed:
                held = self._urgent.popleft() if self._urgent else self._admission.let_in_next()
                if held is not None:
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
