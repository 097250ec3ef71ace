"""The samples of tars that can't be indexed, front to back, by webdataset's reader. Never decodes an image.

webdataset alone ends a tar early without a word where it is cut off between two members or inside a header, where a
header is damaged, where archives were joined, and where compressed bytes were changed. Here each of these is an error:
tarfile gets one block at a time, so it is known where it stopped, and there the two blocks of zeros must stand that end
an archive, with nothing but zeros after them. What still can't be noticed: bytes that changed inside a member of a tar
that is not compressed, unless its image can't be decoded any more; tars that were replaced by others; and what
webdataset passes over: links, names without an extension, names such as __meta__.
"""

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase
from typing import Any, NamedTuple

from webdataset.tariterators import group_by_keys, tar_file_expander

from dtrain.data.stream_bytes import opened
from shard_tools.errors import UserError
from shard_tools.tar import BLOCK

_READ_BYTES = 2**16


class RawSample(NamedTuple):
    """A sample as it stands in a tar: `parts` are the bytes of the members that were asked for."""

    url: str
    key: str
    parts: list[bytes]


def read_samples(
    urls: Iterable[str], members: Sequence[str], *, patience_seconds: float, stopped: threading.Event
) -> Generator[RawSample]:
    """All samples of one tar after the other; `members` are names such as "bg.jpg".

    Raises UserError that names the tar which can't be read, is cut off, damaged or without samples, and the sample that
    lacks a member; CancelledError soon after `stopped` is set.
    """
    wanted = [member.lower() for member in members]  # as webdataset gives them
    for url in urls:
        with ExitStack() as stack:
            with _naming(url):
                file = stack.enter_context(opened(url, patience_seconds=patience_seconds, stopped=stopped))
            for sample in _grouped(url, file):
                if stopped.is_set():
                    raise CancelledError
                yield RawSample(url, sample["__key__"], _parts(sample, wanted))


def _parts(sample: dict[str, Any], wanted: Sequence[str]) -> list[bytes]:
    missing = [member for member in wanted if member not in sample]
    if missing:
        found = ", ".join(name for name in sample if not name.startswith("__"))
        raise UserError(
            f"{sample['__url__']}: sample {sample['__key__']!r} has no {', '.join(missing)}, only {found}; "
            "the members of a sample stand side by side, and data.stream.bg, fgbg, depth and mask are their names"
        )
    return [sample[member] for member in wanted]


def _grouped(url: str, file: BufferedIOBase) -> Iterator[dict[str, Any]]:
    """webdataset's samples of one tar: neighbouring members that share a key."""
    blocks = _Blocks(file)
    samples = iter(group_by_keys(tar_file_expander([{"url": url, "stream": blocks}])))
    count = 0
    while True:
        with _naming(url):
            sample = next(samples, None)
            if sample is None:
                blocks.check_end()
        if sample is None:
            break
        count += 1
        yield sample
    if count == 0:
        raise UserError(f"{url}: holds no samples; take it out of data.stream, or write it again")


@contextmanager
def _naming(url: str) -> Iterator[None]:
    """Makes any error of reading one that names the tar."""
    try:
        yield
    except CancelledError:
        raise
    except Exception as error:  # tarfile raises whatever its parsing hits, and webdataset adds to the arguments
        arguments = error.args or (type(error).__name__,)
        reason = (isinstance(error, OSError) and error.strerror) or str(arguments[0]).partition(" @ <")[0]
        raise UserError(f"{url}: can't be read: {reason}; copy it again, or write it again") from error


class _Blocks:
    """A file for tarfile that is read one block at a time, so that it stands where tarfile stopped."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._block = b""
        self._offset = 0

    def read(self, size: int) -> bytes:
        """The next block; less at the end of the file, and where `size` is less."""
        self._block = self._file.read(min(size, BLOCK))
        self._offset += len(self._block)
        return self._block

    def check_end(self) -> None:
        """Raises ValueError unless tarfile stopped at two blocks of zeros, with nothing but zeros after them."""
        if len(self._block) == BLOCK and any(self._block):
            raise ValueError(f"damaged at byte {self._offset - BLOCK:,}: expected the header of a member")
        rest = self._file.read(BLOCK)
        if len(self._block) + len(rest) < 2 * BLOCK:
            raise ValueError(
                f"it ends at byte {self._offset:,} without the two blocks of zeros that end an archive: it was cut "
                "off, or its writer was never closed"
            )
        while rest:
            if rest.count(0) != len(rest):
                raise ValueError(
                    f"it ends as an archive at byte {self._offset:,}, but more follows: were archives joined?"
                )
            rest = self._file.read(_READ_BYTES)
