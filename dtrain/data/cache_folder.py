"""The folder of cached files that all processes of a node share: names, locks and room. Knows no network, no threads.

Names say what is inside: `SHA256.tar` and `SHA256.idx` are whole; `SHA256.BYTES.part` is on its way to BYTES bytes.

- Every change of names, and every new lock on a file, happens under one lock of the folder, which is held briefly. So
  a file can't vanish between being opened and being locked.
- A file is pinned by a shared lock on it, and written under an exclusive one. A file or partial file is dropped only
  by who gets its exclusive lock at once: never while anybody reads or writes it.
- All locks are flocks: they end with their process, however it ends. What a killed process leaves is a whole file, or
  a partial one that the next goes on with or drops.
- Files and the full size of partial ones stay within `max_bytes` together: a partial file is created only when there is
  room for all of it.
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dtrain.data.cache_files import CacheFile, Content, NextNeed, files_in, free_bytes, worst_first
from shard_tools.errors import UserError

LOCK_NAME = "lock"
LOCK_SECONDS = 60.0

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

logger = logging.getLogger("dtrain.data")


class BusyError(Exception):
    """Another writes the file; `arrived` bytes are there."""

    def __init__(self, arrived: int) -> None:
        super().__init__(arrived)
        self.arrived = arrived


class FullError(Exception):
    """There is no room: `held` bytes are pinned or being written."""

    def __init__(self, held: int) -> None:
        super().__init__(held)
        self.held = held


class CacheFolder:
    """Files by content in one folder; safe to use from several threads and processes.

    Descriptors that are handed out belong to the caller, and their locks end when they are closed.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Creates the folder. Raises UserError if it can't be used."""
        self.folder = folder
        self.max_bytes = max_bytes
        with self.reported(), self._locked():
            pass

    def claim(self, content: Content, next_need: NextNeed) -> tuple[int, bool]:
        """(descriptor, True) of the whole file, pinned; else (descriptor, False) of its partial file, to be filled.

        The partial file holds what an earlier process left of it. Makes room first, if it must, by dropping what is
        needed last. Raises BusyError while another writes it, FullError when there is no room now.
        """
        with self._locked():
            descriptor = self._pin(content)
            if descriptor is not None:
                return descriptor, True
            return self._take_partial(content, next_need), False

    def append(self, descriptor: int, data: bytes, offset: int, next_need: NextNeed) -> None:
        """Write `data` at `offset` of a partial file; on a full disk, drop what can be dropped.

        Raises OSError if the disk stays full.
        """
        rest = memoryview(data)
        while rest:
            try:
                written = os.pwrite(descriptor, rest, offset)
            except OSError as error:
                if error.errno not in _DISK_FULL or not self._drop_one(next_need):
                    raise
                continue
            rest, offset = rest[written:], offset + written

    def publish(self, content: Content, descriptor: int) -> int | None:
        """Give a filled partial file its final name; returns a descriptor of it, pinned, and closes the other.

        None if somebody removed the file meanwhile.
        """
        try:
            os.fsync(descriptor)
            with self._locked():
                if not _is_at(descriptor, self.folder / content.partial):
                    return None
                (self.folder / content.partial).rename(self.folder / content.name)
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                return self._pin(content)
        finally:
            os.close(descriptor)

    def store(self, content: Content, descriptor: int, data: bytes, next_need: NextNeed) -> None:
        """Fill the partial file of a small content and give it its final name; closes `descriptor`.

        Not synced: who reads it must compare the hash. Where there is no room it is not kept.
        """
        partial = self.folder / content.partial
        try:
            with self._locked():
                if not _is_at(descriptor, partial):
                    return
                try:
                    self._make_room(len(data), content.partial, next_need)
                    os.ftruncate(descriptor, 0)
                    if os.pwrite(descriptor, data, 0) == len(data):
                        partial.rename(self.folder / content.name)
                except FullError:
                    pass
                except OSError as error:
                    if error.errno not in _DISK_FULL:
                        raise
                finally:
                    partial.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def leave(self, content: Content, descriptor: int) -> None:
        """Stop writing a partial file; what is in it stays for the next, an empty one goes. Closes `descriptor`."""
        partial = self.folder / content.partial
        try:
            with self._locked():
                if os.fstat(descriptor).st_size == 0 and _is_at(descriptor, partial):
                    partial.unlink()
        finally:
            os.close(descriptor)

    def unpin(self, descriptor: int) -> None:
        """Let a whole file be dropped, though what is in it stays readable through this descriptor."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def remove(self, content: Content) -> None:
        """Remove a whole file that is not what its name says."""
        with self._locked():
            (self.folder / content.name).unlink(missing_ok=True)

    def holds(self, content: Content) -> bool:
        """Whether the whole file is there now."""
        return (self.folder / content.name).exists()

    @contextmanager
    def reported(self) -> Iterator[None]:
        """What the operating system says against the folder becomes a UserError that names it and the way out."""
        try:
            yield
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise UserError(
                    f"{self.folder}: the disk of this cache is full ({free_bytes(self.folder):,} bytes free) and "
                    "nothing more in the cache can be dropped; free some space, set data.cache_size to less than "
                    "there is, or give a folder on another disk as data.cache_dir"
                ) from None
            raise UserError(
                f"{self.folder}: can't be used as the cache of shards: {error.strerror}; give a folder on a local disk "
                "that this user may write to as data.cache_dir"
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.folder / LOCK_NAME
        self.folder.mkdir(parents=True, exist_ok=True)
        # Opened anew each time: flocks of one open file would not keep threads apart.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            deadline, pause = time.monotonic() + LOCK_SECONDS, 0.0005
            while not _try_lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{path}: another process has held this lock for {LOCK_SECONDS:g} s, which takes milliseconds "
                        "otherwise; end the process if it is stopped, or give another folder as data.cache_dir"
                    )
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            yield
        finally:
            os.close(descriptor)

    def _pin(self, content: Content) -> int | None:
        path = self.folder / content.name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        size = os.fstat(descriptor).st_size
        if not _try_lock(descriptor, fcntl.LOCK_SH):
            os.close(descriptor)
            raise BusyError(size)
        if content.bytes in (0, size):
            with suppress(PermissionError):  # a file of another user; it only looks older than it is
                os.utime(descriptor)
            return descriptor
        os.close(descriptor)
        logger.warning("%s: %d bytes instead of %d; removed", path, size, content.bytes)
        path.unlink()
        return None

    def _take_partial(self, content: Content, next_need: NextNeed) -> int:
        path = self.folder / content.partial
        try:
            descriptor = _lock_existing(path, os.O_RDWR)
        except FileNotFoundError:
            self._make_room(content.bytes, content.partial, next_need)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return descriptor
        if descriptor is None:
            raise BusyError(path.stat().st_size)
        try:
            self._make_room(content.bytes, content.partial, next_need)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _make_room(self, needed: int, but_for: str, next_need: NextNeed) -> None:
        """Drop files until `needed` bytes fit beside those that are there, of which `but_for` does not count."""
        files = [file for file in files_in(self.folder) if file.name != but_for]
        held = sum(file.bytes for file in files)
        if held + needed <= self.max_bytes:
            return
        for file in worst_first(files, next_need):
            if self._drop(file):
                held -= file.bytes
                if held + needed <= self.max_bytes:
                    return
        raise FullError(held)

    def _drop_one(self, next_need: NextNeed) -> bool:
        with self._locked():
            return any(self._drop(file) for file in worst_first(list(files_in(self.folder)), next_need))

    def _drop(self, file: CacheFile) -> bool:
        """Remove a file unless somebody reads or writes it."""
        path = self.folder / file.name
        try:
            descriptor = _lock_existing(path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        if descriptor is None:
            return False
        path.unlink(missing_ok=True)
        os.close(descriptor)
        return True


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this path: somebody may have emptied the folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock_existing(path: Path, mode: int) -> int | None:
    """A descriptor with the exclusive lock on a file; None if somebody holds it. Raises FileNotFoundError."""
    descriptor = os.open(path, mode)
    if _try_lock(descriptor, fcntl.LOCK_EX):
        return descriptor
    os.close(descriptor)
    return None
