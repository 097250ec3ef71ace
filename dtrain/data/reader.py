"""Bytes of any sample of a split in one `pread`, found through the index beside its shard. Never decodes."""

import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from dtrain.data.order import Span
from dtrain.data.uses import ShardUse
from shard_tools.errors import UserError
from shard_tools.index import Places, find_members
from shard_tools.layouts import BACKGROUND
from shard_tools.manifest import Manifest, Shard
from shard_tools.samples import decode_index, read_index_bytes
from shard_tools.storage import LocalStorage

MAX_OPEN_SHARDS = 2 * 64 + 8

Parts = list[memoryview]


class ShardFiles(Protocol):
    """Where a reader gets its shards from, as local files."""

    def begin(self, uses: Sequence[ShardUse], *, borrowed: Iterable[Shard] = ()) -> None:
        """Be told which shards are going to be read, and by which batches; and which may be borrowed besides."""

    def open(self, shard: Shard) -> int:
        """A descriptor of the shard, which the caller closes. Raises UserError that names the shard."""

    def borrow(self, shard: Shard) -> int:
        """As `open`, of any shard and for a moment; needs no `release`."""

    def release(self, shard: Shard) -> None:
        """Be told that no batch soon will read from this shard."""

    def index(self, shard: Shard) -> bytes:
        """Its index. Raises UserError that names it."""

    def path(self, name: str) -> str:
        """Where it lies, for messages."""

    def end(self) -> None:
        """Be told that all that was announced is read, or will not be."""

    def close(self) -> None:
        """Let go of everything."""


class LocalFiles:
    """Shards on a disk: read where they are."""

    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage

    def begin(self, uses: Sequence[ShardUse], *, borrowed: Iterable[Shard] = ()) -> None:
        pass

    def open(self, shard: Shard) -> int:
        path = self.path(shard.file)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened: {error.strerror}; {WAY_OUT}") from None
        size = os.fstat(descriptor).st_size
        if size != shard.bytes:
            os.close(descriptor)
            raise UserError(f"{path}: {size} bytes, but the manifest says {shard.bytes}; {WAY_OUT}")
        return descriptor

    def borrow(self, shard: Shard) -> int:
        return self.open(shard)

    def release(self, shard: Shard) -> None:
        pass

    def index(self, shard: Shard) -> bytes:
        return read_index_bytes(self._storage, shard)

    def path(self, name: str) -> str:
        return self._storage.path(name)

    def end(self) -> None:
        pass

    def close(self) -> None:
        pass


class ShardReader:
    """Random access to the samples of one split; safe to use from several threads.

    Assumes that files do not change while they are open. Keeps at most `MAX_OPEN_SHARDS` shards open.
    """

    def __init__(self, files: ShardFiles, manifest: Manifest, split: str, components: Sequence[str]) -> None:
        """`components` are the ones that `read` returns, in that order."""
        self._files = files
        self._names = tuple(components)
        self._extensions = [manifest.component(name).member_extension for name in components]
        self._shards = manifest.split(split).shards
        self._background_shards = manifest.split(split).backgrounds
        self._open: dict[str, _OpenShard] = {}
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    @property
    def shard_lengths(self) -> list[int]:
        """Samples per shard, in the manifest's order."""
        return [shard.samples for shard in self._shards]

    def begin(self, spans: Sequence[Span], *, ahead: int) -> None:
        """Announce what is going to be read; batches up to `ahead` after the one that has passed are under way."""
        self._spans = sorted(_joined(spans, ahead), key=lambda span: span.last, reverse=True)
        uses = [ShardUse(self._shards[span.shard], span.first, span.last + ahead) for span in self._spans]
        last = max((span.last for span in self._spans), default=0)
        self._files.begin(
            [ShardUse(shard, 0, last + ahead) for shard in self._background_shards] + uses, borrowed=self._shards
        )

    def passed(self, batch: int) -> None:
        """All batches up to this one are read; shards that none of the next reads are closed."""
        while self._spans and self._spans[-1].last <= batch:
            shard = self._shards[self._spans.pop().shard]
            with self._lock:
                self._open.pop(shard.file, None)
            self._files.release(shard)

    def end(self) -> None:
        """Nothing of what was announced will be read any more."""
        self._spans = []
        with self._lock:
            self._open.clear()
        self._files.end()

    def read(self, shard: int, sample: int) -> tuple[str, list[bytes]]:
        """The key of a sample and the bytes of its components; its background may lie in a shard of its own.

        Raises UserError that names the shard when it is missing, cut short, or not the one of the manifest.
        """
        key, parts = self.view(shard, sample, Arena())
        return key, [bytes(part) for part in parts]

    def view(self, shard: int, sample: int, arena: "Arena", *, announced: bool = True) -> tuple[str, Parts]:
        """As `read`, with the bytes in `arena`: they are good until that is cleared.

        A sample that `begin` did not announce for the batches that are under way can be had, too, if that is said.
        """
        key, parts = self._opened(self._shards[shard], self._members, announced).read(sample, arena)
        if self._background_shards and BACKGROUND in self._names:
            column = self._names.index(BACKGROUND)
            parts[column] = self._background(parts[column], f"{self.shard_path(shard)}: sample {key!r}", arena)
        return key, parts

    def shard_path(self, shard: int) -> str:
        """Where a shard lies, for messages."""
        return self._files.path(self._shards[shard].file)

    def close(self) -> None:
        """Let go of all files; a later `read` opens them again."""
        self.end()

    @cached_property
    def _members(self) -> list[str]:
        """The members to read of each tuple; where backgrounds lie elsewhere, its json, which names the background."""
        if not self._background_shards:
            return self._extensions
        return [
            "json" if name == BACKGROUND else extension
            for name, extension in zip(self._names, self._extensions, strict=True)
        ]

    @cached_property
    def _background_places(self) -> dict[str, tuple[Shard, int]]:
        """The shard of each background that is stored once, and its number there, by key."""
        return {
            key: (shard, number)
            for shard in self._background_shards
            for number, key in enumerate(_places(self._files, shard, [self._background_extension]).keys)
        }

    @property
    def _background_extension(self) -> str:
        return self._extensions[self._names.index(BACKGROUND)]

    def _background(self, metadata: memoryview, sample: str, arena: "Arena") -> memoryview:
        try:
            shard, number = self._background_places[json.loads(bytes(metadata))["bg"]]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{sample}: names no background that the manifest's shards hold; {WAY_OUT}") from None
        return self._opened(shard, [self._background_extension], True).read(number, arena)[1][0]

    def _opened(self, shard: Shard, extensions: Sequence[str], announced: bool) -> "_OpenShard":
        opened = self._open.get(shard.file)
        if opened is None and not announced:
            return _OpenShard(self._files, shard, extensions, self._files.borrow)
        if opened is None:
            opened = _OpenShard(self._files, shard, extensions, self._files.open)
            with self._lock:
                self._open[shard.file] = opened
                if len(self._open) > MAX_OPEN_SHARDS:
                    del self._open[next(iter(self._open))]
        return opened


