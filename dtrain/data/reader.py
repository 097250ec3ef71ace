"""Bytes of any sample of a split in one `pread`, found through the index beside its shard. Never decodes."""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shard_tools.errors import UserError
from shard_tools.layouts import BACKGROUND
from shard_tools.manifest import Manifest, Shard
from shard_tools.samples import read_index
from shard_tools.storage import LocalStorage

MAX_OPEN_SHARDS = 2 * 64 + 8


class ShardReader:
    """Random access to the samples of one split; safe to use from several threads.

    Assumes local files that do not change while they are open. Keeps at most `MAX_OPEN_SHARDS` shards open.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, components: Sequence[str]) -> None:
        """`folder` holds shards.json and the shards; `components` are the ones that `read` returns, in that order."""
        self._folder = folder
        self._extensions = {name: f"{name}.{manifest.component(name).extension}" for name in components}
        self._shards = manifest.split(split).shards
        self._background_shards = manifest.split(split).backgrounds
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def shard_lengths(self) -> list[int]:
        """Samples per shard, in the manifest's order."""
        return [shard.samples for shard in self._shards]

    def read(self, shard: int, sample: int) -> tuple[str, list[bytes]]:
        """The key of a sample and the bytes of its components; its background may lie in a shard of its own.

        Raises UserError that names the shard when it is missing, cut short, or not the one of the manifest.
        """
        opened = self._opened(self._shards[shard], self._members)
        key, parts = opened.read(sample)
        if self._background_shards and BACKGROUND in self._extensions:
            column = list(self._extensions).index(BACKGROUND)
            parts[column] = self._read_background(parts[column], f"{self.shard_path(shard)}: sample {key!r}")
        return key, parts

    @cached_property
    def _members(self) -> list[str]:
        """The members to read of each tuple; where backgrounds lie elsewhere, its json, which names the background."""
        if not self._background_shards:
            return list(self._extensions.values())
        return ["json" if name == BACKGROUND else extension for name, extension in self._extensions.items()]

    @cached_property
    def _background_places(self) -> dict[str, tuple[Shard, int]]:
        """The shard of each background that is stored once, and its number there, by key."""
        extension = self._extensions[BACKGROUND]
        return {
            key: (shard, number)
            for shard in self._background_shards
            for number, key in enumerate(_load_index(self._folder, shard, [extension])[0])
        }

    def _read_background(self, metadata: bytes, sample: str) -> bytes:
        try:
            shard, number = self._background_places[json.loads(metadata)["bg"]]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{sample}: names no background that the manifest's shards hold; {_WAY_OUT}") from None
        return self._opened(shard, [self._extensions[BACKGROUND]]).read(number)[1][0]

    def _opened(self, shard: Shard, extensions: Sequence[str]) -> "_OpenShard":
        with self._lock:
            opened = self._open.get(shard.file)
            if opened is None:
                opened = self._open[shard.file] = _OpenShard(self._folder, shard, extensions)
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard.file)
        return opened

    def shard_path(self, shard: int) -> Path:
        """Where a shard lies, for messages."""
        return self._folder / self._shards[shard].file

    def close(self) -> None:
        """Let go of all files; a later `read` opens them again."""
        with self._lock:
            self._open.clear()


class _OpenShard:
    """An open tar and where the members of its samples lie. The descriptor is closed with the last reference."""

    def __init__(self, folder: Path, shard: Shard, extensions: Sequence[str]) -> None:
        self._path = folder / shard.file
        self.keys, self._offsets, self._sizes = _load_index(folder, shard, extensions)
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be opened: {error.strerror}; {_WAY_OUT}") from None
        size = os.fstat(self._descriptor).st_size
        if size != shard.bytes:
            raise UserError(f"{self._path}: {size} bytes, but the manifest says {shard.bytes}; {_WAY_OUT}")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, sample: int) -> tuple[str, list[bytes]]:
        offsets, sizes = self._offsets[sample], self._sizes[sample]
        start, stop = int(offsets.min()), int((offsets + sizes).max())
        data = os.pread(self._descriptor, stop - start, start)
        if len(data) != stop - start:
            raise UserError(f"{self._path}: ends inside sample {self.keys[sample]!r}; {_WAY_OUT}")
        parts = [data[offset : offset + size] for offset, size in zip(offsets - start, sizes, strict=True)]
        return self.keys[sample], parts


_WAY_OUT = "copy it again, or build the shards again with the same `shard-tools build` command"


def _load_index(
    folder: Path, shard: Shard, extensions: Sequence[str]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The keys, and offsets and sizes in bytes of the members with `extensions`, each (samples, extensions)."""
    samples = read_index(LocalStorage(folder), shard)
    places = np.empty((len(samples), len(extensions), 2), dtype=np.int64)
    for number, sample in enumerate(samples):
        members = {member.extension: (member.offset, member.size) for member in sample.members}
        for column, extension in enumerate(extensions):
            if extension not in members:
                raise UserError(
                    f"{folder / shard.index}: sample {sample.key!r} has no member {extension!r}; {_WAY_OUT}"
                )
            places[number, column] = members[extension]
    return [sample.key for sample in samples], places[..., 0], places[..., 1]
