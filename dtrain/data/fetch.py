"""Bytes of objects over the network, by requests for ranges that are tried again. Never touches a disk."""

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from shard_tools.errors import UserError
from shard_tools.storage import RemoteStorage, without_credentials

MAX_RANGE = 8 * 2**20
MIN_RANGE = 64 * 2**10
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0

_PASSING_STATUS = {408, 425, 429}
_REFUSED_STATUS = {401, 403, 407}

logger = logging.getLogger("dtrain.data")


class StoppedError(Exception):
    """Nobody wants the object any more."""


class WrongLengthError(OSError):
    """An answer is neither what was asked for nor the whole object."""


class Fetcher:
    """Objects of one storage; safe to use from several threads, each of which holds one range in memory.

    A request is given up after a tenth of `patience_seconds`. One that fails for a reason that may pass (no
    connection, cut or short answer, time-out, status 5xx, 408, 425, 429) is tried again after a growing pause, and for
    a smaller range, until that patience has passed without a new byte. A server that is slow is thus asked for
    ranges that it can answer in time; one that knows no ranges must send the whole object in that time, which is then
    in memory.
    """

    def __init__(self, storage: RemoteStorage, patience_seconds: float) -> None:
        self._storage = storage
        self.patience_seconds = patience_seconds
        self._request_seconds = patience_seconds / 10
        self._range = MAX_RANGE
        self._lock = threading.Lock()
        self.retries = 0
        self.bytes = 0

    def path(self, name: str) -> str:
        """Where an object lies, for messages."""
        return self._storage.path(name)

    def pieces(self, name: str, start: int, size: int, stop: threading.Event) -> Iterator[bytes]:
        """The object called `name` of `size` bytes from byte `start` on, in pieces.

        Raises UserError that names it when it is missing, refused, of another size, or does not come on; StoppedError
        once `stop` is set.
        """

        def ask() -> bytes:
            return self._ask_range(name, start, size)

        while start < size:
            piece = self._try(name, ask, stop, size)
            start += len(piece)
            yield piece

    def whole(self, name: str, stop: threading.Event) -> bytes:
        """A small object of unknown size. Raises as `pieces`."""

        def ask() -> bytes:
            data = self._storage.request(name, seconds=self._request_seconds)
            self._count(received=len(data))
            return data

        return self._try(name, ask, stop)

    def retry(self, name: str, reason: str, pause: float = 0.0) -> None:
        """Say, and count, that something is fetched again after `pause` seconds."""
        when = f"next try in {pause:.1f} s" if pause else "fetching it again"
        logger.warning("%s: %s; %s", self.path(name), reason, when)
        self._count(retries=1)

    def _ask_range(self, name: str, start: int, size: int) -> bytes:
        asked = self._range
        stop = min(start + asked, size)
        began = time.monotonic()
        data = self._storage.request(name, start, stop, seconds=self._request_seconds)
        self._count(received=len(data))
        if len(data) == size:  # all of it was asked for, or the server knows no ranges
            return data[start:]
        if len(data) != stop - start:
            raise WrongLengthError(f"{len(data):,} bytes came where {stop - start:,} were asked for")
        if time.monotonic() - began < self._request_seconds / 4:
            self._range = min(2 * asked, MAX_RANGE)
        return data

    def _try(self, name: str, ask: Callable[[], bytes], stop: threading.Event, size: int | None = None) -> bytes:
        deadline = time.monotonic() + self.patience_seconds
        pause = FIRST_PAUSE
        while not stop.is_set():
            try:
                return ask()
            except UserError:
                raise
            except Exception as error:  # implementations raise their libraries' own
                self._raise_if_lasting(name, error, size)
                reason = self._reason(error)
            left = deadline - time.monotonic()
            if left <= 0:
                raise UserError(
                    f"{self.path(name)}: no new byte of it came in {self.patience_seconds:g} s; last: {reason}; "
                    "check the network and the server, then run the same command again"
                )
            self._range = max(self._range // 4, MIN_RANGE)
            wait = min(pause * random.uniform(0.5, 1), left)
            self.retry(name, reason, wait)
            stop.wait(wait)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise StoppedError

    def _raise_if_lasting(self, name: str, error: Exception, size: int | None) -> None:
        """Raise UserError where trying again is no use."""
        path, status, reason = self.path(name), _status(error), self._reason(error)
        if isinstance(error, FileNotFoundError):
            raise UserError(
                f"{path}: is not there, but the manifest names it; upload it again, or check the manifest's address"
            ) from None
        if isinstance(error, PermissionError) or status in _REFUSED_STATUS:
            raise UserError(
                f"{path}: may not be read: {reason}; check the credentials and what they are allowed to read"
            ) from None
        beyond_its_end = status == 416 or getattr(error, "errno", None) == errno.EINVAL
        if size is not None and (beyond_its_end or isinstance(error, WrongLengthError)):
            self._compare_size(name, size)
        if status is not None and 400 <= status < 500 and status not in _PASSING_STATUS:
            raise UserError(f"{path}: cannot be read: {reason}; check the address") from None

    def _compare_size(self, name: str, size: int) -> None:
        there = size
        with suppress(FileNotFoundError, UserError):
            there = self._storage.size(name)
        if there != size:
            raise UserError(
                f"{self.path(name)}: {there:,} bytes are there, but the manifest says {size:,}; "
                "upload the shard again from the build that wrote the manifest"
            )

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError) and not str(error):
            return f"no answer within {self._request_seconds:g} s"
        return without_credentials(str(error)) or type(error).__name__

    def _count(self, *, received: int = 0, retries: int = 0) -> None:
        with self._lock:
            self.bytes += received
            self.retries += retries


def _status(error: Exception) -> int | None:
    """The HTTP status in an error, wherever its library keeps it."""
    response = getattr(error, "response", None)
    for holder in (error, response):
        for attribute in ("status", "status_code", "code"):
            value = getattr(holder, attribute, None)
            if isinstance(value, int):
                return value
    return None
