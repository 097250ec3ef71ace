"""From ranges of open files to pixels in the slots of a batch. Knows no shard, no order, and no torch: a process that
does nothing else starts fast."""

import math
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtrain.data.decode import DECODERS, BackgroundCache, Decode, Encoded, Pixels, decode_batch
from shard_tools.components import BACKGROUND, COMPONENTS
from shard_tools.errors import UserError

CHANNELS = (3, 3, 1, 1)
"""Of the slots of each of `COMPONENTS`."""

READ_AHEAD = 64
"""Samples whose bytes a thread reads before it decodes them."""

Indices = NDArray[np.int64]

Places = NDArray[np.int64]
"""Where the members of samples lie, (n, members, 3): which of some files, offset, and size in bytes."""

Shape = tuple[int, int, int]
"""Rows, height and width of the slots of a batch."""


WAY_OUT = "copy it again, or build the shards again with the same `shard-tools build` command"


@dataclass(frozen=True, eq=False)
class ShardTable:
    """Where the members of a shard's samples lie: `places` (n, members, 2), offset and size in bytes."""

    number: int
    """Its own, of all that this process has made."""
    path: str
    keys: list[str]
    places: Indices


@dataclass(frozen=True)
class Backgrounds:
    """Where those of some samples lie that are not in the samples' own shards."""

    member: int
    """Which one of a sample's members the background takes the place of."""
    paths: list[str]
    places: Indices
    """(n, 3): which of the paths, offset, and size in bytes."""


@dataclass(frozen=True)
class Wanted:
    """Samples to load: of which of some shards, and which of its samples, both (n,)."""

    tables: list[ShardTable]
    table: Indices
    sample: Indices
    backgrounds: Backgrounds | None = None

    def part(self, rows: slice) -> "Wanted":
        """Some of the samples."""
        backgrounds = self.backgrounds and replace(self.backgrounds, places=self.backgrounds.places[rows])
        return Wanted(self.tables, self.table[rows], self.sample[rows], backgrounds)

    def keys(self) -> list[str]:
        """Of all samples."""
        return [self.tables[table].keys[sample] for table, sample in self._each()]

    def paths(self) -> list[str]:
        """Of the files, as `places` counts them."""
        return [table.path for table in self.tables] + (self.backgrounds.paths if self.backgrounds else [])

    def places(self) -> Places:
        """Where all members lie."""
        of_samples = [self.tables[table].places[sample] for table, sample in self._each()]
        members = of_samples[0].shape[0] if of_samples else 0
        places = np.empty((len(of_samples), members, 3), dtype=np.int64)
        if of_samples:
            places[:, :, 0] = self.table[:, None]
            np.stack(of_samples, out=places[:, :, 1:])
        if self.backgrounds is not None:
            places[:, self.backgrounds.member] = self.backgrounds.places
            places[:, self.backgrounds.member, 0] += len(self.tables)
        return places

    def _each(self) -> Iterable[tuple[int, int]]:
        return zip(self.table.tolist(), self.sample.tolist(), strict=True)


class Loaded(NamedTuple):
    """The keys of samples, and what can't be decoded, and why, by row."""

    keys: list[str]
    wrong: dict[int, str]


class SampleDecoder:
    """Decodes whole samples, and each background that they share once. Thread-safe."""

    def __init__(self, decode: Decode, background_cache_bytes: int) -> None:
        self._decode = DECODERS[decode]
        self._backgrounds = BackgroundCache(background_cache_bytes, self._decode)

    def decode(self, parts: Sequence[Encoded], slots: Sequence[Pixels]) -> None:
        """Decode the `COMPONENTS` of a sample into its slots of a batch. Raises ValueError that names the component."""
        columns = [[part] for part in parts]
        for reason in self.decode_columns(columns, [slot[np.newaxis] for slot in slots]).values():
            raise ValueError(reason)

    def decode_columns(self, columns: Sequence[Sequence[Encoded]], slots: Sequence[Pixels]) -> dict[int, str]:
        """Decode several samples, given component by component, into slots (n, H, W, C) each; what is wrong, by row."""
        wrong: dict[int, str] = {}
        for component, images, each in zip(COMPONENTS, columns, slots, strict=True):
            decode = self._backgrounds.decode_into if component == BACKGROUND else self._decode
            for row, error in decode_batch(decode, images, each).items():
                wrong.setdefault(row, f"{component} can't be decoded: {error}")
        return wrong


