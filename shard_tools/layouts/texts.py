"""Many texts in one block of memory: their bytes and 8 more for each, where a list of `str` takes over 60 more."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import overload


class Texts(Sequence[str]):
    """Texts, to which more can be appended."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q")
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add `text`, which UTF-8 can encode."""
        self._bytes += text.encode()
        self._ends.append(len(self._bytes))

    def digest(self) -> bytes:
        """SHA-256 of the texts in order."""
        digest = hashlib.sha256(self._bytes)
        digest.update(self._ends)
        return digest.digest()

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return self._bytes[self._ends[i - 1] if i else 0 : self._ends[i]].decode()