class Arena:
    """Memory for the bytes of a few samples, used again once it is cleared. For one thread."""

    def __init__(self) -> None:
        self._block = memoryview(b"")
        self._used = 0

    def take(self, length: int) -> memoryview:
        """So many bytes, with any content."""
        if self._used + length > len(self._block):
            # Views of the old block keep it; once it is cleared, the new one is large enough for all.
            self._block, self._used = memoryview(bytearray(2 * len(self._block) + length)), 0
        self._used += length
        return self._block[self._used - length : self._used]

    def clear(self) -> None:
        """Let the memory of all that was taken be used again."""
        self._used = 0


class _OpenShard:
    """An open tar and where the members of its samples lie. The descriptor is closed with the last reference."""

    def __init__(
        self, files: ShardFiles, shard: Shard, extensions: Sequence[str], open_shard: Callable[[Shard], int]
    ) -> None:
        self._path = files.path(shard.file)
        keys, offsets, sizes = _places(files, shard, extensions)
        starts = offsets.min(axis=1, initial=shard.bytes)
        ends = (offsets + sizes).max(axis=1, initial=0)
        inside = offsets - starts[:, None]
        self._keys = keys
        self._reads = np.stack([starts, ends - starts], axis=1)
        self._members = np.stack([inside, inside + sizes], axis=2)
        self._descriptor = open_shard(shard)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, sample: int, arena: Arena) -> tuple[str, Parts]:
        start, length = self._reads[sample].tolist()
        view = arena.take(length)
        try:
            arrived = os.preadv(self._descriptor, (view,), start)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror}; {WAY_OUT}") from None
        if arrived != length:
            raise UserError(f"{self._path}: ends inside sample {self._keys[sample]!r}; {WAY_OUT}")
        return self._keys[sample], [view[begin:end] for begin, end in self._members[sample].tolist()]


WAY_OUT = "copy it again, or build the shards again with the same `shard-tools build` command"


def _places(files: ShardFiles, shard: Shard, extensions: Sequence[str]) -> Places:
    """Where the members with `extensions` lie, according to an index that agrees with the manifest."""
    path = files.path(shard.index)
    places = find_members(decode_index(files.index(shard), path), extensions, path)
    if len(places.keys) != shard.samples:
        raise UserError(f"{path}: {len(places.keys)} samples, but the manifest says {shard.samples}; {WAY_OUT}")
    if (places.offsets + places.sizes).max(initial=0) > shard.bytes:
        raise UserError(f"{path}: a sample lies beyond the end of {shard.file}; {WAY_OUT}")
    return places


def _joined(spans: Sequence[Span], ahead: int) -> list[Span]:
    """The same, where a shard is not let go and wanted again within `ahead` batches."""
    joined: dict[int, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.first):
        before = joined.setdefault(span.shard, [])
        if before and span.first <= before[-1].last + ahead:
            before[-1] = before[-1]._replace(last=max(before[-1].last, span.last))
        else:
            before.append(span)
    return [span for found in joined.values() for span in found]
