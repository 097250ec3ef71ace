"""Samples whose files are open, ready to be loaded here or by another process."""

import os
from dataclasses import dataclass
from functools import cached_property

from dtrain.data.rows import Arena, Wanted, read_columns


class Descriptor:
    """Owns a file descriptor; it is closed with the last reference."""

    def __init__(self, number: int) -> None:
        self.number = number

    @cached_property
    def inode(self) -> int:
        """Of the file, by which other processes know it, too."""
        return os.fstat(self.number).st_ino

    def __del__(self) -> None:
        os.close(self.number)


@dataclass(frozen=True)
class Located:
    """Samples, and the files that they lie in, which stay open as long as this is held."""

    wanted: Wanted
    files: list[Descriptor]
    alive: frozenset[int]
    """The tables of all shards that are open, by number: others are not going to be wanted soon."""

    def read(self, members: slice = slice(None)) -> list[list[memoryview]]:
        """The bytes of the members of all samples. Raises UserError that names the shard."""
        return read_columns(self.wanted, [file.number for file in self.files], Arena(), members)
