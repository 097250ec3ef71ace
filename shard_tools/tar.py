"""Write USTAR archives whose bytes depend on names and data alone. Never reads one, adds no extended headers."""

import hashlib
import re
import struct
from collections.abc import Iterable
from functools import cache
from typing import BinaryIO

from shard_tools.errors import UserError

BLOCK = 512
MAX_MEMBER_BYTES = 8**11 - 1

_NAME_BYTES = 100
_NAME = re.compile(r"[!-~]{1,100}")
_BUFFER_BYTES = 2**18
_PADDING = [bytes(-size % BLOCK) for size in range(BLOCK)]


class TarWriter:
    """Appends files to an archive and hashes what is written in the same pass.

    Members are regular files of mode 0644, owner 0:0 without names, and time 0.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._size = 0

    def add_sample(self, key: str, parts: Iterable[tuple[str, bytes]]) -> list[tuple[str, int, int]]:
        """Append a file KEY.EXTENSION for each (extension, data); returns (extension, offset, size) for each.

        The offset is that of the first data byte in the archive. Names are at most 100 printable ASCII characters
        without white space, data less than 8 GiB; else UserError.
        """
        stem = _ascii(key)
        sum_of_stem = _SUM_OF_REST + sum(stem)
        pending, size_before = self._pending, self._size
        members = []
        for extension, data in parts:
            suffix, sum_of_suffix = _suffix(extension)
            size = len(data)
            padding = _PADDING[size % BLOCK]
            pending += (_header(stem + suffix, sum_of_stem + sum_of_suffix, size), data, padding)
            members.append((extension, self._size + BLOCK, size))
            self._size += BLOCK + size + len(padding)
        self._pending_bytes += self._size - size_before
        if self._pending_bytes >= _BUFFER_BYTES:
            self._flush()
        return members

    def finish(self) -> tuple[int, str]:
        """Write the end of the archive; returns its size in bytes and its SHA-256 as hexadecimal text."""
        self._pending.append(bytes(2 * BLOCK))
        self._size += 2 * BLOCK
        self._flush()
        return self._size, self._hash.hexdigest()

    def _flush(self) -> None:
        block = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self._hash.update(block)
        self._file.write(block)


def member_header(name: str, size: int) -> bytes:
    """The 512 bytes in front of a member's data. Raises UserError for a name or a size that USTAR cannot hold."""
    name_field = _ascii(name)
    return _header(name_field, _SUM_OF_REST + sum(name_field), size)


def _ascii(name: str) -> bytes:
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r}: a name in a shard is 1 to {_NAME_BYTES} ASCII characters without white space")
    return name.encode("ascii")


@cache
def _suffix(extension: str) -> tuple[bytes, int]:
    """The end of a name, and the sum of its bytes."""
    suffix = _ascii(f".{extension}")
    return suffix, sum(suffix)


def _header(name: bytes, sum_without_size: int, size: int) -> bytes:
    if size > MAX_MEMBER_BYTES or len(name) > _NAME_BYTES:
        what = f"a name of at most {_NAME_BYTES} characters" if len(name) > _NAME_BYTES else "less than 8 GiB"
        raise UserError(f"{name.decode()}: {size:,} bytes; a file in a shard has {what}")
    size_field = b"%011o" % size
    checksum = b"%06o\0 " % (sum_without_size + sum(size_field))
    return _HEADER.pack(name, _MODE_AND_OWNER, size_field, _TIME, checksum, _TYPE_TO_END)


_HEADER = struct.Struct("100s24s11s13s8s356s")
_MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"\0" + b"00000000000\0"
_TYPE_TO_END = b"0" + bytes(100) + b"ustar\x0000" + bytes(2 * 32 + 2 * 8 + 155 + 12)
"""A regular file, no link, USTAR, no names of owners, no device, no prefix of the name."""

_SUM_OF_REST = sum(_MODE_AND_OWNER + _TIME + _TYPE_TO_END + 8 * b" ")