class RowLoader:
    """Reads samples and decodes them. Thread-safe."""

    def __init__(self, decoder: SampleDecoder) -> None:
        self._decoder = decoder
        self._own = threading.local()

    def load(self, wanted: Wanted, files: Sequence[int], slots: Sequence[Pixels]) -> Loaded:
        """Fill the slots, (n, H, W, C) of each component, from the open files that `wanted` counts.

        Raises UserError that names the shard if one can't be read.
        """
        arena = self._arena
        wrong: dict[int, str] = {}
        for start in range(0, len(wanted.table), READ_AHEAD):
            rows = slice(start, start + READ_AHEAD)
            columns = read_columns(wanted.part(rows), files, arena)
            found = self._decoder.decode_columns(columns, [slot[rows] for slot in slots])
            wrong |= {start + row: reason for row, reason in found.items()}
            arena.clear()
        return Loaded(wanted.keys(), wrong)

    @property
    def _arena(self) -> "Arena":
        """This thread's memory for what it reads."""
        if not hasattr(self._own, "arena"):
            self._own.arena = Arena()
        arena: Arena = self._own.arena
        arena.clear()
        return arena


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


def read_columns(
    wanted: Wanted, files: Sequence[int], arena: Arena, members: slice = slice(None)
) -> list[list[memoryview]]:
    """The bytes of the members of all samples, in the arena; what lies in one file comes with one `pread` a sample.

    Raises UserError that names the shard.
    """
    places = wanted.places()[:, members]
    columns: list[list[memoryview]] = [[] for _ in range(places.shape[1])]
    together: dict[bytes, list[int]] = {}
    for column in range(places.shape[1]):
        together.setdefault(places[:, column, 0].tobytes(), []).append(column)
    for group in together.values():
        offsets, sizes = places[:, group, 1], places[:, group, 2]
        starts = offsets.min(axis=1)
        lengths = (offsets + sizes).max(axis=1) - starts
        begins = offsets - starts[:, None]
        cuts = np.stack([begins, begins + sizes], axis=2)
        into = [columns[column] for column in group]
        ranges = zip(places[:, group[0], 0].tolist(), starts.tolist(), lengths.tolist(), cuts.tolist(), strict=True)
        for row, (file, start, length, spans) in enumerate(ranges):
            view = arena.take(length)
            try:
                arrived = os.preadv(files[file], (view,), start)
            except OSError as error:
                raise UserError(f"{wanted.paths()[file]}: cannot be read: {error.strerror}; {WAY_OUT}") from None
            if arrived != length:
                key = wanted.keys()[row]
                raise UserError(f"{wanted.paths()[file]}: ends inside sample {key!r}; {WAY_OUT}")
            for images, (begin, end) in zip(into, spans, strict=True):
                images.append(view[begin:end])
    return columns


def slots_in(memory: NDArray[np.uint8], shape: Shape) -> list[Pixels]:
    """The slots of each component in the memory of a batch, (rows, H, W, C), one after the other."""
    slots = []
    end = 0
    for size, channels in zip(component_bytes(shape), CHANNELS, strict=True):
        begin, end = end, end + size
        slots.append(memory[begin:end].reshape(*shape, channels))
    return slots


def component_bytes(shape: Shape) -> list[int]:
    """What the slots of each component of a batch take."""
    return [math.prod(shape) * channels for channels in CHANNELS]


def bytes_of(shape: Shape) -> int:
    """What the slots of a batch take."""
    return sum(component_bytes(shape))
