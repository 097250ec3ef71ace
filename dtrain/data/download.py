"""One file of a remote storage into the cache folder: waits for who fetches it already, or fetches and checks it.

Never decides which file comes next.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable

from dtrain.data.cache_files import Content, NextNeed
from dtrain.data.cache_folder import BusyError, CacheFolder, FullError
from dtrain.data.fetch import Fetcher, StoppedError
from shard_tools.errors import UserError
from shard_tools.manifest import Shard

SHORTEST_POLL, LONGEST_POLL = 0.02, 0.25


class Downloader:
    """Shards and indexes as verified local files; safe to use from several threads.

    `next_need` says what may be dropped; `progressed` is called whenever something moved. Where it is set, the event
    `stop` ends any method with `StoppedError`.
    """

    def __init__(
        self, fetcher: Fetcher, folder: CacheFolder, *, next_need: NextNeed, progressed: Callable[[], None]
    ) -> None:
        self._fetcher = fetcher
        self._folder = folder
        self._next_need = next_need
        self._progressed = progressed

    def shard(self, shard: Shard, stop: threading.Event) -> tuple[int, bool]:
        """A descriptor of the whole shard, pinned, and whether this process fetched it.

        Raises UserError that names it when it can't be had.
        """
        content = Content(shard.sha256, "tar", shard.bytes)
        with self._folder.reported():
            while True:
                descriptor, whole = self._claim(content, shard.file, stop)
                if whole:
                    return descriptor, False
                try:
                    self._fill(shard, descriptor, stop)
                except BaseException:
                    self._folder.leave(content, descriptor)
                    raise
                published = self._folder.publish(content, descriptor)
                if published is not None:
                    return published, True

    def loose_shard(self, shard: Shard, stop: threading.Event) -> tuple[int, bool]:
        """As `shard`, but the file is not pinned: it may be dropped while it is read."""
        descriptor, fetched = self.shard(shard, stop)
        self._folder.unpin(descriptor)
        return descriptor, fetched

    def index(self, shard: Shard, stop: threading.Event) -> bytes:
        """The bytes of a shard's index, which is kept in the folder where there is room. Raises as `shard`."""
        content = Content(shard.index_sha256, "idx", 0)
        with self._folder.reported():
            while True:
                descriptor, whole = self._claim(content, shard.index, stop)
                if not whole:
                    break
                with os.fdopen(descriptor, "rb") as file:
                    data = file.read()
                if hashlib.sha256(data).hexdigest() == shard.index_sha256:
                    return data
                self._folder.remove(content)  # a power cut may do that: indexes are not synced
            try:
                data = self._fetch_index(shard, stop)
            except BaseException:
                self._folder.leave(content, descriptor)
                raise
            self._folder.store(content, descriptor, data, self._next_need)
            return data

    def keep_index(self, shard: Shard, stop: threading.Event) -> None:
        """Fetch the index if it is not in the folder."""
        if not self._folder.holds(Content(shard.index_sha256, "idx", 0)):
            self.index(shard, stop)

    def _claim(self, content: Content, name: str, stop: threading.Event) -> tuple[int, bool]:
        """As `CacheFolder.claim`, but waits while another fetches it, or for room."""
        path, patience = self._fetcher.path(name), self._fetcher.patience_seconds
        arrived, since, pause = -1, time.monotonic(), SHORTEST_POLL
        while not stop.is_set():
            try:
                claimed = self._folder.claim(content, self._next_need)
                self._progressed()
                return claimed
            except BusyError as reason:
                if reason.arrived != arrived:
                    arrived, since = reason.arrived, time.monotonic()
                    self._progressed()
                elif time.monotonic() - since > patience:
                    raise UserError(
                        f"{path}: this or another process of this node fetches it, but no new byte came in "
                        f"{patience:g} s; see what that process says, check the network and the server, then run the "
                        "same command again"
                    ) from None
            except FullError as reason:
                if content.bytes > self._folder.max_bytes or time.monotonic() - since > patience:
                    raise UserError(
                        f"{path}: no room for its {content.bytes:,} bytes in {self._folder.folder}: of "
                        f"{self._folder.max_bytes:,} bytes, {reason.held:,} are in use by this and other processes; "
                        "give more as data.cache_size, or a folder of its own to each run as data.cache_dir"
                    ) from None
            stop.wait(pause)
            pause = min(2 * pause, LONGEST_POLL)
        raise StoppedError

    def _fill(self, shard: Shard, descriptor: int, stop: threading.Event) -> None:
        """Fill a partial file from where it ends, and check the hash; begins anew once if it differs."""
        if os.fstat(descriptor).st_size > shard.bytes:
            os.ftruncate(descriptor, 0)
        for last_try in (False, True):
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256")
                arrived = file.tell()
            for piece in self._fetcher.pieces(shard.file, arrived, shard.bytes, stop):
                self._folder.append(descriptor, piece, arrived, self._next_need)
                digest.update(piece)
                arrived += len(piece)
                self._progressed()
            if digest.hexdigest() == shard.sha256:
                return
            os.ftruncate(descriptor, 0)
            self._wrong_hash(shard.file, digest.hexdigest(), shard.sha256, last_try)

    def _fetch_index(self, shard: Shard, stop: threading.Event) -> bytes:
        for last_try in (False, True):
            data = self._fetcher.whole(shard.index, stop)
            self._progressed()
            found = hashlib.sha256(data).hexdigest()
            if found == shard.index_sha256:
                break
            self._wrong_hash(shard.index, found, shard.index_sha256, last_try)
        return data

    def _wrong_hash(self, name: str, found: str, expected: str, last_try: bool) -> None:
        reason = f"SHA-256 of what came is {found}, but the manifest says {expected}"
        if not last_try:
            self._fetcher.retry(name, reason)
            return
        raise UserError(
            f"{self._fetcher.path(name)}: {reason}, twice; upload the shard again, with its index and the manifest, "
            "from the folder that was built"
        )
