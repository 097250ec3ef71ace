"""Where the bytes of any sample of a split lie, in open files, by the index beside its shard. Never decodes."""

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import numpy as np

from dtrain.data.located import Descriptor, Located
from dtrain.data.order import Span
from dtrain.data.rows import WAY_OUT, Backgrounds, Indices, ShardTable, Wanted
from dtrain.data.uses import ShardUse
from shard_tools.components import BACKGROUND
from shard_tools.errors import UserError
from shard_tools.index import Places, find_members
from shard_tools.manifest import Manifest, Shard
from shard_tools.samples import decode_index, read_index_bytes
from shard_tools.storage import LocalStorage

MAX_OPEN_SHARDS = 2 * 64 + 8


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
        located = self.locate(np.array([shard]), np.array([sample]))
        return located.wanted.keys()[0], [bytes(images[0]) for images in located.read()]

    def locate(self, shards: Indices, samples: Indices, *, announced: bool = True) -> Located:
        """Open what samples lie in, given by the numbers of shards and of samples in them. Raises UserError as `read`.

        Samples that `begin` did not announce for the batches that are under way can be had, too, if that is said.
        """
        numbers, table = np.unique(shards, return_inverse=True)
        opened = [self._opened(self._shards[number], self._members, announced) for number in numbers.tolist()]
        with self._lock:
            alive = frozenset([each.table.number for each in self._open.values()])
        wanted = Wanted([each.table for each in opened], table, samples)
        located = Located(wanted, [each.descriptor for each in opened], alive)
        return self._with_backgrounds(located) if self._background_shards and BACKGROUND in self._names else located

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

    def _with_backgrounds(self, located: Located) -> Located:
        """With the places of backgrounds in their own shards, which the metadata name that lie where they would be."""
        member = self._names.index(BACKGROUND)
        (texts,) = located.read(slice(member, member + 1))
        opened: dict[str, _OpenShard] = {}
        places = np.empty((len(texts), 3), dtype=np.int64)
        for row, text in enumerate(texts):
            try:
                shard, number = self._background_places[json.loads(bytes(text))["bg"]]
            except (ValueError, KeyError, TypeError):
                path = located.wanted.paths()[located.wanted.table[row]]
                named = f"{path}: sample {located.wanted.keys()[row]!r}"
                raise UserError(f"{named}: names no background that the manifest's shards hold; {WAY_OUT}") from None
            if shard.file not in opened:
                opened[shard.file] = self._opened(shard, [self._background_extension], True)
            places[row] = list(opened).index(shard.file), *opened[shard.file].table.places[number, 0]
        backgrounds = Backgrounds(member, [each.table.path for each in opened.values()], places)
        files = located.files + [each.descriptor for each in opened.values()]
        return replace(located, wanted=replace(located.wanted, backgrounds=backgrounds), files=files)

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


class _OpenShard:
    """An open tar, and what its index says."""

    def __init__(
        self, files: ShardFiles, shard: Shard, extensions: Sequence[str], open_shard: Callable[[Shard], int]
    ) -> None:
        keys, offsets, sizes = _places(files, shard, extensions)
        self.table = ShardTable(next(_NUMBERS), files.path(shard.file), keys, np.stack([offsets, sizes], axis=2))
        self.descriptor = Descriptor(open_shard(shard))


_NUMBERS = itertools.count()


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
