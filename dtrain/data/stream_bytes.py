"""The bytes of a tar from its front to its end: from a path or an http(s):// URL, decompressed. Never seeks.

webdataset opens both; for http(s):// it runs the program `curl`, which tries again for about a minute when a server
refuses or can't be reached, and does not when a transfer is cut. A URL of any other scheme is refused, since most would
run a program. Two environment variables of webdataset remain: GOPEN_REWRITE changes URLs, and the result is held to
the same rule; USE_AIS_FOR=http makes it run `ais` instead of `curl`.
"""

import bz2
import gzip
import io
import lzma
import os
import select
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from webdataset.gopen import Pipe, gopen, rewrite_url
from webdataset.shardlists import expand_urls

from shard_tools.errors import UserError

_READ_BYTES = 2**16
_LOOK_UP_MS = 100


def expand(pattern: str, field: str) -> list[str]:
    """The paths and URLs that a pattern with webdataset's braces stands for.

    Raises UserError that names `field` when one is a file that is not there, or has a scheme that is refused.
    """
    try:
        urls: list[str] = expand_urls(pattern)
        for url in urls:
            _check(url, rewrite_url(url))
    except (AssertionError, ValueError) as error:
        raise UserError(f"{field}: {error}") from None
    return urls


def _check(url: str, place: str) -> None:
    """Raises ValueError if `place`, which webdataset makes of `url`, is not to be opened."""
    parsed = urlparse(place)
    if parsed.scheme in ("http", "https"):
        if "'" in place:  # webdataset 0.2 puts it between such quotes into the command line of a shell
            raise ValueError(f"{url}: contains a quote ('), which could end curl's argument; write %27")
        if shutil.which("curl") is None:
            raise ValueError(f"{url}: webdataset reads it by the program curl, which is not installed")
    elif parsed.scheme in ("", "file") and place not in ("", "-"):
        if not Path(url2pathname(parsed.path) if parsed.scheme else place).exists():
            raise ValueError(f"{url}: no such file")
    else:
        raise ValueError(f"{url!r}: expected paths or http(s):// URLs")


@contextmanager
def opened(url: str, *, patience_seconds: float, stopped: threading.Event) -> Iterator[io.BufferedIOBase]:
    """The decompressed bytes of a tar. A server may let `patience_seconds` pass without a byte.

    Opening and reading raise OSError, EOFError, ValueError or the decompressor's own error when it can't be read, and
    CancelledError soon after `stopped` is set.
    """
    file = gopen(url)
    if isinstance(file, Pipe):
        file = io.BufferedReader(_ProgramOutput(file, patience_seconds, stopped), _READ_BYTES)
    with closing(file), closing(_decompressed(file)) as whole:
        yield whole


class _ProgramOutput(io.RawIOBase):
    """What the program behind webdataset's pipe writes; its failure and its silence are errors, not ends."""

    def __init__(self, pipe: Any, patience_seconds: float, stopped: threading.Event) -> None:
        self._pipe = pipe
        self._patience_seconds = patience_seconds
        self._stopped = stopped
        self._descriptor: int = pipe.stream.fileno()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, except at the end. Raises OSError if the program fails, or writes nothing for too long."""
        view = memoryview(buffer)
        filled = 0
        while filled < len(view):
            self._wait()
            arrived = os.readv(self._descriptor, [view[filled:]])
            if arrived == 0:
                self._check_status()
                break
            filled += arrived
        return filled

    def close(self) -> None:
        """End the program, which may have more to write than was wanted."""
        if not self.closed:
            self._pipe.proc.kill()
            self._pipe.stream.close()
            self._pipe.proc.wait()
        super().close()

    def _wait(self) -> None:
        deadline = time.monotonic() + self._patience_seconds
        while not self._poll.poll(_LOOK_UP_MS):
            if self._stopped.is_set():
                raise CancelledError
            if time.monotonic() > deadline:
                raise TimeoutError(f"not a byte for {self._patience_seconds:g} s (data.patience_seconds)")

    def _check_status(self) -> None:
        status = self._pipe.proc.wait(self._patience_seconds)
        if status != 0:
            raise OSError(
                f"curl ended with status {status} (6, 7: no connection, 18: cut off, 22: the server has an error or "
                "nothing of this name)"
            )


def _decompressed(file: io.BufferedReader) -> io.BufferedIOBase:
    """The same bytes, or those that are compressed in them, whose end and checksums are then checked."""
    start = file.peek(8)
    for magic, decompress in _DECOMPRESS.items():
        if start.startswith(magic):
            return decompress(file)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        raise ValueError("it is compressed with zstd; expected gzip, bzip2, xz or nothing")
    return file


_DECOMPRESS: dict[bytes, Callable[[io.BufferedReader], io.BufferedIOBase]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
